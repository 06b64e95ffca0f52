//! DrainServer: a server is emptied project by project, and what cannot go anywhere says why it stays.

use resource_allocator::proto::v1::{self, Disposition, ServerStatus, server_changed::Change};
use tonic::Code;

use crate::support::{
    Client, TestService,
    inventory::{assert_consistent, changes, ensure_ram, events, get, ram, refused},
    requests::{ports, request, resources},
    server, violations,
};

fn of(handle: &str) -> v1::DrainServerRequest {
    v1::DrainServerRequest { handle: handle.to_owned(), ..Default::default() }
}

fn plan(handle: &str) -> v1::DrainServerRequest {
    v1::DrainServerRequest { validate_only: true, ..of(handle) }
}

/// Projects of these sizes on `full`, which are named by their place, and the servers that they could go to.
async fn placed(sizes: &[u64], others: &[(&str, u64)]) -> TestService {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("full")).await;
    for (number, size) in sizes.iter().enumerate() {
        ensure_ram(client, &format!("p{number}"), *size).await.unwrap();
    }
    for (handle, ram_mb) in others {
        client.register(v1::Server { capacity: Some(ram(*ram_mb)), ..server(handle) }).await;
    }
    service
}

/// A project, the server that it went to, its ports there, and why it stays.
type Told<'a> = (&'a str, &'a str, Vec<(&'a str, u32)>, &'a str);

/// Each project with the server that it went to, its ports there, or why it stays.
fn told(answer: &v1::DrainServerResponse) -> Vec<Told<'_>> {
    let moved = answer.results.iter().filter(|result| result.moved).count();
    assert_eq!(answer.moved_count as usize, moved);
    let results = answer.results.iter().map(|result| {
        assert_eq!(result.moved, result.reason.is_empty(), "{result:?}");
        let to = result.server_handle.as_str();
        (result.project_id.as_str(), to, ports(&result.allocations), result.reason.as_str())
    });
    results.collect()
}

async fn server_of(client: &mut Client, project_id: &str) -> String {
    client.placement(project_id).await.unwrap().placement.unwrap().server_handle
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_takes_the_server_out_of_service_and_moves_all_that_is_on_it() {
    let mut service = placed(&[100, 200, 300], &[("a", 8000), ("b", 7900)]).await;
    let client = &mut service.client;
    let drained = client.drain(of("full")).await;
    let backend = |port| vec![("backend", port)];
    // By the id, each to where the most RAM is free then.
    assert_eq!(
        told(&drained),
        [("p0", "a", backend(8000), ""), ("p1", "a", backend(8001), ""), ("p2", "b", backend(8000), "")]
    );
    assert_eq!((drained.moved_count, drained.remaining_count), (3, 0));
    let emptied = get(client, "full").await.unwrap();
    assert_eq!((emptied.status(), emptied.placement_count), (ServerStatus::Maintenance, 0));
    assert_eq!(emptied.reserved, resources(0, 0, 0));
    assert_eq!(server_of(client, "p1").await, "a");
    let log = events(client, &service.database.sql).await;
    assert_eq!(changes(&log, "full"), [[Change::Registered], [Change::Status]]);
    assert_consistent(&service.database.sql).await;

    let before = service.database.tables().await;
    for again in [of("full"), plan("full")] {
        assert_eq!(client.drain(again).await, v1::DrainServerResponse::default());
    }
    assert_eq!(service.database.tables().await, before, "a second drain moves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_fits_nowhere_stays_and_the_others_go() {
    let mut service = placed(&[100, 6000, 300], &[("a", 4000), ("small", 10)]).await;
    let client = &mut service.client;
    let drained = client.drain(of("full")).await;
    assert_eq!(
        told(&drained),
        [
            ("p0", "a", vec![("backend", 8000)], ""),
            ("p1", "", vec![], "REQUEST_EXCEEDS_FLEET"),
            ("p2", "a", vec![("backend", 8001)], ""),
        ]
    );
    assert_eq!((drained.moved_count, drained.remaining_count), (2, 1));
    assert_eq!(server_of(client, "p1").await, "full");
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_project_stays_is_what_its_own_relocation_is_told() {
    // One that could go where there is room later, and one for which no other server is large enough.
    let mut service = placed(&[3000, 3000, 2000], &[("a", 3500)]).await;
    let client = &mut service.client;
    let drained = client.drain(of("full")).await;
    assert_eq!((drained.moved_count, drained.remaining_count), (1, 2));
    for project_id in ["p1", "p2"] {
        let result = drained.results.iter().find(|result| result.project_id == project_id).unwrap();
        assert_eq!(result.disposition(), Disposition::Wait);
        let relocation = crate::support::requests::away_from(project_id, "full");
        let alone = client.relocate(relocation).await.unwrap_err();
        assert_eq!(result.message, alone.message());
        let (reason, metadata) = crate::support::error_info(&alone);
        assert_eq!((result.reason.as_str(), metadata["disposition"].as_str()), (reason.as_str(), "WAIT"));
    }
    let mut service = placed(&[3000], &[]).await;
    let alone = service.client.drain(of("full")).await;
    assert_eq!(told(&alone), [("p0", "", vec![], "NO_SERVERS")]);
    assert_eq!(alone.results[0].disposition(), Disposition::Operator);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_writes_nothing_and_is_what_then_happens() {
    // Enough of uneven sizes that each choice depends on those before it.
    let sizes: Vec<u64> = (0..30).map(|n| 20 + n * 37 % 211).collect();
    let mut service = placed(&sizes, &[("a", 1500), ("b", 1400), ("c", 700)]).await;
    let client = &mut service.client;
    client.ensure("p7", &["second", "third"]).await.unwrap();
    let before = service.database.tables().await;
    let planned = client.drain(plan("full")).await;
    assert_eq!(service.database.tables().await, before);
    assert_eq!(planned.remaining_count, 30, "it is still there");
    assert!(planned.results.iter().flat_map(|result| &result.allocations).all(|held| held.id.is_empty()));
    assert_eq!(get(client, "full").await.unwrap().status(), ServerStatus::InUse);

    let drained = client.drain(of("full")).await;
    assert_eq!(told(&drained), told(&planned));
    assert!(drained.moved_count > 20, "{}", drained.moved_count);
    assert_eq!(drained.moved_count + drained.remaining_count, 30);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_a_page_is_repeated_until_nothing_remains() {
    let mut service = placed(&[100; 5], &[("a", 8000)]).await;
    let client = &mut service.client;
    let page = v1::DrainServerRequest { page_size: 2, ..of("full") };
    let mut calls = Vec::new();
    loop {
        let drained = client.drain(page.clone()).await;
        let ids: Vec<_> = drained.results.iter().map(|result| result.project_id.clone()).collect();
        calls.push((ids.join(" "), drained.moved_count, drained.remaining_count));
        if drained.remaining_count == 0 {
            break;
        }
    }
    let expected = [("p0 p1", 2, 3), ("p2 p3", 2, 1), ("p4", 1, 0)];
    assert_eq!(calls, expected.map(|(ids, moved, remaining)| (ids.to_owned(), moved, remaining)));
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_stay_do_not_keep_a_page_from_those_that_could_go() {
    let mut service = placed(&[2000, 2000, 100, 2000, 100, 100], &[("a", 500)]).await;
    let client = &mut service.client;
    let page = |request| v1::DrainServerRequest { page_size: 2, ..request };
    let gone = |id, port| (id, "a", vec![("backend", port)], "");
    let stays = |id| (id, "", vec![], "REQUEST_EXCEEDS_FLEET");
    let planned = client.drain(page(plan("full"))).await;
    let first = client.drain(page(of("full"))).await;
    assert_eq!(told(&first), [gone("p2", 8000), gone("p4", 8001)]);
    assert_eq!((told(&planned), first.remaining_count), (told(&first), 4));
    // Beside the last that goes there is room for one that stays.
    let second = client.drain(page(of("full"))).await;
    assert_eq!(told(&second), [stays("p0"), gone("p5", 8002)]);
    let last = client.drain(page(of("full"))).await;
    assert_eq!(told(&last), [stays("p0"), stays("p1")]);
    assert_eq!((last.moved_count, last.remaining_count), (0, 3));
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_out_of_service_keeps_its_status() {
    let mut service = placed(&[100], &[("a", 8000)]).await;
    let client = &mut service.client;
    client.set_status("full", ServerStatus::Unreachable).await;
    assert_eq!(client.drain(of("full")).await.moved_count, 1);
    assert_eq!(get(client, "full").await.unwrap().status(), ServerStatus::Unreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_no_server_or_with_bad_fields_is_refused_and_writes_nothing() {
    let mut service = placed(&[100], &[]).await;
    let client = &mut service.client;
    let before = service.database.tables().await;
    for request in [of("nowhere"), plan("nowhere")] {
        let refusal = client.inventory.drain_server(request).await;
        refused(refusal, Code::NotFound, "SERVER_NOT_FOUND");
    }
    let bad = v1::DrainServerRequest {
        handle: "a b".to_owned(),
        strategy: 99,
        page_size: -1,
        validate_only: false,
    };
    let status = client.inventory.drain_server(bad).await.unwrap_err();
    assert_eq!((status.code(), violations(&status).len()), (Code::InvalidArgument, 3));
    assert_eq!(violations(&status), ["handle", "strategy", "page_size"]);
    assert_eq!(service.database.tables().await, before);
    client.place(request("p0")).await.unwrap();
}
