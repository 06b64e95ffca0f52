//! The log: one [`Operation`] for each thing that was committed, which expands to the events that watchers see. The expansion
//! is a function of the operation alone, so that every replica numbers the same events alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    Allocation, Disposition, Port, ProjectId, Reason, ResourceRequest, Resources, Server, ServerHandle,
    line::{LeaveCause, LeftLine, Waiting},
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
    /// What was done.
    pub operation: Operation,
}

impl LogEntry {
    /// The number of its last event.
    #[must_use]
    pub fn last_sequence(&self) -> i64 {
        self.first_sequence + self.operation.event_count() - 1
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

/// A project gave back ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Released {
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

/// An event, as watchers see it; a view into the operation that it is of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// An ensure was asked for.
    Requested(&'a Requested),
    /// A server was chosen.
    ServerSelected(&'a Ensured, Selected),
    /// A module was given its port.
    PortAllocated {
        /// The server's address.
        server_address: &'a str,
        /// The port.
        allocation: &'a Allocation,
    },
    /// The ensure was committed.
    Completed(&'a Ensured),
    /// The ensure was refused.
    Failed(&'a Refused),
    /// Ports were given back.
    Released(&'a Released),
    /// The project was moved.
    Relocated(&'a Relocated),
    /// A port was set aside.
    PortSetAside(&'a PortReplaced),
    /// The inventory changed.
    ServerChanged(&'a ServerChanged),
    /// The project stands in line.
    Waiting(&'a Waiting),
    /// The project left the line.
    LeftLine(&'a LeftLine),
    /// The fleet's policy changed.
    PolicyChanged(&'a PolicyChanged),
}

impl Operation {
    /// The events, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event<'_>> {
        match self {
            Self::Ensured(ensured) => {
                // Of one that stood in line it was told when it joined.
                let requested = ensured.served.is_none().then_some(&ensured.requested);
                let mut events: Vec<_> = requested.map(Event::Requested).into_iter().collect();
                events.extend(ensured.selected.map(|selected| Event::ServerSelected(ensured, selected)));
                events.extend(given(&ensured.server_address, &ensured.allocations));
                events.push(Event::Completed(ensured));
                events
            }
            Self::Refused(refused) => vec![Event::Requested(&refused.requested), Event::Failed(refused)],
            Self::Released(released) => vec![Event::Released(released)],
            Self::Relocated(relocated) => {
                let mut events = vec![Event::Relocated(relocated)];
                events.extend(given(&relocated.server_address, &relocated.allocations));
                events
            }
            Self::PortReplaced(replaced) => vec![
                Event::PortSetAside(replaced),
                Event::PortAllocated {
                    server_address: &replaced.server_address,
                    allocation: &replaced.allocation,
                },
            ],
            Self::ServerChanged(changed) => vec![Event::ServerChanged(changed)],
            Self::Waiting(waiting) => {
                let requested = waiting.arrival.is_none().then_some(&waiting.request.requested);
                let mut events: Vec<_> = requested.map(Event::Requested).into_iter().collect();
                events.push(Event::Waiting(waiting));
                events
            }
            Self::LeftLine(LeftLine { cause: LeaveCause::Refused(refused), .. }) => {
                vec![Event::Failed(refused)]
            }
            Self::LeftLine(left) => vec![Event::LeftLine(left)],
            Self::PolicyChanged(changed) => vec![Event::PolicyChanged(changed)],
        }
    }

    /// How many events there are: the width of the operation's span of numbers.
    #[must_use]
    pub fn event_count(&self) -> i64 {
        let count = |allocations: &[Allocation]| i64::try_from(allocations.len()).unwrap_or(i64::MAX);
        match self {
            Self::Ensured(ensured) => {
                let requested = i64::from(ensured.served.is_none());
                1 + requested + i64::from(ensured.selected.is_some()) + count(&ensured.allocations)
            }
            Self::Waiting(waiting) => 1 + i64::from(waiting.arrival.is_none()),
            Self::Relocated(relocated) => 1 + count(&relocated.allocations),
            Self::Refused(_) | Self::PortReplaced(_) => 2,
            Self::Released(_) | Self::ServerChanged(_) | Self::LeftLine(_) | Self::PolicyChanged(_) => 1,
        }
    }
}

fn given<'a>(server_address: &'a str, allocations: &'a [Allocation]) -> impl Iterator<Item = Event<'a>> {
    allocations.iter().map(move |allocation| Event::PortAllocated { server_address, allocation })
}

#[cfg(test)]
mod tests;
