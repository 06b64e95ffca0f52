//! WatchAllocations: each event once and in order, from wherever a watcher starts, across reconnects and replicas.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use resource_allocator::{
    api::token::{ResumeToken, Tokens},
    proto::v1::{
        self, AllocationEvent, EnsureOutcome, WatchAllocationsRequest, WatchAllocationsResponse,
        allocation_event::Detail, resource_allocator_client::ResourceAllocatorClient, server_changed::Change,
        watch_allocations_response::Payload,
    },
    server::RunningServer,
    shutdown::Shutdown,
};
use sqlx::{Connection as _, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use uuid::Uuid;

use crate::support::{
    Client, TestDatabase, TestService, error_info,
    requests::{away, labels, module, module_at, ram, ram_overcommit, request, resources, udp},
    server, violations, watching,
};

/// Far above what anything here takes: a bound for a hang, not an expectation.
const PATIENCE: Duration = Duration::from_mins(1);

fn from_beginning() -> WatchAllocationsRequest {
    WatchAllocationsRequest { from_beginning: true, ..Default::default() }
}

fn after(resume_token: &str) -> WatchAllocationsRequest {
    WatchAllocationsRequest { resume_token: resume_token.to_owned(), ..Default::default() }
}

/// A stream of messages, none of which may be waited for without an end.
struct Watch(Streaming<WatchAllocationsResponse>);

impl Watch {
    async fn open(client: &Client, request: WatchAllocationsRequest) -> Self {
        Self::try_open(client, request).await.unwrap()
    }

    async fn try_open(client: &Client, request: WatchAllocationsRequest) -> Result<Self, Status> {
        client.allocator.clone().watch_allocations(request).await.map(|answer| Self(answer.into_inner()))
    }

    async fn try_message(&mut self) -> Result<Option<WatchAllocationsResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.0.message()).await.expect("no message came")
    }

    async fn message(&mut self) -> WatchAllocationsResponse {
        self.try_message().await.unwrap().expect("the stream ended")
    }

    async fn bookmark(&mut self) -> i64 {
        let message = self.message().await;
        assert!(!message.resume_token.is_empty());
        match message.payload {
            Some(Payload::Bookmark(bookmark)) => bookmark.sequence,
            other => panic!("no bookmark: {other:?}"),
        }
    }

    /// The next event, whatever bookmarks stand before it.
    async fn event(&mut self) -> AllocationEvent {
        loop {
            if let Some(Payload::Event(event)) = self.message().await.payload {
                return event;
            }
        }
    }

    /// Every message up to the one that says that everything up to `sequence` was sent.
    async fn up_to(&mut self, sequence: i64) -> Vec<WatchAllocationsResponse> {
        let mut messages = Vec::new();
        loop {
            let message = self.message().await;
            let reached = sequence_of(&message) >= sequence;
            messages.push(message);
            if reached {
                return messages;
            }
        }
    }

    /// Why the stream ended.
    async fn end(&mut self) -> Status {
        watching::end(&mut self.0).await
    }
}

fn sequence_of(message: &WatchAllocationsResponse) -> i64 {
    match &message.payload {
        Some(Payload::Event(event)) => event.sequence,
        Some(Payload::Bookmark(bookmark)) => bookmark.sequence,
        None => panic!("an empty message"),
    }
}

fn events(messages: Vec<WatchAllocationsResponse>) -> Vec<AllocationEvent> {
    messages
        .into_iter()
        .filter_map(|message| match message.payload {
            Some(Payload::Event(event)) => Some(event),
            _ => None,
        })
        .collect()
}

fn sequences(events: &[AllocationEvent]) -> Vec<i64> {
    events.iter().map(|event| event.sequence).collect()
}

fn kind(event: &AllocationEvent) -> &'static str {
    match event.detail.as_ref().expect("an event without a detail") {
        Detail::Requested(_) => "requested",
        Detail::Waiting(_) => "waiting",
        Detail::ServerSelected(_) => "server_selected",
        Detail::PortAllocated(_) => "port_allocated",
        Detail::Completed(_) => "completed",
        Detail::Failed(_) => "failed",
        Detail::Released(_) => "released",
        Detail::Relocated(_) => "relocated",
        Detail::PortSetAside(_) => "port_set_aside",
        Detail::FleetPolicyChanged(_) => "fleet_policy_changed",
        Detail::ServerChanged(_) => "server_changed",
        Detail::LeftLine(_) => "left_line",
    }
}

fn kinds(events: &[AllocationEvent]) -> Vec<&'static str> {
    events.iter().map(kind).collect()
}

async fn last_sequence(sql: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT last_sequence FROM pools").fetch_one(sql).await.unwrap()
}

fn wide(handle: &str) -> v1::Server {
    let capacity =
        v1::Resources { cpu_millis: Some(0), ram_mb: Some(10_000_000), disk_mb: Some(100_000_000) };
    v1::Server { capacity: Some(capacity), ..server(handle) }
}

async fn release(client: &mut Client, project_id: &str) {
    let request = v1::ReleaseAllocationRequest { project_id: project_id.to_owned(), ..Default::default() };
    client.allocator.release_allocation(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_story_is_told_from_the_beginning() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let mut request = Request::new(v1::EnsureAllocationRequest {
        project_id: "hello-world-bot".to_owned(),
        ..Default::default()
    });
    request.metadata_mut().insert("x-request-id", "deploy-17".parse().unwrap());
    let created = client.allocator.ensure_allocation(request).await.unwrap().into_inner();
    client.ensure("hello-world-bot", &[]).await.unwrap();
    client.ensure("hello-world-bot", &["frontend"]).await.unwrap();
    client.ensure("Not placed", &[]).await.unwrap_err();
    let too_large = v1::EnsureAllocationRequest {
        project_id: "too-large".to_owned(),
        resources: Some(v1::Resources { ram_mb: Some(99_999), ..Default::default() }),
        ..Default::default()
    };
    let refused = client.allocator.ensure_allocation(too_large).await.unwrap_err();
    release(client, "hello-world-bot").await;

    let last = last_sequence(&service.database.sql).await;
    let mut watch = Watch::open(client, from_beginning()).await;
    assert_eq!(watch.bookmark().await, 0, "a bookmark opens the stream");
    let told = events(watch.up_to(last).await);
    assert_eq!(watch.bookmark().await, last, "a bookmark ends the replay");

    assert_eq!(sequences(&told), (1..=last).collect::<Vec<_>>());
    assert_eq!(
        kinds(&told),
        [
            "server_changed",
            "requested",
            "server_selected",
            "port_allocated",
            "completed",
            "requested",
            "port_allocated",
            "completed",
            "requested",
            "failed",
            "released",
        ]
    );
    let Some(Detail::ServerChanged(changed)) = &told[0].detail else { panic!("{told:#?}") };
    assert_eq!(changed.changes().collect::<Vec<_>>(), [Change::Registered]);
    assert_eq!((told[0].server_handle.as_str(), told[0].project_id.as_str()), ("web-1", ""));

    for event in &told[1..5] {
        assert_eq!((event.project_id.as_str(), event.request_id.as_str()), ("hello-world-bot", "deploy-17"));
        let handle = if kind(event) == "requested" { "" } else { "web-1" };
        assert_eq!(event.server_handle, handle, "{event:?}");
    }
    let Some(Detail::ServerSelected(selected)) = &told[2].detail else { panic!("{told:#?}") };
    assert_eq!((selected.server_handle.as_str(), selected.server_address.as_str()), ("web-1", "192.0.2.1"));
    let (before, left) = (selected.free_before.unwrap().ram_mb, selected.free_after.unwrap().ram_mb);
    assert_eq!((before, left), (8192, 8192 - 512));
    let Some(Detail::PortAllocated(allocated)) = &told[3].detail else { panic!("{told:#?}") };
    assert_eq!(allocated.allocation.as_ref(), created.allocations.first());
    let Some(Detail::Completed(completed)) = &told[4].detail else { panic!("{told:#?}") };
    assert_eq!((completed.outcome(), completed.allocation_count), (EnsureOutcome::Created, 1));
    let Some(Detail::Completed(completed)) = &told[7].detail else { panic!("{told:#?}") };
    assert_eq!((completed.outcome(), completed.allocation_count), (EnsureOutcome::Extended, 2));

    let Some(Detail::Failed(failed)) = &told[9].detail else { panic!("{told:#?}") };
    let (reason, metadata) = error_info(&refused);
    assert_eq!((failed.reason.as_str(), failed.code), (reason.as_str(), refused.code().into()));
    assert_eq!(failed.message, refused.message());
    assert_eq!(told[9].request_id, metadata["request_id"]);
    let Some(Detail::Released(released)) = &told[10].detail else { panic!("{told:#?}") };
    assert!(released.placement_removed);
    let modules: Vec<_> = released.allocations.iter().map(|a| (a.module.as_str(), a.port)).collect();
    assert_eq!(modules, [("backend", 8000), ("frontend", 8001)]);

    for event in &told {
        assert!(!event.request_id.is_empty(), "{event:?}");
        assert!(event.event_time.is_some(), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_now_tells_what_follows_and_nothing_else() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("before", &[]).await.unwrap();
    let mut watch = Watch::open(client, WatchAllocationsRequest::default()).await;
    let opened_at = watch.bookmark().await;
    assert_eq!(opened_at, last_sequence(&service.database.sql).await);
    client.ensure("after", &[]).await.unwrap();
    let told: Vec<_> =
        [watch.event().await, watch.event().await, watch.event().await, watch.event().await].into();
    assert_eq!(kinds(&told), ["requested", "server_selected", "port_allocated", "completed"]);
    assert_eq!(sequences(&told), (opened_at + 1..=opened_at + 4).collect::<Vec<_>>());
    assert!(told.iter().all(|event| event.project_id == "after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_of_an_operation_resumes_to_exactly_its_rest() {
    let mut service = TestService::start().await;
    let (_replica, other, _shutdown) = TestService::builder().start_replica(&service.database).await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("hello-world-bot", &["a", "b", "c"]).await.unwrap();
    client.ensure("next", &[]).await.unwrap();
    let last = last_sequence(&service.database.sql).await;
    let told = Watch::open(client, from_beginning()).await.up_to(last).await;
    let whole = events(told.clone());
    for message in &told {
        let seen = sequence_of(message);
        if seen == last {
            continue;
        }
        // At this replica as at the other, with filters or without.
        for client in [&*client, &other] {
            let mut watch = Watch::open(client, after(&message.resume_token)).await;
            let rest = events(watch.up_to(last).await);
            assert_eq!(sequences(&rest), (seen + 1..=last).collect::<Vec<_>>());
            assert_eq!(rest, whole[usize::try_from(seen).unwrap()..]);
            let request = WatchAllocationsRequest {
                project_id: Some("hello-world-bot".to_owned()),
                ..after(&message.resume_token)
            };
            let rest = events(Watch::open(client, request).await.up_to(last).await);
            let expected = whole.iter().filter(|e| e.sequence > seen && e.project_id == "hello-world-bot");
            assert_eq!(rest, expected.cloned().collect::<Vec<_>>());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_hold_in_the_replay_and_live() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(wide("web-1")).await;
    client.register(wide("web-2")).await;
    let filtered = |project: Option<&str>, server: Option<&str>| WatchAllocationsRequest {
        project_id: project.map(str::to_owned),
        server_handle: server.map(str::to_owned),
        ..from_beginning()
    };
    let place = |client: &Client, project: &str, server: &str| {
        let mut allocator = client.allocator.clone();
        let request = v1::EnsureAllocationRequest {
            project_id: project.to_owned(),
            server_handle: Some(server.to_owned()),
            ..Default::default()
        };
        async move { allocator.ensure_allocation(request).await.unwrap() }
    };
    place(client, "shop", "web-1").await;
    place(client, "blog", "web-2").await;
    let filters = [
        (Some("shop"), None),
        (None, Some("web-1")),
        (Some("shop"), Some("web-1")),
        (Some("shop"), Some("web-2")),
        (Some("unknown"), None),
    ];
    let mut watches = Vec::new();
    for (project, server) in filters {
        watches.push(Watch::open(client, filtered(project, server)).await);
    }
    let replayed = last_sequence(&service.database.sql).await;
    let mut told: Vec<Vec<_>> = Vec::new();
    for watch in &mut watches {
        told.push(events(watch.up_to(replayed).await));
    }
    release(client, "shop").await;
    release(client, "blog").await;
    // The end, which every watcher comes to by a bookmark of its own.
    let last = last_sequence(&service.database.sql).await;
    for (told, watch) in told.iter_mut().zip(&mut watches) {
        told.extend(events(watch.up_to(last).await));
    }
    let told: Vec<_> = told.iter().map(|events| kinds(events)).collect();
    let placed_there = ["server_selected", "port_allocated", "completed", "released"];
    assert_eq!(told[0], [&["requested"][..], &placed_there].concat());
    assert_eq!(told[1][0], "server_changed");
    assert!(told[1].ends_with(&placed_there), "{told:?}");
    assert!(told[2].ends_with(&placed_there), "{told:?}");
    assert!(told[3].iter().all(|kind| *kind == "requested"), "{told:?}");
    assert!(told[4].is_empty(), "{told:?}");
}

/// Allocations by project and module, as a list and the events after it tell them.
#[derive(Default)]
struct Held(BTreeMap<(String, String), u32>);

impl Held {
    async fn list(client: &Client) -> (Self, String) {
        let mut held = Self::default();
        let mut request = v1::ListAllocationsRequest { page_size: 7, ..Default::default() };
        loop {
            let page = client.allocator.clone().list_allocations(request.clone()).await.unwrap().into_inner();
            page.allocations.into_iter().for_each(|allocation| held.add(allocation));
            if page.next_page_token.is_empty() {
                return (held, page.resume_token);
            }
            request.page_token = page.next_page_token;
        }
    }

    fn add(&mut self, allocation: v1::Allocation) {
        self.0.insert((allocation.project_id, allocation.module), allocation.port);
    }

    fn fold(&mut self, event: AllocationEvent) {
        match event.detail {
            Some(Detail::PortAllocated(allocated)) => self.add(allocated.allocation.unwrap()),
            Some(Detail::Released(released)) => {
                for allocation in released.allocations {
                    self.0.remove(&(allocation.project_id, allocation.module));
                }
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lists_and_then_watches_misses_nothing() {
    let mut service = TestService::start().await;
    service.client.register(wide("web-1")).await;
    let mut writer = service.client.clone();
    let writing = tokio::spawn(async move {
        for round in 0..40 {
            writer.ensure(&format!("project-{round}"), &["a", "b"]).await.unwrap();
            if round % 3 == 0 {
                release(&mut writer, &format!("project-{round}")).await;
            }
        }
    });
    let mut listed = Vec::new();
    while !writing.is_finished() {
        listed.push(Held::list(&service.client).await);
    }
    writing.await.unwrap();
    let last = last_sequence(&service.database.sql).await;
    let (expected, _) = Held::list(&service.client).await;
    assert_eq!(expected.0.len(), 52);
    // One page each is as of one snapshot; a later page may be newer, and folding what it holds already changes nothing.
    for (mut held, token) in listed {
        let told = Watch::open(&service.client, after(&token)).await.up_to(last).await;
        for event in events(told) {
            held.fold(event);
        }
        assert_eq!(held.0, expected.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_ensure_answers_resumes_after_it() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let created = client.ensure("hello-world-bot", &[]).await.unwrap();
    let unchanged = client.ensure("hello-world-bot", &[]).await.unwrap();
    let request = v1::GetPlacementRequest { project_id: "hello-world-bot".to_owned() };
    let read = client.allocator.get_placement(request).await.unwrap().into_inner();
    release(client, "hello-world-bot").await;
    for token in [created.resume_token, unchanged.resume_token, read.resume_token] {
        let event = Watch::open(client, after(&token)).await.event().await;
        assert_eq!((kind(&event), event.sequence), ("released", 6));
    }
}

/// Ensures and releases from several callers over both replicas.
async fn load(clients: [Client; 2], callers: usize, rounds: usize) {
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let mut client = clients[caller % clients.len()].clone();
            tokio::spawn(async move {
                for round in 0..rounds {
                    let project = format!("project-{caller}-{round}");
                    client.ensure(&project, &["a", "b", "c"]).await.unwrap();
                    if round % 2 == 0 {
                        release(&mut client, &project).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_reconnects_all_the_time_sees_each_event_once_and_in_order() {
    let mut service = TestService::start().await;
    let (_replica, other, _shutdown) = TestService::builder().start_replica(&service.database).await;
    service.client.register(wide("web-1")).await;
    let clients = [service.client.clone(), other];
    let loading = tokio::spawn(load(clients.clone(), 8, 10));

    // One event from the server, and for each ensure 6, for each second one another.
    let last = 1 + 8 * (10 * 6 + 5);
    let mut told = Vec::new();
    let mut request = from_beginning();
    for turn in 0.. {
        let mut watch = Watch::open(&clients[turn % 2], request).await;
        // Hung up in the middle of operations: after 1 to 7 messages.
        let mut token = String::new();
        for _ in 0..=turn % 7 {
            let message = watch.message().await;
            token.clone_from(&message.resume_token);
            told.extend(events(vec![message]));
            if told.last().is_some_and(|event| event.sequence == last) {
                break;
            }
        }
        if told.last().is_some_and(|event| event.sequence == last) {
            break;
        }
        request = after(&token);
    }
    loading.await.unwrap();
    assert_eq!(last_sequence(&service.database.sql).await, last);
    assert_eq!(sequences(&told), (1..=last).collect::<Vec<_>>());
    let whole = events(Watch::open(&clients[0], from_beginning()).await.up_to(last).await);
    assert_eq!(told, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn l42_watchers_of_every_replica_are_told_the_same_in_commit_order() {
    let mut service = TestService::start().await;
    let (_replica, other, _shutdown) = TestService::builder().start_replica(&service.database).await;
    service.client.register(wide("web-1")).await;
    let clients = [service.client.clone(), other];
    let mut watches =
        [Watch::open(&clients[0], from_beginning()).await, Watch::open(&clients[1], from_beginning()).await];
    load(clients, 8, 10).await;
    let last = last_sequence(&service.database.sql).await;
    let [one, two] = &mut watches;
    let (one, two) = (events(one.up_to(last).await), events(two.up_to(last).await));
    assert_eq!(sequences(&one), (1..=last).collect::<Vec<_>>());
    assert_eq!(one, two);
    let gaps: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT first_sequence, lag(last_sequence, 1, 0::bigint) OVER (ORDER BY first_sequence) \
         AS before FROM allocation_events) AS log WHERE first_sequence <> before + 1",
    )
    .fetch_one(&service.database.sql)
    .await
    .unwrap();
    assert_eq!(gaps, 0);
}

/// A replica hands round what it has just committed without reading it back, and what another one committed as the log holds it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_live_is_what_the_log_holds_whatever_was_done() {
    let mut service = TestService::start().await;
    let (_replica, other, _shutdown) = TestService::builder().start_replica(&service.database).await;
    let mut live =
        [Watch::open(&service.client, from_beginning()).await, Watch::open(&other, from_beginning()).await];
    let client = &mut service.client;
    for handle in ["web-1", "web-2"] {
        client.register(v1::Server { labels: labels(&[("zone", "eu-1")]), ..wide(handle) }).await;
    }
    // They follow from here on: before, there may be more to read than this takes.
    let registered = last_sequence(&service.database.sql).await;
    let mut told = Vec::new();
    for watch in &mut live {
        told.push(events(watch.up_to(registered).await));
    }
    // One that is planned ahead, and those that are not.
    client.ensure("plain", &["web", "worker"]).await.unwrap();
    client.ensure("plain", &["cron"]).await.unwrap();
    let selected = v1::EnsureAllocationRequest {
        server_selector: labels(&[("zone", "eu-1")]),
        modules: vec![module_at("web", 9000), udp("dns")],
        start_port: Some(9100),
        resources: resources(0, 300, 400),
        // The tables hold microseconds.
        ttl: Some(pbjson_types::Duration { seconds: 3600, nanos: 123_456_789 }),
        ..request("leased")
    };
    client.place(selected).await.unwrap();
    client
        .place(v1::EnsureAllocationRequest { resources: ram(20_000_000), ..request("large") })
        .await
        .unwrap_err();
    client.relocate(away("plain")).await.unwrap();
    client.port_in_use("leased", "dns", 9100).await.unwrap();
    client.set_policy(ram_overcommit(150)).await.unwrap();
    client.set_status("web-2", v1::ServerStatus::Maintenance).await;
    client.release("plain", &["cron"]).await;
    client.release("plain", &[]).await;
    let waits = v1::EnsureAllocationRequest {
        resources: ram(15_000_000),
        wait_for_capacity: Some(pbjson_types::Duration { seconds: 0, nanos: 123_456_789 }),
        ..request("waits")
    };
    client
        .place(v1::EnsureAllocationRequest { resources: ram(14_000_000), ..request("first") })
        .await
        .unwrap();
    client.place(waits).await.unwrap_err();

    let last = last_sequence(&service.database.sql).await;
    let replayed = events(Watch::open(&service.client, from_beginning()).await.up_to(last).await);
    let all: BTreeSet<_> = kinds(&replayed).into_iter().collect();
    assert_eq!(all.len(), 11, "each kind but one: {all:?}");
    for (watch, mut told) in live.iter_mut().zip(told) {
        told.extend(events(watch.up_to(last).await));
        assert_eq!(told, replayed);
    }
}

/// A second replica that commits without a pause, and a watcher of it, without hints of what the first one does.
struct Busy {
    watch: Watch,
    stop: CancellationToken,
    ensures: JoinHandle<()>,
    _replica: (RunningServer, Shutdown),
}

impl Busy {
    async fn start(service: &mut TestService) -> Self {
        service.client.register(wide("web-1")).await;
        let mut builder = TestService::builder();
        builder.watch.commit_hints = false;
        let (running, mut client, shutdown) = builder.start_replica(&service.database).await;
        let mut watch = Watch::open(&client, WatchAllocationsRequest::default()).await;
        watch.bookmark().await;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ensures = tokio::spawn(async move {
            for number in 0.. {
                if stopped.is_cancelled() {
                    return;
                }
                client.ensure(&format!("busy-{number}"), &[]).await.unwrap();
            }
        });
        Self { watch, stop, ensures, _replica: (running, shutdown) }
    }

    async fn stop(self) {
        assert!(!self.ensures.is_finished(), "it was busy all the while");
        self.stop.cancel();
        self.ensures.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_replica_commits_is_told_while_this_one_commits_all_the_time() {
    let mut service = TestService::start().await;
    let mut busy = Busy::start(&mut service).await;
    for number in 0..5 {
        let project = format!("other-{number}");
        service.client.ensure(&project, &[]).await.unwrap();
        while busy.watch.event().await.project_id != project {}
    }
    busy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_restarted_while_this_replica_commits_all_the_time_is_told() {
    let mut service = TestService::start().await;
    let mut busy = Busy::start(&mut service).await;
    while !busy.watch.event().await.project_id.starts_with("busy") {}
    sqlx::query("UPDATE pools SET epoch = gen_random_uuid()").execute(&service.database.sql).await.unwrap();
    assert_log_restarted(&busy.watch.end().await);
    busy.stop().await;
}

/// Drops the events up to `sequence`, as retention does.
async fn compact(database: &TestDatabase, sequence: i64) {
    sqlx::query("DELETE FROM allocation_events WHERE last_sequence <= $1")
        .bind(sequence)
        .execute(&database.sql)
        .await
        .unwrap();
    sqlx::query("UPDATE pools SET compacted_sequence = $1")
        .bind(sequence)
        .execute(&database.sql)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_retention_overtook_is_answered_with_the_oldest_that_works() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let old = client.ensure("one", &[]).await.unwrap().resume_token;
    let kept = client.ensure("two", &[]).await.unwrap().resume_token;
    client.ensure("three", &[]).await.unwrap();
    let last = last_sequence(&service.database.sql).await;
    // Up to the end of `two`: what follows `kept` is all there.
    compact(&service.database, 9).await;

    let refused = Watch::try_open(client, after(&old)).await.err().expect("the events after it are gone");
    assert_eq!(refused.code(), Code::OutOfRange);
    let (reason, metadata) = error_info(&refused);
    assert_eq!((reason.as_str(), metadata["disposition"].as_str()), ("SEQUENCE_COMPACTED", "CALLER"));

    for request in [after(&metadata["oldest_resume_token"]), after(&kept), from_beginning()] {
        let mut watch = Watch::open(client, request).await;
        assert_eq!(watch.bookmark().await, 9);
        assert_eq!(sequences(&events(watch.up_to(last).await)), (10..=last).collect::<Vec<_>>());
    }
    // Everything dropped: there is nothing to replay, and new events follow.
    compact(&service.database, last).await;
    let mut watch = Watch::open(client, from_beginning()).await;
    assert_eq!(watch.bookmark().await, last);
    client.ensure("four", &[]).await.unwrap();
    assert_eq!(watch.event().await.sequence, last + 1);
}

/// A token as the service would make it.
async fn forge(database: &TestDatabase, sequence: i64) -> String {
    let (key, epoch): (Vec<u8>, Uuid) =
        sqlx::query_as("SELECT token_key, epoch FROM pools").fetch_one(&database.sql).await.unwrap();
    Tokens::new(&key).seal(&ResumeToken { epoch, sequence })
}

fn assert_log_restarted(refused: &Status) {
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let (reason, metadata) = error_info(refused);
    assert_eq!((reason.as_str(), metadata["disposition"].as_str()), ("LOG_RESTARTED", "CALLER"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_history_is_told_so_and_a_new_list_works() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let token = client.ensure("one", &[]).await.unwrap().resume_token;

    // A restored backup ends before what its watchers have seen.
    let beyond = forge(&service.database, last_sequence(&service.database.sql).await + 1).await;
    assert_log_restarted(&Watch::try_open(client, after(&beyond)).await.err().unwrap());

    let mut watching = Watch::open(client, after(&token)).await;
    sqlx::query("UPDATE pools SET epoch = gen_random_uuid()").execute(&service.database.sql).await.unwrap();
    assert_log_restarted(&Watch::try_open(client, after(&token)).await.err().unwrap());
    // Those that watch already are told too.
    assert_log_restarted(&watching.end().await);

    // What the refusal advises works at once, with no restart of the service.
    let (_, listed) = Held::list(client).await;
    let mut watch = Watch::open(client, after(&listed)).await;
    client.ensure("two", &[]).await.unwrap();
    assert_eq!(watch.event().await.project_id, "two");
    let answered = client.ensure("one", &[]).await.unwrap().resume_token;
    Watch::open(client, after(&answered)).await.bookmark().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_began_in_another_history_ends_with_a_token_of_that_one() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let all = || v1::EnsureAllocationRequest { resources: ram(8192), ..request("holder") };
    let two = vec![module("backend"), module("frontend")];
    client.place(v1::EnsureAllocationRequest { modules: two, ..all() }).await.unwrap();
    for project_id in ["first", "second"] {
        let wait_for_capacity = Some(PATIENCE.into());
        let waits =
            v1::EnsureAllocationRequest { project_id: project_id.to_owned(), wait_for_capacity, ..all() };
        let mut client = client.clone();
        tokio::spawn(async move { client.place(waits).await });
    }
    let in_line = |page_size| v1::ListWaitingRequest { page_size, ..Default::default() };
    let line = async {
        loop {
            let page = client.allocator.clone().list_waiting(in_line(1)).await.unwrap().into_inner();
            if !page.next_page_token.is_empty() {
                return page;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let line = tokio::time::timeout(PATIENCE, line).await.expect("both stand in line");
    let pages = |page_size| v1::ListAllocationsRequest { page_size, ..Default::default() };
    let first = client.list(pages(1)).await.unwrap();

    sqlx::query("UPDATE pools SET epoch = gen_random_uuid()").execute(&service.database.sql).await.unwrap();
    let renewed = async {
        loop {
            let token = client.clone().placement("holder").await.unwrap().resume_token;
            if Watch::try_open(client, after(&token)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("the service learns of the new history");

    // What came after the first page is not in the new history, whatever its numbers are.
    let page_token = first.next_page_token;
    let rest = client.list(v1::ListAllocationsRequest { page_token, ..pages(1) }).await.unwrap();
    assert_eq!(rest.allocations[0].module, "frontend");
    assert_log_restarted(&Watch::try_open(client, after(&rest.resume_token)).await.err().unwrap());
    let page_token = line.next_page_token;
    let rest = v1::ListWaitingRequest { page_token, ..in_line(1) };
    let rest = client.allocator.list_waiting(rest).await.unwrap().into_inner();
    assert_log_restarted(&Watch::try_open(client, after(&rest.resume_token)).await.err().unwrap());
    // A list that begins now is of the new one.
    let token = client.list(pages(1)).await.unwrap().resume_token;
    Watch::open(client, after(&token)).await.bookmark().await;
    let token = client.allocator.list_waiting(in_line(1)).await.unwrap().into_inner().resume_token;
    Watch::open(client, after(&token)).await.bookmark().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_makes_no_sense_is_refused_by_field() {
    let service = TestService::start().await;
    let token = forge(&service.database, 0).await;
    let refused =
        |request| async { Watch::try_open(&service.client, request).await.err().expect("nonsense") };
    let both = refused(WatchAllocationsRequest { from_beginning: true, ..after(&token) }).await;
    assert_eq!((both.code(), violations(&both)), (Code::InvalidArgument, vec!["from_beginning".to_owned()]));
    for token in ["nonsense", &token[1..], &format!("{token}A")] {
        let forged = refused(after(token)).await;
        assert_eq!(
            (forged.code(), violations(&forged)),
            (Code::InvalidArgument, vec!["resume_token".to_owned()])
        );
    }
    let request = WatchAllocationsRequest {
        project_id: Some("no spaces".to_owned()),
        server_handle: Some(String::new()),
        ..Default::default()
    };
    assert_eq!(violations(&refused(request).await), ["project_id", "server_handle"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_holds_nobody_up_and_then_gets_everything() {
    let mut service = TestService::start().await;
    service.client.register(wide("web-1")).await;
    let reader = Client::connect(&format!("http://{}", service.running.address)).await;
    let mut watch = Watch::open(&reader, from_beginning()).await;
    // Far more than the stream's window and the service's own queue take.
    let mut client = service.client.clone();
    let modules: Vec<_> = (0..30).map(|module| format!("module-{module}")).collect();
    let modules: Vec<_> = modules.iter().map(String::as_str).collect();
    for project in 0..60 {
        client.ensure(&format!("project-{project}"), &modules).await.unwrap();
    }
    let last = last_sequence(&service.database.sql).await;
    assert_eq!(last, 1 + 60 * 33);
    let mut told = Vec::new();
    while told.len() < usize::try_from(last).unwrap() {
        told.extend(events(vec![watch.message().await]));
        if told.len() % 100 == 0 {
            // A slow reader.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(sequences(&told), (1..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_stream_with_its_reason_and_another_replica_goes_on() {
    let mut service = TestService::start().await;
    let (_replica, mut other, _shutdown) = TestService::builder().start_replica(&service.database).await;
    service.client.register(server("web-1")).await;
    let mut watch = Watch::open(&service.client, WatchAllocationsRequest::default()).await;
    let token = watch.message().await.resume_token;
    service.shutdown.soft.cancel();
    let ended = watch.end().await;
    assert_eq!(ended.code(), Code::Unavailable);
    let (reason, metadata) = error_info(&ended);
    assert_eq!((reason.as_str(), metadata["disposition"].as_str()), ("SHUTTING_DOWN", "TECHNICAL"));
    service.running.stopped().await.unwrap();
    other.ensure("hello-world-bot", &[]).await.unwrap();
    let event = Watch::open(&other, after(&token)).await.event().await;
    assert_eq!((kind(&event), event.project_id.as_str()), ("requested", "hello-world-bot"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_takes_nothing_is_told_so_and_goes_on_after_its_last_token() {
    let mut builder = TestService::builder();
    builder.watch.stall_limit = Duration::from_millis(300);
    let mut service = builder.start().await;
    service.client.register(wide("web-1")).await;
    // A stream's window of its own, which is small: what is not read stays at the service.
    let endpoint = Channel::from_shared(format!("http://{}", service.running.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
    let reader = Client {
        allocator: ResourceAllocatorClient::new(channel.clone()),
        channel,
        ..service.client.clone()
    };
    let mut other = Watch::open(&service.client, from_beginning()).await;
    let modules: Vec<_> = (0..60).map(|module| format!("module-{module}")).collect();
    let modules: Vec<_> = modules.iter().map(String::as_str).collect();
    let mut client = service.client.clone();
    let mut slow = Watch::open(&reader, from_beginning()).await;
    for project in 0..40 {
        client.ensure(&format!("project-{project}"), &modules).await.unwrap();
    }
    let last = last_sequence(&service.database.sql).await;
    // Whoever reads is held up by nobody.
    assert_eq!(events(other.up_to(last).await).len(), usize::try_from(last).unwrap());
    // The stream ends by itself while nobody reads, sooner or later: one that was read too soon tells everything.
    let mut pause = Duration::from_secs(1);
    let (told, ended) = 'tries: loop {
        tokio::time::sleep(pause).await;
        let mut told: Vec<WatchAllocationsResponse> = Vec::new();
        while told.last().is_none_or(|message| sequence_of(message) < last) {
            match slow.try_message().await {
                Ok(message) => told.extend(message),
                Err(status) => break 'tries (told, status),
            }
        }
        pause *= 2;
        assert!(pause < PATIENCE, "nobody was too slow");
        slow = Watch::open(&reader, from_beginning()).await;
    };
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let (reason, metadata) = error_info(&ended);
    assert_eq!((reason.as_str(), metadata["disposition"].as_str()), ("WATCHER_TOO_SLOW", "TECHNICAL"));
    let token = told.last().unwrap().resume_token.clone();
    let mut seen = events(told);
    let reached = seen.last().unwrap().sequence;
    assert!(reached < last, "it did not get everything");
    assert_eq!(sequences(&seen), (1..=reached).collect::<Vec<_>>());
    // The token of the refusal is the last one's.
    for token in [&metadata["resume_token"], &token] {
        let next = Watch::open(&service.client, after(token)).await.event().await;
        assert_eq!(next.sequence, reached + 1);
    }
    seen.extend(events(Watch::open(&service.client, after(&token)).await.up_to(last).await));
    assert_eq!(sequences(&seen), (1..=last).collect::<Vec<_>>());
}

/// Edits the tables past every guard, in one transaction.
async fn edit(sql: &PgPool, statements: &[&'static str]) {
    let mut conn = sql.acquire().await.unwrap();
    let mut editing = conn.begin().await.unwrap();
    for statement in ["SET LOCAL session_replication_role = replica"].iter().chain(statements) {
        sqlx::query(*statement).execute(&mut *editing).await.unwrap();
    }
    editing.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_is_told_to_those_who_saw_more_of_it() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    let mut all = Watch::open(client, from_beginning()).await;
    let request = WatchAllocationsRequest { project_id: Some("one".to_owned()), ..from_beginning() };
    let mut one = Watch::open(client, request).await;
    client.ensure("one", &[]).await.unwrap();
    let last = last_sequence(&service.database.sql).await;
    all.up_to(last).await;
    one.up_to(last).await;
    // As a standby does that was promoted without the last of what was committed.
    let rewind =
        ["DELETE FROM allocation_events WHERE kind = 'ensured'", "UPDATE pools SET last_sequence = 1"];
    edit(&service.database.sql, &rewind).await;
    assert_log_restarted(&all.end().await);
    assert_log_restarted(&one.end().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_to_where_the_replica_itself_had_come_is_told_to_those_who_saw_more() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    // So many that the replica rests for 30 ms after it has handed something round to them.
    let mut many = Vec::new();
    for _ in 0..100 {
        many.push(Watch::open(client, from_beginning()).await);
    }
    let last = last_sequence(&service.database.sql).await;
    for watch in &mut many {
        watch.up_to(last).await;
    }
    client.ensure("one", &[]).await.unwrap();
    let last = last_sequence(&service.database.sql).await;
    many[0].up_to(last).await;
    edit(&service.database.sql, &["UPDATE pools SET last_sequence = last_sequence + 1"]).await;
    let mut ahead = Watch::open(client, WatchAllocationsRequest::default()).await;
    assert_eq!(sequence_of(&ahead.message().await), last + 1);
    edit(&service.database.sql, &["UPDATE pools SET last_sequence = last_sequence - 1"]).await;
    assert_log_restarted(&ahead.end().await);
}
