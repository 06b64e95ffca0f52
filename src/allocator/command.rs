//! What waits in the combiner's queue, and what is answered once it is committed.

use tokio::sync::oneshot;

use super::Error;
use crate::{
    domain::{
        Allocation, Project, ServerHandle,
        inventory::{ServerPatch, ServerSpec, SyncPlan, SyncRequest},
        request::{EnsureRequest, ReleaseRequest},
        server::Observation,
    },
    store::servers::ServerRecord,
};

/// A request that waits for its transaction, and where its answer goes.
#[derive(Debug)]
pub struct Job {
    /// The request's id in the logs and in the log.
    pub request_id: String,
    /// What is asked for.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Answer, Error>>,
}

/// What is asked for.
#[derive(Debug)]
pub enum Request {
    /// Place a project, or add to what it holds.
    Ensure(EnsureRequest),
    /// Give back what a project holds.
    Release(ReleaseRequest),
    /// Create or replace a server.
    RegisterServer {
        /// The server.
        spec: Box<ServerSpec>,
        /// What must still stand.
        etag: Option<String>,
    },
    /// Change some fields of a server.
    UpdateServer {
        /// The server.
        handle: ServerHandle,
        /// The changes.
        patch: Box<ServerPatch>,
        /// What must still stand.
        etag: Option<String>,
    },
    /// Remove a server.
    DeleteServer {
        /// The server.
        handle: ServerHandle,
        /// What must still stand.
        etag: Option<String>,
    },
    /// Take the whole list of a source.
    SyncServers(SyncRequest),
    /// Take a usage report.
    ReportUsage {
        /// The server.
        handle: ServerHandle,
        /// What was seen; its time is set when it is committed.
        observation: Observation,
    },
    /// Tell the log what nobody asked for: reports that grew too old, and edits by hand.
    Housekeep,
}

/// The answer to a request, of the same name.
#[derive(Debug)]
pub enum Answer {
    /// Of an ensure.
    Ensured(EnsureAnswer),
    /// Of a release.
    Released(ReleaseAnswer),
    /// The server as it is now: of a register, an update or a usage report.
    Server(Box<ServerRecord>),
    /// Of a sync: what it did to each server.
    Synced(SyncPlan),
    /// Of what has nothing to tell.
    Done,
}

/// What an ensure did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The project was placed.
    Created,
    /// It got more.
    Extended,
    /// It held everything already.
    Unchanged,
}

/// The answer of an ensure.
#[derive(Debug, Clone)]
pub struct EnsureAnswer {
    /// What was done.
    pub outcome: Outcome,
    /// The project as it stands.
    pub view: ProjectView,
}

/// A placed project, with what is told of its server.
#[derive(Debug, Clone)]
pub struct ProjectView {
    /// The project.
    pub project: Project,
    /// Its server's address.
    pub server_address: String,
    /// Whether its server admits work.
    pub server_admissible: bool,
    /// The number of the last event that this view includes.
    pub sequence: i64,
}

/// The answer of a release.
#[derive(Debug, Clone)]
pub struct ReleaseAnswer {
    /// Where the project was placed, and its address; none where nothing was there.
    pub server: Option<(ServerHandle, String)>,
    /// What was given back, ordered by module.
    pub released: Vec<Allocation>,
    /// Whether the placement went with the last module.
    pub placement_removed: bool,
}
