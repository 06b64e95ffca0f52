//! A call that waits in line. Its place is in the database: whichever replica settles the line serves it, and this one reads in
//! the log what came of it.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Allocator, Error, Listed,
    command::{Answer, EnsureAnswer, Job, Outcome, Place, Request},
    line::WaitRequest,
};
use crate::{
    domain::{
        Project, ProjectId, Reason, Refusal, ServerHandle,
        event::{LogEntry, Operation},
        line::{LeaveCause, Reasons, WaitingRequest, timed_out},
        micros::whole_micros,
        request::EnsureRequest,
    },
    events::{Filter, Hub, Message, Start, WatchError},
    store::{
        StoreError, placements, pools,
        waiters::{self, WaiterRecord},
    },
};

/// How often it is looked whether the time is over, once it is by this replica's clock.
const OVERTIME_STEP: Duration = Duration::from_millis(250);
/// For how long the database may not say so before it counts as frozen.
const OVERTIME: Duration = Duration::from_secs(10);
/// How much longer than a call's own time its place must last for others to be waiting there too.
const LONGER: time::Duration = time::Duration::seconds(1);
/// How often, and how far apart, it is tried to give up a place that cannot be given up at once.
const LEAVE_TRIES: u32 = 30;
const LEAVE_PAUSE: Duration = Duration::from_secs(1);

impl Allocator {
    /// A page of the line with the reasons of now, and for whom something is kept, on which server.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list_waiting(
        &self,
        project_id: Option<&ProjectId>,
        after: i64,
        page_size: i64,
    ) -> Result<(Listed<WaiterRecord>, Option<(ProjectId, ServerHandle)>), Error> {
        let mut snapshot = self.store.begin_snapshot().await?;
        let pool = pools::find(&mut snapshot).await?;
        let project_id = project_id.map(ProjectId::as_str);
        let items = waiters::list(&mut snapshot, project_id, after, page_size + 1).await?;
        let names: Vec<_> = items.iter().map(|record| record.waiter.project_id.to_string()).collect();
        let mut held = placements::list_projects(&mut snapshot, &names).await?;
        drop(snapshot);
        let mut listed = Listed::of(items, page_size, &pool);
        let (replica, pool) = self.fleet().await?;
        let context = self.options.context(pool.now);
        let reasons = Reasons::of(replica.fleet(), &context);
        for WaiterRecord { waiter, .. } in &mut listed.items {
            let id = &waiter.project_id;
            let project = held.remove(id).map(|record| record.project);
            waiter.reason = reasons.find(&project.unwrap_or_else(|| Project::unplaced(id.clone())), waiter);
        }
        let kept = replica.fleet().line().kept_for().map(|(id, handle)| (id.clone(), handle.clone()));
        Ok((listed, kept))
    }

    /// Places a project, or adds to what it holds; waits in line for as long as `wait` where there is no room now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ensure_or_wait(
        &self,
        hub: &Hub,
        request: EnsureRequest,
        wait: Duration,
        request_id: String,
    ) -> Result<EnsureAnswer, Error> {
        let mut call = Call {
            allocator: self,
            hub,
            until: Instant::now() + wait,
            wait,
            stay: Stay {
                queue: self.queue.downgrade(),
                stopping: hub.stopping(),
                project_id: request.project_id.clone(),
                request_id,
                caller: Uuid::now_v7(),
                has_place: false,
            },
            request,
        };
        let answer = call.answer().await;
        // A place that this call may still have is kept for its repeat where another replica answers that one. Else it is given
        // up, at once where the caller hangs up: then this line is never reached.
        let keeps = matches!(&answer, Ok(_) | Err(Error::Refused(_) | Error::ShuttingDown));
        call.stay.has_place &= !keeps;
        answer
    }
}

/// How a stay in line ended.
enum Stood {
    /// It was served.
    Served(Outcome),
    /// What is committed tells how to go on.
    Again,
}

struct Call<'a> {
    allocator: &'a Allocator,
    hub: &'a Hub,
    request: EnsureRequest,
    wait: Duration,
    until: Instant,
    stay: Stay,
}

impl Call<'_> {
    async fn answer(&mut self) -> Result<EnsureAnswer, Error> {
        let mut outcome = Outcome::Unchanged;
        let mut left = self.wait;
        loop {
            let held = self.allocator.reader.find(self.request.project_id.clone()).await?;
            // What was served made its lease then.
            let answers = |project: &Project| match outcome {
                Outcome::Unchanged => self.request.is_satisfied_by(project),
                Outcome::Created | Outcome::Extended => self.request.is_held_by(project),
            };
            if let Some(record) = held.filter(|record| answers(&record.project)) {
                return Ok(EnsureAnswer { outcome, view: self.allocator.view(record) });
            }
            // From here on there may be a place to give up.
            let had_place = std::mem::replace(&mut self.stay.has_place, true);
            let asked = WaitRequest { request: self.request.clone(), wait: left, caller: self.stay.caller };
            let answer = self.submit(Request::Wait(Box::new(asked))).await;
            if matches!(answer, Err(Error::Overloaded { .. })) {
                // It did not come to the queue.
                self.stay.has_place = had_place;
            }
            match answer? {
                Answer::Ensured(answer) => return Ok(answer),
                Answer::Waits(place) => match self.stand(place).await? {
                    Stood::Served(served) => outcome = served,
                    Stood::Again => {}
                },
                answer => unreachable!("one who waits is not answered by {answer:?}"),
            }
            left = whole_micros(self.until.saturating_duration_since(Instant::now()));
        }
    }

    async fn submit(&self, request: Request) -> Result<Answer, Error> {
        self.allocator.submit(request, self.stay.request_id.clone()).await
    }

    /// Reads in the log what comes of a place in line.
    async fn stand(&self, place: Place) -> Result<Stood, Error> {
        let filter = Filter { project_id: Some(self.request.project_id.clone()), ..Filter::default() };
        let start = Start::After { epoch: place.epoch, sequence: place.sequence };
        let mut messages = match self.hub.watch(filter, start).await {
            Ok((_, messages)) => messages,
            Err(error) => return ended(error),
        };
        let mut standing = Standing {
            wanted: WaitingRequest::of(&self.request),
            caller: self.stay.caller,
            arrival: place.arrival,
            deadline: place.deadline,
        };
        let mut look = self.until;
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    // Of an operation the first event tells all that there is to know.
                    Some(Ok(Message::Events { entry, events })) if events.start == 0 => {
                        if let Some(stood) = standing.read(&entry)? {
                            return Ok(stood);
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return ended(error),
                    None => return Err(Error::ShuttingDown),
                },
                () = sleep_until(look) => {
                    let others_wait = standing.caller != self.stay.caller
                        || standing.deadline - place.own_deadline > LONGER;
                    if others_wait {
                        // The place is in the name of the call that came last. Whoever waits there for longer takes it back.
                        if standing.caller == self.stay.caller {
                            let (project_id, caller) = (self.request.project_id.clone(), self.stay.caller);
                            self.submit(Request::Leave { project_id, caller }).await?;
                        }
                        let waited_s = i64::try_from(self.wait.as_secs()).unwrap_or(i64::MAX);
                        return Err(timed_out(&self.request.project_id, waited_s, place.reason).into());
                    }
                    // The database's clock decides, and whoever holds the pool's row.
                    self.submit(Request::Housekeep).await?;
                    if self.until.elapsed() > OVERTIME {
                        return Err(StoreError::silent().into());
                    }
                    look = Instant::now() + OVERTIME_STEP;
                }
            }
        }
    }
}

fn ended(error: WatchError) -> Result<Stood, Error> {
    match error {
        WatchError::ShuttingDown => Err(Error::ShuttingDown),
        WatchError::Store(error) => Err(Error::Store(error)),
        // Whatever became of the place: what is committed is told by the next look.
        WatchError::Compacted { .. } | WatchError::Restarted | WatchError::TooSlow { .. } => Ok(Stood::Again),
    }
}

/// A place in line, as the log tells of it.
struct Standing {
    wanted: WaitingRequest,
    /// The call that waits there: the last to come.
    caller: Uuid,
    arrival: i64,
    deadline: OffsetDateTime,
}

impl Standing {
    fn read(&mut self, entry: &LogEntry) -> Result<Option<Stood>, Error> {
        match &entry.operation {
            Operation::Ensured(ensured) => {
                let own = ensured.served.is_some_and(|served| served.arrival == self.arrival);
                let outcome = if ensured.selected.is_some() { Outcome::Created } else { Outcome::Extended };
                Ok(own.then_some(Stood::Served(outcome)))
            }
            Operation::Waiting(waiting) if waiting.request == self.wanted => {
                self.caller = waiting.caller;
                self.deadline = waiting.deadline;
                self.arrival = waiting.arrival.unwrap_or(entry.first_sequence);
                Ok(None)
            }
            Operation::Waiting(_) => Err(superseded(entry.project_id.as_ref()).into()),
            Operation::LeftLine(left) => match &left.cause {
                // Another call of the project left; this one waits on.
                LeaveCause::Cancelled | LeaveCause::Satisfied => Ok(Some(Stood::Again)),
                LeaveCause::Released => Err(released(entry.project_id.as_ref()).into()),
                LeaveCause::Refused(refused) => Err(Refusal {
                    reason: refused.reason,
                    message: refused.message.clone(),
                    metadata: refused.metadata.clone(),
                }
                .into()),
            },
            _ => Ok(None),
        }
    }
}

fn superseded(project: Option<&ProjectId>) -> Refusal {
    let project = project.map(ToString::to_string).unwrap_or_default();
    Refusal::new(
        Reason::WaitSuperseded,
        format!(
            "a later call for project `{project}` asks for something else, and waits in its place; a project waits for one thing at a time"
        ),
    )
    .with("project_id", project)
}

fn released(project: Option<&ProjectId>) -> Refusal {
    let project = project.map(ToString::to_string).unwrap_or_default();
    Refusal::new(
        Reason::WaitReleased,
        format!("project `{project}` was released while it stood in line, and so left it"),
    )
    .with("project_id", project)
}

/// Gives up a call's place when the call is dropped, as it is when its caller hangs up. The place is kept for a while: a
/// connection that broke looks the same, and its caller comes back.
struct Stay {
    queue: mpsc::WeakSender<Job>,
    stopping: CancellationToken,
    project_id: ProjectId,
    request_id: String,
    caller: Uuid,
    has_place: bool,
}

impl Drop for Stay {
    fn drop(&mut self) {
        // A replica that stops hangs up by itself; its callers go on at another one, from where they stand.
        if !self.has_place || self.stopping.is_cancelled() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (queue, stopping) = (self.queue.clone(), self.stopping.clone());
        let (project_id, request_id, caller) =
            (self.project_id.clone(), self.request_id.clone(), self.caller);
        runtime.spawn(async move {
            for _ in 0..LEAVE_TRIES {
                let request = Request::Leave { project_id: project_id.clone(), caller };
                let left = async {
                    let (job, answer) = Job::new(request_id.clone(), request);
                    queue.upgrade()?.send(job).await.ok()?;
                    answer.await.ok()?.ok()
                };
                tokio::select! {
                    left = left => if left.is_some() { return },
                    () = stopping.cancelled() => return,
                }
                sleep(LEAVE_PAUSE).await;
            }
        });
    }
}
