//! Every refusal of a placement in `error_reason.proto`: the same through an ensure, its preview and a search, told once in the
//! log, and nothing else written.

use std::{collections::HashMap, time::Duration};

use resource_allocator::proto::v1::{self, EnsureAllocationRequest, ServerStatus};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{
    TestService, error_info,
    requests::{figures, find_like, labels, module, module_at, ports, ram, request, resources, udp},
    server, violations,
};

/// The code, the reason and the disposition that are expected.
type Expected = (Code, &'static str, &'static str);

/// Checks a refusal; returns its figures.
fn refused(refusal: &Status, (code, reason, disposition): Expected) -> HashMap<String, String> {
    let (told, metadata) = error_info(refusal);
    assert_eq!((refusal.code(), told.as_str()), (code, reason), "{refusal:?}");
    assert_eq!(metadata["disposition"], disposition);
    // Only what may do better by itself says when.
    let waits = matches!(reason, "INSUFFICIENT_CAPACITY" | "USAGE_STALE");
    let delay = refusal.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay.is_some_and(|delay| delay > Duration::ZERO), waits, "{refusal:?}");
    assert_eq!(violations(refusal), Vec::<String>::new());
    // The message is for people, and says what is in the figures.
    assert!(refusal.message().len() > 20, "{refusal:?}");
    figures(metadata)
}

/// Asks for the same in every way that can be refused, and checks that the answers agree and what is written. Returns the
/// figures.
async fn refused_alike(
    service: &mut TestService,
    wanted: EnsureAllocationRequest,
    expected: Expected,
) -> HashMap<String, String> {
    let (client, database) = (&mut service.client, &service.database);
    let (all, state) = (database.tables().await, database.tables_but_log().await);
    let told = database.operations(&wanted.project_id).await;

    let preview = EnsureAllocationRequest { validate_only: true, ..wanted.clone() };
    let previewed = client.place(preview).await.unwrap_err();
    let mut found = None;
    // A search is for projects that are not placed, and knows no pin.
    let placed = client.placement(&wanted.project_id).await.is_ok();
    if wanted.server_handle.is_none() && !placed {
        found = Some(client.find(find_like(&wanted)).await.unwrap_err());
    }
    assert_eq!(database.tables().await, all, "a preview or a search wrote something");

    let ensured = client.place(wanted.clone()).await.unwrap_err();
    let told_now = database.operations(&wanted.project_id).await;
    assert_eq!(told_now[..told.len()], told[..]);
    // `requested` and `failed`.
    assert_eq!(told_now[told.len()..], [("refused".to_owned(), 2)]);
    let payload: serde_json::Value = sqlx::query_scalar(
        "SELECT payload FROM allocation_events WHERE project_id = $1 ORDER BY first_sequence DESC LIMIT 1",
    )
    .bind(&wanted.project_id)
    .fetch_one(&database.sql)
    .await
    .unwrap();
    assert_eq!((&payload["reason"], &payload["disposition"]), (&expected.1.into(), &expected.2.into()));
    assert_eq!(payload["message"], ensured.message());

    let all = database.tables().await;
    let again = client.place(wanted).await.unwrap_err();
    assert_eq!(database.tables().await, all, "a refusal was told twice");
    assert_eq!(database.tables_but_log().await, state, "a refused ensure wrote more than the log");

    let figures = refused(&ensured, expected);
    for other in [Some(previewed), found, Some(again)].into_iter().flatten() {
        assert_eq!(refused(&other, expected), figures);
        assert_eq!(words(&other), words(&ensured));
    }
    figures
}

/// The message without its numbers: the age of a report moves on.
fn words(refusal: &Status) -> String {
    refusal.message().chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Whether these figures are among those.
#[track_caller]
fn assert_figures(figures: &HashMap<String, String>, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(figures.get(*key).map(String::as_str), Some(*value), "{key} of {figures:?}");
    }
}

const NO_SERVERS: Expected = (Code::FailedPrecondition, "NO_SERVERS", "OPERATOR");
const NO_MATCHING_SERVER: Expected = (Code::FailedPrecondition, "NO_MATCHING_SERVER", "CALLER");
const NO_ADMISSIBLE_SERVER: Expected = (Code::FailedPrecondition, "NO_ADMISSIBLE_SERVER", "OPERATOR");
const REQUEST_EXCEEDS_FLEET: Expected = (Code::FailedPrecondition, "REQUEST_EXCEEDS_FLEET", "OPERATOR");
const USAGE_STALE: Expected = (Code::Unavailable, "USAGE_STALE", "TECHNICAL");
const INSUFFICIENT_CAPACITY: Expected = (Code::ResourceExhausted, "INSUFFICIENT_CAPACITY", "WAIT");
const PORT_TAKEN: Expected = (Code::FailedPrecondition, "PORT_TAKEN", "CALLER");
const PORTS_EXHAUSTED: Expected = (Code::ResourceExhausted, "PORTS_EXHAUSTED", "OPERATOR");
const PLACED_ELSEWHERE: Expected = (Code::FailedPrecondition, "PLACED_ELSEWHERE", "CALLER");
const BOUND_SERVER_NOT_ADMISSIBLE: Expected =
    (Code::FailedPrecondition, "BOUND_SERVER_NOT_ADMISSIBLE", "OPERATOR");
const SERVER_NOT_FOUND: Expected = (Code::NotFound, "SERVER_NOT_FOUND", "CALLER");

/// Makes a server's usage report an hour old, and waits until the log was told, so that nothing else is written later.
async fn let_usage_grow_stale(service: &mut TestService, handle: &str) {
    service.client.report(handle, v1::Usage { ram_mb: Some(1), ..Default::default() }).await;
    sqlx::query("UPDATE servers SET observe_time = observe_time - interval '1 hour' WHERE handle = $1")
        .bind(handle)
        .execute(&service.database.sql)
        .await
        .unwrap();
    let told = async {
        let untold = "SELECT count(*) FROM servers
            WHERE observe_time < now() - interval '30 minutes' AND NOT usage_stale";
        while service.database.count(untold).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), told).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_inventory_is_no_servers() {
    let mut service = TestService::start().await;
    let figures = refused_alike(&mut service, request("shop"), NO_SERVERS).await;
    assert_figures(&figures, &[("servers", "0")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_no_server_carries_are_no_matching_server() {
    let mut service = TestService::start().await;
    service.client.register(v1::Server { labels: labels(&[("region", "eu")]), ..server("web-1") }).await;
    service.client.register(server("web-2")).await;
    let wanted = EnsureAllocationRequest {
        server_selector: labels(&[("region", "us"), ("disk", "ssd")]),
        ..request("shop")
    };
    let figures = refused_alike(&mut service, wanted, NO_MATCHING_SERVER).await;
    assert_figures(
        &figures,
        &[("selector", "disk=ssd,region=us"), ("servers", "2"), ("rejected.LABELS", "2")],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn l12_each_status_that_does_not_admit_is_named_for_what_it_is() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    for (status, key) in [
        (ServerStatus::Discovered, "status.DISCOVERED"),
        (ServerStatus::Provisioning, "status.PROVISIONING"),
        (ServerStatus::Maintenance, "status.MAINTENANCE"),
        (ServerStatus::Error, "status.ERROR"),
        (ServerStatus::Unreachable, "status.UNREACHABLE"),
        (ServerStatus::Missing, "status.MISSING"),
        (ServerStatus::Decommissioned, "status.DECOMMISSIONED"),
    ] {
        service.client.set_status("web-1", status).await;
        let figures = refused_alike(&mut service, request(key), NO_ADMISSIBLE_SERVER).await;
        assert_figures(
            &figures,
            &[(key, "1"), ("servers", "1"), ("rejected.STATUS", "1"), ("asked.ram_mb", "512")],
        );
    }
    service.client.set_status("web-1", ServerStatus::Ready).await;
    service.client.ensure("shop", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_not_managed_admit_nothing() {
    let mut service = TestService::start().await;
    service.client.register(v1::Server { managed: Some(false), ..server("web-1") }).await;
    let figures = refused_alike(&mut service, request("shop"), NO_ADMISSIBLE_SERVER).await;
    assert_figures(&figures, &[("rejected.UNMANAGED", "1"), ("status.UNMANAGED", "1")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn l11_what_no_server_could_ever_hold_is_not_a_shortage() {
    let mut service = TestService::start().await;
    let headroom = resources(500, 1000, 10_000);
    service.client.register(v1::Server { headroom, ..server("web-1") }).await;
    service.client.register(v1::Server { capacity: resources(1000, 1024, 1024), ..server("web-2") }).await;
    for (project, amounts, key, short) in [
        ("ram", resources(0, 7193, 0), "nearest.short.ram_mb", "1"),
        ("disk", resources(0, 0, 90_001), "nearest.short.disk_mb", "1"),
        ("cpu", resources(3501, 0, 0), "nearest.short.cpu_millis", "1"),
        (
            "most",
            resources(1_000_000_000, 1_000_000_000_000, 1_000_000_000_000),
            "nearest.short.ram_mb",
            "999999992808",
        ),
    ] {
        let wanted = EnsureAllocationRequest { resources: amounts, ..request(project) };
        let figures = refused_alike(&mut service, wanted, REQUEST_EXCEEDS_FLEET).await;
        assert_figures(
            &figures,
            &[
                (key, short),
                ("nearest.server_handle", "web-1"),
                ("rejected.SIZE", "2"),
                ("nearest.headroom.ram_mb", "1000"),
            ],
        );
    }
    // Right at the limit it fits.
    let wanted = EnsureAllocationRequest { resources: resources(3500, 7192, 90_000), ..request("all") };
    service.client.place(wanted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_reports_that_stopped_are_usage_stale() {
    let mut service = TestService::start().await;
    for name in ["web-1", "web-2"] {
        service.client.register(server(name)).await;
        let_usage_grow_stale(&mut service, name).await;
    }
    service.client.register(v1::Server { status: ServerStatus::Error.into(), ..server("web-3") }).await;
    let figures = refused_alike(&mut service, request("shop"), USAGE_STALE).await;
    assert_figures(
        &figures,
        &[
            ("usage_max_age_s", "300"),
            ("rejected.USAGE_STALE", "2"),
            ("rejected.STATUS", "1"),
            ("servers", "3"),
        ],
    );
    // A report ends it.
    service.client.report("web-2", v1::Usage::default()).await;
    let placed = service.client.ensure("shop", &[]).await.unwrap();
    assert_eq!(placed.placement.unwrap().server_handle, "web-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn l10_a_fleet_that_is_full_says_how_short_its_nearest_server_is() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.register(v1::Server { headroom: resources(0, 192, 0), ..server("web-2") }).await;
    for (project, amount, server_handle) in [("a", 5000, "web-1"), ("b", 4000, "web-2")] {
        let server_handle = Some(server_handle.to_owned());
        client
            .place(EnsureAllocationRequest { resources: ram(amount), server_handle, ..request(project) })
            .await
            .unwrap();
    }
    let wanted = EnsureAllocationRequest { resources: ram(4500), ..request("shop") };
    let figures = refused_alike(&mut service, wanted, INSUFFICIENT_CAPACITY).await;
    assert_figures(
        &figures,
        &[
            ("asked.ram_mb", "4500"),
            ("nearest.server_handle", "web-2"),
            ("nearest.short.ram_mb", "500"),
            ("nearest.free.ram_mb", "4000"),
            ("nearest.headroom.ram_mb", "192"),
            ("rejected.CAPACITY", "2"),
        ],
    );
    assert!(!figures.contains_key("nearest.short.disk_mb"), "{figures:?}");
    // Once there is room, the same call goes through.
    service.client.release("b", &[]).await;
    let wanted = EnsureAllocationRequest { resources: ram(4500), ..request("shop") };
    service.client.place(wanted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn l25_disk_and_cpu_run_out_as_memory_does() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let half = EnsureAllocationRequest { resources: resources(3000, 0, 60_000), ..request("a") };
    service.client.place(half).await.unwrap();
    for (project, amounts, key, short) in [
        ("disk", resources(0, 0, 60_000), "nearest.short.disk_mb", "20000"),
        ("cpu", resources(3000, 0, 0), "nearest.short.cpu_millis", "2000"),
    ] {
        let wanted = EnsureAllocationRequest { resources: amounts, ..request(project) };
        let figures = refused_alike(&mut service, wanted, INSUFFICIENT_CAPACITY).await;
        assert_figures(&figures, &[(key, short)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explicit_port_that_cannot_be_had_says_why() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let excluded_ports = vec![v1::PortRange { start: 9000, end: 9100 }];
    client.register(v1::Server { excluded_ports, ..server("web-1") }).await;
    let modules = vec![module_at("api", 8080), module_at("web", 8090)];
    client.place(EnsureAllocationRequest { modules, ..request("first") }).await.unwrap();
    client.report("web-1", v1::Usage { listening_ports: vec![8080, 8081], ..Default::default() }).await;
    for (port, cause) in [
        (8080, "ALLOCATED"),
        (8081, "LISTENED_ON"),
        (9100, "EXCLUDED"),
        (1023, "OUT_OF_RANGE"),
        (32768, "OUT_OF_RANGE"),
    ] {
        let number = port.to_string();
        let modules = vec![module("api"), module_at("admin", port)];
        let wanted = EnsureAllocationRequest { modules, ..request(&number) };
        let figures = refused_alike(&mut service, wanted, PORT_TAKEN).await;
        assert_figures(
            &figures,
            &[
                ("server_handle", "web-1"),
                ("module", "admin"),
                ("port", &number),
                ("protocol", "TCP"),
                ("cause", cause),
                ("rejected.PORTS", "1"),
            ],
        );
    }
    // The other protocol's port is free.
    let modules = vec![v1::ModuleSpec { port: Some(8090), ..udp("dns") }];
    let placed = service.client.place(EnsureAllocationRequest { modules, ..request("dns") }).await.unwrap();
    assert_eq!(ports(&placed.allocations), [("dns", 8090)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_room_and_no_free_port_is_ports_exhausted() {
    let mut service = TestService::start().await;
    let range = |start, end| v1::PortRange { start, end };
    let server = v1::Server {
        port_range: Some(range(8000, 8003)),
        excluded_ports: vec![range(8001, 8001)],
        ..server("web-1")
    };
    service.client.register(server).await;
    let modules = |names: &[&str]| names.iter().map(|name| module(name)).collect();
    // More at once than there are.
    let wanted = EnsureAllocationRequest { modules: modules(&["a", "b", "c", "d"]), ..request("many") };
    let figures = refused_alike(&mut service, wanted, PORTS_EXHAUSTED).await;
    assert_figures(
        &figures,
        &[
            ("server_handle", "web-1"),
            ("start_port", "8000"),
            ("port_range", "8000-8003"),
            ("protocol", "TCP"),
            ("rejected.PORTS", "1"),
        ],
    );
    // None at or above where the request starts.
    let wanted = EnsureAllocationRequest { start_port: Some(8004), ..request("high") };
    let figures = refused_alike(&mut service, wanted, PORTS_EXHAUSTED).await;
    assert_figures(&figures, &[("start_port", "8004")]);
    service
        .client
        .place(EnsureAllocationRequest { modules: modules(&["a", "b", "c"]), ..request("all") })
        .await
        .unwrap();
    refused_alike(&mut service, request("last"), PORTS_EXHAUSTED).await;
    // For a placed project, too.
    let wanted = EnsureAllocationRequest { modules: modules(&["d"]), ..request("all") };
    refused_alike(&mut service, wanted, PORTS_EXHAUSTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_no_server_has_is_server_not_found() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let pin = |project: &str| EnsureAllocationRequest {
        server_handle: Some("web-9".to_owned()),
        ..request(project)
    };
    let figures = refused_alike(&mut service, pin("shop"), SERVER_NOT_FOUND).await;
    assert_figures(&figures, &[("server_handle", "web-9")]);
    service.client.ensure("placed", &[]).await.unwrap();
    refused_alike(&mut service, pin("placed"), SERVER_NOT_FOUND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_runs_the_funnel_over_its_one_server() {
    let mut service = TestService::start().await;
    service.client.register(server("free")).await;
    service.client.register(v1::Server { status: ServerStatus::Error.into(), ..server("broken") }).await;
    service.client.register(v1::Server { capacity: resources(0, 100, 100), ..server("small") }).await;
    service
        .client
        .register(v1::Server { port_range: Some(v1::PortRange { start: 1, end: 2 }), ..server("odd") })
        .await;
    for (handle, expected) in
        [("broken", NO_ADMISSIBLE_SERVER), ("small", REQUEST_EXCEEDS_FLEET), ("odd", PORTS_EXHAUSTED)]
    {
        let wanted = EnsureAllocationRequest { server_handle: Some(handle.to_owned()), ..request(handle) };
        let figures = refused_alike(&mut service, wanted, expected).await;
        assert_figures(&figures, &[("server_handle", handle), ("servers", "1")]);
    }
    // The selector holds for a pin too.
    let wanted = EnsureAllocationRequest {
        server_handle: Some("free".to_owned()),
        server_selector: labels(&[("region", "eu")]),
        ..request("shop")
    };
    refused_alike(&mut service, wanted, NO_MATCHING_SERVER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_disagrees_with_what_a_project_holds_is_placed_elsewhere() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    service.client.ensure("shop", &[]).await.unwrap();
    service.client.register(server("web-2")).await;
    let pin = EnsureAllocationRequest { server_handle: Some("web-2".to_owned()), ..request("shop") };
    let figures = refused_alike(&mut service, pin, PLACED_ELSEWHERE).await;
    assert_figures(&figures, &[("server_handle", "web-1"), ("pinned.server_handle", "web-2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_asks_for_another_port_or_protocol_than_it_holds_is_placed_elsewhere() {
    for wish in
        [module_at("backend", 8001), udp("backend"), v1::ModuleSpec { port: Some(8000), ..udp("backend") }]
    {
        let mut service = TestService::start().await;
        service.client.register(server("web-1")).await;
        service.client.ensure("shop", &[]).await.unwrap();
        let wanted = EnsureAllocationRequest { modules: vec![module("new"), wish], ..request("shop") };
        let figures = refused_alike(&mut service, wanted, PLACED_ELSEWHERE).await;
        assert_figures(
            &figures,
            &[("server_handle", "web-1"), ("module", "backend"), ("port", "8000"), ("protocol", "TCP")],
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_server_that_admits_nothing_says_why() {
    for cause in ["STATUS", "UNMANAGED", "USAGE_STALE"] {
        let mut service = TestService::start().await;
        service.client.register(server("web-1")).await;
        service.client.ensure("shop", &[]).await.unwrap();
        service.client.register(server("web-2")).await;
        match cause {
            "STATUS" => service.client.set_status("web-1", ServerStatus::Maintenance).await,
            "UNMANAGED" => {
                let unmanaged = v1::Server { managed: Some(false), ..server("web-1") };
                service.client.update(unmanaged, &["managed"]).await;
            }
            _ => let_usage_grow_stale(&mut service, "web-1").await,
        }
        let status = if cause == "STATUS" { "MAINTENANCE" } else { "READY" };
        let wanted = EnsureAllocationRequest { modules: vec![module("new")], ..request("shop") };
        let figures = refused_alike(&mut service, wanted, BOUND_SERVER_NOT_ADMISSIBLE).await;
        assert_figures(&figures, &[("server_handle", "web-1"), ("cause", cause), ("status", status)]);
        let repeated = service.client.ensure("shop", &["backend"]).await.unwrap();
        assert_eq!(repeated.outcome(), v1::EnsureOutcome::Unchanged);
        assert!(!repeated.placement.unwrap().server_admissible);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l12_the_last_stage_that_a_server_reached_names_the_refusal() {
    let mut service = TestService::start().await;
    let eu = || labels(&[("region", "eu")]);
    let wanted = |project: &str| EnsureAllocationRequest {
        server_selector: labels(&[("region", "eu")]),
        modules: vec![module_at("api", 40_000)],
        resources: ram(4096),
        ..request(project)
    };
    // From the first stage to the last: each server gets one further than the one before.
    let steps = [
        (server("0-labels"), NO_MATCHING_SERVER, "rejected.LABELS"),
        (
            v1::Server { labels: eu(), managed: Some(false), ..server("1-unmanaged") },
            NO_ADMISSIBLE_SERVER,
            "rejected.UNMANAGED",
        ),
        (
            v1::Server { labels: eu(), capacity: resources(9, 9, 9), ..server("2-small") },
            REQUEST_EXCEEDS_FLEET,
            "rejected.SIZE",
        ),
        (
            v1::Server { labels: eu(), status: ServerStatus::Provisioning.into(), ..server("3-new") },
            NO_ADMISSIBLE_SERVER,
            "rejected.STATUS",
        ),
        (v1::Server { labels: eu(), ..server("4-silent") }, USAGE_STALE, "rejected.USAGE_STALE"),
        (v1::Server { labels: eu(), ..server("5-full") }, INSUFFICIENT_CAPACITY, "rejected.CAPACITY"),
        (v1::Server { labels: eu(), ..server("6-port") }, PORT_TAKEN, "rejected.PORTS"),
    ];
    let mut stages = Vec::new();
    for (server, expected, stage) in steps {
        let handle = server.handle.clone();
        service.client.register(server).await;
        match handle.as_str() {
            "4-silent" => let_usage_grow_stale(&mut service, &handle).await,
            "5-full" => {
                service.client.report(&handle, v1::Usage { ram_mb: Some(8000), ..Default::default() }).await;
            }
            _ => {}
        }
        let figures = refused_alike(&mut service, wanted(&handle), expected).await;
        stages.push(stage);
        for stage in &stages {
            assert_eq!(figures[*stage], "1", "{figures:?}");
        }
        let counted = figures.keys().filter(|key| key.starts_with("rejected.")).count();
        assert_eq!(counted, stages.len(), "{figures:?}");
        assert_eq!(figures["servers"], stages.len().to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_refusal_of_the_same_project_is_told_and_the_first_success_after_it_too() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.ensure("shop", &[]).await.unwrap_err();
    client.ensure("other", &[]).await.unwrap_err();
    client.register(v1::Server { status: ServerStatus::Error.into(), ..server("web-1") }).await;
    for _ in 0..3 {
        client.ensure("shop", &[]).await.unwrap_err();
    }
    client.set_status("web-1", ServerStatus::Ready).await;
    client.ensure("shop", &[]).await.unwrap();
    let told = service.database.operations("shop").await;
    let expected =
        [("refused", 2), ("refused", 2), ("ensured", 4)].map(|(kind, events)| (kind.to_owned(), events));
    assert_eq!(told, expected);
    assert_eq!(service.database.operations("other").await, expected[..1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_one_refusal_is_told_once() {
    let mut service = TestService::start().await;
    service.client.register(v1::Server { capacity: resources(0, 1, 1), ..server("web-1") }).await;
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        let mut client = service.client.clone();
        calls.spawn(async move { client.ensure("shop", &[]).await.unwrap_err() });
    }
    for refusal in calls.join_all().await {
        refused(&refusal, REQUEST_EXCEEDS_FLEET);
    }
    assert_eq!(service.database.operations("shop").await, [("refused".to_owned(), 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_with_the_longest_words_still_reaches_its_caller() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    // 64 labels of the most that each may be: a refusal is told in headers, which clients take only so much of.
    let selector = (0..64).map(|n| (format!("{n:0>63}"), "🦀".repeat(255))).collect();
    let wanted = EnsureAllocationRequest { server_selector: selector, ..request("shop") };
    let figures = refused_alike(&mut service, wanted, NO_MATCHING_SERVER).await;
    assert_figures(&figures, &[("servers", "1"), ("rejected.LABELS", "1")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_may_wait_are_told_to_come_back() {
    let mut builder = TestService::builder();
    builder.allocator.queue_limit = 1;
    builder.allocator.max_batch = 1;
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    // Another transaction holds the pool, so that nothing gets on.
    let held = service.database.hold_pool().await;
    let mut calls = JoinSet::new();
    for number in 0..8 {
        let mut client = service.client.clone();
        calls.spawn(async move { client.ensure(&format!("project-{number}"), &[]).await });
    }
    let first = calls.join_next().await.unwrap().unwrap().unwrap_err();
    let (reason, metadata) = error_info(&first);
    assert_eq!((first.code(), reason.as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert_eq!((metadata["disposition"].as_str(), metadata["queue_limit"].as_str()), ("TECHNICAL", "1"));
    assert!(first.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
    held.rollback().await.unwrap();
    let mut placed = 0;
    for answer in calls.join_all().await {
        match answer {
            Ok(_) => placed += 1,
            Err(refusal) => assert_eq!(error_info(&refusal).0, "OVERLOADED"),
        }
    }
    assert!(placed >= 1);
    assert_eq!(service.database.count("SELECT count(*) FROM placements").await, placed);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_database_cut_are_told_as_such_and_made_anew() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    service.client.ensure("shop", &[]).await.unwrap();
    let cut = service
        .database
        .count(
            "SELECT count(*) FROM (SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'resource-allocator') AS cut",
        )
        .await;
    assert!(cut > 0);
    // Each connection of the service may be found broken once, by whatever call comes first.
    for _ in 0..=cut {
        match service.client.ensure("shop", &["worker"]).await {
            Ok(_) => break,
            Err(failed) => {
                let (reason, metadata) = error_info(&failed);
                assert_eq!((failed.code(), reason.as_str()), (Code::Unavailable, "DATABASE_UNAVAILABLE"));
                assert_eq!(metadata["disposition"], "TECHNICAL");
                assert!(failed.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
            }
        }
    }
    let read = service.client.placement("shop").await.unwrap();
    assert_eq!(ports(&read.allocations), [("backend", 8000), ("worker", 8001)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_refusals_in_turn_are_told_once_each_also_where_the_tables_are_edited_meanwhile() {
    let mut service = TestService::start().await;
    service.client.register(v1::Server { capacity: resources(0, 1, 1), ..server("web-1") }).await;
    let tiny = EnsureAllocationRequest { resources: resources(0, 1, 1), ..request("tiny") };
    service.client.place(tiny).await.unwrap();
    let pinned = EnsureAllocationRequest { server_handle: Some("web-9".to_owned()), ..request("shop") };
    for _ in 0..3 {
        service.client.place(request("shop")).await.unwrap_err();
        service.client.place(pinned.clone()).await.unwrap_err();
        // Has the tables be read anew.
        sqlx::query("UPDATE placements SET update_time = now()")
            .execute(&service.database.sql)
            .await
            .unwrap();
    }
    let told = service.database.operations("shop").await;
    assert_eq!(told, [("refused", 2), ("refused", 2)].map(|(kind, events)| (kind.to_owned(), events)));
}
