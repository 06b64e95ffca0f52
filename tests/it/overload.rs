//! More than the service can take: it sheds, drops what nobody waits for, and stays in order.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use resource_allocator::{
    allocator::AllocatorOptions,
    proto::v1::{EnsureAllocationRequest, EnsureAllocationResponse, GetPlacementRequest, Resources},
    store::{StoreError, WriteTransaction},
};
use sqlx::{PgPool, types::time::OffsetDateTime};
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::support::{
    Client, TestDatabase, TestService, error_info, inventory::assert_consistent, process::PATIENCE,
    requests::request, server,
};

fn ensure(client: &Client, project: &str) -> JoinHandle<Result<EnsureAllocationResponse, Status>> {
    let (mut client, request) = (client.clone(), request(project));
    tokio::spawn(async move { client.place(request).await })
}

/// A project so small that a server holds a hundred.
fn small(project: &str) -> EnsureAllocationRequest {
    let resources = Some(Resources { ram_mb: Some(1), disk_mb: Some(1), cpu_millis: None });
    EnsureAllocationRequest { resources, ..request(project) }
}

async fn placed(sql: &PgPool, project: &str) -> bool {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM placements WHERE project_id = $1)
             OR EXISTS (SELECT FROM allocation_events WHERE project_id = $1)",
    )
    .bind(project)
    .fetch_one(sql)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_of_the_time_at_which_it_has_the_row_and_not_at_which_it_began_to_wait() {
    let service = TestService::start().await;
    let mut client = service.client.clone();
    client.register(server("web-1")).await;
    let sql = &service.database.sql;
    let held = service.database.hold_pool().await;
    let call = ensure(&client, "shop");
    service.database.wait_for_lock().await;
    let waited: OffsetDateTime = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(sql).await.unwrap();
    held.rollback().await.unwrap();
    call.await.unwrap().unwrap();
    let decided: OffsetDateTime =
        sqlx::query_scalar("SELECT create_time FROM placements").fetch_one(sql).await.unwrap();
    assert!(decided >= waited, "{decided} is before {waited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l44_a_full_queue_sheds_with_its_reason_and_health_answers_all_the_same() {
    const LIMIT: usize = 8;
    let mut builder = TestService::builder();
    builder.allocator = AllocatorOptions { queue_limit: LIMIT, ..AllocatorOptions::default() };
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;

    let held = service.database.hold_pool().await;
    let first = ensure(&service.client, "first");
    service.database.wait_for_lock().await;
    // One batch waits for the row, as many as the limit wait in the queue, and the others are turned away.
    let mut calls: Vec<_> =
        (0..LIMIT).map(|number| ensure(&service.client, &format!("p-{number}"))).collect();
    let mut shed = Vec::new();
    let turned_away = async {
        for number in LIMIT.. {
            // One at a time, so that none is turned away before it is read what it holds.
            let mut client = service.client.clone();
            let mut call = Request::new(request(&format!("p-{number}")));
            call.set_timeout(Duration::from_millis(200));
            match client.allocator.ensure_allocation(call).await {
                Err(status) if status.code() == Code::ResourceExhausted => {
                    shed.push(status);
                    return;
                }
                // It waited in a place that one of the calls above has not taken yet; its deadline gives it back.
                Err(status) => {
                    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
                }
                Ok(answer) => panic!("the pool's row is held, and yet: {answer:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, turned_away).await.expect("the queue is full at some point");

    let (reason, metadata) = error_info(&shed[0]);
    assert_eq!(reason, "OVERLOADED");
    assert_eq!(metadata["queue_limit"], LIMIT.to_string());
    assert_eq!(metadata["disposition"], "TECHNICAL");
    assert!(shed[0].get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    let health = HealthClient::new(service.client.channel.clone())
        .check(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);

    held.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    let mut done = 0;
    for call in calls.drain(..) {
        match call.await.unwrap() {
            Ok(_) => done += 1,
            Err(status) => assert_eq!(error_info(&status).0, "OVERLOADED"),
        }
    }
    assert!(done > 0);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_more_callers_than_fit_are_all_served_when_they_come_back_as_told() {
    const LIMIT: usize = 8;
    const CALLERS: usize = 10 * LIMIT;
    let mut builder = TestService::builder();
    builder.allocator = AllocatorOptions { queue_limit: LIMIT, max_batch: 4, ..AllocatorOptions::default() };
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    let held = service.database.hold_pool().await;
    let shed = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (mut client, shed) = (service.client.clone(), Arc::clone(&shed));
            tokio::spawn(async move {
                loop {
                    let status = match client.place(small(&format!("p-{number}"))).await {
                        Ok(answer) => return answer.allocations[0].port,
                        Err(status) => status,
                    };
                    assert_eq!(
                        (status.code(), error_info(&status).0.as_str()),
                        (Code::ResourceExhausted, "OVERLOADED")
                    );
                    shed.fetch_add(1, Ordering::Relaxed);
                    let told = status.get_details_retry_info().and_then(|info| info.retry_delay);
                    tokio::time::sleep(told.expect("whoever is turned away is told when to come back")).await;
                }
            })
        })
        .collect();
    let all_turned_away = async {
        // A batch and the queue take so many; each of the others has been told.
        while shed.load(Ordering::Relaxed) < CALLERS - LIMIT - 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_turned_away).await.expect("most are turned away");
    let mut health = HealthClient::new(service.client.channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    held.rollback().await.unwrap();

    let mut ports = BTreeSet::new();
    for caller in callers {
        ports.insert(tokio::time::timeout(PATIENCE, caller).await.expect("each is served").unwrap());
    }
    assert_eq!(ports.len(), CALLERS);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_in_the_queue_costs_no_transaction() {
    const DEADLINE: Duration = Duration::from_millis(50);
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let held = service.database.hold_pool().await;
    let first = ensure(&service.client, "first");
    service.database.wait_for_lock().await;

    let mut late = Request::new(request("late"));
    late.set_timeout(DEADLINE);
    let refused = service.client.allocator.ensure_allocation(late).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Cancelled | Code::DeadlineExceeded), "{refused:?}");
    // It may be the client that says so. The service had the call before one that it answers on the same connection, and may take as
    // long from then on.
    let nobody = GetPlacementRequest { project_id: "nobody".to_owned() };
    service.client.allocator.get_placement(nobody).await.unwrap_err();
    tokio::time::sleep(DEADLINE).await;

    held.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    // Whoever comes after it is answered after it would have been.
    service.client.place(request("after")).await.unwrap();
    assert!(!placed(&service.database.sql, "late").await);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_leaves_nothing_half_done() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    // Their own connections, which go with them.
    let address = format!("http://{}", service.running.address);
    let in_transaction = ensure(&Client::connect(&address).await, "in-transaction");
    let held = service.database.hold_pool().await;
    let first = ensure(&Client::connect(&address).await, "first");
    service.database.wait_for_lock().await;
    let in_queue = ensure(&Client::connect(&address).await, "in-queue");
    tokio::task::yield_now().await;
    for call in [in_transaction, first, in_queue] {
        call.abort();
    }
    held.rollback().await.unwrap();

    // Each is placed with everything or not at all, and a repeat gets what there is.
    service.client.place(request("after")).await.unwrap();
    assert_consistent(&service.database.sql).await;
    for project in ["in-transaction", "first", "in-queue"] {
        let answer = service.client.place(request(project)).await.unwrap();
        assert_eq!(answer.allocations.len(), 1, "{project}");
    }
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_cannot_take_the_connections_of_the_combiner_and_of_health() {
    let database = TestDatabase::create().await;
    let store = database.store(8, Duration::from_millis(100));
    let taken = [store.acquire().await.unwrap(), store.acquire().await.unwrap()];
    assert!(matches!(store.acquire().await, Err(StoreError::Unavailable(_))));

    let mut conn = store.acquire_for_combiner().await.unwrap();
    let (write, _) = WriteTransaction::begin(&mut conn).await.unwrap();
    store.acquire_for_reader().await.unwrap();
    store.acquire_for_follower().await.unwrap();
    store.acquire_for_tailer().await.unwrap();
    store.ping().await.unwrap();
    drop(write);
    drop(conn);
    drop(taken);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_awaits_is_not_left_to_the_next_reader() {
    let database = TestDatabase::create().await;
    // All that share have one connection.
    let store = database.store(7, Duration::from_secs(30));
    drop(store.acquire().await.unwrap());
    for patience in 0..200 {
        // The caller hangs up a little later each time: before the question is sent, before it is answered, after that.
        let hang_up = async {
            for _ in 0..patience {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = store.begin_snapshot() => {}
            () = hang_up => {}
        }
        let mut conn = store.acquire().await.unwrap();
        let isolation: String =
            sqlx::query_scalar("SHOW transaction_isolation").fetch_one(&mut *conn).await.unwrap();
        assert_eq!(isolation, "read committed");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_while_its_batch_waits_for_the_pools_row_places_nothing() {
    const DEADLINE: Duration = Duration::from_millis(100);
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let held = service.database.hold_pool().await;
    let mut late = Request::new(request("late"));
    late.set_timeout(DEADLINE);
    let mut client = service.client.clone();
    let late = tokio::spawn(async move { client.allocator.ensure_allocation(late).await });
    service.database.wait_for_lock().await;
    let refused = late.await.unwrap().unwrap_err();
    assert!(matches!(refused.code(), Code::Cancelled | Code::DeadlineExceeded), "{refused:?}");
    // Who gave up cleans up, in the same batch as it happens.
    let mut client = service.client.clone();
    let release = tokio::spawn(async move { client.release("late", &[]).await });
    tokio::time::sleep(DEADLINE).await;
    held.rollback().await.unwrap();
    release.await.unwrap();
    service.client.place(request("after")).await.unwrap();
    assert!(!placed(&service.database.sql, "late").await);
    assert_consistent(&service.database.sql).await;
}

/// A database that answers is not one that cannot be reached.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_are_too_many_are_told_so() {
    let database = TestDatabase::create().await;
    let store = database.store(7, Duration::from_millis(100));
    let taken = store.acquire().await.unwrap();
    assert!(matches!(store.acquire().await, Err(StoreError::Unavailable(_))), "it never said a word");
    store.ping().await.unwrap();
    assert!(matches!(store.acquire().await, Err(StoreError::Overloaded { limit: 1 })));
    assert!(matches!(store.begin_snapshot().await, Err(StoreError::Overloaded { limit: 1 })));
    drop(taken);
    store.acquire().await.unwrap();
    store.close().await;
}
