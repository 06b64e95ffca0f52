//! Where it is measured: databases of a Postgres, and what Postgres and replicas hold of the machine.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    str::FromStr as _,
    sync::atomic::{AtomicU32, Ordering},
};

use resource_allocator::postgres::Cluster;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection,
    postgres::{PgConnectOptions, PgPool},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::support::{Replica, Result, service, start_postgres};

/// The place.
pub struct Place {
    cluster: Cluster,
    /// Runs the callers.
    pub runtime: Runtime,
    databases: AtomicU32,
    _folder: TempDir,
}

/// A database with the service's schema.
pub struct Database {
    pub name: String,
    pub url: String,
}

impl Place {
    pub fn start() -> Result<Self> {
        // As many clients as the largest comparison has.
        let (cluster, folder) = start_postgres(&[("max_connections", "400")])?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { cluster, runtime, databases: AtomicU32::new(0), _folder: folder })
    }

    /// The folder of Postgres' programs.
    pub fn program(&self, name: &str) -> PathBuf {
        let beside = self.cluster.bin_dir().join(name);
        if beside.exists() { beside } else { PathBuf::from(name) }
    }

    /// A pgbench over the cluster's socket.
    pub fn pgbench(&self, database: &Database) -> Result<Command> {
        let mut command = Command::new(self.program("pgbench"));
        let port = PgConnectOptions::from_str(&database.url)?.get_port();
        command
            .arg("--host")
            .arg(self.cluster.socket_dir())
            .args(["--port", &port.to_string(), "--username", resource_allocator::postgres::USER])
            .arg(&database.name);
        Ok(command)
    }

    /// A new database, with the service's schema.
    pub fn database(&self) -> Result<Database> {
        let name = format!("bench_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let database = Database { url: self.cluster.url(&name), name };
        self.runtime.block_on(async {
            let mut admin = PgConnection::connect(&self.cluster.url("postgres")).await?;
            admin.execute(AssertSqlSafe(format!("CREATE DATABASE {}", database.name))).await?;
            Ok::<_, sqlx::Error>(())
        })?;
        let status = service()
            .args(["migrate", "--database-url", &database.url])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err("the schema could not be made".into());
        }
        Ok(database)
    }

    /// Drops a database that no replica uses any more.
    pub fn drop(&self, database: &Database) -> Result<()> {
        self.runtime.block_on(async {
            let mut admin = PgConnection::connect(&self.cluster.url("postgres")).await?;
            let statement = format!("DROP DATABASE {} WITH (FORCE)", database.name);
            admin.execute(AssertSqlSafe(statement)).await?;
            // What a run leaves to be written is not written during the next.
            admin.execute("CHECKPOINT").await?;
            Ok(())
        })
    }

    /// Runs statements one by one.
    pub fn sql(&self, database: &Database, statements: &[&str]) -> Result<()> {
        self.runtime.block_on(async {
            let mut conn = PgConnection::connect(&database.url).await?;
            for statement in statements {
                conn.execute(AssertSqlSafe((*statement).to_owned())).await?;
            }
            Ok(())
        })
    }

    /// One figure.
    pub fn figure(&self, database: &Database, statement: &str) -> Result<i64> {
        self.runtime.block_on(async {
            let pool = PgPool::connect(&database.url).await?;
            let figure = sqlx::query_scalar(AssertSqlSafe(statement.to_owned())).fetch_one(&pool).await?;
            pool.close().await;
            Ok(figure)
        })
    }

    /// The most memory that Postgres' processes hold now, in MiB: what each has for itself, and what they share once.
    pub fn postgres_memory_mib(&self) -> u64 {
        let pid_file = self.cluster.data_dir().join("postgres/postmaster.pid");
        let Ok(postmaster) = fs::read_to_string(pid_file) else { return 0 };
        let postmaster = postmaster.lines().next().unwrap_or_default().trim().to_owned();
        let mut kib = 0;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
            let of_ours = entry.file_name().to_string_lossy() == postmaster
                || field(&status, "PPid:").is_some_and(|parent| parent.to_string() == postmaster);
            if of_ours && let Ok(rollup) = fs::read_to_string(entry.path().join("smaps_rollup")) {
                kib += field(&rollup, "Pss:").unwrap_or(0);
            }
        }
        kib / 1024
    }
}

/// The most memory that a replica has held so far, in MiB.
pub fn peak_memory_mib(replica: &Replica) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", replica.child.id())).unwrap_or_default();
    field(&status, "VmHWM:").unwrap_or(0) / 1024
}

/// The number after a name, in a file of /proc.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_whitespace().next()?.parse().ok()
}
