//! FindServer: the ranking, the reasons, and nothing changed by looking.

use std::collections::HashMap;

use resource_allocator::proto::v1::{self, FindServerRequest, PlacementStrategy, ServerStatus};

use crate::support::{
    TestService, error_info,
    requests::{labels, module, module_at, ram, resources},
    server,
};

fn handles(found: &v1::FindServerResponse) -> Vec<&str> {
    found.candidates.iter().map(|candidate| candidate.server.as_ref().unwrap().handle.as_str()).collect()
}

/// One server for each stage of the funnel, and two that fit.
async fn mixed() -> TestService {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let eu = || labels(&[("region", "eu")]);
    client.register(v1::Server { labels: labels(&[("region", "us")]), ..server("0-labels") }).await;
    client.register(v1::Server { labels: eu(), managed: Some(false), ..server("1-unmanaged") }).await;
    client.register(v1::Server { labels: eu(), capacity: resources(9, 9, 9), ..server("2-small") }).await;
    client
        .register(v1::Server { labels: eu(), status: ServerStatus::Maintenance.into(), ..server("3-status") })
        .await;
    client.register(v1::Server { labels: eu(), ..server("5-full") }).await;
    client.report("5-full", v1::Usage { ram_mb: Some(8000), ..Default::default() }).await;
    let excluded_ports = vec![v1::PortRange { start: 9000, end: 9000 }];
    client.register(v1::Server { labels: eu(), excluded_ports, ..server("6-port") }).await;
    client.register(v1::Server { labels: eu(), ..server("7-fits") }).await;
    client
        .register(v1::Server { labels: eu(), capacity: resources(8000, 16_384, 9000), ..server("8-roomy") })
        .await;
    service
}

fn wanted() -> FindServerRequest {
    FindServerRequest {
        server_selector: labels(&[("region", "eu")]),
        resources: ram(1024),
        modules: vec![module("web"), module_at("admin", 9000)],
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_server_comes_with_what_is_free_on_it() {
    let mut service = mixed().await;
    let before = service.database.tables().await;
    let found = service.client.find(wanted()).await.unwrap();
    assert_eq!(handles(&found), ["8-roomy"]);
    let best = &found.candidates[0];
    assert_eq!(best.free, Some(v1::FreeResources { cpu_millis: 8000, ram_mb: 16_384, disk_mb: 9000 }));
    assert_eq!(best.score, 16_384);
    let told = best.server.as_ref().unwrap();
    assert_eq!(
        (told.address.as_str(), told.status(), told.placement_count),
        ("192.0.2.1", ServerStatus::Ready, 0)
    );
    assert_eq!(told.free, best.free);
    // The counts come without being asked for, the reasons do not.
    assert_eq!(found.rejections, []);
    let counts: HashMap<_, _> = ["LABELS", "UNMANAGED", "SIZE", "STATUS", "CAPACITY", "PORTS"]
        .map(|stage| (stage.to_owned(), 1))
        .into();
    assert_eq!(found.rejected_by_reason.into_iter().collect::<HashMap<_, _>>(), counts);
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn l12_an_explanation_names_each_server_that_was_left_out_and_its_stage() {
    let mut service = mixed().await;
    let before = service.database.tables().await;
    let explain = FindServerRequest { explain: true, max_candidates: 100, ..wanted() };
    let found = service.client.find(explain).await.unwrap();
    assert_eq!(handles(&found), ["8-roomy", "7-fits"]);
    let told: Vec<_> = found
        .rejections
        .iter()
        .map(|rejection| {
            (rejection.server_handle.as_str(), rejection.reason.as_str(), rejection.detail.as_str())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("0-labels", "LABELS", "does not carry the label region=eu"),
            ("1-unmanaged", "UNMANAGED", "is not managed"),
            (
                "2-small",
                "SIZE",
                "could not hold this even empty, headroom kept: short of 1015 MB RAM, 1015 MB disk"
            ),
            ("3-status", "STATUS", "has the status MAINTENANCE, which admits no work"),
            ("5-full", "CAPACITY", "has no room now: short of 832 MB RAM"),
            ("6-port", "PORTS", "cannot give port 9000/TCP, which is in an excluded range"),
        ]
    );
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_found_is_the_refusal_or_with_an_explanation_an_empty_list() {
    let mut service = mixed().await;
    let nothing = FindServerRequest { resources: ram(1_000_000), ..wanted() };
    let refused = service.client.find(nothing.clone()).await.unwrap_err();
    // One server that is in maintenance is left out for its size before its status is looked at.
    let (reason, metadata) = error_info(&refused);
    assert_eq!((reason.as_str(), metadata["rejected.SIZE"].as_str()), ("REQUEST_EXCEEDS_FLEET", "6"));
    let explained = service.client.find(FindServerRequest { explain: true, ..nothing }).await.unwrap();
    assert_eq!((explained.candidates.len(), explained.rejections.len()), (0, 8));
    let counts: HashMap<_, _> = explained.rejected_by_reason.into_iter().collect();
    assert_eq!(counts, [("LABELS", 1), ("UNMANAGED", 1), ("SIZE", 6)].map(|(s, n)| (s.to_owned(), n)).into());

    let mut empty = TestService::start().await;
    let explain = FindServerRequest { explain: true, ..Default::default() };
    assert_eq!(empty.client.find(explain).await.unwrap(), v1::FindServerResponse::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_ranked_by_the_strategy_and_last_by_handle() {
    let mut service = TestService::start().await;
    for (name, amounts) in [
        ("c", resources(4000, 4096, 100_000)),
        ("a", resources(4000, 4096, 100_000)),
        ("big", resources(16_000, 32_768, 100_000)),
        ("b", resources(4000, 4096, 100_000)),
    ] {
        service.client.register(v1::Server { capacity: amounts, ..server(name) }).await;
    }
    let rank = |strategy: PlacementStrategy, amounts| FindServerRequest {
        strategy: strategy.into(),
        resources: amounts,
        max_candidates: 100,
        ..Default::default()
    };
    for (request, expected) in [
        (rank(PlacementStrategy::Unspecified, None), ["big", "a", "b", "c"]),
        (rank(PlacementStrategy::Spread, ram(64)), ["big", "a", "b", "c"]),
        (rank(PlacementStrategy::Binpack, ram(64)), ["a", "b", "c", "big"]),
        (rank(PlacementStrategy::Binpack, resources(2000, 2048, 64)), ["a", "b", "c", "big"]),
    ] {
        let found = service.client.find(request).await.unwrap();
        assert_eq!(handles(&found), expected);
        let scores: Vec<_> = found.candidates.iter().map(|candidate| candidate.score).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_candidates_are_told_as_were_asked_for() {
    let mut service = TestService::start().await;
    for number in 0..5 {
        service.client.register(server(&format!("web-{number}"))).await;
    }
    for (max_candidates, expected) in [(0, 1), (1, 1), (2, 2), (5, 5), (6, 5), (100, 5)] {
        let found =
            service.client.find(FindServerRequest { max_candidates, ..Default::default() }).await.unwrap();
        assert_eq!(found.candidates.len(), expected);
        assert!(found.rejected_by_reason.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_tells_of_1000_servers_and_counts_them_all() {
    let mut service = TestService::start().await;
    sqlx::query(
        "INSERT INTO servers (handle, address, status, capacity_ram_mb, capacity_disk_mb)
         SELECT 'web-' || lpad(n::text, 4, '0'), '192.0.2.1', 'error', 8192, 100000 FROM generate_series(1, 1205) AS n",
    )
    .execute(&service.database.sql)
    .await
    .unwrap();
    service.client.register(server("fits")).await;
    let explain = FindServerRequest { explain: true, ..Default::default() };
    let found = service.client.find(explain).await.unwrap();
    assert_eq!(handles(&found), ["fits"]);
    assert_eq!(found.rejections.len(), 1000);
    assert_eq!(
        (found.rejections[0].server_handle.as_str(), found.rejections[999].server_handle.as_str()),
        ("web-0001", "web-1000")
    );
    assert_eq!(found.rejected_by_reason.into_iter().collect::<Vec<_>>(), [("STATUS".to_owned(), 1205)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_sees_each_commit_before_it() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    for expected in [8192, 7680, 7168] {
        let found = client.find(FindServerRequest::default()).await.unwrap();
        assert_eq!(found.candidates[0].free.unwrap().ram_mb, expected);
        let in_use = found.candidates[0].server.as_ref().unwrap().status() == ServerStatus::InUse;
        assert_eq!(in_use, expected != 8192);
        client.ensure(&format!("project-{expected}"), &[]).await.unwrap();
    }
    // By hand, too.
    sqlx::query("UPDATE servers SET capacity_ram_mb = 100000").execute(&service.database.sql).await.unwrap();
    let found = client.find(FindServerRequest::default()).await.unwrap();
    assert_eq!(found.candidates[0].free.unwrap().ram_mb, 98_464);
}
