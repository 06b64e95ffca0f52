//! Times are no more exact than the tables can hold them, so that what is told at once is what is read later.

use std::time::Duration;

/// The shortest duration of whole microseconds that is no shorter.
#[must_use]
pub fn whole_micros(duration: Duration) -> Duration {
    match duration.subsec_nanos() % 1000 {
        0 => duration,
        beyond => duration.saturating_add(Duration::from_nanos(u64::from(1000 - beyond))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_becomes_whole_and_never_shorter() {
        let nanos = Duration::from_nanos;
        assert_eq!(
            [0, 1, 999, 1000, 1001, 999_999_999].map(|given| whole_micros(nanos(given))),
            [0, 1000, 1000, 1000, 2000, 1_000_000_000].map(nanos)
        );
        assert_eq!(whole_micros(Duration::MAX), Duration::MAX);
    }
}
