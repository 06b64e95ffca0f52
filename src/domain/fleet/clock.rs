//! The time of decisions, which does not go back, and what it makes of ports without an operation that tells of it.

use time::{Duration, OffsetDateTime};

use super::Fleet;

/// How far apart the times of decisions may be that are made at one moment.
pub const CLOCK_SKEW: Duration = Duration::seconds(5);

impl Fleet {
    /// When a decision is made, where the database says that it is `now`. That may be a moment before what was folded or read last,
    /// by when ports had rested that are forgotten since. A clock that was set back by more than [`CLOCK_SKEW`] is believed.
    #[must_use]
    pub fn not_before(&self, now: OffsetDateTime) -> OffsetDateTime {
        self.time.filter(|time| *time - now <= CLOCK_SKEW).map_or(now, |time| time.max(now))
    }

    /// Notes that it was told of a time.
    pub(super) fn come_to(&mut self, time: OffsetDateTime) {
        self.time = self.time.max(Some(time));
    }

    /// When a port that is set aside may be given again next.
    #[must_use]
    pub fn next_set_aside_end(&self) -> Option<OffsetDateTime> {
        self.set_aside_ends.first().map(|(end, _)| *end)
    }

    /// Has the line look at the servers where a port that was set aside may be given again by now.
    pub fn end_set_asides(&mut self, now: OffsetDateTime) {
        while let Some((end, handle)) = self.set_aside_ends.pop_first() {
            if end > now {
                self.set_aside_ends.insert((end, handle));
                return;
            }
            self.line.touch(&handle);
        }
    }
}
