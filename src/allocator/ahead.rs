//! A batch that is planned ahead: on the fleet as this replica knows it, before the pool's row is had. One statement locks the row,
//! looks whether the pool stands where the plan took it to stand, writes the batch and commits it. So a new project costs one
//! round trip, and a replica that freezes holds nothing that others wait for.
//!
//! Where someone else has the row, or committed in between, nothing is written: what was planned is taken back, and the batch is
//! planned anew under the row. As long as others do commit in between, nothing is planned ahead.
//!
//! Only projects that hold nothing are placed so, while nobody stands in line: what else a request may need is read under the row.

use std::{collections::HashMap, sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    Error,
    combiner::Combiner,
    command::{Answer, Job, Request},
    ensure,
    jobs::{count, spans},
    journal::Journal,
    replica::Replica,
};
use crate::{
    domain::{event::LogEntry, placement::Context, request::EnsureRequest},
    store::{
        StoreError,
        batches::{Batch, Expected},
        read_clock, write_planned,
    },
    traced,
};

/// A connection that was not used for so long is tried before it is used.
const IDLE: Duration = Duration::from_secs(1);

/// The database's clock, as this replica goes on counting: replicas must agree on which ports rest.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    then: OffsetDateTime,
    at: Instant,
}

impl Clock {
    /// The clock, when the database has just said what time it is.
    pub fn new(now: OffsetDateTime) -> Self {
        Self { then: now, at: Instant::now() }
    }

    /// For how long the database has said nothing.
    fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// What time it is by now, as exactly as the tables can hold it.
    fn now(&self) -> OffsetDateTime {
        let elapsed = self.at.elapsed();
        let beyond = Duration::from_nanos(u64::from(elapsed.subsec_nanos() % 1000));
        self.then + elapsed.saturating_sub(beyond)
    }
}

/// A batch, and what comes of it once it is written.
struct Plan {
    expected: Expected,
    rows: Batch,
    answers: Vec<Result<Answer, Error>>,
    entries: Vec<LogEntry>,
}

impl Combiner {
    /// Commits a batch that can be planned ahead; none where it has to be planned under the row.
    ///
    /// Where the connection breaks, nobody knows whether it was committed. The callers are told so, what was planned is taken back,
    /// and what is then read of the log tells. A statement that is still under way is written only if nothing else was, and within
    /// seconds of its plan.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn commit_ahead(
        &mut self,
        batch: &[Job],
    ) -> Result<Option<Vec<Result<Answer, Error>>>, StoreError> {
        let may_be = batch.iter().all(|job| plain_ensure(job).is_some());
        let Some(mut clock) = self.clock.filter(|_| may_be) else { return Ok(None) };
        let Some(mut conn) = self.conn.take() else { return Ok(None) };
        if clock.age() > IDLE {
            // A connection that broke while it lay idle is not to be found out by what cannot be sent twice.
            let Ok(now) = read_clock(&mut conn).await else {
                conn.close_on_drop();
                return Ok(None);
            };
            clock = Clock::new(now);
        }
        let begin = Instant::now();
        let mut replica = self.replica.write().await;
        let now = replica.fleet().not_before(clock.now());
        let planned = may_be_planned_ahead(&replica, batch, now)
            .then(|| plan(&mut replica, batch, &self.options.context(now)))
            .flatten();
        let Some(Plan { expected, rows, answers, entries }) = planned else {
            self.conn = Some(conn);
            return Ok(None);
        };
        let mut trace = traced::Batch::default();
        trace.join(spans(batch));
        let written = write_planned(&mut conn, &rows, &expected).instrument(trace.span()).await;
        if let Ok(Some(now)) = written {
            self.clock = Some(Clock::new(now));
            self.conn = Some(conn);
            replica.fleet_mut().keep_attempt();
            replica.placed().apply(entries.iter().filter_map(LogEntry::placement));
            self.left_at = Some(replica.position());
            self.announcer.announce(expected.epoch, entries);
            count(batch, begin);
            self.took = batch.len();
            return Ok(Some(answers));
        }
        // Whoever was overtaken is likely to be overtaken again.
        self.clock = None;
        if !replica.fleet_mut().take_back_attempt() {
            replica.forget();
        }
        match written {
            Ok(_) => {
                metrics::counter!("allocator_batches_total", "outcome" => "overtaken").increment(1);
                self.conn = Some(conn);
                Ok(None)
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Busy(_))) => Err(error),
            Err(error) => {
                tracing::warn!(
                    requests = batch.len(),
                    error = &error as &dyn std::error::Error,
                    "a batch that was planned ahead was refused; it is planned anew"
                );
                // The fleet is not what the tables hold. What is wrong with the batch shows under the row.
                conn.close_on_drop();
                replica.forget();
                Ok(None)
            }
        }
    }
}

/// The request of a call for which nothing is to be read under the row unless its project is there already.
fn plain_ensure(job: &Job) -> Option<&EnsureRequest> {
    match &job.request {
        // A lease has a clock of its own to keep.
        Request::Ensure(request) if request.ttl.is_none() => Some(request),
        _ => None,
    }
}

/// Whether each request is for a project that holds nothing, and nothing else is to be looked at.
fn may_be_planned_ahead(replica: &Replica, batch: &[Job], now: OffsetDateTime) -> bool {
    let line = replica.fleet().line();
    let is_new = |job| {
        plain_ensure(job).is_some_and(|EnsureRequest { project_id: id, .. }| {
            !replica.placed().may_include(id) && line.get(id).is_none()
        })
    };
    line.is_empty() && line.is_settled(now) && batch.iter().all(is_new)
}

/// Plans a batch on the fleet as it is; none where what comes of it is not written by one statement, and the fleet is as before.
fn plan(replica: &mut Replica, batch: &[Job], context: &Context) -> Option<Plan> {
    let expected = replica.expected(context.now)?;
    let fleet = replica.fleet_mut();
    fleet.attempt();
    let mut journal = Journal::new(context.now, HashMap::new());
    let mut answers = Vec::with_capacity(batch.len());
    for job in batch {
        if let Some(request) = plain_ensure(job) {
            journal.act_for(Arc::clone(&job.call.actor));
            let answer = ensure::ensure(&mut journal, fleet, request, &job.request_id, context);
            answers.push(answer.map(Answer::Ensured).map_err(Error::from));
        }
    }
    // What cannot be written is told by whoever tries under the row.
    let rows = journal.as_one_batch().ok().flatten();
    if rows.is_none() && !fleet.take_back_attempt() {
        replica.forget();
    }
    Some(Plan { expected, rows: rows?, answers, entries: journal.into_entries() })
}
