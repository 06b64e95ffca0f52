//! Takes connections, and brings them about.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::TlsAcceptor;

use super::{Certificates, Connection, ListenerOptions};

/// How long nothing is taken after the system said that it cannot: it has no descriptor or no memory left, and says so again at
/// once to whoever asks at once.
const PAUSE: Duration = Duration::from_millis(100);
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
    let places = Arc::new(Semaphore::new(options.max_connections));
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

/// Waits until there is room for one more, and takes it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    handshakes: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit, OwnedSemaphorePermit)> {
    if places.available_permits() == 0 {
        tracing::warn!("there are as many connections as may be; others wait until one ends");
    }
    let closed = |_| io::Error::other("the listener has ended");
    let place = Arc::clone(places).acquire_owned().await.map_err(closed)?;
    let handshake = Arc::clone(handshakes).acquire_owned().await.map_err(closed)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, place, handshake))
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
