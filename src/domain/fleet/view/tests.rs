//! How servers are arranged: what is alike is together. What is read off a view is tested with the decisions.

use super::*;
use crate::domain::{
    Reason,
    testing::{a_fleet, a_server, an_ensure, chosen, handle, ram, refused},
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
    let turns = |amounts: Resources| -> u64 {
        let grades = [amounts.disk_mb, amounts.ram_mb, amounts.cpu_millis].map(grade);
        (0..48).map(|place| ((grades[place % 3] >> (place / 3)) & 1) << place).sum()
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
fn servers_are_arranged_by_size_then_by_what_is_free() {
    let state = a_server("web-1").reserved(ram(384)).state();
    let member = Member::of(7, &Entry { state: &state, rank: 0, stale: false });
    let place = Room::place(&member);
    assert_eq!(place >> 56, grade(8000) >> 8);
    assert_eq!((place >> 48) & 0xff, grade(16_384) >> 8);
    assert_eq!(place & ((1 << 48) - 1), interleave(state.free()));
    assert_eq!(Room::slot(&member), 7);
    assert_ne!(interleave(state.free()), interleave(state.budget()));
    // By what it could hold when empty.
    assert_eq!(Size::place(&member), interleave(state.budget()));
    assert_eq!(Size::slot(&member), 7);
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
fn a_server_that_takes_the_place_of_another_is_known_by_its_own_handle() {
    let mut fleet = a_fleet([&a_server("a"), &a_server("b")]);
    let request = an_ensure("shop");
    assert_eq!(chosen(&fleet, &request), "a");
    // Both changes come between two looks.
    fleet.remove(&handle("a"));
    fleet.upsert(a_server("c").server);
    assert_eq!(chosen(&fleet, &request), "b");
}
