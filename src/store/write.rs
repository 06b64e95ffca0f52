//! The combiner's transactions: one that is begun and put into the pool's queue in one round trip, and a batch that is a
//! transaction by itself.

use std::ops::{Deref, DerefMut};

use sqlx::{Executor as _, FromRow as _, PgConnection, Postgres, pool::PoolConnection};
use time::OffsetDateTime;
use tracing::Instrument as _;

use super::{
    BEGIN_LOAD, StoreError,
    batches::{self, Batch, Expected},
    pools::{self, PoolState, with_pool_columns},
};
use crate::traced;

/// How long a transaction that writes may wait for a lock, run a statement, and sit idle; said of a transaction (`SET LOCAL`) or
/// of a connection (`SET`). They are the fence: a replica that freezes while it holds the pool's row loses its session, and its
/// later commit fails. Whoever waits for the row waits for longer than one that is frozen can have it.
macro_rules! settings {
    ($set:literal) => {
        concat!(
            $set,
            " lock_timeout = '6s'; ",
            $set,
            " statement_timeout = '20s'; ",
            $set,
            " idle_in_transaction_session_timeout = '5s'; ",
            $set,
            " resource_allocator.writer = 'service'"
        )
    };
}
pub(super) use settings;

/// Begins a transaction that writes beside the combiner.
/// It may wait for a batch between two statements, while it holds nothing that anybody wants.
pub(super) const BEGIN_UPKEEP: &str =
    concat!("BEGIN; ", settings!("SET LOCAL"), "; SET LOCAL idle_in_transaction_session_timeout = '60s'");

macro_rules! begin_and_lock {
    ($columns:tt) => {
        concat!(
            "BEGIN; WITH pool AS MATERIALIZED (SELECT ",
            $columns,
            " FROM pools WHERE pool_id = 1 FOR UPDATE) SELECT *, clock_timestamp() AS now FROM pool"
        )
    };
}

/// Begins a transaction of the combiner and waits for the default pool's row. The time is that at which the row is had: in one query
/// with the lock it would be that at which the wait began. Statements that are sent together cannot have parameters.
const BEGIN_AND_LOCK: &str = with_pool_columns!(begin_and_lock);

/// A transaction that holds the pool's row. Unless it is committed, its connection is closed when that is dropped, and Postgres
/// rolls it back: also where whoever ran it gave up in the middle of a statement.
#[derive(Debug)]
pub struct WriteTransaction<'c> {
    conn: &'c mut PoolConnection<Postgres>,
    open: bool,
}

impl<'c> WriteTransaction<'c> {
    /// Begins, with its time limits, and waits for the pool's row; returns the transaction with the pool as it stands. What else
    /// is to be read must be read in a later statement: a statement's snapshot is older than the lock that it waits for.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when the row cannot be had in time; [`StoreError::Unavailable`].
    pub async fn begin(conn: &'c mut PoolConnection<Postgres>) -> Result<(Self, PoolState), StoreError> {
        let transaction = Self { conn, open: true };
        let statement = traced::statement("BEGIN", "BEGIN; SELECT pools FOR UPDATE");
        let row =
            sqlx::raw_sql(BEGIN_AND_LOCK).fetch_one(&mut **transaction.conn).instrument(statement).await?;
        let pool = pools::Row::from_row(&row)?.into();
        Ok((transaction, pool))
    }

    /// Begins a snapshot that whole tables are read in, before the row is waited for.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin_load(conn: &'c mut PoolConnection<Postgres>) -> Result<Self, StoreError> {
        let transaction = Self { conn, open: true };
        transaction.conn.execute(BEGIN_LOAD).await?;
        Ok(transaction)
    }

    /// Commits.
    ///
    /// # Errors
    /// [`StoreError`]; whether it was committed is not known where the connection broke.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        // A transaction in which something failed answers `ROLLBACK`, which is no error to Postgres.
        let statement = traced::statement("COMMIT", "COMMIT");
        let committed = self.conn.execute("COMMIT").instrument(statement).await.map(|_| ());
        // The guard that is taken out: a commit whose answer is lost is no failure.
        #[cfg(feature = "without-guards")]
        let committed = committed.or(Ok::<(), sqlx::Error>(()));
        committed?;
        self.open = false;
        Ok(())
    }

    /// Gives it up, and keeps the connection.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; nothing is committed then either.
    pub async fn rollback(mut self) -> Result<(), StoreError> {
        self.conn.execute("ROLLBACK").instrument(traced::statement("ROLLBACK", "ROLLBACK")).await?;
        self.open = false;
        Ok(())
    }
}

impl Deref for WriteTransaction<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn
    }
}

impl DerefMut for WriteTransaction<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.conn
    }
}

impl Drop for WriteTransaction<'_> {
    fn drop(&mut self) {
        if self.open {
            self.conn.close_on_drop();
        }
    }
}

/// Asks the database what time it is, by a connection that may have broken while it lay idle.
///
/// # Errors
/// [`StoreError`].
pub async fn read_clock(conn: &mut PgConnection) -> Result<OffsetDateTime, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(conn).await?)
}

/// Writes a batch that was planned before the pool's row was had, in one statement, which is a transaction of its own; returns the
/// database's time, or none where someone else has the row or the pool stands elsewhere than is expected, and nothing was
/// written. Where this is given up in the middle, the connection is closed.
///
/// # Errors
/// [`StoreError`]; whether the batch was committed is not known where the connection broke.
pub async fn write_planned(
    conn: &mut PoolConnection<Postgres>,
    batch: &Batch,
    expected: &Expected,
) -> Result<Option<OffsetDateTime>, StoreError> {
    let mut statement = WriteTransaction { conn, open: true };
    let written = batches::insert(&mut statement, batch, Some(expected)).await;
    // What Postgres refused it also rolled back.
    statement.open = matches!(&written, Err(StoreError::Unavailable(_) | StoreError::Driver(_)));
    written
}
