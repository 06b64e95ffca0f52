//! What the allocator depends on beside the database, and what decisions come to depend on by it.

use std::time::Duration;

use time::OffsetDateTime;

use crate::domain::placement::Context;

/// What the allocator depends on beside the database.
#[derive(Debug, Clone, Copy)]
pub struct AllocatorOptions {
    /// How old a usage report may be.
    pub usage_max_age: Duration,
    /// Whether a server that never reported its usage takes nothing new.
    pub usage_required: bool,
    /// For how long a port that was found in use on its host is given to nobody.
    pub port_set_aside: Duration,
    /// For how long a port that was given back rests while another is free.
    pub port_rest: Duration,
    /// For how long events are kept.
    pub event_max_age: Duration,
    /// How many events are kept.
    pub event_limit: i64,
    /// How many requests may wait.
    pub queue_limit: usize,
    /// How many requests one transaction takes.
    pub max_batch: usize,
    /// How many projects may stand in line.
    pub line_limit: usize,
}

impl Default for AllocatorOptions {
    fn default() -> Self {
        Self {
            usage_max_age: Duration::from_mins(5),
            usage_required: false,
            port_set_aside: Duration::from_hours(1),
            port_rest: Duration::from_mins(1),
            event_max_age: Duration::from_hours(30 * 24),
            event_limit: 100_000_000,
            queue_limit: 4096,
            max_batch: 256,
            line_limit: 1000,
        }
    }
}

impl AllocatorOptions {
    /// What decisions depend on at a time.
    #[must_use]
    pub fn context(&self, now: OffsetDateTime) -> Context {
        Context { now, usage_max_age: self.usage_max_age, usage_required: self.usage_required }
    }
}
