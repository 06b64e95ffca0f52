//! What other processes are: alive or a zombie, and whether one is a Postgres on our cluster.
//!
//! A pid in a file proves little: it may be a zombie that pid 1 has not reaped, or a stranger that got the
//! number again. So a process is only ever signalled after [`is_postgres_on`] has said yes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

const POLL: Duration = Duration::from_millis(20);

/// Whether the process exists and is not a zombie.
pub(super) fn is_alive(pid: Pid) -> bool {
    let state = if has_proc() {
        // The name, in parentheses, may hold anything; the state is the first word after the last of them.
        fs::read_to_string(proc_path(pid, "stat"))
            .ok()
            .and_then(|stat| stat.rsplit_once(')')?.1.trim_start().chars().next())
    } else {
        ask_ps(pid, "stat=").and_then(|state| state.chars().next())
    };
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether the process is a living Postgres that works on `cluster`.
pub(super) fn is_postgres_on(pid: Pid, cluster: &Path) -> bool {
    if !is_alive(pid) {
        return false;
    }
    if !has_proc() {
        return ask_ps(pid, "command=").is_some_and(|command| {
            command.contains("postgres") && command.contains(&*cluster.to_string_lossy())
        });
    }
    // Postgres changes into its data folder. Compared by inode, since a path may have more than one spelling.
    let is_postgres =
        fs::read_to_string(proc_path(pid, "comm")).is_ok_and(|name| name.trim().starts_with("postgres"));
    let folder = fs::metadata(proc_path(pid, "cwd")).map(|folder| (folder.dev(), folder.ino()));
    let ours = fs::metadata(cluster).map(|folder| (folder.dev(), folder.ino()));
    is_postgres && matches!((folder, ours), (Ok(folder), Ok(ours)) if folder == ours)
}

/// Waits until the process is gone; false when it is still there after `limit`.
pub(super) fn wait_gone(pid: Pid, limit: Duration) -> bool {
    let start = Instant::now();
    while is_alive(pid) {
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

fn proc_path(pid: Pid, file: &str) -> String {
    format!("/proc/{}/{file}", pid.as_raw_nonzero())
}

/// One column of `ps`, for systems without `/proc`.
fn ask_ps(pid: Pid, column: &str) -> Option<String> {
    let pid = pid.as_raw_nonzero().to_string();
    let output = Command::new("ps").args(["-o", column, "-p", &pid]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
