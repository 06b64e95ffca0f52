//! The fleet's policy: a default headroom and an over-commit, which hold for every server that does not say otherwise.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use resource_allocator::proto::v1::{self, EnsureOutcome, allocation_event::Detail};
use sqlx::Executor as _;
use tonic::Code;

use crate::support::{
    Client, Replicas, TestDatabase, TestService,
    inventory::{assert_consistent, ensure_ram, events, get, refused, report},
    process::Process,
    requests::{ram, ram_overcommit, resources},
    server, violations,
};

fn least_ram(amount_mb: u64) -> v1::FleetPolicy {
    v1::FleetPolicy { default_headroom: ram(amount_mb), ..Default::default() }
}

fn least_share_of_ram(percent: u32) -> v1::FleetPolicy {
    v1::FleetPolicy {
        default_headroom_percent: Some(v1::Percentages { ram: Some(percent), ..Default::default() }),
        ..Default::default()
    }
}

/// What a server may give in all, and what is free of it, in MB RAM.
async fn ram_of(client: &mut Client, handle: &str) -> (i64, i64) {
    let read = get(client, handle).await.unwrap();
    (read.budget.unwrap().ram_mb, read.free.unwrap().ram_mb)
}

/// What the log tells of the policy, with who caused it.
async fn told(client: &mut Client, service: &TestService) -> Vec<(String, v1::FleetPolicy)> {
    let events = events(client, &service.database.sql).await;
    let changes = events.into_iter().filter_map(|event| match event.detail.unwrap() {
        Detail::FleetPolicyChanged(changed) => {
            assert_eq!((event.project_id.as_str(), event.server_handle.as_str()), ("", ""));
            Some((event.request_id, changed.policy.unwrap()))
        }
        _ => None,
    });
    changes.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_nothing_is_kept_back_and_nothing_is_reserved_twice() {
    let mut service = TestService::start().await;
    let zero = Some(v1::Percentages { cpu: Some(0), ram: Some(0), disk: Some(0) });
    let whole = Some(v1::Percentages { cpu: Some(100), ram: Some(100), disk: Some(100) });
    let expected = v1::FleetPolicy {
        default_headroom: resources(0, 0, 0),
        default_headroom_percent: zero,
        overcommit_percent: whole,
    };
    assert_eq!(service.client.policy().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_headroom_is_the_greater_of_amount_and_share_where_a_server_names_none() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("plain")).await;
    client.register(v1::Server { headroom: ram(0), ..server("none") }).await;
    client.register(v1::Server { headroom: ram(192), ..server("own") }).await;
    client.set_policy(least_ram(1000)).await.unwrap();
    assert_eq!(ram_of(client, "plain").await, (7192, 7192));
    // An eighth is more than that.
    client.set_policy(least_share_of_ram(25)).await.unwrap();
    assert_eq!(ram_of(client, "plain").await, (6144, 6144));
    assert_eq!(ram_of(client, "none").await, (8192, 8192));
    assert_eq!(ram_of(client, "own").await, (8000, 8000));
    assert_eq!(get(client, "plain").await.unwrap().budget.unwrap().disk_mb, 100_000);

    // It is what placement goes by, to the megabyte.
    for handle in ["none", "own"] {
        client.set_status(handle, v1::ServerStatus::Maintenance).await;
    }
    let metadata =
        refused(ensure_ram(client, "all", 6145).await, Code::FailedPrecondition, "NO_ADMISSIBLE_SERVER");
    assert_eq!(metadata["rejected.SIZE"], "1");
    ensure_ram(client, "all", 6144).await.unwrap();
    assert_eq!(ram_of(client, "plain").await, (6144, 0));
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_commit_of_the_fleet_holds_unless_a_server_has_its_own() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("plain")).await;
    let own = Some(v1::Percentages { ram: Some(100), ..Default::default() });
    client.register(v1::Server { overcommit_percent: own, ..server("own") }).await;
    client.set_policy(ram_overcommit(150)).await.unwrap();
    assert_eq!(ram_of(client, "plain").await, (12_288, 12_288));
    assert_eq!(ram_of(client, "own").await, (8192, 8192));
    // What is kept back is a share of what there really is.
    client.set_policy(least_share_of_ram(10)).await.unwrap();
    assert_eq!(ram_of(client, "plain").await, (11_468, 11_468));

    ensure_ram(client, "large", 11_468).await.unwrap();
    let metadata =
        refused(ensure_ram(client, "more", 11_469).await, Code::FailedPrecondition, "REQUEST_EXCEEDS_FLEET");
    assert_eq!(metadata["nearest.server_handle"], "plain");
    let metadata =
        refused(ensure_ram(client, "more", 7373).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    assert_eq!((metadata["rejected.SIZE"].as_str(), metadata["rejected.CAPACITY"].as_str()), ("1", "1"));
    assert_eq!(metadata["nearest.headroom.ram_mb"], "820");
    // What a host uses counts once, against the same budget.
    report(client, "plain", v1::Usage { ram_mb: Some(11_500), ..Default::default() }).await.unwrap();
    assert_eq!(ram_of(client, "plain").await, (11_468, -32));
    // Over-commit that a server gets later is told as a change of its capacity.
    let doubled = v1::Percentages { ram: Some(200), ..Default::default() };
    client
        .update(
            v1::Server { overcommit_percent: Some(doubled), ..server("own") },
            &["overcommit_percent.ram"],
        )
        .await;
    assert_eq!(ram_of(client, "own").await, (15_564, 15_564));
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_counts_for_the_other_replica_at_once_and_is_told() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    ensure_ram(&mut two, "p", 8192).await.unwrap();
    refused(ensure_ram(&mut two, "q", 4096).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    let set = one.set_policy(ram_overcommit(150)).await.unwrap();
    assert_eq!(ram_of(&mut two, "a").await, (12_288, 4096));
    assert_eq!(two.policy().await, set);
    ensure_ram(&mut two, "q", 4096).await.unwrap();
    // A change that changes nothing is none.
    two.set_policy(ram_overcommit(150)).await.unwrap();
    for client in [&mut one, &mut two] {
        let told = told(client, &both.service).await;
        assert_eq!(told.iter().map(|(_, policy)| *policy).collect::<Vec<_>>(), [set]);
    }
    assert_consistent(&both.service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_changed_by_hand_counts_at_once_and_is_told_once() {
    let both = Replicas::start().await;
    let (mut one, mut two) = both.clients();
    one.register(server("a")).await;
    for client in [&mut one, &mut two] {
        assert_eq!(ram_of(client, "a").await, (8192, 8192));
    }
    let sql = &both.service.database.sql;
    sql.execute("UPDATE pools SET default_headroom_ram_mb = 192, overcommit_cpu_percent = 400")
        .await
        .unwrap();
    for client in [&mut one, &mut two] {
        assert_eq!(ram_of(client, "a").await, (8000, 8000));
        refused(ensure_ram(client, "p", 8001).await, Code::FailedPrecondition, "REQUEST_EXCEEDS_FLEET");
    }
    ensure_ram(&mut two, "p", 8000).await.unwrap();
    let standing = one.policy().await;
    assert_eq!(standing.default_headroom.unwrap().ram_mb, Some(192));
    assert_eq!(standing.overcommit_percent.unwrap().cpu, Some(400));
    for client in [&mut one, &mut two] {
        assert_eq!(told(client, &both.service).await, [("edited-by-hand".to_owned(), standing)]);
    }
    assert_consistent(sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_below_what_is_reserved_shows_as_negative_and_takes_nothing_more() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    let placed = ensure_ram(client, "p", 8000).await.unwrap();
    client.set_policy(least_share_of_ram(50)).await.unwrap();
    assert_eq!(ram_of(client, "a").await, (4096, -3904));
    refused(ensure_ram(client, "q", 1).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    refused(ensure_ram(client, "q", 0).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    let repeated = ensure_ram(client, "p", 8000).await.unwrap();
    assert_eq!(
        (repeated.outcome(), repeated.allocations),
        (EnsureOutcome::Unchanged, placed.allocations),
        "what stands is nobody's to take"
    );
    refused(ensure_ram(client, "p", 8001).await, Code::FailedPrecondition, "REQUEST_EXCEEDS_FLEET");
    // A port makes it no worse.
    let extended = client.ensure("p", &["second"]).await;
    assert_eq!(extended.unwrap().outcome(), EnsureOutcome::Extended);
    client.set_policy(least_share_of_ram(0)).await.unwrap();
    assert_eq!(ram_of(client, "a").await, (8192, 192));
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_derives_the_budgets_that_the_service_decides_by() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let mut rng = StdRng::seed_from_u64(7);
    let servers: Vec<_> = (0..60).map(|n| random_server(&mut rng, n)).collect();
    let sync = v1::SyncServersRequest { source: "cloud".to_owned(), servers, ..Default::default() };
    assert_eq!(client.inventory.sync_servers(sync).await.unwrap().into_inner().created, 60);
    for round in 0..12 {
        client.set_policy(random_policy(&mut rng)).await.unwrap();
        let request = v1::ListServersRequest { page_size: 1000, ..Default::default() };
        let listed = client.inventory.list_servers(request).await.unwrap().into_inner().servers;
        let by_service: Vec<_> = listed
            .into_iter()
            .map(|server| {
                let budget = server.budget.unwrap();
                (server.handle, budget.cpu_millis, budget.ram_mb, budget.disk_mb)
            })
            .collect();
        let by_schema: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "SELECT handle, budget_cpu_millis, budget_ram_mb, budget_disk_mb FROM servers ORDER BY handle COLLATE \"C\"",
        )
        .fetch_all(&service.database.sql)
        .await
        .unwrap();
        assert_eq!(by_service.len(), 60);
        assert_eq!(by_service, by_schema, "round {round}");
        // A server that changes under the policy.
        let changed = random_server(&mut rng, round);
        let paths = ["capacity", "headroom", "overcommit_percent"];
        client.update(changed, &paths).await;
    }
}

fn random_amounts(rng: &mut StdRng) -> v1::Resources {
    // The extremes, and what is no round number.
    let mut amount = |most: u64| match rng.random_range(0..6) {
        0 => 0,
        1 => most,
        2 => rng.random_range(0..=most),
        _ => rng.random_range(0..=9999),
    };
    v1::Resources {
        cpu_millis: u32::try_from(amount(1_000_000_000)).ok(),
        ram_mb: Some(amount(1_000_000_000_000)),
        disk_mb: Some(amount(1_000_000_000_000)),
    }
}

fn some_of(rng: &mut StdRng, amounts: v1::Resources) -> v1::Resources {
    let mut some = || rng.random_bool(0.5);
    v1::Resources {
        cpu_millis: amounts.cpu_millis.filter(|_| some()),
        ram_mb: amounts.ram_mb.filter(|_| some()),
        disk_mb: amounts.disk_mb.filter(|_| some()),
    }
}

fn random_percentages(rng: &mut StdRng, range: std::ops::RangeInclusive<u32>) -> v1::Percentages {
    let mut figure = || Some(rng.random_range(range.clone()));
    v1::Percentages { cpu: figure(), ram: figure(), disk: figure() }
}

fn random_server(rng: &mut StdRng, number: usize) -> v1::Server {
    let headroom = random_amounts(rng);
    let overcommit = random_percentages(rng, 100..=10_000);
    v1::Server {
        capacity: Some(random_amounts(rng)),
        headroom: Some(some_of(rng, headroom)),
        overcommit_percent: Some(v1::Percentages {
            cpu: overcommit.cpu.filter(|_| rng.random_bool(0.5)),
            ram: overcommit.ram.filter(|_| rng.random_bool(0.5)),
            disk: overcommit.disk.filter(|_| rng.random_bool(0.5)),
        }),
        ..server(&format!("web-{number}"))
    }
}

fn random_policy(rng: &mut StdRng) -> v1::FleetPolicy {
    v1::FleetPolicy {
        default_headroom: Some(random_amounts(rng)),
        default_headroom_percent: Some(random_percentages(rng, 0..=100)),
        overcommit_percent: Some(random_percentages(rng, 100..=10_000)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_figures_are_refused_by_their_paths_and_change_nothing() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let before = service.database.tables().await;
    let percentages = |figure| Some(v1::Percentages { cpu: Some(figure), ram: Some(figure), disk: None });
    let cases = [
        (v1::FleetPolicy::default(), vec!["policy"]),
        (
            v1::FleetPolicy { default_headroom: Some(v1::Resources::default()), ..Default::default() },
            vec!["policy"],
        ),
        (
            v1::FleetPolicy { default_headroom_percent: percentages(101), ..Default::default() },
            vec!["policy.default_headroom_percent.cpu", "policy.default_headroom_percent.ram"],
        ),
        (
            v1::FleetPolicy { overcommit_percent: percentages(99), ..Default::default() },
            vec!["policy.overcommit_percent.cpu", "policy.overcommit_percent.ram"],
        ),
        (
            v1::FleetPolicy { overcommit_percent: percentages(10_001), ..Default::default() },
            vec!["policy.overcommit_percent.cpu", "policy.overcommit_percent.ram"],
        ),
        (
            v1::FleetPolicy {
                default_headroom: resources(1_000_000_001, u64::MAX, 1),
                default_headroom_percent: percentages(100),
                overcommit_percent: percentages(0),
            },
            vec![
                "policy.default_headroom.cpu_millis",
                "policy.default_headroom.ram_mb",
                "policy.overcommit_percent.cpu",
                "policy.overcommit_percent.ram",
            ],
        ),
    ];
    for (policy, paths) in cases {
        let status = client.set_policy(policy).await.unwrap_err();
        assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, to_strings(&paths)));
    }
    let none = v1::UpdateFleetPolicyRequest { policy: None };
    let status = client.inventory.update_fleet_policy(none).await.unwrap_err();
    assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, to_strings(&["policy"])));
    assert_eq!(service.database.tables().await, before);
}

fn to_strings(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_write_the_figures_that_they_name_at_start_and_leave_the_others() {
    let database = TestDatabase::create().await;
    database.sql.execute("UPDATE pools SET overcommit_disk_percent = 300").await.unwrap();
    let start = |flags: &'static [&'static str]| {
        let url = database.url().to_owned();
        tokio::task::spawn_blocking(move || Process::start_on(&url, flags))
    };
    let flags: &[&str] = &["--default-headroom", "ram=5%,disk=2048", "--overcommit", "cpu=4,ram=1.25"];
    let process = start(flags).await.unwrap();
    let written = Client::connect(&process.endpoint()).await.policy().await;
    let expected = v1::FleetPolicy {
        default_headroom: resources(0, 0, 2048),
        default_headroom_percent: Some(v1::Percentages { cpu: Some(0), ram: Some(5), disk: Some(0) }),
        overcommit_percent: Some(v1::Percentages { cpu: Some(400), ram: Some(125), disk: Some(300) }),
    };
    assert_eq!(written, expected);
    drop(process);
    // Without flags, what stands there stands.
    let process = start(&[]).await.unwrap();
    assert_eq!(Client::connect(&process.endpoint()).await.policy().await, expected);
}
