//! What is handed round: operations of the log, with room for how their events look on the wire. That is made once, by the first
//! who needs it, and not once for each watcher.

use std::{
    ops::{Deref, Range},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use uuid::Uuid;

use crate::domain::event::LogEntry;

/// An operation that many may be sent.
#[derive(Debug)]
pub struct SharedEntry {
    /// The history that it is of.
    pub epoch: Uuid,
    entry: LogEntry,
    encoded: OnceLock<EncodedEvents>,
}

impl SharedEntry {
    /// An operation of a history.
    #[must_use]
    pub fn new(epoch: Uuid, entry: LogEntry) -> Self {
        Self { epoch, entry, encoded: OnceLock::new() }
    }

    /// Its events on the wire; `encode` makes them where nobody has.
    pub fn encoded(&self, encode: impl FnOnce(&Self) -> EncodedEvents) -> &EncodedEvents {
        self.encoded.get_or_init(|| encode(self))
    }
}

impl Deref for SharedEntry {
    type Target = LogEntry;

    fn deref(&self) -> &LogEntry {
        &self.entry
    }
}

/// The events of an operation on the wire.
#[derive(Debug)]
pub struct EncodedEvents {
    /// One after the other.
    pub bytes: Bytes,
    /// Where each of them ends.
    pub ends: Vec<usize>,
}

impl EncodedEvents {
    /// Those of a range.
    #[must_use]
    pub fn slice(&self, events: &Range<usize>) -> Bytes {
        let end = |count: usize| count.checked_sub(1).map_or(0, |last| self.ends[last]);
        self.bytes.slice(end(events.start)..end(events.end))
    }
}

/// Operations that follow each other in the log, at least one.
#[derive(Debug)]
pub struct Batch {
    entries: Vec<Arc<SharedEntry>>,
    encoded: OnceLock<Bytes>,
}

impl Batch {
    /// Operations of a history; none of none.
    #[must_use]
    pub fn new(epoch: Uuid, entries: impl IntoIterator<Item = LogEntry>) -> Option<Self> {
        let entries: Vec<_> =
            entries.into_iter().map(|entry| Arc::new(SharedEntry::new(epoch, entry))).collect();
        (!entries.is_empty()).then(|| Self { entries, encoded: OnceLock::new() })
    }

    /// The operations.
    #[must_use]
    pub fn entries(&self) -> &[Arc<SharedEntry>] {
        &self.entries
    }

    /// The history that they are of.
    #[must_use]
    pub fn epoch(&self) -> Uuid {
        self.entries[0].epoch
    }

    /// The number of the first event.
    #[must_use]
    pub fn first_sequence(&self) -> i64 {
        self.entries[0].first_sequence
    }

    /// The number of the last event.
    #[must_use]
    pub fn last_sequence(&self) -> i64 {
        self.entries[self.entries.len() - 1].last_sequence()
    }

    /// All their events on the wire; `encode` makes them where nobody has.
    pub fn encoded(&self, encode: impl FnOnce(&Self) -> Bytes) -> &Bytes {
        self.encoded.get_or_init(|| encode(self))
    }
}
