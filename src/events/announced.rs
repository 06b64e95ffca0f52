//! What this replica commits, as its combiner announces it: its tailer hands it round without reading back what was just written.
//!
//! It is no more than a shortcut. What is not announced, does not follow what was handed round, or was dropped because too much
//! gathered, is read from the table.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

use super::tailer::Position;
use crate::domain::event::LogEntry;

/// How many operations are kept until they are taken: several times what is committed while the tailer pauses.
const LIMIT: usize = 4096;

/// Operations that were committed together: at least one.
#[derive(Debug)]
struct Committed {
    epoch: Uuid,
    entries: Vec<LogEntry>,
}

/// What was announced and not taken yet.
#[derive(Debug, Default)]
struct Kept {
    /// Up to where all of it leads, and what was dropped too.
    newest: Option<Position>,
    /// Whether the tailer has anyone to tell.
    is_wanted: bool,
    committed: Vec<Committed>,
    /// How many operations they are.
    count: usize,
}

/// The combiner's end.
#[derive(Debug)]
pub struct Announcer {
    news: watch::Sender<()>,
    kept: Arc<Mutex<Kept>>,
}

/// The tailer's end.
#[derive(Debug, Clone)]
pub struct Announced {
    /// Changes where there is something to tell. It ends with the combiner.
    pub(super) news: watch::Receiver<()>,
    kept: Arc<Mutex<Kept>>,
}

/// Both ends, of a replica that has committed nothing.
#[must_use]
pub fn announcements() -> (Announcer, Announced) {
    let (sender, news) = watch::channel(());
    let kept = Arc::new(Mutex::new(Kept::default()));
    (Announcer { news: sender, kept: Arc::clone(&kept) }, Announced { news, kept })
}

impl Announcer {
    /// Announces operations of a history, in the log's order, which are committed.
    pub fn announce(&self, epoch: Uuid, entries: Vec<LogEntry>) {
        let Some(last) = entries.last() else { return };
        let newest = Position { epoch, sequence: last.last_sequence() };
        // What goes is dropped once others may have the rest.
        let _dropped = lock(&self.kept).keep(Committed { epoch, entries }, newest);
        // In this order: whoever hears of the operations finds them.
        self.news.send_replace(());
    }
}

impl Announced {
    /// Takes the operations that follow a position, in order, as far as they are there, and says up to where this replica has
    /// committed. From then on what is announced is kept.
    pub(super) fn take_after(&self, at: Position) -> (Vec<LogEntry>, Option<Position>) {
        let (committed, newest) = {
            let mut kept = lock(&self.kept);
            kept.is_wanted = true;
            (kept.take(), kept.newest)
        };
        let mut next = at.sequence + 1;
        let mut following = Vec::new();
        for entry in committed.into_iter().filter(|of| of.epoch == at.epoch).flat_map(|of| of.entries) {
            if entry.first_sequence == next {
                next = entry.last_sequence() + 1;
                following.push(entry);
            }
        }
        (following, newest)
    }

    /// Says that there is nobody to tell: nothing is kept until something is taken again.
    pub(super) fn ignore(&self) {
        let _dropped = {
            let mut kept = lock(&self.kept);
            kept.is_wanted = false;
            kept.take()
        };
    }
}

impl Kept {
    /// Keeps what was committed where it is wanted; returns what is to be dropped.
    fn keep(&mut self, committed: Committed, newest: Position) -> Vec<Committed> {
        let before = self.newest.replace(newest);
        if !self.is_wanted {
            return vec![committed];
        }
        // A log that was set back leads elsewhere than what was committed before.
        let is_set_back = before.is_some_and(|before| {
            before.epoch == committed.epoch && committed.entries[0].first_sequence <= before.sequence
        });
        // Where nobody takes it in time, what comes after it does not follow either until the table was read.
        let is_too_much = self.count + committed.entries.len() > LIMIT;
        if is_set_back || is_too_much {
            let mut dropped = self.take();
            dropped.push(committed);
            return dropped;
        }
        self.count += committed.entries.len();
        self.committed.push(committed);
        Vec::new()
    }

    fn take(&mut self) -> Vec<Committed> {
        self.count = 0;
        std::mem::take(&mut self.committed)
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing;

    const EPOCH: Uuid = Uuid::nil();

    fn at(sequence: i64) -> Position {
        Position { epoch: EPOCH, sequence }
    }

    /// Operations of one event each.
    fn entries(numbers: impl IntoIterator<Item = i64>) -> Vec<LogEntry> {
        numbers.into_iter().map(|number| testing::released(number, "shop", "web-1")).collect()
    }

    fn taken(tailer: &Announced, after: i64) -> Vec<i64> {
        tailer.take_after(at(after)).0.iter().map(|entry| entry.first_sequence).collect()
    }

    #[test]
    fn what_follows_is_taken_once_and_in_order() {
        let (combiner, tailer) = announcements();
        assert_eq!(taken(&tailer, 0), [0_i64; 0]);
        combiner.announce(EPOCH, entries([1, 2]));
        combiner.announce(EPOCH, entries([3]));
        let (following, newest) = tailer.take_after(at(0));
        assert_eq!(following.iter().map(|entry| entry.first_sequence).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(newest, Some(at(3)));
        assert_eq!(taken(&tailer, 3), [0_i64; 0]);
    }

    #[test]
    fn what_was_told_is_passed_over_and_a_gap_is_left_to_the_table() {
        let (combiner, tailer) = announcements();
        let _ = taken(&tailer, 0);
        combiner.announce(EPOCH, entries([1, 2, 3]));
        assert_eq!(taken(&tailer, 2), [3]);
        combiner.announce(EPOCH, entries([4]));
        // Another replica committed the fifth.
        combiner.announce(EPOCH, entries([6]));
        assert_eq!(taken(&tailer, 3), [4]);
        combiner.announce(Uuid::from_u128(1), entries([7]));
        assert_eq!(taken(&tailer, 6), [0_i64; 0]);
    }

    #[test]
    fn nothing_is_kept_while_nobody_listens_and_no_more_than_the_limit() {
        let (combiner, tailer) = announcements();
        combiner.announce(EPOCH, entries([1]));
        assert_eq!(taken(&tailer, 0), [0_i64; 0]);
        let limit = i64::try_from(LIMIT).unwrap();
        combiner.announce(EPOCH, entries(1..=limit));
        combiner.announce(EPOCH, entries([limit + 1]));
        assert_eq!(taken(&tailer, 0), [0_i64; 0]);
        combiner.announce(EPOCH, entries([limit + 2]));
        assert_eq!(taken(&tailer, limit + 1), [limit + 2]);
        combiner.announce(EPOCH, entries([limit + 3]));
        tailer.ignore();
        combiner.announce(EPOCH, entries([limit + 4]));
        let (following, newest) = tailer.take_after(at(limit + 2));
        assert_eq!((following, newest), (Vec::new(), Some(at(limit + 4))));
    }

    #[test]
    fn what_a_log_that_was_set_back_had_is_not_told() {
        let (combiner, tailer) = announcements();
        let _ = taken(&tailer, 0);
        combiner.announce(EPOCH, entries([1, 2]));
        combiner.announce(EPOCH, entries([2]));
        assert_eq!(taken(&tailer, 0), [0_i64; 0]);
        // One of another history counts for itself.
        combiner.announce(Uuid::from_u128(1), entries([1]));
        let (following, newest) = tailer.take_after(Position { epoch: Uuid::from_u128(1), sequence: 0 });
        assert_eq!(following.len(), 1);
        assert_eq!(newest, Some(Position { epoch: Uuid::from_u128(1), sequence: 1 }));
    }

    #[test]
    fn nothing_committed_is_no_news() {
        let (combiner, tailer) = announcements();
        combiner.announce(EPOCH, Vec::new());
        assert!(!tailer.news.has_changed().unwrap());
        drop(combiner);
        assert!(tailer.news.has_changed().is_err());
        assert_eq!(tailer.take_after(at(0)).1, None);
    }
}
