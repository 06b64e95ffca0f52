//! A batch under the pool's row: the row is locked, the fleet is brought to where the pool then stands, the batch is planned on
//! that and written, and all of it is committed. Whatever a batch asks for can be done so.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use sqlx::{PgConnection, Postgres, pool::PoolConnection};
use time::{OffsetDateTime, macros::datetime};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    Error,
    ahead::Clock,
    combiner::Combiner,
    command::{Answer, Job, Request},
    ensure, inventory,
    jobs::{count, project_ids, spans, wanted},
    journal::Journal,
    leases, line, relocate,
    replica::{Position, Replica},
    silence,
};
use crate::{
    domain::{
        Fleet, Project, ProjectId,
        event::{LogEntry, ReleaseCause},
        micros::whole_micros,
    },
    store::{
        StoreError, WriteTransaction, placements,
        pools::{self, PoolState},
    },
    traced,
};

/// How often a batch that another transaction was in the way of is tried anew, each time in a new transaction (L45).
const BUSY_TRIES: u32 = 3;

/// A wait that is shorter is none: nobody else has the row.
const SHORT: Duration = Duration::from_millis(3);
/// After so long a wait it is looked for news at the latest.
const LONG: Duration = Duration::from_millis(100);

/// Whether a request is tried without any other.
#[derive(Clone, Copy)]
pub(super) struct Alone(pub(super) bool);

/// For how long the replica is waited for while the pool's row is held, for which all others wait: whoever reads the tables into it
/// may take seconds.
const PATIENCE: Duration = Duration::from_millis(50);

/// What is known of the tables before the pool's row is had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tables {
    /// That the log leads there, as far as anybody knows.
    Followed,
    /// That they have to be read anew, which can take seconds: first, while others may have the row. Where they have to be again
    /// once it is had, they are read then.
    Changed,
}

impl Combiner {
    /// Commits a batch, and what came meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was then committed, as far as that is known.
    pub(super) async fn commit_with_retries(
        &mut self,
        batch: &mut Vec<Job>,
        alone: Alone,
    ) -> Result<Vec<Result<Answer, Error>>, StoreError> {
        let mut tries = 1;
        loop {
            match self.commit_in_time(batch, alone).await {
                Err(StoreError::Busy(error)) if tries < BUSY_TRIES => {
                    tracing::warn!(tries, error = &error as &dyn std::error::Error, "the database was busy");
                    silence::of_others(&self.store).await;
                    tokio::time::sleep(Duration::from_millis(50) * tries).await;
                    tries += 1;
                    *batch = wanted(std::mem::take(batch));
                    if batch.is_empty() {
                        return Ok(Vec::new());
                    }
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
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let begin = Instant::now();
        let follower = self.follower.clone();
        let committed = tokio::select! {
            biased;
            committed = self.commit(batch, alone, Tables::Followed) => Some(committed),
            () = silence::of_database(&follower) => None,
        };
        drop(turn);
        if committed.is_none() {
            self.replica.write().await.forget();
        }
        let committed = committed.unwrap_or_else(|| Err(StoreError::silent()));
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

    /// Commits a batch in one transaction, planned ahead where it can be.
    ///
    /// When the outcome of the commit itself is unknown, for the connection broke, the fleet is thrown away, and the next lock
    /// and read tells what happened. The callers are told to try again, which is safe in either case.
    async fn commit(
        &mut self,
        batch: &mut Vec<Job>,
        Alone(alone): Alone,
        tables: Tables,
    ) -> Result<Vec<Result<Answer, Error>>, StoreError> {
        if !alone && let Some(answers) = self.commit_ahead(batch).await? {
            return Ok(answers);
        }
        self.clock = None;
        let kept = self.conn.take();
        let is_kept = kept.is_some();
        let mut conn = match kept {
            Some(conn) => conn,
            None => self.store.acquire_for_combiner().await?,
        };
        let mut trace = traced::Batch::default();
        trace.join(spans(batch));
        let begun = self.begin(&mut conn, tables).instrument(trace.span()).await;
        if is_kept && matches!(&begun, Err(StoreError::Unavailable(_))) {
            // It broke while it lay idle. Nothing was begun, so another is as good.
            drop(begun);
            drop(conn);
            return Box::pin(self.commit(batch, Alone(alone), tables)).await;
        }
        let (mut transaction, mut pool) = begun?;
        let clock = Clock::new(pool.now);
        // Only now, so that those who read the fleet do not wait for another replica's transaction.
        let lock = Arc::clone(&self.replica);
        let Ok(mut replica) = tokio::time::timeout(PATIENCE, lock.write()).await else {
            transaction.rollback().await?;
            self.conn = Some(conn);
            drop(lock.write().await);
            return Box::pin(self.commit(batch, Alone(alone), tables)).await;
        };
        if tables == Tables::Followed && replica.must_reload(&pool) {
            drop((replica, transaction));
            drop(conn);
            return Box::pin(self.commit(batch, Alone(alone), Tables::Changed)).await;
        }
        let others_write = self.left_at.is_some_and(|left_at| left_at != Position::from(&pool));
        if !alone {
            // Whoever came while these waited for the pool's row.
            self.take_along(batch, others_write);
            count(batch, Instant::now());
            trace.join(spans(batch));
        }
        // The row may have been long in coming. Whoever hung up meanwhile may have something else in the same batch, such as that it
        // leaves the line, which must not be done before what it follows.
        *batch = wanted(std::mem::take(batch));
        self.took = batch.len();
        // Where others commit in between, a plan would be overtaken.
        self.clock = (!others_write).then_some(clock);
        // In later statements than the lock: a statement's snapshot is older than the lock that it waits for.
        replica.catch_up(&mut transaction, &pool).await?;
        pool.now = replica.fleet().not_before(pool.now);
        let written = self.write(&mut transaction, &mut replica, &pool, batch);
        let result = written.instrument(trace.span()).await;
        let result = match result {
            Ok(written) => transaction.commit().instrument(trace.span()).await.map(|()| written),
            Err(error) => {
                drop(transaction);
                Err(error)
            }
        };
        match result {
            Ok((answers, entries)) => {
                self.conn = Some(conn);
                self.left_at = Some(replica.position());
                replica.note_kept();
                self.announcer.announce(pool.epoch, entries);
                Ok(answers)
            }
            Err(error) => {
                self.clock = None;
                replica.forget();
                Err(error)
            }
        }
    }

    /// Begins a transaction, and waits for the pool's row. Where that takes longer than the last time, what others commit while they
    /// have it is folded meanwhile, so that little is left to be read once it is had.
    async fn begin<'c>(
        &mut self,
        conn: &'c mut PoolConnection<Postgres>,
        tables: Tables,
    ) -> Result<(WriteTransaction<'c>, PoolState), StoreError> {
        if tables == Tables::Changed || self.replica.read().await.folded().is_none() {
            let mut replica = self.replica.write().await;
            let mut snapshot = WriteTransaction::begin_load(conn).await?;
            self.follower.load_from(&mut snapshot, &mut replica).await?;
            snapshot.commit().await?;
        }
        let since = Instant::now();
        let mut begun = pin!(WriteTransaction::begin(conn));
        let pause = self.wait.clamp(SHORT, LONG);
        let begun = loop {
            if let Ok(begun) = tokio::time::timeout(pause, &mut begun).await {
                break begun;
            }
            tokio::select! {
                biased;
                begun = &mut begun => break begun,
                () = self.follower.follow_elsewhere() => {}
            }
        };
        self.wait = since.elapsed();
        begun
    }

    /// Plans every request in memory, in arrival order, and writes what came of it. Those that wait together are concurrent, so
    /// that any order of theirs is a fair one: usage reports first, then the inventory, then what is given back, then those who wait
    /// in line, then projects. Returns the answers, and the operations that they stand for once they are committed.
    async fn write(
        &self,
        conn: &mut PgConnection,
        replica: &mut Replica,
        pool: &pools::PoolState,
        batch: &[Job],
    ) -> Result<(Vec<Result<Answer, Error>>, Vec<LogEntry>), StoreError> {
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
            if let Some(answer) = give_back(&mut journal, fleet, job, free_after) {
                *slot = Some(Ok(answer));
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
                Request::Release(_)
                | Request::Leave { .. }
                | Request::RegisterServer { .. }
                | Request::UpdateServer { .. }
                | Request::DeleteServer { .. }
                | Request::SyncServers(_)
                | Request::ReportUsage { .. }
                | Request::UpdatePolicy(_)
                | Request::Housekeep => {}
            }
        }
        if batch.iter().any(|job| matches!(job.request, Request::Housekeep)) {
            journal.act_for("");
            leases::end(conn, &mut journal, fleet, free_after).await?;
        }
        line::settle(conn, &mut journal, fleet, &context).await?;
        journal.write(conn).await?;
        line::write(conn, &journal, fleet).await?;
        replica.placed().apply(journal.entries().iter().filter_map(LogEntry::placement));
        let answers = answers.into_iter().map(|answer| answer.unwrap_or(Ok(Answer::Done))).collect();
        Ok((answers, journal.into_entries()))
    }
}

/// Takes up a request that gives something back: what a project holds, or a place in line. None for any other.
fn give_back(
    journal: &mut Journal,
    fleet: &mut Fleet,
    job: &Job,
    free_after: OffsetDateTime,
) -> Option<Answer> {
    journal.act_for(Arc::clone(&job.call.actor));
    match &job.request {
        Request::Release(request) => {
            let cause = ReleaseCause::Requested;
            let answer = ensure::release(journal, fleet, request, &job.request_id, free_after, cause);
            line::release(journal, fleet, &request.project_id);
            Some(Answer::Released(answer))
        }
        Request::Leave { project_id, caller } => {
            line::leave(journal, fleet, project_id, *caller);
            Some(Answer::Done)
        }
        // `write` names them where it decides them.
        _ => None,
    }
}

/// So much later, or as late as the tables can say: whoever means "for good" writes a very long time.
fn after(now: OffsetDateTime, duration: Duration) -> OffsetDateTime {
    const LATEST: OffsetDateTime = datetime!(9998-12-31 00:00 UTC);
    let duration = time::Duration::try_from(whole_micros(duration)).unwrap_or(time::Duration::MAX);
    now.checked_add(duration).map_or(LATEST, |time| time.min(LATEST))
}
