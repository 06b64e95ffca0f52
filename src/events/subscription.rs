//! One watcher: history from the table in bounded pages, then live, without a gap between the two.

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    time::Instant,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use uuid::Uuid;

use super::{
    WatchError,
    feed::{Heard, Listener},
    shared::{Batch, SharedEntry},
    tailer::{Hub, READ_LIMIT},
};
use crate::{
    domain::{ProjectId, ServerHandle, event::LogEntry},
    store::{events, within},
};

/// How many operations of the history are read at once: enough to seldom ask, and not more, for one of a server with every label and
/// port it may have is large.
const PAGE: i64 = 500;
/// How many messages wait for a watcher that does not read.
const WAITING: usize = 64;
/// The same of one who watches everything, to whom a message may be a page.
const PAGES_WAITING: usize = 2;
/// How often a quiet watcher's resume point moves on; the contract says at least every 10 s.
const BOOKMARK: Duration = Duration::from_secs(8);
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
    /// Whether every event is wanted.
    fn is_empty(&self) -> bool {
        self.project_id.is_none() && self.server_handle.is_none()
    }

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
    /// All events of operations that follow each other.
    Batch(Arc<Batch>),
    /// Events of an operation.
    Events {
        /// The operation.
        entry: Arc<SharedEntry>,
        /// Which of its events, at least one.
        events: Range<usize>,
    },
    /// Every event up to this number that passes the filter was sent.
    Bookmark {
        /// The number.
        sequence: i64,
    },
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
        let feed = self.feed.subscribe(&filter);
        self.joined.notify_one();
        let mut conn = self.store.acquire().await?;
        let pool = self.look(&mut conn).await?;
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
        let waiting = if filter.is_empty() { PAGES_WAITING } else { WAITING };
        let (out, messages) = mpsc::channel(waiting);
        let (end, ended) = mpsc::channel(1);
        let watcher = Watcher { hub: self.clone(), filter, epoch: pool.epoch, position, feed, out };
        tokio::spawn(async move {
            if let Err(Ended::Because(error)) = watcher.run(pool.last_sequence).await {
                // A caller that hung up does not want to know.
                let _ = end.try_send(error);
            }
        });
        // The reason comes after all that was sent, also where the way there is full.
        let stream = ReceiverStream::new(messages).map(Ok).chain(ReceiverStream::new(ended).map(Err));
        Ok((pool.epoch, Box::pin(stream)))
    }
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
    feed: Listener,
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
                heard = self.feed.recv() => match heard {
                    Ok(Heard::Batch(batch)) => self.hear(batch).await?,
                    Ok(Heard::Entry(entry)) => self.send(entry).await?,
                    Err(RecvError::Lagged(_)) => self.catch_up().await?,
                    Err(RecvError::Closed) => {
                        // Joined before the log is read.
                        self.feed = self.hub.feed.subscribe(&self.filter);
                        self.catch_up().await?;
                    }
                },
                _ = bookmarks.tick() => {
                    self.move_on();
                    self.bookmark().await?;
                }
            }
        }
    }

    /// Takes up that the tailer has passed more than concerned this watcher.
    fn move_on(&mut self) {
        // In this order: the tailer hands round before it says that it has passed.
        let passed = *self.hub.position.borrow();
        let all_taken = self.feed.is_empty();
        if let Some(passed) = passed.filter(|passed| all_taken && passed.epoch == self.epoch) {
            self.position = self.position.max(passed.sequence);
        }
    }

    /// Sends what was missed.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        let newest = self.newest().await?;
        // The same history ends before what was told of it: another went on from there.
        if newest < self.position {
            return Err(WatchError::Restarted.into());
        }
        self.replay(newest).await
    }

    /// The number of the newest event: whatever was handed round was committed before. A database that does not answer is
    /// waited for.
    async fn newest(&self) -> Result<i64, Ended> {
        loop {
            let read = async {
                let mut conn = self.hub.store.acquire().await?;
                self.hub.look(&mut conn).await
            };
            match within(READ_LIMIT, read).await {
                Ok(pool) if pool.epoch != self.epoch => return Err(WatchError::Restarted.into()),
                Ok(pool) => return Ok(pool.last_sequence),
                Err(error) if error.may_pass() => self.pause().await?,
                Err(error) => return Err(WatchError::from(error).into()),
            }
        }
    }

    /// Waits before a read that failed is tried again.
    async fn pause(&self) -> Result<(), Ended> {
        tokio::select! {
            () = self.hub.shutdown.cancelled() => Err(WatchError::ShuttingDown.into()),
            () = self.out.closed() => Err(Ended::HungUp),
            () = tokio::time::sleep(RETRY) => Ok(()),
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
                Ok(entries) => match Batch::new(self.epoch, entries) {
                    Some(batch) => self.give(Arc::new(batch)).await?,
                    None => self.position = target,
                },
                Err(WatchError::Store(error)) if error.may_pass() => self.pause().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next page; a database that says nothing is one that cannot be reached.
    async fn page(&self, target: i64) -> Result<Vec<LogEntry>, WatchError> {
        within(READ_LIMIT, self.read_page(target)).await
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
        let pool = self.hub.look(&mut conn).await?;
        if pool.epoch != self.epoch {
            return Err(WatchError::Restarted);
        }
        if self.position < pool.compacted_sequence {
            return Err(WatchError::Compacted { resumed: self.position, oldest: pool.compacted_sequence });
        }
        Ok(entries)
    }

    /// Takes up what was handed round to those who watch everything.
    async fn hear(&mut self, batch: Arc<Batch>) -> Result<(), Ended> {
        if batch.first_sequence() > self.position + 1 {
            // Something is missing before it.
            return self.replay(batch.last_sequence()).await;
        }
        self.give(batch).await
    }

    /// Sends what of operations is after the position and passes the filter.
    async fn give(&mut self, batch: Arc<Batch>) -> Result<(), Ended> {
        if batch.epoch() != self.epoch {
            return Err(WatchError::Restarted.into());
        }
        if self.filter.is_empty() && batch.first_sequence() == self.position + 1 {
            let last = batch.last_sequence();
            self.hand_over(Message::Batch(batch)).await?;
            self.position = last;
            return Ok(());
        }
        for entry in batch.entries() {
            self.send(Arc::clone(entry)).await?;
        }
        Ok(())
    }

    /// Sends the events of an operation that are after the position and pass the filter.
    async fn send(&mut self, entry: Arc<SharedEntry>) -> Result<(), Ended> {
        if entry.epoch != self.epoch {
            return Err(WatchError::Restarted.into());
        }
        let count = entry.events_up_to(entry.last_sequence());
        let mut next = entry.events_up_to(self.position);
        // Those of a move that are about the server that is left are not all, but they follow each other.
        while next < count {
            let wanted = |index: &usize| self.filter.passes(&entry, *index);
            let Some(start) = (next..count).find(wanted) else { break };
            next = (start..count).find(|index| !wanted(index)).unwrap_or(count);
            self.hand_over(Message::Events { entry: Arc::clone(&entry), events: start..next }).await?;
            self.position = entry.sequence_of(next - 1);
        }
        self.position = self.position.max(entry.last_sequence());
        Ok(())
    }

    async fn bookmark(&self) -> Result<(), Ended> {
        self.hand_over(Message::Bookmark { sequence: self.position }).await
    }

    async fn hand_over(&self, message: Message) -> Result<(), Ended> {
        // Mostly there is room, which needs no timer.
        let message = match self.out.try_send(message) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Ended::HungUp),
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        match tokio::time::timeout(self.hub.options.stall_limit, self.out.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::HungUp),
            Err(_) => Err(WatchError::TooSlow { last: self.position }.into()),
        }
    }
}
