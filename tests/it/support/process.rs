//! The real binary as a process of its own: a service that is ended with the test, and client commands.

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Far above what anything takes: a bound for a hang, not an expectation.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// A temporary folder that the user whom root's Postgres runs as may enter.
pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("ra-it-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

/// The binary, with nothing of the test's own environment that it would take for a setting.
pub fn binary() -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_resource-allocator")))
}

/// Another build of the binary, with as little of the test's own environment.
pub fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let is_setting = text.starts_with("RESOURCE_ALLOCATOR_") && text != "RESOURCE_ALLOCATOR_POSTGRES_BIN";
        if is_setting || text.starts_with("PG") || text == "DATABASE_URL" || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub fn run(arguments: &[&str]) -> Output {
    binary().args(arguments).output().unwrap()
}

/// Asks until the answer is yes.
pub fn wait_until(what: &str, mut answer: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !answer() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not come about");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to a process that need not be there any more.
pub fn signal(pid: Pid, signal: Signal) {
    let _ = kill_process(pid, signal);
}

/// What a process said on standard error, as it comes in.
#[derive(Clone, Default)]
pub struct Said(Arc<(Mutex<(String, bool)>, Condvar)>);

impl Said {
    /// Reads a process's standard error to its end, in a thread.
    pub fn read(stderr: impl std::io::Read + Send + 'static) -> Self {
        let said = Self::default();
        let heard = said.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut said = heard.0.0.lock().unwrap();
                said.0.push_str(&line);
                said.0.push('\n');
                heard.0.1.notify_all();
            }
            heard.0.0.lock().unwrap().1 = true;
            heard.0.1.notify_all();
        });
        said
    }

    /// All so far.
    pub fn text(&self) -> String {
        self.0.0.lock().unwrap().0.clone()
    }

    /// Reads on no further until this is dropped: what the process says then stays in its pipe.
    pub fn hold(&self) -> Held<'_> {
        Held { _lock: self.0.0.lock().unwrap() }
    }

    /// Waits for words, and returns what follows them up to a quote or the end of the line.
    pub fn wait_for(&self, words: &str) -> String {
        let (said, _) = self
            .0
            .1
            .wait_timeout_while(self.0.0.lock().unwrap(), PATIENCE, |(text, ended)| {
                !text.contains(words) && !*ended
            })
            .unwrap();
        let Some((_, after)) = said.0.split_once(words) else { panic!("never said `{words}`: {}", said.0) };
        after.split(['"', '\'', '\n']).next().unwrap_or_default().to_owned()
    }
}

/// What a process says is not read while this is there.
pub struct Held<'a> {
    _lock: MutexGuard<'a, (String, bool)>,
}

/// A process that is ended with the test, by its pid.
pub struct Ended {
    child: Child,
    /// What it says on standard error.
    pub said: Said,
}

impl Ended {
    /// Starts it, with its standard error read.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let said = Said::read(child.stderr.take().unwrap());
        Self { child, said }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The process, to read its standard output.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the end of the process", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a [`Process`] is started.
pub struct ProcessOptions<'a> {
    /// Where it listens; port 0 for a free one.
    pub listen: &'a str,
    /// Which database: a data folder or a URL, as flags.
    pub database: [&'a str; 2],
    /// Further flags.
    pub flags: &'a [&'a str],
}

/// The service as a process.
pub struct Process {
    child: Ended,
    /// Where it listens: an address and a port.
    pub address: String,
    /// The private Postgres' folder, where it has one.
    cluster: Option<PathBuf>,
}

impl Process {
    /// Starts the service on its private Postgres in this folder, and waits until it listens.
    pub fn start_in(data_dir: &Path) -> Self {
        Self::start_in_at(data_dir, "127.0.0.1:0")
    }

    /// The same, at this address.
    pub fn start_in_at(data_dir: &Path, listen: &str) -> Self {
        let data_dir = data_dir.to_str().unwrap();
        Self::start(&ProcessOptions { listen, database: ["--data-dir", data_dir], flags: &[] })
    }

    /// Starts the service on a database that is there, with these flags, and waits until it listens at a free port.
    pub fn start_on(database_url: &str, flags: &[&str]) -> Self {
        let database = ["--database-url", database_url];
        Self::start(&ProcessOptions { listen: "127.0.0.1:0", database, flags })
    }

    /// Starts the service, and waits until it listens.
    pub fn start(options: &ProcessOptions<'_>) -> Self {
        Self::start_by(binary(), options)
    }

    /// The same by this command.
    pub fn start_by(mut command: Command, options: &ProcessOptions<'_>) -> Self {
        command.args(["serve", "--listen", options.listen]).args(options.database).args(options.flags);
        command.stdout(Stdio::null());
        let child = Ended::start(command);
        let address = child.said.wait_for("listening on ");
        let [flag, value] = options.database;
        let cluster = (flag == "--data-dir").then(|| Path::new(value).join("postgres"));
        Self { child, address, cluster }
    }

    /// Where clients find it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of its private database, as its log gives it to people.
    pub fn sql_url(&self) -> String {
        self.child.said.wait_for("psql '")
    }

    /// What it says on standard error.
    pub fn said(&self) -> &Said {
        &self.child.said
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.child.pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.child.pid(), which);
    }

    /// The postmaster of its private Postgres; none while there is none.
    pub fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.cluster.as_ref()?.join("postmaster.pid")).ok()?;
        Pid::from_raw(text.lines().next()?.parse().ok()?)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.child().try_wait(), Ok(None))
    }

    /// Kills it as the kernel would, with no chance to tidy up.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already may have a successor in its folder.
        if !matches!(self.child.child().try_wait(), Ok(None)) {
            return;
        }
        let postmaster = self.postmaster();
        self.signal(Signal::KILL);
        let _ = self.child.child().wait();
        // The kernel tells Postgres of the service's death; the folder must outlive it.
        let begin = Instant::now();
        while postmaster.is_some_and(is_running) {
            if begin.elapsed() > Duration::from_secs(20) {
                if let Some(pid) = postmaster {
                    signal(pid, Signal::KILL);
                }
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether a process runs; one that waits for its parent to take note of its end does not.
fn is_running(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
        Ok(stat) => !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'),
        Err(_) if Path::new("/proc/self").exists() => false,
        Err(_) => rustix::process::test_kill_process(pid).is_ok(),
    }
}
