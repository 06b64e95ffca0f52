//! Who is served, who is refused and who stays, step by step.

use super::*;
use crate::domain::{
    line::Settling,
    testing::{a_fleet, a_module, ram},
};

#[test]
fn whoever_cannot_be_placed_after_all_stays_and_is_not_tried_again_before_a_server_changes() {
    let mut ledger = full();
    for name in ["first", "second", "third"] {
        stand(&mut ledger, name, 1024);
    }
    for name in ["a-0", "a-1", "a-2", "a-3"] {
        ledger.release(name, &[]);
    }
    let context = ledger.context();
    let known = |id: &ProjectId| Some(ledger.project(id));
    let mut fleet = ledger.fleet.clone();
    let mut settling = Settling::begin();
    let mut tried = Vec::new();
    // Nothing comes of any step.
    for _ in 0..3 {
        match settling.next(&mut fleet, &known, &context) {
            Step::Serve(waiter) => tried.push(waiter.project_id.to_string()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tried, ["first", "second", "third"]);
    assert!(matches!(settling.next(&mut fleet, &known, &context), Step::Settled));
    // Nor when the line is settled next, before a server changes that has room.
    fleet.line_mut().touch(&handle("b"));
    assert!(matches!(Settling::begin().next(&mut fleet, &known, &context), Step::Settled));
    fleet.line_mut().touch(&handle("a"));
    match Settling::begin().next(&mut fleet, &known, &context) {
        Step::Serve(waiter) => assert_eq!(waiter.project_id, project("first")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_port_that_is_taken_on_one_server_is_waited_for_on_the_next() {
    let request = an_ensure("first").ram(1024).disk(0).with(a_module("web").at(8000));
    let mut ledger = full();
    // `b-0` has the port on `b`; on `a` it was that of `a-0`, which makes way for one with another.
    ledger.release("a-0", &[]);
    ledger.ensure(&an_ensure("other").ram(1024).disk(0).on("a")).unwrap();
    assert!(matches!(ledger.wait(&request, 600), Waited::Waits));
    assert_eq!(settle(&mut ledger), []);
    // `b` has room now, and its port is another's.
    ledger.release("b-3", &[]);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(places(&ledger), ["first"]);
    // Also where everyone is looked at anew, and where the place was only read.
    ledger.put_server(a_server("c").ram(100).server);
    assert_eq!(settle(&mut ledger), []);
    let waiter = ledger.fleet.line().get(&project("first")).unwrap().clone();
    ledger.fleet.line_mut().load(waiter);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(places(&ledger), ["first"]);
    ledger.release("other", &[]);
    assert_eq!(settle(&mut ledger), [served("first")]);
    assert_eq!(ledger.held_by("first").placement.unwrap().server_handle, handle("a"));
}

#[test]
fn who_was_placed_elsewhere_meanwhile_is_refused() {
    let mut ledger = full();
    ledger.put(&a_server("c").ram(1024));
    assert!(matches!(ledger.wait(&an_ensure("first").ram(1024).disk(0).on("b"), 600), Waited::Waits));
    assert_eq!(settle(&mut ledger), []);
    ledger.ensure(&an_ensure("first").ram(1024).disk(0).on("c")).unwrap();
    assert_eq!(settle(&mut ledger), [left("first")]);
    let Some(Committed::Entry(entry)) = ledger.log.last() else { panic!("{:?}", ledger.log) };
    let Operation::LeftLine(LeftLine { cause: LeaveCause::Refused(refused), .. }) = &entry.operation else {
        panic!("{entry:?}")
    };
    assert_eq!(refused.reason, Reason::PlacedElsewhere);
}

#[test]
fn who_was_placed_by_another_call_grows_there_at_once_where_there_is_room() {
    let servers = [a_server("a").ram(1024).label("disk", "ssd"), a_server("b").ram(4096)];
    let mut ledger = Ledger::of(&servers);
    ledger.ensure(&an_ensure("there").ram(1024).disk(0).on("a")).unwrap();
    let request = an_ensure("first").ram(1024).disk(0).labelled("disk", "ssd");
    assert!(matches!(ledger.wait(&request, 600), Waited::Waits));
    assert_eq!(settle(&mut ledger), []);
    // Where it is placed already it may be whatever its labels.
    ledger.ensure(&an_ensure("first").ram(512).disk(0)).unwrap();
    assert_eq!(settle(&mut ledger), [served("first")]);
    assert_eq!(ledger.reserved_on("b"), ram(1024));
}

#[test]
fn a_place_that_was_read_is_refused_where_it_can_never_be_filled() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    let waiter = ledger.fleet.line().get(&project("large")).unwrap().clone();
    let mut fleet = a_fleet(&[a_server("a").ram(4095)]);
    fleet.line_mut().load(waiter);
    let mut ledger = Ledger { fleet, ..Ledger::default() };
    assert_eq!(settle(&mut ledger), [left("large")]);
}
