//! The use cases. This layer owns the transactions: it folds the log, asks the pure engine, writes, and appends the events.
//!
//! Writes go through the `combiner`, reads of single projects through the `reader`; other reads are one snapshot each.

mod ahead;
pub mod audit;
mod call;
pub mod combiner;
pub mod command;
mod ensure;
mod ensure_all;
mod error;
pub mod figures;
mod follow;
mod housekeeper;
mod inventory;
mod jobs;
mod journal;
mod leases;
pub mod line;
mod listed;
mod load;
mod locked;
mod options;
mod placed;
mod reader;
mod relocate;
pub mod relocations;
mod remembered;
mod replica;
mod silence;
mod thread;
mod upkeep;
mod waiting;

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
    task::JoinSet,
};

pub use self::{call::Call, error::Error, listed::Listed, options::AllocatorOptions};
use self::{
    combiner::Combiner,
    command::{Answer, EnsureAnswer, Job, Outcome, ProjectView, ReleaseAnswer, Request},
    follow::Follower,
    housekeeper::Housekeeper,
    placed::Placed,
    reader::Reader,
    replica::Replica,
    upkeep::Upkeep,
};
use crate::{
    domain::{
        Project, ProjectId, ServerHandle,
        inventory::{ServerPatch, ServerSpec, SyncPlan, SyncRequest, plan_sync},
        placement::{Explanation, filter::admits, find_servers, server_not_found},
        policy::{FleetPolicy, PolicyPatch},
        request::{EnsureRequest, FindRequest, ReleaseRequest},
        server::Observation,
    },
    events::{Announced, announcements},
    store::{
        Store,
        allocations::{self, AllocationFilter, AllocationRecord},
        placements::{self, ProjectRecord},
        pools,
        servers::{self, ServerFilter, ServerRecord},
    },
};

/// The handle of the use cases; cheap to clone.
#[derive(Debug, Clone)]
pub struct Allocator {
    store: Store,
    options: AllocatorOptions,
    replica: Arc<RwLock<Replica>>,
    follower: Follower,
    placed: Placed,
    queue: mpsc::Sender<Job>,
    reader: Reader,
    announced: Announced,
}

impl Allocator {
    /// Starts the tasks behind the use cases. They end, what waits committed, when the last handle is dropped. One that ends
    /// before has failed, and no other takes its place.
    #[must_use]
    pub fn start(store: Store, options: AllocatorOptions) -> (Self, JoinSet<()>) {
        let (queue, jobs) = mpsc::channel(options.queue_limit);
        let (announcer, news) = announcements();
        let placed = Placed::default();
        let replica = Arc::new(RwLock::new(Replica::new(placed.clone())));
        let turn = Arc::new(Mutex::new(()));
        let follower = Follower {
            store: store.clone(),
            options,
            replica: Arc::clone(&replica),
            runtime: Handle::current(),
            loading: Arc::default(),
        };
        let combiner = Combiner {
            store: store.clone(),
            options,
            replica: Arc::clone(&replica),
            follower: follower.clone(),
            queue: jobs,
            turn: Arc::clone(&turn),
            announcer,
            conn: None,
            took: 0,
            clock: None,
            left_at: None,
            wait: Duration::ZERO,
        };
        let (reader, reads) = Reader::new(store.clone(), options.queue_limit);
        let mut tasks = JoinSet::new();
        tasks.spawn(thread::run("combiner", combiner.run()));
        tasks.spawn(reads);
        // It holds none of what keeps the tasks alive.
        let housekeeper = Housekeeper { follower: follower.clone(), queue: queue.downgrade() };
        tokio::spawn(housekeeper.run());
        tokio::spawn(Upkeep { store: store.clone(), options, queue: queue.downgrade(), turn }.run());
        (Self { store, options, replica, follower, placed, queue, reader, announced: news }, tasks)
    }

    /// What this replica commits, for its tailer.
    #[must_use]
    pub fn announced(&self) -> Announced {
        self.announced.clone()
    }

    /// Places a project, or adds to what it holds; answers from what is committed where that is all that is asked for.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ensure(&self, request: EnsureRequest, request_id: String) -> Result<EnsureAnswer, Error> {
        let held = if self.placed.may_include(&request.project_id) {
            self.reader.find(request.project_id.clone()).await?
        } else {
            None
        };
        if let Some(record) = held.filter(|record| request.is_satisfied_by(&record.project)) {
            return Ok(EnsureAnswer { outcome: Outcome::Unchanged, view: self.view(record) });
        }
        match self.submit(Request::Ensure(request), request_id).await? {
            Answer::Ensured(answer) => Ok(answer),
            answer => unreachable!("an ensure is answered as one, not by {answer:?}"),
        }
    }

    /// Says what an ensure would do, and writes nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn preview(&self, request: EnsureRequest) -> Result<EnsureAnswer, Error> {
        let project = self.committed_project(&request.project_id).await?;
        let (replica, pool) = self.fleet().await?;
        let kept_for = replica.fleet().line().kept_for();
        if kept_for.is_none_or(|(first, _)| *first != request.project_id) {
            return Ok(ensure::preview(replica.fleet(), project, &request, &self.options.context(pool.now))?);
        }
        drop(replica);
        let (mut replica, pool) = self.fleet_mut().await?;
        let context = self.options.context(pool.now);
        Ok(ensure::preview_in_line(replica.fleet_mut(), project, &request, &context)?)
    }

    /// What is committed for a project, as one that holds nothing where nothing is.
    async fn committed_project(&self, id: &ProjectId) -> Result<Project, Error> {
        let mut conn = self.store.acquire().await?;
        let mut found = placements::list_projects(&mut conn, &[id.to_string()]).await?;
        Ok(found.remove(id).map_or_else(|| Project::unplaced(id.clone()), |record| record.project))
    }

    /// Gives back what a project holds.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn release(&self, request: ReleaseRequest, request_id: String) -> Result<ReleaseAnswer, Error> {
        match self.submit(Request::Release(request), request_id).await? {
            Answer::Released(answer) => Ok(answer),
            answer => unreachable!("a release is answered as one, not by {answer:?}"),
        }
    }

    /// What a project holds; none where nothing is reserved for it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn find_project(&self, id: ProjectId) -> Result<Option<ProjectView>, Error> {
        Ok(self.reader.find(id).await?.map(|record| self.view(record)))
    }

    /// A page of allocations.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list_allocations(
        &self,
        filter: &AllocationFilter,
        page_size: i64,
    ) -> Result<Listed<AllocationRecord>, Error> {
        let mut snapshot = self.store.begin_snapshot().await?;
        let pool = pools::find(&mut snapshot).await?;
        let items = allocations::list(&mut snapshot, filter, page_size + 1).await?;
        Ok(Listed::of(items, page_size, &pool))
    }

    /// Ranks the servers for a project that is not placed, and says why each other is left out.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn find_servers(&self, request: &FindRequest) -> Result<Explanation, Error> {
        let (replica, pool) = self.fleet().await?;
        Ok(find_servers(replica.fleet(), request, &self.options.context(pool.now)))
    }

    /// Creates or replaces a server.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn register_server(
        &self,
        spec: ServerSpec,
        etag: Option<String>,
        request_id: String,
    ) -> Result<ServerRecord, Error> {
        self.server(Request::RegisterServer { spec: Box::new(spec), etag }, request_id).await
    }

    /// Changes some fields of a server.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn update_server(
        &self,
        handle: ServerHandle,
        patch: ServerPatch,
        etag: Option<String>,
        request_id: String,
    ) -> Result<ServerRecord, Error> {
        self.server(Request::UpdateServer { handle, patch: Box::new(patch), etag }, request_id).await
    }

    /// Takes a usage report.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn report_usage(
        &self,
        handle: ServerHandle,
        observation: Observation,
        request_id: String,
    ) -> Result<ServerRecord, Error> {
        self.server(Request::ReportUsage { handle, observation }, request_id).await
    }

    /// Removes a server that holds no placement.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete_server(
        &self,
        handle: ServerHandle,
        etag: Option<String>,
        request_id: String,
    ) -> Result<(), Error> {
        self.submit(Request::DeleteServer { handle, etag }, request_id).await.map(|_| ())
    }

    /// Takes the whole list of a source.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn sync_servers(&self, request: SyncRequest, request_id: String) -> Result<SyncPlan, Error> {
        match self.submit(Request::SyncServers(request), request_id).await? {
            Answer::Synced(plan) => Ok(plan),
            answer => unreachable!("a sync is answered as one, not by {answer:?}"),
        }
    }

    /// Says what a sync would do, and writes nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn preview_sync(&self, request: &SyncRequest) -> Result<SyncPlan, Error> {
        let (replica, _) = self.fleet().await?;
        Ok(plan_sync(replica.fleet(), request)?)
    }

    /// What holds for every server that does not say otherwise.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn policy(&self) -> Result<FleetPolicy, Error> {
        let mut conn = self.store.acquire().await?;
        Ok(pools::find(&mut conn).await?.policy)
    }

    /// Changes that.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn update_policy(&self, patch: PolicyPatch, request_id: String) -> Result<FleetPolicy, Error> {
        match self.submit(Request::UpdatePolicy(patch), request_id).await? {
            Answer::Policy(policy) => Ok(policy),
            answer => unreachable!("a change of the policy is answered by it, not by {answer:?}"),
        }
    }

    /// One server.
    ///
    /// # Errors
    /// [`Error`]; `SERVER_NOT_FOUND`.
    pub async fn find_server(&self, handle: &ServerHandle) -> Result<ServerRecord, Error> {
        let mut snapshot = self.store.begin_snapshot().await?;
        let pool = pools::find(&mut snapshot).await?;
        let found = servers::find(&mut snapshot, &pool.policy, handle).await?;
        found.ok_or_else(|| server_not_found(handle).into())
    }

    /// A page of servers.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list_servers(
        &self,
        filter: &ServerFilter,
        page_size: i64,
    ) -> Result<Listed<ServerRecord>, Error> {
        let mut snapshot = self.store.begin_snapshot().await?;
        let pool = pools::find(&mut snapshot).await?;
        let items = servers::list(&mut snapshot, &pool.policy, filter, page_size + 1).await?;
        Ok(Listed::of(items, page_size, &pool))
    }

    /// The fleet with all that was committed before the call, and where the pool then stood. It does not change while the
    /// guard is held, but others may read it too.
    async fn fleet(&self) -> Result<(RwLockReadGuard<'_, Replica>, pools::PoolState), Error> {
        let mut conn = self.store.acquire().await?;
        let pool = pools::find(&mut conn).await?;
        drop(conn);
        let replica = self.replica.read().await;
        if replica.includes(&pool) {
            return Ok((replica, pool));
        }
        drop(replica);
        let (replica, pool) = self.fleet_mut().await?;
        Ok((replica.downgrade(), pool))
    }

    /// The same, for whoever has it to itself for a moment.
    async fn fleet_mut(&self) -> Result<(RwLockWriteGuard<'_, Replica>, pools::PoolState), Error> {
        let mut replica = self.replica.write().await;
        let pool = self.follower.load(&mut replica).await?;
        Ok((replica, pool))
    }

    async fn server(&self, request: Request, request_id: String) -> Result<ServerRecord, Error> {
        match self.submit(request, request_id).await? {
            Answer::Server(record) => Ok(*record),
            answer => unreachable!("a write of a server is answered by it, not by {answer:?}"),
        }
    }

    /// Has the combiner do it. Requests are queued in the order of these calls, not of whoever awaits what they return.
    fn submit(
        &self,
        request: Request,
        request_id: String,
    ) -> impl Future<Output = Result<Answer, Error>> + Send + use<> {
        let (job, answer) = Job::new(request_id, request);
        let queued = self.queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded { limit: self.options.queue_limit },
            mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
        });
        async move {
            queued?;
            answer.await.map_err(|_| Error::ShuttingDown)?
        }
    }

    fn view(&self, record: ProjectRecord) -> ProjectView {
        let ProjectRecord { project, server, mark, now } = record;
        let context = self.options.context(now);
        ProjectView {
            project,
            server_admissible: admits(server.managed, server.status, server.report_time, &context).is_ok(),
            server_address: server.address,
            sequence: mark.last_sequence,
        }
    }
}
