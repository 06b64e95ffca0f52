//! A proxy between a replica and Postgres, which breaks what goes through it: it delays, throttles and black-holes, and it ends
//! the connection before or after what the replica sends at a step of its write path.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::wire::{Message, Messages};

/// How the network is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Each piece comes so much later.
    pub delay: Duration,
    /// No more than so many bytes a second, where it is not 0.
    pub bytes_per_second: u32,
    /// Nothing comes through, and nobody is told so.
    pub is_hole: bool,
    /// How often every connection was cut.
    pub severed: u32,
    /// How often the host behind every connection went away without a word.
    pub vanished: u32,
}

/// At which step of the write path a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// At a message that says COMMIT, where the write path has one.
    Commit,
    /// At the message that ends this round trip of the connection that writes, counted from when the cut is ordered. This finds
    /// every step of a write path, whatever it consists of.
    Round(u32),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It is cut before Postgres has the message.
    Before,
    /// It is cut once Postgres has the message, so that only its answer is lost.
    After,
    /// Neither the message nor anything else ever comes through, and nobody is told so: the replica's host is gone.
    Never,
}

/// An order to end one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// When.
    pub step: Step,
    /// How.
    pub end: End,
}

struct Shared {
    socket: PathBuf,
    weather: watch::Sender<Weather>,
    cut: Mutex<Option<Cut>>,
}

/// A running proxy.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy of the Postgres whose socket is in this folder.
    pub async fn start(socket_dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            socket: socket_dir.join(".s.PGSQL.5432"),
            weather: watch::Sender::new(Weather::default()),
            cut: Mutex::new(None),
        });
        let serving = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(Arc::clone(&serving), client));
            }
        });
        Self { address, shared, listening }
    }

    /// Sets the weather.
    pub fn set(&self, delay: Duration, bytes_per_second: u32, is_hole: bool) {
        self.shared.weather.send_modify(|weather| {
            *weather = Weather { delay, bytes_per_second, is_hole, ..*weather };
        });
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.set(Duration::ZERO, 0, false);
        self.shared.cut.lock().unwrap().take();
    }

    /// Cuts every connection.
    pub fn sever(&self) {
        self.shared.weather.send_modify(|weather| weather.severed += 1);
    }

    /// Nothing comes through any connection that there is, ever again, and nobody is told so; new ones lead to Postgres. So it is
    /// where the database's host dies, and its name leads to another one.
    pub fn vanish(&self) {
        self.shared.weather.send_modify(|weather| weather.vanished += 1);
    }

    /// Orders a cut.
    pub fn order(&self, cut: Cut) {
        *self.shared.cut.lock().unwrap() = Some(cut);
    }

    /// Whether the cut that was ordered is still to come.
    pub fn is_ordered(&self) -> bool {
        self.shared.cut.lock().unwrap().is_some()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.sever();
    }
}

/// Joins a client with Postgres until either goes, or the connection is cut.
async fn serve(shared: Arc<Shared>, mut client: TcpStream) {
    let _ = client.set_nodelay(true);
    let mut weather = shared.weather.subscribe();
    let Weather { severed, vanished, .. } = *weather.borrow();
    // A Postgres that is down refuses: the client is told so by the end of its connection.
    let Ok(mut server) = UnixStream::connect(&shared.socket).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let forward = async {
        let mut pace = shared.weather.subscribe();
        let mut messages = Messages::default();
        let mut is_writer = false;
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
            messages.push(&bytes[..read]);
            while let Some(message) = messages.next() {
                is_writer |= message.writes();
                let end = due(&shared, &message, is_writer);
                match end {
                    Some(End::Before) => return false,
                    Some(End::Never) => return std::future::pending().await,
                    Some(End::After) | None => {}
                }
                pass(&mut pace, vanished, message.bytes.len()).await;
                if to_server.write_all(&message.bytes).await.is_err() {
                    return false;
                }
                if end.is_some() {
                    return true;
                }
            }
        }
        false
    };
    let back = async {
        let mut pace = shared.weather.subscribe();
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_server.read(&mut bytes).await {
            pass(&mut pace, vanished, read).await;
            if to_client.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
    };
    let is_answer_lost = tokio::select! {
        is_answer_lost = forward => is_answer_lost,
        () = back => false,
        _ = weather.wait_for(|weather| weather.severed != severed) => false,
    };
    drop(client);
    if is_answer_lost {
        let _ = timeout(Duration::from_secs(1), server.read(&mut [0])).await;
    }
}

/// How the connection ends at this message, where that was ordered; the order is done then.
fn due(shared: &Shared, message: &Message, is_writer: bool) -> Option<End> {
    let mut order = shared.cut.lock().unwrap();
    let cut = (*order)?;
    match cut.step {
        Step::Commit if message.is_commit() => {}
        Step::Round(left) if is_writer && message.ends_round() => {
            if left > 0 {
                *order = Some(Cut { step: Step::Round(left - 1), ..cut });
                return None;
            }
        }
        _ => return None,
    }
    order.take().map(|cut| cut.end)
}

/// Waits as long as the weather has a piece of this size wait: for ever where the host is gone.
async fn pass(weather: &mut watch::Receiver<Weather>, vanished: u32, bytes: usize) {
    let passes = |weather: &Weather| !weather.is_hole && weather.vanished == vanished;
    let now = match weather.wait_for(passes).await {
        Ok(weather) => *weather,
        // The proxy is gone.
        Err(_) => return,
    };
    sleep(now.delay).await;
    if now.bytes_per_second > 0 {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        sleep(Duration::from_secs(1) * bytes / now.bytes_per_second).await;
    }
}
