//! What a connection and a caller may cost: each limit is hit, is told, and leaves the others served. What just keeps the limits of
//! a request is taken.

use std::{
    collections::BTreeMap, iter::repeat_n, net::TcpStream, num::NonZeroU32, process::Command, time::Duration,
};

use resource_allocator::{listener::ConnectionLimits, proto::v1};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::{
    connections,
    support::{
        TestDatabase, TestService, error_info,
        malformed::tells_no_more_than_it_should,
        process::{Ended, PATIENCE, binary, run},
        requests::{module, request, resources},
        server, violations,
    },
};

async fn limited(change: impl FnOnce(&mut ConnectionLimits)) -> TestService {
    let mut builder = TestService::builder();
    change(&mut builder.listener.connection);
    builder.start().await
}

fn list() -> v1::ListServersRequest {
    v1::ListServersRequest::default()
}

fn watch() -> v1::WatchAllocationsRequest {
    v1::WatchAllocationsRequest::default()
}

#[track_caller]
fn assert_invalid(refused: &Status, told: &str) {
    let (reason, metadata) = error_info(refused);
    assert_eq!(reason, "INVALID_REQUEST", "{refused:?}");
    assert_eq!(metadata["disposition"], "CALLER");
    assert!(refused.message().contains(told), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_too_many_parts_is_refused_before_it_is_read() {
    let mut service = TestService::start().await;
    let source = "cloud".to_owned();
    let servers = vec![v1::Server::default(); 20_000];
    let request = v1::SyncServersRequest { source, servers, ..Default::default() };
    let refused = service.client.inventory.sync_servers(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_invalid(&refused, "more than 20000 fields");
    service.client.register(server("web-1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused() {
    let mut service = limited(|limits| limits.max_message_bytes = 4096).await;
    let project_id = "a".repeat(5000);
    let request = v1::GetPlacementRequest { project_id };
    let refused = service.client.allocator.get_placement(request).await.unwrap_err();
    assert_invalid(&refused, "4096");
    service.client.register(server("web-1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_too_large_are_refused() {
    let mut service = limited(|limits| limits.max_header_bytes = 2048).await;
    let mut request = Request::new(list());
    request.metadata_mut().insert("x-large", "a".repeat(4096).parse().unwrap());
    service.client.inventory.list_servers(request).await.unwrap_err();
    service.client.inventory.list_servers(list()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_as_many_calls_under_way_as_it_may() {
    let service = limited(|limits| limits.max_streams = 2).await;
    let mut client = service.client.clone();
    // The first call is over when the client knows the limit.
    client.inventory.list_servers(list()).await.unwrap();
    let first = client.allocator.watch_allocations(watch()).await.unwrap().into_inner();
    let _second = client.allocator.watch_allocations(watch()).await.unwrap().into_inner();
    let third = tokio::spawn(async move { client.inventory.list_servers(list()).await });
    // Another connection is served meanwhile.
    let mut other = crate::support::Client::connect(&format!("http://{}", service.running.address)).await;
    for _ in 0..20 {
        other.inventory.list_servers(list()).await.unwrap();
    }
    assert!(!third.is_finished());
    drop(first);
    tokio::time::timeout(PATIENCE, third).await.expect("its turn never came").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_grew_old_ends_and_another_is_made() {
    let mut service = limited(|limits| {
        limits.max_age = Some(Duration::from_millis(500));
        limits.max_age_grace = Duration::from_millis(500);
    })
    .await;
    let mut stream = service.client.allocator.watch_allocations(watch()).await.unwrap().into_inner();
    let end = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the stream went on");
    // The old one may be on its way out while the next call is made.
    let served = async { while service.client.inventory.list_servers(list()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, served).await.expect("no other connection was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_calls_too_often_is_told_when_to_come_back() {
    let mut builder = TestService::builder();
    builder.max_call_rate = NonZeroU32::new(20);
    let service = builder.start().await;
    let mut client = service.client.clone();
    let mut refused = None;
    for _ in 0..1000 {
        if let Err(status) = client.inventory.list_servers(list()).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("a thousand calls were not too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let (reason, metadata) = error_info(&refused);
    assert_eq!((reason.as_str(), metadata["limit"].as_str()), ("RATE_LIMITED", "20"));
    let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    // Probes are never counted.
    let health = service.running.address.to_string();
    assert_eq!(run(&["health", "--endpoint", &format!("http://{health}")]).status.code(), Some(0));
    tokio::time::sleep(delay).await;
    client.inventory.list_servers(list()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_with_what_is_not_seen_is_refused() {
    let mut service = TestService::start().await;
    for hidden in ["\u{202e}", "\u{200b}", "\u{feff}", "\u{1b}[2J", "\u{2066}"] {
        let mut given = server("web-1");
        given.labels.insert("zone".to_owned(), format!("a{hidden}b"));
        given.external_id = format!("i-{hidden}7");
        given.source = "cloud".to_owned();
        let request = v1::RegisterServerRequest { server: Some(given) };
        let refused = service.client.inventory.register_server(request).await.unwrap_err();
        let mut fields = violations(&refused);
        fields.sort();
        assert_eq!(fields, ["server.external_id", "server.labels[zone]"], "{hidden:?}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_descriptors_is_told_and_gets_over() {
    let database = TestDatabase::create().await;
    let binary = binary();
    let mut command = Command::new("sh");
    for (name, value) in binary.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(["-c", "ulimit -n 48; exec \"$@\"", "sh"]).arg(binary.get_program());
    command.args(["serve", "--listen", "127.0.0.1:0", "--database-connections", "7"]);
    command.args(["--database-url", database.url()]);
    let service = Ended::start(command);
    let address = service.said.wait_for("listening on ");
    let idle: Vec<_> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    service.said.wait_for("cannot take a connection");
    drop(idle);
    let endpoint = format!("http://{address}");
    crate::support::process::wait_until("an answer", || {
        run(&["servers", "list", "--endpoint", &endpoint]).status.code() == Some(0)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_of_everything_is_taken_and_comes_back() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let long = |limit: usize| format!("A{}", ".".repeat(limit - 1));
    let labels: BTreeMap<_, _> = (0..64).map(|n| (format!("{n:0>63}"), "🦀".repeat(255))).collect();
    let address = [repeat_n('a', 63), repeat_n('b', 63), repeat_n('c', 63), repeat_n('d', 61)]
        .map(String::from_iter)
        .join(".");
    let registered = client
        .register(v1::Server {
            handle: long(128),
            address: address.clone(),
            labels: labels.clone(),
            capacity: resources(1_000_000_000, 1_000_000_000_000, 1_000_000_000_000),
            port_range: Some(v1::PortRange { start: 1, end: 65_535 }),
            excluded_ports: vec![v1::PortRange { start: 1, end: 65_470 }; 1024],
            source: long(63),
            external_id: "🦀".repeat(255),
            ..Default::default()
        })
        .await;
    assert_eq!((&registered.labels, &registered.address), (&labels, &address));
    let modules: Vec<_> = (0..64).map(|n| module(&format!("{n:0>63}"))).collect();
    let placed = client
        .place(v1::EnsureAllocationRequest {
            modules,
            resources: resources(1_000_000_000, 1_000_000_000_000, 1_000_000_000_000),
            server_handle: Some(long(128)),
            server_selector: labels,
            start_port: Some(65_471),
            ..request(&long(128))
        })
        .await
        .unwrap();
    assert_eq!((placed.allocations[0].port, placed.allocations[63].port), (65_471, 65_534));
    let full = client.ensure("other", &[]).await.unwrap_err();
    assert_eq!(error_info(&full).0, "INSUFFICIENT_CAPACITY");
    tells_no_more_than_it_should(&full);

    // Lists with the longest filters go on to their next page.
    // A character that is written in eight where it is escaped.
    let value = "\u{e000}".repeat(255);
    for handle in ["other-1", "other-2"] {
        let labels = [(long(63), value.clone())].into_iter().collect();
        client.register(v1::Server { source: long(63), labels, ..server(handle) }).await;
    }
    let list = v1::ListServersRequest {
        label: format!("{}={value}", long(63)),
        source: Some(long(63)),
        page_size: 1,
        ..Default::default()
    };
    let first = client.inventory.list_servers(list.clone()).await.unwrap().into_inner();
    let second = v1::ListServersRequest { page_token: first.next_page_token, ..list };
    let second = client.inventory.list_servers(second).await.unwrap().into_inner();
    assert_eq!((first.servers[0].handle.as_str(), second.servers[0].handle.as_str()), ("other-1", "other-2"));
    let list = v1::ListAllocationsRequest {
        project_id: Some(long(128)),
        server_handle: Some(long(128)),
        page_size: 1,
        ..Default::default()
    };
    let first = client.list(list.clone()).await.unwrap();
    let second =
        client.list(v1::ListAllocationsRequest { page_token: first.next_page_token, ..list }).await.unwrap();
    assert_eq!(second.allocations[0].module, format!("{:0>63}", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_cannot_ask_at_any_length() {
    let service = TestService::start().await;
    let mut health = HealthClient::new(service.client.channel.clone());
    let asked = |length| HealthCheckRequest { service: "s".repeat(length) };
    assert_invalid(&health.check(asked(2000)).await.unwrap_err(), "1024");
    assert_eq!(health.check(asked(500)).await.unwrap_err().code(), Code::NotFound);
}

/// What is under way when a connection grows old goes on for the grace, which is long here.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_grew_old_says_so_and_its_calls_go_on() {
    let mut service = limited(|limits| {
        limits.max_age = Some(Duration::from_millis(500));
        limits.max_age_grace = Duration::from_mins(10);
        // Whoever does not answer would be told the same.
        limits.keepalive_interval = Duration::from_mins(10);
    })
    .await;
    let mut stream = service.client.allocator.watch_allocations(watch()).await.unwrap().into_inner();
    let address = service.running.address;
    let told = move || connections::listen_for_goaway(&address.to_string());
    let told = tokio::task::spawn_blocking(told).await.unwrap();
    assert_eq!(told, Some(0), "it is told, with no error");
    // The stream's own connection is older.
    let endpoint = format!("http://{address}");
    crate::support::Client::connect(&endpoint).await.register(server("web-1")).await;
    let told = async {
        while let Some(message) = stream.next().await {
            if matches!(message.unwrap().payload, Some(v1::watch_allocations_response::Payload::Event(_))) {
                return;
            }
        }
        panic!("the stream ended");
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the stream is silent");
}
