//! The tailer: follows the log and hands each operation to every watcher of this replica.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use sqlx::PgConnection;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Announced, feed::Feed, hints, shared::Batch};
use crate::{
    domain::event::LogEntry,
    store::{
        Store, StoreError, events,
        pools::{self, PoolState},
        within,
    },
};

/// How often the log is looked at. What this replica commits is handed round once it is committed, and what another one commits is
/// looked at when that one says so: but a hint may be lost, and this is the truth.
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

/// A place in the log.
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
    /// The highest number that a watcher of this replica has seen in the log, which may be past what was handed round.
    seen: Arc<AtomicI64>,
    /// Tells the tailer that someone listens.
    pub(super) joined: Arc<Notify>,
    pub(super) shutdown: CancellationToken,
}

impl Hub {
    /// Starts the tailer of what this replica announces and the log holds; it ends with `shutdown`.
    #[must_use]
    pub fn start(
        store: Store,
        options: WatchOptions,
        announced: Announced,
        shutdown: CancellationToken,
    ) -> Self {
        let hub = Self {
            store,
            options,
            feed: Feed::new(),
            position: watch::Sender::new(None),
            seen: Arc::default(),
            joined: Arc::default(),
            shutdown,
        };
        let news = Arc::new(Notify::new());
        if options.commit_hints {
            let (store, shutdown, replica) = (&hub.store, &hub.shutdown, Uuid::now_v7());
            tokio::spawn(hints::hear(store.clone(), replica, Arc::clone(&news), shutdown.clone()));
            tokio::spawn(hints::give(store.clone(), replica, announced.news.clone(), shutdown.clone()));
        }
        tokio::spawn(tail(hub.clone(), announced, news));
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

    /// Hands round what this replica announced and nobody else came before; whether there was anything, and whether it leads to where
    /// this replica has committed, so that nothing needs to be looked for.
    fn follow_announced(&self, announced: &Announced) -> (bool, bool) {
        let Some(mut at) = *self.position.borrow() else { return (false, false) };
        let (entries, newest) = announced.take_after(at);
        let handed = !entries.is_empty();
        if let Some(last) = entries.last() {
            at.sequence = last.last_sequence();
            self.hand_round(at, entries);
        }
        (handed, newest == Some(at))
    }

    /// Hands round what was committed since the last time; whether there was anything and anyone.
    async fn follow(&self) -> Result<bool, StoreError> {
        let mut conn = self.store.acquire_for_tailer().await?;
        let handed = self.follow_by(&mut conn).await?;
        conn.keep();
        Ok(handed)
    }

    async fn follow_by(&self, conn: &mut PgConnection) -> Result<bool, StoreError> {
        // In this order: whatever was seen before is there when it is looked for.
        let seen = self.seen.load(Ordering::SeqCst);
        let pool = pools::find(conn).await?;
        let Some(mut at) = *self.position.borrow() else {
            // Whoever joined before this first look sees for itself what came since.
            self.lose_thread(&pool);
            return Ok(false);
        };
        if at.epoch != pool.epoch || at.sequence.max(seen) > pool.last_sequence {
            tracing::warn!(
                sequence = pool.last_sequence,
                "the log was restarted: another history goes on from here"
            );
            self.seen.store(pool.last_sequence, Ordering::SeqCst);
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
            self.hand_round(at, entries);
            handed = true;
        }
        Ok(handed)
    }

    /// Hands round operations that lead to a position.
    fn hand_round(&self, to: Position, entries: Vec<LogEntry>) {
        let mut entries = entries.into_iter();
        while let Some(batch) = Batch::new(to.epoch, entries.by_ref().take(BATCH)) {
            self.feed.send(batch);
        }
        // Only now: whoever has taken all that was handed round has everything up to here.
        self.move_to(to);
    }

    /// Goes on from the end of the log, and has every watcher see for itself what lies between.
    fn lose_thread(&self, pool: &PoolState) {
        // In this order: a watcher that finds the tailer further on has been told before that there is something to see.
        self.feed.lose_thread();
        self.move_to(Position { epoch: pool.epoch, sequence: pool.last_sequence });
    }

    /// Looks for a watcher where the log stands, and takes up what it saw: where the log is set back behind that, the tailer must
    /// notice, though it may not have come so far itself.
    pub(super) async fn look(&self, conn: &mut PgConnection) -> Result<PoolState, StoreError> {
        let pool = pools::find(conn).await?;
        self.seen.fetch_max(pool.last_sequence, Ordering::SeqCst);
        Ok(pool)
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

async fn tail(hub: Hub, mut announced: Announced, news: Arc<Notify>) {
    let mut allocator_lives = true;
    let mut again = Instant::now();
    loop {
        // Where nobody listens, the round is enough.
        let is_heard = hub.feed.is_heard();
        if !is_heard {
            announced.ignore();
        }
        let is_ours = tokio::select! {
            () = hub.shutdown.cancelled() => return,
            changed = announced.news.changed(), if is_heard && allocator_lives => {
                allocator_lives = changed.is_ok();
                true
            }
            () = news.notified(), if is_heard => false,
            () = hub.joined.notified() => false,
            () = sleep(POLL) => false,
        };
        sleep_until(again).await;
        announced.news.mark_unchanged();
        let (handed, is_all) = if is_heard { hub.follow_announced(&announced) } else { (false, false) };
        let followed = if is_ours && is_all {
            Ok(handed)
        } else {
            within(READ_LIMIT, hub.follow()).await.map(|read| read || handed)
        };
        match followed {
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
    use crate::{
        domain::testing,
        events::{Filter, announcements, feed::Heard},
        store::StoreOptions,
    };

    #[tokio::test]
    async fn what_this_replica_commits_is_told_without_a_look_at_the_log() {
        let epoch = Uuid::nil();
        let start = Position { epoch, sequence: 0 };
        // Nobody answers there.
        let connect = "postgres://nobody@127.0.0.1:1/none".parse().unwrap();
        let options = StoreOptions { connect, max_connections: 7, acquire_timeout: Duration::from_secs(1) };
        let hub = Hub {
            store: Store::new(options),
            options: WatchOptions::default(),
            feed: Feed::new(),
            position: watch::Sender::new(Some(start)),
            seen: Arc::default(),
            joined: Arc::default(),
            shutdown: CancellationToken::new(),
        };
        let (combiner, announced) = announcements();
        let mut listener = hub.feed.subscribe(&Filter::default());
        // Kept from here on.
        let _ = announced.take_after(start);
        let tailing = tokio::spawn(tail(hub.clone(), announced, Arc::default()));
        for number in 1..=3 {
            combiner.announce(epoch, vec![testing::released(number, "shop", "web-1")]);
            let heard = tokio::time::timeout(Duration::from_mins(1), listener.recv()).await;
            let Ok(Ok(Heard::Batch(batch))) = heard else { panic!("{heard:?}") };
            assert_eq!((batch.first_sequence(), batch.last_sequence()), (number, number));
        }
        hub.shutdown.cancel();
        tailing.await.unwrap();
        assert_eq!(*hub.position.borrow(), Some(Position { epoch, sequence: 3 }));
    }

    #[test]
    fn the_more_watch_everything_the_less_often_they_are_woken_up_to_a_limit() {
        assert_eq!([0, 1, 66].map(apart), [APART; 3]);
        assert_eq!(apart(200), Duration::from_millis(60));
        assert_eq!([334, 10_000, usize::MAX].map(apart), [APART_AT_MOST; 3]);
    }
}
