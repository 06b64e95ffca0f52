//! The combiner's transaction: begun, limited and put into the pool's queue in one round trip.

use std::ops::{Deref, DerefMut};

use sqlx::{Executor as _, FromRow as _, PgConnection, Postgres, pool::PoolConnection};

use super::{
    StoreError,
    pools::{self, PoolState, with_pool_columns},
};

/// How long a transaction that writes may wait for a lock, run a statement, and sit idle. They are the fence: a replica that
/// freezes while it holds the pool's row loses its session, and its later commit fails.
macro_rules! begin {
    () => {
        "BEGIN; \
         SET LOCAL lock_timeout = '10s'; \
         SET LOCAL statement_timeout = '20s'; \
         SET LOCAL idle_in_transaction_session_timeout = '5s'; \
         SET LOCAL resource_allocator.writer = 'service'"
    };
}

/// Begins a transaction that writes beside the combiner.
pub(super) const BEGIN_UPKEEP: &str = begin!();

macro_rules! begin_and_lock {
    ($columns:tt) => {
        concat!(
            begin!(),
            "; SELECT ",
            $columns,
            ", clock_timestamp() AS now FROM pools WHERE pool_id = 1 FOR UPDATE"
        )
    };
}

/// Begins a transaction of the combiner and waits for the default pool's row. Statements that are sent together cannot have
/// parameters.
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
        let row = sqlx::raw_sql(BEGIN_AND_LOCK).fetch_one(&mut **transaction.conn).await?;
        let pool = pools::Row::from_row(&row)?.into();
        Ok((transaction, pool))
    }

    /// Commits.
    ///
    /// # Errors
    /// [`StoreError`]; whether it was committed is not known where the connection broke.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        // A transaction in which something failed answers `ROLLBACK`, which is no error to Postgres.
        let committed = self.conn.execute("COMMIT").await.map(|_| ());
        // The guard that is taken out: a commit whose answer is lost is no failure.
        #[cfg(feature = "without-guards")]
        let committed = committed.or(Ok::<(), sqlx::Error>(()));
        committed?;
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
