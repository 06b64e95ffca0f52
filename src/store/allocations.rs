//! The tables `placements` and `port_allocations` seen as a list, a page at a time.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    StoreError,
    ports::{port_from_column, protocol_from_column},
};
use crate::domain::{Allocation, ModuleName, ProjectId, ServerHandle};

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
