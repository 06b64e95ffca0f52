//! The thread that watches over Postgres: it starts it, starts it again when it dies, and stops it.
//!
//! Postgres is to die with the service, and so asks the kernel for a signal on its parent's death. That
//! signal is sent when the *thread* that forked ends. So all starts are made here, by one thread that lives
//! as long as the cluster.

use std::convert::Infallible;
use std::process::Child;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::{debug, error, info};

use super::Error;
use super::server::{Server, StopSignal, stop_asked, stop_child};
use super::socket;

/// How often to look whether Postgres still runs and how long its log is.
const WATCH: Duration = Duration::from_millis(100);
/// The pause before the second attempt to start it again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// A running Postgres and the thread that watches over it.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// Dropped to ask for the stop.
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the thread, and returns when Postgres is ready.
    ///
    /// # Errors
    ///
    /// Those of [`Server::start`], and [`Error::SupervisorLost`].
    pub(super) fn start(server: Server) -> Result<Self, Error> {
        let (stop, asked) = mpsc::channel();
        let (report, started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || supervise(&server, &asked, &report))
            .map_err(|_| Error::SupervisorLost)?;
        let mut supervisor = Self { stop: Some(stop), thread: Some(thread) };
        match started.recv() {
            Ok(Ok(())) => Ok(supervisor),
            Ok(Err(error)) => {
                supervisor.stop()?;
                Err(error)
            }
            Err(_) => Err(Error::SupervisorLost),
        }
    }

    /// Stops Postgres and waits for it; does nothing the second time.
    ///
    /// # Errors
    ///
    /// [`Error::SupervisorLost`] when the thread has panicked.
    pub(super) fn stop(&mut self) -> Result<(), Error> {
        self.stop = None;
        self.thread.take().map_or(Ok(()), |thread| thread.join().map_err(|_| Error::SupervisorLost))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn supervise(server: &Server, stop: &StopSignal, report: &SyncSender<Result<(), Error>>) {
    let started = server.start(stop);
    let (mut running, result) = match started {
        Ok(child) => (child, Ok(())),
        Err(error) => (None, Err(error)),
    };
    // Nobody listens when the caller has gone; then `stop` is disconnected too.
    let _ = report.send(result);
    while let Some(mut child) = running {
        running = if watch(&mut child, server, stop) { restart(server, stop) } else { None };
    }
    socket::remove(&server.socket_dir, &server.folders);
}

/// Returns true when Postgres has died, false after it was stopped because that was asked for.
fn watch(child: &mut Child, server: &Server, stop: &StopSignal) -> bool {
    let log = server.folders.log();
    while !stop_asked(stop, WATCH) {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                error!(pid = child.id(), %status, "Postgres has died; starting it again");
                return true;
            }
            Err(error) => {
                error!(pid = child.id(), %error, "Postgres cannot be watched; starting it again");
                stop_child(child);
                return true;
            }
        }
        if let Err(error) = log.keep_bounded() {
            debug!(%error, "Postgres' log could not be set aside");
        }
    }
    stop_child(child);
    info!(pid = child.id(), "Postgres has stopped");
    false
}

/// Starts Postgres until it runs, however long that takes: the disk may be full, or a backend of the dead one
/// may still work. None: it was asked to stop meanwhile.
fn restart(server: &Server, stop: &StopSignal) -> Option<Child> {
    let mut pause = FIRST_PAUSE;
    loop {
        match server.start(stop) {
            Ok(child) => return child,
            Err(error) => error!(%error, retry_ms = pause.as_millis(), "Postgres could not be started again"),
        }
        if stop_asked(stop, pause) {
            return None;
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
