//! What waits in the combiner's queue, and what is answered once it is committed.

use time::OffsetDateTime;
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use super::{Error, call::Call, line::WaitRequest};
use crate::{
    domain::{
        Allocation, Project, ProjectId, Reason, ServerHandle,
        inventory::{ServerPatch, ServerSpec, SyncPlan, SyncRequest},
        policy::{FleetPolicy, PolicyPatch},
        request::{EnsureRequest, PortInUseReport, ReleaseRequest, RelocateRequest},
        server::Observation,
    },
    store::servers::ServerRecord,
};

/// A request that waits for its transaction, and where its answer goes.
#[derive(Debug)]
pub struct Job {
    /// The request's id in the logs and in the log.
    pub request_id: String,
    /// Who asks, and until when they wait.
    pub call: Call,
    /// What is asked for.
    pub request: Request,
    /// Since when it waits.
    pub since: Instant,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Answer, Error>>,
}

impl Job {
    /// A request of the call at hand that waits from now on, and where its answer comes.
    #[must_use]
    pub fn new(request_id: String, request: Request) -> (Self, oneshot::Receiver<Result<Answer, Error>>) {
        let (reply, answer) = oneshot::channel();
        (Self { request_id, call: Call::current(), request, since: Instant::now(), reply }, answer)
    }

    /// Whether nobody waits for the answer any more: the caller hung up, or its deadline has passed.
    #[must_use]
    pub fn is_given_up(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.call.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// What is asked for.
#[derive(Debug)]
pub enum Request {
    /// Place a project, or add to what it holds.
    Ensure(EnsureRequest),
    /// The same, and stand in line where there is no room now.
    Wait(Box<WaitRequest>),
    /// Give up a place in line: the call that waits there hung up.
    Leave {
        /// The project.
        project_id: ProjectId,
        /// The call.
        caller: Uuid,
    },
    /// Give back what a project holds.
    Release(ReleaseRequest),
    /// Move a project to another server.
    Relocate(RelocateRequest),
    /// Set a port aside that was found in use, and give its module another.
    ReportPortInUse(PortInUseReport),
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
    /// Change what holds for every server that does not say otherwise.
    UpdatePolicy(PolicyPatch),
    /// Tell the log what nobody asked for: reports that grew too old, and edits by hand.
    Housekeep,
}

/// The answer to a request, of the same name.
#[derive(Debug)]
pub enum Answer {
    /// Of an ensure.
    Ensured(EnsureAnswer),
    /// Of an ensure that stands in line.
    Waits(Place),
    /// Of a release.
    Released(ReleaseAnswer),
    /// Of a relocation.
    Relocated(RelocateAnswer),
    /// Of a report of a port in use.
    PortReplaced(PortReplaceAnswer),
    /// The policy as it is now.
    Policy(FleetPolicy),
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

/// A place in line.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The history of the log.
    pub epoch: Uuid,
    /// The number of the event that tells of the place: what comes of it follows.
    pub sequence: i64,
    /// The operation by which it was taken.
    pub arrival: i64,
    /// Why there is no room now.
    pub reason: Reason,
    /// Until when the call waits.
    pub own_deadline: OffsetDateTime,
    /// Until when the place lasts: longer where another call waits there for longer.
    pub deadline: OffsetDateTime,
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

/// The answer of a relocation.
#[derive(Debug, Clone)]
pub struct RelocateAnswer {
    /// Where the project was before; none where it did not move.
    pub from_server_handle: Option<ServerHandle>,
    /// The project as it stands.
    pub view: ProjectView,
}

/// The answer of a report of a port in use.
#[derive(Debug, Clone)]
pub struct PortReplaceAnswer {
    /// Until when the port is set aside; none where the module held another one already.
    pub set_aside_until: Option<OffsetDateTime>,
    /// The project as it stands.
    pub view: ProjectView,
}
