//! Ports that were given back or set aside, each with a time, and remembered for a while after it.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use super::{Port, Protocol};

/// For how long a port is remembered after its time, as its row may still be in the tables. Upkeep removes it within seconds, unless
/// there are hundreds of thousands to remove.
pub(super) const REMEMBERED: Duration = Duration::hours(1);

/// Up to so many are never looked through for those that can be forgotten.
const FEW: usize = 8;

/// The ports with their times.
#[derive(Debug, Clone, Default)]
pub(super) struct GivenBack {
    until: BTreeMap<(Protocol, Port), OffsetDateTime>,
    /// How many were left when those to be forgotten were looked for last.
    left: usize,
}

impl GivenBack {
    /// Takes up a port, and remembers it for a while also where its time was over long ago. Others for which it was are forgotten,
    /// whenever there are twice as many as were left the last time.
    pub(super) fn insert(&mut self, port: (Protocol, Port), until: OffsetDateTime, now: OffsetDateTime) {
        // Over in any case, and for whoever decides a moment ago too.
        let until = until.max(now.saturating_sub(REMEMBERED / 2));
        if self.until.len() >= FEW.max(2 * self.left) {
            let long_ago = now.saturating_sub(REMEMBERED);
            self.until.retain(|_, until| *until > long_ago);
            self.left = self.until.len();
        }
        self.until.insert(port, until);
    }

    /// Forgets a port.
    pub(super) fn remove(&mut self, port: (Protocol, Port)) {
        self.until.remove(&port);
    }

    /// The port's time, where it is remembered.
    pub(super) fn get(&self, port: (Protocol, Port)) -> Option<OffsetDateTime> {
        self.until.get(&port).copied()
    }

    /// Has a port stand as it did.
    pub(super) fn restore(&mut self, port: (Protocol, Port), until: Option<OffsetDateTime>) {
        match until {
            Some(until) => self.until.insert(port, until),
            None => self.until.remove(&port),
        };
    }

    /// Whether the port's time is still to come.
    pub(super) fn is_before_its_time(&self, port: (Protocol, Port), now: OffsetDateTime) -> bool {
        self.get(port).is_some_and(|until| until > now)
    }
}

impl PartialEq for GivenBack {
    /// Equal when they remember the same.
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn tcp(number: u16) -> (Protocol, Port) {
        (Protocol::Tcp, Port::try_from(u32::from(number)).unwrap())
    }

    #[test]
    fn what_had_its_time_is_remembered_for_a_while_and_forgotten() {
        let mut given_back = GivenBack::default();
        let tenth = REMEMBERED / 10;
        for (n, number) in (0..).zip(8000..8100) {
            let now = NOW + tenth * n;
            given_back.insert(tcp(number), now, now);
            // Ten are to be remembered at a time.
            assert!(given_back.until.len() <= 21, "{}", given_back.until.len());
            for remembered in number.saturating_sub(9).max(8000)..=number {
                assert!(given_back.get(tcp(remembered)).is_some(), "{remembered} of {number}");
            }
        }
    }

    #[test]
    fn what_had_its_time_long_ago_is_remembered_from_when_it_is_taken_up() {
        let mut given_back = GivenBack::default();
        given_back.insert(tcp(8000), NOW - REMEMBERED * 100, NOW);
        given_back.insert(tcp(8001), NOW + REMEMBERED, NOW);
        let stands = |now| [8000, 8001].map(|number| given_back.is_before_its_time(tcp(number), now));
        // Also by a clock that is a little behind.
        assert_eq!(stands(NOW - Duration::minutes(1)), [false, true]);
        assert_eq!(stands(NOW + REMEMBERED), [false, false]);
        let mut given_back = given_back.clone();
        for number in 9000..9020 {
            given_back.insert(tcp(number), NOW, NOW);
        }
        assert!(given_back.get(tcp(8000)).is_some());
    }

    #[test]
    fn what_is_to_be_forgotten_is_looked_for_when_there_are_twice_as_many() {
        let mut given_back = GivenBack::default();
        for number in 8000..8100 {
            given_back.insert(tcp(number), NOW, NOW);
        }
        assert_eq!((given_back.until.len(), given_back.left), (100, 64));
        // One that comes and goes has nobody look.
        let later = NOW + REMEMBERED;
        for _ in 0..10 {
            given_back.insert(tcp(9000), later, later);
            given_back.remove(tcp(9000));
        }
        assert_eq!(given_back.until.len(), 100);
        for number in 9000..9028 {
            given_back.insert(tcp(number), later, later);
        }
        assert_eq!(given_back.until.len(), 128);
        given_back.insert(tcp(9028), later, later);
        assert_eq!(given_back.until.len(), 29);
    }
}
