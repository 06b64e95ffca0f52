//! What callers ask for, checked field by field before it comes here.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{ModuleName, Port, Project, ProjectId, Protocol, ResourceRequest, Resources, ServerHandle};

/// What a project reserves on first placement where its request names no amount.
pub const DEFAULT_RESOURCES: Resources = Resources { cpu_millis: 0, ram_mb: 512, disk_mb: 1024 };

/// Which of the servers that fit is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The most free RAM.
    Spread,
    /// The tightest fit that strands least.
    Binpack,
}

/// A module that needs a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRequest {
    /// Its name.
    pub name: ModuleName,
    /// This port or a refusal; `None`: the lowest free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// The protocol; `None`: TCP for a new module, whatever stands for one that has its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

/// Place a project, or add to what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnsureRequest {
    /// The project.
    pub project_id: ProjectId,
    /// The modules that need a port, each name once.
    pub modules: Vec<ModuleRequest>,
    /// What the project needs at least.
    pub resources: ResourceRequest,
    /// Pin: this server or a refusal.
    pub server_handle: Option<ServerHandle>,
    /// Labels that the server must carry.
    pub selector: BTreeMap<String, String>,
    /// The lowest port to consider.
    pub start_port: Port,
    /// Which of the servers that fit is chosen.
    pub strategy: Strategy,
    /// After what time the placement ends by itself; none: as it stands. Zero: never.
    pub ttl: Option<Duration>,
}

impl EnsureRequest {
    /// Whether all that is asked for is already held, so that the answer is the project as it stands. Idempotency is decided
    /// by what is committed: `project` is read from the database (L6).
    #[must_use]
    pub fn is_satisfied_by(&self, project: &Project) -> bool {
        let stands = project.placement.as_ref().and_then(|placement| placement.expire_time);
        let renews = match self.ttl {
            None => false,
            Some(ttl) => !ttl.is_zero() || stands.is_some(),
        };
        !renews && self.is_held_by(project)
    }

    /// When the placement ends by itself that this request makes or renews now, where it would otherwise end at `stands`.
    #[must_use]
    pub fn expire_time(&self, stands: Option<OffsetDateTime>, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.ttl.map_or(stands, |ttl| (!ttl.is_zero()).then(|| now + ttl))
    }

    /// Whether the project has the server, the capacity and the ports that are asked for.
    #[must_use]
    pub fn is_held_by(&self, project: &Project) -> bool {
        let Some(placement) = &project.placement else { return false };
        let pinned_here = self.server_handle.as_ref().is_none_or(|pin| *pin == placement.server_handle);
        let reserved = self.resources.or(placement.reserved).short_of(placement.reserved).is_zero();
        pinned_here && reserved && self.modules.iter().all(|module| module.is_satisfied_by(project))
    }
}

impl ModuleRequest {
    /// A module by name alone.
    #[must_use]
    pub fn named(name: ModuleName) -> Self {
        Self { name, port: None, protocol: None }
    }

    fn is_satisfied_by(&self, project: &Project) -> bool {
        project.allocation(&self.name).is_some_and(|held| {
            self.port.is_none_or(|port| port == held.port)
                && self.protocol.is_none_or(|protocol| protocol == held.protocol)
        })
    }
}

/// Give back what a project holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// The project.
    pub project_id: ProjectId,
    /// The modules to give back; empty: all.
    pub modules: Vec<ModuleName>,
}

/// Move a placed project to another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelocateRequest {
    /// The project.
    pub project_id: ProjectId,
    /// This server or a refusal; `None`: the best of the others.
    pub server_handle: Option<ServerHandle>,
    /// Only while it is placed here, so that a repeat does not move it twice.
    pub from_server_handle: Option<ServerHandle>,
    /// Which of the servers that fit is chosen.
    pub strategy: Strategy,
}

/// A module's port was found in use on its host by something that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInUseReport {
    /// The project.
    pub project_id: ProjectId,
    /// The module.
    pub module: ModuleName,
    /// The port.
    pub port: Port,
    /// The lowest port to consider for another one.
    pub start_port: Port,
    /// What was seen, in the worker's words.
    pub detail: String,
}

/// Rank the servers for a project that is not placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindRequest {
    /// What is needed, as on first placement.
    pub resources: ResourceRequest,
    /// Labels that the server must carry.
    pub selector: BTreeMap<String, String>,
    /// The modules that need a port.
    pub modules: Vec<ModuleRequest>,
    /// The lowest port to consider.
    pub start_port: Port,
    /// How the servers are ranked.
    pub strategy: Strategy,
    /// How many candidates at the most.
    pub max_candidates: usize,
}

#[cfg(test)]
mod tests;
