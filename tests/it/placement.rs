//! GetPlacement: what stands, and nothing of it written by asking.

use resource_allocator::proto::v1::{self, watch_allocations_response::Payload};
use tonic::Code;

use crate::support::{
    TestService, error_info,
    requests::{figures, ram, request},
    server,
};

#[tokio::test(flavor = "multi_thread")]
async fn l03_a_placement_reads_as_the_ensure_answered_it_ordered_by_module() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let created = client.ensure("shop", &["database", "backend", "Frontend"]).await.unwrap();
    let before = service.database.tables().await;
    let read = client.placement("shop").await.unwrap();
    assert_eq!((read.placement, &read.allocations), (created.placement, &created.allocations));
    let modules: Vec<_> = read.allocations.iter().map(|allocation| allocation.module.as_str()).collect();
    assert_eq!(modules, ["Frontend", "backend", "database"]);
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn l02_l04_a_project_without_a_placement_is_an_error_and_stays_without() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("gone", &[]).await.unwrap();
    client.release("gone", &[]).await;
    // A refused one has none either.
    client
        .place(v1::EnsureAllocationRequest { resources: ram(99_999), ..request("refused") })
        .await
        .unwrap_err();
    let before = service.database.tables().await;
    for project in ["never", "gone", "refused"] {
        let missing = client.placement(project).await.unwrap_err();
        assert_eq!(missing.code(), Code::NotFound);
        let (reason, metadata) = error_info(&missing);
        assert_eq!(reason, "PROJECT_NOT_FOUND");
        let figures = figures(metadata);
        assert_eq!((figures["project_id"].as_str(), figures["disposition"].as_str()), (project, "CALLER"));
    }
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_etag_changes_with_each_change_of_the_placement_and_with_no_other() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("shop", &["a"]).await.unwrap();
    let mut etags = Vec::new();
    for change in 0..6 {
        match change {
            0 => {}
            1 => drop(client.ensure("shop", &["b"]).await.unwrap()),
            2 => {
                let grow = v1::EnsureAllocationRequest { resources: ram(1024), ..request("shop") };
                client.place(grow).await.unwrap();
            }
            3 => drop(client.release("shop", &["a"]).await),
            4 => {
                client.release("shop", &[]).await;
                client.ensure("shop", &["b"]).await.unwrap();
            }
            // Repeats, other projects and the server's own changes are none of it.
            _ => {
                client.ensure("shop", &["b"]).await.unwrap();
                client.ensure("other", &["b"]).await.unwrap();
                client.release("shop", &["nothing"]).await;
                client.set_status("web-1", v1::ServerStatus::Error).await;
            }
        }
        etags.push(client.placement("shop").await.unwrap().placement.unwrap().etag);
    }
    assert_eq!(etags[4], etags[5]);
    etags.sort();
    etags.dedup();
    assert_eq!(etags.len(), 5, "{etags:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l34_an_address_that_changes_is_told_with_the_next_answer() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("shop", &[]).await.unwrap();
    client
        .update(v1::Server { address: "web-1.example.org".to_owned(), ..server("web-1") }, &["address"])
        .await;
    let read = client.placement("shop").await.unwrap();
    let repeated = client.ensure("shop", &[]).await.unwrap();
    let listed = client.list(v1::ListAllocationsRequest::default()).await.unwrap();
    assert_eq!(repeated.outcome(), v1::EnsureOutcome::Unchanged);
    for placement in [read.placement, repeated.placement] {
        assert_eq!(placement.unwrap().server_address, "web-1.example.org");
    }
    for allocations in [read.allocations, repeated.allocations, listed.allocations] {
        assert_eq!(allocations[0].server_address, "web-1.example.org");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resume_token_of_a_placement_misses_nothing_that_follows() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("shop", &["a"]).await.unwrap();
    let read = client.placement("shop").await.unwrap();
    client.release("shop", &["a"]).await;
    let watch = v1::WatchAllocationsRequest { resume_token: read.resume_token, ..Default::default() };
    let mut stream = client.allocator.watch_allocations(watch).await.unwrap().into_inner();
    let event = loop {
        if let Some(Payload::Event(event)) = stream.message().await.unwrap().unwrap().payload {
            break event;
        }
    };
    assert!(matches!(event.detail, Some(v1::allocation_event::Detail::Released(_))), "{event:?}");
}
