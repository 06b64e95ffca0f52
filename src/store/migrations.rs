//! The schema: this release's migrations, and which of them were applied.

use std::time::Duration;

use sqlx::{
    Connection as _, Executor as _, PgConnection,
    error::DatabaseError,
    migrate::{MigrateError, Migrator},
    pool::PoolConnection,
    postgres::PgPoolOptions,
};

use super::{Store, StoreError, sessions::MIGRATE};

/// The migrations of this release.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// How long a start tries once more to learn why the database cannot be reached.
const LAST_TRY: Duration = Duration::from_secs(3);

/// How often a migration is tried. Each time takes Postgres a second to find out (`deadlock_timeout`).
const TRIES: u32 = 10;
/// Postgres' code for it.
const DEADLOCK_DETECTED: &str = "40P01";

/// Postgres' code for a lock that was waited for in vain.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// How long others may go on before it is waited for once more: at first, and at the most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A migration that was applied, as sqlx notes it.
#[derive(sqlx::FromRow)]
struct Applied {
    version: i64,
    checksum: Vec<u8>,
    success: bool,
}

impl Store {
    /// Applies what is missing of this release's migrations. Replicas that start at once wait for each other. A migration that
    /// Postgres ends because others, such as replicas of the release before, read the tables in another order is tried again, and
    /// so is one that others hold up, such as a dump, for as long as they do.
    ///
    /// # Errors
    /// [`MigrateError`], of which `VersionMissing` says that a newer release migrated this database.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        let shared = self.shared.options();
        // A pool for the sake of its patience with a database that is not there yet. Where it takes no writes, the migration says so.
        let patient = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(shared.get_acquire_timeout())
            .connect_lazy_with((*self.shared.connect_options()).clone());
        let acquired = patient.acquire().await.map(PoolConnection::detach);
        let mut conn = match acquired {
            // The pool, which tried until its time was over, does not say what it met.
            Err(sqlx::Error::PoolTimedOut) => self.connect_past_the_pool().await?,
            acquired => acquired?,
        };
        conn.execute(MIGRATE).await?;
        // On one connection, which keeps other replicas from migrating until it is closed.
        let mut others = 1..TRIES;
        let mut pause = PAUSES.0;
        loop {
            match MIGRATOR.run(&mut conn).await {
                Err(error) if has_code(&error, LOCK_NOT_AVAILABLE) => {
                    tracing::warn!(%error, "a migration waits for others, and is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Err(error) if has_code(&error, DEADLOCK_DETECTED) && others.next().is_some() => {
                    tracing::warn!(%error, "a migration stood in the way of others, and is tried again");
                }
                result => return result,
            }
        }
    }

    /// The migrations of this release that were not applied, in their order; changes nothing.
    ///
    /// # Errors
    /// [`MigrateError`], as [`Self::migrate`] has it.
    pub async fn missing_migrations(&self) -> Result<Vec<i64>, MigrateError> {
        let applied = list_applied(&mut self.connect_past_the_pool().await?).await?;
        for Applied { version, checksum, success } in &applied {
            let ours = MIGRATOR.iter().find(|migration| migration.version == *version);
            match ours {
                None => return Err(MigrateError::VersionMissing(*version)),
                Some(ours) if *ours.checksum != **checksum => {
                    return Err(MigrateError::VersionMismatch(*version));
                }
                Some(_) if !success => return Err(MigrateError::Dirty(*version)),
                Some(_) => {}
            }
        }
        let is_applied = |version| applied.iter().any(|applied| applied.version == version);
        Ok(MIGRATOR
            .iter()
            .map(|migration| migration.version)
            .filter(|version| !is_applied(*version))
            .collect())
    }

    /// The newest migration that was applied; none where none was.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database does not answer.
    pub async fn newest_migration(&self) -> Result<Option<i64>, StoreError> {
        let applied = list_applied(&mut *self.shared.acquire().await?).await?;
        Ok(applied.iter().filter(|applied| applied.success).map(|applied| applied.version).max())
    }

    async fn connect_past_the_pool(&self) -> Result<PgConnection, sqlx::Error> {
        let options = self.shared.connect_options();
        let connecting = tokio::time::timeout(LAST_TRY, PgConnection::connect_with(&options));
        connecting.await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }
}

/// Whether Postgres ended a migration with this code.
fn has_code(error: &MigrateError, code: &str) -> bool {
    let (MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) = error else {
        return false;
    };
    source.as_database_error().and_then(DatabaseError::code).as_deref() == Some(code)
}

/// Every migration that was applied, in their order.
async fn list_applied(conn: &mut PgConnection) -> Result<Vec<Applied>, sqlx::Error> {
    // The table is sqlx's own, and not there before the first migration.
    let known: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await?;
    if !known {
        return Ok(Vec::new());
    }
    sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")
        .fetch_all(conn)
        .await
}
