//! Postgres: one file for each aggregate. The tables are the truth and their constraints the guard; see `migrations/`.
//!
//! Functions borrow a connection; transactions are begun and committed by the allocator alone, through [`Store::begin_write`]
//! and [`Store::begin_snapshot`].

pub mod allocations;
pub mod error;
pub mod events;
pub mod hints;
pub mod leases;
pub mod placements;
pub mod pools;
pub mod ports;
pub mod servers;
pub mod usage;
pub mod waiters;

use std::time::Duration;

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool, Postgres, Transaction,
    migrate::{MigrateError, Migrator},
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use self::error::StoreError;
use self::hints::HintListener;

/// The migrations of this release.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// How long a transaction of the write path may wait for a lock, run a statement, and sit idle. They are the fence: a replica
/// that freezes while it holds the pool's row loses its session, and its later commit fails.
const BEGIN_WRITE: &str = "BEGIN; \
    SET LOCAL lock_timeout = '10s'; \
    SET LOCAL statement_timeout = '20s'; \
    SET LOCAL idle_in_transaction_session_timeout = '5s'; \
    SET LOCAL resource_allocator.writer = 'service'";

/// Every statement of ours that is run often has its index. A plan that was cached while a table was small, or before its
/// statistics were gathered, would scan the table all the same, and go on to while it grows.
const PREFER_INDEXES: &str = "SET enable_seqscan = off";

const BEGIN_SNAPSHOT: &str =
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '20s'";

/// How long a start tries once more to learn why the database cannot be reached.
const LAST_TRY: Duration = Duration::from_secs(3);

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
    /// The most connections that are held, at least 6: the combiner, the reader, the tailer, the ear for other replicas and health
    /// have one each of their own, and all else shares the others.
    pub max_connections: u32,
    /// How long a request waits for a connection.
    pub acquire_timeout: Duration,
}

/// Connections. What others do with those that are shared, such as a thousand watchers that read the history, cannot keep the
/// combiner, the reader, the tailer or health from theirs.
#[derive(Debug, Clone)]
pub struct Store {
    shared: PgPool,
    combiner: PgPool,
    reader: PgPool,
    tailer: PgPool,
    health: PgPool,
}

/// How many connections are not shared.
const OWN: u32 = 5;

impl Store {
    /// Prepares the connections; connects when first used.
    #[must_use]
    pub fn new(options: StoreOptions) -> Self {
        let connect = options
            .connect
            .application_name("resource-allocator")
            .log_statements(tracing::log::LevelFilter::Trace)
            .log_slow_statements(tracing::log::LevelFilter::Warn, Duration::from_secs(1));
        let pool = |max_connections, tested| {
            PgPoolOptions::new()
                .max_connections(max_connections)
                .acquire_timeout(options.acquire_timeout)
                .test_before_acquire(tested)
                .after_connect(|conn, _| {
                    Box::pin(async move {
                        conn.execute(PREFER_INDEXES).await?;
                        Ok(())
                    })
                })
                .connect_lazy_with(connect.clone())
        };
        Self {
            // Many that lie idle for long: those that a Postgres which is gone has left behind must not fail one caller each.
            shared: pool(options.max_connections.saturating_sub(OWN).max(1), true),
            // One each, in use all the time. To test it would be a round trip for each batch; a broken one shows itself at once.
            combiner: pool(1, false),
            reader: pool(1, false),
            tailer: pool(1, false),
            health: pool(1, false),
        }
    }

    /// Applies what is missing of this release's migrations. Replicas that start at once wait for each other.
    ///
    /// # Errors
    /// [`MigrateError`], of which `VersionMissing` says that a newer release migrated this database.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        match MIGRATOR.run(&self.shared).await {
            // The pool, which tried until its time was over, does not say what it met.
            Err(MigrateError::Execute(sqlx::Error::PoolTimedOut)) => {
                let options = self.shared.connect_options();
                match tokio::time::timeout(LAST_TRY, PgConnection::connect_with(&options)).await {
                    Ok(Ok(mut conn)) => MIGRATOR.run(&mut conn).await,
                    Ok(Err(error)) => Err(MigrateError::Execute(error)),
                    Err(_) => Err(MigrateError::Execute(sqlx::Error::PoolTimedOut)),
                }
            }
            result => result,
        }
    }

    /// The newest migration that was applied; none where none was.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database does not answer.
    pub async fn newest_migration(&self) -> Result<Option<i64>, StoreError> {
        // The table is sqlx's own, and not there before the first migration.
        let known: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&self.shared)
            .await?;
        if !known {
            return Ok(None);
        }
        let newest = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success");
        Ok(newest.fetch_one(&self.shared).await?)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query_scalar!(r#"SELECT 1 AS "one!""#).fetch_one(&self.health).await?;
        Ok(())
    }

    /// A connection for reads of one statement each.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none can be had in time.
    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.shared.acquire().await?)
    }

    /// The connection of the reader.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be had in time.
    pub async fn acquire_for_reader(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.reader.acquire().await?)
    }

    /// The connection of the tailer.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be had in time.
    pub async fn acquire_for_tailer(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.tailer.acquire().await?)
    }

    /// Listens to the hints of other replicas, over a connection of its own.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when there is no connection.
    pub async fn listen(&self) -> Result<HintListener, StoreError> {
        HintListener::connect(&self.shared.connect_options()).await
    }

    /// Begins a transaction of the combiner, with its time limits.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no connection can be had.
    #[expect(clippy::disallowed_methods, reason = "where the allocator begins transactions")]
    pub async fn begin_write(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        Ok(self.combiner.begin_with(BEGIN_WRITE).await?)
    }

    /// Begins a transaction that writes beside the combiner, with the same limits.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no connection can be had.
    #[expect(clippy::disallowed_methods, reason = "where the allocator begins transactions")]
    pub async fn begin_upkeep(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        Ok(self.shared.begin_with(BEGIN_WRITE).await?)
    }

    /// Begins a transaction whose reads all see one state.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no connection can be had.
    #[expect(clippy::disallowed_methods, reason = "where the allocator begins transactions")]
    pub async fn begin_snapshot(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        let shared = self.shared.clone();
        // In a task of its own, which goes on when the caller hangs up. sqlx takes no note of a BEGIN before its answer is there,
        // so one that is given up on its way leaves the connection to others inside of the snapshot, for them to read what was.
        match tokio::spawn(async move { shared.begin_with(BEGIN_SNAPSHOT).await }).await {
            Ok(begun) => Ok(begun?),
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(StoreError::from(sqlx::Error::PoolClosed)),
            },
        }
    }

    /// How many connections each pool has, and how many of them are idle.
    #[must_use]
    pub fn connections(&self) -> [(&'static str, usize, usize); 5] {
        [
            ("shared", &self.shared),
            ("combiner", &self.combiner),
            ("reader", &self.reader),
            ("tailer", &self.tailer),
            ("health", &self.health),
        ]
        .map(|(name, pool)| (name, usize::try_from(pool.size()).unwrap_or(usize::MAX), pool.num_idle()))
    }

    /// Closes every connection.
    pub async fn close(&self) {
        for pool in [&self.shared, &self.combiner, &self.reader, &self.tailer, &self.health] {
            pool.close().await;
        }
    }
}
