//! Why the embedded Postgres cannot run: one variant a cause, one line each, which ends in what to do.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// What kept the embedded Postgres from starting or stopping.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No folder on this machine holds both `postgres` and `initdb`.
    #[error(
        "no PostgreSQL binaries found (looked at {}): install them (Debian, Ubuntu: apt-get install postgresql; \
         Fedora: dnf install postgresql-server; Alpine: apk add postgresql; macOS: brew install postgresql), \
         or name their folder with --postgres-bin, or name a running database with --database-url",
        list(looked_at)
    )]
    BinariesNotFound {
        /// The folders that were looked at, in order.
        looked_at: Vec<PathBuf>,
    },

    /// The folder named by `--postgres-bin` is not one of Postgres binaries.
    #[error(
        "{} has no {program} to run: --postgres-bin must name a folder with postgres and initdb in it",
        folder.display()
    )]
    NotABinariesFolder {
        /// The folder that was named.
        folder: PathBuf,
        /// The program that is missing in it, or that does not run.
        program: &'static str,
    },

    /// A folder that the cluster needs cannot be made, read or written.
    #[error(
        "the data folder needs {}, which cannot be used ({cause}): give it to this user, \
         or choose another folder with --data-dir",
        path.display()
    )]
    NotWritable {
        /// The file or folder that failed.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },

    /// Privileges are dropped for Postgres, and then a folder on the way may not be entered.
    #[error(
        "Postgres refuses to run as root and so runs as user {user}, who may not enter {}: \
         open it (chmod o+x {0}), or choose a folder elsewhere", folder.display()
    )]
    ClosedFolder {
        /// The topmost folder that is closed.
        folder: PathBuf,
        /// The user that Postgres runs as.
        user: String,
    },

    /// The cluster's folder holds files, yet is no cluster.
    #[error(
        "{} holds files but no PG_VERSION, so it is not a Postgres cluster: move it away, \
         or choose another folder with --data-dir",
        folder.display()
    )]
    NotACluster {
        /// The folder.
        folder: PathBuf,
    },

    /// The data was written by a major version that is not installed.
    #[error(
        "the data in {} was made by PostgreSQL {wanted}, and only {} was found: install PostgreSQL {wanted}, \
         or name its folder with --postgres-bin, or bring the data over with pg_upgrade",
        folder.display(), versions(found)
    )]
    OtherVersion {
        /// The cluster's folder.
        folder: PathBuf,
        /// The major version that wrote it.
        wanted: u32,
        /// The major versions that were found, each with its folder.
        found: Vec<(u32, PathBuf)>,
    },

    /// Another service holds the data folder.
    #[error(
        "the data folder {} is in use by another service ({}): stop that one, or choose another folder with --data-dir",
        folder.display(), pid.map_or_else(|| "its pid is not known".to_owned(), |pid| format!("pid {pid}"))
    )]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// The process that holds it, when its note could be read.
        pid: Option<u32>,
    },

    /// A Postgres that an earlier service left behind does not stop.
    #[error(
        "a Postgres left behind on {} (pid {pid}) does not stop: end it (kill -QUIT {pid}) and start again",
        folder.display()
    )]
    OrphanStays {
        /// The cluster's folder.
        folder: PathBuf,
        /// The postmaster that stays.
        pid: i32,
    },

    /// `initdb`, or the making of our database after it, failed; the half-made cluster is removed.
    #[error("no cluster could be made in {}: {reason}", folder.display())]
    InitFailed {
        /// The folder that was being filled.
        folder: PathBuf,
        /// The line of its output that tells most.
        reason: String,
    },

    /// Postgres ended before it was ready.
    #[error("Postgres did not start: {reason} (its log is {})", log.display())]
    StartFailed {
        /// The log lines that tell most.
        reason: String,
        /// Where to read on.
        log: PathBuf,
    },

    /// Postgres neither became ready nor ended, and logged nothing any more.
    #[error(
        "Postgres was silent for {seconds} s and not ready: {reason} (its log is {}); \
         a slow disk or an overloaded machine needs another try",
        log.display()
    )]
    StartTimedOut {
        /// How long nothing was heard.
        seconds: u64,
        /// The last log lines.
        reason: String,
        /// Where to read on.
        log: PathBuf,
    },

    /// The data folder's path is too long for a socket, and no folder elsewhere could take it.
    #[error(
        "the socket path {} is longer than the {limit} bytes that the system allows, and none could be made elsewhere \
         (tried {}): choose a shorter --data-dir",
        path.display(), list(elsewhere)
    )]
    SocketPathTooLong {
        /// The socket's path in the data folder.
        path: PathBuf,
        /// The most that the system takes.
        limit: usize,
        /// The folders that were tried instead.
        elsewhere: Vec<PathBuf>,
    },

    /// A program could not be run at all.
    #[error("{} cannot be run: {cause}", program.display())]
    NotRunnable {
        /// The program.
        program: PathBuf,
        /// What the system said.
        cause: io::Error,
    },

    /// The thread that watches over Postgres is gone, or could not be had.
    #[error("the thread that watches over Postgres has failed: start the service again")]
    SupervisorLost,
}

impl Error {
    /// Turns what the system says about `path` into [`Error::NotWritable`].
    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::NotWritable { path: path.to_owned(), cause }
    }

    /// Turns what the system says about starting `program` into [`Error::NotRunnable`].
    pub(super) fn running(program: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::NotRunnable { program: program.to_owned(), cause }
    }
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn versions(found: &[(u32, PathBuf)]) -> String {
    let mut text = String::new();
    for (major, folder) in found {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{major} ({})", folder.display());
    }
    text
}
