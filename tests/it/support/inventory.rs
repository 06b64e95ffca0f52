//! Short calls of the inventory, the log from its beginning, and what must hold of the tables after any test.

use std::collections::HashMap;

use resource_allocator::proto::v1::{
    self, allocation_event::Detail, server_changed::Change, watch_allocations_response::Payload,
};
use sqlx::PgPool;
use tonic::{Code, Status};

use super::{Client, error_info};

/// Asserts a refusal's code and reason; returns its metadata.
pub fn refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> HashMap<String, String> {
    let status = result.expect_err("it is refused");
    let (told, metadata) = error_info(&status);
    assert_eq!((status.code(), told.as_str()), (code, reason), "{status:?}");
    metadata
}

/// Registers, or replaces, a server.
pub async fn register(client: &mut Client, server: v1::Server) -> Result<v1::Server, Status> {
    let request = v1::RegisterServerRequest { server: Some(server) };
    client.inventory.register_server(request).await.map(|response| response.into_inner().server.unwrap())
}

/// Reads a server.
pub async fn get(client: &mut Client, handle: &str) -> Result<v1::Server, Status> {
    let request = v1::GetServerRequest { handle: handle.to_owned() };
    client.inventory.get_server(request).await.map(|response| response.into_inner().server.unwrap())
}

/// Changes the fields of these paths.
pub async fn update(client: &mut Client, server: v1::Server, paths: &[&str]) -> Result<v1::Server, Status> {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let update_mask = Some(pbjson_types::FieldMask { paths });
    let request = v1::UpdateServerRequest { server: Some(server), update_mask };
    client.inventory.update_server(request).await.map(|response| response.into_inner().server.unwrap())
}

/// Removes a server; an empty etag is none.
pub async fn delete(client: &mut Client, handle: &str, etag: &str) -> Result<(), Status> {
    let request = v1::DeleteServerRequest { handle: handle.to_owned(), etag: etag.to_owned() };
    client.inventory.delete_server(request).await.map(|_| ())
}

/// Reports a usage.
pub async fn report(client: &mut Client, handle: &str, usage: v1::Usage) -> Result<v1::Server, Status> {
    let request = v1::ReportUsageRequest { handle: handle.to_owned(), usage: Some(usage) };
    client.inventory.report_usage(request).await.map(|response| response.into_inner().server.unwrap())
}

/// The handles of a list, and the token of the page after it.
pub async fn list(
    client: &mut Client,
    request: v1::ListServersRequest,
) -> Result<(Vec<String>, String), Status> {
    let page = client.inventory.list_servers(request).await?.into_inner();
    Ok((page.servers.into_iter().map(|server| server.handle).collect(), page.next_page_token))
}

/// An amount of RAM alone.
pub fn ram(ram_mb: u64) -> v1::Resources {
    v1::Resources { ram_mb: Some(ram_mb), ..v1::Resources::default() }
}

/// An ensure that asks for RAM alone: no disk, no processor time.
pub async fn ensure_ram(
    client: &mut Client,
    project_id: &str,
    ram_mb: u64,
) -> Result<v1::EnsureAllocationResponse, Status> {
    let request = v1::EnsureAllocationRequest {
        project_id: project_id.to_owned(),
        resources: Some(v1::Resources { ram_mb: Some(ram_mb), disk_mb: Some(0), cpu_millis: Some(0) }),
        ..Default::default()
    };
    client.allocator.ensure_allocation(request).await.map(tonic::Response::into_inner)
}

/// Every event up to the newest one that is committed when this is called, by a watch from the beginning.
pub async fn events(client: &mut Client, sql: &PgPool) -> Vec<v1::AllocationEvent> {
    let newest: i64 = sqlx::query_scalar("SELECT last_sequence FROM pools").fetch_one(sql).await.unwrap();
    let request = v1::WatchAllocationsRequest { from_beginning: true, ..Default::default() };
    let mut stream = client.allocator.watch_allocations(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    let mut at = 0;
    while at < newest {
        match stream.message().await.unwrap().unwrap().payload.unwrap() {
            Payload::Event(event) => {
                assert_eq!(event.sequence, at + 1, "the log has no gap");
                at = event.sequence;
                events.push(event);
            }
            Payload::Bookmark(bookmark) => assert_eq!(bookmark.sequence, at, "a bookmark skips no event"),
        }
    }
    events
}

/// What the events tell of one server, in order.
pub fn changes(events: &[v1::AllocationEvent], handle: &str) -> Vec<Vec<Change>> {
    events
        .iter()
        .filter(|event| event.server_handle == handle)
        .filter_map(|event| match event.detail.as_ref().unwrap() {
            Detail::ServerChanged(changed) => {
                assert_eq!(changed.server.as_ref().unwrap().handle, handle);
                Some(changed.changes().collect())
            }
            _ => None,
        })
        .collect()
}

/// Waits for the event that tells a change of a server for the `nth` time since the log began.
pub async fn wait_for_change(
    client: &mut Client,
    handle: &str,
    change: Change,
    nth: usize,
) -> v1::AllocationEvent {
    let request = v1::WatchAllocationsRequest {
        from_beginning: true,
        server_handle: Some(handle.to_owned()),
        ..Default::default()
    };
    let mut stream = client.allocator.watch_allocations(request).await.unwrap().into_inner();
    let found = async {
        let mut count = 0;
        loop {
            if let Payload::Event(event) = stream.message().await.unwrap().unwrap().payload.unwrap()
                && changes(std::slice::from_ref(&event), handle).iter().flatten().any(|told| *told == change)
            {
                count += 1;
                if count == nth {
                    return event;
                }
            }
        }
    };
    // An end to a test that fails; the one that passes takes no notice of it.
    let limit = std::time::Duration::from_secs(30);
    tokio::time::timeout(limit, found)
        .await
        .unwrap_or_else(|_| panic!("{change:?} of {handle} is never told"))
}

/// What must hold whatever happened: sums equal rows, no server is sold beyond its budget, each port is its
/// project's, and the log has no gap. Not for tests that lower a budget below what is reserved.
pub async fn assert_consistent(sql: &PgPool) {
    let wrong: Vec<String> = sqlx::query_scalar(
        r"
        SELECT 'sums of ' || s.handle FROM servers s
        LEFT JOIN (SELECT server_handle, count(*) AS n, sum(reserved_cpu_millis) AS cpu, sum(reserved_ram_mb) AS ram,
                          sum(reserved_disk_mb) AS disk FROM placements GROUP BY server_handle) p ON p.server_handle = s.handle
        WHERE (s.placement_count, s.reserved_cpu_millis, s.reserved_ram_mb, s.reserved_disk_mb)
              IS DISTINCT FROM (coalesce(p.n, 0), coalesce(p.cpu, 0), coalesce(p.ram, 0), coalesce(p.disk, 0))
        UNION ALL
        SELECT 'oversold ' || handle FROM servers
        WHERE reserved_cpu_millis > budget_cpu_millis OR reserved_ram_mb > budget_ram_mb OR reserved_disk_mb > budget_disk_mb
        UNION ALL
        SELECT 'status of ' || handle FROM servers
        WHERE status IN ('ready', 'in_use') AND (status = 'in_use') <> (placement_count > 0)
        UNION ALL
        SELECT 'port ' || a.port || ' of ' || a.server_handle FROM port_allocations a
        LEFT JOIN placements p ON p.project_id = a.project_id
        WHERE a.project_id IS NOT NULL AND p.server_handle IS DISTINCT FROM a.server_handle
        UNION ALL
        SELECT 'log before ' || first_sequence FROM (
            SELECT first_sequence, lag(last_sequence, 1, 0::bigint) OVER (ORDER BY first_sequence) AS before
            FROM allocation_events) e
        WHERE first_sequence <> before + 1
        UNION ALL
        SELECT 'counter of the log' FROM pools
        WHERE last_sequence <> (SELECT coalesce(max(last_sequence), 0) FROM allocation_events)
        ",
    )
    .fetch_all(sql)
    .await
    .unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}
