//! SyncServers: the whole list of one source, taken at once.

use resource_allocator::proto::v1::{self, ServerStatus, server_changed::Change, server_sync_result::Action};
use tonic::{Code, Status};

use crate::support::{
    Client, TestService,
    inventory::{assert_consistent, changes, delete, events, get, list, refused, report, update},
    server, violations,
};

fn listed(handle: &str, external_id: &str) -> v1::Server {
    v1::Server { external_id: external_id.to_owned(), ..server(handle) }
}

async fn try_sync(
    client: &mut Client,
    request: v1::SyncServersRequest,
) -> Result<v1::SyncServersResponse, Status> {
    client.inventory.sync_servers(request).await.map(tonic::Response::into_inner)
}

fn request(servers: &[v1::Server]) -> v1::SyncServersRequest {
    v1::SyncServersRequest { source: "cloud".to_owned(), servers: servers.to_vec(), ..Default::default() }
}

async fn sync(client: &mut Client, servers: &[v1::Server]) -> v1::SyncServersResponse {
    try_sync(client, request(servers)).await.unwrap()
}

/// The results as handle and action; the counts must agree with them.
fn actions(response: &v1::SyncServersResponse) -> Vec<(&str, Action)> {
    let count =
        |action| u32::try_from(response.results.iter().filter(|result| result.action() == action).count());
    assert_eq!(Ok(response.created), count(Action::Created));
    assert_eq!(Ok(response.updated), count(Action::Updated));
    assert_eq!(Ok(response.unchanged), count(Action::Unchanged));
    assert_eq!(Ok(response.marked_missing), count(Action::MarkedMissing));
    assert_eq!(Ok(response.rejected), count(Action::Rejected));
    response.results.iter().map(|result| (result.handle.as_str(), result.action())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_creates_updates_and_marks_missing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("by-hand")).await;
    let response = sync(client, &[server("b"), server("a"), server("c")]).await;
    assert_eq!(actions(&response), [("a", Action::Created), ("b", Action::Created), ("c", Action::Created)]);
    let created = get(client, "a").await.unwrap();
    assert_eq!(
        (created.source.as_str(), created.status(), created.managed),
        ("cloud", ServerStatus::Ready, Some(true))
    );

    // The same list again writes nothing.
    let response = sync(client, &[server("a"), server("b"), server("c")]).await;
    assert_eq!((response.unchanged, actions(&response).len()), (3, 3));
    assert_eq!(get(client, "a").await.unwrap(), created);

    let moved = v1::Server {
        address: "192.0.2.50".to_owned(),
        status: ServerStatus::Maintenance.into(),
        ..server("b")
    };
    let response = sync(client, &[server("a"), moved, server("d")]).await;
    let expected = [
        ("a", Action::Unchanged),
        ("b", Action::Updated),
        ("c", Action::MarkedMissing),
        ("d", Action::Created),
    ];
    assert_eq!(actions(&response), expected);
    assert_eq!(response.results[1].detail, "address, status");
    assert_eq!(get(client, "b").await.unwrap().status(), ServerStatus::Maintenance);
    assert_eq!(get(client, "c").await.unwrap().status(), ServerStatus::Missing);
    assert_eq!(
        get(client, "by-hand").await.unwrap().status(),
        ServerStatus::Ready,
        "another source's are left alone"
    );

    let told = events(client, &service.database.sql).await;
    assert_eq!(changes(&told, "a"), [[Change::Registered]]);
    assert_eq!(changes(&told, "b"), [vec![Change::Registered], vec![Change::Status, Change::Updated]]);
    assert_eq!(changes(&told, "c"), [[Change::Registered], [Change::Status]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_listed_again_returns_to_what_it_was() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let all = ["ready", "resting", "set", "stays"].map(server);
    sync(client, &all).await;
    let resting = v1::Server { status: ServerStatus::Maintenance.into(), ..server("resting") };
    update(client, resting, &["status"]).await.unwrap();
    sync(client, &[server("ready"), server("stays")]).await;
    let response = sync(client, &[server("stays"), server("set")]).await;
    assert_eq!((response.updated, response.marked_missing), (1, 1));
    // Marked once: one that is missing already is left as it is.
    let response = sync(client, &[server("stays"), server("set")]).await;
    assert_eq!(actions(&response).iter().filter(|(_, action)| *action == Action::Unchanged).count(), 4);

    // What is done to it while it is away does not lose what it was.
    let moved = v1::Server { address: "192.0.2.60".to_owned(), ..server("resting") };
    client.register(v1::Server { source: "cloud".to_owned(), ..moved.clone() }).await;
    update(client, moved.clone(), &["capacity"]).await.unwrap();
    assert_eq!(get(client, "resting").await.unwrap().status(), ServerStatus::Missing);

    sync(client, &[server("ready"), moved, server("set"), server("stays")]).await;
    assert_eq!(get(client, "ready").await.unwrap().status(), ServerStatus::Ready);
    assert_eq!(get(client, "resting").await.unwrap().status(), ServerStatus::Maintenance);

    // A source that says what it is, is believed.
    sync(client, &[server("ready"), server("resting"), server("stays")]).await;
    let said = v1::Server { status: ServerStatus::Error.into(), ..server("set") };
    sync(client, &[server("ready"), server("resting"), said, server("stays")]).await;
    assert_eq!(get(client, "set").await.unwrap().status(), ServerStatus::Error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_called_missing_by_an_operator_returns_as_discovered() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    sync(client, &[server("a")]).await;
    update(client, v1::Server { status: ServerStatus::Missing.into(), ..server("a") }, &["status"])
        .await
        .unwrap();
    assert_eq!(actions(&sync(client, &[server("a")]).await), [("a", Action::Updated)]);
    assert_eq!(get(client, "a").await.unwrap().status(), ServerStatus::Discovered);
}

#[tokio::test(flavor = "multi_thread")]
async fn l34_identity_is_the_sources_own_id_and_an_address_may_change() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    sync(client, &[listed("a", "i-1"), listed("b", "i-2")]).await;

    // Renamed and moved at the source: the same server, under the handle that it was given.
    let moved = v1::Server { address: "192.0.2.70".to_owned(), ..listed("renamed", "i-1") };
    let response = sync(client, &[moved, listed("b", "i-2")]).await;
    assert_eq!(actions(&response), [("a", Action::Updated), ("b", Action::Unchanged)]);
    assert_eq!(response.results[0].detail, "address");
    assert_eq!(get(client, "a").await.unwrap().address, "192.0.2.70");
    refused(get(client, "renamed").await, Code::NotFound, "SERVER_NOT_FOUND");

    // Two that swap their names are still who they are.
    let swapped = [v1::Server { address: "192.0.2.70".to_owned(), ..listed("b", "i-1") }, listed("a", "i-2")];
    let response = sync(client, &swapped).await;
    assert_eq!(actions(&response), [("a", Action::Unchanged), ("b", Action::Unchanged)]);

    // Without a known id the handle decides; a new id is taken up.
    let response = sync(client, &[listed("a", "i-1"), listed("b", "i-9")]).await;
    assert_eq!(actions(&response), [("a", Action::Updated), ("b", Action::Updated)]);
    assert_eq!(response.results[1].detail, "external_id");

    // Two entries that are one server contradict each other; the third is taken all the same.
    let response =
        sync(client, &[listed("a", "i-7"), listed("other", "i-1"), listed("b", "i-9"), listed("c", "i-3")])
            .await;
    assert_eq!(
        actions(&response),
        [("a", Action::Rejected), ("b", Action::Unchanged), ("c", Action::Created)]
    );
    assert_eq!(get(client, "a").await.unwrap().external_id, "i-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn l35_an_empty_or_halved_list_is_refused_unless_it_is_meant() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let all = ["a", "b", "c", "d"].map(server);

    // Empty is refused even where nothing is known.
    let metadata = refused(try_sync(client, request(&[])).await, Code::FailedPrecondition, "SYNC_REFUSED");
    assert_eq!((metadata["known"].as_str(), metadata["source"].as_str()), ("0", "cloud"));

    sync(client, &all).await;
    for (kept, missing) in [(0, "4"), (1, "3")] {
        for validate_only in [true, false] {
            let list = v1::SyncServersRequest { validate_only, ..request(&all[..kept]) };
            let metadata = refused(try_sync(client, list).await, Code::FailedPrecondition, "SYNC_REFUSED");
            let told =
                ["listed", "would_be_missing", "known", "disposition"].map(|key| metadata[key].as_str());
            assert_eq!(told, [kept.to_string().as_str(), missing, "4", "OPERATOR"]);
        }
    }
    assert_eq!(get(client, "d").await.unwrap().status(), ServerStatus::Ready);
    // New servers do not outweigh those that are gone.
    let replaced = ["a", "x", "y", "z", "zz"].map(server);
    refused(try_sync(client, request(&replaced)).await, Code::FailedPrecondition, "SYNC_REFUSED");
    refused(get(client, "x").await, Code::NotFound, "SERVER_NOT_FOUND");

    // Half is not more than half.
    assert_eq!(sync(client, &all[..2]).await.marked_missing, 2);
    let meant = v1::SyncServersRequest { allow_mass_missing: true, ..request(&[]) };
    let response = try_sync(client, meant).await.unwrap();
    assert_eq!((response.marked_missing, response.unchanged, actions(&response).len()), (2, 2, 4));
    let missing = v1::ListServersRequest { status: ServerStatus::Missing.into(), ..Default::default() };
    assert_eq!(list(client, missing).await.unwrap().0, ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_only_tells_the_same_and_writes_nothing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("foreign")).await;
    sync(client, &[server("a"), server("b"), server("c")]).await;
    let before = events(client, &service.database.sql).await;
    let rows = "SELECT array_agg(s::text ORDER BY handle) FROM servers s";
    let stood: Vec<String> = sqlx::query_scalar(rows).fetch_one(&service.database.sql).await.unwrap();

    let changed = v1::Server { managed: Some(false), ..server("b") };
    let list = request(&[server("a"), changed, server("d"), server("foreign")]);
    let told =
        try_sync(client, v1::SyncServersRequest { validate_only: true, ..list.clone() }).await.unwrap();
    let stands: Vec<String> = sqlx::query_scalar(rows).fetch_one(&service.database.sql).await.unwrap();
    assert_eq!(stands, stood);
    assert_eq!(events(client, &service.database.sql).await, before);

    assert_eq!(try_sync(client, list).await.unwrap(), told, "it is what the sync then does");
    let expected = [
        ("a", Action::Unchanged),
        ("b", Action::Updated),
        ("c", Action::MarkedMissing),
        ("d", Action::Created),
        ("foreign", Action::Rejected),
    ];
    assert_eq!(actions(&told), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handle_of_another_source_is_rejected_alone() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let by_hand = client.register(server("by-hand")).await;
    let other = client.register(v1::Server { source: "other".to_owned(), ..listed("others", "i-1") }).await;

    let moved = |handle| v1::Server { address: "192.0.2.80".to_owned(), ..listed(handle, "") };
    let response = sync(client, &[moved("by-hand"), moved("others"), listed("a", "i-1")]).await;
    let expected = [("a", Action::Created), ("by-hand", Action::Rejected), ("others", Action::Rejected)];
    assert_eq!(actions(&response), expected);
    assert!(response.results[1].detail.contains("no source"), "{:?}", response.results[1]);
    assert!(response.results[2].detail.contains("source `other`"), "{:?}", response.results[2]);
    assert_eq!(get(client, "by-hand").await.unwrap(), by_hand);
    assert_eq!(get(client, "others").await.unwrap(), other);
    // An external id is a source's own: `i-1` is two servers' here.
    assert_eq!(get(client, "a").await.unwrap().external_id, "i-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_list_is_refused_whole() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let list = v1::SyncServersRequest {
        source: "no spaces".to_owned(),
        servers: vec![
            server("a"),
            server("a"),
            listed("b", "i-1"),
            listed("c", "i-1"),
            v1::Server { source: "other".to_owned(), ..server("d") },
            v1::Server { address: String::new(), capacity: None, ..server("e") },
        ],
        ..Default::default()
    };
    let status = try_sync(client, list).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let expected = [
        "source",
        "servers[1].handle",
        "servers[3].external_id",
        "servers[4].source",
        "servers[5].address",
        "servers[5].capacity",
    ];
    assert_eq!(violations(&status), expected);
    let nobody =
        v1::SyncServersRequest { source: String::new(), servers: vec![server("a")], ..Default::default() };
    assert_eq!(violations(&try_sync(client, nobody).await.unwrap_err()), ["source"]);
    assert_eq!(list_all(client).await, Vec::<String>::new());
}

async fn list_all(client: &mut Client) -> Vec<String> {
    list(client, v1::ListServersRequest::default()).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn l36_placements_stay_on_a_server_that_is_missing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    sync(client, &[server("a"), server("b")]).await;
    update(client, v1::Server { status: ServerStatus::Error.into(), ..server("b") }, &["status"])
        .await
        .unwrap();
    let placed = client.ensure("p", &[]).await.unwrap();
    report(client, "a", v1::Usage { ram_mb: Some(1), ..Default::default() }).await.unwrap();
    sync(client, &[server("b")]).await;

    let missing = get(client, "a").await.unwrap();
    assert_eq!((missing.status(), missing.placement_count), (ServerStatus::Missing, 1));
    assert!(missing.observed.is_some());
    let repeated = client.ensure("p", &[]).await.unwrap();
    assert_eq!(repeated.outcome(), v1::EnsureOutcome::Unchanged);
    assert_eq!(repeated.allocations, placed.allocations);
    let placement = repeated.placement.unwrap();
    assert_eq!((placement.server_handle.as_str(), placement.server_admissible), ("a", false));

    let metadata = refused(
        client.ensure("p", &["second"]).await,
        Code::FailedPrecondition,
        "BOUND_SERVER_NOT_ADMISSIBLE",
    );
    assert_eq!((metadata["cause"].as_str(), metadata["status"].as_str()), ("STATUS", "MISSING"));
    let metadata = refused(client.ensure("q", &[]).await, Code::FailedPrecondition, "NO_ADMISSIBLE_SERVER");
    assert_eq!((metadata["status.MISSING"].as_str(), metadata["status.ERROR"].as_str()), ("1", "1"));
    refused(delete(client, "a", "").await, Code::FailedPrecondition, "SERVER_IN_USE");

    sync(client, &[server("a"), server("b")]).await;
    assert_eq!(get(client, "a").await.unwrap().status(), ServerStatus::InUse);
    assert!(client.ensure("p", &[]).await.unwrap().placement.unwrap().server_admissible);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_says_nothing_of_the_status_leaves_it() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    sync(client, &[server("a"), server("gone")]).await;
    let set = v1::Server { status: ServerStatus::Maintenance.into(), managed: Some(false), ..server("a") };
    update(client, set, &["status", "managed"]).await.unwrap();
    let gone = v1::Server { status: ServerStatus::Decommissioned.into(), ..server("gone") };
    update(client, gone, &["status"]).await.unwrap();
    // One that is out of service for good does not go missing, and does not count as such.
    let response = sync(client, &[server("a")]).await;
    assert_eq!(actions(&response), [("a", Action::Unchanged), ("gone", Action::Unchanged)]);
    let kept = get(client, "a").await.unwrap();
    assert_eq!((kept.status(), kept.managed), (ServerStatus::Maintenance, Some(false)));
    assert_eq!(get(client, "gone").await.unwrap().status(), ServerStatus::Decommissioned);
}

/// Each statement is counted on the pool's row, and a transaction that writes that row thousands of times passes by thousands of its
/// versions each time: while all others wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_written_by_one_statement() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let servers: Vec<_> = (0..100).map(|n| server(&format!("web-{n}"))).collect();
    sync(client, &servers).await;
    let revisions = "SELECT count(DISTINCT revision) FROM servers";
    assert_eq!(service.database.count(revisions).await, 1);
    let moved: Vec<_> =
        servers.into_iter().map(|server| v1::Server { address: "192.0.2.9".to_owned(), ..server }).collect();
    sync(client, &moved).await;
    assert_eq!(service.database.count(revisions).await, 1);
    assert_eq!(service.database.count("SELECT count(*) FROM servers WHERE address = '192.0.2.9'").await, 100);
}
