//! One run of the postmaster: start it and wait until it is ready, or say why it is not; stop it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tracing::{info, warn};

use super::binaries::Binaries;
use super::folders::Folders;
use super::launcher::Launcher;
use super::log::Log;
use super::{Error, pidfile, settings, socket};

/// How long a start may go without a line in the log. A start takes a fraction of a second on an idle machine
/// and many seconds on a busy one; recovery after a crash takes what it takes, and from Postgres 15 on
/// reports every 10 s.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// How long to start anew while what a killed postmaster left behind is still going away.
const LEFTOVER_LIMIT: Duration = Duration::from_mins(1);
const LEFTOVER_PAUSE: Duration = Duration::from_millis(250);
const READY_POLL: Duration = Duration::from_millis(10);
/// How long the fast shutdown may take; its checkpoint has much to write on a slow disk.
const FAST_LIMIT: Duration = Duration::from_secs(30);
/// How long the immediate shutdown may take; the postmaster itself kills what does not go within 5 s.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(10);

/// Is disconnected when the cluster is to stop; nothing is ever sent.
pub(super) type StopSignal = Receiver<Infallible>;

/// All that it takes to start Postgres.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) folders: Folders,
    pub(super) launcher: Launcher,
    pub(super) binaries: Binaries,
    pub(super) socket_dir: PathBuf,
    /// Further settings, which win over all others.
    pub(super) settings: Vec<(String, String)>,
}

/// What became of a postmaster that was started.
enum Outcome {
    Ready,
    Exited,
    Silent,
    StopAsked,
}

impl Server {
    /// Starts Postgres and waits until it takes connections. None: it was asked to stop meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::StartFailed`], [`Error::StartTimedOut`], [`Error::OrphanStays`], [`Error::NotRunnable`] or
    /// [`Error::NotWritable`].
    pub(super) fn start(&self, stop: &StopSignal) -> Result<Option<Child>, Error> {
        let log = self.folders.log();
        let begin = Instant::now();
        loop {
            pidfile::make_way(&self.folders.cluster())?;
            socket::prepare(&self.socket_dir, &self.launcher).map_err(Error::at(&self.socket_dir))?;
            let mark = log.size();
            let mut child = self.spawn(&log)?;
            match self.wait(&mut child, &log, stop) {
                Outcome::Ready => {
                    info!(pid = child.id(), folder = %self.folders.cluster().display(), "Postgres is ready");
                    return Ok(Some(child));
                }
                Outcome::StopAsked => {
                    stop_child(&mut child);
                    return Ok(None);
                }
                Outcome::Silent => {
                    stop_child(&mut child);
                    let (reason, log) = (log.telling_since(mark), log.path().to_owned());
                    return Err(Error::StartTimedOut { seconds: SILENCE_LIMIT.as_secs(), reason, log });
                }
                Outcome::Exited => {
                    let reason = log.telling_since(mark);
                    if !is_leftover(&reason) || begin.elapsed() >= LEFTOVER_LIMIT {
                        return Err(Error::StartFailed { reason, log: log.path().to_owned() });
                    }
                    info!(reason, "what an earlier Postgres left behind is still going away; starting again");
                    if stop_asked(stop, LEFTOVER_PAUSE) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn spawn(&self, log: &Log) -> Result<Child, Error> {
        let output = log.open().map_err(Error::at(log.path()))?;
        let program = self.binaries.program("postgres");
        let mut command = self.launcher.command(&program);
        command.arg("-D").arg(self.folders.cluster());
        for (name, value) in settings::fixed(&self.socket_dir) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(Stdio::null()).stderr(output).spawn().map_err(Error::running(&program))
    }

    fn wait(&self, child: &mut Child, log: &Log, stop: &StopSignal) -> Outcome {
        let pid = pid_of(child);
        let cluster = self.folders.cluster();
        let (mut heard, mut size) = (Instant::now(), log.size());
        loop {
            if !matches!(child.try_wait(), Ok(None)) {
                return Outcome::Exited;
            }
            if pid.is_some_and(|pid| pidfile::is_ready(&cluster, pid)) {
                return Outcome::Ready;
            }
            if log.size() != size {
                (heard, size) = (Instant::now(), log.size());
            } else if heard.elapsed() >= SILENCE_LIMIT {
                return Outcome::Silent;
            }
            if stop_asked(stop, READY_POLL) {
                return Outcome::StopAsked;
            }
        }
    }
}

/// Waits for `pause`; true as soon as the cluster is to stop.
pub(super) fn stop_asked(stop: &StopSignal, pause: Duration) -> bool {
    let Err(reason) = stop.recv_timeout(pause);
    reason == RecvTimeoutError::Disconnected
}

/// Stops the postmaster: fast, then immediately, then with force. The data is safe in each case; the latter
/// two make the next start replay the log.
pub(super) fn stop_child(child: &mut Child) {
    let steps = [(Signal::INT, FAST_LIMIT), (Signal::QUIT, IMMEDIATE_LIMIT), (Signal::KILL, IMMEDIATE_LIMIT)];
    for (signal, limit) in steps {
        if signal != Signal::INT {
            warn!(pid = child.id(), ?signal, "Postgres takes long to stop");
        }
        // Signalled before it is waited for, so that the pid cannot be another's yet.
        if matches!(child.try_wait(), Ok(None))
            && let Some(pid) = pid_of(child)
        {
            let _ = kill_process(pid, signal);
        }
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(READY_POLL);
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Whether a start failed on backends or shared memory of a postmaster that is no more.
fn is_leftover(reason: &str) -> bool {
    reason.contains("pre-existing shared memory block")
        || reason.contains("lock file \"postmaster.pid\" already exists")
}
