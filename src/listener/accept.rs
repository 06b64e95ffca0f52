//! Takes connections, and brings them about.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::TlsAcceptor;

use super::{Certificates, Connection, ListenerOptions, connection::Place};

/// How long nothing is taken after the system said that it cannot: it has no descriptor or no memory left, and says so again at
/// once to whoever asks at once.
const PAUSE: Duration = Duration::from_millis(100);
/// How many connections beyond those that there may be are told so, at a time.
const BEYOND: usize = 64;
/// What the first byte of a TLS handshake is.
const HANDSHAKE: u8 = 22;
/// The answer to a client that speaks HTTP/1.1 where TLS is spoken.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 42\r\n\r\nthis port speaks TLS: call it by https://\n";

/// Takes connections until nobody receives them any more.
pub(super) async fn run(
    listener: TcpListener,
    certificates: Option<Certificates>,
    options: ListenerOptions,
    sender: mpsc::Sender<Connection>,
) {
    let places = Places {
        limit: options.max_connections,
        free: Arc::new(Semaphore::new(options.max_connections)),
        beyond: Arc::new(Semaphore::new(BEYOND)),
    };
    let handshakes = Arc::new(Semaphore::new(options.max_handshakes));
    loop {
        let accepted = tokio::select! {
            () = sender.closed() => return,
            accepted = accept(&listener, &places, &handshakes) => accepted,
        };
        let (stream, address, place, handshake) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_the_clients(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Without it, each answer waits 40 ms for the acknowledgement of its headers.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let Some(certificates) = &certificates else {
            if sender.send(Connection::plain(stream, address, place)).await.is_err() {
                return;
            }
            continue;
        };
        let acceptor = certificates.acceptor();
        let sender = sender.clone();
        tokio::spawn(async move {
            let secured = tokio::time::timeout(options.handshake_timeout, secure(acceptor, stream)).await;
            drop(handshake);
            match secured {
                Ok(Ok(stream)) => drop(sender.send(Connection::secure(stream, address, place)).await),
                Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS came about"),
                Err(_) => tracing::debug!(%address, "the handshake took too long"),
            }
        });
    }
}

/// How many connections there may be.
struct Places {
    limit: usize,
    free: Arc<Semaphore>,
    /// A few more, so that who finds no place is told.
    beyond: Arc<Semaphore>,
}

impl Places {
    /// Takes a place, or else one of the few more; waits where there are none of these either.
    async fn take(&self) -> Result<Place, AcquireError> {
        tokio::select! {
            biased;
            permit = Arc::clone(&self.free).acquire_owned() => Ok(Place { permit: permit?, beyond: None }),
            permit = Arc::clone(&self.beyond).acquire_owned() => {
                tracing::warn!(limit = self.limit, "there are as many connections as may be; others are told so");
                Ok(Place { permit: permit?, beyond: Some(self.limit) })
            }
        }
    }

    /// The place that a connection gets now: one may have come free while nobody connected.
    fn better(&self, place: Place) -> Place {
        match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) if place.beyond.is_some() => Place { permit, beyond: None },
            _ => place,
        }
    }
}

/// Waits until there is room for one more, and takes it.
async fn accept(
    listener: &TcpListener,
    places: &Places,
    handshakes: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, Place, OwnedSemaphorePermit)> {
    let closed = |_| io::Error::other("the listener has ended");
    let place = places.take().await.map_err(closed)?;
    let handshake = Arc::clone(handshakes).acquire_owned().await.map_err(closed)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, places.better(place), handshake))
}

/// Whether an error is of one connection, which is gone already, and no sign that the system lacks anything.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn secure(
    acceptor: TlsAcceptor,
    mut stream: TcpStream,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
        // What is left unread would have the system take the answer back.
        let _ = stream.try_read(&mut [0; 4096]);
        stream.write_all(SPEAK_TLS).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak TLS"));
    }
    acceptor.accept(stream).await
}
