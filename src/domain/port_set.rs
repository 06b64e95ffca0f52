//! A set of ports as a bitmap that is only as long as the span of ports in it: a server with two hundred ports from 8000 on costs
//! four words, not the eight kilobytes of all ports. Two words, of which most servers need no more, lie in the set itself.

use smallvec::SmallVec;

const BITS: usize = u64::BITS as usize;

/// A set of ports.
#[derive(Debug, Clone, Default)]
pub struct PortSet {
    /// Which word of the full bitmap `words` starts with.
    offset: usize,
    words: SmallVec<[u64; 2]>,
}

fn position(port: u16) -> (usize, u64) {
    (usize::from(port) / BITS, 1 << (usize::from(port) % BITS))
}

impl PortSet {
    /// The word of the full bitmap with that index.
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        index.checked_sub(self.offset).and_then(|index| self.words.get(index)).copied().unwrap_or(0)
    }

    /// Whether the port is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        let (index, bit) = position(port);
        self.word(index) & bit != 0
    }

    /// Adds a port; tells whether it was new.
    pub fn insert(&mut self, port: u16) -> bool {
        let (index, bit) = position(port);
        if self.words.is_empty() {
            self.offset = index;
        }
        if index < self.offset {
            let missing = self.offset - index;
            self.words.insert_many(0, std::iter::repeat_n(0, missing));
            self.offset = index;
        }
        let index = index - self.offset;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        let new = self.words[index] & bit == 0;
        self.words[index] |= bit;
        new
    }

    /// Takes a port out; tells whether it was there.
    pub fn remove(&mut self, port: u16) -> bool {
        let (index, bit) = position(port);
        let Some(word) = index.checked_sub(self.offset).and_then(|index| self.words.get_mut(index)) else {
            return false;
        };
        let there = *word & bit != 0;
        *word &= !bit;
        there
    }

    /// How many ports are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

impl PartialEq for PortSet {
    /// Equal when they hold the same ports, however long their bitmaps are.
    fn eq(&self, other: &Self) -> bool {
        let end = (self.offset + self.words.len()).max(other.offset + other.words.len());
        (0..end).all(|index| self.word(index) == other.word(index))
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::default();
        for port in ports {
            set.insert(port);
        }
        set
    }
}

/// The lowest port from `start` to `end`, both inside, that is not taken; `taken` is a bitmap, asked for word by word.
#[must_use]
pub fn lowest_outside(start: u16, end: u16, taken: impl Fn(usize) -> u64) -> Option<u16> {
    if start > end {
        return None;
    }
    let first = usize::from(start) / BITS;
    for index in first..=usize::from(end) / BITS {
        let mut free = !taken(index);
        if index == first {
            free &= !0 << (usize::from(start) % BITS);
        }
        if free != 0 {
            let port = index * BITS + free.trailing_zeros() as usize;
            return u16::try_from(port).ok().filter(|port| *port <= end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_port_set_is_a_set_of_ports(changes in prop::collection::vec((any::<bool>(), any::<u16>()), 0..200)) {
            let (mut set, mut oracle) = (PortSet::default(), BTreeSet::new());
            for (insert, port) in changes {
                if insert {
                    prop_assert_eq!(set.insert(port), oracle.insert(port));
                } else {
                    prop_assert_eq!(set.remove(port), oracle.remove(&port));
                }
            }
            prop_assert_eq!(set.len(), oracle.len());
            prop_assert_eq!(&set, &oracle.iter().copied().collect::<PortSet>());
        }

        #[test]
        fn the_lowest_port_outside_is_what_a_scan_finds(
            a in prop::collection::vec(1000u16..1300, 0..300), b in prop::collection::vec(1000u16..1300, 0..300),
            start in 990u16..1310, end in 990u16..1310,
        ) {
            let (a, b): (PortSet, PortSet) = (a.into_iter().collect(), b.into_iter().collect());
            let scanned = (start..=end).find(|port| !a.contains(*port) && !b.contains(*port));
            prop_assert_eq!(lowest_outside(start, end, |index| a.word(index) | b.word(index)), scanned);
        }
    }

    #[test]
    fn both_ends_of_the_port_space_are_usable() {
        let last: PortSet = [65535].into_iter().collect();
        assert_eq!(lowest_outside(1, 1, |_| 0), Some(1));
        assert_eq!(lowest_outside(65535, 65535, |_| 0), Some(65535));
        assert_eq!(lowest_outside(65535, 65535, |index| last.word(index)), None);
    }
    #[test]
    fn sets_are_equal_that_hold_the_same_ports_however_they_came_to_it() {
        let set = |ports: &[u16]| -> PortSet { ports.iter().copied().collect() };
        for other in [set(&[]), set(&[8001]), set(&[8000, 8001]), set(&[80, 8000]), set(&[8000, 9000])] {
            assert_ne!(set(&[8000]), other);
            assert_ne!(other, set(&[8000]));
        }
        let mut shrunk = set(&[80, 8000, 9000]);
        shrunk.remove(80);
        shrunk.remove(9000);
        assert_eq!(set(&[8000]), shrunk);
        assert_eq!(shrunk, set(&[8000]));
    }

    #[test]
    fn a_set_is_empty_before_the_first_port_and_after_the_last() {
        let mut set = PortSet::default();
        assert!(set.is_empty());
        for port in [8000, 9000] {
            set.insert(port);
            assert!(!set.is_empty());
        }
        set.remove(8000);
        assert!(!set.is_empty());
        set.remove(9000);
        assert!(set.is_empty());
    }
}
