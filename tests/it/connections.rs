//! Connections: one too many is told so, and one that cancels without end is cut off.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use resource_allocator::proto::v1;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    Client, TestDatabase, TestService, error_info,
    process::{PATIENCE, Process, run},
};

fn list() -> v1::ListServersRequest {
    v1::ListServersRequest::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so_and_finds_a_place_later() {
    let mut builder = TestService::builder();
    builder.listener.max_connections = 2;
    let mut service = builder.start().await;
    let endpoint = format!("http://{}", service.running.address);
    service.client.inventory.list_servers(list()).await.unwrap();
    let mut second = Client::connect(&endpoint).await;
    second.inventory.list_servers(list()).await.unwrap();

    let mut third = Client::connect(&endpoint).await;
    let refused = third.inventory.list_servers(list()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let (reason, metadata) = error_info(&refused);
    assert_eq!((reason.as_str(), metadata["connection_limit"].as_str()), ("OVERLOADED", "2"));
    assert!(refused.get_details_retry_info().is_some());
    // Probes are answered all the same: a replica that is full is not broken.
    let probe = tokio::task::spawn_blocking({
        let endpoint = endpoint.clone();
        move || run(&["health", "--endpoint", &endpoint])
    });
    assert_eq!(probe.await.unwrap().status.code(), Some(0));
    service.client.inventory.list_servers(list()).await.unwrap();

    drop(second);
    let served = async { while third.inventory.list_servers(list()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, served).await.expect("no place was found");
}

/// Bytes of HTTP/2: the preface, and no settings of ours.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], into: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap();
    into.extend(&length.to_be_bytes()[1..]);
    into.extend([kind, flags]);
    into.extend(stream.to_be_bytes());
    into.extend(payload);
}

/// What a call begins with, by the static table of HPACK and two literals.
fn call_headers() -> Vec<u8> {
    let path = b"/resourceallocator.v1.ServerInventory/ListServers";
    let kind = b"application/grpc";
    let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path);
    block.extend([0x0f, 0x10, u8::try_from(kind.len()).unwrap()]);
    block.extend(kind);
    block
}

/// Opens calls and cancels each at once, without end; returns the code by which the service ended the connection, and how many it
/// was sent.
fn cancel_without_end(address: &str) -> (u32, u32) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(PREFACE).unwrap();
    let headers = call_headers();
    let mut next = 1;
    let mut sent = 0;
    // A bound for a service that takes it all.
    while sent < 1_000_000 {
        let mut burst = Vec::new();
        for _ in 0..2_000 {
            frame(HEADERS, END_HEADERS, next, &headers, &mut burst);
            frame(RST_STREAM, 0, next, &CANCEL.to_be_bytes(), &mut burst);
            next += 2;
            sent += 1;
        }
        if stream.write_all(&burst).is_err() {
            break;
        }
        stream.set_nonblocking(true).unwrap();
        let ended = matches!(stream.peek(&mut [0]), Ok(0));
        stream.set_nonblocking(false).unwrap();
        if ended {
            break;
        }
    }
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (goaway(&read_until(&mut stream, |_| false)).unwrap_or_default(), sent)
}

/// What comes until it is enough, the connection ends, or nothing comes for as long as a read may take.
fn read_until(stream: &mut TcpStream, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !is_enough(&answer) {
        match stream.read(&mut part) {
            Ok(length @ 1..) => answer.extend(&part[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
        }
    }
    answer
}

/// The code by which a client of HTTP/2 that makes no call is told to make another connection.
pub fn listen_for_goaway(address: &str) -> Option<u32> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(PREFACE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    goaway(&read_until(&mut stream, |answer| goaway(answer).is_some()))
}

/// The code of the frame that ends a connection.
fn goaway(mut answer: &[u8]) -> Option<u32> {
    while let Some((head, rest)) = answer.split_first_chunk::<9>() {
        let length = (usize::from(head[0]) << 16) | (usize::from(head[1]) << 8) | usize::from(head[2]);
        let payload = rest.get(..length)?;
        if head[3] == GOAWAY {
            return Some(u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?));
        }
        answer = &rest[length..];
    }
    None
}

/// What the process holds of memory, in KB.
#[cfg(target_os = "linux")]
fn resident_kb(service: &Process) -> u64 {
    let path = format!("/proc/{}/status", service.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

// CVE-2023-44487.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn whoever_cancels_calls_without_end_is_cut_off_and_the_others_are_served() {
    let database = TestDatabase::create().await;
    let service = Process::start_on(database.url(), &["--log-format", "json"]);
    let mut client = Client::connect(&service.endpoint()).await;
    client.inventory.list_servers(list()).await.unwrap();
    let before = resident_kb(&service);
    let attackers: Vec<_> = (0..20)
        .map(|_| {
            let address = service.address.clone();
            tokio::task::spawn_blocking(move || cancel_without_end(&address))
        })
        .collect();
    let mut served = 0;
    while served < 20 || attackers.iter().any(|attacker| !attacker.is_finished()) {
        client.inventory.list_servers(list()).await.unwrap();
        served += 1;
    }
    for attacker in attackers {
        let (code, sent) = attacker.await.unwrap();
        // The system may take the last frame back with a connection that ends while bytes are on their way.
        assert!(code == ENHANCE_YOUR_CALM || code == 0, "{code}");
        assert!(sent < 1_000_000, "{sent} were taken");
    }
    let grown = resident_kb(&service).saturating_sub(before);
    assert!(grown < 128 << 10, "{grown} KB more");
}

/// Whether the service ends the connection.
async fn is_ended(mut stream: TcpStream) -> bool {
    let ended = move || {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut part = [0; 4096];
        loop {
            match stream.read(&mut part) {
                Ok(1..) => {}
                Ok(0) => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    };
    tokio::task::spawn_blocking(ended).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_and_says_nothing_is_sent_away_and_whoever_spoke_is_not() {
    let mut builder = TestService::builder();
    builder.listener.handshake_timeout = Duration::from_millis(200);
    let mut service = builder.start().await;
    service.client.inventory.list_servers(list()).await.unwrap();
    let polls = reqwest::Client::new();
    let poll = || polls.get(format!("http://{}/healthz", service.running.address)).send();
    assert!(poll().await.unwrap().status().is_success());
    assert!(is_ended(TcpStream::connect(service.running.address).unwrap()).await);
    service.client.inventory.list_servers(list()).await.unwrap();
    assert!(poll().await.unwrap().status().is_success());
}

/// Over HTTP/1.1 nothing is read while an answer goes on and more was sent than its request.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_ends_also_where_nothing_is_read_of_it() {
    let mut builder = TestService::builder();
    builder.listener.max_connections = 1;
    let mut service = builder.start().await;
    service.client.inventory.list_servers(list()).await.unwrap();
    let mut beyond = TcpStream::connect(service.running.address).unwrap();
    let watch = b"POST /grpc.health.v1.Health/Watch HTTP/1.1\r\nhost: here\r\ncontent-type: application/grpc-web+proto\r\n\
        content-length: 5\r\n\r\n\0\0\0\0\0GET /healthz HTTP/1.1\r\n";
    beyond.write_all(watch).unwrap();
    assert!(is_ended(beyond).await);
}
