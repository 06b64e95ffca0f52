//! A real node_exporter as a process, and a local HTTP server that answers with whatever bytes a test wants.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use super::process::Ended;

/// Debian's name for it, and its own.
const PROGRAMS: [&str; 2] = ["prometheus-node-exporter", "node_exporter"];

/// A real node_exporter, ended with the test.
pub struct NodeExporter {
    process: Ended,
    /// Where it listens: an address and a port.
    pub address: String,
}

impl NodeExporter {
    /// Starts one on a free port.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    /// Starts one here, and waits until it listens.
    pub fn start_at(listen: &str) -> Self {
        let mut command = Command::new(program());
        // What is read, and nothing that depends on the machine.
        command.args(["--collector.disable-defaults", "--web.disable-exporter-metrics"]);
        command.args(["cpu", "filesystem", "meminfo", "uname"].map(|name| format!("--collector.{name}")));
        command.arg(format!("--web.listen-address={listen}")).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Ended::start(command);
        let address = process.said.wait_for("Listening on");
        assert_eq!(address, "", "a quote ends the message");
        let address = process.said.wait_for("address=");
        assert!(!address.ends_with(":0"), "before version 1.5 it did not say which port it got");
        Self { process, address }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.process.child().kill();
        self.process.wait();
    }
}

fn program() -> PathBuf {
    let tools = std::env::var_os("RESOURCE_ALLOCATOR_TOOLS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.tools")), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([tools.join("bin")]);
    let programs = folders.flat_map(|folder| PROGRAMS.map(|program| folder.join(program)));
    let mut programs = programs.filter(|program| program.is_file());
    programs.next().expect("the tests need a node_exporter: scripts/setup node-exporter brings one")
}

/// What a [`WebServer`] does with a request.
#[derive(Clone)]
pub enum Answer {
    /// Writes these bytes and closes the connection.
    Bytes(Vec<u8>),
    /// Says nothing.
    Silence,
}

impl Answer {
    /// Text as an exporter sends it.
    pub fn text(body: &str) -> Self {
        Self::whole("200 OK", "text/plain; version=0.0.4; charset=utf-8", body.as_bytes())
    }

    /// A whole answer.
    pub fn whole(status: &str, content_type: &str, body: &[u8]) -> Self {
        Self::with_length(status, content_type, body, body.len())
    }

    /// An answer that promises more, or less, than it has.
    pub fn with_length(status: &str, content_type: &str, body: &[u8], length: usize) -> Self {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n");
        Self::Bytes([head.as_bytes(), body].concat())
    }
}

/// An HTTP server on a port of its own, for answers that no exporter gives. It ends with the test run.
pub struct WebServer {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
}

impl WebServer {
    /// Starts one.
    pub fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), answer: Arc::new(Mutex::new(answer)) };
        let answer = server.answer.clone();
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                read_request(&mut stream);
                let answer = answer.lock().unwrap().clone();
                match answer {
                    // A client that has gone, or had enough, is its own matter.
                    Answer::Bytes(bytes) => drop(stream.write_all(&bytes)),
                    Answer::Silence => silent.push(stream),
                }
            }
        });
        server
    }

    /// Answers otherwise from now on.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn read_request(stream: &mut TcpStream) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
        request.push(byte[0]);
    }
}
