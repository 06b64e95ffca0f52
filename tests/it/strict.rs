//! Who saw what a server uses: a host by its reports, or its provider by a list; and the strict mode, which takes the host's word alone.

use std::time::Duration;

use resource_allocator::proto::v1::{self, EnsureOutcome, UsageObserver};
use tonic::Code;

use crate::support::{
    Client, TestService,
    inventory::{ensure_ram, get, refused, report},
    server, violations,
};

fn used(ram_mb: u64) -> v1::Usage {
    v1::Usage { ram_mb: Some(ram_mb), ..Default::default() }
}

/// A list of one server, of which its provider sees so much RAM in use.
async fn seed(client: &mut Client, handle: &str, ram_mb: u64) {
    let listed = v1::Server { provider_usage: Some(used(ram_mb)), ..server(handle) };
    let request =
        v1::SyncServersRequest { source: "cloud".to_owned(), servers: vec![listed], ..Default::default() };
    assert_eq!(client.inventory.sync_servers(request).await.unwrap().into_inner().rejected, 0);
}

/// What is seen in use, by whom, and what is free, in MB RAM.
async fn observed(client: &mut Client, handle: &str) -> (u64, UsageObserver, i64) {
    let read = get(client, handle).await.unwrap();
    let observed = read.observed.unwrap();
    (observed.usage.as_ref().unwrap().ram_mb.unwrap(), observed.observer(), read.free.unwrap().ram_mb)
}

async fn make_stale(service: &TestService, handle: &str) {
    sqlx::query("UPDATE servers SET observe_time = observe_time - interval '1 hour' WHERE handle = $1")
        .bind(handle)
        .execute(&service.database.sql)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_strict_mode_a_server_takes_nothing_before_its_host_reports() {
    let mut builder = TestService::builder();
    builder.allocator.usage_required = true;
    let mut service = builder.start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    let metadata = refused(ensure_ram(client, "p", 1).await, Code::Unavailable, "USAGE_STALE");
    assert_eq!((metadata["rejected.USAGE_STALE"].as_str(), metadata["server_handles"].as_str()), ("1", "a"));
    // A provider's figure is not the host's.
    seed(client, "b", 100).await;
    let metadata = refused(ensure_ram(client, "p", 1).await, Code::Unavailable, "USAGE_STALE");
    assert_eq!(metadata["rejected.USAGE_STALE"], "2");
    let find = v1::FindServerRequest { explain: true, ..Default::default() };
    let found = client.find(find).await.unwrap();
    let reasons: Vec<_> = found
        .rejections
        .iter()
        .map(|left_out| (left_out.server_handle.as_str(), left_out.reason.as_str()))
        .collect();
    assert_eq!(reasons, [("a", "USAGE_STALE"), ("b", "USAGE_STALE")]);

    report(client, "b", used(100)).await.unwrap();
    let placed = ensure_ram(client, "p", 1).await.unwrap().placement.unwrap();
    assert_eq!((placed.server_handle.as_str(), placed.server_admissible), ("b", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_server_keeps_what_it_holds_and_grows_nothing() {
    let mut builder = TestService::builder();
    builder.allocator.usage_required = true;
    let service = builder.start().await;
    let mut client = service.client.clone();
    let client = &mut client;
    client.register(server("a")).await;
    report(client, "a", used(0)).await.unwrap();
    ensure_ram(client, "p", 100).await.unwrap();
    make_stale(&service, "a").await;
    let repeated = ensure_ram(client, "p", 100).await.unwrap();
    assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
    assert!(!repeated.placement.unwrap().server_admissible);
    let grown = ensure_ram(client, "p", 101).await;
    let metadata = refused(grown, Code::FailedPrecondition, "BOUND_SERVER_NOT_ADMISSIBLE");
    assert_eq!((metadata["cause"].as_str(), metadata["server_handle"].as_str()), ("USAGE_STALE", "a"));
    report(client, "a", used(0)).await.unwrap();
    assert_eq!(ensure_ram(client, "p", 101).await.unwrap().outcome(), EnsureOutcome::Extended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_figure_stands_in_until_the_host_reports() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    seed(client, "a", 8000).await;
    assert_eq!(observed(client, "a").await, (8000, UsageObserver::Provider, 192));
    refused(ensure_ram(client, "p", 193).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    // A newer figure of the same source takes its place.
    seed(client, "a", 7000).await;
    assert_eq!(observed(client, "a").await, (7000, UsageObserver::Provider, 1192));
    ensure_ram(client, "p", 193).await.unwrap();

    report(client, "a", used(500)).await.unwrap();
    assert_eq!(observed(client, "a").await, (500, UsageObserver::Host, 7692));
    seed(client, "a", 8000).await;
    assert_eq!(observed(client, "a").await, (500, UsageObserver::Host, 7692), "the host knows better");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_figure_does_not_grow_stale_and_a_hosts_does() {
    let mut builder = TestService::builder();
    builder.allocator.usage_max_age = Duration::from_mins(1);
    let mut service = builder.start().await;
    let mut client = service.client.clone();
    seed(&mut client, "a", 100).await;
    make_stale(&service, "a").await;
    ensure_ram(&mut client, "p", 1).await.unwrap();
    report(&mut client, "a", used(100)).await.unwrap();
    make_stale(&service, "a").await;
    refused(ensure_ram(&mut service.client, "q", 1).await, Code::Unavailable, "USAGE_STALE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_figure_comes_by_a_list_alone() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let seeded = v1::Server { provider_usage: Some(used(1)), ..server("a") };
    let request = v1::RegisterServerRequest { server: Some(seeded) };
    let status = client.inventory.register_server(request).await.unwrap_err();
    assert_eq!(
        (status.code(), violations(&status)),
        (Code::InvalidArgument, vec!["server.provider_usage".to_owned()])
    );
    refused(get(client, "a").await, Code::NotFound, "SERVER_NOT_FOUND");
    // In a list, a figure that is none is refused by its place there.
    let listed = v1::Server {
        provider_usage: Some(v1::Usage {
            ram_mb: Some(u64::MAX),
            listening_ports: vec![0],
            ..Default::default()
        }),
        ..server("a")
    };
    let request =
        v1::SyncServersRequest { source: "cloud".to_owned(), servers: vec![listed], ..Default::default() };
    let status = client.inventory.sync_servers(request).await.unwrap_err();
    let expected = ["servers[0].provider_usage.listening_ports[0]", "servers[0].provider_usage.ram_mb"]
        .map(str::to_owned);
    assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, expected.to_vec()));
}
