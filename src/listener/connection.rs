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
    time::Sleep,
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

/// A connection, what is known of its other end, and its place among those that there may be.
#[derive(Debug)]
pub struct Connection {
    stream: Gathered<Wire>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
    /// When it ends by itself, where it is one too many.
    ends: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    pub(super) fn plain(stream: TcpStream, address: SocketAddr, place: Place) -> Self {
        Self::new(Either::Left(stream), Peer::new(address, None), place)
    }

    pub(super) fn secure(stream: TlsStream<TcpStream>, address: SocketAddr, place: Place) -> Self {
        // The handshake has proved that the client has the key of the first one.
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = Peer::new(address, certificate.map(AsRef::as_ref));
        Self::new(Either::Right(Box::new(stream)), peer, place)
    }

    fn new(stream: Wire, mut peer: Peer, place: Place) -> Self {
        peer.beyond = place.beyond;
        let ends = place.beyond.map(|_| Box::pin(tokio::time::sleep(BEYOND_LIMIT)));
        Self { stream: Gathered::server(stream), peer, _place: place.permit, ends }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut Gathered<Wire>> {
        Pin::new(&mut self.get_mut().stream)
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
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
