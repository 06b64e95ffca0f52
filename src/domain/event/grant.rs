//! What an ensure granted, and nothing else of it. Most operations are ensures, and of those that others commit a replica has to know
//! no more than that.

use smallvec::SmallVec;
use time::OffsetDateTime;

use super::{Ensured, LogEntry, Operation};
use crate::domain::{Port, ProjectId, Protocol, Resources, ServerHandle};

/// Ports of a server: most ensures are given a few.
pub type Ports = SmallVec<[(Protocol, Port); 4]>;

/// What an ensure granted that served nobody in line, with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The number of its first event.
    pub first_sequence: i64,
    /// The number of its last event.
    pub last_sequence: i64,
    /// When it was decided, by the database's clock.
    pub event_time: OffsetDateTime,
    /// The project.
    pub project_id: ProjectId,
    /// Its server.
    pub server_handle: ServerHandle,
    /// Whether the project was placed, and not only added to.
    pub is_placement: bool,
    /// What was reserved in addition.
    pub grown: Resources,
    /// The ports that were given, in order.
    pub ports: Ports,
}

impl Grant {
    /// What an operation granted; none of one that did anything else.
    #[must_use]
    pub fn of(entry: &LogEntry) -> Option<Self> {
        let Operation::Ensured(ensured) = &entry.operation else { return None };
        // By name, so that whoever adds one thinks of whether a fleet has to know it.
        let Ensured {
            selected,
            grown,
            allocations,
            served,
            usage_counted: _,
            requested: _,
            server_address: _,
            allocation_count: _,
            expire_time: _,
        } = ensured;
        if served.is_some() {
            return None;
        }
        let mut ports: Ports = allocations.iter().map(|held| (held.protocol, held.port)).collect();
        ports.sort_unstable();
        Some(Self {
            first_sequence: entry.first_sequence,
            last_sequence: entry.last_sequence(),
            event_time: entry.event_time,
            project_id: entry.project_id.clone()?,
            server_handle: entry.server_handle.clone()?,
            is_placement: selected.is_some(),
            grown: *grown,
            ports,
        })
    }
}

/// An operation as a replica folds it that has read it from the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// One that granted something, and did nothing else that a fleet has to know.
    Grant(Grant),
    /// Any other.
    Operation(Box<LogEntry>),
}

impl Change {
    /// The number of its first event.
    #[must_use]
    pub fn first_sequence(&self) -> i64 {
        match self {
            Self::Grant(grant) => grant.first_sequence,
            Self::Operation(entry) => entry.first_sequence,
        }
    }

    /// See [`LogEntry::placement`].
    #[must_use]
    pub fn placement(&self) -> Option<(&ProjectId, bool)> {
        match self {
            Self::Grant(grant) => grant.is_placement.then_some((&grant.project_id, true)),
            Self::Operation(entry) => entry.placement(),
        }
    }
}
