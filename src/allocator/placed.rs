//! Which projects are placed, as far as this replica has folded the log: a hash of each one's id. A request of a project that is
//! not placed, as most are, need not look for it in the tables, neither before it waits for the combiner nor in the transaction
//! that every other writer waits for.
//!
//! Two projects may share a hash. So a hash that is known says "look", and one that is not says for certain that there is nothing.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, DefaultHasher, Hash as _, Hasher},
    sync::{Arc, PoisonError, RwLock},
};

use crate::domain::ProjectId;

/// The projects that are placed; cheap to clone, and the same for all clones.
#[derive(Debug, Clone, Default)]
pub struct Placed(Arc<RwLock<Hashes>>);

#[derive(Debug, Default)]
struct Hashes {
    known: HashSet<u64, BuildHasherDefault<Itself>>,
    /// How many projects more than one have a hash.
    shared: HashMap<u64, u32>,
}

/// A hash needs no other.
#[derive(Debug, Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Placed {
    /// Whether a project may be placed. Whoever holds the pool's row and has folded the log knows for certain if it is not.
    #[must_use]
    pub fn may_include(&self, id: &ProjectId) -> bool {
        let hashes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        hashes.known.contains(&hash(id.as_str()))
    }

    /// Takes up which projects were placed (`true`) or taken off their servers (`false`), in order.
    pub fn apply<'a>(&self, changes: impl Iterator<Item = (&'a ProjectId, bool)>) {
        let mut hashes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (id, is_placed) in changes {
            if is_placed {
                hashes.insert(hash(id.as_str()));
            } else {
                hashes.remove(hash(id.as_str()));
            }
        }
    }

    /// Forgets all, with room for so many.
    pub fn clear(&self, room: usize) {
        let mut hashes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *hashes = Hashes::default();
        hashes.known.reserve(room);
    }

    /// Takes up projects as they were read.
    pub fn load(&self, ids: &[String]) {
        let mut hashes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            hashes.insert(hash(id));
        }
    }
}

impl Hashes {
    fn insert(&mut self, hash: u64) {
        if !self.known.insert(hash) {
            *self.shared.entry(hash).or_default() += 1;
        }
    }

    fn remove(&mut self, hash: u64) {
        match self.shared.get_mut(&hash) {
            None => {
                self.known.remove(&hash);
            }
            Some(1) => {
                self.shared.remove(&hash);
            }
            Some(more) => *more -= 1,
        }
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::Hashes;

    #[test]
    fn a_hash_stays_known_until_the_last_project_that_has_it_is_gone() {
        let mut hashes = Hashes::default();
        for _ in 0..3 {
            hashes.insert(7);
        }
        for _ in 0..2 {
            hashes.remove(7);
            assert!(hashes.known.contains(&7));
        }
        hashes.remove(7);
        assert!(!hashes.known.contains(&7));
        assert!(hashes.shared.is_empty());
    }
}
