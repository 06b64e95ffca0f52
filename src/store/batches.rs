//! What a transaction adds to placements, ports and the log, in one statement: three would be three round trips while every other
//! writer waits for the pool's row. Where that is all that a transaction does, the statement is the whole transaction.

use sqlx::PgConnection;
use time::OffsetDateTime;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    StoreError,
    events::EventColumns,
    placements::{PlacementColumns, check_count},
    pools::DEFAULT_POOL,
    ports::PortColumns,
};
use crate::traced;

/// What is written.
#[derive(Debug, Default)]
pub struct Batch {
    /// New placements.
    pub placements: PlacementColumns,
    /// Ports that are given.
    pub ports: PortColumns,
    /// What is told of it.
    pub events: EventColumns,
}

/// Where the pool must stand for a batch that was planned on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The history of the log.
    pub epoch: Uuid,
    /// The number of the newest event.
    pub last_sequence: i64,
    /// Counts changes of the inventory and of usage.
    pub inventory_revision: i64,
    /// Counts what was written by hand past the log.
    pub edit_count: i64,
    /// The database's time, as the plan took it to be. A batch that comes much later, or whose planner had another time in mind, is
    /// not written.
    pub now: OffsetDateTime,
}

/// Writes new placements, ports that are given, and operations; returns the database's time. The schema adds the placements to
/// their servers' sums and refuses what does not fit; a port that rests is taken over, one that is held or set aside is not; the
/// log is numbered by the operations, and takes no gap.
///
/// Where it is said what is expected, the pool's row is locked first. Where someone else has it, or the pool stands elsewhere,
/// nothing is written, and none is returned. All that is looked at besides is looked at by the schema's triggers and indexes, which
/// see what was committed up to then, and not only what the statement's own snapshot shows.
///
/// # Errors
/// [`StoreError`].
pub async fn insert(
    conn: &mut PgConnection,
    Batch { placements, ports, events }: &Batch,
    expected: Option<&Expected>,
) -> Result<Option<OffsetDateTime>, StoreError> {
    // The triggers of each table run at the end of the statement, when all of its rows are there.
    let written = sqlx::query!(
        r#"
        WITH pool AS (
            SELECT pool_id, epoch, last_sequence, inventory_revision, edit_count FROM pools WHERE pool_id = $19
            FOR UPDATE SKIP LOCKED
        ), as_expected AS (
            -- Looked at once the row is locked, as it then is.
            SELECT pool_id FROM pool
            WHERE $29::uuid IS NULL
               OR (epoch, last_sequence, inventory_revision, edit_count) = ($29, $30, $31, $32)
                  AND clock_timestamp() BETWEEN $33::timestamptz - interval '1 second' AND $33 + interval '5 seconds'
        ), placed AS (
            INSERT INTO placements (project_id, server_handle, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb,
                server_selector, start_port, revision, create_time, update_time, expire_time)
            SELECT n.project_id, n.server_handle, n.cpu_millis, n.ram_mb, n.disk_mb, n.server_selector::jsonb, n.start_port,
                   n.revision, n.create_time, n.update_time, n.expire_time
            FROM as_expected, unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::integer[],
                $8::bigint[], $9::timestamptz[], $10::timestamptz[], $28::timestamptz[]) AS n (project_id, server_handle,
                cpu_millis, ram_mb, disk_mb, server_selector, start_port, revision, create_time, update_time, expire_time)
            RETURNING 1
        ), given AS (
            INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module, pinned, create_time)
            SELECT n.id, n.server_handle, n.protocol::port_protocol, n.port, n.project_id, n.module, n.pinned, n.create_time
            FROM as_expected, unnest($11::uuid[], $12::text[], $13::text[], $14::integer[], $15::text[], $16::text[], $17::boolean[],
                $18::timestamptz[]) AS n (id, server_handle, protocol, port, project_id, module, pinned, create_time)
            ON CONFLICT ON CONSTRAINT port_allocations_pkey DO UPDATE
            SET id = excluded.id, project_id = excluded.project_id, module = excluded.module, pinned = excluded.pinned,
                create_time = excluded.create_time, free_after = NULL, set_aside_reason = NULL
            RETURNING 1
        ), told AS (
            INSERT INTO allocation_events (pool_id, first_sequence, last_sequence, event_time, kind, project_id,
                server_handle, request_id, payload)
            SELECT as_expected.pool_id, n.first, n.last, n.event_time, n.kind::operation_kind, n.project_id, n.server_handle, n.request_id,
                   n.payload::jsonb
            FROM as_expected, unnest($20::bigint[], $21::bigint[], $22::timestamptz[], $23::text[], $24::text[], $25::text[], $26::text[],
                $27::text[]) AS n (first, last, event_time, kind, project_id, server_handle, request_id, payload)
            RETURNING 1
        )
        SELECT EXISTS (SELECT FROM as_expected) AS "as_expected!", (SELECT count(*) FROM placed) AS "placed!",
               (SELECT count(*) FROM given) AS "given!", (SELECT count(*) FROM told) AS "told!", clock_timestamp() AS "now!"
        "#,
        &placements.project_id,
        &placements.server_handle,
        &placements.cpu_millis,
        &placements.ram_mb,
        &placements.disk_mb,
        &placements.selector as &[Option<String>],
        &placements.start_port as &[Option<i32>],
        &placements.revision,
        &placements.create_time,
        &placements.update_time,
        &ports.id,
        &ports.server_handle,
        &ports.protocol,
        &ports.port,
        &ports.project_id,
        &ports.module,
        &ports.pinned,
        &ports.create_time,
        DEFAULT_POOL,
        &events.first,
        &events.last,
        &events.event_time,
        &events.kind as &[&str],
        &events.project_id as &[Option<String>],
        &events.server_handle as &[Option<String>],
        &events.request_id,
        &events.payload,
        &placements.expire_time as &[Option<OffsetDateTime>],
        expected.map(|expected| expected.epoch),
        expected.map(|expected| expected.last_sequence),
        expected.map(|expected| expected.inventory_revision),
        expected.map(|expected| expected.edit_count),
        expected.map(|expected| expected.now)
    )
    .fetch_one(conn)
    .instrument(traced::statement("INSERT", "INSERT placements, port_allocations, allocation_events"))
    .await?;
    if !written.as_expected {
        return Ok(None);
    }
    let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
    check_count("placements", count(written.placed), placements.len())?;
    check_count("port_allocations", count(written.given), ports.len())?;
    check_count("allocation_events", count(written.told), events.first.len())?;
    Ok(Some(written.now))
}
