//! Housekeeping: has the combiner tell the log what nobody asked for. It looks before it asks, so that an idle service writes
//! nothing.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    Error,
    command::{Job, Request},
    follow::Follower,
    inventory, line,
};
use crate::store::{leases, pools, within};

/// How often the log is told what nobody asked for.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// How often in a row, where each time leaves something to do.
const MOST_IN_A_ROW: usize = 100;
/// How long one look may take, with what it has the combiner do: a database that is gone without a word says nothing.
const LIMIT: Duration = Duration::from_mins(1);

/// Looks after what no request does.
pub(super) struct Housekeeper {
    pub(super) follower: Follower,
    pub(super) queue: mpsc::WeakSender<Job>,
}

impl Housekeeper {
    /// Works until nobody can put anything into the queue any more.
    pub(super) async fn run(self) {
        let mut ticks = tokio::time::interval(HOUSEKEEPING);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.queue.strong_count() > 0 {
            ticks.tick().await;
            for _ in 0..MOST_IN_A_ROW {
                match within(LIMIT, Box::pin(self.step())).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        // Each request that meets the same error reports it; this one comes again by itself.
                        tracing::debug!(error = &error as &dyn std::error::Error, "housekeeping did not run");
                        break;
                    }
                }
            }
        }
    }

    /// Looks, and has done what there is to do; tells whether leases may be over that one transaction did not end.
    async fn step(&self) -> Result<bool, Error> {
        let Follower { store, options, replica, .. } = &self.follower;
        // Others wait for the pool's row while it is had, so that it is not had only to fold what they commit.
        self.follower.follow_to_the_end().await?;
        let mut conn = store.acquire().await?;
        let pool = pools::find(&mut conn).await?;
        let leases = leases::find(&mut conn, pool.now).await?;
        drop(conn);
        let context = options.context(pool.now);
        let needed = {
            let replica = replica.read().await;
            let stale = |state| inventory::is_stale(state, &context);
            replica.wants_row(&pool)
                || super::leases::is_due(&leases, pool.now)
                || line::is_due(replica.fleet(), &context)
                || replica.fleet().iter().any(|state| !state.usage_stale && stale(state))
        };
        let Some(queue) = self.queue.upgrade().filter(|_| needed) else { return Ok(false) };
        let (job, answer) = Job::new("housekeeping".to_owned(), Request::Housekeep);
        // Where the queue is full it waits for its turn, and the combiner for nobody who waits here.
        queue.send(job).await.map_err(|_| Error::ShuttingDown)?;
        drop(queue);
        answer.await.map_err(|_| Error::ShuttingDown)??;
        Ok(leases.over)
    }
}
