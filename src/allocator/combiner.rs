//! The combiner: the one task of a replica that writes. It takes whatever waits in the queue, and commits it all in one
//! transaction under the pool's row. The time that the previous commit took is the batching window: there is no timer, and a
//! lone caller never waits.
//!
//! A batch of new projects is planned before the row is had (`ahead`), which is one round trip; any other, and one that another
//! replica came before, is planned under the row (`locked`).
//!
//! The task owns the transaction, so a caller that hangs up cannot tear it.

use std::{sync::Arc, time::Duration};

use sqlx::{Postgres, pool::PoolConnection};
use tokio::sync::{Mutex, RwLock, mpsc};

use super::{
    AllocatorOptions, Error,
    ahead::Clock,
    command::Job,
    follow::Follower,
    jobs::{answer, fail, wanted},
    locked::Alone,
    replica::{Position, Replica},
};
use crate::{
    events::Announcer,
    store::{Store, StoreError},
};

/// The database cannot be reached, or is held up by someone else, which is the answer for everyone who waits.
struct Unavailable(Error);

/// So many go into one transaction however many wait.
const FEW: usize = 16;

/// The combiner's parts.
pub struct Combiner {
    pub(super) store: Store,
    pub(super) options: AllocatorOptions,
    pub(super) replica: Arc<RwLock<Replica>>,
    pub(super) follower: Follower,
    pub(super) queue: mpsc::Receiver<Job>,
    /// Held while a transaction is under way. Upkeep has it while it holds the pool's row, for a batch that finds the row taken is
    /// planned anew.
    pub(super) turn: Arc<Mutex<()>>,
    /// Tells the tailer.
    pub(super) announcer: Announcer,
    /// The connection, while it is good.
    pub(super) conn: Option<PoolConnection<Postgres>>,
    /// How many the last transaction took.
    pub(super) took: usize,
    /// The database's clock, while what this replica knows may be planned on.
    pub(super) clock: Option<Clock>,
    /// Where this replica's last transaction left the pool: whether others write is told by where the next one finds it.
    pub(super) left_at: Option<Position>,
    /// How long the pool's row was last waited for.
    pub(super) wait: Duration,
}

impl Combiner {
    /// Works until the queue is closed and empty.
    pub async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let mut batch = wanted([first]);
            self.take_along(&mut batch, false);
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
    /// for a transaction costs as much as they do. So do all where other replicas write while these are answered.
    pub(super) fn take_along(&mut self, batch: &mut Vec<Job>, others_write: bool) {
        let callers = self.took + batch.len() + self.queue.len();
        let share = if others_write { callers } else { callers.div_ceil(2) };
        let share = share.max(FEW).min(self.options.max_batch);
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
            // One bad request never harms its neighbours: each is tried alone. So is one that came alone, for it may have been planned
            // on what the tables do not hold, and they are read anew now.
            _ if !alone.0 => {
                tracing::warn!(
                    requests = batch.len(),
                    error = &error as &dyn std::error::Error,
                    "a batch was rejected; its requests are tried one by one"
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
}
