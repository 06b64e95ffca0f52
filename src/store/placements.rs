//! The tables `placements` and `port_allocations` seen by project: what each one holds.

use std::collections::{BTreeMap, HashMap};

use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    StoreError,
    changes::Mark,
    ports::{port_from_column, protocol_from_column},
    servers::status_from_column,
};
use crate::domain::{
    Allocation, ModuleName, Placement, Project, ProjectId, Resources, ServerHandle, ServerStatus,
    ports::DEFAULT_START_PORT,
};

/// What a project holds, with what its answer tells of its server, all of one snapshot.
#[derive(Debug, Clone)]
pub struct ProjectRecord {
    /// The project.
    pub project: Project,
    /// Its server.
    pub server: HostRecord,
    /// Up to where the snapshot sees.
    pub mark: Mark,
    /// The database's time.
    pub now: OffsetDateTime,
}

/// What a project's answer tells of its server.
#[derive(Debug, Clone)]
pub struct HostRecord {
    /// Its address.
    pub address: String,
    /// Whether it is managed.
    pub managed: bool,
    /// Its status.
    pub status: ServerStatus,
    /// When its host last reported its usage.
    pub report_time: Option<OffsetDateTime>,
}

struct Row {
    server_address: String,
    server_managed: bool,
    server_status: String,
    server_report_time: Option<OffsetDateTime>,
    epoch: Uuid,
    last_sequence: i64,
    inventory_revision: i64,
    edit_count: i64,
    lease_count: i64,
    now: OffsetDateTime,
    project_id: String,
    server_handle: String,
    reserved_cpu_millis: i64,
    reserved_ram_mb: i64,
    reserved_disk_mb: i64,
    server_selector: Option<Json<BTreeMap<String, String>>>,
    start_port: Option<i32>,
    revision: i64,
    create_time: OffsetDateTime,
    update_time: OffsetDateTime,
    expire_time: Option<OffsetDateTime>,
    ids: Vec<Uuid>,
    modules: Vec<String>,
    protocols: Vec<String>,
    ports: Vec<i32>,
    pinned: Vec<bool>,
    times: Vec<OffsetDateTime>,
}

/// Reads what the projects hold, of those that hold anything, in one statement.
///
/// # Errors
/// [`StoreError`].
pub async fn list_projects(
    conn: &mut PgConnection,
    project_ids: &[String],
) -> Result<HashMap<ProjectId, ProjectRecord>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT p.project_id, p.server_handle, p.reserved_cpu_millis, p.reserved_ram_mb, p.reserved_disk_mb,
               p.server_selector AS "server_selector: Json<BTreeMap<String, String>>", p.start_port, p.revision,
               p.create_time, p.update_time, p.expire_time, held.ids AS "ids!", held.modules AS "modules!",
               held.protocols AS "protocols!", held.ports AS "ports!", held.pinned AS "pinned!", held.times AS "times!",
               s.address AS server_address, s.managed AS server_managed, s.status::text AS "server_status!",
               CASE WHEN s.observed_by_host THEN s.observe_time END AS server_report_time,
               pool.epoch, pool.last_sequence, pool.inventory_revision, pool.edit_count, pool.lease_count, clock_timestamp() AS "now!"
        FROM unnest($1::text[]) AS asked (project_id)
        JOIN placements p ON p.project_id = asked.project_id
        JOIN servers s ON s.handle = p.server_handle
        JOIN pools pool ON pool.pool_id = s.pool_id
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(a.id), '{}') AS ids,
                   coalesce(array_agg(a.module), '{}') AS modules,
                   coalesce(array_agg(a.protocol::text), '{}') AS protocols,
                   coalesce(array_agg(a.port), '{}') AS ports,
                   coalesce(array_agg(a.pinned), '{}') AS pinned,
                   coalesce(array_agg(a.create_time), '{}') AS times
            -- Ordered once for all of them, and by the index that finds them.
            FROM (SELECT id, module, protocol, port, pinned, create_time FROM port_allocations
                  WHERE project_id = p.project_id ORDER BY module) AS a
        ) AS held
        "#,
        project_ids
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| ProjectRecord::try_from(row).map(|record| (record.project.id.clone(), record)))
        .collect()
}

/// Reads which projects are placed at all, ordered by id, up to `limit` of those after `after`.
///
/// # Errors
/// [`StoreError`].
pub async fn list_ids_after(
    conn: &mut PgConnection,
    after: &str,
    limit: i64,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT project_id FROM placements WHERE project_id > $1 ORDER BY project_id LIMIT $2",
        after,
        limit
    )
    .fetch_all(conn)
    .await?)
}

/// Reads which projects are placed on a server, ordered by id. Every project that is placed holds a port, and ports are
/// found by server.
///
/// # Errors
/// [`StoreError`].
pub async fn list_on_server(
    conn: &mut PgConnection,
    handle: &ServerHandle,
) -> Result<Vec<ProjectId>, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"
        SELECT DISTINCT project_id AS "project_id!" FROM port_allocations
        WHERE server_handle = $1 AND project_id IS NOT NULL ORDER BY project_id
        "#,
        handle.as_str()
    )
    .fetch_all(conn)
    .await?;
    ids.into_iter()
        .map(|id| {
            ProjectId::parse(&id).map_err(|error| StoreError::inconsistent("port_allocations", id, error))
        })
        .collect()
}

impl TryFrom<Row> for ProjectRecord {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let broken =
            |problem: String| StoreError::inconsistent("placements", row.project_id.clone(), problem);
        let columns = row.ids.iter().zip(&row.modules).zip(&row.protocols).zip(&row.ports);
        let columns = columns.zip(&row.pinned).zip(&row.times);
        let mut allocations = Vec::with_capacity(row.ids.len());
        for (((((id, module), protocol), port), pinned), create_time) in columns {
            allocations.push(Allocation {
                id: *id,
                module: ModuleName::parse(module).map_err(|error| broken(format!("module: {error}")))?,
                protocol: protocol_from_column(protocol).ok_or_else(|| broken("protocol".to_owned()))?,
                port: port_from_column(*port).ok_or_else(|| broken("port".to_owned()))?,
                pinned: *pinned,
                create_time: *create_time,
            });
        }
        let placement = Placement {
            server_handle: ServerHandle::parse(&row.server_handle)
                .map_err(|error| broken(format!("server_handle: {error}")))?,
            reserved: Resources {
                cpu_millis: row.reserved_cpu_millis,
                ram_mb: row.reserved_ram_mb,
                disk_mb: row.reserved_disk_mb,
            },
            selector: row.server_selector.map(|selector| selector.0).unwrap_or_default(),
            start_port: match row.start_port {
                None => DEFAULT_START_PORT,
                Some(port) => port_from_column(port).ok_or_else(|| broken("start_port".to_owned()))?,
            },
            revision: row.revision,
            create_time: row.create_time,
            update_time: row.update_time,
            expire_time: row.expire_time,
        };
        let id = ProjectId::parse(&row.project_id).map_err(|error| broken(format!("project_id: {error}")))?;
        Ok(Self {
            project: Project { id, placement: Some(placement), allocations },
            server: HostRecord {
                status: status_from_column(&row.server_status)
                    .ok_or_else(|| broken("status of its server".to_owned()))?,
                address: row.server_address,
                managed: row.server_managed,
                report_time: row.server_report_time,
            },
            mark: Mark {
                epoch: row.epoch,
                last_sequence: row.last_sequence,
                inventory_revision: row.inventory_revision,
                edit_count: row.edit_count,
                lease_count: row.lease_count,
            },
            now: row.now,
        })
    }
}

/// Placements as columns, for statements over arrays.
#[derive(Debug, Default)]
pub struct PlacementColumns {
    pub(super) project_id: Vec<String>,
    pub(super) server_handle: Vec<String>,
    pub(super) cpu_millis: Vec<i64>,
    pub(super) ram_mb: Vec<i64>,
    pub(super) disk_mb: Vec<i64>,
    pub(super) selector: Vec<Option<String>>,
    pub(super) start_port: Vec<Option<i32>>,
    pub(super) revision: Vec<i64>,
    pub(super) create_time: Vec<OffsetDateTime>,
    pub(super) update_time: Vec<OffsetDateTime>,
    pub(super) expire_time: Vec<Option<OffsetDateTime>>,
}

impl PlacementColumns {
    /// Adds a placement.
    pub fn push(&mut self, project_id: &ProjectId, placement: &Placement) {
        self.project_id.push(project_id.as_str().to_owned());
        self.server_handle.push(placement.server_handle.as_str().to_owned());
        self.cpu_millis.push(placement.reserved.cpu_millis);
        self.ram_mb.push(placement.reserved.ram_mb);
        self.disk_mb.push(placement.reserved.disk_mb);
        let selector =
            (!placement.selector.is_empty()).then(|| serde_json::json!(placement.selector).to_string());
        self.selector.push(selector);
        let start_port = (placement.start_port != DEFAULT_START_PORT).then_some(placement.start_port);
        self.start_port.push(start_port.map(|port| i32::from(port.get())));
        self.revision.push(placement.revision);
        self.create_time.push(placement.create_time);
        self.update_time.push(placement.update_time);
        self.expire_time.push(placement.expire_time);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.project_id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.project_id.is_empty()
    }
}

/// Writes changed placements.
///
/// # Errors
/// [`StoreError`]; also when a placement is not there.
pub async fn update(conn: &mut PgConnection, rows: &PlacementColumns) -> Result<(), StoreError> {
    let updated = sqlx::query!(
        r#"
        UPDATE placements p SET server_handle = n.server_handle, reserved_cpu_millis = n.cpu_millis, reserved_ram_mb = n.ram_mb,
            reserved_disk_mb = n.disk_mb, server_selector = n.server_selector::jsonb, start_port = n.start_port,
            revision = n.revision, create_time = n.create_time, update_time = n.update_time, expire_time = n.expire_time
        FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::integer[], $8::bigint[],
            $9::timestamptz[], $10::timestamptz[], $11::timestamptz[]) AS n (project_id, server_handle, cpu_millis, ram_mb,
            disk_mb, server_selector, start_port, revision, create_time, update_time, expire_time)
        WHERE p.project_id = n.project_id
        "#,
        &rows.project_id,
        &rows.server_handle,
        &rows.cpu_millis,
        &rows.ram_mb,
        &rows.disk_mb,
        &rows.selector as &[Option<String>],
        &rows.start_port as &[Option<i32>],
        &rows.revision,
        &rows.create_time,
        &rows.update_time,
        &rows.expire_time as &[Option<OffsetDateTime>]
    )
    .execute(conn)
    .await?
    .rows_affected();
    check_count("placements", updated, rows.len())
}

/// Removes placements, whose ports are given back already.
///
/// # Errors
/// [`StoreError`]; also when a placement is not there.
pub async fn delete(conn: &mut PgConnection, project_ids: &[String]) -> Result<(), StoreError> {
    let deleted = sqlx::query!("DELETE FROM placements WHERE project_id = ANY($1)", project_ids)
        .execute(conn)
        .await?
        .rows_affected();
    check_count("placements", deleted, project_ids.len())
}

/// A set-based statement that touched fewer rows than it was given did not do what was planned.
pub(super) fn check_count(table: &'static str, affected: u64, expected: usize) -> Result<(), StoreError> {
    if usize::try_from(affected) == Ok(expected) {
        return Ok(());
    }
    Err(StoreError::inconsistent(
        table,
        "(set)",
        format!("{affected} rows were written where {expected} were planned"),
    ))
}
