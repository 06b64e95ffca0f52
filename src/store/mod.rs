//! Postgres: one file for each aggregate. The tables are the truth and their constraints the guard; see `migrations/`.
//!
//! Functions borrow a connection; transactions are begun and committed by the allocator alone: the combiner's by `write`, those
//! beside it by [`Store::begin_snapshot`], [`Store::begin_load`] and [`Store::begin_upkeep`].

pub mod abandoned;
mod actors;
pub mod allocations;
pub mod batches;
pub mod changes;
pub mod error;
pub mod events;
mod grants;
pub mod hints;
pub mod leases;
mod migrations;
mod own;
pub mod placements;
pub mod pools;
pub mod ports;
pub mod servers;
mod sessions;
pub mod usage;
pub mod waiters;
mod write;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions as _, Executor as _, PgConnection, PgPool, Postgres, Transaction, pool::PoolConnection,
    postgres::PgConnectOptions,
};

pub use self::{
    error::{StoreError, within},
    migrations::MIGRATOR,
    own::Kept,
    write::{WriteTransaction, read_clock, write_planned},
};
use self::{
    hints::HintListener,
    own::Own,
    sessions::{PLAN_ONCE, PLAN_ONCE_AND_WRITE, PREFER_INDEXES},
};

/// What our sessions are called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "resource-allocator";

/// What reads a whole table is faster by its pages, and with memory to gather what it reads; then as before again.
const READ_WHOLE_TABLES: &str = "SET LOCAL enable_seqscan = on; SET LOCAL work_mem = '64MB'";
const READ_ROWS_AGAIN: &str = "SET LOCAL enable_seqscan = off; SET LOCAL work_mem TO DEFAULT";

macro_rules! begin_snapshot {
    () => {
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '20s'; \
         SET LOCAL idle_in_transaction_session_timeout = '20s'"
    };
}
const BEGIN_SNAPSHOT: &str = begin_snapshot!();

/// Pages of a table are read by its index, each from where the last one ended, also where the planner knows nothing of the table:
/// with the start at hand it would then sort all that is left.
const BEGIN_LOAD: &str = concat!(begin_snapshot!(), "; SET LOCAL plan_cache_mode = force_generic_plan");

/// Prepares a transaction for reading whole tables, or for what it did before.
///
/// # Errors
/// [`StoreError`].
pub async fn read_whole_tables(conn: &mut PgConnection, whole: bool) -> Result<(), StoreError> {
    conn.execute(if whole { READ_WHOLE_TABLES } else { READ_ROWS_AGAIN }).await?;
    Ok(())
}

/// Where a connection leads, without credentials.
#[must_use]
pub fn place(connect: &PgConnectOptions) -> String {
    let server = match connect.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", connect.get_host(), connect.get_port()),
    };
    format!("`{}` at {server}", connect.get_database().unwrap_or_else(|| connect.get_username()))
}

/// How the database is reached.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The connection.
    pub connect: PgConnectOptions,
    /// The most connections that are held, at least 7: the combiner, the reader, the follower, the tailer, the ear for other
    /// replicas and health have one each of their own, and all else shares the others.
    pub max_connections: u32,
    /// How long a request waits for a connection.
    pub acquire_timeout: Duration,
}

/// Connections. What others do with those that are shared, such as a thousand watchers that read the history, cannot keep the
/// combiner, the reader, the follower, the tailer or health from theirs.
#[derive(Debug, Clone)]
pub struct Store {
    shared: PgPool,
    combiner: PgPool,
    /// The process of Postgres at the other end of the combiner's connection, 0 while there is none.
    combiner_pid: Arc<AtomicI32>,
    reader: PgPool,
    follower: Own,
    tailer: Own,
    health: Own,
    /// When Postgres last answered over the connection of health.
    answered: Arc<Mutex<Option<Instant>>>,
}

/// How many connections are not shared.
const OWN: u32 = 6;
/// How long ago Postgres may have answered health for it to be one that answers: health asks every second, and whoever waits for a
/// connection that the database does not give waits for longer.
const LATELY: Duration = Duration::from_secs(2);

impl Store {
    /// Prepares the connections; connects when first used.
    #[must_use]
    pub fn new(options: StoreOptions) -> Self {
        let connect = options
            .connect
            .application_name(APPLICATION_NAME)
            .log_statements(tracing::log::LevelFilter::Trace)
            .log_slow_statements(tracing::log::LevelFilter::Warn, Duration::from_secs(1));
        let acquire_timeout = options.acquire_timeout;
        let alone = |settings| sessions::pool(&connect, acquire_timeout, 1, settings);
        let shared = options.max_connections.saturating_sub(OWN).max(1);
        Self {
            shared: sessions::tested_pool(&connect, acquire_timeout, shared, PREFER_INDEXES),
            // One each, in use all the time. To test it would be a round trip for each batch; a broken one shows itself at once.
            combiner: alone(PLAN_ONCE_AND_WRITE),
            combiner_pid: Arc::default(),
            reader: alone(PLAN_ONCE),
            follower: Own::new(alone(PREFER_INDEXES)),
            tailer: Own::new(alone(PREFER_INDEXES)),
            health: Own::new(alone(PREFER_INDEXES)),
            answered: Arc::default(),
        }
    }

    /// Whether the database answers, and takes what is written.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut conn = self.health.acquire().await?;
        // Where it takes none, the connection is not kept: the name may lead to the primary by now, and a setting holds for those that
        // are new.
        sessions::refuse_read_only(&mut conn).await?;
        conn.keep();
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    /// Ends sessions of replicas that are gone, as [`abandoned::end`] has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_abandoned(&self) -> Result<i64, StoreError> {
        let mut conn = self.health.acquire().await?;
        let ended = abandoned::end(&mut conn).await?;
        conn.keep();
        Ok(ended)
    }

    /// A connection for reads of one statement each.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Overloaded`] when none can be had in time.
    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.shared.acquire().await.map_err(|error| self.why_none(error))
    }

    /// Why no shared connection could be had: a database that answers is not one that cannot be reached.
    fn why_none(&self, error: sqlx::Error) -> StoreError {
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = answered.is_some_and(|answered| answered.elapsed() < LATELY);
        match error {
            sqlx::Error::PoolTimedOut if answers => {
                StoreError::Overloaded { limit: self.shared.options().get_max_connections() }
            }
            error => error.into(),
        }
    }

    /// The connection of the reader, which keeps it too.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be had in time.
    pub async fn acquire_for_reader(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        own::acquire_alone(&self.reader).await
    }

    /// The connection of those who follow the log to keep the fleet near where the pool stands.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be had in time.
    pub async fn acquire_for_follower(&self) -> Result<Kept<'_>, StoreError> {
        self.follower.acquire().await
    }

    /// The connection of the tailer.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be had in time.
    pub async fn acquire_for_tailer(&self) -> Result<Kept<'_>, StoreError> {
        self.tailer.acquire().await
    }

    /// Listens to the hints of other replicas, over a connection of its own.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when there is no connection.
    pub async fn listen(&self) -> Result<HintListener, StoreError> {
        HintListener::connect(&self.shared.connect_options()).await
    }

    /// The connection of the combiner, which keeps it: each that is given back to its pool costs a round trip, for it is tested.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be had in time.
    pub async fn acquire_for_combiner(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.combiner_pid.store(0, Ordering::Relaxed);
        let mut conn = own::acquire_alone(&self.combiner).await?;
        self.combiner_pid.store(abandoned::read_pid(&mut conn).await?, Ordering::Relaxed);
        Ok(conn)
    }

    /// Whether Postgres works for the combiner, or did within five seconds. Where it does not, and the combiner waits for an answer,
    /// each waits for the other: the host between them, or the one that Postgres was on, is gone without a word.
    ///
    /// # Errors
    /// [`StoreError`], where nobody knows.
    pub async fn hears_combiner(&self) -> Result<bool, StoreError> {
        match self.combiner_pid.load(Ordering::Relaxed) {
            0 => Ok(true),
            pid => {
                let mut conn = self.health.acquire().await?;
                let is_heard = abandoned::is_heard(&mut conn, pid).await?;
                conn.keep();
                Ok(is_heard)
            }
        }
    }

    /// Begins a transaction that writes beside the combiner, with the same limits.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Overloaded`] when no connection can be had.
    #[expect(clippy::disallowed_methods, reason = "where the allocator begins transactions")]
    pub async fn begin_upkeep(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        self.shared.begin_with(write::BEGIN_UPKEEP).await.map_err(|error| self.why_none(error))
    }

    /// Begins a transaction whose reads all see one state.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Overloaded`] when no connection can be had.
    pub async fn begin_snapshot(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        self.begin_reading(BEGIN_SNAPSHOT).await
    }

    /// The same, to read whole tables, a page at a time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Overloaded`] when no connection can be had.
    pub async fn begin_load(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        self.begin_reading(BEGIN_LOAD).await
    }

    #[expect(clippy::disallowed_methods, reason = "where the allocator begins transactions")]
    async fn begin_reading(
        &self,
        statement: &'static str,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        let shared = self.shared.clone();
        // In a task of its own, which goes on when the caller hangs up. sqlx takes no note of a BEGIN before its answer is there,
        // so one that is given up on its way leaves the connection to others inside of the snapshot, for them to read what was.
        match tokio::spawn(async move { shared.begin_with(statement).await }).await {
            Ok(begun) => begun.map_err(|error| self.why_none(error)),
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(StoreError::from(sqlx::Error::PoolClosed)),
            },
        }
    }

    /// How many connections each pool has, and how many of them are idle.
    #[must_use]
    pub fn connections(&self) -> [(&'static str, usize, usize); 6] {
        [
            ("shared", &self.shared),
            ("combiner", &self.combiner),
            ("reader", &self.reader),
            ("follower", &self.follower.pool),
            ("tailer", &self.tailer.pool),
            ("health", &self.health.pool),
        ]
        .map(|(name, pool)| (name, usize::try_from(pool.size()).unwrap_or(usize::MAX), pool.num_idle()))
    }

    /// Closes the combiner's connection, where it was made: a connection is of the runtime that made it.
    pub async fn close_combiner(&self) {
        self.combiner.close().await;
    }

    /// Closes the reader's connection.
    pub async fn close_reader(&self) {
        self.reader.close().await;
    }

    /// Closes every connection.
    pub async fn close(&self) {
        for own in [&self.follower, &self.tailer, &self.health] {
            own.close().await;
        }
        for pool in [&self.shared, &self.combiner, &self.reader] {
            pool.close().await;
        }
    }
}
