//! What this process and those that it started, the replicas and Postgres, have used of the CPUs: a figure that what else runs on the
//! machine changes little.

use std::{collections::HashMap, fs, process, time::Duration};

/// How long one of the kernel's ticks is, on every system that has `/proc`.
const TICK: Duration = Duration::from_millis(10);

/// The parent and the ticks of a process.
fn read(pid: u32) -> Option<(u32, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name may hold anything, and comes before.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some((field(1)?, field(11)? + field(12)?))
}

/// All of it, of those that still run.
pub fn used() -> Duration {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes: HashMap<u32, (u32, u32)> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, read(pid)?)))
        .collect();
    let is_ours = |mut pid: u32| {
        while pid != process::id() {
            match processes.get(&pid) {
                Some((parent, _)) if *parent > 1 => pid = *parent,
                _ => return false,
            }
        }
        true
    };
    let ticks: u32 = processes.iter().filter(|(pid, _)| is_ours(**pid)).map(|(_, (_, ticks))| ticks).sum();
    TICK * ticks
}
