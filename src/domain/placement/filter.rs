//! Admission, then fit: the one predicate, as a funnel of stages in one order (`Rejection.reason`). Every stage is a hard
//! rule; preferences are in `score`.

use std::{collections::BTreeMap, time::Duration};

use time::OffsetDateTime;

use super::Context;
use crate::domain::{
    Port, Resources, ServerHandle, ServerStatus,
    fleet::ServerState,
    ports::{PortGrant, PortShortage},
    request::ModuleRequest,
    resources::Resource,
};

/// What is asked of a server.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// What is to be reserved in addition to what stands.
    pub resources: Resources,
    /// What the project will hold in all: what the server must be able to hold when empty.
    pub whole: Resources,
    /// Labels that the server must carry.
    pub selector: &'a BTreeMap<String, String>,
    /// The modules that need a port.
    pub modules: &'a [ModuleRequest],
    /// The lowest port to consider.
    pub start_port: Port,
    /// The server that the project is to leave.
    pub leaving: Option<&'a ServerHandle>,
    /// Whether the project is already placed on the server. Then a resource of which it asks nothing more is not looked at:
    /// a new port makes a server that is over its capacity no worse.
    pub bound: bool,
}

impl Ask<'_> {
    /// The same, asked of servers that an index says carry the labels.
    #[must_use]
    pub fn of_carriers(&self) -> Self {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        Self { selector: NONE, ..*self }
    }
}

/// The stages, in the order of the funnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is the one that the project is to leave.
    Left,
    /// It does not carry the labels.
    Labels,
    /// It is not ours to place on.
    Unmanaged,
    /// It could not hold the request even empty, headroom kept.
    Size,
    /// Its status does not admit work.
    Status,
    /// Its usage report is too old.
    UsageStale,
    /// It has no room now.
    Capacity,
    /// It does not have the ports.
    Ports,
}

impl Stage {
    /// The stage's name in metadata.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "LEFT",
            Self::Labels => "LABELS",
            Self::Unmanaged => "UNMANAGED",
            Self::Size => "SIZE",
            Self::Status => "STATUS",
            Self::UsageStale => "USAGE_STALE",
            Self::Capacity => "CAPACITY",
            Self::Ports => "PORTS",
        }
    }
}

/// Why a server is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclusion {
    /// It is the one that the project is to leave.
    Left,
    /// It lacks this label.
    Labels {
        /// The label's key.
        key: String,
        /// The value that was asked for.
        value: String,
    },
    /// It is not ours to place on.
    Unmanaged,
    /// Even empty it is short of this.
    Size {
        /// What is missing.
        short: Resources,
    },
    /// Its status does not admit work.
    Status(ServerStatus),
    /// Its usage report is too old, or it never made one and has to.
    UsageStale {
        /// The report's age; none where there is no report.
        age: Option<Duration>,
        /// The greatest age that is taken.
        max_age: Duration,
    },
    /// It is short of this now.
    Capacity {
        /// What is missing.
        short: Resources,
    },
    /// It does not have the ports.
    Ports(PortShortage),
}

impl Exclusion {
    /// The stage that left the server out.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            Self::Left => Stage::Left,
            Self::Labels { .. } => Stage::Labels,
            Self::Unmanaged => Stage::Unmanaged,
            Self::Size { .. } => Stage::Size,
            Self::Status(_) => Stage::Status,
            Self::UsageStale { .. } => Stage::UsageStale,
            Self::Capacity { .. } => Stage::Capacity,
            Self::Ports(_) => Stage::Ports,
        }
    }

    /// The exclusion in words that follow "it", with the figures.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Left => "is where the project is now".to_owned(),
            Self::Labels { key, value } => format!("does not carry the label {key}={value}"),
            Self::Unmanaged => "is not managed".to_owned(),
            Self::Size { short } => {
                format!("could not hold this even empty, headroom kept: short of {}", describe_short(*short))
            }
            Self::Status(status) => format!("has the status {status}, which admits no work"),
            Self::UsageStale { age: Some(age), max_age } => format!(
                "reported its usage {} s ago, and the limit is {} s",
                age.as_secs(),
                max_age.as_secs()
            ),
            Self::UsageStale { age: None, .. } => {
                "never reported its usage, which this service requires".to_owned()
            }
            Self::Capacity { short } => format!("has no room now: short of {}", describe_short(*short)),
            Self::Ports(PortShortage::Taken { port, protocol, cause, .. }) => {
                format!("cannot give port {port}/{protocol}, which {}", cause.describe())
            }
            Self::Ports(PortShortage::Exhausted { protocol, start, range, .. }) => {
                format!("has no free {protocol} port at or above {start} in its range {range}")
            }
        }
    }
}

/// What is missing, in words.
pub(super) fn describe_short(short: Resources) -> String {
    let missing: Vec<_> = Resource::ALL
        .into_iter()
        .filter(|resource| short.get(*resource) != 0)
        .map(|resource| resource.describe(short.get(resource)))
        .collect();
    missing.join(", ")
}

/// Whether a server admits work: managed, ready, and its host's usage report, if it ever made one or has to, fresh.
///
/// # Errors
/// The [`Exclusion`] of the first stage that it fails.
pub fn admits(
    managed: bool,
    status: ServerStatus,
    host_report_time: Option<OffsetDateTime>,
    context: &Context,
) -> Result<(), Exclusion> {
    if !managed {
        return Err(Exclusion::Unmanaged);
    }
    check_status(status)?;
    check_usage(host_report_time, context)
}

/// Whether the request can be placed on the server, and with which ports.
///
/// # Errors
/// The [`Exclusion`] of the first stage that leaves the server out.
pub fn fits(state: &ServerState, ask: &Ask<'_>, context: &Context) -> Result<Vec<PortGrant>, Exclusion> {
    if ask.leaving == Some(&state.server.handle) {
        return Err(Exclusion::Left);
    }
    let lacking = ask.selector.iter().find(|(key, value)| state.server.labels.get(*key) != Some(*value));
    if let Some((key, value)) = lacking {
        return Err(Exclusion::Labels { key: key.clone(), value: value.clone() });
    }
    if !state.server.managed {
        return Err(Exclusion::Unmanaged);
    }
    if let Some(short) = shortage(ask.whole, state.budget(), ask) {
        return Err(Exclusion::Size { short });
    }
    check_status(state.server.status)?;
    check_usage(state.host_report_time(), context)?;
    if let Some(short) = shortage(ask.resources, state.free(), ask) {
        return Err(Exclusion::Capacity { short });
    }
    state.ports.choose(&state.server, ask.modules, ask.start_port, context.now).map_err(Exclusion::Ports)
}

fn check_status(status: ServerStatus) -> Result<(), Exclusion> {
    if status == ServerStatus::Ready { Ok(()) } else { Err(Exclusion::Status(status)) }
}

/// Both times are the database's clock, so a report comes from the future only after a failover to a clock that is behind:
/// that counts as fresh (L28).
fn check_usage(host_report_time: Option<OffsetDateTime>, context: &Context) -> Result<(), Exclusion> {
    let age = host_report_time.map(|reported| Duration::try_from(context.now - reported).unwrap_or_default());
    let fresh = match age {
        Some(age) => age <= context.usage_max_age,
        None => !context.usage_required,
    };
    if fresh { Ok(()) } else { Err(Exclusion::UsageStale { age, max_age: context.usage_max_age }) }
}

/// What is missing. A server that is over its capacity takes no new project, not even one that asks for nothing.
fn shortage(needed: Resources, available: Resources, ask: &Ask<'_>) -> Option<Resources> {
    let mut short = needed.short_of(available);
    if ask.bound {
        short = short.zip(ask.resources, |short, asked| if asked == 0 { 0 } else { short });
    }
    (!short.is_zero()).then_some(short)
}
