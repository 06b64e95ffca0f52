//! The time of decisions, which does not go back.

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
}
