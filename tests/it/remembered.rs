//! What a replica remembers of projects that it read is never answered once it is not so any more, whoever changed it.

use std::fmt::Write as _;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use resource_allocator::proto::v1::{self, EnsureOutcome, ServerStatus};
use sqlx::Executor as _;
use tonic::Code;

use crate::support::{
    Client, Replicas, TestDatabase,
    inventory::assert_consistent,
    requests::{away, handle, leased, module},
    server,
};

const SERVERS: [&str; 3] = ["a", "b", "c"];
const PROJECTS: [&str; 4] = ["api", "bot", "cms", "dns"];
const MODULES: [&str; 3] = ["backend", "frontend", "worker"];
const STEPS: u32 = 150;

async fn with_servers() -> Replicas {
    let replicas = Replicas::start().await;
    let (mut client, _) = replicas.clients();
    for handle in SERVERS {
        client.register(server(handle)).await;
    }
    replicas
}

/// An ensure of one module, with a lease of so many seconds, or for good.
fn with_lease(project_id: &str, ttl: i64) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { modules: vec![module("backend")], ..leased(project_id, ttl) }
}

/// What the tables say of a project; empty where it is not placed.
async fn in_tables(database: &TestDatabase, project_id: &str) -> String {
    let query = "
        SELECT concat_ws(' ', s.handle, s.address, s.managed AND s.status IN ('ready', 'in_use'), 'p' || p.revision,
                   p.reserved_ram_mb, extract(epoch FROM p.expire_time)::bigint) ||
               (SELECT string_agg(' ' || module || ':' || port, '' ORDER BY module) FROM port_allocations WHERE project_id = p.project_id)
        FROM placements p JOIN servers s ON s.handle = p.server_handle WHERE p.project_id = $1";
    let row = sqlx::query_scalar(query).bind(project_id).fetch_optional(&database.sql).await.unwrap();
    row.unwrap_or_default()
}

/// What a replica says of it, in the same words.
async fn by_replica(client: &mut Client, project_id: &str) -> String {
    let answer = match client.placement(project_id).await {
        Ok(answer) => answer,
        Err(status) if status.code() == Code::NotFound => return String::new(),
        Err(status) => panic!("{status:?}"),
    };
    let held = answer.placement.unwrap();
    let admissible = if held.server_admissible { "t" } else { "f" };
    let ram_mb = held.reserved.unwrap().ram_mb();
    let mut said =
        format!("{} {} {admissible} {} {ram_mb}", held.server_handle, held.server_address, held.etag);
    if let Some(end) = held.expire_time {
        // As Postgres rounds.
        write!(said, " {}", end.seconds + i64::from(end.nanos >= 500_000_000)).unwrap();
    }
    for allocation in answer.allocations {
        write!(said, " {}:{}", allocation.module, allocation.port).unwrap();
    }
    said
}

/// Changes something at random by one of the replicas, or by hand. What is refused changes nothing.
async fn change(client: &mut Client, database: &TestDatabase, random: &mut StdRng) -> String {
    let project = PROJECTS[random.random_range(0..PROJECTS.len())];
    let name = SERVERS[random.random_range(0..SERVERS.len())];
    let by_module = MODULES[random.random_range(0..MODULES.len())];
    let address = format!("192.0.2.{}", random.random_range(1..255));
    let kind = random.random_range(0..10);
    match kind {
        0..=2 => drop(client.ensure(project, &[by_module]).await),
        3 => {
            let modules = [by_module];
            client.release(project, &modules[usize::from(random.random::<bool>())..]).await;
        }
        4 => drop(client.relocate(away(project)).await),
        5 => {
            let held =
                client.placement(project).await.ok().and_then(|answer| answer.allocations.into_iter().next());
            if let Some(held) = held {
                drop(client.port_in_use(project, &held.module, held.port).await);
            }
        }
        6 => drop(client.place(with_lease(project, if random.random() { 0 } else { 3600 })).await),
        7 => {
            client.update(v1::Server { address: address.clone(), ..server(name) }, &["address"]).await;
        }
        8 => {
            let status = if random.random() { ServerStatus::Maintenance } else { ServerStatus::Ready };
            client.set_status(name, status).await;
        }
        _ => {
            for statement in [
                "UPDATE servers SET address = $2 WHERE handle = $1",
                "UPDATE placements SET reserved_ram_mb = reserved_ram_mb + 1 WHERE server_handle = $1 AND $2 <> ''",
            ] {
                sqlx::query(statement).bind(name).bind(&address).execute(&database.sql).await.unwrap();
            }
        }
    }
    format!("{kind} {project} {name} {by_module} {address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_says_what_the_tables_say_whatever_changes_and_by_whom() {
    let replicas = with_servers().await;
    let database = &replicas.service.database;
    let (mut one, mut two) = replicas.clients();
    let mut random = StdRng::seed_from_u64(20);
    let mut history = Vec::new();
    for _ in 0..STEPS {
        let client = if random.random() { &mut one } else { &mut two };
        history.push(change(client, database, &mut random).await);
        for project in PROJECTS {
            let truth = in_tables(database, project).await;
            for client in [&mut one, &mut two] {
                // The second is of what the first remembers.
                for _ in 0..2 {
                    assert_eq!(by_replica(client, project).await, truth, "{project} after {history:#?}");
                }
            }
        }
    }
    assert_consistent(&database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_another_replica_gave_is_told_by_the_next_repeat() {
    let replicas = with_servers().await;
    let (mut one, mut two) = replicas.clients();
    for _ in 0..3 {
        let answer = one.ensure("shop", &["backend"]).await.unwrap();
        assert_eq!(answer.placement.unwrap().expire_time, None);
    }
    let given = two.place(with_lease("shop", 3600)).await.unwrap().placement.unwrap();
    assert!(given.expire_time.is_some());
    for _ in 0..2 {
        let repeated = one.ensure("shop", &["backend"]).await.unwrap();
        assert_eq!(repeated.outcome(), EnsureOutcome::Unchanged);
        assert_eq!(repeated.placement.unwrap(), given);
    }
    let later = two.place(with_lease("shop", 7200)).await.unwrap().placement.unwrap();
    assert_eq!(one.ensure("shop", &["backend"]).await.unwrap().placement.unwrap(), later);
    two.place(with_lease("shop", 0)).await.unwrap();
    for _ in 0..3 {
        let repeated = one.ensure("shop", &["backend"]).await.unwrap();
        assert_eq!(repeated.placement.unwrap().expire_time, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_dropped_unseen_is_looked_for_in_the_tables() {
    let replicas = with_servers().await;
    let (mut one, mut two) = replicas.clients();
    for _ in 0..3 {
        assert_eq!(handle(&one.ensure("shop", &["backend"]).await.unwrap()), "a");
    }
    two.relocate(away("shop")).await.unwrap();
    // As the service drops it.
    let drop_all = "
        BEGIN; SET LOCAL resource_allocator.writer = 'service';
        UPDATE pools SET compacted_sequence = last_sequence; DELETE FROM allocation_events; COMMIT";
    replicas.service.database.sql.execute(drop_all).await.unwrap();
    let moved = two.placement("shop").await.unwrap().placement.unwrap();
    assert_ne!(moved.server_handle, "a");
    assert_eq!(one.ensure("shop", &["backend"]).await.unwrap().placement.unwrap(), moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_begins_with_nothing_remembered() {
    let replicas = with_servers().await;
    let (mut one, _) = replicas.clients();
    for _ in 0..3 {
        one.ensure("shop", &["backend"]).await.unwrap();
    }
    // As after a restore of a dump from before the project was placed, in which as much happened since.
    let restore = "
        BEGIN; SET LOCAL session_replication_role = replica;
        DELETE FROM port_allocations; DELETE FROM placements;
        UPDATE servers SET placement_count = 0, reserved_cpu_millis = 0, reserved_ram_mb = 0, reserved_disk_mb = 0, status = 'ready';
        UPDATE allocation_events SET project_id = 'other' WHERE project_id = 'shop';
        UPDATE pools SET epoch = gen_random_uuid(); COMMIT";
    replicas.service.database.sql.execute(restore).await.unwrap();
    assert_eq!(one.placement("shop").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(one.ensure("shop", &["backend"]).await.unwrap().outcome(), EnsureOutcome::Created);
}
