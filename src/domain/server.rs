//! A server as its operators and its source describe it, and what was observed of it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    ids::ServerHandle,
    ports::{Port, PortRange},
    resources::{PerResource, ResourceRequest, Resources},
};

/// What a server is. `Ready` includes what callers see as `IN_USE`: a ready server with placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerStatus {
    /// A source listed it; nobody made it ready yet.
    Discovered,
    /// It is being set up.
    Provisioning,
    /// It admits work.
    Ready,
    /// It keeps what it holds, and takes nothing new.
    Maintenance,
    /// It is broken.
    Error,
    /// It does not answer.
    Unreachable,
    /// Its source no longer lists it; its placements stay (L36).
    Missing,
    /// It is out of service for good.
    Decommissioned,
}

impl ServerStatus {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Discovered,
        Self::Provisioning,
        Self::Ready,
        Self::Maintenance,
        Self::Error,
        Self::Unreachable,
        Self::Missing,
        Self::Decommissioned,
    ];

    /// The status's name, as in the API and in metadata.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovered => "DISCOVERED",
            Self::Provisioning => "PROVISIONING",
            Self::Ready => "READY",
            Self::Maintenance => "MAINTENANCE",
            Self::Error => "ERROR",
            Self::Unreachable => "UNREACHABLE",
            Self::Missing => "MISSING",
            Self::Decommissioned => "DECOMMISSIONED",
        }
    }
}

impl fmt::Display for ServerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A machine that projects are placed on: what its operators and its source set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its identity.
    pub handle: ServerHandle,
    /// An IP address or a DNS name. It may change; the handle may not (L34).
    pub address: String,
    /// What it is.
    pub status: ServerStatus,
    /// What to return to when its source lists it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_before_missing: Option<ServerStatus>,
    /// Whether projects may be placed here.
    pub managed: bool,
    /// What requests select by.
    pub labels: BTreeMap<String, String>,
    /// What it has.
    pub capacity: Resources,
    /// What is kept free of placements; `None`: the fleet's default.
    pub headroom: ResourceRequest,
    /// How much may be reserved for each hundred that there is, in percent; `None`: the fleet's.
    #[serde(default, skip_serializing_if = "PerResource::is_empty")]
    pub overcommit_percent: PerResource<Option<i64>>,
    /// The ports that may be given.
    pub port_range: PortRange,
    /// Ports of either protocol that are never given.
    pub excluded_ports: Vec<PortRange>,
    /// Who listed it; empty for one registered by hand.
    pub source: String,
    /// The source's own name for it.
    pub external_id: Option<String>,
}

impl Server {
    /// The names of the fields that differ between the two.
    #[must_use]
    pub fn changed_fields(&self, other: &Self) -> Vec<&'static str> {
        let fields = [
            ("address", self.address != other.address),
            ("status", self.status != other.status),
            ("managed", self.managed != other.managed),
            ("labels", self.labels != other.labels),
            ("capacity", self.capacity != other.capacity),
            ("headroom", self.headroom != other.headroom),
            ("overcommit_percent", self.overcommit_percent != other.overcommit_percent),
            ("port_range", self.port_range != other.port_range),
            ("excluded_ports", self.excluded_ports != other.excluded_ports),
            ("source", self.source != other.source),
            ("external_id", self.external_id != other.external_id),
        ];
        fields.into_iter().filter_map(|(name, changed)| changed.then_some(name)).collect()
    }
}

/// Who saw what a server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observer {
    /// The host itself, which is to report again and again.
    Host,
    /// The source that lists it. Its figure stands in until the host itself reports (L22), and does not grow stale.
    Provider,
}

/// The latest usage report of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Who saw it.
    pub observer: Observer,
    /// Processor time in use, in thousandths of a core, where it was reported.
    pub cpu_millis: Option<i64>,
    /// Memory in use, in megabytes, where it was reported.
    pub ram_mb: Option<i64>,
    /// Disk in use, in megabytes, where it was reported.
    pub disk_mb: Option<i64>,
    /// The ports that something listens on, ascending.
    pub listening_ports: Vec<Port>,
    /// When the report arrived, by the database's clock.
    pub observe_time: OffsetDateTime,
}

impl Observation {
    /// When the host itself reported; none where it did not.
    #[must_use]
    pub fn host_report_time(&self) -> Option<OffsetDateTime> {
        (self.observer == Observer::Host).then_some(self.observe_time)
    }

    /// What is in use; nothing where it was not reported, so that what is reserved decides.
    #[must_use]
    pub fn usage(&self) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis.unwrap_or(0),
            ram_mb: self.ram_mb.unwrap_or(0),
            disk_mb: self.disk_mb.unwrap_or(0),
        }
    }
}
