//! The cluster as its users see it: start, a URL, stop.

use std::env;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::folders::{Folders, Lock};
use super::launcher::Launcher;
use super::server::Server;
use super::supervisor::Supervisor;
use super::{Error, USER, binaries, initdb, socket};

/// Which cluster to start, and with what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder that holds the cluster; made when it is not there.
    pub data_dir: PathBuf,
    /// The folder of `postgres` and `initdb`; none: they are looked for.
    pub bin_dir: Option<PathBuf>,
    /// Server settings on top of ours, by name and value. They win; tests turn `fsync` off.
    pub settings: Vec<(String, String)>,
}

impl Options {
    /// The cluster in `data_dir`, with binaries found on the machine.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), bin_dir: None, settings: Vec::new() }
    }
}

/// Where the cluster lies unless told otherwise: `/var/lib/resource-allocator` for root, whose home Postgres'
/// user may not enter; for others `resource-allocator` in the XDG state folder; for a user without a home, in
/// the working folder.
#[must_use]
pub fn default_data_dir() -> PathBuf {
    const NAME: &str = "resource-allocator";
    if geteuid().is_root() {
        return Path::new("/var/lib").join(NAME);
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_default().join(NAME)
}

/// Whether there is a cluster in `data_dir`.
#[must_use]
pub fn has_cluster(data_dir: &Path) -> bool {
    Folders::existing(data_dir).is_some()
}

/// The URL of a database of the private Postgres that another process keeps running in `data_dir`; none where none does.
#[must_use]
pub fn running_url(data_dir: &Path, database: &str) -> Option<String> {
    let folders = Folders::existing(data_dir)?;
    let folder = socket::find_running(&folders, &Launcher::new(&folders.cluster()))?;
    Some(socket::url(&folder, USER, database))
}

/// A running private Postgres. It stops when this is dropped, and with the process in any case that the
/// kernel can tell it of.
#[derive(Debug)]
pub struct Cluster {
    data_dir: PathBuf,
    bin_dir: PathBuf,
    socket_dir: PathBuf,
    // Declared before the lock: Postgres stops before the folder is free for another service.
    supervisor: Supervisor,
    _lock: Lock,
}

impl Cluster {
    /// Starts the cluster in the data folder, made anew if there is none, and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; nothing is left running then.
    pub fn start(options: Options) -> Result<Self, Error> {
        let folders = Folders::create(&options.data_dir)?;
        let lock = Lock::take(&folders)?;
        let cluster = folders.cluster();
        let major = folders.major()?;
        let binaries = binaries::find(options.bin_dir.as_deref(), major, &cluster)?;
        let launcher = Launcher::new(&cluster);
        launcher.check_may_enter(&binaries.folder)?;
        folders.open_to(&launcher)?;
        if major.is_some() {
            folders.adopt_cluster(&launcher)?;
        } else {
            initdb::create(&folders, &binaries, &launcher)?;
        }
        let socket_dir = socket::choose(&folders, &launcher)?;
        let data_dir = folders.data_dir().to_owned();
        let bin_dir = binaries.folder.clone();
        let server = Server {
            folders,
            launcher,
            binaries,
            socket_dir: socket_dir.clone(),
            settings: options.settings,
        };
        Ok(Self { data_dir, bin_dir, socket_dir, supervisor: Supervisor::start(server)?, _lock: lock })
    }

    /// The URL of one of the cluster's databases, for sqlx and for `psql`. It stays the same when Postgres is
    /// started again.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        socket::url(&self.socket_dir, USER, database)
    }

    /// The folder of the unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The data folder, by its absolute path; the cluster is the folder `postgres` in it.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The folder of the binaries in use, where `psql` and `pg_dump` usually are as well.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Stops Postgres and waits until it has stopped.
    ///
    /// # Errors
    ///
    /// [`Error::SupervisorLost`] when the thread that watched over it has failed.
    pub fn stop(mut self) -> Result<(), Error> {
        self.supervisor.stop()
    }
}
