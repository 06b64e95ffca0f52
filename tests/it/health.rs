//! What stands beside the services: health that follows the database, reflection, and the end of a service.

use std::{fs, str::FromStr as _, time::Duration};

use resource_allocator::{postgres, proto::v1};
#[cfg(target_os = "linux")]
use rustix::process::{Pid, Signal};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::support::{
    Client, TestService, error_info,
    process::{PATIENCE, folder},
    server, start_cluster,
};

const ALLOCATOR: &str = "resourceallocator.v1.ResourceAllocator";
const INVENTORY: &str = "resourceallocator.v1.ServerInventory";

async fn check(channel: &Channel, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await?;
    Ok(answer.into_inner().status())
}

/// The health of a service as it changes.
struct HealthWatch(Streaming<HealthCheckResponse>);

impl HealthWatch {
    async fn open(channel: &Channel, service: &str) -> Self {
        let request = HealthCheckRequest { service: service.to_owned() };
        Self(HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner())
    }

    async fn next(&mut self) -> ServingStatus {
        let next = tokio::time::timeout(PATIENCE, self.0.message()).await.expect("health did not change");
        next.unwrap().expect("the stream ended").status()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_for_the_whole_and_for_each_service() {
    let service = TestService::start().await;
    for name in ["", ALLOCATOR, INVENTORY] {
        assert_eq!(check(&service.client.channel, name).await.unwrap(), ServingStatus::Serving, "{name}");
    }
    let unknown = check(&service.client.channel, "resourceallocator.v1.Unknown").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

/// A client of one version of the reflection protocol; the versions differ in nothing but their names.
macro_rules! reflection {
    ($version:ident) => {
        pub mod $version {
            use tonic::transport::Channel;
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };

            async fn ask(channel: &Channel, request: MessageRequest) -> MessageResponse {
                let request =
                    ServerReflectionRequest { message_request: Some(request), ..Default::default() };
                let mut client = ServerReflectionClient::new(channel.clone());
                let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
                answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap()
            }

            pub async fn services(channel: &Channel) -> Vec<String> {
                match ask(channel, MessageRequest::ListServices(String::new())).await {
                    MessageResponse::ListServicesResponse(listed) => {
                        listed.service.into_iter().map(|service| service.name).collect()
                    }
                    other => panic!("{other:?}"),
                }
            }

            pub async fn knows(channel: &Channel, symbol: &str) -> bool {
                let answer = ask(channel, MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
                matches!(answer, MessageResponse::FileDescriptorResponse(_))
            }
        }
    };
}

mod reflected {
    reflection!(v1);
    reflection!(v1alpha);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_of_both_versions_lists_the_services_and_the_details_of_errors() {
    let service = TestService::start().await;
    let channel = &service.client.channel;
    for listed in [reflected::v1::services(channel).await, reflected::v1alpha::services(channel).await] {
        for name in [ALLOCATOR, INVENTORY, "grpc.health.v1.Health"] {
            assert!(listed.iter().any(|listed| listed == name), "{name}: {listed:?}");
        }
    }
    for symbol in
        [ALLOCATOR, "resourceallocator.v1.ErrorReason", "google.rpc.ErrorInfo", "google.rpc.RetryInfo"]
    {
        assert!(reflected::v1::knows(channel, symbol).await, "{symbol}");
        assert!(reflected::v1alpha::knows(channel, symbol).await, "{symbol}");
    }
}

/// Every call, each as it is refused.
async fn refusals(client: &Client) -> Vec<(&'static str, Status)> {
    let (mut allocator, mut inventory) = (client.allocator.clone(), client.inventory.clone());
    let project_id = || "hello-world-bot".to_owned();
    let handle = || "web-1".to_owned();
    let ensure = v1::EnsureAllocationRequest { project_id: project_id(), ..Default::default() };
    let preview = v1::EnsureAllocationRequest { validate_only: true, ..ensure.clone() };
    let release = v1::ReleaseAllocationRequest { project_id: project_id(), ..Default::default() };
    let get = v1::GetPlacementRequest { project_id: project_id() };
    let update = v1::UpdateServerRequest {
        server: Some(server("web-1")),
        update_mask: Some(pbjson_types::FieldMask { paths: vec!["address".to_owned()] }),
    };
    let report = v1::ReportUsageRequest {
        handle: handle(),
        usage: Some(v1::Usage { ram_mb: Some(1), ..Default::default() }),
    };
    let sync = v1::SyncServersRequest {
        source: "cloud".to_owned(),
        servers: vec![server("web-2")],
        ..Default::default()
    };
    vec![
        ("EnsureAllocation", allocator.ensure_allocation(ensure).await.unwrap_err()),
        ("EnsureAllocation, validate_only", allocator.ensure_allocation(preview).await.unwrap_err()),
        ("ReleaseAllocation", allocator.release_allocation(release).await.unwrap_err()),
        (
            "ListAllocations",
            allocator.list_allocations(v1::ListAllocationsRequest::default()).await.unwrap_err(),
        ),
        ("GetPlacement", allocator.get_placement(get).await.unwrap_err()),
        ("FindServer", allocator.find_server(v1::FindServerRequest::default()).await.unwrap_err()),
        (
            "WatchAllocations",
            allocator.watch_allocations(v1::WatchAllocationsRequest::default()).await.unwrap_err(),
        ),
        (
            "RegisterServer",
            inventory
                .register_server(v1::RegisterServerRequest { server: Some(server("web-2")) })
                .await
                .unwrap_err(),
        ),
        ("GetServer", inventory.get_server(v1::GetServerRequest { handle: handle() }).await.unwrap_err()),
        ("ListServers", inventory.list_servers(v1::ListServersRequest::default()).await.unwrap_err()),
        ("UpdateServer", inventory.update_server(update).await.unwrap_err()),
        ("ReportUsage", inventory.report_usage(report).await.unwrap_err()),
        ("SyncServers", inventory.sync_servers(sync).await.unwrap_err()),
        (
            "DeleteServer",
            inventory
                .delete_server(v1::DeleteServerRequest { handle: handle(), ..Default::default() })
                .await
                .unwrap_err(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_told_to_every_caller_and_taken_up_when_it_is_back() {
    let folder = folder();
    let cluster = start_cluster(folder.path());
    let connect = PgConnectOptions::from_str(&cluster.url(postgres::DATABASE)).unwrap();
    let (_running, mut client, _shutdown) = TestService::builder().start_at(connect).await;
    client.register(server("web-1")).await;
    let placed = client.ensure("hello-world-bot", &[]).await.unwrap();
    let watch = v1::WatchAllocationsRequest::default();
    let mut watching = client.allocator.watch_allocations(watch).await.unwrap().into_inner();

    let mut health = Vec::new();
    for name in ["", ALLOCATOR, INVENTORY] {
        let mut watch = HealthWatch::open(&client.channel, name).await;
        assert_eq!(watch.next().await, ServingStatus::Serving);
        health.push(watch);
    }
    tokio::task::spawn_blocking(move || cluster.stop().unwrap()).await.unwrap();
    for watch in &mut health {
        assert_eq!(watch.next().await, ServingStatus::NotServing);
    }
    for (call, refused) in refusals(&client).await {
        assert_eq!(refused.code(), Code::Unavailable, "{call}: {refused:?}");
        let (reason, metadata) = error_info(&refused);
        assert_eq!(
            (reason.as_str(), metadata["disposition"].as_str()),
            ("DATABASE_UNAVAILABLE", "TECHNICAL"),
            "{call}"
        );
        let retry = refused.get_details_retry_info().and_then(|info| info.retry_delay);
        assert!(retry.is_some_and(|delay| delay > Duration::ZERO), "{call}: {refused:?}");
        // What goes on inside stays there.
        for word in ["socket", "sqlx", "pool", folder.path().to_str().unwrap()] {
            assert!(!refused.message().contains(word), "{call}: {refused:?}");
        }
    }

    let data_dir = folder.path().to_owned();
    let _cluster = tokio::task::spawn_blocking(move || start_cluster(&data_dir)).await.unwrap();
    for watch in &mut health {
        assert_eq!(watch.next().await, ServingStatus::Serving);
    }
    let repeated = client.ensure("hello-world-bot", &[]).await.unwrap();
    assert_eq!(repeated.outcome(), v1::EnsureOutcome::Unchanged);
    assert_eq!(repeated.allocations, placed.allocations);
    // Who watched all the while goes on watching.
    client.ensure("after-the-break", &[]).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, async {
        loop {
            let message = watching.message().await.unwrap().expect("the stream ended");
            if let Some(v1::watch_allocations_response::Payload::Event(event)) = message.payload {
                return event;
            }
        }
    });
    assert_eq!(event.await.unwrap().project_id, "after-the-break");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_takes_no_writes_is_away_until_it_does() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let mut health = HealthWatch::open(&service.client.channel, "").await;
    assert_eq!(health.next().await, ServingStatus::Serving);
    // What stands already may write all the while.
    let mut sql = service.database.sql.acquire().await.unwrap();

    service.database.set_read_only(true).await;
    let end_sessions = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'resource-allocator'";
    sqlx::query(end_sessions).execute(&mut *sql).await.unwrap();
    assert_eq!(health.next().await, ServingStatus::NotServing);
    let refused = service.client.ensure("hello-world-bot", &[]).await.unwrap_err();
    assert_eq!(error_info(&refused).0, "DATABASE_UNAVAILABLE", "{refused:?}");
    // It answers, and that is not enough.
    let changed = tokio::time::timeout(Duration::from_secs(4), health.0.message()).await;
    assert!(changed.is_err(), "{changed:?}");

    service.database.set_read_only(false).await;
    assert_eq!(health.next().await, ServingStatus::Serving);
    service.client.ensure("hello-world-bot", &[]).await.unwrap();
}

/// Every process of a cluster, stopped where it is until this is dropped.
#[cfg(target_os = "linux")]
struct Frozen(Vec<Pid>);

#[cfg(target_os = "linux")]
impl Frozen {
    fn freeze(data_dir: &std::path::Path) -> Self {
        let pid_file = fs::read_to_string(data_dir.join("postgres/postmaster.pid")).unwrap();
        let postmaster = pid_file.lines().next().unwrap();
        // First the one that would make new ones.
        let stop = |pid: &str| {
            let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
            crate::support::process::signal(pid, Signal::STOP);
            pid
        };
        let mut pids = vec![stop(postmaster)];
        for thread in fs::read_dir(format!("/proc/{postmaster}/task")).unwrap() {
            let children = fs::read_to_string(thread.unwrap().path().join("children")).unwrap();
            pids.extend(children.split_whitespace().map(stop));
        }
        Self(pids)
    }
}

#[cfg(target_os = "linux")]
impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            crate::support::process::signal(*pid, Signal::CONT);
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_freezes_leaves_no_ensure_without_an_answer() {
    let folder = folder();
    let cluster = start_cluster(folder.path());
    let connect = PgConnectOptions::from_str(&cluster.url(postgres::DATABASE)).unwrap();
    let (_running, mut client, _shutdown) = TestService::builder().start_at(connect).await;
    client.register(server("web-1")).await;
    let placed = client.ensure("hello-world-bot", &[]).await.unwrap();
    let mut health = HealthWatch::open(&client.channel, "").await;
    assert_eq!(health.next().await, ServingStatus::Serving);

    // With connections that look well, in the middle of everything.
    let frozen = Frozen::freeze(folder.path());
    let callers: Vec<_> = ["hello-world-bot", "another", "a-third"]
        .map(|project_id| {
            let mut client = client.clone();
            tokio::spawn(async move { client.ensure(project_id, &[]).await })
        })
        .into();
    for caller in callers {
        let answer = tokio::time::timeout(PATIENCE, caller).await.expect("no answer").unwrap();
        let refused = answer.unwrap_err();
        assert_eq!(error_info(&refused).0, "DATABASE_UNAVAILABLE", "{refused:?}");
    }
    assert_eq!(health.next().await, ServingStatus::NotServing);
    drop(frozen);
    assert_eq!(health.next().await, ServingStatus::Serving);
    let repeated = client.ensure("hello-world-bot", &[]).await.unwrap();
    assert_eq!(repeated.allocations, placed.allocations);
    client.ensure("another", &[]).await.unwrap();
}

/// Ensures a project that hangs in the database until `release` is called, and waits until it does.
struct Held {
    transaction: sqlx::Transaction<'static, sqlx::Postgres>,
    answer: tokio::task::JoinHandle<Result<v1::EnsureAllocationResponse, Status>>,
}

impl Held {
    async fn begin(service: &TestService, project_id: &'static str) -> Self {
        let transaction = service.database.hold_pool().await;
        let mut client = service.client.clone();
        let answer = tokio::spawn(async move { client.ensure(project_id, &[]).await });
        service.database.wait_for_lock().await;
        Self { transaction, answer }
    }

    async fn release(self) -> Result<v1::EnsureAllocationResponse, Status> {
        self.transaction.rollback().await.unwrap();
        self.answer.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_says_not_serving_first_and_answers_what_is_under_way() {
    let mut builder = TestService::builder();
    builder.drain_timeout = PATIENCE;
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    let observer = Client::connect(&format!("http://{}", service.running.address)).await;
    let mut health = HealthWatch::open(&observer.channel, "").await;
    assert_eq!(health.next().await, ServingStatus::Serving);
    let held = Held::begin(&service, "hello-world-bot").await;

    service.shutdown.soft.cancel();
    assert_eq!(health.next().await, ServingStatus::NotServing);
    // Nothing new: the listener is closed while the request is still under way.
    loop {
        match TcpStream::connect(service.running.address).await {
            Err(_) => break,
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    assert!(!held.answer.is_finished());
    let answer = held.release().await.unwrap();
    assert_eq!(answer.outcome(), v1::EnsureOutcome::Created);
    drop((health, observer, service.client));
    tokio::time::timeout(PATIENCE, service.running.stopped()).await.expect("no end").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn l43_a_stop_has_an_end_with_clients_that_do_not_answer() {
    let mut builder = TestService::builder();
    builder.drain_timeout = Duration::from_millis(300);
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    let address = service.running.address;

    // One that says nothing at all, one that stops in the middle of the handshake, one that does not take note of anything after
    // it, and a watcher that never reads.
    let silent = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut deaf = TcpStream::connect(address).await.unwrap();
    // The preface, and empty SETTINGS.
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut first = [0; 9];
    deaf.read_exact(&mut first).await.unwrap();
    let watcher = Client::connect(&format!("http://{address}")).await;
    let request = v1::WatchAllocationsRequest { from_beginning: true, ..Default::default() };
    let stalled = watcher.allocator.clone().watch_allocations(request).await.unwrap();
    let health = HealthWatch::open(&watcher.channel, "").await;
    let held = Held::begin(&service, "hello-world-bot").await;

    service.shutdown.soft.cancel();
    tokio::time::timeout(PATIENCE, service.running.stopped()).await.expect("no end").unwrap();
    drop((silent, half, deaf, stalled, health, held));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_long_drain() {
    let mut builder = TestService::builder();
    builder.drain_timeout = Duration::from_hours(1);
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    let mut health = HealthWatch::open(&service.client.channel, "").await;
    assert_eq!(health.next().await, ServingStatus::Serving);
    let held = Held::begin(&service, "hello-world-bot").await;
    service.shutdown.soft.cancel();
    assert_eq!(health.next().await, ServingStatus::NotServing);
    service.shutdown.hard.cancel();
    tokio::time::timeout(PATIENCE, service.running.stopped()).await.expect("no end").unwrap();
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_streamed_to_many_at_once() {
    let service = TestService::start().await;
    let mut watches = Vec::new();
    for _ in 0..50 {
        watches.push(HealthWatch::open(&service.client.channel, ALLOCATOR).await);
    }
    for watch in &mut watches {
        assert_eq!(watch.0.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    }
}
