//! Where it is measured: a Postgres with the service's own settings and default durability, databases in it, and replicas of the
//! service's release build.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    str::FromStr as _,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use resource_allocator::postgres::{Cluster, Options};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection,
    postgres::{PgConnectOptions, PgPool},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Result;

/// How long a replica may take to say that it listens.
const START_LIMIT: Duration = Duration::from_mins(2);

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

/// A running replica.
pub struct Replica {
    pub endpoint: String,
    child: Child,
}

impl Place {
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ra-bench-").tempdir()?;
        // Postgres runs as another user where this is root.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let mut options = Options::new(folder.path().join("data"));
        // As many clients as the largest comparison has.
        options.settings.push(("max_connections".to_owned(), "400".to_owned()));
        let cluster = Cluster::start(options)?;
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

impl Replica {
    /// Starts a replica and waits until it listens.
    pub fn start(database: &Database, flags: &[&str]) -> Result<Self> {
        let mut child = service()
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .args(["--database-url", &database.url])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = child.stderr.take().ok_or("the replica says nothing")?;
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(std::result::Result::ok) {
                if let Some(at) = line.find("listening on ") {
                    let address = line[at + "listening on ".len()..].split(['"', ' ']).next();
                    let _ = tell.send(address.unwrap_or_default().to_owned());
                } else if line.contains("\"ERROR\"") || line.contains("\"WARN\"") {
                    eprintln!("{line}");
                }
            }
        });
        if let Ok(address) = told.recv_timeout(START_LIMIT) {
            return Ok(Self { endpoint: format!("http://{address}"), child });
        }
        let _ = child.kill();
        Err("the replica did not start".into())
    }

    /// The most memory that it has held so far, in MiB.
    pub fn peak_memory_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        field(&status, "VmHWM:").unwrap_or(0) / 1024
    }
}

/// The number after a name, in a file of /proc.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_whitespace().next()?.parse().ok()
}

impl Drop for Replica {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(15) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary, with nothing of this environment that it would take for a setting.
fn service() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resource-allocator"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RESOURCE_ALLOCATOR_") || text == "DATABASE_URL" || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}
