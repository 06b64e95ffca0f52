//! The log: one [`Operation`] for each thing that was committed, which expands to the events that watchers see. The expansion
//! is a function of the operation alone, so that every replica numbers the same events alike.

mod expand;
mod grant;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use self::{
    expand::Event,
    grant::{Change, Grant, Ports},
};
use super::{
    Allocation, Disposition, Port, ProjectId, Reason, ResourceRequest, Resources, Server, ServerHandle,
    line::{LeftLine, Waiting},
    policy::FleetPolicy,
    request::{EnsureRequest, ModuleRequest, Strategy},
};

/// A committed operation, with its place in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    /// The number of its first event.
    pub first_sequence: i64,
    /// When it was decided, by the database's clock.
    pub event_time: OffsetDateTime,
    /// The project that it is about; none for changes of the inventory.
    pub project_id: Option<ProjectId>,
    /// The server that it is about, where there is one.
    pub server_handle: Option<ServerHandle>,
    /// The request that caused it.
    pub request_id: String,
    /// Who made that request; empty without authentication, and for what nobody asked for.
    pub actor: String,
    /// What was done.
    pub operation: Operation,
}

impl LogEntry {
    /// The number of its last event.
    #[must_use]
    pub fn last_sequence(&self) -> i64 {
        self.first_sequence + self.operation.event_count() - 1
    }

    /// The number of the event at `index`.
    #[must_use]
    pub fn sequence_of(&self, index: usize) -> i64 {
        self.first_sequence.saturating_add(i64::try_from(index).unwrap_or(i64::MAX))
    }

    /// How many of its events have this number or a lower one.
    #[must_use]
    pub fn events_up_to(&self, sequence: i64) -> usize {
        let count = sequence.min(self.last_sequence()) - self.first_sequence + 1;
        usize::try_from(count).unwrap_or(0)
    }

    /// The project that it placed (`true`) or took off its server (`false`); none where it did neither, as a move does not.
    #[must_use]
    pub fn placement(&self) -> Option<(&ProjectId, bool)> {
        let is_placed = match &self.operation {
            Operation::Ensured(ensured) if ensured.selected.is_some() => true,
            Operation::Released(released) if released.returned.is_some() => false,
            _ => return None,
        };
        Some((self.project_id.as_ref()?, is_placed))
    }

    /// The servers that it is about: of a move both.
    pub fn servers(&self) -> impl Iterator<Item = &ServerHandle> {
        let left = match &self.operation {
            Operation::Relocated(relocated) => Some(&relocated.from_server_handle),
            _ => None,
        };
        self.server_handle.iter().chain(left)
    }

    /// Whether the event at `index` is about the server: that of a move is about both.
    #[must_use]
    pub fn concerns(&self, index: usize, handle: &ServerHandle) -> bool {
        let moved_away = match &self.operation {
            Operation::Relocated(relocated) => index == 0 && relocated.from_server_handle == *handle,
            _ => false,
        };
        moved_away || self.server_handle.as_ref() == Some(handle)
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// A project was placed, or added to.
    Ensured(Ensured),
    /// A project could not be placed or added to.
    Refused(Refused),
    /// A project gave back ports, and with the last one its capacity.
    Released(Released),
    /// A project was moved to another server.
    Relocated(Relocated),
    /// A module's port was found in use on the host: it was set aside, and the module got another.
    PortReplaced(PortReplaced),
    /// The inventory changed.
    ServerChanged(ServerChanged),
    /// A project took a place in line, or goes on standing there.
    Waiting(Box<Waiting>),
    /// A project left the line without being served.
    LeftLine(LeftLine),
    /// The fleet's policy changed.
    PolicyChanged(PolicyChanged),
}

/// What an ensure asked for, as the request named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requested {
    /// The modules.
    pub modules: Vec<ModuleRequest>,
    /// The resources.
    pub resources: ResourceRequest,
    /// The pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_handle: Option<ServerHandle>,
    /// The labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// The lowest port to consider, where it was not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_port: Option<Port>,
}

impl Requested {
    /// What a request asked for.
    #[must_use]
    pub fn of(request: &EnsureRequest) -> Self {
        Self {
            modules: request.modules.clone(),
            resources: request.resources,
            server_handle: request.server_handle.clone(),
            selector: request.selector.clone(),
            start_port: (request.start_port != super::ports::DEFAULT_START_PORT)
                .then_some(request.start_port),
        }
    }
}

/// A project was placed, or added to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ensured {
    /// Whether any usage report counted, which the log does not carry: without one, the decision follows from the log alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usage_counted: bool,
    /// What was asked for.
    pub requested: Requested,
    /// How the server was chosen; none where the project was already placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<Selected>,
    /// The server's address.
    pub server_address: String,
    /// What was reserved in addition.
    pub grown: Resources,
    /// The ports that were given.
    pub allocations: Vec<Allocation>,
    /// How many ports the project holds now.
    pub allocation_count: u32,
    /// When the placement ends by itself.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::timestamp::microseconds::option"
    )]
    pub expire_time: Option<OffsetDateTime>,
    /// The place that it had in line; none where it stood in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Served>,
}

/// The place in line of a project that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The operation by which it took the place.
    pub arrival: i64,
    /// Since when it stood there.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub since: OffsetDateTime,
}

/// How a server was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selected {
    /// The strategy.
    pub strategy: Strategy,
    /// What was free before.
    pub free_before: Resources,
    /// What was free after.
    pub free_after: Resources,
}

/// An ensure was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Whether any usage report counted, which the log does not carry: without one, the decision follows from the log alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usage_counted: bool,
    /// What was asked for.
    pub requested: Requested,
    /// Why it was refused.
    pub reason: Reason,
    /// What kind of act is needed.
    pub disposition: Disposition,
    /// The message that the caller got.
    pub message: String,
    /// The figures that the caller got.
    pub metadata: BTreeMap<String, String>,
}

/// Why ports were given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseCause {
    /// They were released.
    #[default]
    Requested,
    /// The lease was over.
    Expired,
}

impl ReleaseCause {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    fn is_requested(&self) -> bool {
        *self == Self::Requested
    }
}

/// A project gave back ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Released {
    /// Why.
    #[serde(default, skip_serializing_if = "ReleaseCause::is_requested")]
    pub cause: ReleaseCause,
    /// The server's address.
    pub server_address: String,
    /// The ports that were given back.
    pub allocations: Vec<Allocation>,
    /// What went back with the last port; none while the project still holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<Resources>,
    /// Until when the ports rest.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub free_after: OffsetDateTime,
}

/// A project was moved to another server. The log names the new one beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relocated {
    /// Whether any usage report counted, which the log does not carry: without one, the decision follows from the log alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usage_counted: bool,
    /// The server that it left.
    pub from_server_handle: ServerHandle,
    /// That server's address.
    pub from_server_address: String,
    /// The new server's address.
    pub server_address: String,
    /// How the new server was chosen.
    pub selected: Selected,
    /// What is reserved for the project, there before and here now.
    pub reserved: Resources,
    /// The ports that were given back.
    pub released: Vec<Allocation>,
    /// Until when they rest.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub free_after: OffsetDateTime,
    /// The ports that were given.
    pub allocations: Vec<Allocation>,
}

/// A module's port was set aside, and the module got another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortReplaced {
    /// The server's address.
    pub server_address: String,
    /// The port that was found in use.
    pub set_aside: Allocation,
    /// Until when it is not given to anyone.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub until: OffsetDateTime,
    /// Why it is set aside, in the words of whoever found it in use.
    pub detail: String,
    /// The port that the module got in its place.
    pub allocation: Allocation,
    /// The lowest port that was considered for it, where it was not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_port: Option<Port>,
    /// Whether any usage report counted, which the log does not carry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usage_counted: bool,
}

/// The fleet's policy changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyChanged {
    /// The policy after the change.
    pub policy: FleetPolicy,
}

/// What kind of change of the inventory it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerChange {
    /// The server is new.
    Registered,
    /// Its status or whether it is managed changed.
    Status,
    /// Its capacity, headroom or over-commit changed.
    Capacity,
    /// Another field changed.
    Updated,
    /// Its usage report is too old.
    UsageStale,
    /// It was removed.
    Removed,
}

/// The inventory changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerChanged {
    /// Every kind of change, at least one.
    pub changes: Vec<ServerChange>,
    /// The server after the change, or as it last was where it was removed.
    pub server: Server,
}

impl ServerChanged {
    /// What changed from one state of a server to the next; none when nothing did.
    #[must_use]
    pub fn between(before: Option<&Server>, after: &Server) -> Option<Self> {
        let Some(before) = before else {
            return Some(Self { changes: vec![ServerChange::Registered], server: after.clone() });
        };
        let fields = before.changed_fields(after);
        let kinds = [
            (ServerChange::Status, &["status", "managed"][..]),
            (ServerChange::Capacity, &["capacity", "headroom", "overcommit_percent"]),
            (
                ServerChange::Updated,
                &["address", "labels", "port_range", "excluded_ports", "source", "external_id"],
            ),
        ];
        let changes: Vec<_> = kinds
            .into_iter()
            .filter(|(_, names)| fields.iter().any(|field| names.contains(field)))
            .map(|(kind, _)| kind)
            .collect();
        (!changes.is_empty()).then(|| Self { changes, server: after.clone() })
    }
}

#[cfg(test)]
mod tests;
