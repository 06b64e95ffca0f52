//! The pool's row: the queue that every writer stands in, and the log's counter.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::domain::{Resources, policy::FleetPolicy, resources::PerResource};

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
    /// What holds for every server that does not say otherwise.
    pub policy: FleetPolicy,
    /// The database's time: replicas must agree on which ports rest and which reports are stale.
    pub now: OffsetDateTime,
}

#[derive(sqlx::FromRow)]
pub(super) struct Row {
    epoch: Uuid,
    last_sequence: i64,
    compacted_sequence: i64,
    inventory_revision: i64,
    edit_count: i64,
    default_headroom_cpu_millis: i64,
    default_headroom_ram_mb: i64,
    default_headroom_disk_mb: i64,
    default_headroom_cpu_percent: i32,
    default_headroom_ram_percent: i32,
    default_headroom_disk_percent: i32,
    overcommit_cpu_percent: i32,
    overcommit_ram_percent: i32,
    overcommit_disk_percent: i32,
    now: OffsetDateTime,
}

impl From<Row> for PoolState {
    fn from(row: Row) -> Self {
        Self {
            epoch: row.epoch,
            last_sequence: row.last_sequence,
            compacted_sequence: row.compacted_sequence,
            inventory_revision: row.inventory_revision,
            edit_count: row.edit_count,
            policy: FleetPolicy {
                headroom: Resources {
                    cpu_millis: row.default_headroom_cpu_millis,
                    ram_mb: row.default_headroom_ram_mb,
                    disk_mb: row.default_headroom_disk_mb,
                },
                headroom_percent: PerResource {
                    cpu: row.default_headroom_cpu_percent.into(),
                    ram: row.default_headroom_ram_percent.into(),
                    disk: row.default_headroom_disk_percent.into(),
                },
                overcommit_percent: PerResource {
                    cpu: row.overcommit_cpu_percent.into(),
                    ram: row.overcommit_ram_percent.into(),
                    disk: row.overcommit_disk_percent.into(),
                },
            },
            now: row.now,
        }
    }
}

/// Hands the columns of [`Row`], but the time, to the macro of a statement: they are listed once.
macro_rules! with_pool_columns {
    ($statement:ident) => {
        $statement!(
            "epoch, last_sequence, compacted_sequence, inventory_revision, edit_count, \
             default_headroom_cpu_millis, default_headroom_ram_mb, default_headroom_disk_mb, \
             default_headroom_cpu_percent, default_headroom_ram_percent, default_headroom_disk_percent, \
             overcommit_cpu_percent, overcommit_ram_percent, overcommit_disk_percent"
        )
    };
}
pub(super) use with_pool_columns;

macro_rules! select_pool {
    ($columns:tt) => {
        sqlx::query_as!(
            Row,
            "SELECT " + $columns + r#", clock_timestamp() AS "now!" FROM pools WHERE pool_id = $1"#,
            DEFAULT_POOL
        )
    };
}

/// Reads where the pool stands.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(conn: &mut PgConnection) -> Result<PoolState, StoreError> {
    Ok(with_pool_columns!(select_pool).fetch_one(conn).await?.into())
}

/// Writes the policy; the schema derives each server's budget from it, and stamps the servers.
///
/// # Errors
/// [`StoreError`].
pub async fn update_policy(conn: &mut PgConnection, policy: &FleetPolicy) -> Result<(), StoreError> {
    let FleetPolicy { headroom, headroom_percent, overcommit_percent } = policy;
    // Percentages are at most ten thousand.
    let percent = |figure: i64| i32::try_from(figure).unwrap_or(i32::MAX);
    sqlx::query!(
        r#"
        UPDATE pools SET default_headroom_cpu_millis = $2, default_headroom_ram_mb = $3, default_headroom_disk_mb = $4,
            default_headroom_cpu_percent = $5, default_headroom_ram_percent = $6, default_headroom_disk_percent = $7,
            overcommit_cpu_percent = $8, overcommit_ram_percent = $9, overcommit_disk_percent = $10
        WHERE pool_id = $1
        "#,
        DEFAULT_POOL,
        headroom.cpu_millis,
        headroom.ram_mb,
        headroom.disk_mb,
        percent(headroom_percent.cpu),
        percent(headroom_percent.ram),
        percent(headroom_percent.disk),
        percent(overcommit_percent.cpu),
        percent(overcommit_percent.ram),
        percent(overcommit_percent.disk)
    )
    .execute(conn)
    .await?;
    Ok(())
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

/// Notes up to which number retention dropped the events. Another replica may have got further.
///
/// # Errors
/// [`StoreError::Busy`] when the pool's row cannot be had in time; [`StoreError::Unavailable`].
pub async fn update_compacted(conn: &mut PgConnection, sequence: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE pools SET compacted_sequence = $2 WHERE pool_id = $1 AND compacted_sequence < $2",
        DEFAULT_POOL,
        sequence
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes where this history is written. A database that was copied or restored from a dump is told by that: what follows there
/// is another history, so its epoch is renewed, and who watched the first one learns so.
///
/// Returns whether the epoch was renewed. A role that may not ask for the cluster's identity leaves everything as it is.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn settle_home(conn: &mut PgConnection) -> Result<bool, StoreError> {
    let allowed = sqlx::query_scalar!(
        r#"SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS "allowed!""#
    )
    .fetch_one(&mut *conn)
    .await?;
    if !allowed {
        tracing::warn!(
            "the database's role may not ask for the cluster's identity, so a restore would not be noticed"
        );
        return Ok(false);
    }
    let moved = sqlx::query_scalar!(
        r#"
        WITH here AS (
            SELECT control.system_identifier || '/' || database.oid AS home
            FROM pg_control_system() AS control, pg_database AS database WHERE database.datname = current_database()
        ), old AS (
            -- Nobody is waited for where there is nothing to write.
            SELECT pool_id, pools.home FROM pools, here
            WHERE pool_id = $1 AND pools.home IS DISTINCT FROM here.home FOR UPDATE OF pools
        )
        UPDATE pools SET home = here.home, epoch = CASE WHEN old.home IS NULL THEN epoch ELSE gen_random_uuid() END
        FROM here, old
        WHERE pools.pool_id = old.pool_id
        RETURNING old.home IS NOT NULL AS "moved!"
        "#,
        DEFAULT_POOL
    )
    .fetch_optional(conn)
    .await?;
    Ok(moved == Some(true))
}
