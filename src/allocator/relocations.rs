//! RelocateProject, DrainServer and ReportPortInUse, as callers ask for them. What they do within a transaction is in `relocate`.

use tokio::task::JoinSet;

use super::{
    Allocator, Error,
    command::{Answer, PortReplaceAnswer, RelocateAnswer, Request},
    relocate,
};
use crate::{
    domain::{
        ProjectId, ServerHandle, ServerStatus,
        event::{LogEntry, Operation},
        inventory::ServerPatch,
        placement::server_not_found,
        request::{PortInUseReport, RelocateRequest, Strategy},
    },
    store::placements,
};

/// How many projects of a drain wait for their transaction at once: a batch of them, and room for everyone else.
const AT_ONCE: usize = 64;

/// Empty a server.
#[derive(Debug, Clone)]
pub struct DrainRequest {
    /// The server.
    pub server_handle: ServerHandle,
    /// Which of the servers that fit is chosen for each project.
    pub strategy: Strategy,
    /// How many projects move at the most.
    pub limit: usize,
}

/// What a drain did.
#[derive(Debug)]
pub struct Drained {
    /// Each project, ordered by id, and what became of it: all that moved, and of those that stay as many as there is room for
    /// beside them.
    pub projects: Vec<(ProjectId, Result<RelocateAnswer, Error>)>,
    /// How many projects are on the server now; for a plan, before anything is moved.
    pub remaining: i64,
}

/// What became of the projects of a drain. Those that stay take no room from those that can go: a page that was full of the
/// former would end the drain before the latter are reached.
struct Page {
    limit: usize,
    moved: Vec<(ProjectId, Result<RelocateAnswer, Error>)>,
    stay: Vec<(ProjectId, Result<RelocateAnswer, Error>)>,
}

impl Page {
    fn new(limit: usize) -> Self {
        Self { limit, moved: Vec::new(), stay: Vec::new() }
    }

    /// How many may move yet.
    fn room(&self) -> usize {
        self.limit - self.moved.len()
    }

    fn add(&mut self, id: ProjectId, answer: Result<RelocateAnswer, Error>) {
        if answer.as_ref().is_ok_and(|answer| answer.from_server_handle.is_some()) {
            self.moved.push((id, answer));
        } else {
            // The first by their ids, in whatever order the answers come.
            let place = self.stay.partition_point(|(other, _)| *other < id);
            self.stay.insert(place, (id, answer));
            self.stay.truncate(self.limit);
        }
    }

    fn finish(mut self) -> Vec<(ProjectId, Result<RelocateAnswer, Error>)> {
        self.stay.truncate(self.room());
        self.moved.append(&mut self.stay);
        self.moved.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.moved
    }
}

impl Allocator {
    /// Moves a project to another server.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn relocate(
        &self,
        request: RelocateRequest,
        request_id: String,
    ) -> Result<RelocateAnswer, Error> {
        self.enqueue_relocation(request, request_id).await
    }

    fn enqueue_relocation(
        &self,
        request: RelocateRequest,
        request_id: String,
    ) -> impl Future<Output = Result<RelocateAnswer, Error>> + Send + use<> {
        let answer = self.submit(Request::Relocate(request), request_id);
        async move {
            match answer.await? {
                Answer::Relocated(answer) => Ok(answer),
                answer => unreachable!("a relocation is answered as one, not by {answer:?}"),
            }
        }
    }

    /// Says what a relocation would do, and writes nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn preview_relocation(&self, request: &RelocateRequest) -> Result<RelocateAnswer, Error> {
        let project = self.committed_project(&request.project_id).await?;
        let (replica, pool) = self.fleet().await?;
        Ok(relocate::preview(replica.fleet(), project, request, &self.options.context(pool.now))?)
    }

    /// Sets a port aside that was found in use on its host, and gives its module another.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn report_port_in_use(
        &self,
        report: PortInUseReport,
        request_id: String,
    ) -> Result<PortReplaceAnswer, Error> {
        match self.submit(Request::ReportPortInUse(report), request_id).await? {
            Answer::PortReplaced(answer) => Ok(answer),
            answer => unreachable!("a report of a port in use is answered as one, not by {answer:?}"),
        }
    }

    /// Moves what is on a server elsewhere, project by project, each in a transaction of its own. A server that still admits
    /// work is set to MAINTENANCE first, or it would fill up again meanwhile.
    ///
    /// # Errors
    /// [`Error`]; what is in a project's way is told beside the project.
    pub async fn drain(&self, request: DrainRequest, request_id: &str) -> Result<Drained, Error> {
        let server = self.find_server(&request.server_handle).await?.row.state.server;
        if server.status == ServerStatus::Ready {
            let patch = ServerPatch { status: Some(ServerStatus::Maintenance), ..ServerPatch::default() };
            self.update_server(request.server_handle.clone(), patch, None, request_id.to_owned()).await?;
        }
        let mut waiting = self.projects_on(&request.server_handle).await?.into_iter();
        let mut moving = JoinSet::new();
        let mut page = Page::new(request.limit);
        loop {
            while moving.len() < AT_ONCE.min(page.room()) {
                let Some(id) = waiting.next() else { break };
                // In line before its task starts, for the tasks start in any order, and where a project goes depends on
                // those that went before it.
                let moved = self.enqueue_relocation(Self::leave(&request, id.clone()), request_id.to_owned());
                moving.spawn(async move { (id, moved.await) });
            }
            match moving.join_next().await {
                Some(Ok((id, answer))) => page.add(id, answer),
                // A task that panicked tells nothing of its project, which is then among those that remain.
                Some(Err(_)) => {}
                None => break,
            }
        }
        let remaining = self.find_server(&request.server_handle).await?.row.state.placement_count;
        Ok(Drained { projects: page.finish(), remaining })
    }

    /// Says where each project of a server would go, one after the other, and writes nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn plan_drain(&self, request: &DrainRequest) -> Result<Drained, Error> {
        let ids = self.projects_on(&request.server_handle).await?;
        let mut conn = self.store.acquire().await?;
        let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let mut records = placements::list_projects(&mut conn, &names).await?;
        drop(conn);
        let (mut fleet, context) = {
            let (replica, pool) = self.fleet().await?;
            // What one project takes up is not there for the next.
            (replica.fleet().clone(), self.options.context(pool.now))
        };
        let Some(remaining) = fleet.get(&request.server_handle).map(|state| state.placement_count) else {
            return Err(server_not_found(&request.server_handle).into());
        };
        let mut page = Page::new(request.limit);
        for id in ids {
            if page.room() == 0 {
                break;
            }
            let Some(record) = records.remove(&id) else { continue };
            let relocation = Self::leave(request, id.clone());
            let planned = relocate::moved(&fleet, record.project, &relocation, &context, context.now);
            let answer = planned.map(|(project, operation)| {
                let from_server_handle = operation.as_ref().map(|moved| moved.from_server_handle.clone());
                let server_handle =
                    project.placement.as_ref().map(|placement| placement.server_handle.clone());
                if let Some(relocated) = operation {
                    fleet.apply(&LogEntry {
                        first_sequence: fleet.sequence() + 1,
                        event_time: context.now,
                        project_id: Some(id.clone()),
                        server_handle,
                        request_id: String::new(),
                        actor: String::new(),
                        operation: Operation::Relocated(relocated),
                    });
                }
                RelocateAnswer { from_server_handle, view: super::ensure::view(&fleet, project, &context) }
            });
            page.add(id, answer.map_err(Error::from));
        }
        Ok(Drained { projects: page.finish(), remaining })
    }

    fn leave(request: &DrainRequest, project_id: ProjectId) -> RelocateRequest {
        RelocateRequest {
            project_id,
            server_handle: None,
            from_server_handle: Some(request.server_handle.clone()),
            strategy: request.strategy,
        }
    }

    /// All of them, which are no more than a server has ports.
    async fn projects_on(&self, handle: &ServerHandle) -> Result<Vec<ProjectId>, Error> {
        let mut conn = self.store.acquire().await?;
        Ok(placements::list_on_server(&mut conn, handle).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::project;

    #[test]
    fn those_that_stay_are_the_first_by_their_ids_in_whatever_order_they_are_answered() {
        let mut page = Page::new(2);
        for name in ["p3", "p1", "p2", "p0"] {
            page.add(project(name), Err(Error::ShuttingDown));
        }
        let told: Vec<_> = page.finish().into_iter().map(|(id, _)| id.to_string()).collect();
        assert_eq!(told, ["p0", "p1"]);
    }
}
