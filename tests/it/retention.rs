//! Retention: old events go, what they led to stays, and whoever resumes too late is told.

use std::time::Duration;

use resource_allocator::{
    allocator::AllocatorOptions,
    proto::v1::{WatchAllocationsRequest, watch_allocations_response::Payload},
};
use sqlx::PgPool;
use tonic::{Code, Streaming};

use crate::support::{TestService, error_info, process::PATIENCE, requests::request, server};

/// How many events are kept, and how many the projects below make: requested, selected, one port, completed.
const KEPT: i64 = 8;
const OF_A_PROJECT: i64 = 4;

async fn number(sql: &PgPool, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(sql).await.unwrap()
}

/// Waits until retention dropped the events up to this one, and no further.
async fn wait_for_compaction(sql: &PgPool, expected: i64) {
    let compacted = async {
        loop {
            let compacted = number(sql, "SELECT compacted_sequence FROM pools").await;
            if compacted >= expected {
                return compacted;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let compacted = tokio::time::timeout(PATIENCE, compacted).await.expect("old events are removed");
    assert_eq!(compacted, expected);
}

/// The number of the first event that a watch tells.
async fn first_event(stream: &mut Streaming<resource_allocator::proto::v1::WatchAllocationsResponse>) -> i64 {
    loop {
        if let Payload::Event(event) = stream.message().await.unwrap().unwrap().payload.unwrap() {
            return event.sequence;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_by_number_and_what_they_led_to_stays() {
    let mut builder = TestService::builder();
    builder.allocator = AllocatorOptions { event_limit: KEPT, ..AllocatorOptions::default() };
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    let first = service.client.place(request("first")).await.unwrap();
    for project in ["second", "third", "fourth"] {
        service.client.place(request(project)).await.unwrap();
    }
    // One event of the server, and those of the projects; operations go as a whole.
    let newest = 1 + 4 * OF_A_PROJECT;
    assert_eq!(number(&service.database.sql, "SELECT last_sequence FROM pools").await, newest);
    wait_for_compaction(&service.database.sql, newest - KEPT).await;
    let oldest = number(&service.database.sql, "SELECT min(first_sequence) FROM allocation_events").await;
    assert_eq!(oldest, newest - KEPT + 1);

    // Too late: the answer names the oldest point that there is.
    let late = WatchAllocationsRequest { resume_token: first.resume_token.clone(), ..Default::default() };
    let refused = service.client.allocator.watch_allocations(late).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let (reason, metadata) = error_info(&refused);
    assert_eq!(reason, "SEQUENCE_COMPACTED");
    let from_oldest = WatchAllocationsRequest {
        resume_token: metadata["oldest_resume_token"].clone(),
        ..Default::default()
    };
    let from_beginning = WatchAllocationsRequest { from_beginning: true, ..Default::default() };
    for watch in [from_oldest, from_beginning] {
        let mut stream = service.client.allocator.watch_allocations(watch).await.unwrap().into_inner();
        assert_eq!(first_event(&mut stream).await, oldest);
    }

    // A replica that starts late reads the tables, and agrees.
    let (running, mut other, shutdown) = TestService::builder().start_replica(&service.database).await;
    let again = other.place(request("first")).await.unwrap();
    assert_eq!(again.allocations, first.allocations);
    let next = other.place(request("fifth")).await.unwrap();
    assert_eq!(next.allocations[0].port, 8004);
    service.client.place(request("sixth")).await.unwrap();
    shutdown.soft.cancel();
    drop(other);
    running.stopped().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_by_age() {
    let mut builder = TestService::builder();
    builder.allocator =
        AllocatorOptions { event_max_age: Duration::from_hours(1), ..AllocatorOptions::default() };
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    service.client.place(request("old")).await.unwrap();
    let old = 1 + OF_A_PROJECT;
    sqlx::raw_sql(
        "BEGIN; SET LOCAL session_replication_role = replica;
         UPDATE allocation_events SET event_time = event_time - interval '2 hours'; COMMIT",
    )
    .execute(&service.database.sql)
    .await
    .unwrap();
    service.client.place(request("young")).await.unwrap();
    wait_for_compaction(&service.database.sql, old).await;
    let left = number(&service.database.sql, "SELECT count(*) FROM allocation_events").await;
    assert_eq!(left, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_have_rested_lose_their_rows() {
    let mut builder = TestService::builder();
    builder.allocator = AllocatorOptions { port_rest: Duration::ZERO, ..AllocatorOptions::default() };
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    service.client.place(request("gone")).await.unwrap();
    service.client.place(request("stays")).await.unwrap();
    service.client.release("gone", &[]).await;
    let removed = async {
        while number(&service.database.sql, "SELECT count(*) FROM port_allocations").await != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.expect("rested ports are removed");
    assert_eq!(service.client.place(request("next")).await.unwrap().allocations[0].port, 8000);
}
