//! Takes connections, and brings them about.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use rustix::net::sockopt;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{AcquireError, Semaphore, mpsc},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Certificates, Connection, ConnectionLimits, ListenerOptions,
    connection::{Lifetime, Place},
};

/// How long nothing is taken after the system said that it cannot: it has no descriptor or no memory left, and says so again at
/// once to whoever asks at once.
const PAUSE: Duration = Duration::from_millis(100);
/// How many connections beyond those that there may be are told so, at a time.
const BEYOND: usize = 64;
/// How long a handshake counts among those that there may be at a time.
const TURN: Duration = Duration::from_millis(500);
/// How often in a row a client may leave the system without an answer.
const UNANSWERED: u32 = 3;
/// The longest time of either kind that Linux takes (`MAX_TCP_KEEPIDLE`).
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);
/// How much the system keeps of what was sent and not acknowledged, in bytes; Linux counts its own upkeep too, and takes twice as much
/// for that. Left alone it takes megabytes for each client that is slower than its watch, and a service that writes to hundreds of
/// them at once, and waits for none, takes the processors away from Postgres. Over a long way it bounds what one connection carries:
/// some 3 MB/s where an acknowledgement takes 100 ms.
const SEND_BUFFER: usize = 256 << 10;
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
    let whole = options.connection.max_age.map(|age| age.saturating_add(options.connection.max_age_grace));
    let lasts = Lifetime { silent: options.handshake_timeout, whole };
    loop {
        let accepted = tokio::select! {
            () = sender.closed() => return,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, address, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_the_clients(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if set_up(&stream, options.connection).is_err() {
            continue;
        }
        let Some(certificates) = &certificates else {
            if sender.send(Connection::plain(stream, address, place, lasts)).await.is_err() {
                return;
            }
            continue;
        };
        let acceptor = certificates.acceptor();
        let (sender, handshakes) = (sender.clone(), Arc::clone(&handshakes));
        tokio::spawn(async move {
            let secured = secure(acceptor, stream, &handshakes);
            match tokio::time::timeout(options.handshake_timeout, secured).await {
                Ok(Ok(stream)) => drop(sender.send(Connection::secure(stream, address, place, lasts)).await),
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
async fn accept(listener: &TcpListener, places: &Places) -> io::Result<(TcpStream, SocketAddr, Place)> {
    let place = places.take().await.map_err(ended)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, places.better(place)))
}

fn ended(_: AcquireError) -> io::Error {
    io::Error::other("the listener has ended")
}

/// Tells the system what is wanted of a connection.
fn set_up(stream: &TcpStream, limits: ConnectionLimits) -> io::Result<()> {
    // Without it, each answer waits 40 ms for the acknowledgement of its headers.
    stream.set_nodelay(true)?;
    // Where the system does not do these, the connection is as good.
    let _ = sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER);
    let _ = keep_alive(stream, limits);
    Ok(())
}

/// Has the system ask now and then whether the client is there. HTTP/2 does so by itself, HTTP/1.1 does not.
fn keep_alive(stream: &TcpStream, limits: ConnectionLimits) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits.keepalive_interval.min(LONGEST_KEEPALIVE))?;
    sockopt::set_tcp_keepintvl(stream, limits.keepalive_timeout.min(LONGEST_KEEPALIVE))?;
    sockopt::set_tcp_keepcnt(stream, UNANSWERED)?;
    Ok(())
}

/// Whether an error is of one connection, which is gone already, and no sign that the system lacks anything.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Brings TLS about. A turn is taken once the client has begun, for who says nothing costs nothing, and is over soon: what comes then
/// is waiting for a client, which may be a slow one, or one that wants to hold up others.
async fn secure(
    acceptor: TlsAcceptor,
    mut stream: TcpStream,
    handshakes: &Semaphore,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
        // What is left unread would have the system take the answer back.
        let _ = stream.try_read(&mut [0; 4096]);
        stream.write_all(SPEAK_TLS).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak TLS"));
    }
    let turn = handshakes.acquire().await.map_err(ended)?;
    let mut secured = pin!(acceptor.accept(stream));
    if let Ok(secured) = tokio::time::timeout(TURN, &mut secured).await {
        return secured;
    }
    drop(turn);
    secured.await
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_system_is_told_what_is_wanted_of_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        set_up(&stream, ConnectionLimits::default()).unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), ConnectionLimits::default().keepalive_interval);
        // What is asked for beyond the system's own limit is cut to it, and that is not told in every container.
        let most = std::fs::read_to_string("/proc/sys/net/core/wmem_max").ok();
        let size = sockopt::socket_send_buffer_size(&stream).unwrap();
        match most.and_then(|most| most.trim().parse::<usize>().ok()) {
            Some(most) => assert_eq!(size, 2 * SEND_BUFFER.min(most)),
            None => assert!(size <= 2 * SEND_BUFFER, "{size}"),
        }
    }
}
