//! What the service's sessions with Postgres are like, and what a session that is stuck holds up: nobody for long, whose ever it is.

use std::time::Duration;

use resource_allocator::{proto::v1, store::StoreError};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio_stream::StreamExt as _;

use crate::support::{TestDatabase, TestService, process::PATIENCE, requests::request, server};

/// A session that Postgres takes for one of the service's.
async fn session(database: &TestDatabase) -> PgConnection {
    let options = database.connect_options().application_name("resource-allocator");
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    conn.execute("SET resource_allocator.writer = 'service'").await.unwrap();
    conn
}

async fn setting(conn: &mut PgConnection, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(conn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_with_a_database_that_takes_no_writes_is_kept() {
    let database = TestDatabase::create().await;
    database.set_read_only(true).await;
    // What is read of a standby may be of long ago.
    let store = database.store(7, Duration::from_millis(300));
    assert!(matches!(store.acquire().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.acquire_for_combiner().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.acquire_for_reader().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.acquire_for_follower().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.acquire_for_tailer().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    store.close().await;

    database.set_read_only(false).await;
    let store = database.store(7, PATIENCE);
    store.acquire().await.unwrap();
    store.acquire_for_combiner().await.unwrap();
    store.acquire_for_reader().await.unwrap();
    store.acquire_for_follower().await.unwrap();
    store.acquire_for_tailer().await.unwrap();
    store.ping().await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_told_to_look_whether_a_session_is_still_there() {
    let database = TestDatabase::create().await;
    let store = database.store(7, PATIENCE);
    let mut conn = store.acquire().await.unwrap();
    assert_eq!(setting(&mut conn, "client_connection_check_interval").await, "5s");
    drop(conn);
    // A snapshot that is forgotten keeps what is dead from being removed, in all tables.
    let mut snapshot = store.begin_snapshot().await.unwrap();
    assert_eq!(setting(&mut snapshot, "idle_in_transaction_session_timeout").await, "20s");
    drop(snapshot);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_the_pools_row_and_sends_to_nobody_is_ended() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let mut stuck = session(&service.database).await;
    stuck.execute("BEGIN; SELECT FROM pools WHERE pool_id = 1 FOR UPDATE").await.unwrap();
    // More than lies on the way, and nobody reads it.
    let mut unread =
        sqlx::query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)").fetch(&mut stuck);
    unread.next().await.unwrap().unwrap();
    service.client.place(request("after")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_that_is_stuck_keeps_no_port_from_others() {
    let mut builder = TestService::builder();
    builder.allocator.port_rest = Duration::ZERO;
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    service.client.place(request("before")).await.unwrap();
    service.client.release("before", &[]).await;
    let mut stuck = session(&service.database).await;
    stuck.execute("BEGIN").await.unwrap();
    let removed =
        stuck.execute("DELETE FROM port_allocations WHERE free_after <= clock_timestamp()").await.unwrap();
    assert_eq!(removed.rows_affected(), 1);
    service.client.place(request("after")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_starts_while_somebody_has_the_pools_row() {
    // The first one notes where this database is.
    let service = TestService::start().await;
    let held = service.database.hold_pool().await;
    let (_running, _client, _shutdown) = TestService::builder().start_replica(&service.database).await;
    held.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_by_hand_that_is_forgotten_ends() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let idle = "idle_in_transaction_session_timeout";
    let mut conn = PgConnection::connect_with(&service.database.connect_options()).await.unwrap();
    for edit in [
        "UPDATE servers SET labels = labels",
        "DELETE FROM servers WHERE handle = 'none'",
        "DELETE FROM placements WHERE project_id = 'none'",
    ] {
        conn.execute("BEGIN").await.unwrap();
        conn.execute(edit).await.unwrap();
        assert_eq!(setting(&mut conn, idle).await, "30s", "{edit}");
        conn.execute("ROLLBACK").await.unwrap();
        assert_eq!(setting(&mut conn, idle).await, "0", "{edit}");
    }
    // Who has said how long keeps that.
    conn.execute("SET idle_in_transaction_session_timeout = '10min'; BEGIN").await.unwrap();
    conn.execute("UPDATE servers SET labels = labels").await.unwrap();
    assert_eq!(setting(&mut conn, idle).await, "10min");
    conn.execute("ROLLBACK").await.unwrap();
    // The service is not slowed down by it.
    service.client.clone().place(request("after")).await.unwrap();
    let get = v1::GetPlacementRequest { project_id: "after".to_owned() };
    service.client.allocator.get_placement(get).await.unwrap();
}
