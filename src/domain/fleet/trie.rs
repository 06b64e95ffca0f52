//! A binary trie whose nodes say what is below them, so that a search leaves whole branches aside.
//!
//! Keys are bits of fixed places: what is alike is together, whatever the order in which it came, so nothing is ever rebalanced.
//! A path along which nothing branches is one node, and what is below a node is one bucket while it is little: to look through a few
//! entries that are side by side in memory takes less than a path to each of them. So there are far fewer nodes than entries. An entry
//! that comes or goes touches one path, and one that moves touches two from where they part. A key ends with the entry's
//! slot, which makes it unique.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    fmt::Debug,
    mem,
};

// Small in tests, whose fleets are.
/// How many entries a bucket holds at the most.
const MOST: usize = if cfg!(test) { 4 } else { 24 };
/// Two buckets become one where they hold no more than this. It is less than a bucket holds, so that an entry which comes and goes
/// does not have them divided and put together each time.
const TOGETHER: usize = MOST / 2;

/// What is known of some entries. Nodes count them besides.
pub trait Summary: Clone + PartialEq {
    /// An entry.
    type Entry: Copy + Debug;
    /// Where an entry belongs: the upper half of its key.
    fn place(entry: &Self::Entry) -> u64;
    /// The entry's slot: the lower half.
    fn slot(entry: &Self::Entry) -> u32;
    /// What is known of one entry.
    fn of(entry: &Self::Entry) -> Self;
    /// Takes up what is known of others.
    fn join(&mut self, other: &Self);
}

/// Whether something holds of the entries below a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// Of every one.
    All,
    /// Of some, perhaps; never said of a single entry.
    Part,
    /// Of none.
    Nothing,
}

/// What a search makes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is one of those that are looked for.
    Take,
    /// It is not.
    Leave,
    /// The search is to end without a result.
    GiveUp,
}

#[derive(Debug)]
struct Node<S: Summary> {
    summary: S,
    count: usize,
    below: Below<S>,
}

#[derive(Debug)]
enum Below<S: Summary> {
    /// Never empty, but while it is moved elsewhere.
    Bucket(Vec<S::Entry>),
    Branch {
        /// With this all keys below agree, up to `bit`.
        prefix: Key,
        /// The first bit in which the children differ.
        bit: u32,
        children: Box<[Node<S>; 2]>,
    },
}

/// The trie.
#[derive(Debug)]
pub struct Trie<S: Summary> {
    root: Option<Node<S>>,
}

impl<S: Summary> Default for Trie<S> {
    fn default() -> Self {
        Self { root: None }
    }
}

/// A place and a slot.
type Key = (u64, u32);

fn side((place, slot): Key, bit: u32) -> usize {
    let is_set = if bit < u64::BITS {
        place << bit >> (u64::BITS - 1) == 1
    } else {
        slot << (bit - u64::BITS) >> (u32::BITS - 1) == 1
    };
    usize::from(is_set)
}

/// The first bit in which two keys differ.
fn parting(one: Key, other: Key) -> u32 {
    match (one.0 ^ other.0).leading_zeros() {
        u64::BITS => u64::BITS + (one.1 ^ other.1).leading_zeros(),
        bit => bit,
    }
}

fn key<S: Summary>(entry: &S::Entry) -> Key {
    (S::place(entry), S::slot(entry))
}

impl<S: Summary> Default for Below<S> {
    /// What stays for a moment where the rest is moved elsewhere.
    fn default() -> Self {
        Self::Bucket(Vec::new())
    }
}

impl<S: Summary> Node<S> {
    /// A bucket of these, of which there is one at least.
    fn bucket(entries: Vec<S::Entry>) -> Self {
        Self { summary: summary_of(&entries), count: entries.len(), below: Below::Bucket(entries) }
    }

    fn insert(&mut self, key: Key, entry: S::Entry) {
        match &mut self.below {
            Below::Bucket(entries) => {
                entries.push(entry);
                if entries.len() > MOST {
                    self.below = divide(mem::take(entries));
                }
            }
            Below::Branch { prefix, bit, children } if parting(*prefix, key) >= *bit => {
                children[side(key, *bit)].insert(key, entry);
            }
            Below::Branch { prefix, .. } => {
                let bit = parting(*prefix, key);
                let below = mem::take(&mut self.below);
                let others = Self { summary: self.summary.clone(), count: self.count, below };
                let alone = Self::bucket(vec![entry]);
                let children = if side(key, bit) == 0 { [alone, others] } else { [others, alone] };
                self.below = Below::Branch { prefix: key, bit, children: Box::new(children) };
            }
        }
        self.summary.join(&S::of(&entry));
        self.count += 1;
    }

    /// Takes out an entry that is there and not the only one. Tells whether the summary changed.
    fn remove(&mut self, key: Key, slot: u32) -> bool {
        self.count -= 1;
        match &mut self.below {
            Below::Bucket(entries) => {
                entries.retain(|entry| S::slot(entry) != slot);
                debug_assert_eq!(entries.len(), self.count, "the entry was there");
                let summary = summary_of(entries);
                self.set_summary(summary)
            }
            Below::Branch { bit, children, .. } => {
                let place = side(key, *bit);
                if children[place].count == 1 {
                    self.become_child(1 - place);
                    return true;
                }
                let changed = children[place].remove(key, slot) && self.summarise_children();
                if self.count <= TOGETHER {
                    self.become_bucket();
                }
                changed
            }
        }
    }

    /// Puts an entry in the place of one that is there and has its slot. Tells whether the summary changed.
    fn replace(&mut self, before: Key, key: Key, entry: S::Entry) -> bool {
        match &mut self.below {
            Below::Bucket(entries) => {
                let place = entries.iter_mut().find(|other| S::slot(other) == S::slot(&entry));
                debug_assert!(place.is_some(), "the entry was there");
                if let Some(place) = place {
                    *place = entry;
                }
                let summary = summary_of(entries);
                self.set_summary(summary)
            }
            Below::Branch { bit, children, .. } if parting(before, key) > *bit => {
                children[side(key, *bit)].replace(before, key, entry) && self.summarise_children()
            }
            Below::Branch { .. } => {
                let known = self.summary.clone();
                self.remove(before, S::slot(&entry));
                self.insert(key, entry);
                self.summary != known
            }
        }
    }

    fn set_summary(&mut self, summary: S) -> bool {
        let changed = self.summary != summary;
        self.summary = summary;
        changed
    }

    fn summarise_children(&mut self) -> bool {
        let Below::Branch { children, .. } = &self.below else { return false };
        let mut summary = children[0].summary.clone();
        summary.join(&children[1].summary);
        self.set_summary(summary)
    }

    /// Puts a child in the place of its parent.
    fn become_child(&mut self, place: usize) {
        if let Below::Branch { children, .. } = mem::take(&mut self.below) {
            let [left, right] = *children;
            *self = if place == 0 { left } else { right };
        }
    }

    /// Puts all that is below into one bucket.
    fn become_bucket(&mut self) {
        let mut entries = Vec::with_capacity(self.count);
        gather_entries(mem::take(&mut self.below), &mut entries);
        self.below = Below::Bucket(entries);
    }
}

fn gather_entries<S: Summary>(below: Below<S>, all: &mut Vec<S::Entry>) {
    match below {
        Below::Bucket(entries) => all.extend(entries),
        Below::Branch { children, .. } => {
            for child in *children {
                gather_entries(child.below, all);
            }
        }
    }
}

fn summary_of<S: Summary>(entries: &[S::Entry]) -> S {
    let mut summary = S::of(&entries[0]);
    for other in &entries[1..] {
        summary.join(&S::of(other));
    }
    summary
}

/// Two buckets of what was one, by the first bit in which its keys differ.
fn divide<S: Summary>(entries: Vec<S::Entry>) -> Below<S> {
    let prefix = key::<S>(&entries[0]);
    let bit = entries.iter().map(|entry| parting(prefix, key::<S>(entry))).min().unwrap_or_default();
    let (left, right) = entries.into_iter().partition(|entry| side(key::<S>(entry), bit) == 0);
    Below::Branch { prefix, bit, children: Box::new([Node::bucket(left), Node::bucket(right)]) }
}

impl<S: Summary> Trie<S> {
    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.count)
    }

    /// Adds an entry, whose slot must be new.
    pub fn insert(&mut self, entry: S::Entry) {
        match &mut self.root {
            Some(root) => root.insert(key::<S>(&entry), entry),
            None => self.root = Some(Node::bucket(vec![entry])),
        }
    }

    /// Takes out an entry, which must be there.
    pub fn remove(&mut self, entry: &S::Entry) {
        match &mut self.root {
            Some(root) if root.count > 1 => {
                root.remove(key::<S>(entry), S::slot(entry));
            }
            root => *root = None,
        }
    }

    /// Puts an entry in the place of one with its slot, which must be there.
    pub fn replace(&mut self, before: &S::Entry, entry: S::Entry) {
        if let Some(root) = &mut self.root {
            root.replace(key::<S>(before), key::<S>(&entry), entry);
        }
    }

    /// The least of the entries that `verdict` takes, by `bound`, up to `most` of them, ascending. `bound` says what no entry
    /// below a node is less than, exactly for an entry, and nothing where none is looked for. None where `verdict` gave up.
    pub fn least<B: Ord + Copy>(
        &self,
        most: usize,
        bound: impl Fn(&S) -> Option<B>,
        mut verdict: impl FnMut(u32) -> Verdict,
    ) -> Option<Vec<(B, u32)>> {
        let mut found: Vec<(B, u32)> = Vec::new();
        let is_out_of_reach = |found: &[(B, u32)], lower: B| {
            found.len() == most && found.last().is_none_or(|(worst, _)| *worst <= lower)
        };
        // By place in `nodes`. The most promising one is the next, so that no more of them are looked at than need be.
        let mut open = BinaryHeap::with_capacity(32);
        let mut nodes = Vec::with_capacity(64);
        nodes.extend(&self.root);
        let mut next = nodes.first().and_then(|root| Some((Reverse(bound(&root.summary)?), 0)));
        let mut near = Vec::with_capacity(MOST);
        while let Some((Reverse(lower), place)) = next {
            if is_out_of_reach(&found, lower) {
                break;
            }
            next = None;
            match &nodes[place].below {
                Below::Branch { children, .. } => {
                    for child in &**children {
                        let Some(lower) = bound(&child.summary) else { continue };
                        let one = (Reverse(lower), nodes.len());
                        nodes.push(child);
                        // The better child need not wait among the others.
                        let (better, other) = if next.is_some_and(|before| before > one) {
                            (next, Some(one))
                        } else {
                            (Some(one), next)
                        };
                        next = better;
                        open.extend(other);
                    }
                }
                Below::Bucket(entries) => {
                    near.clear();
                    near.extend(
                        entries.iter().filter_map(|entry| Some((bound(&S::of(entry))?, S::slot(entry)))),
                    );
                    near.sort_unstable();
                    for (exactly, slot) in &near {
                        if is_out_of_reach(&found, *exactly) {
                            break;
                        }
                        match verdict(*slot) {
                            Verdict::Take => {
                                let place = found.partition_point(|(other, _)| other < exactly);
                                found.insert(place, (*exactly, *slot));
                                found.truncate(most);
                            }
                            Verdict::Leave => {}
                            Verdict::GiveUp => return None,
                        }
                    }
                }
            }
            next = match (next, open.peek_mut()) {
                (Some(child), Some(mut first)) if *first > child => Some(mem::replace(&mut *first, child)),
                (None, Some(first)) => Some(PeekMut::pop(first)),
                (child, _) => child,
            };
        }
        Some(found)
    }

    /// Hands what is known of all entries that `cover` holds of to `take`, and how many they are: of a whole branch at once, and of
    /// a bucket in part one by one.
    pub fn gather(&self, cover: impl Fn(&S) -> Cover, mut take: impl FnMut(&S, usize)) {
        let mut open = Vec::with_capacity(32);
        open.extend(&self.root);
        while let Some(node) = open.pop() {
            match (cover(&node.summary), &node.below) {
                (Cover::All, _) => take(&node.summary, node.count),
                (Cover::Nothing, _) => {}
                (Cover::Part, Below::Branch { children, .. }) => open.extend(&**children),
                (Cover::Part, Below::Bucket(entries)) => {
                    let alone = entries.iter().map(S::of);
                    alone.filter(|alone| cover(alone) == Cover::All).for_each(|alone| take(&alone, 1));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
