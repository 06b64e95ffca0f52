//! Reads the tables into the memory of a replica that starts, or that cannot go on from the log.

use sqlx::PgConnection;
use tokio_stream::StreamExt as _;

use super::placed::Placed;
use crate::{
    domain::Fleet,
    store::{StoreError, placements, pools::PoolState, ports, read_whole_tables, servers},
};

/// How many servers are read at once.
const SERVER_PAGE: i64 = 2_000;
/// How many projects are read at once.
const PROJECT_PAGE: i64 = 20_000;

/// Reads servers and ports: a page of servers at a time, so that the fleet is not in memory twice.
pub(super) async fn fleet(
    fleet: &mut Fleet,
    conn: &mut PgConnection,
    pool: &PoolState,
) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let page = servers::list_after(conn, &pool.policy, &after, SERVER_PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.row.state.server.handle.to_string();
        for record in page {
            fleet.load_row(record.row);
        }
    }
    read_whole_tables(conn, true).await?;
    let mut rows = ports::list_held(conn);
    while let Some(held) = rows.next().await {
        let held = held?;
        fleet.load_held(&held.server_handle, held.protocol, &held.ports);
    }
    drop(rows);
    read_whole_tables(conn, false).await?;
    let mut rows = ports::list_given_back(conn);
    while let Some(row) = rows.next().await {
        let row = row?;
        fleet.load_port(&row.server_handle, row.protocol, row.port, row.standing, pool.now);
    }
    Ok(())
}

/// Reads which projects are placed, a page at a time.
pub(super) async fn placed(
    placed: &Placed,
    fleet: &Fleet,
    conn: &mut PgConnection,
) -> Result<(), StoreError> {
    let count: i64 = fleet.iter().map(|state| state.placement_count).sum();
    placed.clear(usize::try_from(count).unwrap_or(0));
    let mut after = String::new();
    loop {
        let page = placements::list_ids_after(conn, &after, PROJECT_PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(last);
        placed.load(&page);
    }
}
