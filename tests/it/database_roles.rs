//! The roles of `deploy/postgres/roles.sql`: the service does all of its work as one that can do nothing else.

use std::{path::Path, process::Command};

use resource_allocator::{proto::v1, store::abandoned};
use sqlx::{Connection as _, PgConnection, error::DatabaseError};

use crate::support::{
    Client, TestDatabase,
    process::{Process, binary, run},
    server,
};

/// Makes an empty database with the two roles, whose names it has in theirs, and gives their URLs.
async fn prepared() -> (TestDatabase, String, String) {
    let database = TestDatabase::create().await;
    for statement in ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"] {
        sqlx::query(statement).execute(&database.sql).await.unwrap();
    }
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&database.sql).await.unwrap();
    let (owner, service) = (format!("{name}_owner"), format!("{name}_service"));
    apply(&database, &owner, &service);
    let (_, rest) = database.url().split_once('@').unwrap();
    let (owner, service) = (format!("postgres://{owner}@{rest}"), format!("postgres://{service}@{rest}"));
    (database, owner, service)
}

fn apply(database: &TestDatabase, owner: &str, service: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/postgres/roles.sql");
    let output = Command::new(TestDatabase::program("psql"))
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", &format!("owner={owner}")])
        .args(["-v", &format!("service={service}"), "-d", database.url(), "-f"])
        .arg(script)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The roles are the cluster's, and go when the test does.
async fn drop_roles(database: TestDatabase) {
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&database.sql).await.unwrap();
    for role in [format!("{name}_service"), format!("{name}_owner")] {
        for statement in [format!("DROP OWNED BY {role} CASCADE"), format!("DROP ROLE {role}")] {
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&database.sql).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_does_its_work_as_a_role_that_cannot_change_the_schema_or_rewrite_the_log() {
    let (database, owner, service) = prepared().await;
    let serve = ["serve", "--listen", "127.0.0.1:0", "--no-migrate", "--database-url"];

    // Before the owner has migrated, the service says what is missing.
    let early = run(&[&serve[..], &[&service]].concat());
    assert_eq!(early.status.code(), Some(1));
    let said = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(said.contains("migrations are missing") && said.contains("resource-allocator migrate"), "{said}");
    let refused = run(&["migrate", "--database-url", &service]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let migrated = run(&["migrate", "--database-url", &owner]);
    assert_eq!(migrated.status.code(), Some(0), "{migrated:?}");
    let role = |url: &str| url["postgres://".len()..].split('@').next().unwrap().to_owned();
    apply(&database, &role(&owner), &role(&service));

    let process = Process::start_on(&service, &["--no-migrate"]);
    let mut client = Client::connect(&process.endpoint()).await;
    client.register(server("web-1")).await;
    client.register(server("web-2")).await;
    client.ensure("shop", &["backend", "web"]).await.unwrap();
    let relocate = v1::RelocateProjectRequest { project_id: "shop".to_owned(), ..Default::default() };
    client.allocator.relocate_project(relocate).await.unwrap();
    let release = v1::ReleaseAllocationRequest { project_id: "shop".to_owned(), ..Default::default() };
    client.allocator.release_allocation(release).await.unwrap();
    let policy = v1::GetFleetPolicyRequest::default();
    client.inventory.get_fleet_policy(policy).await.unwrap();
    let delete = v1::DeleteServerRequest { handle: "web-2".to_owned(), ..Default::default() };
    client.inventory.delete_server(delete).await.unwrap();
    let mut audit = binary();
    audit.args(["audit", "--database-url", &service]);
    let audited = audit.output().unwrap();
    assert_eq!(audited.status.code(), Some(0), "{audited:?}");
    drop(process);

    let mut conn = PgConnection::connect(&service).await.unwrap();
    for statement in [
        "DROP TABLE allocation_events",
        "DROP TRIGGER allocation_events_append_only ON allocation_events",
        "ALTER TABLE allocation_events DISABLE TRIGGER ALL",
        "ALTER TABLE servers ADD COLUMN more text",
        "TRUNCATE allocation_events",
        "TRUNCATE waiters",
        "UPDATE allocation_events SET request_id = 'other'",
        "CREATE TABLE more (id integer)",
        "CREATE FUNCTION more() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TEMPORARY TABLE more (id integer)",
        "INSERT INTO pools (pool_id, name, token_key) VALUES (2, 'more', decode(repeat('00', 32), 'hex'))",
        "DELETE FROM pools",
        "DELETE FROM _sqlx_migrations",
        "SET session_replication_role = replica",
        "CREATE ROLE more",
    ] {
        let refused = sqlx::query(statement).execute(&mut conn).await.expect_err(statement);
        let code = refused.as_database_error().and_then(DatabaseError::code).unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "{statement}: {refused}");
    }
    // It sees what a replica that is gone would hold.
    assert_eq!(abandoned::end(&mut conn).await.unwrap(), 0);
    // What is left to it is guarded by the schema: a row of the log that comes out of turn is refused.
    let again = "INSERT INTO allocation_events SELECT * FROM allocation_events LIMIT 1";
    sqlx::query(again).execute(&mut conn).await.unwrap_err();
    conn.close().await.unwrap();
    drop_roles(database).await;
}
