//! The table `port_allocations`: one row for each port that is held or rests.

use futures_core::stream::BoxStream;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio_stream::StreamExt as _;
use uuid::Uuid;

use super::{StoreError, placements::check_count};
use crate::domain::{Allocation, ModuleName, Port, ProjectId, Protocol, ServerHandle, fleet::PortStanding};

/// The protocol as the table has it.
pub(super) fn protocol_from_column(protocol: &str) -> Option<Protocol> {
    match protocol {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

fn protocol_to_column(protocol: Protocol) -> String {
    match protocol {
        Protocol::Tcp => "tcp".to_owned(),
        Protocol::Udp => "udp".to_owned(),
    }
}

pub(super) fn port_from_column(port: i32) -> Option<Port> {
    u32::try_from(port).ok().and_then(|port| Port::try_from(port).ok())
}

/// A port as the fleet takes it up.
#[derive(Debug, Clone)]
pub struct PortRow {
    /// The server.
    pub server_handle: ServerHandle,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
    /// How it stands.
    pub standing: PortStanding,
}

/// Reads every port that has a row, ordered by server, without holding them all at once.
pub fn list_all(conn: &mut PgConnection) -> BoxStream<'_, Result<PortRow, StoreError>> {
    let rows = sqlx::query!(
        r#"
        SELECT server_handle, protocol::text AS "protocol!", port, free_after, set_aside_reason IS NOT NULL AS "set_aside!"
        FROM port_allocations ORDER BY server_handle
        "#
    )
    .fetch(conn);
    Box::pin(rows.map(|row| {
        let row = row?;
        let broken = |problem: &str| {
            StoreError::inconsistent(
                "port_allocations",
                format!("{}:{}", row.server_handle, row.port),
                problem,
            )
        };
        Ok(PortRow {
            server_handle: ServerHandle::parse(&row.server_handle).map_err(|_| broken("server_handle"))?,
            protocol: protocol_from_column(&row.protocol).ok_or_else(|| broken("protocol"))?,
            port: port_from_column(row.port).ok_or_else(|| broken("port"))?,
            standing: match row.free_after {
                None => PortStanding::Held,
                Some(until) if row.set_aside => PortStanding::SetAside(until),
                Some(until) => PortStanding::Resting(until),
            },
        })
    }))
}

/// Which allocations to list; what is `None` does not filter.
#[derive(Debug, Clone, Default)]
pub struct AllocationFilter {
    /// Only this project's.
    pub project_id: Option<String>,
    /// Only this server's.
    pub server_handle: Option<String>,
    /// Only modules of this name.
    pub module: Option<String>,
    /// Only those after this project and module.
    pub after: Option<(String, String)>,
}

/// An allocation with whose it is and where.
#[derive(Debug, Clone)]
pub struct AllocationRecord {
    /// The project that holds it.
    pub project_id: ProjectId,
    /// The server whose port it is.
    pub server_handle: ServerHandle,
    /// The server's address.
    pub server_address: String,
    /// The allocation.
    pub allocation: Allocation,
}

struct ListedRow {
    id: Uuid,
    project_id: String,
    module: String,
    server_handle: String,
    address: String,
    protocol: String,
    port: i32,
    pinned: bool,
    create_time: OffsetDateTime,
}

/// Reads rows of allocations: the columns are listed once, what follows them is each reader's.
macro_rules! select_allocations {
    ($conn:expr, $tail:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            ListedRow,
            r#"
            SELECT a.id, a.project_id AS "project_id!", a.module AS "module!", a.server_handle, s.address,
                   a.protocol::text AS "protocol!", a.port, a.pinned, a.create_time
            "# + $tail
            $(, $argument)*
        )
        .fetch_all($conn)
        .await?
    };
}

/// Reads a page of allocations, ordered by project and module. Each kind of filter has a statement of its own, whose plan reads
/// the page and little else: one statement for all of them would be planned for none.
///
/// # Errors
/// [`StoreError`].
pub async fn list(
    conn: &mut PgConnection,
    filter: &AllocationFilter,
    limit: i64,
) -> Result<Vec<AllocationRecord>, StoreError> {
    let AllocationFilter { project_id, server_handle, module, .. } = filter;
    // No project is named by an empty string, so that the first page starts after it.
    let (after_project, after_module) = filter.after.clone().unwrap_or_default();
    // The page is cut before its servers are joined, so that no plan can begin with the servers.
    let rows = match (project_id, server_handle, module) {
        // A project holds a few allocations, all of them on one server.
        (Some(project_id), server_handle, module) => select_allocations!(
            conn,
            r#"
            FROM (SELECT * FROM port_allocations
                  WHERE project_id = $1 AND ($2::text IS NULL OR server_handle = $2) AND ($3::text IS NULL OR module = $3)
                    AND (project_id, module) > ($4, $5)
                  ORDER BY project_id, module LIMIT $6) a
            JOIN servers s ON s.handle = a.server_handle
            ORDER BY a.project_id, a.module
            "#,
            project_id.as_str(),
            server_handle.as_deref(),
            module.as_deref(),
            after_project,
            after_module,
            limit
        ),
        // Every placed project holds one allocation at least, but for those of `after` that are passed over. So that many
        // projects are enough, and the planner need not guess it.
        (None, Some(server_handle), None) => select_allocations!(
            conn,
            r#"
            FROM (SELECT project_id FROM placements WHERE server_handle = $1 AND project_id >= $2
                  ORDER BY project_id LIMIT $4::bigint + 1) p
            CROSS JOIN LATERAL (SELECT * FROM port_allocations held
                                WHERE held.project_id = p.project_id AND (held.project_id, held.module) > ($2, $3)
                                ORDER BY held.module LIMIT $4) a
            JOIN servers s ON s.handle = a.server_handle
            ORDER BY a.project_id, a.module LIMIT $4
            "#,
            server_handle.as_str(),
            after_project,
            after_module,
            limit
        ),
        // No more projects than are on the server.
        (None, Some(server_handle), Some(module)) => select_allocations!(
            conn,
            r#"
            FROM (SELECT project_id FROM placements WHERE server_handle = $1 AND project_id > $3 ORDER BY project_id) p
            CROSS JOIN LATERAL (SELECT * FROM port_allocations held
                                WHERE held.project_id = p.project_id AND held.module = $2 LIMIT 1) a
            JOIN servers s ON s.handle = a.server_handle
            ORDER BY a.project_id LIMIT $4
            "#,
            server_handle.as_str(),
            module.as_str(),
            after_project,
            limit
        ),
        // A project has a module once, so that the next one is the next project's.
        (None, None, Some(module)) => select_allocations!(
            conn,
            r#"
            FROM (SELECT * FROM port_allocations WHERE module = $1 AND project_id > $2
                  ORDER BY module, project_id LIMIT $3) a
            JOIN servers s ON s.handle = a.server_handle
            ORDER BY a.project_id
            "#,
            module.as_str(),
            after_project,
            limit
        ),
        (None, None, None) => select_allocations!(
            conn,
            r#"
            FROM (SELECT * FROM port_allocations WHERE (project_id, module) > ($1, $2)
                  ORDER BY project_id, module LIMIT $3) a
            JOIN servers s ON s.handle = a.server_handle
            ORDER BY a.project_id, a.module
            "#,
            after_project,
            after_module,
            limit
        ),
    };
    rows.into_iter().map(AllocationRecord::try_from).collect()
}

impl TryFrom<ListedRow> for AllocationRecord {
    type Error = StoreError;

    fn try_from(row: ListedRow) -> Result<Self, StoreError> {
        let broken =
            |problem: &str| StoreError::inconsistent("port_allocations", row.id.to_string(), problem);
        Ok(Self {
            project_id: ProjectId::parse(&row.project_id).map_err(|_| broken("project_id"))?,
            server_handle: ServerHandle::parse(&row.server_handle).map_err(|_| broken("server_handle"))?,
            allocation: Allocation {
                id: row.id,
                module: ModuleName::parse(&row.module).map_err(|_| broken("module"))?,
                protocol: protocol_from_column(&row.protocol).ok_or_else(|| broken("protocol"))?,
                port: port_from_column(row.port).ok_or_else(|| broken("port"))?,
                pinned: row.pinned,
                create_time: row.create_time,
            },
            server_address: row.address,
        })
    }
}

/// Ports as columns, for statements over arrays.
#[derive(Debug, Default)]
pub struct PortColumns {
    id: Vec<Uuid>,
    server_handle: Vec<String>,
    protocol: Vec<String>,
    port: Vec<i32>,
    project_id: Vec<String>,
    module: Vec<String>,
    pinned: Vec<bool>,
    create_time: Vec<OffsetDateTime>,
}

impl PortColumns {
    /// Adds a port.
    pub fn push(&mut self, project_id: &ProjectId, server_handle: &ServerHandle, allocation: &Allocation) {
        self.id.push(allocation.id);
        self.server_handle.push(server_handle.as_str().to_owned());
        self.protocol.push(protocol_to_column(allocation.protocol));
        self.port.push(i32::from(allocation.port.get()));
        self.project_id.push(project_id.as_str().to_owned());
        self.module.push(allocation.module.as_str().to_owned());
        self.pinned.push(allocation.pinned);
        self.create_time.push(allocation.create_time);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.id.is_empty()
    }
}

/// Writes ports that are given. One that rests is taken over; the schema refuses to take over one that is held or set aside.
///
/// # Errors
/// [`StoreError`].
pub async fn insert(conn: &mut PgConnection, rows: &PortColumns) -> Result<(), StoreError> {
    let written = sqlx::query!(
        r#"
        INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module, pinned, create_time)
        SELECT n.id, n.server_handle, n.protocol::port_protocol, n.port, n.project_id, n.module, n.pinned, n.create_time
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::boolean[], $8::timestamptz[])
            AS n (id, server_handle, protocol, port, project_id, module, pinned, create_time)
        ON CONFLICT ON CONSTRAINT port_allocations_pkey DO UPDATE
        SET id = excluded.id, project_id = excluded.project_id, module = excluded.module, pinned = excluded.pinned,
            create_time = excluded.create_time, free_after = NULL, set_aside_reason = NULL
        "#,
        &rows.id,
        &rows.server_handle,
        &rows.protocol,
        &rows.port,
        &rows.project_id,
        &rows.module,
        &rows.pinned,
        &rows.create_time
    )
    .execute(conn)
    .await?
    .rows_affected();
    check_count("port_allocations", written, rows.len())
}

/// Ports that are given back, as columns.
#[derive(Debug, Default)]
pub struct GivenBackColumns {
    id: Vec<Uuid>,
    server_handle: Vec<String>,
    protocol: Vec<String>,
    port: Vec<i32>,
    create_time: Vec<OffsetDateTime>,
    free_after: Vec<OffsetDateTime>,
    set_aside_reason: Vec<Option<String>>,
}

impl GivenBackColumns {
    /// Adds a port that rests until a time, or, for a reason, is set aside until then.
    pub fn push(
        &mut self,
        server_handle: &ServerHandle,
        allocation: &Allocation,
        free_after: OffsetDateTime,
        set_aside_reason: Option<&str>,
    ) {
        self.id.push(allocation.id);
        self.server_handle.push(server_handle.as_str().to_owned());
        self.protocol.push(protocol_to_column(allocation.protocol));
        self.port.push(i32::from(allocation.port.get()));
        self.create_time.push(allocation.create_time);
        self.free_after.push(free_after);
        self.set_aside_reason.push(set_aside_reason.map(str::to_owned));
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.id.is_empty()
    }
}

/// Writes ports that are given back.
///
/// # Errors
/// [`StoreError`].
pub async fn update_given_back(conn: &mut PgConnection, rows: &GivenBackColumns) -> Result<(), StoreError> {
    let written = sqlx::query!(
        r#"
        INSERT INTO port_allocations (id, server_handle, protocol, port, create_time, free_after, set_aside_reason)
        SELECT n.id, n.server_handle, n.protocol::port_protocol, n.port, n.create_time, n.free_after, n.set_aside_reason
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::timestamptz[], $6::timestamptz[], $7::text[])
            AS n (id, server_handle, protocol, port, create_time, free_after, set_aside_reason)
        ON CONFLICT ON CONSTRAINT port_allocations_pkey DO UPDATE
        SET project_id = NULL, module = NULL, pinned = false, free_after = excluded.free_after,
            set_aside_reason = excluded.set_aside_reason
        "#,
        &rows.id,
        &rows.server_handle,
        &rows.protocol,
        &rows.port,
        &rows.create_time,
        &rows.free_after,
        &rows.set_aside_reason as &[Option<String>]
    )
    .execute(conn)
    .await?
    .rows_affected();
    check_count("port_allocations", written, rows.id.len())
}

/// Whether there are ports whose rest is over.
///
/// # Errors
/// [`StoreError`].
pub async fn has_rested(conn: &mut PgConnection, now: OffsetDateTime) -> Result<bool, StoreError> {
    // The time is given: one that the statement asks the clock for cannot be looked up in an index.
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM port_allocations WHERE free_after < $1) AS "rested!""#,
        now
    )
    .fetch_one(conn)
    .await?)
}

/// Removes up to `limit` ports whose rest is over; tells how many there were.
///
/// # Errors
/// [`StoreError`].
pub async fn delete_rested(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    Ok(sqlx::query!(
        r#"
        DELETE FROM port_allocations WHERE (server_handle, protocol, port) IN (
            SELECT server_handle, protocol, port FROM port_allocations
            WHERE free_after < $1 ORDER BY free_after LIMIT $2 FOR UPDATE SKIP LOCKED)
        "#,
        now,
        limit
    )
    .execute(conn)
    .await?
    .rows_affected())
}
