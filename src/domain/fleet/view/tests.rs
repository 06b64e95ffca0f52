//! How servers are arranged: what is alike is together. What is read off a view is tested with the decisions.

use super::*;
use crate::domain::{
    Reason,
    testing::{a_fleet, a_server, an_ensure, ram, refused},
};

/// Amounts of every size, some of them near to one another.
fn amounts() -> impl Iterator<Item = i64> {
    (0..63).flat_map(|power| {
        let amount = 1_i64 << power;
        [amount, amount + amount / 3, amount + (amount - 1) / 2, amount + (amount - 1)]
    })
}

#[test]
fn a_grade_is_the_power_of_two_and_what_follows() {
    for (amount, power, follows) in [
        (1, 1, 0),
        (2, 2, 0),
        (3, 2, 512),
        (1023, 10, 1022),
        (1024, 11, 0),
        (1025, 11, 1),
        (1536, 11, 512),
        (2047, 11, 1023),
        (2048, 12, 0),
        // Two that are so near are one.
        (2049, 12, 0),
        (2050, 12, 1),
        (i64::MAX, 63, 1023),
    ] {
        assert_eq!(grade(amount), power * 1024 + follows, "{amount}");
    }
    for nothing in [0, -1, i64::MIN] {
        assert_eq!(grade(nothing), 0);
    }
}

#[test]
fn more_is_of_no_lower_grade() {
    let mut amounts: Vec<_> = amounts().collect();
    amounts.sort_unstable();
    assert!(amounts.is_sorted_by_key(|amount| grade(*amount)));
}

#[test]
fn the_bits_of_three_grades_take_turns() {
    let turns = |amounts: Resources| -> u128 {
        let grades = [amounts.disk_mb, amounts.ram_mb, amounts.cpu_millis].map(grade);
        (0..48).map(|place| u128::from((grades[place % 3] >> (place / 3)) & 1) << place).sum()
    };
    let all: Vec<_> = amounts().collect();
    for (index, cpu_millis) in all.iter().copied().enumerate() {
        for (ram_mb, disk_mb) in [(0, 0), (all[(index * 7) % all.len()], all[(index * 11) % all.len()])] {
            let amounts = Resources { cpu_millis, ram_mb, disk_mb };
            assert_eq!(interleave(amounts), turns(amounts), "{amounts}");
            let turned = Resources { cpu_millis: disk_mb, ram_mb: cpu_millis, disk_mb: ram_mb };
            assert_eq!(interleave(turned), turns(turned), "{turned}");
        }
    }
}

#[test]
fn servers_are_arranged_by_size_then_by_what_is_free_and_never_share_a_key() {
    let state = a_server("web-1").reserved(ram(384)).state();
    let room = Room::of(&state, 0);
    let key = room.key(7);
    assert_eq!(key >> 120, u128::from(grade(8000) >> 8));
    assert_eq!((key >> 112) & 0xff, u128::from(grade(16_384) >> 8));
    assert_eq!((key >> 64) & ((1 << 48) - 1), interleave(state.free()));
    assert_eq!(key & u128::from(u64::MAX), 7);
    assert_ne!(interleave(state.free()), interleave(state.budget()));
    // By what it could hold when empty.
    let size = Size::of(&state, Standing::Open, 0);
    assert_eq!(size.key(7), (interleave(state.budget()) << 64) | 7);
}

#[test]
fn a_change_too_small_for_another_place_is_taken_up() {
    assert_eq!(grade(4096), grade(4097));
    let server = a_server("web-1").ram(4096).reserved(ram(1));
    let mut fleet = a_fleet([&server]);
    let request = an_ensure("shop").ram(4097);
    assert_eq!(refused(&fleet, &request).reason, Reason::RequestExceedsFleet);
    fleet.upsert(server.ram(4097).server);
    assert_eq!(refused(&fleet, &request).reason, Reason::InsufficientCapacity);
}

#[test]
fn an_entry_moves_where_its_key_changes_and_stays_where_it_does_not() {
    let mut trie = Trie::default();
    let mut put_with = |entry, reserved_mb, is_same| {
        let summary = Room::of(&a_server("web-1").ram(4096).reserved(ram(reserved_mb)).state(), 0);
        let entry = put(&mut trie, entry, summary.key(7), summary.clone(), |_, _| is_same);
        assert_eq!(trie.key(entry), summary.key(7));
        (entry, trie.summary(entry).free_min.ram_mb)
    };
    let (entry, _) = put_with(NONE, 0, false);
    assert_eq!(put_with(entry, 0, true), (entry, 4096));
    let (moved, free_mb) = put_with(entry, 2048, true);
    assert_eq!(free_mb, 2048);
    // Of one grade with the one before.
    assert_eq!(grade(2048), grade(2049));
    assert_eq!(put_with(moved, 2047, true), (moved, 2048), "what is the same is not written");
    assert_eq!(put_with(moved, 2047, false), (moved, 2049));
}
