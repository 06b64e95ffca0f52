//! A connection that stands.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use super::gathered::Gathered;
use crate::auth::Peer;

/// How long a connection that is one too many goes on. It is there to say so; its client then finds a place by connecting anew.
const BEYOND_LIMIT: Duration = Duration::from_secs(5);

/// A place among the connections that there may be, or among the few more that are told there is none.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) permit: OwnedSemaphorePermit,
    /// How many there may be, where this is one more.
    pub(super) beyond: Option<usize>,
}

/// What bytes go over.
type Wire = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// For how long a connection may stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetime {
    /// Until its client says something.
    pub(super) silent: Duration,
    /// In all; none where it may grow to any age.
    pub(super) whole: Option<Duration>,
}

/// A connection, what is known of its other end, and its place among those that there may be.
#[derive(Debug)]
pub struct Connection {
    stream: Gathered<Wire>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
    /// When it ends, however much is under way.
    ends: Option<Pin<Box<Sleep>>>,
    /// When it does once its client has said something.
    ends_then: Option<Instant>,
    /// Whether it has said nothing yet.
    is_silent: bool,
}

impl Connection {
    pub(super) fn plain(stream: TcpStream, address: SocketAddr, place: Place, lasts: Lifetime) -> Self {
        Self::new(Either::Left(stream), Peer::new(address, None), place, lasts)
    }

    pub(super) fn secure(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        place: Place,
        lasts: Lifetime,
    ) -> Self {
        // The handshake has proved that the client has the key of the first one.
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = Peer::new(address, certificate.map(AsRef::as_ref));
        Self::new(Either::Right(Box::new(stream)), peer, place, lasts)
    }

    fn new(stream: Wire, mut peer: Peer, place: Place, lasts: Lifetime) -> Self {
        peer.beyond = place.beyond;
        let (first, whole) = match place.beyond {
            Some(_) => (BEYOND_LIMIT, Some(BEYOND_LIMIT)),
            None => (lasts.silent, lasts.whole),
        };
        let ends_then = whole.and_then(|whole| Instant::now().checked_add(whole));
        Self {
            stream: Gathered::server(stream),
            peer,
            _place: place.permit,
            ends: Some(Box::pin(tokio::time::sleep(first))),
            ends_then,
            is_silent: true,
        }
    }

    /// The bytes, unless the time is over. Asked in each direction, for a client may have it that nothing is read for long.
    fn stream(self: Pin<&mut Self>, cx: &mut Context<'_>) -> io::Result<Pin<&mut Gathered<Wire>>> {
        let this = self.get_mut();
        if this.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut this.stream))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.as_mut().stream(cx)?.poll_read(cx, buffer);
        if self.is_silent && buffer.filled().len() > before {
            self.is_silent = false;
            self.ends = self.ends_then.map(|ends| Box::pin(tokio::time::sleep_until(ends)));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream(cx)?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream(cx)?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
