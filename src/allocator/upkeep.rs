//! Upkeep: removes what the tables need no more, ports whose rest is over and events past their keeping, in small steps. After
//! each it rests for many times as long as the step took, so that whoever places a project hardly notices, however slow the
//! database is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, mpsc};

use super::{AllocatorOptions, Error, command::Job};
use crate::{
    domain::fleet::CLOCK_SKEW,
    store::{Store, StoreError, events, pools, ports, within},
};

/// How often it is looked whether there is something to remove.
const INTERVAL: Duration = Duration::from_secs(2);
/// How many ports are removed at once.
const STEP: i64 = 500;
/// How many events are removed at once: a few hundred operations.
const SPAN: i64 = 2_000;
/// How long a step may take: a database that is gone without a word says nothing.
const LIMIT: Duration = Duration::from_mins(1);
/// How long batches wait for upkeep at the most.
const LONGEST_TURN: Duration = Duration::from_secs(5);
/// How many times as long as a step took nothing is removed after it.
const REST: u32 = 40;

/// Keeps the tables small.
pub(super) struct Upkeep {
    pub(super) store: Store,
    pub(super) options: AllocatorOptions,
    pub(super) queue: mpsc::WeakSender<Job>,
    /// The combiner's, see there.
    pub(super) turn: Arc<Mutex<()>>,
}

impl Upkeep {
    /// Works until nobody can put anything into the queue any more.
    pub(super) async fn run(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.queue.strong_count() > 0 {
            ticks.tick().await;
            let done = async {
                let mut more = true;
                while more && self.queue.strong_count() > 0 {
                    let begin = Instant::now();
                    // Both in turn: much of the one does not hold up the other.
                    let more_ports = within(LIMIT, self.remove_rested()).await?;
                    more = within(LIMIT, self.remove_events()).await? || more_ports;
                    tokio::time::sleep(begin.elapsed() * REST).await;
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = done.await {
                // Each request that meets the same error reports it; this one comes again by itself.
                tracing::debug!(error = &error as &dyn std::error::Error, "upkeep did not run");
            }
        }
    }

    /// Removes a step of ports whose rest is over; tells whether there may be more. Without the pool's row: a port whose rest is
    /// over is free whether its row is there or not. Those whose rest is just over stay, for who decides at this moment may take it
    /// to be a little earlier.
    async fn remove_rested(&self) -> Result<bool, Error> {
        let mut conn = self.store.acquire().await?;
        let pool = pools::find(&mut conn).await?;
        let rested_by = pool.now - CLOCK_SKEW;
        let rested = ports::has_rested(&mut conn, rested_by).await?;
        drop(conn);
        if !rested {
            return Ok(false);
        }
        let mut transaction = self.store.begin_upkeep().await?;
        let removed = ports::delete_rested(&mut transaction, rested_by, STEP).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(i64::try_from(removed) == Ok(STEP))
    }

    /// Removes a step of the oldest events, if they are past their keeping; tells whether there may be more. The rows go first, and
    /// the pool's row is held for the commit alone, between two batches.
    async fn remove_events(&self) -> Result<bool, Error> {
        let mut conn = self.store.acquire().await?;
        let pool = pools::find(&mut conn).await?;
        let cutoff =
            pool.now.checked_sub(self.options.event_max_age.try_into().unwrap_or(time::Duration::MAX));
        let newest_to_go = pool.last_sequence.saturating_sub(self.options.event_limit);
        let after = pool.compacted_sequence;
        let expired = events::find_expired(&mut conn, after, SPAN, cutoff, newest_to_go).await?;
        drop(conn);
        let Some(up_to) = expired else { return Ok(false) };
        let mut transaction = self.store.begin_upkeep().await?;
        events::delete_between(&mut transaction, after, up_to).await?;
        let turn = self.turn.lock().await;
        let committed = async {
            pools::update_compacted(&mut transaction, up_to).await?;
            transaction.commit().await.map_err(StoreError::from)
        };
        // Where the database says nothing, the batches are to find that out by themselves.
        let committed = within(LONGEST_TURN, committed).await;
        drop(turn);
        committed?;
        Ok(true)
    }
}
