//! The table `waiters`: the line of those who wait for capacity.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, actors, pools::DEFAULT_POOL};
use crate::domain::{ProjectId, Reason, line::Waiter};

/// A place in line, as it is listed.
#[derive(Debug, Clone)]
pub struct WaiterRecord {
    /// The place, from 1.
    pub place: i64,
    /// Who stands there.
    pub waiter: Waiter,
}

struct Row {
    project_id: String,
    arrival: i64,
    caller: Uuid,
    request: Json<Box<RawValue>>,
    reason: String,
    request_id: String,
    since: OffsetDateTime,
    deadline: OffsetDateTime,
    absent_since: Option<OffsetDateTime>,
    place: i64,
}

impl TryFrom<Row> for WaiterRecord {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let broken = |problem: String| StoreError::inconsistent("waiters", row.project_id.clone(), problem);
        let project_id =
            ProjectId::parse(&row.project_id).map_err(|error| broken(format!("project_id: {error}")))?;
        let reason: Reason = serde_json::from_value(row.reason.clone().into())
            .map_err(|error| broken(format!("reason: {error}")))?;
        let waiter = Waiter {
            project_id,
            actor: actors::find(row.request.0.get()),
            request: serde_json::from_str(row.request.0.get())
                .map_err(|error| broken(format!("request: {error}")))?,
            request_id: row.request_id,
            arrival: row.arrival,
            caller: row.caller,
            reason,
            since: row.since,
            deadline: row.deadline,
            absent_since: row.absent_since,
        };
        Ok(Self { place: row.place, waiter })
    }
}

/// Reads the whole line, those whose place is kept among them.
///
/// # Errors
/// [`StoreError`].
pub async fn list_all(conn: &mut PgConnection) -> Result<Vec<Waiter>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT project_id, arrival, caller, request AS "request: Json<Box<RawValue>>", reason, request_id, since, deadline,
               absent_since, 0::bigint AS "place!"
        FROM waiters WHERE pool_id = $1 ORDER BY arrival
        "#,
        DEFAULT_POOL
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(|row| WaiterRecord::try_from(row).map(|record| record.waiter)).collect()
}

/// Reads a page of the line, after the place that was taken by the operation `after`.
///
/// # Errors
/// [`StoreError`].
pub async fn list(
    conn: &mut PgConnection,
    project_id: Option<&str>,
    after: i64,
    limit: i64,
) -> Result<Vec<WaiterRecord>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT w.project_id, w.arrival, w.caller, w.request AS "request: Json<Box<RawValue>>", w.reason, w.request_id, w.since,
               w.deadline, w.absent_since, w.place AS "place!"
        FROM (SELECT *, row_number() OVER (ORDER BY arrival) AS place
              FROM waiters WHERE pool_id = $1 AND absent_since IS NULL) AS w
        WHERE w.arrival > $2 AND ($3::text IS NULL OR w.project_id = $3)
        ORDER BY w.arrival LIMIT $4
        "#,
        DEFAULT_POOL,
        after,
        project_id,
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(WaiterRecord::try_from).collect()
}

fn encode(value: &impl Serialize, waiter: &Waiter) -> Result<String, StoreError> {
    actors::encode(value, &waiter.actor)
        .map_err(|error| StoreError::inconsistent("waiters", waiter.project_id.to_string(), error))
}

/// Writes places as they are now, new ones and known ones.
///
/// # Errors
/// [`StoreError`].
pub async fn insert_or_update(conn: &mut PgConnection, waiters: &[&Waiter]) -> Result<(), StoreError> {
    let column =
        |of: fn(&Waiter) -> String| -> Vec<String> { waiters.iter().map(|waiter| of(waiter)).collect() };
    let time = |of: fn(&Waiter) -> OffsetDateTime| -> Vec<OffsetDateTime> {
        waiters.iter().map(|waiter| of(waiter)).collect()
    };
    let requests: Result<Vec<_>, _> = waiters.iter().map(|waiter| encode(&waiter.request, waiter)).collect();
    let arrivals: Vec<i64> = waiters.iter().map(|waiter| waiter.arrival).collect();
    let callers: Vec<Uuid> = waiters.iter().map(|waiter| waiter.caller).collect();
    let absent: Vec<Option<OffsetDateTime>> = waiters.iter().map(|waiter| waiter.absent_since).collect();
    sqlx::query!(
        r#"
        INSERT INTO waiters (pool_id, project_id, arrival, caller, request, reason, request_id, since, deadline, absent_since)
        SELECT $1, n.project_id, n.arrival, n.caller, n.request::jsonb, n.reason, n.request_id, n.since, n.deadline,
               n.absent_since
        FROM unnest($2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::timestamptz[],
            $9::timestamptz[], $10::timestamptz[])
            AS n (project_id, arrival, caller, request, reason, request_id, since, deadline, absent_since)
        ON CONFLICT (project_id) DO UPDATE SET arrival = excluded.arrival, caller = excluded.caller,
            request = excluded.request, reason = excluded.reason, request_id = excluded.request_id, since = excluded.since,
            deadline = excluded.deadline, absent_since = excluded.absent_since
        "#,
        DEFAULT_POOL,
        &column(|waiter| waiter.project_id.to_string()),
        &arrivals,
        &callers,
        &requests?,
        &column(|waiter| waiter.reason.as_str().to_owned()),
        &column(|waiter| waiter.request_id.clone()),
        &time(|waiter| waiter.since),
        &time(|waiter| waiter.deadline),
        &absent as &[Option<OffsetDateTime>]
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes places; one that is not there is as it should be.
///
/// # Errors
/// [`StoreError`].
pub async fn delete(conn: &mut PgConnection, project_ids: &[String]) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM waiters WHERE project_id = ANY($1)", project_ids).execute(conn).await?;
    Ok(())
}
