//! The server settings of the embedded cluster.
//!
//! Those in [`defaults`] are written into a new cluster's `postgresql.conf`, where `ALTER SYSTEM` and an
//! editor may overrule them. Those in [`fixed`] are what makes the cluster private, and go onto the command
//! line, which wins.

use std::fmt::Write as _;
use std::path::Path;

use super::socket::PORT;

/// The best write-ahead log compression that a build may have.
pub(super) const LZ4: (&str, &str) = ("wal_compression", "lz4");

/// The part of the memory that pages are kept in. Postgres' manual starts from a quarter; the service, and whatever else the
/// machine is for, want the same memory.
const BUFFERS_SHARE: u64 = 8;
/// The least and the most of that, in MB.
const BUFFERS_MB: (u64, u64) = (128, 1024);

/// The same where nobody knows how much memory there is.
const BUFFERS_DEFAULT_MB: u64 = 256;

fn shared_buffers(memory: Option<u64>) -> String {
    let share = memory.map_or(BUFFERS_DEFAULT_MB, |memory| (memory / BUFFERS_SHARE) >> 20);
    format!("'{}MB'", share.clamp(BUFFERS_MB.0, BUFFERS_MB.1))
}

/// The settings of a new cluster, each with its reason. `fsync` and `synchronous_commit` are on, as they are by
/// default: what was answered must survive a power cut.
fn defaults(lz4: bool, buffers: &str) -> Vec<(&'static str, &str, &'static str)> {
    vec![
        ("fsync", "on", "durability is never given up"),
        ("synchronous_commit", "on", "an answer is given after its commit is durable"),
        ("full_page_writes", "on", "a page torn by a power cut can be restored"),
        ("max_connections", "200", "room for the pool, for psql, and for test databases side by side"),
        (
            "shared_buffers",
            buffers,
            "an eighth of the memory, up to a gigabyte: the indexes of a large fleet",
        ),
        (
            "max_wal_size",
            "'4GB'",
            "checkpoints by time and not by volume: each makes the log write whole pages again",
        ),
        ("min_wal_size", "'256MB'", "segments are used again and not made anew"),
        (
            "checkpoint_completion_target",
            "0.9",
            "a checkpoint's writes are spread out, and commits do not wait behind them",
        ),
        ("wal_compression", if lz4 { "lz4" } else { "on" }, "less to write when the log takes whole pages"),
        ("autovacuum", "on", "rows come and go all day"),
        ("autovacuum_naptime", "'15s'", "small busy tables bloat within a minute"),
        ("jit", "off", "our queries are short: compiling them takes longer than running them"),
    ]
}

/// The lines that are appended to a new cluster's `postgresql.conf`, on a machine of so many bytes of memory.
pub(super) fn conf(lz4: bool, memory: Option<u64>) -> String {
    let mut conf =
        String::from("\n# Set by Resource Allocator when it made this cluster; change them as you like.\n");
    for (name, value, reason) in defaults(lz4, &shared_buffers(memory)) {
        let _ = writeln!(conf, "{name} = {value}  # {reason}");
    }
    conf
}

/// The settings that keep the cluster private and its log where we look for it.
pub(super) fn fixed(socket_dir: &Path) -> Vec<(&'static str, String)> {
    vec![
        ("listen_addresses", String::new()),
        // The setting is a list: quoted, a folder may have a comma in its name.
        ("unix_socket_directories", format!("\"{}\"", socket_dir.display().to_string().replace('"', "\"\""))),
        ("unix_socket_permissions", "0700".to_owned()),
        ("port", PORT.to_string()),
        ("log_destination", "stderr".to_owned()),
        ("logging_collector", "off".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_in_an_eighth_of_the_memory_within_bounds() {
        let has = |memory, line: &str| conf(true, memory).lines().any(|other| other.starts_with(line));
        assert!(has(Some(4 << 30), "shared_buffers = '512MB'  #"));
        assert!(has(Some(64 << 30), "shared_buffers = '1024MB'  #"));
        assert!(has(Some(256 << 20), "shared_buffers = '128MB'  #"));
        assert!(has(None, "shared_buffers = '256MB'  #"));
        assert!(has(Some(4 << 30), "fsync = on  #"));
    }
}
