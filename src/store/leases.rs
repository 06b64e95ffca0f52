//! The leases: `placements.expire_time`, and the pool's note of when they could last be renewed.

use sqlx::{PgConnection, postgres::types::PgInterval};
use time::{Duration, OffsetDateTime};

use super::{StoreError, pools::DEFAULT_POOL};

/// How the leases stand.
#[derive(Debug, Clone, Copy)]
pub struct LeaseState {
    /// Whether there are any.
    pub any: bool,
    /// Whether one is over.
    pub over: bool,
    /// When they could last be renewed; none where there never was one.
    pub served_time: Option<OffsetDateTime>,
}

/// Reads how the leases stand.
///
/// # Errors
/// [`StoreError`].
pub async fn find(conn: &mut PgConnection, now: OffsetDateTime) -> Result<LeaseState, StoreError> {
    Ok(sqlx::query_as!(
        LeaseState,
        r#"
        SELECT EXISTS (SELECT FROM placements WHERE expire_time > '-infinity') AS "any!",
               EXISTS (SELECT FROM placements WHERE expire_time <= $2) AS "over!",
               leases_served_time AS served_time
        FROM pools WHERE pool_id = $1
        "#,
        DEFAULT_POOL,
        now
    )
    .fetch_one(conn)
    .await?)
}

/// Notes that leases can be renewed now.
///
/// # Errors
/// [`StoreError`].
pub async fn update_served_time(conn: &mut PgConnection, now: OffsetDateTime) -> Result<(), StoreError> {
    sqlx::query!("UPDATE pools SET leases_served_time = $2 WHERE pool_id = $1", DEFAULT_POOL, now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Lets leases that were not over at `since` last for longer by `by`, and until `at_least`; returns how many they are.
///
/// # Errors
/// [`StoreError`].
pub async fn update_expire_times(
    conn: &mut PgConnection,
    since: OffsetDateTime,
    by: Duration,
    at_least: OffsetDateTime,
) -> Result<u64, StoreError> {
    let microseconds = i64::try_from(by.whole_microseconds()).unwrap_or(i64::MAX);
    let by = PgInterval { months: 0, days: 0, microseconds };
    Ok(sqlx::query!(
        "UPDATE placements SET expire_time = greatest(expire_time + $2, $3) WHERE expire_time > $1",
        since,
        by,
        at_least
    )
    .execute(conn)
    .await?
    .rows_affected())
}

/// The projects whose leases are over, those first that were first, up to `limit` of them.
///
/// # Errors
/// [`StoreError`].
pub async fn list_over(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT project_id FROM placements WHERE expire_time <= $1 ORDER BY expire_time, project_id LIMIT $2",
        now,
        limit
    )
    .fetch_all(conn)
    .await?)
}
