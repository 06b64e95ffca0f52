//! The trie against a plain list of what is in it.

use std::collections::BTreeMap;

use proptest::{collection, prelude::*};

use super::*;
use crate::domain::testing::cases;

/// What is known of some numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Numbers {
    least: i64,
    most: i64,
}

impl Numbers {
    fn of_all<'a>(numbers: impl IntoIterator<Item = &'a i64>) -> Option<Self> {
        let mut numbers = numbers.into_iter();
        let first = *numbers.next()?;
        let of_one = Self { least: first, most: first };
        Some(
            numbers.fold(of_one, |all, number| Self {
                least: all.least.min(*number),
                most: all.most.max(*number),
            }),
        )
    }
}

/// A number, and where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number {
    place: u64,
    slot: u32,
    is: i64,
}

impl Summary for Numbers {
    type Entry = Number;

    fn place(entry: &Number) -> u64 {
        entry.place
    }

    fn slot(entry: &Number) -> u32 {
        entry.slot
    }

    fn of(entry: &Number) -> Self {
        Self { least: entry.is, most: entry.is }
    }

    fn join(&mut self, other: &Self) {
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
    }
}

fn key_of(entry: &Number) -> Key {
    key::<Numbers>(entry)
}

/// A trie of these numbers, each in the slot of its place, near to what is like it.
fn trie_of(numbers: &[i64]) -> Trie<Numbers> {
    let mut trie = Trie::default();
    for (slot, number) in (0..).zip(numbers) {
        trie.insert(Number { place: number.unsigned_abs(), slot, is: *number });
    }
    trie
}

fn bits(key: Key, from: u32, to: u32) -> Vec<usize> {
    (from..to).map(|bit| side(key, bit)).collect()
}

/// Checks what is below a node, and hands its entries over.
fn check(node: &Node<Numbers>, entries: &mut BTreeMap<Key, i64>) {
    let mut mine = BTreeMap::new();
    match &node.below {
        Below::Bucket(bucket) => {
            assert!(bucket.len() <= MOST, "a bucket holds no more than it may");
            mine.extend(bucket.iter().map(|entry| (key_of(entry), entry.is)));
            assert_eq!(mine.len(), bucket.len());
        }
        Below::Branch { prefix, bit, children } => {
            for (place, child) in children.iter().enumerate() {
                let mut below = BTreeMap::new();
                check(child, &mut below);
                for key in below.keys() {
                    assert_eq!(side(*key, *bit), place, "the children differ in the bit");
                    assert_eq!(bits(*key, 0, *bit), bits(*prefix, 0, *bit), "all agree up to the bit");
                }
                mine.extend(below);
            }
            assert!(mine.len() > TOGETHER, "so few are one bucket");
        }
    }
    assert_eq!(node.count, mine.len(), "a node knows how many are below it");
    assert_eq!(Some(&node.summary), Numbers::of_all(mine.values()).as_ref(), "a node says what is below it");
    entries.extend(mine);
}

fn assert_holds(trie: &Trie<Numbers>, expected: &BTreeMap<Key, i64>) {
    let mut entries = BTreeMap::new();
    if let Some(root) = &trie.root {
        check(root, &mut entries);
        assert!(!entries.is_empty(), "nothing is below no node");
    }
    assert_eq!(&entries, expected);
    assert_eq!(trie.count(), expected.len());
}

#[test]
fn bits_are_counted_from_the_highest() {
    assert_eq!(bits((1 << 63, 0), 0, 3), [1, 0, 0]);
    assert_eq!(bits((1 << 61, 0), 0, 3), [0, 0, 1]);
    assert_eq!(bits((5, 0), 61, 64), [1, 0, 1]);
    assert_eq!(bits((0, 1 << 31), 63, 66), [0, 1, 0]);
    assert_eq!(bits((0, 5), 93, 96), [1, 0, 1]);
    assert_eq!(key_of(&Number { place: 7, slot: 3, is: 0 }), (7, 3));
}

#[test]
fn a_search_in_nothing_or_for_nothing_looks_at_nothing() {
    let never = |_: u32| -> Verdict { panic!("nothing is looked at") };
    assert_eq!(Trie::<Numbers>::default().least(1, |_| Some(0), never), Some(vec![]));
    assert_eq!(trie_of(&[1, 2]).least(0, |_| Some(0), never), Some(vec![]));
    assert_eq!(trie_of(&[1, 2]).least(2, |_| None::<i64>, never), Some(vec![]));
    Trie::<Numbers>::default().gather(|_| Cover::All, |_, _| panic!("there is nothing"));
}

#[test]
fn a_search_looks_at_the_most_promising_first_and_at_no_more_than_it_must() {
    let trie = trie_of(&(1..=64).collect::<Vec<_>>());
    // Wherever the best one is.
    for of in [|numbers: &Numbers| numbers.least, |numbers: &Numbers| -numbers.most] {
        for most in [1, 3] {
            let mut looked_at = 0;
            let found = trie.least(
                most,
                |numbers| Some(of(numbers)),
                |_| {
                    looked_at += 1;
                    Verdict::Take
                },
            );
            assert_eq!((found.unwrap().len(), looked_at), (most, most));
        }
    }
}

#[test]
fn a_search_that_gives_up_has_no_result() {
    let trie = trie_of(&[1, 2, 3]);
    let verdict = |slot| if slot == 1 { Verdict::GiveUp } else { Verdict::Take };
    assert_eq!(trie.least(1, |numbers| Some(numbers.least), verdict), Some(vec![(1, 0)]));
    assert_eq!(trie.least(2, |numbers| Some(numbers.least), verdict), None);
}

#[test]
fn what_is_gathered_is_handed_over_by_branches_and_of_a_bucket_in_part_one_by_one() {
    let trie = trie_of(&(0..64).collect::<Vec<_>>());
    let gathered = |from: i64| {
        let cover = |numbers: &Numbers| match (numbers.least >= from, numbers.most >= from) {
            (true, _) => Cover::All,
            (_, true) => Cover::Part,
            _ => Cover::Nothing,
        };
        let mut counts = Vec::new();
        trie.gather(cover, |_, count| counts.push(count));
        counts.sort_unstable();
        counts
    };
    assert_eq!(gathered(0), [64]);
    assert!(gathered(64).is_empty());
    assert_eq!(gathered(32), [32]);
    assert_eq!(gathered(33), [1, 1, 1, 4, 8, 16]);
}

#[test]
fn a_bucket_is_divided_once_it_holds_too_many_and_put_together_once_few_are_left() {
    let is_bucket = |trie: &Trie<Numbers>| matches!(trie.root.as_ref().unwrap().below, Below::Bucket(_));
    assert!(is_bucket(&trie_of(&[0, 1, 2, 3])));
    let mut trie = trie_of(&[0, 1, 2, 3, 4]);
    assert!(!is_bucket(&trie), "the last one is by itself");
    for (number, together) in [(3, false), (2, false), (1, true)] {
        trie.remove(&Number { place: number, slot: u32::try_from(number).unwrap(), is: 0 });
        assert_eq!(is_bucket(&trie), together, "without {number}");
    }
}

#[derive(Debug, Clone)]
enum Change {
    Insert(u64, i64),
    Remove(prop::sample::Index),
    Replace(prop::sample::Index, u64, i64),
}

fn arbitrary_change() -> impl Strategy<Value = Change> {
    // Some alike, some not.
    let high = || prop_oneof![0..8u64, any::<u64>()];
    prop_oneof![
        4 => (high(), 0..100i64).prop_map(|(high, number)| Change::Insert(high, number)),
        2 => any::<prop::sample::Index>().prop_map(Change::Remove),
        2 => (any::<prop::sample::Index>(), high(), 0..100i64)
            .prop_map(|(which, high, number)| Change::Replace(which, high, number)),
    ]
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_trie_holds_what_was_put_in_and_not_taken_out_and_finds_the_least_of_it(
        changes in collection::vec(arbitrary_change(), 0..60), most in 1..5usize,
    ) {
        let mut trie = Trie::default();
        let mut entries: Vec<Number> = Vec::new();
        for (next, change) in (0..).zip(changes) {
            match change {
                Change::Insert(high, number) => {
                    let entry = Number { place: high, slot: next, is: number };
                    trie.insert(entry);
                    entries.push(entry);
                }
                Change::Remove(which) if !entries.is_empty() => {
                    trie.remove(&entries.swap_remove(which.index(entries.len())));
                }
                Change::Replace(which, high, number) if !entries.is_empty() => {
                    let entry = which.get_mut(&mut entries);
                    let before = std::mem::replace(entry, Number { place: high, slot: entry.slot, is: number });
                    trie.replace(&before, *entry);
                }
                Change::Remove(_) | Change::Replace(..) => {}
            }
            assert_holds(&trie, &entries.iter().map(|entry| (key_of(entry), entry.is)).collect());
        }
        let mut even: Vec<_> = entries.iter().map(|entry| (entry.is, entry.slot)).collect();
        even.retain(|(number, _)| number % 2 == 0);
        even.sort_unstable();
        let numbers: BTreeMap<_, _> = entries.iter().map(|entry| (entry.slot, entry.is)).collect();
        let verdict = |slot| if numbers[&slot] % 2 == 0 { Verdict::Take } else { Verdict::Leave };
        let found = trie.least(most, |numbers| Some(numbers.least), verdict).unwrap();
        // Which of those that are alike is not told.
        let least = |found: &[(i64, u32)]| found.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        even.truncate(most);
        prop_assert_eq!(least(&found), least(&even));
    }
}
