//! The table `servers`: the inventory and its sums.

mod columns;

use std::collections::BTreeMap;

use sqlx::{PgConnection, postgres::types::PgRange, types::Json};
use time::OffsetDateTime;

use self::columns::Columns;
use super::{StoreError, pools::DEFAULT_POOL};
use crate::domain::{
    Port, PortRange, ResourceRequest, Resources, Server, ServerHandle, ServerStatus,
    fleet::{ServerRow, ServerState},
    policy::FleetPolicy,
    ports::ServerPorts,
    resources::PerResource,
    server::{Observation, Observer},
};

/// A server as it was read, with its times.
#[derive(Debug, Clone)]
pub struct ServerRecord {
    /// The server, its sums and its usage.
    pub row: ServerRow,
    /// When it was registered.
    pub create_time: OffsetDateTime,
    /// When an inventory field last changed.
    pub update_time: OffsetDateTime,
}

struct Row {
    handle: String,
    address: String,
    status: String,
    status_before_missing: Option<String>,
    managed: bool,
    labels: Json<BTreeMap<String, String>>,
    capacity_cpu_millis: i64,
    capacity_ram_mb: i64,
    capacity_disk_mb: i64,
    headroom_cpu_millis: Option<i64>,
    headroom_ram_mb: Option<i64>,
    headroom_disk_mb: Option<i64>,
    overcommit_cpu_percent: Option<i32>,
    overcommit_ram_percent: Option<i32>,
    overcommit_disk_percent: Option<i32>,
    reserved_cpu_millis: i64,
    reserved_ram_mb: i64,
    reserved_disk_mb: i64,
    placement_count: i64,
    observed_cpu_millis: Option<i64>,
    observed_ram_mb: Option<i64>,
    observed_disk_mb: Option<i64>,
    observed_ports: Vec<i32>,
    observe_time: Option<OffsetDateTime>,
    observed_by_host: bool,
    usage_stale: bool,
    port_range_start: i32,
    port_range_end: i32,
    excluded_ports: Vec<PgRange<i32>>,
    source: String,
    external_id: Option<String>,
    generation: i64,
    revision: i64,
    create_time: OffsetDateTime,
    update_time: OffsetDateTime,
}

/// Reads rows of `servers` under a policy: the columns are listed once, what follows FROM is each reader's.
macro_rules! select_servers {
    ($conn:expr, $policy:expr, $tail:tt $(, $argument:expr)*) => {{
        let rows = sqlx::query_as!(
            Row,
            r#"
            SELECT handle, address, status::text AS "status!", status_before_missing::text, managed,
                   labels AS "labels: Json<BTreeMap<String, String>>",
                   capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb,
                   headroom_cpu_millis, headroom_ram_mb, headroom_disk_mb,
                   overcommit_cpu_percent, overcommit_ram_percent, overcommit_disk_percent,
                   reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb, placement_count,
                   observed_cpu_millis, observed_ram_mb, observed_disk_mb, observed_ports, observe_time,
                   observed_by_host, usage_stale,
                   port_range_start, port_range_end, excluded_ports AS "excluded_ports: Vec<PgRange<i32>>",
                   source, external_id, generation, revision, create_time, update_time
            FROM servers
            "# + $tail
            $(, $argument)*
        )
        .fetch_all($conn)
        .await?;
        rows.into_iter().map(|row| row.under($policy)).collect::<Result<Vec<_>, StoreError>>()
    }};
}

/// Reads one server.
///
/// # Errors
/// [`StoreError`].
pub async fn find(
    conn: &mut PgConnection,
    policy: &FleetPolicy,
    handle: &ServerHandle,
) -> Result<Option<ServerRecord>, StoreError> {
    Ok(select_servers!(conn, policy, "WHERE handle = $1", handle.as_str())?.pop())
}

/// Reads the servers whose inventory or usage changed after a revision, in the order of their changes.
///
/// # Errors
/// [`StoreError`].
pub async fn list_changed(
    conn: &mut PgConnection,
    policy: &FleetPolicy,
    after_revision: i64,
) -> Result<Vec<ServerRecord>, StoreError> {
    select_servers!(
        conn,
        policy,
        "WHERE pool_id = $1 AND revision > $2 ORDER BY revision",
        DEFAULT_POOL,
        after_revision
    )
}

/// Reads servers for the fleet, up to `limit` of those after a handle, in the order of handles.
///
/// # Errors
/// [`StoreError`].
pub async fn list_after(
    conn: &mut PgConnection,
    policy: &FleetPolicy,
    after: &str,
    limit: i64,
) -> Result<Vec<ServerRecord>, StoreError> {
    select_servers!(
        conn,
        policy,
        "WHERE pool_id = $1 AND handle > $2 ORDER BY handle LIMIT $3",
        DEFAULT_POOL,
        after,
        limit
    )
}

/// Which servers to list; what is `None` does not filter.
#[derive(Debug, Clone, Default)]
pub struct ServerFilter {
    /// The status as the table has it, where `in_use` is not `ready`.
    pub status: Option<&'static str>,
    /// Only managed ones, or only others.
    pub managed: Option<bool>,
    /// Only those that carry this label.
    pub label_key: Option<String>,
    /// Only those whose label has this value.
    pub label_value: Option<String>,
    /// Only those of this source.
    pub source: Option<String>,
    /// Only those after this handle.
    pub after: Option<String>,
}

/// Reads a page of servers, ordered by handle.
///
/// # Errors
/// [`StoreError`].
pub async fn list(
    conn: &mut PgConnection,
    policy: &FleetPolicy,
    filter: &ServerFilter,
    limit: i64,
) -> Result<Vec<ServerRecord>, StoreError> {
    select_servers!(
        conn,
        policy,
        r#"
        WHERE ($1::text IS NULL OR status = $1::text::server_status)
          AND ($2::boolean IS NULL OR managed = $2)
          AND ($3::text IS NULL OR labels ? $3)
          AND ($4::text IS NULL OR labels ->> $3 = $4)
          AND ($5::text IS NULL OR source = $5)
          AND handle > $6
        ORDER BY handle LIMIT $7
        "#,
        filter.status,
        filter.managed,
        filter.label_key.as_deref(),
        filter.label_value.as_deref(),
        filter.source.as_deref(),
        // No handle is empty, so that the first page starts after it.
        filter.after.as_deref().unwrap_or_default(),
        limit
    )
}

/// Writes what operators and sources set on servers, new or known, each once. In one statement: the schema counts each statement on
/// the pool's row, and a transaction that does so thousands of times passes by thousands of versions of it each time.
///
/// # Errors
/// [`StoreError`].
pub async fn insert_or_update(conn: &mut PgConnection, servers: &[Server]) -> Result<(), StoreError> {
    if servers.is_empty() {
        return Ok(());
    }
    let columns: Vec<_> = servers.iter().map(Columns::of).collect();
    sqlx::query!(
        r#"
        INSERT INTO servers (pool_id, handle, address, status, status_before_missing, managed, labels,
            capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb, headroom_cpu_millis, headroom_ram_mb, headroom_disk_mb,
            port_range_start, port_range_end, excluded_ports, source, external_id,
            overcommit_cpu_percent, overcommit_ram_percent, overcommit_disk_percent)
        SELECT $1, n.*
        FROM jsonb_to_recordset($2) AS n (handle text, address text, status server_status, status_before_missing server_status,
            managed boolean, labels jsonb, capacity_cpu_millis bigint, capacity_ram_mb bigint, capacity_disk_mb bigint,
            headroom_cpu_millis bigint, headroom_ram_mb bigint, headroom_disk_mb bigint, port_range_start integer,
            port_range_end integer, excluded_ports int4range[], source text, external_id text, overcommit_cpu_percent integer,
            overcommit_ram_percent integer, overcommit_disk_percent integer)
        ON CONFLICT (handle) DO UPDATE SET address = excluded.address, status = excluded.status,
            status_before_missing = excluded.status_before_missing, managed = excluded.managed, labels = excluded.labels,
            capacity_cpu_millis = excluded.capacity_cpu_millis, capacity_ram_mb = excluded.capacity_ram_mb,
            capacity_disk_mb = excluded.capacity_disk_mb, headroom_cpu_millis = excluded.headroom_cpu_millis,
            headroom_ram_mb = excluded.headroom_ram_mb, headroom_disk_mb = excluded.headroom_disk_mb,
            port_range_start = excluded.port_range_start, port_range_end = excluded.port_range_end,
            excluded_ports = excluded.excluded_ports, source = excluded.source, external_id = excluded.external_id,
            overcommit_cpu_percent = excluded.overcommit_cpu_percent,
            overcommit_ram_percent = excluded.overcommit_ram_percent,
            overcommit_disk_percent = excluded.overcommit_disk_percent
        "#,
        DEFAULT_POOL,
        Json(&columns) as _
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes a server; the schema refuses one that holds placements.
///
/// # Errors
/// [`StoreError`].
pub async fn delete(conn: &mut PgConnection, handle: &ServerHandle) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM servers WHERE handle = $1", handle.as_str()).execute(conn).await?;
    Ok(())
}

fn status_to_column(status: ServerStatus) -> &'static str {
    match status {
        ServerStatus::Discovered => "discovered",
        ServerStatus::Provisioning => "provisioning",
        ServerStatus::Ready => "ready",
        ServerStatus::Maintenance => "maintenance",
        ServerStatus::Error => "error",
        ServerStatus::Unreachable => "unreachable",
        ServerStatus::Missing => "missing",
        ServerStatus::Decommissioned => "decommissioned",
    }
}

pub(super) fn status_from_column(status: &str) -> Option<ServerStatus> {
    Some(match status {
        "discovered" => ServerStatus::Discovered,
        "provisioning" => ServerStatus::Provisioning,
        "ready" | "in_use" => ServerStatus::Ready,
        "maintenance" => ServerStatus::Maintenance,
        "error" => ServerStatus::Error,
        "unreachable" => ServerStatus::Unreachable,
        "missing" => ServerStatus::Missing,
        "decommissioned" => ServerStatus::Decommissioned,
        _ => return None,
    })
}

fn port(port: i32) -> Option<Port> {
    u32::try_from(port).ok().and_then(|port| Port::try_from(port).ok())
}

/// The ports in a range as Postgres keeps it: the lower bound inside, the upper one outside.
fn port_range(range: &PgRange<i32>) -> Option<PortRange> {
    use std::ops::Bound::{Excluded, Included};
    match (range.start, range.end) {
        (Included(start), Excluded(end)) => Some(PortRange { start: port(start)?, end: port(end - 1)? }),
        _ => None,
    }
}

impl Row {
    fn under(self, policy: &FleetPolicy) -> Result<ServerRecord, StoreError> {
        let row = self;
        let broken = |problem: &str| StoreError::inconsistent("servers", row.handle.clone(), problem);
        let ports = |ports: &[i32]| ports.iter().map(|p| port(*p)).collect::<Option<Vec<_>>>();
        let status = |status: &str| status_from_column(status).ok_or_else(|| broken("unknown status"));
        let observed = match row.observe_time {
            None => None,
            Some(observe_time) => Some(Observation {
                observer: if row.observed_by_host { Observer::Host } else { Observer::Provider },
                cpu_millis: row.observed_cpu_millis,
                ram_mb: row.observed_ram_mb,
                disk_mb: row.observed_disk_mb,
                listening_ports: ports(&row.observed_ports).ok_or_else(|| broken("observed_ports"))?,
                observe_time,
            }),
        };
        let server = Server {
            handle: ServerHandle::parse(&row.handle).map_err(|error| broken(&error.to_string()))?,
            status: status(&row.status)?,
            status_before_missing: row.status_before_missing.as_deref().map(status).transpose()?,
            managed: row.managed,
            capacity: Resources {
                cpu_millis: row.capacity_cpu_millis,
                ram_mb: row.capacity_ram_mb,
                disk_mb: row.capacity_disk_mb,
            },
            headroom: ResourceRequest {
                cpu_millis: row.headroom_cpu_millis,
                ram_mb: row.headroom_ram_mb,
                disk_mb: row.headroom_disk_mb,
            },
            overcommit_percent: PerResource {
                cpu: row.overcommit_cpu_percent.map(i64::from),
                ram: row.overcommit_ram_percent.map(i64::from),
                disk: row.overcommit_disk_percent.map(i64::from),
            },
            port_range: PortRange {
                start: port(row.port_range_start).ok_or_else(|| broken("port_range_start"))?,
                end: port(row.port_range_end).ok_or_else(|| broken("port_range_end"))?,
            },
            excluded_ports: row
                .excluded_ports
                .iter()
                .map(port_range)
                .collect::<Option<_>>()
                .ok_or_else(|| broken("excluded_ports"))?,
            address: row.address,
            labels: row.labels.0,
            source: row.source,
            external_id: row.external_id,
        };
        let state = ServerState {
            terms: policy.terms(&server),
            server,
            reserved: Resources {
                cpu_millis: row.reserved_cpu_millis,
                ram_mb: row.reserved_ram_mb,
                disk_mb: row.reserved_disk_mb,
            },
            placement_count: row.placement_count,
            observed,
            usage_stale: row.usage_stale,
            generation: row.generation,
            ports: ServerPorts::default(),
            kept: None,
        };
        Ok(ServerRecord {
            row: ServerRow { state, revision: row.revision },
            create_time: row.create_time,
            update_time: row.update_time,
        })
    }
}
