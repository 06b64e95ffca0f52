//! `wait_for_capacity`: who stands in line, who is served, and what becomes of everyone else.

use std::time::Duration;

use resource_allocator::{
    allocator::AllocatorOptions,
    proto::v1::{self, EnsureOutcome, allocation_event::Detail, left_line::Cause, server_changed::Change},
};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::support::{
    Client, Replicas, TestDatabase, TestService, TestServiceBuilder,
    inventory::{assert_consistent, events, ram, refused, wait_for_change},
    process::{PATIENCE, Process},
    requests::{module, module_at, request},
    server, violations,
};

type Answer = Result<v1::EnsureAllocationResponse, Status>;

/// An ensure of RAM alone that waits.
fn waiting(project_id: &str, ram_mb: u64, wait: Duration) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest {
        resources: Some(v1::Resources { disk_mb: Some(0), cpu_millis: Some(0), ..ram(ram_mb) }),
        wait_for_capacity: Some(wait.into()),
        ..request(project_id)
    }
}

/// The same without the wait.
fn now(request: v1::EnsureAllocationRequest) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { wait_for_capacity: None, ..request }
}

const LONG: Duration = Duration::from_mins(10);

/// A call that goes on by itself.
#[derive(Debug)]
struct Call(JoinHandle<Answer>);

impl Call {
    fn hang_up(&self) {
        self.0.abort();
    }
}

fn call(client: &Client, request: v1::EnsureAllocationRequest) -> Call {
    let mut client = client.clone();
    Call(tokio::spawn(async move { client.place(request).await }))
}

async fn answered(call: Call) -> Answer {
    tokio::time::timeout(PATIENCE, call.0).await.expect("it is answered").unwrap()
}

async fn line(client: &Client) -> Vec<v1::Waiter> {
    let request = v1::ListWaitingRequest::default();
    client.allocator.clone().list_waiting(request).await.unwrap().into_inner().waiters
}

fn names(line: &[v1::Waiter]) -> Vec<&str> {
    line.iter().map(|waiter| waiter.project_id.as_str()).collect()
}

/// Waits until these stand in line, in this order.
async fn until_line_is(client: &Client, expected: &[&str]) -> Vec<v1::Waiter> {
    let begun = std::time::Instant::now();
    loop {
        let line = line(client).await;
        if names(&line) == expected {
            return line;
        }
        assert!(begun.elapsed() < PATIENCE, "{:?} never became {expected:?}", names(&line));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Has projects stand in line one after the other, each for so much RAM.
async fn stand(client: &Client, asks: &[(&'static str, u64)]) -> Vec<Call> {
    let mut calls = Vec::new();
    let before = line(client).await;
    let mut expected = names(&before);
    for (name, ram_mb) in asks {
        calls.push(call(client, waiting(name, *ram_mb, LONG)));
        expected.push(name);
        until_line_is(client, &expected).await;
    }
    calls
}

/// A server of so much RAM, all of it taken by projects of 1024 MB: `HANDLE-0` and on.
async fn full_server(client: &mut Client, handle: &str, ram_mb: u64) {
    client.register(v1::Server { capacity: Some(ram(ram_mb)), ..server(handle) }).await;
    for n in 0..ram_mb / 1024 {
        let mut request = now(waiting(&format!("{handle}-{n}"), 1024, LONG));
        request.server_handle = Some(handle.to_owned());
        client.place(request).await.unwrap();
    }
}

fn kind(event: &v1::AllocationEvent) -> &'static str {
    match event.detail.as_ref().unwrap() {
        Detail::Requested(_) => "requested",
        Detail::Waiting(_) => "waiting",
        Detail::LeftLine(_) => "left_line",
        Detail::ServerSelected(_) => "server_selected",
        Detail::PortAllocated(_) => "port_allocated",
        Detail::Completed(_) => "completed",
        Detail::Failed(_) => "failed",
        Detail::Released(_) => "released",
        Detail::Relocated(_) => "relocated",
        Detail::PortSetAside(_) => "port_set_aside",
        Detail::FleetPolicyChanged(_) => "fleet_policy_changed",
        Detail::ServerChanged(_) => "server_changed",
    }
}

/// What the log tells of a project.
async fn told(service: &TestService, project_id: &str) -> Vec<v1::AllocationEvent> {
    let all = events(&mut service.client.clone(), &service.database.sql).await;
    all.into_iter().filter(|event| event.project_id == project_id).collect()
}

fn kinds(events: &[v1::AllocationEvent]) -> Vec<&'static str> {
    events.iter().map(kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_placed_when_room_is_given_back() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 1024).await;
    let calls = stand(client, &[("shop", 1024)]).await;
    let standing = line(client).await;
    let waiter = &standing[0];
    assert_eq!((waiter.place, waiter.reason.as_str()), (1, "INSUFFICIENT_CAPACITY"));
    assert_eq!(waiter.resources.unwrap().ram_mb, Some(1024));
    assert_eq!(waiter.kept_server_handle, "a");
    let waits = waiter.deadline.unwrap().seconds - waiter.join_time.unwrap().seconds;
    assert_eq!(waits, 600);

    client.release("a-0", &[]).await;
    for answer in calls {
        let answer = answered(answer).await.unwrap();
        assert_eq!(answer.outcome(), EnsureOutcome::Created);
        assert_eq!(answer.placement.unwrap().server_handle, "a");
        assert_eq!(answer.allocations.len(), 1);
        assert!(!answer.resume_token.is_empty());
    }
    assert!(line(client).await.is_empty());
    let told = told(&service, "shop").await;
    assert_eq!(kinds(&told), ["requested", "waiting", "server_selected", "port_allocated", "completed"]);
    let Some(Detail::Waiting(waiting)) = &told[1].detail else { panic!("{told:?}") };
    assert_eq!((waiting.place, waiting.reason.as_str()), (1, "INSUFFICIENT_CAPACITY"));
    let Some(Detail::Completed(completed)) = &told[4].detail else { panic!("{told:?}") };
    assert!(completed.waited.is_some());
    assert_eq!(told[0].request_id, told[4].request_id, "it is one request");
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_arrival_holds_and_nobody_overtakes() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 4096).await;
    full_server(client, "b", 4096).await;
    let mut calls = stand(client, &[("large", 4096), ("small", 1024)]).await.into_iter();
    client.release("a-0", &[]).await;
    // What is free on `a` is kept for the large one, from who stands in line and from who does not.
    let refusal = refused(
        client.place(now(waiting("direct", 1024, LONG))).await,
        Code::ResourceExhausted,
        "INSUFFICIENT_CAPACITY",
    );
    assert_eq!(refusal["nearest.free.ram_mb"], "0");
    let found = client.find(v1::FindServerRequest { explain: true, ..Default::default() }).await.unwrap();
    assert!(found.candidates.is_empty(), "FindServer says the same (L13)");
    assert_eq!(names(&line(client).await), ["large", "small"]);
    client.release("b-0", &[]).await;
    let large = calls.next().unwrap();
    assert_eq!(answered(calls.next().unwrap()).await.unwrap().placement.unwrap().server_handle, "b");
    for n in 1..4 {
        client.release(&format!("a-{n}"), &[]).await;
    }
    assert_eq!(answered(large).await.unwrap().placement.unwrap().server_handle, "a");
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waited_in_vain_is_told_so() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 1024).await;
    let answer = client.place(waiting("shop", 1024, Duration::from_secs(1))).await;
    let metadata = refused(answer, Code::DeadlineExceeded, "WAIT_TIMED_OUT");
    assert_eq!(metadata["disposition"], "WAIT");
    assert_eq!(metadata["waited_for"], "INSUFFICIENT_CAPACITY");
    let waited: u64 = metadata["waited_s"].parse().unwrap();
    assert!((1..30).contains(&waited), "{waited}");
    assert!(line(client).await.is_empty());
    let told = told(&service, "shop").await;
    assert_eq!(kinds(&told), ["requested", "waiting", "failed"]);
    let Some(Detail::Failed(failed)) = &told[2].detail else { panic!("{told:?}") };
    assert_eq!((failed.reason.as_str(), failed.code), ("WAIT_TIMED_OUT", Code::DeadlineExceeded.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_leaves_and_finds_its_place_when_it_comes_back() {
    let replicas = Replicas::start().await;
    let (mut one, two) = replicas.clients();
    full_server(&mut one, "a", 1024).await;
    let calls = stand(&one, &[("first", 1024), ("second", 1024)]).await;
    calls[0].hang_up();
    until_line_is(&one, &["second"]).await;
    let told = told(&replicas.service, "first").await;
    assert_eq!(kinds(&told), ["requested", "waiting", "left_line"]);
    let Some(Detail::LeftLine(left)) = &told[2].detail else { panic!("{told:?}") };
    assert_eq!(left.cause(), Cause::Cancelled);
    // At another replica, as after a connection that broke.
    let back = call(&two, waiting("first", 1024, LONG));
    let line = until_line_is(&one, &["first", "second"]).await;
    assert_eq!(line[0].place, 1);
    one.release("a-0", &[]).await;
    assert_eq!(answered(back).await.unwrap().outcome(), EnsureOutcome::Created);
    until_line_is(&two, &["second"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_sends_its_callers_to_another_one_with_their_places() {
    let mut service = TestService::start().await;
    let (running, other, shutdown) = TestService::builder().start_replica(&service.database).await;
    full_server(&mut service.client, "a", 1024).await;
    let first = call(&other, waiting("first", 1024, LONG));
    until_line_is(&service.client, &["first"]).await;
    let _second = call(&service.client, waiting("second", 1024, LONG));
    until_line_is(&service.client, &["first", "second"]).await;
    shutdown.soft.cancel();
    refused(answered(first).await, Code::Unavailable, "SHUTTING_DOWN");
    running.stopped().await.unwrap();
    assert_eq!(names(&line(&service.client).await), ["first", "second"], "the place is kept");
    let back = call(&service.client, waiting("first", 1024, LONG));
    service.client.release("a-0", &[]).await;
    answered(back).await.unwrap();
    until_line_is(&service.client, &["second"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_comes_while_the_caller_is_between_replicas_is_found_by_its_repeat() {
    let mut service = TestService::start().await;
    let (running, other, shutdown) = TestService::builder().start_replica(&service.database).await;
    full_server(&mut service.client, "a", 1024).await;
    let first = call(&other, waiting("first", 1024, LONG));
    until_line_is(&service.client, &["first"]).await;
    shutdown.soft.cancel();
    refused(answered(first).await, Code::Unavailable, "SHUTTING_DOWN");
    running.stopped().await.unwrap();
    service.client.release("a-0", &[]).await;
    until_line_is(&service.client, &[]).await;
    let repeated = service.client.place(waiting("first", 1024, LONG)).await.unwrap();
    assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
    assert_eq!(repeated.placement.unwrap().server_handle, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_gives_room_wakes_the_line_at_whichever_replica() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    let sql = &replicas.service.database.sql;
    full_server(&mut one, "a", 1024).await;
    let mut waiter = 0;
    // Alternately at both, each served by what the other one does.
    let mut wait = async |client: &Client| {
        waiter += 1;
        let name = format!("waiter-{waiter}");
        let answer = call(client, waiting(&name, 1024, LONG));
        until_line_is(client, &[&name]).await;
        answer
    };
    let on = |answer: Answer| answer.unwrap().placement.unwrap().server_handle;

    let answer = wait(&one).await;
    two.register(v1::Server { capacity: Some(ram(1024)), ..server("b") }).await;
    assert_eq!(on(answered(answer).await), "b");

    let answer = wait(&two).await;
    let grown = v1::Server { handle: "a".to_owned(), capacity: Some(ram(2048)), ..Default::default() };
    one.update(grown, &["capacity.ram_mb"]).await;
    assert_eq!(on(answered(answer).await), "a");

    one.register(v1::Server {
        capacity: Some(ram(1024)),
        status: v1::ServerStatus::Maintenance.into(),
        ..server("c")
    })
    .await;
    let answer = wait(&one).await;
    two.set_status("c", v1::ServerStatus::Ready).await;
    assert_eq!(on(answered(answer).await), "c");

    one.register(v1::Server { capacity: Some(ram(1024)), ..server("d") }).await;
    one.report("d", v1::Usage { ram_mb: Some(1000), ..Default::default() }).await;
    let answer = wait(&two).await;
    one.report("d", v1::Usage { ram_mb: Some(0), ..Default::default() }).await;
    assert_eq!(on(answered(answer).await), "d");

    one.register(v1::Server { capacity: Some(ram(2048)), headroom: Some(ram(2048)), ..server("e") }).await;
    // Bound to fit once: the headroom leaves nothing now.
    let larger = v1::Server { capacity: Some(ram(1024)), ..server("f") };
    let mut bound = waiting("waiter-e", 1024, LONG);
    bound.server_handle = Some("f".to_owned());
    one.register(larger).await;
    let mut taken = now(waiting("taken", 1024, LONG));
    taken.server_handle = Some("f".to_owned());
    one.place(taken).await.unwrap();
    let answer = call(&one, bound);
    until_line_is(&one, &["waiter-e"]).await;
    two.release("taken", &[]).await;
    assert_eq!(on(answered(answer).await), "f");

    // By hand, past every replica.
    let answer = wait(&one).await;
    sqlx::query("UPDATE servers SET headroom_ram_mb = 1024 WHERE handle = 'e'").execute(sql).await.unwrap();
    assert_eq!(on(answered(answer).await), "e");
    let answer = wait(&two).await;
    sqlx::query("DELETE FROM port_allocations WHERE project_id = 'a-0'").execute(sql).await.unwrap();
    sqlx::query("DELETE FROM placements WHERE project_id = 'a-0'").execute(sql).await.unwrap();
    assert_eq!(on(answered(answer).await), "a");
    assert_consistent(sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_fresh_reports_are_waited_for_too() {
    let mut options = TestService::builder();
    options.allocator.usage_max_age = Duration::from_secs(1);
    let mut service = options.start().await;
    let client = &mut service.client;
    let range = v1::PortRange { start: 8000, end: 8000 };
    client.register(v1::Server { port_range: Some(range), ..server("a") }).await;
    client.ensure("holds", &["backend"]).await.unwrap();
    let answer = call(client, waiting("shop", 1, LONG));
    let line = until_line_is(client, &["shop"]).await;
    assert_eq!(line[0].reason, "PORTS_EXHAUSTED");
    client.release("holds", &[]).await;
    assert_eq!(answered(answer).await.unwrap().allocations[0].port, 8000);

    client.set_status("a", v1::ServerStatus::Maintenance).await;
    client.register(server("b")).await;
    client.report("b", v1::Usage::default()).await;
    wait_for_change(client, "b", Change::UsageStale, 1).await;
    let answer = call(client, waiting("blog", 1, LONG));
    let line = until_line_is(client, &["blog"]).await;
    assert_eq!(line[0].reason, "USAGE_STALE");
    client.report("b", v1::Usage::default()).await;
    assert_eq!(answered(answer).await.unwrap().placement.unwrap().server_handle, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_shows_the_reason_of_now_and_of_who_waits_for_more_ports_too() {
    let replicas = Replicas::start().await;
    let (mut one, two) = replicas.clients();
    let ports = |start, end| Some(v1::PortRange { start, end });
    let small = v1::Server { port_range: ports(8000, 8001), capacity: Some(ram(2048)), ..server("a") };
    one.register(small).await;
    for name in ["here", "there"] {
        one.place(now(waiting(name, 1024, LONG))).await.unwrap();
    }
    let more = v1::EnsureAllocationRequest {
        modules: vec![module("more")],
        resources: None,
        ..waiting("here", 0, LONG)
    };
    let shop = call(&one, waiting("shop", 1024, LONG));
    until_line_is(&one, &["shop"]).await;
    let more = call(&two, more);
    until_line_is(&one, &["shop", "here"]).await;
    let reasons = async |client: &Client| -> Vec<_> {
        line(client).await.into_iter().map(|waiter| (waiter.place, waiter.reason)).collect()
    };
    let told = |place, reason: &str| (place, reason.to_owned());
    for client in [&one, &two] {
        let expected = [told(1, "INSUFFICIENT_CAPACITY"), told(2, "PORTS_EXHAUSTED")];
        assert_eq!(reasons(client).await, expected);
    }
    // There is room now, which is kept, and still no port.
    let grown = v1::Server { handle: "a".to_owned(), capacity: Some(ram(4096)), ..Default::default() };
    one.update(grown, &["capacity.ram_mb"]).await;
    for client in [&one, &two] {
        let expected = [told(1, "PORTS_EXHAUSTED"), told(2, "PORTS_EXHAUSTED")];
        assert_eq!(reasons(client).await, expected, "at every replica");
    }
    let wider = v1::Server { handle: "a".to_owned(), port_range: ports(8000, 8003), ..Default::default() };
    one.update(wider, &["port_range"]).await;
    assert_eq!(answered(shop).await.unwrap().allocations.len(), 1);
    assert_eq!(answered(more).await.unwrap().allocations.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_be_is_refused_at_once_and_when_it_becomes_so() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let none = client.place(waiting("shop", 1, LONG)).await;
    refused(none, Code::FailedPrecondition, "NO_SERVERS");
    full_server(client, "a", 2048).await;
    let too_large = client.place(waiting("shop", 2049, LONG)).await;
    refused(too_large, Code::FailedPrecondition, "REQUEST_EXCEEDS_FLEET");
    let mut elsewhere = waiting("shop", 1, LONG);
    elsewhere.server_selector.insert("region".to_owned(), "mars".to_owned());
    refused(client.place(elsewhere).await, Code::FailedPrecondition, "NO_MATCHING_SERVER");
    let mut pinned = waiting("shop", 1, LONG);
    pinned.server_handle = Some("z".to_owned());
    refused(client.place(pinned).await, Code::NotFound, "SERVER_NOT_FOUND");
    assert!(line(client).await.is_empty());

    let mut calls = stand(client, &[("large", 2048), ("small", 1024)]).await.into_iter();
    let shrunk = v1::Server { handle: "a".to_owned(), capacity: Some(ram(1024)), ..Default::default() };
    client.update(shrunk, &["capacity.ram_mb"]).await;
    let large = answered(calls.next().unwrap()).await;
    let metadata = refused(large, Code::FailedPrecondition, "REQUEST_EXCEEDS_FLEET");
    assert_eq!(metadata["nearest.short.ram_mb"], "1024");
    assert_eq!(names(&line(client).await), ["small"]);
    client.set_status("a", v1::ServerStatus::Maintenance).await;
    refused(answered(calls.next().unwrap()).await, Code::FailedPrecondition, "NO_ADMISSIBLE_SERVER");
    let told = told(&service, "large").await;
    assert_eq!(kinds(&told), ["requested", "waiting", "failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_waits_for_one_thing_at_a_time() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 2048).await;
    let calls = stand(client, &[("shop", 1024), ("blog", 1024)]).await;
    let other = call(client, waiting("shop", 1025, LONG));
    let [shop, blog] = calls.try_into().unwrap();
    let metadata = refused(answered(shop).await, Code::Aborted, "WAIT_SUPERSEDED");
    assert_eq!(metadata["disposition"], "CALLER");
    until_line_is(client, &["blog", "shop"]).await;
    // Released, it does not wait any more, placed or not.
    client.release("shop", &[]).await;
    refused(answered(other).await, Code::Aborted, "WAIT_RELEASED");
    // By a call that does not wait it got what it waits for.
    let grown = call(client, waiting("a-0", 2048, LONG));
    until_line_is(client, &["blog", "a-0"]).await;
    blog.hang_up();
    until_line_is(client, &["a-0"]).await;
    client.release("a-1", &[]).await;
    let grown = answered(grown).await.unwrap();
    assert_eq!(
        (grown.outcome(), grown.placement.unwrap().reserved),
        (EnsureOutcome::Extended, waiting("", 2048, LONG).resources)
    );
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_many_times_at_once_is_one_place_and_one_success_told_many_times() {
    let replicas = Replicas::start().await;
    let (mut one, two) = replicas.clients();
    full_server(&mut one, "a", 1024).await;
    let mut calls: Vec<_> =
        (0..8).map(|n| call(if n % 2 == 0 { &one } else { &two }, waiting("shop", 1024, LONG))).collect();
    let waits = "SELECT count(*) FROM allocation_events WHERE kind = 'waiting'";
    while replicas.service.database.count(waits).await < 8 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    until_line_is(&one, &["shop"]).await;
    // Those that hang up do not take the place from the others.
    for gone in calls.drain(..4) {
        gone.hang_up();
    }
    // One whose own time is over leaves the others in line.
    let short = one.clone().place(waiting("shop", 1024, Duration::from_secs(1))).await;
    refused(short, Code::DeadlineExceeded, "WAIT_TIMED_OUT");
    until_line_is(&one, &["shop"]).await;
    one.release("a-0", &[]).await;
    let mut told = Vec::new();
    for answer in calls {
        let answer = answered(answer).await.unwrap();
        told.push((answer.placement, answer.allocations));
    }
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
    let completed = "SELECT count(*) FROM allocation_events WHERE kind = 'ensured' AND project_id = 'shop'";
    assert_eq!(replicas.service.database.count(completed).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_has_an_end() {
    let allocator = AllocatorOptions { line_limit: 2, ..AllocatorOptions::default() };
    let mut service = TestServiceBuilder { allocator, ..TestService::builder() }.start().await;
    let client = &mut service.client;
    full_server(client, "a", 1024).await;
    let calls = stand(client, &[("first", 1024), ("second", 1024)]).await;
    let full = client.place(waiting("third", 1024, LONG)).await;
    let status = full.as_ref().unwrap_err().clone();
    let metadata = refused(full, Code::ResourceExhausted, "LINE_FULL");
    assert_eq!((metadata["line_limit"].as_str(), metadata["disposition"].as_str()), ("2", "WAIT"));
    assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some());
    // Who stands there already may say so again.
    let again = call(client, waiting("second", 1024, LONG));
    client.release("a-0", &[]).await;
    let [first, _] = calls.try_into().unwrap();
    answered(first).await.unwrap();
    client.release("first", &[]).await;
    answered(again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_is_listed_by_page_and_by_project() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 1024).await;
    let names = ["p-1", "p-2", "p-3", "p-4", "p-5"];
    let _calls = stand(client, &names.map(|name| (name, 1024))).await;
    let mut request = v1::ListWaitingRequest { page_size: 2, ..Default::default() };
    let mut places = Vec::new();
    loop {
        let page = client.allocator.list_waiting(request.clone()).await.unwrap().into_inner();
        assert!(page.waiters.len() <= 2);
        places.extend(page.waiters.into_iter().map(|waiter| (waiter.project_id, waiter.place)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let expected: Vec<_> = names.iter().map(|name| (*name).to_owned()).zip(1..).collect();
    assert_eq!(places, expected);
    let one = v1::ListWaitingRequest { project_id: Some("p-4".to_owned()), ..Default::default() };
    let found = client.allocator.list_waiting(one.clone()).await.unwrap().into_inner().waiters;
    assert_eq!((found.len(), found[0].place), (1, 4));
    let forged = v1::ListWaitingRequest { page_token: request.page_token, ..one };
    let status = client.allocator.list_waiting(forged).await.unwrap_err();
    assert_eq!(violations(&status), ["page_token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_makes_no_sense_is_refused_by_field_and_a_preview_does_not_wait() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 1024).await;
    for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (86_401, 0), (i64::MAX, 0)] {
        let wait_for_capacity = Some(pbjson_types::Duration { seconds, nanos });
        let request = v1::EnsureAllocationRequest { wait_for_capacity, ..request("shop") };
        let status = client.place(request).await.unwrap_err();
        assert_eq!(violations(&status), ["wait_for_capacity"], "{seconds} s {nanos} ns");
    }
    let preview = v1::EnsureAllocationRequest { validate_only: true, ..waiting("shop", 1024, LONG) };
    refused(client.place(preview).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    let zero = waiting("shop", 1024, Duration::ZERO);
    refused(client.place(zero).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    assert!(line(client).await.is_empty());
    // A port that is taken is no matter of time, as far as anyone can tell.
    client.register(server("b")).await;
    client
        .place(v1::EnsureAllocationRequest { modules: vec![module_at("x", 9000)], ..request("holds") })
        .await
        .unwrap();
    let taken = v1::EnsureAllocationRequest {
        modules: vec![module("y"), module_at("x", 9000)],
        ..waiting("shop", 1, LONG)
    };
    refused(client.place(taken).await, Code::FailedPrecondition, "PORT_TAKEN");
}

/// Calls until it is answered, at one replica or the other, as a worker does whose replica dies.
async fn insist(clients: [Client; 2], mut at: usize, project_id: String) -> v1::EnsureAllocationResponse {
    let begun = std::time::Instant::now();
    loop {
        match clients[at].clone().place(waiting(&project_id, 64, LONG)).await {
            Ok(answer) => return answer,
            Err(refused) => {
                let unavailable = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
                assert!(unavailable.contains(&refused.code()), "{project_id}: {refused:?}");
            }
        }
        assert!(begun.elapsed() < PATIENCE, "{project_id} was never answered");
        at = 1 - at;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_who_wait_none_is_lost_or_served_twice_though_a_replica_is_killed() {
    const WAITERS: usize = 100;
    let database = TestDatabase::create().await;
    let start = || Process::start_on(database.url(), &[]);
    let (mut doomed, survivor) = (start(), start());
    let clients = [Client::connect(&doomed.endpoint()).await, Client::connect(&survivor.endpoint()).await];
    let [_, mut client] = clients.clone();
    client.register(v1::Server { capacity: Some(ram(64 * WAITERS as u64)), ..server("a") }).await;
    for n in 0..WAITERS {
        client.place(now(waiting(&format!("holder-{n}"), 64, LONG))).await.unwrap();
    }
    let mut callers = Vec::new();
    let mut order = Vec::new();
    for n in 0..WAITERS {
        let name = format!("waiter-{n}");
        callers.push(tokio::spawn(insist(clients.clone(), n % 2, name.clone())));
        order.push(name);
        let place = v1::ListWaitingRequest { project_id: order.last().cloned(), ..Default::default() };
        while client.allocator.list_waiting(place.clone()).await.unwrap().into_inner().waiters.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // Piece by piece, by both, and one of them dies on the way, with half of the callers.
    for n in 0..WAITERS {
        if n == 30 {
            doomed.kill();
        }
        let mut releaser = clients[if n < 30 { n % 2 } else { 1 }].clone();
        releaser.release(&format!("holder-{n}"), &[]).await;
    }
    let mut ports = std::collections::BTreeSet::new();
    for caller in callers {
        let answer = tokio::time::timeout(PATIENCE, caller).await.expect("it is answered").unwrap();
        assert!(ports.insert(answer.allocations[0].port), "{answer:?}");
    }
    assert!(line(&client).await.is_empty());
    let served: Vec<String> = sqlx::query_scalar(
        "SELECT project_id FROM allocation_events WHERE kind = 'ensured' AND payload ? 'served' ORDER BY first_sequence",
    )
    .fetch_all(&database.sql)
    .await
    .unwrap();
    assert_eq!(served, order, "each once, in the order in which they came");
    let rows: i64 = database.count("SELECT count(*) FROM waiters").await;
    assert_eq!(rows, 0);
    assert_consistent(&database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_the_first_is_the_same_at_a_replica_that_only_follows() {
    let replicas = Replicas::start().await;
    let (mut one, two) = replicas.clients();
    full_server(&mut one, "a", 1024).await;
    // The other one has read the fleet, and from then on follows the log, which it does every 2 s.
    assert!(line(&two).await.is_empty());
    for _ in 0..2 {
        let calls = stand(&one, &[("shop", 1024)]).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let standing = line(&two).await;
        assert_eq!(standing.len(), 1);
        assert_eq!(standing[0].kept_server_handle, "a");
        calls.iter().for_each(Call::hang_up);
        one.release("shop", &[]).await;
        assert!(line(&two).await.is_empty());
    }
}

/// The call that joined last has the place in its name, and is the first to give up.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_call_that_waits_for_less_time_leaves_nobody_in_line_who_does_not_wait() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 1024).await;
    let long = stand(client, &[("shop", 1024)]).await.pop().unwrap();
    let short = client.clone().place(waiting("shop", 1024, Duration::from_secs(2))).await;
    refused(short, Code::DeadlineExceeded, "WAIT_TIMED_OUT");
    until_line_is(client, &["shop"]).await;
    long.hang_up();
    until_line_is(client, &[]).await;
    client.release("a-0", &[]).await;
    client.place(now(waiting("after", 1024, LONG))).await.unwrap();
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hangs_up_while_its_batch_waits_for_the_pools_row_takes_no_place() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 1024).await;
    let held = service.database.hold_pool().await;
    // Its own connection, which goes with it.
    let gone = call(
        &Client::connect(&format!("http://{}", service.running.address)).await,
        waiting("shop", 1024, LONG),
    );
    service.database.wait_for_lock().await;
    gone.hang_up();
    // It is gone from the service once the service answers what came after.
    let nobody = v1::GetPlacementRequest { project_id: "nobody".to_owned() };
    client.allocator.get_placement(nobody).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(200)).await;
    held.rollback().await.unwrap();
    refused(
        client.place(now(waiting("after", 1024, LONG))).await,
        Code::ResourceExhausted,
        "INSUFFICIENT_CAPACITY",
    );
    assert_eq!(names(&line(client).await), Vec::<&str>::new());
    let told = told(&service, "shop").await;
    assert!(told.is_empty() || kinds(&told).contains(&"left_line"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_of_the_first_in_line_says_what_its_call_would_do() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    full_server(client, "a", 4096).await;
    let _waits = stand(client, &[("large", 4096)]).await;
    client.release("a-0", &[]).await;
    let ask = |project_id: &str| now(waiting(project_id, 1024, LONG));
    let preview = |request| v1::EnsureAllocationRequest { validate_only: true, ..request };
    refused(client.place(preview(ask("other"))).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    refused(client.place(ask("other")).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    let previewed = client.place(preview(ask("large"))).await.unwrap();
    let placed = client.place(ask("large")).await.unwrap();
    assert_eq!((previewed.outcome(), placed.outcome()), (EnsureOutcome::Created, EnsureOutcome::Created));
    assert_eq!(previewed.allocations[0].port, placed.allocations[0].port);
}

/// It came for want of room, and lacks a port by now, which no operation gives back.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_set_aside_no_longer_is_given_to_who_waits_for_it() {
    let set_aside = Duration::from_secs(6);
    let options = AllocatorOptions { port_set_aside: set_aside, ..AllocatorOptions::default() };
    let mut service = TestServiceBuilder { allocator: options, ..TestService::builder() }.start().await;
    let client = &mut service.client;
    let ports = v1::PortRange { start: 8000, end: 8001 };
    client.register(v1::Server { capacity: Some(ram(1024)), port_range: Some(ports), ..server("a") }).await;
    client.place(now(waiting("there", 1024, LONG))).await.unwrap();
    let report = v1::ReportPortInUseRequest {
        project_id: "there".to_owned(),
        module: "backend".to_owned(),
        port: 8000,
        ..Default::default()
    };
    client.allocator.report_port_in_use(report).await.unwrap();
    let two = v1::EnsureAllocationRequest {
        modules: vec![module("web"), module("db")],
        ..waiting("shop", 1024, LONG)
    };
    let waits = call(client, two);
    assert_eq!(until_line_is(client, &["shop"]).await[0].reason, "INSUFFICIENT_CAPACITY");
    client.release("there", &[]).await;
    let placed = answered(waits).await.unwrap();
    assert_eq!(placed.allocations.len(), 2);
    assert_consistent(&service.database.sql).await;
}
