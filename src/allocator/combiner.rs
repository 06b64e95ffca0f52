//! The combiner: the one task of a replica that writes. It takes whatever waits in the queue, and commits it all in one
//! transaction under the pool's row. The time that the previous commit took is the batching window: there is no timer, and a
//! lone caller never waits.
//!
//! The task owns the transaction, so a caller that hangs up cannot tear it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sqlx::{PgConnection, Postgres, pool::PoolConnection};
use time::{OffsetDateTime, macros::datetime};
use tokio::{
    sync::{RwLock, mpsc, watch},
    time::Instant,
};

use super::{
    AllocatorOptions, Error,
    command::{Answer, Job, Request},
    ensure, inventory,
    journal::Journal,
    leases, line, relocate,
    replica::Replica,
};
use crate::{
    domain::{Project, ProjectId, event::ReleaseCause},
    store::{Store, StoreError, WriteTransaction, placements, pools},
};

/// How often a batch that another transaction was in the way of is tried anew, each time in a new transaction (L45).
const BUSY_TRIES: u32 = 3;
/// How long a transaction may take before the database counts as frozen: longer than its own limits let it take.
const LIMIT: Duration = Duration::from_secs(30);

/// The database cannot be reached, or is held up by someone else, which is the answer for everyone who waits.
struct Unavailable(Error);

/// So many go into one transaction however many wait.
const FEW: usize = 16;

/// Whether a request is tried without any other.
#[derive(Clone, Copy)]
struct Alone(bool);

/// The combiner's parts.
pub struct Combiner {
    pub(super) store: Store,
    pub(super) options: AllocatorOptions,
    pub(super) replica: Arc<RwLock<Replica>>,
    pub(super) queue: mpsc::Receiver<Job>,
    /// Tells the tailer that there is something to read.
    pub(super) committed: watch::Sender<i64>,
    /// The connection, while it is good.
    pub(super) conn: Option<PoolConnection<Postgres>>,
    /// How many the last transaction took.
    pub(super) took: usize,
}

impl Combiner {
    /// Works until the queue is closed and empty.
    pub async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let mut batch = wanted([first]);
            self.take_along(&mut batch);
            if batch.is_empty() {
                continue;
            }
            if let Err(Unavailable(error)) = self.process(batch, Alone(false)).await {
                // Whoever waited meanwhile would only wait as long again for the same answer.
                while let Ok(job) = self.queue.try_recv() {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
        drop(self.conn.take());
        self.store.close_combiner().await;
    }

    /// Adds to a batch those who wait. Callers who call again and again go in two halves, so that one is answered, and calls
    /// again, while the other is written; if all went together, nobody would write while they are answered. A few do go together,
    /// for a transaction costs as much as they do.
    fn take_along(&mut self, batch: &mut Vec<Job>) {
        let callers = self.took + batch.len() + self.queue.len();
        let share = callers.div_ceil(2).clamp(FEW.min(self.options.max_batch), self.options.max_batch);
        let room = share.saturating_sub(batch.len());
        batch.extend(wanted(std::iter::from_fn(|| self.queue.try_recv().ok()).take(room)));
    }

    async fn process(&mut self, mut batch: Vec<Job>, alone: Alone) -> Result<(), Unavailable> {
        let error = match self.commit_with_retries(&mut batch, alone).await {
            Ok(answers) => {
                answer(batch, answers);
                return Ok(());
            }
            Err(error) => error,
        };
        match &error {
            StoreError::Unavailable(_) | StoreError::Busy(_) => {
                tracing::warn!(
                    requests = batch.len(),
                    error = &error as &dyn std::error::Error,
                    "a batch was not committed"
                );
                let error = Error::from(error);
                fail(batch, &error);
                Err(Unavailable(error))
            }
            // One bad request never harms its neighbours: each is tried alone.
            _ if batch.len() > 1 => {
                tracing::warn!(
                    requests = batch.len(),
                    error = &error as &dyn std::error::Error,
                    "a batch was rejected; its requests run one by one"
                );
                self.process_one_by_one(batch).await
            }
            _ => {
                tracing::error!(
                    request_id = batch.first().map(|job| &job.request_id),
                    error = &error as &dyn std::error::Error,
                    "a request failed"
                );
                fail(batch, &Error::from(error));
                Ok(())
            }
        }
    }

    async fn process_one_by_one(&mut self, batch: Vec<Job>) -> Result<(), Unavailable> {
        let mut jobs = batch.into_iter();
        while let Some(job) = jobs.next() {
            let Some(job) = wanted([job]).pop() else { continue };
            if let Err(Unavailable(error)) = Box::pin(self.process(vec![job], Alone(true))).await {
                fail(jobs, &error);
                return Err(Unavailable(error));
            }
        }
        Ok(())
    }

    async fn commit_with_retries(
        &mut self,
        batch: &mut Vec<Job>,
        alone: Alone,
    ) -> Result<Vec<Result<Answer, Error>>, StoreError> {
        let mut tries = 1;
        loop {
            match self.commit_in_time(batch, alone).await {
                Err(StoreError::Busy(error)) if tries < BUSY_TRIES => {
                    tracing::warn!(tries, error = &error as &dyn std::error::Error, "the database was busy");
                    tokio::time::sleep(Duration::from_millis(50) * tries).await;
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// Commits a batch, or gives up on a database that says nothing.
    async fn commit_in_time(
        &mut self,
        batch: &mut Vec<Job>,
        alone: Alone,
    ) -> Result<Vec<Result<Answer, Error>>, StoreError> {
        let begin = Instant::now();
        let committed = tokio::time::timeout(LIMIT, self.commit(batch, alone)).await;
        if committed.is_err() {
            self.replica.write().await.forget();
        }
        let committed = committed.unwrap_or_else(|_| Err(StoreError::silent()));
        metrics::histogram!("allocator_transaction_duration_seconds").record(begin.elapsed());
        let outcome = match &committed {
            Ok(_) => "committed",
            Err(StoreError::Unavailable(_)) => "database_unavailable",
            Err(StoreError::Busy(_)) => "database_busy",
            Err(_) => "rejected",
        };
        metrics::counter!("allocator_batches_total", "outcome" => outcome).increment(1);
        committed
    }

    /// Commits a batch in one transaction.
    ///
    /// When the outcome of the commit itself is unknown, for the connection broke, the fleet is thrown away, and the next lock
    /// and read tells what happened. The callers are told to try again, which is safe in either case.
    async fn commit(
        &mut self,
        batch: &mut Vec<Job>,
        Alone(alone): Alone,
    ) -> Result<Vec<Result<Answer, Error>>, StoreError> {
        let kept = self.conn.take();
        let is_kept = kept.is_some();
        let mut conn = match kept {
            Some(conn) => conn,
            None => self.store.acquire_for_combiner().await?,
        };
        let begun = WriteTransaction::begin(&mut conn).await;
        if is_kept && matches!(&begun, Err(StoreError::Unavailable(_))) {
            // It broke while it lay idle. Nothing was begun, so another is as good.
            drop(begun);
            drop(conn);
            return Box::pin(self.commit(batch, Alone(alone))).await;
        }
        let (mut transaction, pool) = begun?;
        if !alone {
            // Whoever came while these waited for the pool's row.
            self.take_along(batch);
            count(batch);
        }
        self.took = batch.len();
        // Only now, so that those who read the fleet do not wait for another replica's transaction.
        let mut replica = self.replica.write().await;
        // In later statements than the lock: a statement's snapshot is older than the lock that it waits for.
        replica.catch_up(&mut transaction, &pool).await?;
        let result = self.write(&mut transaction, &mut replica, &pool, batch).await;
        let result = match result {
            Ok(answers) => transaction.commit().await.map(|()| answers),
            Err(error) => {
                drop(transaction);
                Err(error)
            }
        };
        match &result {
            Ok(_) => {
                self.conn = Some(conn);
                self.committed.send_replace(replica.fleet().sequence());
            }
            Err(_) => replica.forget(),
        }
        result
    }

    /// Plans every request in memory, in arrival order, and writes what came of it. Those that wait together are concurrent, so
    /// that any order of theirs is a fair one: usage reports first, then the inventory, then what is given back, then those who wait
    /// in line, then projects.
    async fn write(
        &self,
        conn: &mut PgConnection,
        replica: &mut Replica,
        pool: &pools::PoolState,
        batch: &[Job],
    ) -> Result<Vec<Result<Answer, Error>>, StoreError> {
        let context = self.options.context(pool.now);
        let free_after = after(pool.now, self.options.port_rest);
        let set_aside_until = after(pool.now, self.options.port_set_aside);
        leases::keep_time(conn, batch, pool.now).await?;
        let mut ids = project_ids(batch);
        // Of the others it is known that there is nothing.
        ids.retain(|id| replica.placed().may_include(id));
        let committed: HashMap<ProjectId, Project> = if ids.is_empty() {
            HashMap::new()
        } else {
            let ids: Vec<_> = ids.into_iter().map(ToString::to_string).collect();
            let records = placements::list_projects(conn, &ids).await?;
            records.into_iter().map(|(id, record)| (id, record.project)).collect()
        };
        let mut journal = Journal::new(pool.now, committed);
        let mut answers: Vec<Option<Result<Answer, Error>>> = batch.iter().map(|_| None).collect();

        inventory::tell_unlogged(&mut journal, replica);
        inventory::take_usage(conn, replica, pool, batch, &mut answers).await?;
        for (job, slot) in batch.iter().zip(&mut answers) {
            journal.act_for(Arc::clone(&job.call.actor));
            if let Some(answer) = inventory::write(conn, &mut journal, replica, job, &context).await? {
                *slot = Some(answer);
            }
        }
        let fleet = replica.fleet_mut();
        for (job, slot) in batch.iter().zip(&mut answers) {
            journal.act_for(Arc::clone(&job.call.actor));
            match &job.request {
                Request::Release(request) => {
                    let answer = ensure::release(
                        &mut journal,
                        fleet,
                        request,
                        &job.request_id,
                        free_after,
                        ReleaseCause::Requested,
                    );
                    line::release(&mut journal, fleet, &request.project_id);
                    *slot = Some(Ok(Answer::Released(answer)));
                }
                Request::Leave { project_id, caller } => {
                    line::leave(&mut journal, fleet, project_id, *caller);
                }
                Request::Housekeep => line::look_anew(fleet),
                _ => {}
            }
        }
        // What was given back is for those who wait, before anyone who comes now.
        line::settle(conn, &mut journal, fleet, &context).await?;
        for (job, slot) in batch.iter().zip(&mut answers) {
            journal.act_for(Arc::clone(&job.call.actor));
            match &job.request {
                Request::Ensure(request) => {
                    let answer = ensure::ensure(&mut journal, fleet, request, &job.request_id, &context);
                    *slot = Some(answer.map(Answer::Ensured).map_err(Error::from));
                }
                Request::Wait(asked) => {
                    let terms = (pool, &context, self.options.line_limit);
                    let answer = line::wait(&mut journal, fleet, asked, &job.request_id, terms);
                    *slot = Some(answer.map_err(Error::from));
                }
                Request::Relocate(request) => {
                    let id = &job.request_id;
                    let answer = relocate::relocate(&mut journal, fleet, request, id, &context, free_after);
                    *slot = Some(answer.map(Answer::Relocated).map_err(Error::from));
                }
                Request::ReportPortInUse(report) => {
                    let id = &job.request_id;
                    let answer =
                        relocate::replace_port(&mut journal, fleet, report, id, &context, set_aside_until);
                    *slot = Some(answer.map(Answer::PortReplaced).map_err(Error::from));
                }
                _ => {}
            }
        }
        if batch.iter().any(|job| matches!(job.request, Request::Housekeep)) {
            journal.act_for("");
            leases::end(conn, &mut journal, fleet, free_after).await?;
        }
        line::settle(conn, &mut journal, fleet, &context).await?;
        journal.write(conn).await?;
        line::write(conn, &journal, fleet).await?;
        replica.placed().apply(journal.entries());
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Ok(Answer::Done))).collect())
    }
}

/// Counts what a transaction took out of the queue.
fn count(batch: &[Job]) {
    let now = Instant::now();
    let waited = metrics::histogram!("allocator_queue_wait_duration_seconds");
    for job in batch {
        waited.record(now.duration_since(job.since));
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a batch is far smaller than what a float counts exactly"
    )]
    metrics::histogram!("allocator_batch_requests").record(batch.len() as f64);
}

/// Those whose callers still wait: nobody else need cost a transaction.
fn wanted(jobs: impl IntoIterator<Item = Job>) -> Vec<Job> {
    let now = Instant::now();
    let (given_up, wanted): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.is_given_up(now));
    fail(given_up, &Error::DeadlinePassed);
    wanted
}

/// So much later, or as late as the tables can say: whoever means "for good" writes a very long time.
fn after(now: OffsetDateTime, duration: Duration) -> OffsetDateTime {
    const LATEST: OffsetDateTime = datetime!(9998-12-31 00:00 UTC);
    let duration = time::Duration::try_from(duration).unwrap_or(time::Duration::MAX);
    now.checked_add(duration).map_or(LATEST, |time| time.min(LATEST))
}

/// Answers all with an error.
fn fail(jobs: impl IntoIterator<Item = Job>, error: &Error) {
    for job in jobs {
        // A caller that hung up has no use for the answer.
        let _ = job.reply.send(Err(error.clone()));
    }
}

fn answer(batch: Vec<Job>, answers: Vec<Result<Answer, Error>>) {
    for (job, answer) in batch.into_iter().zip(answers) {
        // A caller that hung up repeats the call and gets what was committed.
        let _ = job.reply.send(answer);
    }
}

fn project_ids(batch: &[Job]) -> Vec<&ProjectId> {
    let mut ids: Vec<_> = batch
        .iter()
        .filter_map(|job| match &job.request {
            Request::Ensure(request) => Some(&request.project_id),
            Request::Wait(asked) => Some(&asked.request.project_id),
            Request::Release(request) => Some(&request.project_id),
            Request::Relocate(request) => Some(&request.project_id),
            Request::ReportPortInUse(report) => Some(&report.project_id),
            _ => None,
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
