//! The time of decisions.

use super::*;
use crate::domain::{Project, placement::decide, testing::context_at};

fn at(seconds: i64) -> OffsetDateTime {
    NOW + Duration::seconds(seconds)
}

/// A fleet that was read at second 2, when port 8000 had rested until second 1.
fn read_late() -> Fleet {
    let mut fleet = Fleet::default();
    fleet.upsert(a_server("web-1").server);
    fleet.load_port(&handle("web-1"), Protocol::Tcp, port(8000), PortStanding::Resting(at(1)), at(2));
    fleet
}

#[test]
fn a_decision_is_of_no_time_before_what_was_read() {
    let fleet = read_late();
    assert_eq!(fleet.not_before(at(0)), at(2));
    assert_eq!(fleet.not_before(at(3)), at(3));
    // So that it takes the port at a time at which nobody doubts that it has rested.
    let mut told_earlier = Fleet::default();
    told_earlier.upsert(a_server("web-1").server);
    told_earlier.load_port(&handle("web-1"), Protocol::Tcp, port(8000), PortStanding::Resting(at(1)), at(0));
    let decide_at = |fleet: &Fleet, now| {
        let decision =
            decide(fleet, &Project::unplaced(project("shop")), &an_ensure("shop"), &context_at(now));
        decision.unwrap().port_numbers()
    };
    let now = fleet.not_before(at(0));
    assert_eq!(decide_at(&fleet, now), decide_at(&told_earlier, now));
}

#[test]
fn a_decision_is_of_no_time_before_what_was_folded() {
    let mut fleet = Fleet::default();
    assert_eq!(fleet.not_before(at(-100)), at(-100));
    fleet.apply(&refusal_of("shop", Reason::NoServers, 4));
    fleet.apply(&refusal_of("wiki", Reason::NoServers, 3));
    assert_eq!(fleet.not_before(at(0)), at(4));
}

#[test]
fn a_clock_that_was_set_back_is_believed() {
    let fleet = read_late();
    let far = at(2) - CLOCK_SKEW;
    assert_eq!(fleet.not_before(far), at(2));
    let farther = far - Duration::milliseconds(1);
    assert_eq!(fleet.not_before(farther), farther);
}

#[test]
fn what_comes_to_nothing_takes_no_time() {
    let mut fleet = read_late();
    fleet.attempt();
    fleet.apply(&refusal_of("shop", Reason::NoServers, 4));
    assert_eq!(fleet.not_before(at(0)), at(4));
    assert!(fleet.take_back_attempt());
    assert_eq!(fleet.not_before(at(0)), at(2));
}
