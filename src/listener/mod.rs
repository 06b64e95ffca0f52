//! The listener: connections as they come in, by TLS where there are certificates, each with what is known of its other end.
//!
//! `accept` takes them and bounds how many there are, `tls` reads certificates, `connection` is one that stands, and `gathered` is
//! how it sends. What a client does before its connection stands costs a place among the connections, for a while, and a turn among
//! the handshakes, for less: it holds up nobody who is faster.

mod accept;
mod connection;
mod gathered;
mod tls;

use std::time::Duration;

use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};

pub use self::{
    connection::Connection,
    gathered::Gathered,
    tls::{CertificateError, Certificates, TlsFiles},
};

/// What the listener takes.
#[derive(Debug, Clone, Copy)]
pub struct ListenerOptions {
    /// How many connections stand or come about at a time; a few more are told that there is no room, and others wait in the
    /// system's queue.
    pub max_connections: usize,
    /// How many of them may be at the beginning of their handshake at a time.
    pub max_handshakes: usize,
    /// How long a handshake may take, and how long a connection may stand before its client says something.
    pub handshake_timeout: Duration,
    /// What each connection may cost.
    pub connection: ConnectionLimits,
}

/// What a connection may cost.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// How many calls it has under way at a time.
    pub max_streams: u32,
    /// How many of them may be cancelled before they were looked at. More than HTTP/2's usual 20, for callers with short deadlines
    /// share connections; not without bound (CVE-2023-44487).
    pub max_pending_resets: usize,
    /// How large the headers of a call are.
    pub max_header_bytes: u32,
    /// How large a message is.
    pub max_message_bytes: usize,
    /// How often it is asked, while it is idle, whether its client is there.
    pub keepalive_interval: Duration,
    /// How long the client may take to answer.
    pub keepalive_timeout: Duration,
    /// How old it grows before its client is told to make no new calls on it; none where it may grow to any age.
    pub max_age: Option<Duration>,
    /// How long its calls may go on then.
    pub max_age_grace: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_streams: 200,
            max_pending_resets: 200,
            max_header_bytes: 16 << 10,
            max_message_bytes: 16 << 20,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            max_age: None,
            max_age_grace: Duration::from_secs(30),
        }
    }
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_handshakes: 128,
            handshake_timeout: Duration::from_secs(10),
            connection: ConnectionLimits::default(),
        }
    }
}

/// Takes connections until what is returned is dropped.
pub fn incoming(
    listener: TcpListener,
    certificates: Option<Certificates>,
    options: ListenerOptions,
) -> impl Stream<Item = Result<Connection, std::convert::Infallible>> {
    // Those whose handshake is done are served at once: nothing waits here.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept::run(listener, certificates, options, sender));
    ReceiverStream::new(receiver).map(Ok)
}
