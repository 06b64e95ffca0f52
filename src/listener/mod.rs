//! The listener: connections as they come in, by TLS where there are certificates, each with what is known of its other end.
//!
//! `accept` takes them and bounds how many there are, `tls` reads certificates, `connection` is one that stands. What a client
//! does before its connection stands costs a place among the handshakes and nothing else: it holds up nobody who is faster.

mod accept;
mod connection;
mod tls;

use std::time::Duration;

use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};

pub use self::{
    connection::Connection,
    tls::{CertificateError, Certificates, TlsFiles},
};

/// What the listener takes.
#[derive(Debug, Clone, Copy)]
pub struct ListenerOptions {
    /// How many connections stand or come about at a time; others wait in the system's queue.
    pub max_connections: usize,
    /// How many of them may be in their handshake at a time.
    pub max_handshakes: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self { max_connections: 10_000, max_handshakes: 128, handshake_timeout: Duration::from_secs(10) }
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
