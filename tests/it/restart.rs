//! Watchers that stay connected while Postgres goes away and comes back: an outage of the database is none of the stream's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use resource_allocator::proto::v1::{self, watch_allocations_response::Payload};
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::support::{
    Client, OwnPostgres, TestService, error_info, inventory::assert_consistent, process::PATIENCE, server,
};

const CALLERS: usize = 8;
const PROJECTS: usize = 25;

/// Ensures one project after the other, each until it is answered, and is told of it in `answered`.
async fn insist(mut client: Client, caller: usize, answered: Arc<AtomicUsize>) {
    for number in 0..PROJECTS {
        let project_id = format!("project-{caller}-{number}");
        let begun = Instant::now();
        while let Err(refused) = client.ensure(&project_id, &["a", "b"]).await {
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
            assert_eq!(error_info(&refused).0, "DATABASE_UNAVAILABLE");
            assert!(begun.elapsed() < PATIENCE, "{project_id} is never answered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

async fn until_answered(answered: &AtomicUsize, count: usize) {
    let begun = Instant::now();
    while answered.load(Ordering::Relaxed) < count {
        assert!(begun.elapsed() < PATIENCE, "{count} are never answered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads one stream, opened once, up to the event that says that `last` was released.
async fn watch(
    client: &Client,
    request: v1::WatchAllocationsRequest,
) -> JoinHandle<Vec<v1::AllocationEvent>> {
    let mut stream = client.allocator.clone().watch_allocations(request).await.unwrap().into_inner();
    tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message comes");
            let message = message.expect("the stream stands").expect("it has no end");
            if let Some(Payload::Event(event)) = message.payload {
                let released = matches!(&event.detail, Some(v1::allocation_event::Detail::Released(_)));
                seen.push(event);
                if released {
                    return seen;
                }
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_stay_connected_over_restarts_of_postgres_and_see_each_event_once_and_in_order() {
    let mut postgres = OwnPostgres::start().await;
    let (_one, mut client, _stop_one) = TestService::builder().start_at(postgres.connect_options()).await;
    let (_two, other, _stop_two) = TestService::builder().start_at(postgres.connect_options()).await;
    let capacity = v1::Resources { ram_mb: Some(10_000_000), disk_mb: Some(100_000_000), cpu_millis: None };
    client.register(v1::Server { capacity: Some(capacity), ..server("web-1") }).await;
    let filtered = [
        v1::WatchAllocationsRequest { from_beginning: true, ..Default::default() },
        v1::WatchAllocationsRequest { server_handle: Some("web-1".to_owned()), ..Default::default() },
        v1::WatchAllocationsRequest { project_id: Some("project-0-0".to_owned()), ..Default::default() },
    ];
    let mut watching = Vec::new();
    for replica in [&client, &other] {
        for request in &filtered {
            watching.push(watch(replica, request.clone()).await);
        }
    }

    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let replica = [&client, &other][caller % 2].clone();
            tokio::spawn(insist(replica, caller, Arc::clone(&answered)))
        })
        .collect();
    until_answered(&answered, 40).await;
    postgres.stop_immediately();
    until_answered(&answered, 80).await;
    postgres.stop().await;
    // Long enough for the tailers and the watchers to meet it.
    for client in [&client, &other] {
        let refused = client.clone().ensure("while-it-is-away", &[]).await.unwrap_err();
        assert_eq!(error_info(&refused).0, "DATABASE_UNAVAILABLE");
    }
    postgres.start_again().await;
    for caller in callers {
        caller.await.unwrap();
    }
    for (number, replica) in [&client, &other].into_iter().enumerate() {
        replica.clone().ensure(&format!("after-{number}"), &["a"]).await.unwrap();
    }
    // About whatever any of the watchers is about.
    client.release("project-0-0", &[]).await;

    let sql = PgPool::connect_with(postgres.connect_options()).await.unwrap();
    let last: i64 = sqlx::query_scalar("SELECT last_sequence FROM pools").fetch_one(&sql).await.unwrap();
    let mut seen = Vec::new();
    for task in watching {
        seen.push(task.await.unwrap());
    }
    let [everything, of_the_server, of_the_project] = &seen[..3] else { panic!("three a replica") };
    let numbers: Vec<_> = everything.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "contiguous, each once and in order");
    // An answer that the restart swallowed was repeated, and what it answered was done once.
    let completed = |event: &&v1::AllocationEvent| {
        matches!(&event.detail, Some(v1::allocation_event::Detail::Completed(_)))
            && event.project_id.starts_with("project-")
    };
    assert_eq!(everything.iter().filter(completed).count(), CALLERS * PROJECTS);
    // The first event is the server's registration, before those two came.
    assert_eq!(of_the_server[..], everything[1..]);
    let of_it = everything.iter().filter(|event| event.project_id == "project-0-0");
    assert!(of_the_project.iter().eq(of_it), "{of_the_project:?}");
    assert_eq!(seen[..3], seen[3..], "the same at both replicas");
    assert_consistent(&sql).await;
}
