//! A backup and its restore, as `docs/operations.md` has them: what was held is held, and whoever watched learns that the log
//! is another history now.

use std::process::Command;

use resource_allocator::proto::v1;
use sqlx::Executor as _;
use tonic::Code;
use uuid::Uuid;

use crate::support::{TestDatabase, TestService, error_info, process::run, server};

/// Runs one of Postgres' client programs, which must succeed.
fn postgres_program(name: &str, arguments: &[&str]) {
    let output = Command::new(TestDatabase::program(name)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn epoch(database: &TestDatabase) -> Uuid {
    sqlx::query_scalar("SELECT epoch FROM pools").fetch_one(&database.sql).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_holds_is_held_after_its_restore_and_watchers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("allocator.dump");
    let dump = dump.to_str().unwrap();

    let mut before = TestService::start().await;
    before.client.register(server("web-1")).await;
    let held = before.client.ensure("kept", &["backend", "frontend"]).await.unwrap();
    // While it serves: a dump is one snapshot.
    postgres_program("pg_dump", &["--format=custom", "--file", dump, before.database.url()]);
    let lost = before.client.ensure("lost", &[]).await.unwrap();

    let restored = TestDatabase::create().await;
    restored.sql.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.unwrap();
    postgres_program("pg_restore", &["--exit-on-error", "--no-owner", "--dbname", restored.url(), dump]);
    assert_eq!(epoch(&restored).await, epoch(&before.database).await, "the dump carries the epoch");
    let mut after = TestService::builder().start_on(restored).await;
    assert_ne!(epoch(&after.database).await, epoch(&before.database).await);

    let audit = run(&["audit", "--database-url", after.database.url()]);
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    let again = after.client.ensure("kept", &["backend", "frontend"]).await.unwrap();
    assert_eq!(again.outcome(), v1::EnsureOutcome::Unchanged);
    assert_eq!(again.allocations, held.allocations);

    // The numbers of what was lost are given to other events now, so no token of before may go on.
    after.client.ensure("other", &[]).await.unwrap();
    for token in [held.resume_token, lost.resume_token] {
        let request = v1::WatchAllocationsRequest { resume_token: token, ..Default::default() };
        let refused = after.client.allocator.watch_allocations(request).await.unwrap_err();
        assert_eq!(
            (refused.code(), error_info(&refused).0.as_str()),
            (Code::FailedPrecondition, "LOG_RESTARTED")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_the_same_database_goes_on_with_the_history() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let token = service.client.ensure("one", &[]).await.unwrap().resume_token;
    let history = epoch(&service.database).await;

    let (_running, mut second, _shutdown) = TestService::builder().start_replica(&service.database).await;
    assert_eq!(epoch(&service.database).await, history);
    let request = v1::WatchAllocationsRequest { resume_token: token, ..Default::default() };
    second.allocator.watch_allocations(request).await.unwrap();
}
