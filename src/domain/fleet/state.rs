//! A server of the fleet, and what is read of it.

use time::OffsetDateTime;

use crate::domain::{
    Resources, Server,
    policy::{FleetPolicy, Terms},
    ports::ServerPorts,
    server::Observation,
};

/// A server, with all that is reserved on it and was observed of it.
#[derive(Debug, Clone)]
pub struct ServerState {
    /// What its operators and its source set.
    pub server: Server,
    /// What its capacity comes to under the fleet's policy.
    pub terms: Terms,
    /// The sum over its placements.
    pub reserved: Resources,
    /// How many projects are placed on it.
    pub placement_count: i64,
    /// The latest usage report, if there ever was one.
    pub observed: Option<Observation>,
    /// Whether the log has told that the report is too old.
    pub usage_stale: bool,
    /// Counts changes of what operators and sources set: the server's etag.
    pub generation: i64,
    /// Its ports.
    pub ports: ServerPorts,
    /// What of its room is kept for the first in line, up to so much.
    pub kept: Option<Resources>,
}

impl ServerState {
    /// A server that holds nothing.
    #[must_use]
    pub fn empty(server: Server, policy: &FleetPolicy) -> Self {
        let mut state = Self {
            terms: policy.terms(&server),
            server,
            reserved: Resources::ZERO,
            placement_count: 0,
            observed: None,
            usage_stale: false,
            generation: 1,
            ports: ServerPorts::default(),
            kept: None,
        };
        state.ports.block(&state.server, None);
        state
    }

    /// What placements may take in all.
    #[must_use]
    pub fn budget(&self) -> Resources {
        self.terms.budget()
    }

    /// When the host itself last reported its usage.
    #[must_use]
    pub fn host_report_time(&self) -> Option<OffsetDateTime> {
        self.observed.as_ref().and_then(Observation::host_report_time)
    }

    /// What could still be placed: capacity less headroom less the greater of reserved and observed (L21).
    #[must_use]
    pub fn free(&self) -> Resources {
        self.free_with(Resources::ZERO)
    }

    /// What could still be placed once `more` is reserved too.
    #[must_use]
    pub fn free_with(&self, more: Resources) -> Resources {
        let observed = self.observed.as_ref().map_or(Resources::ZERO, Observation::usage);
        let free = self.budget() - (self.reserved + more).max(observed);
        self.kept.map_or(free, |kept| free - free.max(Resources::ZERO).zip(kept, i64::min))
    }
}

/// How a port stands that has a row in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortStanding {
    /// A module holds it.
    Held,
    /// It was given back, and rests until then while another is free.
    Resting(OffsetDateTime),
    /// It was found in use by something that is not ours, and is given to nobody until then.
    SetAside(OffsetDateTime),
}

/// What is read of a server at once: all but its ports.
#[derive(Debug, Clone)]
pub struct ServerRow {
    /// The server, its sums and its usage, with no ports in it yet.
    pub state: ServerState,
    /// The pool's inventory revision of the row's last change.
    pub revision: i64,
}
