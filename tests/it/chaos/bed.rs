//! What a run stands on: one Postgres, and three replicas as processes, each behind a proxy and with a database role of its own, so
//! that its backends are told from those of the others.

use std::{
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use resource_allocator::postgres::{Cluster, Options};
use rustix::process::{Pid, Signal};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::{sync::Mutex, task::spawn_blocking};

use super::proxy::Proxy;
use crate::support::process::{self, Process, ProcessOptions, folder, wait_until};

/// How many replicas there are.
pub const REPLICAS: usize = 3;

const DATABASE: &str = "chaos";

/// How the bed is made.
#[derive(Default)]
pub struct BedOptions {
    /// Settings of Postgres.
    pub settings: Vec<(String, String)>,
    /// A folder for Postgres' data; none for a new one.
    pub data_dir: Option<PathBuf>,
    /// The program that replicas run; none for the one that was built.
    pub program: Option<PathBuf>,
    /// What is in the environment of the replicas.
    pub environment: Vec<(String, String)>,
}

/// A Postgres and its replicas.
pub struct Bed {
    replicas: Vec<Mutex<Process>>,
    proxies: Vec<Proxy>,
    /// Where callers find the replicas; the same while the run lasts.
    pub endpoints: Vec<String>,
    cluster: Arc<Cluster>,
    options: BedOptions,
    _folder: TempDir,
}

impl Bed {
    /// Makes it.
    pub async fn make(options: BedOptions) -> Self {
        let folder = folder();
        let data_dir = options.data_dir.clone().unwrap_or_else(|| folder.path().join("data"));
        let mut postgres = Options::new(data_dir);
        postgres.bin_dir = std::env::var_os("RESOURCE_ALLOCATOR_POSTGRES_BIN").map(Into::into);
        postgres.settings.clone_from(&options.settings);
        let cluster = Arc::new(spawn_blocking(|| Cluster::start(postgres)).await.unwrap().unwrap());
        let mut conn = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
        conn.execute("CREATE DATABASE chaos").await.unwrap();
        conn.execute(
            "CREATE ROLE replica_0 SUPERUSER LOGIN; CREATE ROLE replica_1 SUPERUSER LOGIN; \
             CREATE ROLE replica_2 SUPERUSER LOGIN",
        )
        .await
        .unwrap();
        let mut proxies = Vec::new();
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let proxy = Proxy::start(cluster.socket_dir()).await;
            let start = starter(&options, url(&proxy, number), "127.0.0.1:0".to_owned());
            replicas.push(Mutex::new(spawn_blocking(start).await.unwrap()));
            proxies.push(proxy);
        }
        let mut endpoints = Vec::new();
        for replica in &replicas {
            endpoints.push(replica.lock().await.endpoint());
        }
        Self { replicas, proxies, endpoints, cluster, options, _folder: folder }
    }

    /// A connection of the harness' own, past the proxies; once Postgres takes one.
    pub async fn connect(&self) -> PgConnection {
        let begin = tokio::time::Instant::now();
        loop {
            match PgConnection::connect(&self.database_url()).await {
                Ok(conn) => return conn,
                Err(error) if begin.elapsed() > process::PATIENCE => panic!("Postgres is away: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The database's URL, past the proxies.
    pub fn database_url(&self) -> String {
        self.cluster.url(DATABASE)
    }

    /// The proxy of a replica.
    pub fn proxy(&self, replica: usize) -> &Proxy {
        &self.proxies[replica]
    }

    /// Sends a replica a signal.
    pub async fn signal(&self, replica: usize, which: Signal) {
        self.replicas[replica].lock().await.signal(which);
    }

    /// Kills a replica, and starts it again at its address after a while.
    pub async fn kill(&self, replica: usize, down: Duration) {
        let mut running = self.replicas[replica].lock().await;
        running.kill();
        tokio::time::sleep(down).await;
        *running = self.start_at(replica, &running.address, &self.options).await;
    }

    /// Tells a replica to stop, waits until it has, and starts another program at its address.
    pub async fn replace(&self, replica: usize, options: &BedOptions) {
        let mut running = self.replicas[replica].lock().await;
        running.signal(Signal::TERM);
        let begin = tokio::time::Instant::now();
        while running.is_running() {
            assert!(begin.elapsed() < process::PATIENCE, "replica {replica} does not stop");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        *running = self.start_at(replica, &running.address, options).await;
    }

    async fn start_at(&self, replica: usize, address: &str, options: &BedOptions) -> Process {
        let start = starter(options, url(&self.proxies[replica], replica), address.to_owned());
        spawn_blocking(start).await.unwrap()
    }

    /// Replicas that have ended though nobody killed them, with the last that they said.
    pub async fn ended(&self) -> Vec<String> {
        let mut ended = Vec::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            let mut replica = replica.lock().await;
            if !replica.is_running() {
                let said = replica.said().text();
                let last: Vec<_> = said.lines().rev().take(5).collect();
                ended.push(format!("replica {number} ended by itself: {last:#?}"));
            }
        }
        ended
    }

    /// Kills Postgres' postmaster; it is started again.
    pub async fn kill_postgres(&self) {
        let postmaster = self.postmaster();
        process::signal(postmaster, Signal::KILL);
        self.wait_for_another(postmaster).await;
    }

    /// Has `pg_ctl` stop Postgres at once; it is started again.
    pub async fn stop_postgres_immediately(&self) {
        let postmaster = self.postmaster();
        let folder = self.cluster.data_dir().join("postgres");
        let owner = std::fs::metadata(&folder).unwrap();
        let mut command = Command::new(self.program("pg_ctl"));
        command.args(["stop", "--mode=immediate", "--no-wait", "--silent", "-D"]).arg(&folder);
        if rustix::process::geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let status = spawn_blocking(move || command.current_dir("/").status()).await.unwrap().unwrap();
        assert!(status.success(), "pg_ctl: {status}");
        self.wait_for_another(postmaster).await;
    }

    fn program(&self, name: &str) -> PathBuf {
        // The folder in use may hold links to those alone that a server needs.
        let server = self.cluster.bin_dir().join("postgres").canonicalize().unwrap();
        server.with_file_name(name)
    }

    fn postmaster(&self) -> Pid {
        read_postmaster(self.cluster.data_dir()).expect("Postgres runs")
    }

    async fn wait_for_another(&self, before: Pid) {
        let data_dir = self.cluster.data_dir().to_owned();
        let is_another = move || read_postmaster(&data_dir).is_some_and(|pid| pid != before);
        spawn_blocking(|| wait_until("another postmaster", is_another)).await.unwrap();
        drop(self.connect().await);
    }

    /// Runs the service's own program on the database, such as `audit`.
    pub async fn run(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = process::binary();
        command.args(arguments).args(["--database-url", &self.database_url()]);
        spawn_blocking(move || command.output()).await.unwrap().unwrap()
    }
}

fn url(proxy: &Proxy, replica: usize) -> String {
    format!("postgres://replica_{replica}@{}/{DATABASE}?sslmode=disable", proxy.address)
}

fn read_postmaster(data_dir: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data_dir.join("postgres/postmaster.pid")).ok()?;
    Pid::from_raw(text.lines().next()?.parse().ok()?)
}

/// Starts a replica and waits until it listens: for a thread that may block.
fn starter(options: &BedOptions, url: String, listen: String) -> impl FnOnce() -> Process + Send + 'static {
    let mut command = options.program.as_deref().map_or_else(process::binary, process::program);
    command.envs(options.environment.iter().cloned());
    move || {
        let options = ProcessOptions { listen: &listen, database: ["--database-url", &url], flags: &[] };
        Process::start_by(command, &options)
    }
}
