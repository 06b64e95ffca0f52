//! ReleaseAllocation: what goes back, when, and what stays.

use std::{collections::BTreeSet, time::Duration};

use resource_allocator::{
    allocator::AllocatorOptions,
    proto::v1::{self, EnsureOutcome, ServerStatus},
};
use sqlx::Executor as _;
use tokio::task::JoinSet;

use crate::support::{
    TestService, error_info,
    inventory::assert_consistent,
    requests::{leased, module, ports, ram, request, resources, udp},
    server,
};

#[tokio::test(flavor = "multi_thread")]
async fn l20_a_release_gives_everything_back_and_says_what_it_was() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let registered = service.database.tables_but_log().await["servers"].clone();
    let modules = vec![module("worker"), udp("api")];
    let wanted =
        v1::EnsureAllocationRequest { modules, resources: resources(100, 2048, 4096), ..request("shop") };
    let created = client.place(wanted).await.unwrap();

    let released = client.release("shop", &[]).await;
    assert!(released.placement_removed);
    assert_eq!(released.released, created.allocations);
    assert_eq!(error_info(&client.placement("shop").await.unwrap_err()).0, "PROJECT_NOT_FOUND");
    assert_eq!(
        service.database.operations("shop").await,
        [("ensured".to_owned(), 5), ("released".to_owned(), 1)]
    );
    // The server is as it was before: nothing reserved, `ready`, the same revision and etag.
    assert_eq!(service.database.tables_but_log().await["servers"], registered);
    assert_eq!(service.database.count("SELECT count(*) FROM placements").await, 0);
    // The ports rest, and are nobody's.
    assert_eq!(
        service
            .database
            .count("SELECT count(*) FROM port_allocations WHERE project_id IS NULL AND module IS NULL AND free_after > now()")
            .await,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_goes_back_by_itself_and_the_capacity_with_the_last_one() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let created = client.ensure("shop", &["a", "b", "c"]).await.unwrap();

    let released = client.release("shop", &["b"]).await;
    assert!(!released.placement_removed);
    assert_eq!(released.released, created.allocations[1..2]);
    let read = client.placement("shop").await.unwrap();
    assert_eq!(ports(&read.allocations), [("a", 8000), ("c", 8002)]);
    let (before, after) = (created.placement.unwrap(), read.placement.unwrap());
    assert_eq!(after.reserved, before.reserved);
    assert_ne!(after.etag, before.etag);
    assert_eq!(service.database.count("SELECT reserved_ram_mb FROM servers").await, 512);

    // The module comes back on another port, for its own rests.
    let again = client.ensure("shop", &["b"]).await.unwrap();
    assert_eq!(again.outcome(), EnsureOutcome::Extended);
    assert_eq!(ports(&again.allocations), [("a", 8000), ("b", 8003), ("c", 8002)]);

    // Named in any order and twice, known and unknown: what is there goes, ordered by module.
    let released = client.release("shop", &["c", "nothing", "a", "c"]).await;
    assert_eq!(
        (ports(&released.released), released.placement_removed),
        (vec![("a", 8000), ("c", 8002)], false)
    );
    let released = client.release("shop", &["b"]).await;
    assert_eq!((ports(&released.released), released.placement_removed), (vec![("b", 8003)], true));
    assert_eq!(service.database.count("SELECT reserved_ram_mb + placement_count FROM servers").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn l04_a_release_of_what_is_not_there_is_fine_and_writes_nothing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("shop", &["api"]).await.unwrap();
    client.ensure("gone", &[]).await.unwrap();
    client.release("gone", &[]).await;
    let before = service.database.tables().await;
    for (project, modules) in [
        ("unknown", &[][..]),
        ("unknown", &["api"]),
        ("shop", &["backend", "API"]),
        ("gone", &[]),
        ("gone", &["backend"]),
    ] {
        let released = client.release(project, modules).await;
        assert_eq!(released, v1::ReleaseAllocationResponse::default());
    }
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_server_gives_back_what_it_holds() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("shop", &[]).await.unwrap();
    client.set_status("web-1", ServerStatus::Missing).await;
    let released = client.release("shop", &[]).await;
    assert!(released.placement_removed);
    assert_eq!(released.released[0].server_address, "192.0.2.1");
    assert_eq!(
        service
            .database
            .count("SELECT count(*) FROM servers WHERE status = 'missing' AND placement_count = 0")
            .await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_project_gives_back_the_next_one_takes() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let all = |project: &str| v1::EnsureAllocationRequest { resources: ram(8192), ..request(project) };
    for round in 0..5 {
        let (project, next) = (format!("project-{round}"), format!("project-{}", round + 1));
        client.place(all(&project)).await.unwrap();
        let refused = client.place(all(&next)).await.unwrap_err();
        assert_eq!(error_info(&refused).0, "INSUFFICIENT_CAPACITY");
        client.release(&project, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_need_not_rest_is_given_again_at_once() {
    let mut builder = TestService::builder();
    builder.allocator = AllocatorOptions { port_rest: Duration::ZERO, ..AllocatorOptions::default() };
    let mut service = builder.start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    for round in 0..5 {
        let project = format!("project-{round}");
        let answer = client.place(request(&project)).await.unwrap();
        assert_eq!(answer.allocations[0].port, 8000);
        client.release(&project, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_with_a_row_that_no_replica_knows_of_is_given_all_the_same() {
    let mut service = TestService::start().await;
    let sql = service.database.sql.clone();
    service.client.register(server("web-1")).await;
    service.client.place(request("first")).await.unwrap();
    // Upkeep leaves it for a while.
    let unknown = "BEGIN; SET LOCAL resource_allocator.writer = 'service';
         INSERT INTO port_allocations (id, server_handle, protocol, port, free_after)
         SELECT gen_random_uuid(), 'web-1', 'tcp', max(port) + 1, now() - interval '1 second' FROM port_allocations; COMMIT";
    // Under the pool's row, for that it is a lease.
    sql.execute(unknown).await.unwrap();
    let lease = service.client.place(leased("lease", 3600)).await.unwrap();
    assert_eq!(lease.allocations[0].port, 8001);
    // Planned ahead, among others.
    sql.execute(unknown).await.unwrap();
    let mut calls = JoinSet::new();
    for n in 0..3 {
        let mut client = service.client.clone();
        calls.spawn(async move { client.place(request(&format!("project-{n}"))).await.unwrap() });
    }
    let answers = calls.join_all().await;
    let ports: BTreeSet<_> = answers.iter().map(|answer| answer.allocations[0].port).collect();
    assert_eq!(ports, (8002..=8004).collect());
    assert_consistent(&sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_release_16_times_at_once_gives_back_once() {
    let service = TestService::start().await;
    let mut client = service.client.clone();
    client.register(server("web-1")).await;
    let created = client.ensure("shop", &["a", "b"]).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..16 {
        let mut client = service.client.clone();
        calls.spawn(async move { client.release("shop", &[]).await });
    }
    let (told, nothing): (Vec<_>, Vec<_>) =
        calls.join_all().await.into_iter().partition(|answer| answer.placement_removed);
    assert_eq!((told.len(), nothing.len()), (1, 15));
    assert_eq!(told[0].released, created.allocations);
    assert!(nothing.iter().all(|answer| answer.released.is_empty()));
    assert_eq!(service.database.operations("shop").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_and_ensures_of_one_project_at_once_leave_it_whole() {
    let service = TestService::start().await;
    let mut client = service.client.clone();
    client.register(server("web-1")).await;
    let mut calls = JoinSet::new();
    for number in 0..48 {
        let mut client = service.client.clone();
        calls.spawn(async move {
            match number % 3 {
                0 => drop(client.ensure("shop", &["a", "b"]).await.unwrap()),
                1 => drop(client.release("shop", &["a"]).await),
                _ => drop(client.release("shop", &[]).await),
            }
        });
    }
    calls.join_all().await;
    let read = client.ensure("shop", &["a", "b"]).await.unwrap();
    let modules: Vec<_> = read.allocations.iter().map(|allocation| allocation.module.as_str()).collect();
    assert_eq!(modules, ["a", "b"]);
    let database = &service.database;
    assert_eq!(database.count("SELECT count(*) FROM placements").await, 1);
    assert_eq!(database.count("SELECT count(*) FROM port_allocations WHERE project_id = 'shop'").await, 2);
    assert_eq!(database.count("SELECT reserved_ram_mb FROM servers").await, 512);
}
