//! Connections that one user has to itself. What many do with those that are shared cannot keep it from its own.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::sync::{Mutex, MutexGuard};

use super::StoreError;

/// A connection that is kept from one use to the next: to give it back to its pool costs a round trip, for it is tested.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) pool: PgPool,
    kept: Arc<Mutex<Option<PoolConnection<Postgres>>>>,
}

impl Own {
    /// Has a pool of one connection.
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, kept: Arc::default() }
    }

    /// The connection, once nobody else uses it.
    pub(super) async fn acquire(&self) -> Result<Kept<'_>, StoreError> {
        let mut kept = self.kept.lock().await;
        if kept.is_none() {
            *kept = Some(acquire_alone(&self.pool).await?);
        }
        Ok(Kept { kept, is_good: false })
    }

    /// Closes it.
    pub(super) async fn close(&self) {
        self.kept.lock().await.take();
        self.pool.close().await;
    }
}

/// A connection that is closed when it is dropped. One whose user gave up on it in the middle of a statement would else be asked,
/// before anyone has it again, whether it is still there; where the host behind it is gone without a word, that takes a quarter
/// of an hour, and the pool has no other.
pub(super) async fn acquire_alone(pool: &PgPool) -> Result<PoolConnection<Postgres>, StoreError> {
    let mut conn = pool.acquire().await?;
    conn.close_on_drop();
    Ok(conn)
}

/// A connection in use. It is closed unless it is said that it may be kept.
#[derive(Debug)]
pub struct Kept<'a> {
    kept: MutexGuard<'a, Option<PoolConnection<Postgres>>>,
    is_good: bool,
}

impl Kept<'_> {
    /// Keeps it for the next use: each statement was answered.
    pub fn keep(mut self) {
        self.is_good = true;
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if !self.is_good {
            self.kept.take();
        }
    }
}

impl Deref for Kept<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.kept.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Kept<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.kept.as_mut().expect("it is there until it is dropped")
    }
}
