//! How often a caller may call.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};

/// How many callers are remembered before those are forgotten who did not call of late.
const MANY: usize = 10_000;

/// Who is counted as one caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CallerKey {
    /// Who has a name.
    Name(String),
    /// Who has none.
    Address(Option<IpAddr>),
}

/// Counts the calls of each caller.
#[derive(Debug, Clone)]
pub struct CallRate {
    limiter: Arc<RateLimiter<CallerKey, HashMapStateStore<CallerKey>, DefaultClock>>,
    /// How many calls a second.
    pub limit: NonZeroU32,
}

impl CallRate {
    /// As many calls a second, and as many at once after a second of silence.
    #[must_use]
    pub fn new(limit: NonZeroU32) -> Self {
        Self { limiter: Arc::new(RateLimiter::hashmap(Quota::per_second(limit))), limit }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// How long the caller is to wait, where it has called too often.
    pub fn count(&self, caller: &CallerKey) -> Result<(), Duration> {
        if self.limiter.len() > MANY {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(caller).map_err(|over| over.wait_time_from(DefaultClock::default().now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_calls_too_often_waits_and_others_do_not() {
        let rate = CallRate::new(NonZeroU32::new(3).unwrap());
        let (loud, other) = (CallerKey::Name("loud".to_owned()), CallerKey::Address(None));
        let refused = (0..10).filter(|_| rate.count(&loud).is_err()).count();
        assert!(refused >= 6, "{refused}");
        assert!(rate.count(&loud).unwrap_err() <= Duration::from_secs(1));
        rate.count(&other).unwrap();
    }
}
