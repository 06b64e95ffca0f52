//! One watcher: history from the table in bounded pages, then live, without a gap between the two.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::Instant,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use uuid::Uuid;

use super::{
    WatchError,
    tailer::{Hub, Position, READ_LIMIT},
};
use crate::{
    domain::{ProjectId, ServerHandle, event::LogEntry},
    store::{StoreError, events, pools},
};

/// How many operations of the history are read at once. Few, for one of a server with every label and port it may have is large.
const PAGE: i64 = 100;
/// How many messages wait for a watcher that does not read.
const WAITING: usize = 256;
/// For how long a watcher may take nothing before it is told that it is too slow.
const STALL: Duration = Duration::from_secs(30);
/// How often a quiet watcher's resume point moves on; the contract says at least every 10 s.
const BOOKMARK: Duration = Duration::from_secs(5);
/// How long a read that failed waits before it is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Which events a watcher wants; what is `None` does not filter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only events of this project.
    pub project_id: Option<ProjectId>,
    /// Only events of this server.
    pub server_handle: Option<ServerHandle>,
}

impl Filter {
    /// Whether the event at `index` of the operation is wanted.
    fn passes(&self, entry: &LogEntry, index: usize) -> bool {
        self.project_id.as_ref().is_none_or(|id| entry.project_id.as_ref() == Some(id))
            && self.server_handle.as_ref().is_none_or(|handle| entry.concerns(index, handle))
    }
}

/// Where a watch starts.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// With what comes.
    Now,
    /// With the oldest event that there is.
    Beginning,
    /// After an event of a history.
    After {
        /// The history.
        epoch: Uuid,
        /// The number of the event.
        sequence: i64,
    },
}

/// What a watcher is sent.
#[derive(Debug, Clone)]
pub enum Message {
    /// An event: the one at `index` of an operation.
    Event {
        /// The operation.
        entry: Arc<LogEntry>,
        /// Which of its events.
        index: usize,
    },
    /// Every event up to this number that passes the filter was sent.
    Bookmark {
        /// The number.
        sequence: i64,
    },
}

impl Message {
    /// The number after which the stream is resumed.
    #[must_use]
    pub fn sequence(&self) -> i64 {
        match self {
            Self::Event { entry, index } => entry.first_sequence + i64::try_from(*index).unwrap_or(i64::MAX),
            Self::Bookmark { sequence } => *sequence,
        }
    }
}

/// The messages, and last why they ended.
pub type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<Message, WatchError>> + Send>>;

impl Hub {
    /// Begins a watch; returns the history that it is of, and its messages.
    ///
    /// # Errors
    /// [`WatchError::Compacted`], [`WatchError::Restarted`] or [`WatchError::Store`] when it cannot begin there.
    pub async fn watch(&self, filter: Filter, start: Start) -> Result<(Uuid, WatchStream), WatchError> {
        // Joined before the log is read, so that nothing falls between.
        let feed = self.feed.subscribe();
        let mut conn = self.store.acquire().await?;
        let pool = pools::find(&mut conn).await?;
        drop(conn);
        let position = match start {
            Start::Now => pool.last_sequence,
            Start::Beginning => pool.compacted_sequence,
            Start::After { epoch, sequence } if epoch != pool.epoch || sequence > pool.last_sequence => {
                return Err(WatchError::Restarted);
            }
            Start::After { sequence, .. } if sequence < pool.compacted_sequence => {
                return Err(WatchError::Compacted { resumed: sequence, oldest: pool.compacted_sequence });
            }
            Start::After { sequence, .. } => sequence,
        };
        let (out, messages) = mpsc::channel(WAITING);
        let (end, ended) = oneshot::channel();
        let watcher = Watcher { hub: self.clone(), filter, epoch: pool.epoch, position, feed, out };
        tokio::spawn(async move {
            if let Err(Ended::Because(error)) = watcher.run(pool.last_sequence).await {
                // A caller that hung up does not want to know.
                let _ = end.send(error);
            }
        });
        // The reason comes after all that was sent, also where the way there is full.
        let reason = reason_stream(ended);
        let stream = ReceiverStream::new(messages).map(Ok).chain(reason);
        Ok((pool.epoch, Box::pin(stream)))
    }
}

/// The reason as a stream of one, or of none where the caller ended the watch.
fn reason_stream(
    ended: oneshot::Receiver<WatchError>,
) -> impl Stream<Item = Result<Message, WatchError>> + Send {
    let (tx, rx) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Ok(error) = ended.await {
            let _ = tx.send(Err(error)).await;
        }
    });
    ReceiverStream::new(rx)
}

/// Why a watcher's task ends.
enum Ended {
    /// The caller hung up.
    HungUp,
    /// There is a reason to tell.
    Because(WatchError),
}

impl From<WatchError> for Ended {
    fn from(error: WatchError) -> Self {
        Self::Because(error)
    }
}

struct Watcher {
    hub: Hub,
    filter: Filter,
    epoch: Uuid,
    /// The number of the last event that was considered.
    position: i64,
    feed: broadcast::Receiver<Arc<LogEntry>>,
    out: mpsc::Sender<Message>,
}

impl Watcher {
    async fn run(mut self, newest: i64) -> Result<(), Ended> {
        self.bookmark().await?;
        if self.position < newest {
            self.replay(newest).await?;
            self.bookmark().await?;
        }
        let shutdown = self.hub.shutdown.clone();
        let mut bookmarks = tokio::time::interval(BOOKMARK);
        bookmarks.reset();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Err(WatchError::ShuttingDown.into()),
                () = self.out.closed() => return Err(Ended::HungUp),
                received = self.feed.recv() => match received {
                    Ok(entry) if entry.last_sequence() <= self.position => {}
                    Ok(entry) if entry.first_sequence <= self.position + 1 => self.send(entry).await?,
                    // Something is missing before it.
                    Ok(entry) => self.replay(entry.last_sequence()).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => self.catch_up().await?,
                    Err(broadcast::error::RecvError::Closed) => return Err(WatchError::ShuttingDown.into()),
                },
                _ = bookmarks.tick() => {
                    if self.feed.is_empty() {
                        self.catch_up().await?;
                    }
                    self.bookmark().await?;
                }
            }
        }
    }

    /// Reads what the tailer has passed and this watcher has not.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        let passed: Option<Position> = *self.hub.position.borrow();
        match passed {
            Some(passed) if passed.epoch != self.epoch => Err(WatchError::Restarted.into()),
            Some(passed) if passed.sequence > self.position => self.replay(passed.sequence).await,
            _ => Ok(()),
        }
    }

    /// Sends the history up to `target`, which is committed. A database that does not answer is waited for.
    async fn replay(&mut self, target: i64) -> Result<(), Ended> {
        let mut told = Instant::now();
        while self.position < target {
            // A filter may let nothing pass for long.
            if self.out.is_closed() {
                return Err(Ended::HungUp);
            }
            if self.hub.shutdown.is_cancelled() {
                return Err(WatchError::ShuttingDown.into());
            }
            if told.elapsed() > BOOKMARK {
                self.bookmark().await?;
                told = Instant::now();
            }
            match self.page(target).await {
                Ok(entries) if entries.is_empty() => self.position = target,
                Ok(entries) => {
                    for entry in entries {
                        self.send(Arc::new(entry)).await?;
                    }
                }
                Err(WatchError::Store(error))
                    if matches!(*error, StoreError::Unavailable(_) | StoreError::Busy(_)) =>
                {
                    tokio::select! {
                        () = self.hub.shutdown.cancelled() => return Err(WatchError::ShuttingDown.into()),
                        () = self.out.closed() => return Err(Ended::HungUp),
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next page; a database that says nothing is one that cannot be reached.
    async fn page(&self, target: i64) -> Result<Vec<LogEntry>, WatchError> {
        let page = tokio::time::timeout(READ_LIMIT, self.read_page(target)).await;
        page.unwrap_or_else(|_| Err(StoreError::silent().into()))
    }

    async fn read_page(&self, target: i64) -> Result<Vec<LogEntry>, WatchError> {
        let mut conn = self.hub.store.acquire().await?;
        let entries = match &self.filter.project_id {
            Some(id) => {
                events::list_project_after(&mut conn, id.as_str(), self.position, target, PAGE).await?
            }
            None => events::list_after(&mut conn, self.position, PAGE).await?,
        };
        // Looked at after the page was read: what was dropped before is missing from it.
        let pool = pools::find(&mut conn).await?;
        if pool.epoch != self.epoch {
            return Err(WatchError::Restarted);
        }
        if self.position < pool.compacted_sequence {
            return Err(WatchError::Compacted { resumed: self.position, oldest: pool.compacted_sequence });
        }
        Ok(entries)
    }

    /// Sends the events of an operation that are after the position and pass the filter.
    async fn send(&mut self, entry: Arc<LogEntry>) -> Result<(), Ended> {
        let last = entry.last_sequence();
        let count = usize::try_from(entry.operation.event_count()).unwrap_or_default();
        for index in 0..count {
            if !self.filter.passes(&entry, index) {
                continue;
            }
            let message = Message::Event { entry: Arc::clone(&entry), index };
            let sequence = message.sequence();
            if sequence > self.position {
                self.hand_over(message).await?;
                self.position = sequence;
            }
        }
        self.position = self.position.max(last);
        Ok(())
    }

    async fn bookmark(&self) -> Result<(), Ended> {
        self.hand_over(Message::Bookmark { sequence: self.position }).await
    }

    async fn hand_over(&self, message: Message) -> Result<(), Ended> {
        match tokio::time::timeout(STALL, self.out.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::HungUp),
            Err(_) => Err(WatchError::TooSlow { last: self.position }.into()),
        }
    }
}
