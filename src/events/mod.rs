//! The event log as a stream: one tailer for each replica follows the log, and every watcher gets each event once and in order.
//!
//! The table is the truth. What the tailer hands round is a shortcut: a watcher that finds a gap in it, for whatever reason,
//! reads the table.

mod announced;
mod feed;
mod hints;
mod shared;
mod subscription;
mod tailer;

use std::sync::Arc;

pub use self::{
    announced::{Announced, Announcer, announcements},
    shared::{Batch, EncodedEvents, SharedEntry},
    subscription::{Filter, Message, Start, WatchStream},
    tailer::{Hub, WatchOptions},
};
use crate::store::StoreError;

/// Why a watch does not begin, or ends.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// Retention dropped the events after the one to resume at.
    #[error("the events after {resumed} are gone; the oldest that can be resumed after is {oldest}")]
    Compacted {
        /// The event to resume after.
        resumed: i64,
        /// The oldest number that can be resumed after.
        oldest: i64,
    },
    /// The log is another than the one that the token names.
    #[error("the log was restarted: its events are not those that the token names")]
    Restarted,
    /// The watcher did not keep up.
    #[error("the watcher did not keep up; it was sent everything up to {last}")]
    TooSlow {
        /// The last event that it was sent.
        last: i64,
    },
    /// The service is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// Postgres failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl From<StoreError> for WatchError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}
