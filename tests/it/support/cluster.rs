//! A Postgres of a test's own, which may be stopped and started again.

use std::{fs, path::Path, str::FromStr as _};

use resource_allocator::postgres::{self, Cluster};
use rustix::process::{Pid, Signal};
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;

use super::process::{folder, signal};

/// Starts one in this folder.
pub fn start_cluster(data_dir: &Path) -> Cluster {
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    let bin_dir = std::env::var_os("RESOURCE_ALLOCATOR_POSTGRES_BIN").map(Into::into);
    Cluster::start(postgres::Options { settings, bin_dir, ..postgres::Options::new(data_dir) }).unwrap()
}

/// One in a folder of its own.
pub struct OwnPostgres {
    cluster: Option<Cluster>,
    folder: TempDir,
}

impl OwnPostgres {
    /// Starts it, with an empty database.
    pub async fn start() -> Self {
        let mut postgres = Self { cluster: None, folder: folder() };
        postgres.start_again().await;
        postgres
    }

    /// Its database, which stays where it is over a restart.
    pub fn connect_options(&self) -> PgConnectOptions {
        let cluster = self.cluster.as_ref().unwrap();
        PgConnectOptions::from_str(&cluster.url(postgres::DATABASE)).unwrap()
    }

    /// Has it stop as by `pg_ctl stop -m immediate`: connections break, nothing is flushed, and the next start recovers. Whoever
    /// supervises it starts it again.
    pub fn stop_immediately(&self) {
        let pidfile = self.folder.path().join("postgres/postmaster.pid");
        let text = fs::read_to_string(pidfile).unwrap();
        let pid = text.lines().next().unwrap().parse().unwrap();
        signal(Pid::from_raw(pid).unwrap(), Signal::QUIT);
    }

    /// Stops it, and leaves it stopped.
    pub async fn stop(&mut self) {
        let cluster = self.cluster.take().unwrap();
        tokio::task::spawn_blocking(move || cluster.stop().unwrap()).await.unwrap();
    }

    /// Starts it again.
    pub async fn start_again(&mut self) {
        let data_dir = self.folder.path().to_owned();
        self.cluster = Some(tokio::task::spawn_blocking(move || start_cluster(&data_dir)).await.unwrap());
    }
}
