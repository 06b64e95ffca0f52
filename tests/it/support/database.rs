//! The run's Postgres, and a database for each test, cloned from a template that was migrated once.

use std::{
    path::PathBuf,
    process,
    str::FromStr as _,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use resource_allocator::{
    postgres::{Cluster, Options},
    store::{MIGRATOR, Store, StoreOptions},
};
use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::process::PATIENCE;

const TEMPLATE: &str = "template_of_tests";

/// The run's Postgres. It is stopped by the kernel with the process; what is left behind all the same is taken up by the
/// next run, which uses the same folder.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = start_cluster();
        let admin = cluster.url("postgres");
        let template = cluster.url(TEMPLATE);
        // A runtime of its own: the caller's is in the middle of a test.
        thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let mut conn = PgConnection::connect(&admin).await.unwrap();
                drop_leftovers(&mut conn).await;
                sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {TEMPLATE}")))
                    .execute(&mut conn)
                    .await
                    .unwrap();
                let mut conn = PgConnection::connect(&template).await.unwrap();
                MIGRATOR.run(&mut conn).await.unwrap();
            });
        })
        .join()
        .unwrap();
        cluster
    })
}

fn start_cluster() -> Cluster {
    let user = rustix::process::geteuid().as_raw();
    let mut refusals = Vec::new();
    // Another run at the same time has the first folder.
    for run in 0..8 {
        let folder = std::env::temp_dir().join(format!("resource-allocator-tests-{user}-{run}"));
        let mut options = Options::new(folder);
        options.bin_dir = std::env::var_os("RESOURCE_ALLOCATOR_POSTGRES_BIN").map(Into::into);
        options.settings = [
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("full_page_writes", "off"),
            ("max_connections", "500"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        match Cluster::start(options) {
            Ok(cluster) => return cluster,
            Err(refusal) => refusals.push(refusal.to_string()),
        }
    }
    panic!("the tests need a Postgres: {refusals:#?}");
}

async fn drop_leftovers(conn: &mut PgConnection) {
    let leftovers: Vec<String> = sqlx::query_scalar(
        "SELECT datname::text FROM pg_database WHERE datname LIKE 'test\\_%' OR datname = $1",
    )
    .bind(TEMPLATE)
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    for name in leftovers {
        drop_database(conn, &name).await;
    }
}

async fn drop_database(conn: &mut PgConnection, name: &str) {
    let statement = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(conn).await.unwrap();
}

/// A migrated, empty database; dropped with this value.
pub struct TestDatabase {
    name: String,
    url: String,
    /// A connection pool for what a test looks at by SQL.
    pub sql: PgPool,
}

impl TestDatabase {
    /// Waits until the service, in this database, waits for a lock that someone else holds.
    pub async fn wait_for_lock(&self) {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                     AND application_name = 'resource-allocator'";
        let waiting = async {
            while self.count(waits).await == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the service waits for a lock");
    }

    /// Holds the pool's row, as a replica does that takes long: until then, no other transaction begins its work.
    pub async fn hold_pool(&self) -> Transaction<'static, Postgres> {
        #[expect(clippy::disallowed_methods, reason = "a test stands in the queue of writers")]
        let mut held = self.sql.begin().await.unwrap();
        sqlx::query("SELECT 1 FROM pools FOR UPDATE").execute(&mut *held).await.unwrap();
        held
    }

    /// Has new sessions take no writes, or take them again, as where a name leads to a standby for a moment.
    pub async fn set_read_only(&self, is_read_only: bool) {
        let mut conn = self.sql.acquire().await.unwrap();
        conn.execute("SET default_transaction_read_only = off").await.unwrap();
        let alter =
            format!("ALTER DATABASE {} SET default_transaction_read_only = {is_read_only}", self.name);
        conn.execute(sqlx::AssertSqlSafe(alter)).await.unwrap();
    }

    /// The service's connections to it, without the service: six of one purpose each, and the others shared.
    pub fn store(&self, max_connections: u32, acquire_timeout: Duration) -> Store {
        Store::new(StoreOptions { connect: self.connect_options(), max_connections, acquire_timeout })
    }

    /// Makes one.
    pub async fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
        let name = format!("test_{}_{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut conn = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
        let statement = format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut conn).await.unwrap();
        let url = cluster.url(&name);
        let sql = PgPoolOptions::new().max_connections(4).connect(&url).await.unwrap();
        Self { name, url, sql }
    }

    /// The path of one of Postgres' programs, such as `pg_dump`, of the cluster's own version.
    pub fn program(name: &str) -> PathBuf {
        // The folder in use may hold links to those alone that a server needs.
        let server = cluster().bin_dir().join("postgres").canonicalize().unwrap();
        server.with_file_name(name)
    }

    /// The folder of the socket that its Postgres listens on.
    pub fn socket_dir() -> PathBuf {
        cluster().socket_dir().to_owned()
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same for sqlx.
    pub fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.url).unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (name, admin) = (self.name.clone(), cluster().url("postgres"));
        let dropped = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let mut conn = PgConnection::connect(&admin).await.unwrap();
                drop_database(&mut conn, &name).await;
            });
        });
        // A test that fails already keeps its own message.
        let _ = dropped.join();
    }
}
