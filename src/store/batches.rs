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
    /// Whether one of the ports may have a row, as one that rests has.
    pub may_take_over: bool,
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

/// What a batch's statement answers.
struct Written {
    as_expected: bool,
    placed: i64,
    given: i64,
    told: i64,
    now: OffsetDateTime,
}

/// The statement, with what is to become of a port that has a row. Arrays are taken apart in the list of columns: as functions in
/// `FROM` they would each be a table of its own first.
macro_rules! insert {
    ($on_conflict:tt, $batch:expr, $expected:expr) => {{
        let Batch { placements, ports, events, .. } = $batch;
        let expected: Option<&Expected> = $expected;
        // The triggers of each table run at the end of the statement, when all of its rows are there.
        sqlx::query_as!(
            Written,
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
                SELECT unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::bigint[]), unnest($5::bigint[]),
                       unnest($6::text[])::jsonb, unnest($7::integer[]), unnest($8::bigint[]), unnest($9::timestamptz[]),
                       unnest($10::timestamptz[]), unnest($28::timestamptz[])
                FROM as_expected
                RETURNING 1
            ), given AS (
                INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module, pinned, create_time)
                SELECT unnest($11::uuid[]), unnest($12::text[]), unnest($13::text[])::port_protocol, unnest($14::integer[]),
                       unnest($15::text[]), unnest($16::text[]), unnest($17::boolean[]), unnest($18::timestamptz[])
                FROM as_expected
                "# + $on_conflict + r#"
                RETURNING 1
            ), told AS (
                INSERT INTO allocation_events (pool_id, first_sequence, last_sequence, event_time, kind, project_id,
                    server_handle, request_id, payload, granted)
                SELECT pool_id, unnest($20::bigint[]), unnest($21::bigint[]), unnest($22::timestamptz[]),
                       unnest($23::text[])::operation_kind, unnest($24::text[]), unnest($25::text[]), unnest($26::text[]),
                       unnest($27::text[])::jsonb, unnest($34::bytea[])
                FROM as_expected
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
            expected.map(|expected| expected.now),
            &events.granted as &[Option<Vec<u8>>]
        )
    }};
}

/// Writes new placements, ports that are given, and operations; returns the database's time. The schema adds the placements to
/// their servers' sums and refuses what does not fit; a port that rests is taken over where the batch says that one may be, one that
/// is held or set aside is not; the log is numbered by the operations, and takes no gap.
///
/// Where it is said what is expected, the pool's row is locked first. Where someone else has it, or the pool stands elsewhere,
/// nothing is written, and none is returned. All that is looked at besides is looked at by the schema's triggers and indexes, which
/// see what was committed up to then, and not only what the statement's own snapshot shows.
///
/// # Errors
/// [`StoreError`].
pub async fn insert(
    conn: &mut PgConnection,
    batch: &Batch,
    expected: Option<&Expected>,
) -> Result<Option<OffsetDateTime>, StoreError> {
    let statement = traced::statement("INSERT", "INSERT placements, port_allocations, allocation_events");
    // To look for a row to take over is a tenth of a batch's cost.
    let written = if batch.may_take_over {
        insert!(
            r#"
                ON CONFLICT ON CONSTRAINT port_allocations_pkey DO UPDATE
                SET id = excluded.id, project_id = excluded.project_id, module = excluded.module, pinned = excluded.pinned,
                    create_time = excluded.create_time, free_after = NULL, set_aside_reason = NULL
            "#,
            batch,
            expected
        )
        .fetch_one(conn)
        .instrument(statement)
        .await?
    } else {
        insert!("", batch, expected).fetch_one(conn).instrument(statement).await?
    };
    if !written.as_expected {
        return Ok(None);
    }
    let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
    check_count("placements", count(written.placed), batch.placements.len())?;
    check_count("port_allocations", count(written.given), batch.ports.len())?;
    check_count("allocation_events", count(written.told), batch.events.first.len())?;
    Ok(Some(written.now))
}
