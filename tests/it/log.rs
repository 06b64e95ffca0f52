//! The log of the real binary: one line a call, and levels that change while it runs.

use std::fs;

use resource_allocator::proto::v1;
use serde_json::Value;
use tonic::{Code, Request, transport::Endpoint};

use crate::support::{
    Client, TestDatabase,
    credentials::{CredentialFile, TokenClient},
    figures::{scrape, value},
    process::{Process, folder, run, wait_until},
    requests::{ram, request},
    server,
};

/// The lines about a call, by its id.
fn lines(service: &Process, request_id: &str) -> Vec<Value> {
    let said = service.said().text();
    let lines = said.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["span"]["request_id"] == request_id).collect()
}

fn line(service: &Process, request_id: &str) -> Value {
    wait_until("the line of the call", || !lines(service, request_id).is_empty());
    let [line] = lines(service, request_id).try_into().unwrap();
    line
}

fn called<T>(message: T, request_id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", request_id.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_one_line_that_says_whose_it_was_and_what_came_of_it() {
    let database = TestDatabase::create().await;
    let service = Process::start_on(database.url(), &["--log-format", "json"]);
    let mut client = Client::connect(&service.endpoint()).await;
    client.register(server("web-1")).await;
    let mut seen = Vec::new();
    for (id, outcome) in [("first", "created"), ("again", "unchanged")] {
        client.allocator.ensure_allocation(called(request("shop"), id)).await.unwrap();
        seen.push((id, "shop", outcome, "OK", Value::Null));
    }
    let large = v1::EnsureAllocationRequest { resources: ram(1 << 30), ..request("giant") };
    client.allocator.ensure_allocation(called(large, "large")).await.unwrap_err();
    seen.push(("large", "giant", "refused", "FAILED_PRECONDITION", "REQUEST_EXCEEDS_FLEET".into()));
    client.allocator.ensure_allocation(called(request("no good"), "bad")).await.unwrap_err();
    seen.push(("bad", "no good", "refused", "INVALID_ARGUMENT", "INVALID_REQUEST".into()));
    for (id, project_id, outcome, code, reason) in seen {
        let line = line(&service, id);
        assert_eq!(line["level"], "INFO", "{line}");
        assert_eq!(line["message"], "answered", "{line}");
        assert_eq!(line["project_id"], project_id, "{line}");
        assert_eq!(line["outcome"], outcome, "{line}");
        assert_eq!(line["code"], code, "{line}");
        assert_eq!(line["reason"], reason, "{line}");
        assert!(line["duration_us"].is_u64(), "{line}");
        assert_eq!(line["span"]["method"], "/resourceallocator.v1.ResourceAllocator/EnsureAllocation");
        assert_eq!(line["span"]["actor"], Value::Null, "nobody says who calls: {line}");
    }
    // Probes are told to those who ask for it.
    assert_eq!(run(&["health", "--endpoint", &service.endpoint()]).status.code(), Some(0));
    client.allocator.ensure_allocation(called(request("shop"), "last")).await.unwrap();
    line(&service, "last");
    assert!(!service.said().text().contains("grpc.health"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_says_who_called_where_the_service_knows() {
    let mut file = CredentialFile::new();
    let token = file.token("deploy-worker", "worker", "");
    let database = TestDatabase::create().await;
    let tokens = file.path();
    let flags = ["--log-format", "json", "--auth-tokens", tokens.to_str().unwrap()];
    let service = Process::start_on(database.url(), &flags);
    let channel = Endpoint::from_shared(service.endpoint()).unwrap().connect().await.unwrap();
    let get = || v1::GetPlacementRequest { project_id: "shop".to_owned() };
    let mut known = TokenClient::new(&channel, &token).allocator;
    assert_eq!(known.get_placement(called(get(), "known")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(line(&service, "known")["span"]["actor"], "deploy-worker");
    let mut unknown = TokenClient::new(&channel, "ra_unknown").allocator;
    assert_eq!(
        unknown.get_placement(called(get(), "unknown")).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert_eq!(line(&service, "unknown")["span"]["actor"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_what_is_answered_in_json_has_the_code_too() {
    let database = TestDatabase::create().await;
    let service = Process::start_on(database.url(), &["--log-format", "json"]);
    let http = reqwest::Client::new();
    let list = "/resourceallocator.v1.ResourceAllocator/ListAllocations";
    for (id, path, status, code, reason) in [
        ("good", "/api/allocations/?project_id=shop", 200, "OK", Value::Null),
        ("bad", "/api/allocations/?project_id=no%20good", 400, "INVALID_ARGUMENT", "INVALID_REQUEST".into()),
        ("no-call", list, 415, "INVALID_ARGUMENT", "INVALID_REQUEST".into()),
    ] {
        let url = format!("{}{path}", service.endpoint());
        assert_eq!(http.get(url).header("x-request-id", id).send().await.unwrap().status(), status, "{id}");
        let line = line(&service, id);
        assert_eq!(line["http_status"], status, "{line}");
        assert_eq!((&line["code"], &line["reason"]), (&Value::from(code), &reason), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_levels_of_the_log_change_while_the_service_runs() {
    let database = TestDatabase::create().await;
    let folder = folder();
    let levels = folder.path().join("levels");
    fs::write(&levels, "warn\n").unwrap();
    let service = Process::start_on(
        database.url(),
        &["--log-format", "json", "--log-levels", levels.to_str().unwrap()],
    );
    let mut client = Client::connect(&service.endpoint()).await;
    client.register(server("web-1")).await;
    client.allocator.ensure_allocation(called(request("shop"), "quiet")).await.unwrap();

    fs::write(&levels, "# as loud as usual\ninfo\n").unwrap();
    service.said().wait_for("the levels of the log changed");
    client.allocator.ensure_allocation(called(request("shop"), "told")).await.unwrap();
    line(&service, "told");
    assert!(lines(&service, "quiet").is_empty());

    // What makes no sense leaves the levels as they are.
    fs::write(&levels, "resource_allocator=loud\n").unwrap();
    service.said().wait_for("make no sense");
    client.allocator.ensure_allocation(called(request("shop"), "still")).await.unwrap();
    line(&service, "still");

    fs::write(&levels, "resource_allocator=debug\n").unwrap();
    wait_until("the line of a probe", || {
        run(&["health", "--endpoint", &service.endpoint()]);
        service.said().text().contains("grpc.health")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_no_call_and_what_is_dropped_is_counted() {
    let database = TestDatabase::create().await;
    let folder = folder();
    let levels = folder.path().join("levels");
    fs::write(&levels, "info\n").unwrap();
    let flags = ["--log-format", "json", "--log-levels", levels.to_str().unwrap()];
    let service =
        Process::start_on(database.url(), &[&flags[..], &["--metrics-listen", "127.0.0.1:0"]].concat());
    let figures = service.said().wait_for("figures for Prometheus at ");
    let mut client = Client::connect(&service.endpoint()).await;
    client.register(server("web-1")).await;

    // Several times what a pipe takes, of lines that find room in the queue.
    let held = service.said().hold();
    for call in 0..1_000 {
        client.allocator.ensure_allocation(called(request("shop"), &format!("waits-{call}"))).await.unwrap();
    }
    assert!(dropped(&figures).await < 1.0);
    drop(held);
    wait_until("every line", || service.said().text().matches("\"waits-").count() == 1_000);

    // The wire, frame by frame: more than the queue takes.
    fs::write(&levels, "trace\n").unwrap();
    service.said().wait_for("the levels of the log changed");
    let held = service.said().hold();
    while dropped(&figures).await < 1.0 {
        client.allocator.ensure_allocation(request("shop")).await.unwrap();
    }
    drop(held);
    while lines(&service, "read-again").is_empty() {
        client.allocator.ensure_allocation(called(request("shop"), "read-again")).await.unwrap();
    }
}

/// How many lines were dropped.
async fn dropped(figures: &str) -> f64 {
    value(&scrape(figures).await, "allocator_log_lines_dropped_total").unwrap()
}

#[test]
fn a_file_of_levels_that_makes_no_sense_keeps_the_service_from_starting() {
    let folder = folder();
    let levels = folder.path().join("levels");
    let flag = ["serve", "--log-levels", levels.to_str().unwrap()];
    let told = run(&flag);
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    assert!(String::from_utf8_lossy(&told.stderr).contains("--log-levels"), "{told:?}");
    fs::write(&levels, "info,=").unwrap();
    assert_eq!(run(&flag).status.code(), Some(1));
}
