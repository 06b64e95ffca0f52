//! Attempts: what was taken back was never there.

use proptest::{collection, prelude::*};

use super::*;
use crate::domain::{
    event::Served,
    testing::{
        arbitrary::{arbitrary_ensure, arbitrary_servers},
        cases,
        queue::Waited,
    },
};

proptest! {
    #![proptest_config(cases(256))]

    /// Also where ports rest, where projects are refused, and where an attempt was kept before.
    #[test]
    fn what_is_taken_back_was_never_there(
        servers in arbitrary_servers(),
        before in collection::vec(arbitrary_ensure(), 0..6),
        kept in collection::vec(arbitrary_ensure(), 0..3),
        attempted in collection::vec(arbitrary_ensure(), 0..8),
    ) {
        let mut ledger = Ledger::of(&servers);
        for request in &before {
            let _ = ledger.ensure(request);
        }
        let placed: Vec<_> = ledger.projects.keys().cloned().collect();
        for id in placed.iter().step_by(2) {
            ledger.release_modules(id, &[]);
        }
        ledger.fleet.attempt();
        for request in &kept {
            let _ = ledger.ensure(request);
        }
        ledger.fleet.keep_attempt();
        let as_kept = ledger.fleet.clone();
        ledger.fleet.attempt();
        for request in &attempted {
            let _ = ledger.ensure(request);
        }
        prop_assert!(ledger.fleet.take_back_attempt());
        assert_same(&ledger.fleet, &as_kept);
        prop_assert_eq!(&ledger.fleet.refusals, &as_kept.refusals);
    }
}

#[test]
fn a_release_cannot_be_taken_back() {
    let mut ledger = Ledger::of([&a_server("web-1")]);
    ledger.ensure(&an_ensure("shop")).unwrap();
    ledger.fleet.attempt();
    ledger.release("shop", &[]);
    assert!(!ledger.fleet.take_back_attempt());
}

#[test]
fn there_is_an_attempt_until_it_is_kept_or_taken_back() {
    let mut fleet = a_fleet(&[a_server("web-1")]);
    assert!(!fleet.is_attempting());
    assert!(fleet.take_back_attempt(), "there is nothing to take back");
    fleet.attempt();
    assert!(fleet.is_attempting());
    fleet.keep_attempt();
    assert!(!fleet.is_attempting());
    fleet.attempt();
    assert!(fleet.take_back_attempt());
    assert!(!fleet.is_attempting());
}

#[test]
fn what_changes_the_line_cannot_be_taken_back() {
    let mut ledger = Ledger::of([&a_server("web-1").ram(1024)]);
    ledger.ensure(&an_ensure("shop").ram(1024)).unwrap();
    let waits = an_ensure("wiki").ram(1024);
    assert!(matches!(ledger.wait(&waits, 600), Waited::Waits));
    ledger.settle(|_, _| {});
    // A project that stands in line is placed by a call of its own.
    ledger.fleet.attempt();
    ledger.ensure(&an_ensure("wiki").ram(0).disk(0)).unwrap();
    assert!(!ledger.fleet.take_back_attempt());
    // One is served that stands in no line any more.
    let served = Some(Served { arrival: 1, since: NOW });
    ledger.fleet.attempt();
    ledger.ensure_served(&an_ensure("blog").ram(0).disk(0), served).unwrap();
    assert!(!ledger.fleet.take_back_attempt());
}
