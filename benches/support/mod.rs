//! What is measured over the real thing: a Postgres with the service's own settings and default durability, and replicas of the
//! service's release build as processes.

use std::{
    error::Error,
    fs::{self, Permissions},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use resource_allocator::postgres::{Cluster, Options};
use tempfile::TempDir;

/// What goes wrong ends the run: a figure that was not measured is not told.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long a replica may take to say that it listens.
const START_LIMIT: Duration = Duration::from_mins(2);
/// How far into a line of the log its level is, which follows the time.
const UP_TO_LEVEL: usize = 80;

/// Starts a Postgres, with these settings beside its own, in a folder that goes with what is returned.
pub fn start_postgres(settings: &[(&str, &str)]) -> Result<(Cluster, TempDir)> {
    let folder = tempfile::Builder::new().prefix("ra-bench-").tempdir_in("/tmp")?;
    // Postgres runs as another user where this is root.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    let mut options = Options::new(folder.path().join("data"));
    options.bin_dir = std::env::var_os("RESOURCE_ALLOCATOR_POSTGRES_BIN").map(Into::into);
    options.settings.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Ok((Cluster::start(options)?, folder))
}

/// A running replica, ended with this value.
pub struct Replica {
    /// Where it listens.
    pub endpoint: String,
    /// Its process.
    pub child: Child,
}

impl Replica {
    /// Starts a replica on a database, and waits until it listens.
    pub fn start(database_url: &str, flags: &[&str]) -> Result<Self> {
        let mut child = service()
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .args(["--database-url", database_url])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = child.stderr.take().ok_or("the replica says nothing")?;
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut lines, mut line) = (BufReader::new(lines), String::new());
            let mut listens = false;
            // Thousands a second are of calls that went well, and who reads them has the same processors.
            while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                let start = line.get(..UP_TO_LEVEL).unwrap_or(&line);
                if start.contains("\"ERROR\"") || start.contains("\"WARN\"") {
                    eprint!("{line}");
                } else if !listens && let Some(at) = line.find("listening on ") {
                    let address = line[at + "listening on ".len()..].split(['"', ' ']).next();
                    let _ = tell.send(address.unwrap_or_default().to_owned());
                    listens = true;
                }
                line.clear();
            }
        });
        if let Ok(address) = told.recv_timeout(START_LIMIT) {
            return Ok(Self { endpoint: format!("http://{address}"), child });
        }
        let _ = child.kill();
        Err("the replica did not start".into())
    }
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
pub fn service() -> Command {
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
