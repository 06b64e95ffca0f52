//! Migrations: whoever starts applies what is missing, and a database that cannot be served is refused in a line that says why.

use std::time::Duration;

use resource_allocator::{
    allocator::AllocatorOptions,
    domain::{policy::PolicyPatch, request::Strategy},
    events::WatchOptions,
    listener::ListenerOptions,
    server::{self, RunningServer, ServerOptions},
    shutdown::Shutdown,
    store::{MIGRATOR, StoreOptions},
};
use sqlx::{Connection as _, Executor as _, PgConnection, migrate::Migrator};

use crate::support::{Client, TestDatabase, TestService, inventory::get, process::run, server as a_server};

async fn start(database: &TestDatabase) -> anyhow::Result<(RunningServer, Shutdown)> {
    let shutdown = Shutdown::default();
    let options = ServerOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        listener: ListenerOptions::default(),
        tls: None,
        auth_tokens: None,
        metrics_listen: None,
        no_migrate: false,
        max_call_rate: None,
        insecure_allow_remote: false,
        drain_timeout: Duration::from_secs(5),
        cors_origins: Vec::new(),
        store: StoreOptions {
            connect: database.connect_options(),
            max_connections: 4,
            acquire_timeout: Duration::from_secs(30),
        },
        allocator: AllocatorOptions::default(),
        watch: WatchOptions::default(),
        strategy: Strategy::Spread,
        policy: PolicyPatch::default(),
        inventory: Vec::new(),
    };
    Ok((server::start(options, shutdown.clone()).await?, shutdown))
}

async fn refusal(database: &TestDatabase) -> String {
    match start(database).await {
        Ok(_) => panic!("it is refused"),
        Err(error) => format!("{error:#}"),
    }
}

/// What an empty database is: no table, no type, no function.
async fn empty(database: &TestDatabase) {
    database.sql.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.unwrap();
}

async fn schema(database: &TestDatabase) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT format('%s %s', version, encode(checksum, 'hex')) FROM _sqlx_migrations
         UNION ALL SELECT pool_id || name || epoch || encode(token_key, 'hex') FROM pools
         UNION ALL SELECT format('%s.%s %s', table_name, column_name, data_type) FROM information_schema.columns
         WHERE table_schema = 'public' ORDER BY 1",
    )
    .fetch_all(&database.sql)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing() {
    let database = TestDatabase::create().await;
    let before = schema(&database).await;
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    MIGRATOR.run(&mut conn).await.unwrap();
    let (_running, _shutdown) = start(&database).await.unwrap();
    assert_eq!(schema(&database).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_readers_stand_in_the_way_of_is_tried_again() {
    // This one alters servers, then placements.
    const NEWEST: i64 = 12;
    let database = TestDatabase::create().await;
    let migrated = schema(&database).await;
    empty(&database).await;
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let before = MIGRATOR.iter().filter(|migration| migration.version < NEWEST).cloned();
    Migrator::with_migrations(before.collect()).run(&mut conn).await.unwrap();

    // A reader of the release before, which reads them the other way round.
    conn.execute("BEGIN; SELECT FROM placements").await.unwrap();
    let url = database.url().to_owned();
    let starting = tokio::task::spawn_blocking(move || run(&["migrate", "--database-url", &url]));
    database.wait_for_lock().await;
    conn.execute("SELECT FROM servers; COMMIT").await.expect("it is the migration that gives way");
    let migrating = starting.await.unwrap();
    assert!(migrating.status.success(), "{migrating:?}");
    assert!(String::from_utf8_lossy(&migrating.stderr).contains("is tried again"), "{migrating:?}");
    assert_eq!(schema(&database).await.len(), migrated.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_a_dump_stands_in_the_way_of_holds_up_no_replica_that_serves() {
    // This one alters tables, of which a later one takes away what it puts there.
    const ALTERS: i64 = 12;
    let mut service = TestService::start().await;
    service.client.register(a_server("web-1")).await;
    let database = &service.database;
    database
        .sql
        .execute("ALTER TABLE servers ADD CONSTRAINT servers_handle_valid CHECK (true)")
        .await
        .unwrap();
    let mut dump = PgConnection::connect(database.url()).await.unwrap();
    dump.execute("BEGIN; LOCK TABLE servers, placements, port_allocations IN ACCESS SHARE MODE")
        .await
        .unwrap();
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = $1")
        .bind(ALTERS)
        .execute(&database.sql)
        .await
        .unwrap();
    let url = database.url().to_owned();
    let starting = tokio::task::spawn_blocking(move || run(&["migrate", "--database-url", &url]));
    database.wait_for_lock().await;
    service.client.ensure("meanwhile", &[]).await.unwrap();

    dump.execute("COMMIT").await.unwrap();
    let migrating = starting.await.unwrap();
    assert!(migrating.status.success(), "{migrating:?}");
    assert!(String::from_utf8_lossy(&migrating.stderr).contains("waits for others"), "{migrating:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_on_an_empty_database_all_serve() {
    let database = TestDatabase::create().await;
    let migrated = schema(&database).await.len();
    empty(&database).await;
    let starts = (0..6).map(|_| start(&database));
    let mut running = Vec::new();
    for started in futures_join(starts).await {
        running.push(started.unwrap());
    }
    assert_eq!(schema(&database).await.len(), migrated);
    let mut first = Client::connect(&format!("http://{}", running[0].0.address)).await;
    first.register(a_server("a")).await;
    for (replica, _) in &running {
        let mut client = Client::connect(&format!("http://{}", replica.address)).await;
        get(&mut client, "a").await.unwrap();
    }
}

/// Polls them all at once, in this task: they borrow.
async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in &mut waiting {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if waiting.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_release_is_refused() {
    let database = TestDatabase::create().await;
    database
        .sql
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'of tomorrow', true, '\\x00', 0)",
        )
        .await
        .unwrap();
    insta::assert_snapshot!(
        refusal(&database).await,
        @"the database was migrated by a newer release (migration 9999 is not one of ours); run that release"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_build_is_refused() {
    let database = TestDatabase::create().await;
    database.sql.execute("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 2").await.unwrap();
    insta::assert_snapshot!(
        refusal(&database).await,
        @"migration 2 in the database differs from ours; this is a database of another build of the service"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_was_left_half_done_is_refused() {
    let database = TestDatabase::create().await;
    database.sql.execute("UPDATE _sqlx_migrations SET success = false WHERE version = 4").await.unwrap();
    insta::assert_snapshot!(
        refusal(&database).await,
        @"migration 4 was left half done; repair the database by hand"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_refused() {
    for is_empty in [false, true] {
        let database = TestDatabase::create().await;
        if is_empty {
            empty(&database).await;
        }
        database
            .sql
            .execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$")
            .await
            .unwrap();
        let told = refusal(&database).await;
        assert_eq!(
            told, "the database is read-only; name the primary in --database-url",
            "empty: {is_empty}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_someone_else_are_refused() {
    let database = TestDatabase::create().await;
    empty(&database).await;
    database.sql.execute("CREATE TABLE servers (id integer)").await.unwrap();
    insta::assert_snapshot!(refusal(&database).await, @r#"the database refuses: relation "servers" already exists"#);
    // Nothing was done to them.
    let rows: i64 =
        sqlx::query_scalar("SELECT count(id) FROM servers").fetch_one(&database.sql).await.unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_keeps_serving_while_another_migrates() {
    let mut service = TestService::start().await;
    let (client, database) = (&mut service.client, &service.database);
    client.register(a_server("a")).await;
    // As it was before this migration, which lets the log's writers go on.
    database
        .sql
        .execute(
            "ALTER TABLE allocation_events ALTER COLUMN payload SET STATISTICS -1;
             DELETE FROM _sqlx_migrations WHERE version = 14",
        )
        .await
        .unwrap();
    let migrated = || {
        database.count(
            "SELECT count(*) FROM _sqlx_migrations, pg_attribute WHERE version = 14 AND attname = 'payload'
             AND attrelid = 'allocation_events'::regclass AND attstattarget = 0",
        )
    };
    // It takes as long as this holds it up.
    let mut holdup = PgConnection::connect(database.url()).await.unwrap();
    holdup.execute("BEGIN; LOCK TABLE allocation_events IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let calls = async {
        database.wait_for_lock().await;
        for n in 0..10 {
            client.ensure(&format!("p-{n}"), &[]).await.unwrap();
        }
        assert_eq!(migrated().await, 0, "it was not held up");
        holdup.execute("COMMIT").await.unwrap();
        while migrated().await == 0 {
            client.ensure("p-0", &[]).await.unwrap();
        }
    };
    let (started, ()) = tokio::join!(start(database), calls);
    let (running, _shutdown) = started.unwrap();
    client.ensure("p-10", &[]).await.unwrap();
    let mut other = Client::connect(&format!("http://{}", running.address)).await;
    other.ensure("p-11", &[]).await.unwrap();
}

#[test]
fn migrations_are_numbered_without_a_gap() {
    let mut names: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for (number, name) in (1..).zip(&names) {
        let rest = name
            .strip_prefix(&format!("{number:04}_"))
            .unwrap_or_else(|| panic!("{name} is not number {number}"));
        let words = rest.strip_suffix(".sql").unwrap_or_else(|| panic!("{name} is not NNNN_verb_noun.sql"));
        assert!(words.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()), "{name}");
        assert!(words.contains('_'), "{name} has no noun");
    }
    assert_eq!(names.len(), MIGRATOR.iter().count(), "a migration is not compiled in: build anew");
}
