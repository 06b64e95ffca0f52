//! What replicas tell each other of commits: a hint that makes watchers of other replicas see them sooner, and that nothing
//! depends on.

use resource_allocator::proto::v1::{WatchAllocationsRequest, watch_allocations_response::Payload};
use sqlx::{PgPool, postgres::PgListener};
use tokio::time::timeout;

use crate::support::{Client, TestService, process::PATIENCE, server};

/// The sessions that listen.
async fn ears(sql: &PgPool) -> Vec<i32> {
    let listening = "SELECT pid FROM pg_stat_activity \
        WHERE datname = current_database() AND query LIKE 'LISTEN%' AND application_name = 'resource-allocator'";
    sqlx::query_scalar(listening).fetch_all(sql).await.unwrap()
}

async fn until_ears(sql: &PgPool, wanted: impl Fn(&[i32]) -> bool) -> Vec<i32> {
    let waiting = async {
        loop {
            let ears = ears(sql).await;
            if wanted(&ears) {
                return ears;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("no such ears")
}

/// Has a project placed at one replica, and waits until a watcher of another one is told.
async fn tell(from: &mut Client, to: &Client, project_id: &str) {
    let mut watcher = to.allocator.clone();
    let request = WatchAllocationsRequest { project_id: Some(project_id.to_owned()), ..Default::default() };
    let mut stream = watcher.watch_allocations(request).await.unwrap().into_inner();
    from.ensure(project_id, &[]).await.unwrap();
    let told = async {
        loop {
            if let Payload::Event(event) = stream.message().await.unwrap().unwrap().payload.unwrap() {
                return event;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, told).await.expect("an event").project_id, project_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_replica_says_that_it_committed() {
    let mut service = TestService::start().await;
    let (_replica, mut other, _shutdown) = TestService::builder().start_replica(&service.database).await;
    let mut listener = PgListener::connect(service.database.url()).await.unwrap();
    listener.listen("resource_allocator_commits").await.unwrap();
    service.client.register(server("web-1")).await;
    let one = timeout(PATIENCE, listener.recv()).await.unwrap().unwrap().payload().to_owned();
    other.ensure("hello-world-bot", &[]).await.unwrap();
    let hints = async {
        loop {
            let hint = listener.recv().await.unwrap().payload().to_owned();
            if hint != one {
                return hint;
            }
        }
    };
    timeout(PATIENCE, hints).await.expect("the other one says so too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_cut_off_is_told_all_the_same_and_listens_again() {
    let mut service = TestService::start().await;
    let (_replica, other, _shutdown) = TestService::builder().start_replica(&service.database).await;
    service.client.register(server("web-1")).await;
    let sql = service.database.sql.clone();
    let cut = until_ears(&sql, |ears| ears.len() == 2).await;
    for pid in &cut {
        sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&sql).await.unwrap();
    }
    tell(&mut service.client, &other, "meanwhile").await;
    until_ears(&sql, |ears| ears.len() == 2 && ears.iter().all(|pid| !cut.contains(pid))).await;
    tell(&mut service.client, &other, "later").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_hints_replicas_look_by_themselves() {
    let mut builder = TestService::builder();
    builder.watch.commit_hints = false;
    let mut service = builder.start().await;
    let mut builder = TestService::builder();
    builder.watch.commit_hints = false;
    let (_replica, mut other, _shutdown) = builder.start_replica(&service.database).await;
    service.client.register(server("web-1")).await;
    for round in 0..3 {
        tell(&mut service.client, &other, &format!("here-{round}")).await;
        tell(&mut other, &service.client, &format!("there-{round}")).await;
    }
    assert_eq!(ears(&service.database.sql).await, Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn l41_no_transaction_that_holds_the_pools_row_notifies() {
    let mut service = TestService::start().await;
    let mut listener = PgListener::connect(service.database.url()).await.unwrap();
    listener.listen("resource_allocator_commits").await.unwrap();
    service.client.register(server("web-1")).await;
    service.client.ensure("shop", &[]).await.unwrap();
    let writers = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()
         AND (query LIKE '%INSERT INTO allocation_events%' OR query LIKE '%FROM pools%FOR UPDATE%' OR query = 'COMMIT')
         AND application_name = 'resource-allocator'";
    let writers: Vec<i32> = sqlx::query_scalar(writers).fetch_all(&service.database.sql).await.unwrap();
    assert_eq!(writers.len(), 1, "the combiner's connection");
    let hint = timeout(PATIENCE, listener.recv()).await.unwrap().unwrap();
    assert!(!writers.contains(&i32::try_from(hint.process_id()).unwrap()), "{writers:?}");
    let functions =
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosrc ~* 'notify'";
    assert_eq!(service.database.count(functions).await, 0);
}
