//! The pool's row: the queue that every writer stands in, and the log's counter.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;

/// The pool that every server is in until there are more.
pub const DEFAULT_POOL: i16 = 1;

/// Where a pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolState {
    /// The history of the log.
    pub epoch: Uuid,
    /// The number of the newest event.
    pub last_sequence: i64,
    /// Retention dropped the events up to this one.
    pub compacted_sequence: i64,
    /// Counts changes of the inventory and of usage.
    pub inventory_revision: i64,
    /// Counts what was written by hand past the log.
    pub edit_count: i64,
    /// The database's time: replicas must agree on which ports rest and which reports are stale.
    pub now: OffsetDateTime,
}

/// Locks the pool's row until the transaction ends, and reads it. What else is to be read must be read in a later statement: a
/// statement's snapshot is older than the lock that it waits for.
///
/// # Errors
/// [`StoreError::Busy`] when the lock cannot be had in time; [`StoreError::Unavailable`].
pub async fn lock(conn: &mut PgConnection) -> Result<PoolState, StoreError> {
    Ok(sqlx::query_as!(
        PoolState,
        r#"
        SELECT epoch, last_sequence, compacted_sequence, inventory_revision, edit_count, clock_timestamp() AS "now!"
        FROM pools WHERE pool_id = $1 FOR UPDATE
        "#,
        DEFAULT_POOL
    )
    .fetch_one(conn)
    .await?)
}

/// Reads where the pool stands.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(conn: &mut PgConnection) -> Result<PoolState, StoreError> {
    Ok(sqlx::query_as!(
        PoolState,
        r#"
        SELECT epoch, last_sequence, compacted_sequence, inventory_revision, edit_count, clock_timestamp() AS "now!"
        FROM pools WHERE pool_id = $1
        "#,
        DEFAULT_POOL
    )
    .fetch_one(conn)
    .await?)
}

/// Reads the key that signs tokens.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find_token_key(conn: &mut PgConnection) -> Result<Vec<u8>, StoreError> {
    Ok(sqlx::query_scalar!("SELECT token_key FROM pools WHERE pool_id = $1", DEFAULT_POOL)
        .fetch_one(conn)
        .await?)
}
