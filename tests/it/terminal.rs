//! What people see on a terminal: colours, and a line that is written over.

use std::{
    fs::File,
    io::Read as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use resource_allocator::proto::v1;
use rustix::{
    fs::{Mode, OFlags, open},
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use crate::support::{
    Client, TestService,
    process::{Ended, binary, signal, wait_until},
    server,
};

/// A terminal that nobody sits at.
struct Terminal {
    /// What was written on it.
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// A new one, and its end for a process.
    fn open() -> (Self, Stdio) {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let end = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let terminal = Self { shown: Arc::default() };
        let shown = Arc::clone(&terminal.shown);
        let mut controller = File::from(controller);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It fails once the process is gone.
            while let Ok(length @ 1..) = controller.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        (terminal, end.into())
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn wait_for(&self, text: &str) {
        wait_until(text, || self.shown().contains(text));
    }
}

/// A command as someone at a terminal has it.
fn command(service: &TestService, arguments: &[&str]) -> Command {
    let mut command = binary();
    let endpoint = format!("http://{}", service.running.address);
    command.args(["--endpoint", &endpoint]).args(arguments);
    command.env("TERM", "xterm-256color");
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(name);
    }
    command
}

/// A server with room for 1024 MB.
async fn with_server() -> (TestService, Client) {
    let service = TestService::start().await;
    let mut client = service.client.clone();
    let capacity = v1::Resources { ram_mb: Some(1024), ..server("web-1").capacity.unwrap() };
    client.register(v1::Server { capacity: Some(capacity), ..server("web-1") }).await;
    (service, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_coloured_on_a_terminal_unless_that_is_not_wanted() {
    let (service, mut client) = with_server().await;
    client.ensure("shop", &[]).await.unwrap();
    for no_color in [false, true] {
        let (terminal, end) = Terminal::open();
        let mut watch = command(&service, &["watch", "--from-beginning", "--project", "shop"]);
        if no_color {
            watch.env("NO_COLOR", "1");
        }
        watch.stdout(end);
        let _watch = Ended::start(watch);
        terminal.wait_for("COMPLETED");
        assert_eq!(terminal.shown().contains("\u{1b}[32mCOMPLETED"), !no_color, "{:?}", terminal.shown());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_sees_one_line_that_is_written_over_and_then_the_result() {
    let (service, mut client) = with_server().await;
    client.ensure("holder", &[]).await.unwrap();
    let (terminal, end) = Terminal::open();
    let ensure = command(&service, &["ensure", "shop", "--ram-mb", "1024", "--wait", "10m"]);
    let mut ensure = Ended::start(on_one_terminal(&ensure, end));
    terminal.wait_for("waiting: place 1 in line, INSUFFICIENT_CAPACITY, 9m");
    client.release("holder", &[]).await;
    assert!(ensure.wait().success());
    terminal.wait_for("shop: CREATED");
    let shown = terminal.shown();
    let (progress, result) = shown.split_once("shop: CREATED").unwrap();
    assert_eq!(progress.matches('\n').count(), 0, "{shown:?}");
    assert!(progress.ends_with("\r\u{1b}[2K") && result.contains("web-1"), "{shown:?}");
    // This one has no width.
    assert!(result.contains("PROJECT  MODULE   SERVER"), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_presses_ctrl_c_has_left_the_line() {
    let (service, mut client) = with_server().await;
    client.ensure("holder", &[]).await.unwrap();
    let (terminal, end) = Terminal::open();
    let ensure = command(&service, &["ensure", "shop", "--ram-mb", "1024", "--wait", "10m"]);
    let mut ensure = Ended::start(on_one_terminal(&ensure, end));
    terminal.wait_for("waiting: place 1 in line");
    signal(ensure.pid(), Signal::INT);
    assert_eq!(ensure.wait().code(), Some(1));
    terminal.wait_for("left the line");
    let line = client.allocator.list_waiting(v1::ListWaitingRequest::default()).await.unwrap();
    assert_eq!(line.into_inner().waiters, []);
}

/// The same command with both of its outputs on one terminal, whatever becomes of its standard error.
fn on_one_terminal(command: &Command, end: Stdio) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null()).stdout(end);
    shell
}
