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
    count: usize,
}

impl Numbers {
    fn of(number: i64) -> Self {
        Self { least: number, most: number, count: 1 }
    }
}

impl Summary for Numbers {
    fn join(&mut self, other: &Self) {
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
        self.count += other.count;
    }
}

/// A key whose upper half is `high`.
fn key(high: u64, slot: u32) -> u128 {
    (u128::from(high) << 64) | u128::from(slot)
}

/// A trie of these numbers, each in the slot of its place, near to what is like it.
fn trie_of(numbers: &[i64]) -> Trie<Numbers> {
    let mut trie = Trie::default();
    for (slot, number) in (0..).zip(numbers) {
        trie.insert(key(number.unsigned_abs(), slot), Numbers::of(*number));
    }
    trie
}

fn bits(key: u128, from: u32, to: u32) -> Vec<usize> {
    (from..to).map(|bit| side(key, bit)).collect()
}

/// Checks what is below a node, and hands its entries over, from left to right.
fn check(trie: &Trie<Numbers>, at: u32, entries: &mut Vec<(u128, Numbers)>) {
    let node = trie.node(at);
    let Some(children) = node.children else {
        entries.push((node.key, node.summary.clone()));
        return;
    };
    let first = entries.len();
    let mut summary: Option<Numbers> = None;
    for (place, child) in children.into_iter().enumerate() {
        assert_eq!(trie.node(child).parent, at, "a child knows its parent");
        let mine = entries.len();
        check(trie, child, entries);
        for (key, _) in &entries[mine..] {
            assert_eq!(side(*key, node.bit), place, "the children differ in the bit");
        }
        match &mut summary {
            Some(summary) => summary.join(&trie.node(child).summary),
            None => summary = Some(trie.node(child).summary.clone()),
        }
    }
    assert_eq!(Some(&node.summary), summary.as_ref(), "a node says what is below it");
    for (key, _) in &entries[first..] {
        assert_eq!(bits(*key, 0, node.bit), bits(node.key, 0, node.bit), "all agree up to the bit");
    }
}

fn assert_holds(trie: &Trie<Numbers>, expected: &BTreeMap<u128, i64>) {
    let mut entries = Vec::new();
    if trie.root == NONE {
        assert!(expected.is_empty());
    } else {
        assert_eq!(trie.node(trie.root).parent, NONE);
        check(trie, trie.root, &mut entries);
    }
    let expected: Vec<_> = expected.iter().map(|(key, number)| (*key, Numbers::of(*number))).collect();
    assert_eq!(entries, expected);
    let branches = entries.len().saturating_sub(1);
    assert_eq!(trie.nodes.len() - trie.vacant.len(), entries.len() + branches, "and no node beside them");
}

#[test]
fn bits_are_counted_from_the_highest() {
    assert_eq!(bits(1 << 127, 0, 3), [1, 0, 0]);
    assert_eq!(bits(1 << 125, 0, 3), [0, 0, 1]);
    assert_eq!(bits(5, 125, 128), [1, 0, 1]);
    assert_eq!(slot(key(7, 3)), 3);
}

#[test]
fn a_search_in_nothing_or_for_nothing_looks_at_nothing() {
    let never = |_: u32| -> Verdict { panic!("nothing is looked at") };
    assert_eq!(Trie::<Numbers>::default().least(1, |_| Some(0), never), Some(vec![]));
    assert_eq!(trie_of(&[1, 2]).least(0, |_| Some(0), never), Some(vec![]));
    assert_eq!(trie_of(&[1, 2]).least(2, |_| None::<i64>, never), Some(vec![]));
    Trie::<Numbers>::default().gather(|_| Cover::All, |_| panic!("there is nothing"));
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
fn what_is_gathered_is_handed_over_in_as_few_summaries_as_there_need_be() {
    let trie = trie_of(&(0..64).collect::<Vec<_>>());
    let gathered = |from: i64| {
        let cover = |numbers: &Numbers| match (numbers.least >= from, numbers.most >= from) {
            (true, _) => Cover::All,
            (_, true) => Cover::Part,
            _ => Cover::Nothing,
        };
        let mut counts = Vec::new();
        trie.gather(cover, |numbers| counts.push(numbers.count));
        counts.sort_unstable();
        counts
    };
    assert_eq!(gathered(0), [64]);
    assert!(gathered(64).is_empty());
    assert_eq!(gathered(32), [32]);
    assert_eq!(gathered(33), [1, 2, 4, 8, 16]);
}

#[derive(Debug, Clone)]
enum Change {
    Insert(u64, i64),
    Remove(prop::sample::Index),
    Set(prop::sample::Index, i64),
}

fn arbitrary_change() -> impl Strategy<Value = Change> {
    // Some alike, some not.
    let high = prop_oneof![0..8u64, any::<u64>()];
    prop_oneof![
        4 => (high, 0..100i64).prop_map(|(high, number)| Change::Insert(high, number)),
        2 => any::<prop::sample::Index>().prop_map(Change::Remove),
        1 => (any::<prop::sample::Index>(), 0..100i64).prop_map(|(which, number)| Change::Set(which, number)),
    ]
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_trie_holds_what_was_put_in_and_not_taken_out_and_finds_the_least_of_it(
        changes in collection::vec(arbitrary_change(), 0..60), most in 1..5usize,
    ) {
        let mut trie = Trie::default();
        let (mut expected, mut entries) = (BTreeMap::new(), Vec::new());
        for (slot, change) in (0..).zip(changes) {
            match change {
                Change::Insert(high, number) => {
                    let key = key(high, slot);
                    let entry = trie.insert(key, Numbers::of(number));
                    prop_assert_eq!((trie.key(entry), trie.summary(entry)), (key, &Numbers::of(number)));
                    entries.push((entry, key));
                    expected.insert(key, number);
                }
                Change::Remove(which) if !entries.is_empty() => {
                    let (entry, key) = entries.swap_remove(which.index(entries.len()));
                    trie.remove(entry);
                    expected.remove(&key);
                }
                Change::Set(which, number) if !entries.is_empty() => {
                    let (entry, key) = entries[which.index(entries.len())];
                    trie.set_summary(entry, Numbers::of(number));
                    expected.insert(key, number);
                }
                Change::Remove(_) | Change::Set(..) => {}
            }
            assert_holds(&trie, &expected);
        }
        let mut even: Vec<_> = expected.iter().map(|(key, number)| (*number, slot(*key))).collect();
        even.retain(|(number, _)| number % 2 == 0);
        even.sort_unstable();
        let numbers: BTreeMap<_, _> = expected.iter().map(|(key, number)| (slot(*key), *number)).collect();
        let verdict = |slot| if numbers[&slot] % 2 == 0 { Verdict::Take } else { Verdict::Leave };
        let found = trie.least(most, |numbers| Some(numbers.least), verdict).unwrap();
        // Which of those that are alike is not told.
        let least = |found: &[(i64, u32)]| found.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        even.truncate(most);
        prop_assert_eq!(least(&found), least(&even));
    }
}
