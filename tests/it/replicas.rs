//! Two replicas on one database: what one commits the other sees at once, and they never get in each other's way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use resource_allocator::proto::v1::{self, EnsureOutcome};
use tonic::Code;

use crate::support::{
    Client, Replicas, TestService,
    inventory::{assert_consistent, delete, ensure_ram, events, get, ram, refused, report, update},
    server,
};

async fn candidates(
    client: &mut Client,
    strategy: v1::PlacementStrategy,
) -> Vec<(String, v1::FreeResources)> {
    let request =
        v1::FindServerRequest { max_candidates: 100, strategy: strategy.into(), ..Default::default() };
    let found = client.allocator.find_server(request).await.unwrap().into_inner();
    found.candidates.into_iter().map(|found| (found.server.unwrap().handle, found.free.unwrap())).collect()
}

fn release(project_id: &str) -> v1::ReleaseAllocationRequest {
    v1::ReleaseAllocationRequest { project_id: project_id.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_commits_the_other_sees_at_once() {
    let replicas = Replicas::start().await;
    commit_by_either(&replicas).await;
    let otherwise =
        "SELECT count(*) FROM allocation_events WHERE (kind = 'ensured') <> (granted IS NOT NULL)";
    assert_eq!(replicas.service.database.count(otherwise).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_release_before_commits_is_seen_too() {
    let replicas = Replicas::start().await;
    for statement in [
        "CREATE FUNCTION tell_no_grants() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.granted := NULL; RETURN NEW; END $$",
        "CREATE TRIGGER tell_no_grants BEFORE INSERT ON allocation_events FOR EACH ROW EXECUTE FUNCTION tell_no_grants()",
    ] {
        sqlx::query(statement).execute(&replicas.service.database.sql).await.unwrap();
    }
    commit_by_either(&replicas).await;
    let told = "SELECT count(*) FROM allocation_events WHERE granted IS NOT NULL";
    assert_eq!(replicas.service.database.count(told).await, 0);
}

async fn commit_by_either(replicas: &Replicas) {
    let (mut one, mut two) = replicas.clients();
    refused(two.ensure("p", &[]).await, Code::FailedPrecondition, "NO_SERVERS");
    one.register(server("a")).await;
    let created = two.ensure("p", &["backend"]).await.unwrap();
    assert_eq!(created.outcome(), EnsureOutcome::Created);

    let repeated = one.ensure("p", &["backend"]).await.unwrap();
    assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
    assert_eq!((repeated.placement, &repeated.allocations), (created.placement, &created.allocations));
    let extended = one.ensure("p", &["frontend"]).await.unwrap();
    assert_eq!(extended.allocations[1].port, 8001);
    assert_eq!(two.ensure("q", &[]).await.unwrap().allocations[0].port, 8002);

    // The whole server by one, seen full by the other; given back by the other, taken by the one.
    ensure_ram(&mut one, "big", 7168).await.unwrap();
    refused(ensure_ram(&mut two, "late", 1).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    let released = two.allocator.release_allocation(release("big")).await.unwrap().into_inner();
    assert!(released.placement_removed);
    let late = ensure_ram(&mut one, "late", 7168).await.unwrap();
    assert_eq!(late.allocations[0].port, 8004, "the other one's port rests here too");

    // The inventory: usage, updates, removals.
    report(&mut one, "a", v1::Usage { listening_ports: vec![8005], ..Default::default() }).await.unwrap();
    assert_eq!(two.ensure("q", &["second"]).await.unwrap().allocations[1].port, 8006);
    let resting = v1::Server { status: v1::ServerStatus::Maintenance.into(), ..server("a") };
    let read = get(&mut two, "a").await.unwrap();
    update(&mut two, resting.clone(), &["status"]).await.unwrap();
    assert!(!one.ensure("p", &[]).await.unwrap().placement.unwrap().server_admissible);
    let stale = v1::Server { etag: read.etag, ..resting };
    refused(update(&mut one, stale, &["status"]).await, Code::Aborted, "ETAG_MISMATCH");
    two.register(server("b")).await;
    assert_eq!(one.ensure("r", &[]).await.unwrap().placement.unwrap().server_handle, "b");
    two.allocator.release_allocation(release("r")).await.unwrap();
    delete(&mut one, "b", "").await.unwrap();
    refused(two.ensure("r", &[]).await, Code::FailedPrecondition, "NO_ADMISSIBLE_SERVER");
    assert_consistent(&replicas.service.database.sql).await;
    let sql = &replicas.service.database.sql;
    assert_eq!(events(&mut one, sql).await, events(&mut two, sql).await);
}

/// Whoever has been alone for a while plans before it has the pool's row: the other comes in between, in either direction.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_the_other_overtook_is_made_anew() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    one.register(server("a")).await;
    let alone = async |client: &mut Client, name: &str| {
        for number in 0..3 {
            ensure_ram(client, &format!("{name}-{number}"), 256).await.unwrap();
        }
    };
    alone(&mut one, "before").await;
    // Planned where there was room, and there is none by now.
    ensure_ram(&mut two, "big", 8192 - 3 * 256).await.unwrap();
    refused(ensure_ram(&mut one, "late", 256).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    // Planned as a refusal, and there is room by now.
    two.allocator.release_allocation(release("big")).await.unwrap();
    ensure_ram(&mut one, "late", 1024).await.unwrap();
    // Planned with a port that the other gave meanwhile.
    alone(&mut one, "again").await;
    let theirs = ensure_ram(&mut two, "theirs", 256).await.unwrap();
    let ours = ensure_ram(&mut one, "ours", 256).await.unwrap();
    assert_ne!(ours.allocations[0].port, theirs.allocations[0].port);
    // Planned for a project that the other placed meanwhile.
    alone(&mut one, "once").await;
    let placed = ensure_ram(&mut two, "same", 256).await.unwrap();
    let same = ensure_ram(&mut one, "same", 256).await.unwrap();
    assert_eq!((same.outcome(), &same.allocations), (EnsureOutcome::Unchanged, &placed.allocations));
    // Planned on a server that is told to rest meanwhile, by hand.
    let sql = &replicas.service.database.sql;
    sqlx::query("UPDATE servers SET status = 'maintenance'").execute(sql).await.unwrap();
    refused(ensure_ram(&mut one, "idle", 256).await, Code::FailedPrecondition, "NO_ADMISSIBLE_SERVER");
    assert_consistent(sql).await;
    assert_eq!(events(&mut one, sql).await, events(&mut two, sql).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn interleaved_ensures_through_both_never_collide() {
    const CALLERS: usize = 16;
    const PROJECTS: usize = 200;
    let replicas = Replicas::start().await;
    let (mut one, two) = replicas.clients();
    let capacity =
        Some(v1::Resources { ram_mb: Some(64 * 50), disk_mb: Some(1_000_000), cpu_millis: Some(0) });
    for handle in ["a", "b", "c", "d"] {
        one.register(v1::Server { capacity, ..server(handle) }).await;
    }
    let clients = [one, two];
    // Every project is asked for through both replicas, and fits: four servers of fifty.
    let callers: Vec<_> = (0..2 * CALLERS)
        .map(|caller| {
            let mut client = clients[caller % 2].clone();
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for n in (caller / 2..PROJECTS).step_by(CALLERS) {
                    let answer = ensure_ram(&mut client, &format!("project-{n}"), 64).await.unwrap();
                    answers.push((n, answer.outcome(), answer.placement.unwrap(), answer.allocations));
                }
                answers
            })
        })
        .collect();
    let mut created = 0;
    let mut told = BTreeMap::new();
    let mut ports = BTreeSet::new();
    for caller in callers {
        for (n, outcome, placement, allocations) in caller.await.unwrap() {
            match outcome {
                EnsureOutcome::Created => {
                    created += 1;
                    ports.extend(allocations.iter().map(|held| (held.server_handle.clone(), held.port)));
                }
                outcome => assert_eq!(outcome, EnsureOutcome::Unchanged),
            }
            // The same request many times at once is one success told many times (L46).
            let answer = (placement, allocations);
            assert_eq!(told.entry(n).or_insert_with(|| answer.clone()), &answer);
        }
    }
    assert_eq!((created, told.len(), ports.len()), (PROJECTS, PROJECTS, PROJECTS));
    // Each server is full, with the fifty lowest ports.
    for handle in ["a", "b", "c", "d"] {
        assert_eq!(ports.range((handle.to_owned(), 0)..=(handle.to_owned(), 8049)).count(), 50, "{handle}");
    }
    let sql = &replicas.service.database.sql;
    assert_consistent(sql).await;
    let [mut one, mut two] = clients;
    refused(ensure_ram(&mut two, "one-more", 64).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    assert_eq!(events(&mut one, sql).await.len(), 4 + 4 * PROJECTS + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ensures_and_releases_of_the_same_projects_through_both_leave_no_trace() {
    let replicas = Replicas::start().await;
    let (mut one, two) = replicas.clients();
    one.register(v1::Server {
        capacity: Some(v1::Resources { disk_mb: Some(0), ..ram(64 * 8) }),
        ..server("a")
    })
    .await;
    let clients = [one, two];
    // Room for each of the eight projects at once, so that no refusal is a right answer.
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let mut client = clients[caller % 2].clone();
            tokio::spawn(async move {
                for n in 0..12 {
                    let project_id = format!("project-{}", (caller + n) % 8);
                    if (caller + n) % 3 == 0 {
                        client.allocator.release_allocation(release(&project_id)).await.unwrap();
                    } else {
                        let answer = ensure_ram(&mut client, &project_id, 64).await.unwrap();
                        assert_eq!(answer.allocations.len(), 1);
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let sql = &replicas.service.database.sql;
    assert_consistent(sql).await;
    let [mut one, mut two] = clients;
    for n in 0..8 {
        two.allocator.release_allocation(release(&format!("project-{n}"))).await.unwrap();
    }
    let empty = get(&mut one, "a").await.unwrap();
    assert_eq!((empty.placement_count, empty.reserved.unwrap().ram_mb), (0, Some(0)));
    ensure_ram(&mut one, "whole", 64 * 8).await.unwrap();
    assert_consistent(sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l26_either_replica_makes_the_same_choice() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    for (handle, ram_mb) in [("c", 4096), ("a", 4096), ("B", 4096), ("small", 2048), ("big", 8192)] {
        let capacity =
            Some(v1::Resources { ram_mb: Some(ram_mb), disk_mb: Some(50_000), cpu_millis: Some(0) });
        one.register(v1::Server { capacity, ..server(handle) }).await;
    }
    for n in 0..9 {
        for strategy in [v1::PlacementStrategy::Spread, v1::PlacementStrategy::Binpack] {
            let (here, there) = (candidates(&mut one, strategy).await, candidates(&mut two, strategy).await);
            assert_eq!(here, there);
        }
        let first = candidates(&mut one, v1::PlacementStrategy::Spread).await.remove(0).0;
        let client = if n % 2 == 0 { &mut one } else { &mut two };
        let placed = ensure_ram(client, &format!("project-{n}"), 700 + 100 * (n % 3)).await.unwrap();
        assert_eq!(
            placed.placement.unwrap().server_handle,
            first,
            "ensure places where FindServer says (L13)"
        );
    }
    // Ties fall to the handle, as bytes.
    let ties: Vec<_> = candidates(&mut two, v1::PlacementStrategy::Spread).await;
    for pair in ties.windows(2) {
        let key = |(handle, free): &(String, v1::FreeResources)| (-free.ram_mb, handle.clone());
        assert!(key(&pair[0]) < key(&pair[1]), "{pair:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_starts_late_has_all_that_is_committed() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("a")).await;
    client.register(server("b")).await;
    for n in 0..5 {
        client.ensure(&format!("project-{n}"), &["backend", "frontend"]).await.unwrap();
    }
    client.allocator.release_allocation(release("project-0")).await.unwrap();
    let expected = candidates(client, v1::PlacementStrategy::Spread).await;
    let (_running, mut late, _shutdown) = TestService::builder().start_replica(&service.database).await;
    assert_eq!(candidates(&mut late, v1::PlacementStrategy::Spread).await, expected);
    // The same port, with what rests left to rest.
    let preview = v1::EnsureAllocationRequest {
        project_id: "next".to_owned(),
        validate_only: true,
        ..Default::default()
    };
    let here = service.client.allocator.ensure_allocation(preview.clone()).await.unwrap().into_inner();
    let there = late.allocator.ensure_allocation(preview).await.unwrap().into_inner();
    assert_eq!((here.placement, here.allocations), (there.placement, there.allocations));
}

/// Long enough for every replica to look after itself twice, which it does every 2 s.
const TWO_LOOKS: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_idle_take_no_lock() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    one.register(server("a")).await;
    assert_eq!(candidates(&mut two, v1::PlacementStrategy::Spread).await.len(), 1);
    // A server's whole life between two looks of the other replica.
    one.register(server("b")).await;
    delete(&mut one, "b", "").await.unwrap();
    assert_eq!(candidates(&mut two, v1::PlacementStrategy::Spread).await.len(), 1);
    // A lock of the pool's row leaves its mark on it.
    let mark = || {
        sqlx::query_scalar::<_, String>("SELECT xmin::text || ' ' || xmax::text FROM pools")
            .fetch_one(&replicas.service.database.sql)
    };
    let before = mark().await.unwrap();
    // Housekeeping may find something to do only where it should not.
    tokio::time::sleep(TWO_LOOKS).await;
    assert_eq!(mark().await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_follows_what_others_commit_stands_in_nobodys_way() {
    let replicas = Replicas::start().await;
    let (mut one, mut two) = replicas.clients();
    one.register(server("a")).await;
    assert_eq!(candidates(&mut two, v1::PlacementStrategy::Spread).await.len(), 1);
    for number in 0..10 {
        one.ensure(&format!("p{number}"), &["backend"]).await.unwrap();
    }
    let database = &replicas.service.database;
    let held = database.hold_pool().await;

    // The other one is behind by these. While somebody has the pool's row, it does not want it.
    let begin = Instant::now();
    while begin.elapsed() < TWO_LOOKS {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&database.sql)
        .await
        .unwrap();
        assert_eq!(waiting, 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let free = candidates(&mut one, v1::PlacementStrategy::Spread).await;
    assert_eq!(candidates(&mut two, v1::PlacementStrategy::Spread).await, free);
    held.rollback().await.unwrap();
}
