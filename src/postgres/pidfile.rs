//! `postmaster.pid`: how a postmaster says who and how far it is, and what it leaves behind when it is killed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tracing::{info, warn};

use super::{Error, process};

/// How long an orphan may take for its fast shutdown, whose checkpoint can be slow on a busy disk, and then
/// again for the immediate one.
const ORPHAN_LIMIT: Duration = Duration::from_secs(20);

/// The lines of the file that we use.
#[derive(Debug, PartialEq, Eq)]
struct PidFile {
    pid: Option<Pid>,
    status: String,
}

fn path(cluster: &Path) -> PathBuf {
    cluster.join("postmaster.pid")
}

fn read(cluster: &Path) -> Option<PidFile> {
    // Bytes, since a power cut can leave anything in the file.
    let bytes = fs::read(path(cluster)).ok()?;
    Some(parse(&String::from_utf8_lossy(&bytes)))
}

fn parse(text: &str) -> PidFile {
    let mut lines = text.lines();
    let pid =
        lines.next().and_then(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).and_then(Pid::from_raw);
    // Line 8, present since PostgreSQL 10.
    let status = lines.nth(6).unwrap_or_default().trim().to_owned();
    PidFile { pid, status }
}

/// Whether the postmaster `pid` says that it takes connections.
pub(super) fn is_ready(cluster: &Path, pid: Pid) -> bool {
    read(cluster).is_some_and(|file| file.pid == Some(pid) && file.status == "ready")
}

/// Makes way for a new postmaster: stops one that an earlier service left running, and removes the file that
/// a killed one left behind. The caller must hold the data folder's lock.
///
/// Postgres would take over some stale files by itself, but not one whose pid is a zombie, was given to a
/// stranger, or cannot be read. To remove the file is safe as long as no postmaster runs: backends that
/// outlive theirs still hold the shared memory, which Postgres finds by the data folder itself.
///
/// # Errors
///
/// [`Error::OrphanStays`], or [`Error::NotWritable`] when the file cannot be removed.
pub(super) fn make_way(cluster: &Path) -> Result<(), Error> {
    let Some(file) = read(cluster) else {
        return Ok(());
    };
    if let Some(pid) = file.pid.filter(|pid| process::is_postgres_on(*pid, cluster)) {
        stop_orphan(cluster, pid)?;
    }
    match fs::remove_file(path(cluster)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::at(&path(cluster))(error)),
        _ => Ok(()),
    }
}

fn stop_orphan(cluster: &Path, pid: Pid) -> Result<(), Error> {
    warn!(pid = pid.as_raw_nonzero().get(), folder = %cluster.display(), "stopping a Postgres that was left behind");
    for (signal, shutdown) in [(Signal::INT, "fast"), (Signal::QUIT, "immediate")] {
        // A failure means that it is gone, or that it is not ours to stop; the wait tells which.
        let _ = kill_process(pid, signal);
        if process::wait_gone(pid, ORPHAN_LIMIT) {
            info!(shutdown, "the Postgres that was left behind has stopped");
            return Ok(());
        }
    }
    Err(Error::OrphanStays { folder: cluster.to_owned(), pid: pid.as_raw_nonzero().get() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_and_the_status_are_read_and_garbage_has_neither() {
        let whole = "4711\n/data\n1700000000\n5432\n/socket\n\n  5432001 0\nready   \n";
        assert_eq!(parse(whole), PidFile { pid: Pid::from_raw(4711), status: "ready".to_owned() });
        for (text, pid) in
            [("", None), ("\0\0\0", None), ("-1\n", None), ("0\n", None), ("12\n/data\n", Pid::from_raw(12))]
        {
            assert_eq!(parse(text), PidFile { pid, status: String::new() }, "{text:?}");
        }
    }
}
