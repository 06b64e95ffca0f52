//! The stream under load, over two replicas of which one is killed: watchers that reconnect at random, at either replica, see
//! each event once and in order.
//!
//! Short within the suite. `make soak` goes on for a minute.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use resource_allocator::proto::v1;
use tokio::time::timeout;

use crate::support::{
    Client, TestDatabase,
    inventory::assert_consistent,
    process::{Process, ProcessOptions},
    requests::request,
    server,
    watching::{Watching, clients, watch},
};

const CALLERS: usize = 8;
const WATCHERS: u64 = 12;
const PROJECTS: u64 = 40;
/// How long a call may take: to one whose replica is killed as it is sent, the client may never say so.
const CALL_LIMIT: Duration = Duration::from_secs(10);

fn length() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").ok().map_or(4, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Ensures, adds and releases at random, at either replica, until it is told to stop.
async fn work(endpoints: Vec<String>, seed: u64, stop: Arc<AtomicBool>) {
    let clients = clients(&endpoints);
    let mut draw = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let mut client = clients[draw.random_range(0..clients.len())].clone();
        let project_id = format!("project-{}", draw.random_range(0..PROJECTS));
        // What the killed one does not answer was done, or was not: either is told in the log.
        if draw.random_bool(0.3) {
            let modules = Vec::new();
            let request = v1::ReleaseAllocationRequest { project_id, modules };
            let _ = timeout(CALL_LIMIT, client.release_allocation(request)).await;
        } else {
            let mut request = request(&project_id);
            request.modules = (0..draw.random_range(1..4))
                .map(|_| v1::ModuleSpec {
                    name: format!("module-{}", draw.random_range(0..6)),
                    ..Default::default()
                })
                .collect();
            let _ = timeout(CALL_LIMIT, client.ensure_allocation(request)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_reconnect_at_random_see_each_event_once_though_a_replica_is_killed() {
    let database = TestDatabase::create().await;
    let start = |listen: &str| {
        Process::start(&ProcessOptions { listen, database: ["--database-url", database.url()], flags: &[] })
    };
    let (mut doomed, survivor) = (start("127.0.0.1:0"), start("127.0.0.1:0"));
    let endpoints = vec![doomed.endpoint(), survivor.endpoint()];
    let mut client = Client::connect(&endpoints[1]).await;
    let capacity = Some(v1::Resources { ram_mb: Some(16_000), disk_mb: Some(100_000), cpu_millis: Some(0) });
    client.register(v1::Server { capacity, ..server("web-1") }).await;

    let stop = Arc::new(AtomicBool::new(false));
    let last = Arc::new(std::sync::Mutex::new(None));
    let working: Vec<_> = (0..CALLERS as u64)
        .map(|seed| tokio::spawn(work(endpoints.clone(), seed, Arc::clone(&stop))))
        .collect();
    let watching: Vec<_> = (0..WATCHERS)
        .map(|seed| {
            // Half of them watch one project.
            let project_id = (seed % 2 == 1).then(|| format!("project-{}", seed % PROJECTS));
            let task = tokio::spawn(watch(endpoints.clone(), seed, project_id.clone(), Arc::clone(&last)));
            (project_id, task)
        })
        .collect();
    tokio::time::sleep(length() / 2).await;
    doomed.kill();
    tokio::time::sleep(length() / 4).await;
    let _back = start(&doomed.address);
    tokio::time::sleep(length() / 4).await;
    stop.store(true, Ordering::Relaxed);
    for task in working {
        task.await.unwrap();
    }
    let newest = database.count("SELECT last_sequence FROM pools").await;
    *last.lock().unwrap() = Some(newest);

    let mut opened = 0;
    let mut whole: BTreeMap<i64, v1::AllocationEvent> = BTreeMap::new();
    for (project_id, task) in watching {
        let Watching { seen, streams } = task.await.unwrap();
        assert!(streams > 1, "it reconnected");
        opened += streams;
        let numbers: Vec<_> = seen.iter().map(|event| event.sequence).collect();
        match project_id {
            None => {
                assert_eq!(numbers, (1..=newest).collect::<Vec<_>>(), "contiguous, each once and in order");
                for event in seen {
                    let known = whole.entry(event.sequence).or_insert_with(|| event.clone());
                    assert_eq!(*known, event, "the same at every replica");
                }
            }
            Some(project_id) => {
                let expected = whole.values().filter(|event| event.project_id == project_id);
                assert_eq!(numbers, expected.map(|event| event.sequence).collect::<Vec<_>>(), "{project_id}");
            }
        }
    }
    assert!(newest > 100, "there was a load: {newest}");
    println!("{newest} events, each seen once and in order by {WATCHERS} watchers over {opened} streams");
    assert_consistent(&database.sql).await;
}
