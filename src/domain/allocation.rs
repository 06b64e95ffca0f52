//! What a project holds: one placement on one server, and one port for each of its modules.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{ModuleName, Port, ProjectId, Protocol, Resources, ServerHandle};

/// Where a project may run. It says nothing of whether the project runs (L5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The server.
    pub server_handle: ServerHandle,
    /// What is reserved there.
    pub reserved: Resources,
    /// The labels that the project asked for when it was placed: a server that it is moved to must carry them too.
    pub selector: BTreeMap<String, String>,
    /// The lowest port that it asked for when it was placed.
    pub start_port: Port,
    /// The log's number of the last operation that changed the placement.
    pub revision: i64,
    /// When the project was placed.
    pub create_time: OffsetDateTime,
    /// When a module or capacity was last added or taken.
    pub update_time: OffsetDateTime,
    /// When it ends by itself, unless the project is ensured again; none for one that is to stay.
    pub expire_time: Option<OffsetDateTime>,
}

/// One port of one module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Its identity.
    pub id: Uuid,
    /// The module that the port is for.
    pub module: ModuleName,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
    /// Whether the module asked for this port and no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// When the port was given.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub create_time: OffsetDateTime,
}

/// A project, with all that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its identity.
    pub id: ProjectId,
    /// Where it may run; none while nothing is reserved for it.
    pub placement: Option<Placement>,
    /// Its ports, ordered by module (L3).
    pub allocations: Vec<Allocation>,
}

impl Project {
    /// A project that holds nothing.
    #[must_use]
    pub fn unplaced(id: ProjectId) -> Self {
        Self { id, placement: None, allocations: Vec::new() }
    }

    /// The port of one module.
    #[must_use]
    pub fn allocation(&self, module: &ModuleName) -> Option<&Allocation> {
        self.allocations.iter().find(|allocation| allocation.module == *module)
    }
}
