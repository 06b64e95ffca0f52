//! The table `port_allocations`: one row for each port that is held or rests.

use futures_core::stream::BoxStream;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio_stream::StreamExt as _;
use uuid::Uuid;

use super::{StoreError, placements::check_count};
use crate::domain::{Allocation, Port, ProjectId, Protocol, ServerHandle, fleet::PortStanding};

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

/// The ports of one server and protocol that are held.
#[derive(Debug, Clone)]
pub struct HeldPorts {
    /// The server.
    pub server_handle: ServerHandle,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: Vec<Port>,
}

/// Reads every port that is held, a server and protocol at a time: millions of rows cost more to hand over than to gather.
pub fn list_held(conn: &mut PgConnection) -> BoxStream<'_, Result<HeldPorts, StoreError>> {
    let rows = sqlx::query!(
        r#"
        SELECT server_handle, protocol::text AS "protocol!", array_agg(port) AS "ports!"
        FROM port_allocations WHERE free_after IS NULL GROUP BY server_handle, protocol
        "#
    )
    .fetch(conn);
    Box::pin(rows.map(|row| {
        let row = row?;
        let broken =
            |problem: &str| StoreError::inconsistent("port_allocations", row.server_handle.as_str(), problem);
        Ok(HeldPorts {
            server_handle: ServerHandle::parse(&row.server_handle).map_err(|_| broken("server_handle"))?,
            protocol: protocol_from_column(&row.protocol).ok_or_else(|| broken("protocol"))?,
            ports: row
                .ports
                .iter()
                .map(|port| port_from_column(*port))
                .collect::<Option<_>>()
                .ok_or_else(|| broken("port"))?,
        })
    }))
}

/// Reads every port that has a row and is not held, without holding them all at once.
pub fn list_given_back(conn: &mut PgConnection) -> BoxStream<'_, Result<PortRow, StoreError>> {
    let rows = sqlx::query!(
        r#"
        SELECT server_handle, protocol::text AS "protocol!", port, free_after AS "free_after!",
               set_aside_reason IS NOT NULL AS "set_aside!"
        FROM port_allocations WHERE free_after IS NOT NULL
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
            standing: if row.set_aside {
                PortStanding::SetAside(row.free_after)
            } else {
                PortStanding::Resting(row.free_after)
            },
        })
    }))
}

/// Ports as columns, for statements over arrays.
#[derive(Debug, Default)]
pub struct PortColumns {
    pub(super) id: Vec<Uuid>,
    pub(super) server_handle: Vec<String>,
    pub(super) protocol: Vec<String>,
    pub(super) port: Vec<i32>,
    pub(super) project_id: Vec<String>,
    pub(super) module: Vec<String>,
    pub(super) pinned: Vec<bool>,
    pub(super) create_time: Vec<OffsetDateTime>,
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
