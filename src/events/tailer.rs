//! The tailer: follows the log and hands each operation to every watcher of this replica.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{feed::Feed, hints, shared::Batch};
use crate::{
    domain::event::LogEntry,
    store::{
        Store, StoreError, events,
        pools::{self, PoolState},
        within,
    },
};

/// How often the log is looked at. What this replica commits is looked at once it is committed, and what another one commits
/// when that one says so: but a hint may be lost, and this is the truth.
const POLL: Duration = Duration::from_millis(100);
/// How far apart what is handed round is at least: each time wakes everyone who watches everything. What comes alone goes at once.
const APART: Duration = Duration::from_millis(20);
/// The same for each who watches everything, where they are many: to be woken and written to costs the same for one event or many.
const APART_EACH: Duration = Duration::from_micros(300);
/// The most of it.
const APART_AT_MOST: Duration = Duration::from_millis(100);
/// How long a read may take: a database that froze in the middle of one says nothing.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(10);
/// How many operations are read at once.
const PAGE: i64 = 500;
/// How many are handed round at once: a watcher's place is a few such batches long, and of the largest.
const BATCH: usize = 200;

/// How watchers are treated.
#[derive(Debug, Clone, Copy)]
pub struct WatchOptions {
    /// For how long a watcher may take nothing before it is told that it is too slow.
    pub stall_limit: Duration,
    /// Whether replicas tell each other of commits by LISTEN and NOTIFY, which a pooler that hands connections round by
    /// transaction breaks.
    pub commit_hints: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { stall_limit: Duration::from_secs(30), commit_hints: true }
    }
}

/// Up to where the log was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// The history that it is of.
    pub epoch: Uuid,
    /// The number of the last event.
    pub sequence: i64,
}

/// Where watchers join. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub {
    pub(super) store: Store,
    pub(super) options: WatchOptions,
    pub(super) feed: Arc<Feed>,
    pub(super) position: watch::Sender<Option<Position>>,
    /// Tells the tailer that someone listens.
    pub(super) joined: Arc<Notify>,
    pub(super) shutdown: CancellationToken,
}

impl Hub {
    /// Starts the tailer. `committed` changes whenever this replica committed something; the tailer ends with `shutdown`.
    #[must_use]
    pub fn start(
        store: Store,
        options: WatchOptions,
        committed: watch::Receiver<i64>,
        shutdown: CancellationToken,
    ) -> Self {
        let hub = Self {
            store,
            options,
            feed: Feed::new(),
            position: watch::Sender::new(None),
            joined: Arc::default(),
            shutdown,
        };
        let news = Arc::new(Notify::new());
        if options.commit_hints {
            let (store, shutdown, replica) = (&hub.store, &hub.shutdown, Uuid::now_v7());
            tokio::spawn(hints::hear(store.clone(), replica, Arc::clone(&news), shutdown.clone()));
            tokio::spawn(hints::give(store.clone(), replica, committed.clone(), shutdown.clone()));
        }
        tokio::spawn(tail(hub.clone(), committed, news));
        hub
    }

    /// The history that the log is of, as last seen; none before the first look.
    #[must_use]
    pub fn epoch(&self) -> Option<Uuid> {
        self.position.borrow().map(|position| position.epoch)
    }

    /// The number of the last event that was handed round; none before the first look.
    #[must_use]
    pub fn sequence(&self) -> Option<i64> {
        self.position.borrow().map(|position| position.sequence)
    }

    /// How many watchers there are.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.feed.listeners()
    }

    /// Is cancelled when this replica begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Hands round what was committed since the last time; whether there was anything and anyone.
    async fn follow(&self) -> Result<bool, StoreError> {
        let mut conn = self.store.acquire_for_tailer().await?;
        let handed = self.follow_by(&mut conn).await?;
        conn.keep();
        Ok(handed)
    }

    async fn follow_by(&self, conn: &mut PgConnection) -> Result<bool, StoreError> {
        let pool = pools::find(conn).await?;
        let Some(mut at) = *self.position.borrow() else {
            // Whoever joined before this first look sees for itself what came since.
            self.lose_thread(&pool);
            return Ok(false);
        };
        if at.epoch != pool.epoch || at.sequence > pool.last_sequence {
            tracing::warn!(
                sequence = pool.last_sequence,
                "the log was restarted: another history goes on from here"
            );
            self.lose_thread(&pool);
            return Ok(false);
        }
        let mut handed = false;
        while at.sequence < pool.last_sequence {
            // With nobody to hand them to, the operations need not be read.
            if !self.feed.is_heard() {
                at.sequence = pool.last_sequence;
                self.move_to(at);
                return Ok(false);
            }
            let entries = events::list_after(conn, at.sequence, PAGE).await?;
            let follows = |entry: &LogEntry| entry.first_sequence == at.sequence + 1;
            let Some(last) = entries.last().filter(|_| entries.first().is_some_and(follows)) else {
                // Retention dropped what this replica has not read yet.
                self.lose_thread(&pool);
                return Ok(false);
            };
            at.sequence = last.last_sequence();
            let mut entries = entries.into_iter();
            while let Some(batch) = Batch::new(at.epoch, entries.by_ref().take(BATCH)) {
                self.feed.send(batch);
                handed = true;
            }
            // Only now: whoever has taken all that was handed round has everything up to here.
            self.move_to(at);
        }
        Ok(handed)
    }

    /// Goes on from the end of the log, and has every watcher see for itself what lies between.
    fn lose_thread(&self, pool: &PoolState) {
        // In this order: a watcher that finds the tailer further on has been told before that there is something to see.
        self.feed.lose_thread();
        self.move_to(Position { epoch: pool.epoch, sequence: pool.last_sequence });
    }

    fn move_to(&self, position: Position) {
        self.position.send_if_modified(|known| known.replace(position) != Some(position));
    }
}

/// How long the next time waits, where so many watch everything.
fn apart(watchers: usize) -> Duration {
    let each = APART_EACH.saturating_mul(u32::try_from(watchers).unwrap_or(u32::MAX));
    each.clamp(APART, APART_AT_MOST)
}

async fn tail(hub: Hub, mut committed: watch::Receiver<i64>, news: Arc<Notify>) {
    let mut allocator_lives = true;
    let mut again = Instant::now();
    loop {
        // Where nobody listens, the round is enough.
        let is_heard = hub.feed.is_heard();
        tokio::select! {
            () = hub.shutdown.cancelled() => return,
            changed = committed.changed(), if is_heard && allocator_lives => allocator_lives = changed.is_ok(),
            () = news.notified(), if is_heard => {}
            () = hub.joined.notified() => {}
            () = sleep(POLL) => {}
        }
        sleep_until(again).await;
        match within(READ_LIMIT, hub.follow()).await {
            Ok(true) => again = Instant::now() + apart(hub.feed.listeners_to_everything()),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the log cannot be followed now");
                sleep(POLL).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_watch_everything_the_less_often_they_are_woken_up_to_a_limit() {
        assert_eq!([0, 1, 66].map(apart), [APART; 3]);
        assert_eq!(apart(200), Duration::from_millis(60));
        assert_eq!([334, 10_000, usize::MAX].map(apart), [APART_AT_MOST; 3]);
    }
}
