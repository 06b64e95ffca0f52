//! What has the line looked at anew, and what does not.

use time::Duration;

use super::*;
use crate::domain::{
    ServerStatus,
    line::Line,
    request::PortInUseReport,
    testing::{a_fleet, a_report, module, port, ram},
};

/// Whether nobody need look at the line, so many seconds from now.
fn is_settled_in(ledger: &Ledger, seconds: i64) -> bool {
    ledger.fleet.line().is_settled(ledger.now() + Duration::seconds(seconds))
}

fn is_settled(ledger: &Ledger) -> bool {
    is_settled_in(ledger, 0)
}

/// The full servers, and one in line for a while.
fn one_in_line() -> Ledger {
    let mut ledger = full();
    stand(&mut ledger, "first", 1024);
    ledger
}

#[test]
fn the_line_is_as_long_as_many_wait() {
    let mut ledger = full();
    assert!(ledger.fleet.line().is_empty());
    for (index, name) in ["first", "second"].into_iter().enumerate() {
        stand(&mut ledger, name, 1024);
        assert_eq!(ledger.fleet.line().len(), index + 1);
        assert!(!ledger.fleet.line().is_empty());
    }
    ledger.leave(&project("first"));
    assert_eq!(ledger.fleet.line().len(), 1, "its place is kept, and it does not wait");
    ledger.leave(&project("second"));
    assert!(ledger.fleet.line().is_empty());
    assert!(ledger.fleet.line().get(&project("second")).is_some());
}

#[test]
fn the_next_end_is_that_of_who_is_out_of_the_line_first() {
    let mut ledger = full();
    assert_eq!(ledger.fleet.line().next_end(), None);
    stand(&mut ledger, "first", 1024);
    assert_eq!(ledger.fleet.line().next_end(), Some(NOW + Duration::seconds(600)));
    ledger.clock += 10;
    stand(&mut ledger, "second", 1024);
    assert_eq!(ledger.fleet.line().next_end(), Some(NOW + Duration::seconds(600)));
    // Whoever hung up is out of it before.
    ledger.leave(&project("second"));
    assert_eq!(ledger.fleet.line().next_end(), Some(NOW + Duration::seconds(40)));
}

#[test]
fn a_line_is_settled_until_the_time_of_one_in_it_is_over() {
    assert!(Line::default().is_settled(NOW));
    let ledger = one_in_line();
    assert!(is_settled(&ledger));
    assert!(is_settled_in(&ledger, 599));
    assert!(!is_settled_in(&ledger, 600));
    assert!(!is_settled_in(&ledger, 601));
}

#[test]
fn a_line_is_to_be_settled_where_a_server_may_have_got_room() {
    let mut ledger = one_in_line();
    ledger.release("b-0", &[]);
    assert!(!is_settled(&ledger));
    assert_eq!(settle(&mut ledger), [served("first")]);
    assert!(is_settled(&ledger));
}

#[test]
fn a_line_is_to_be_settled_where_a_server_went() {
    let mut ledger = full();
    ledger.put(&a_server("c").ram(1024));
    ledger.ensure(&an_ensure("c-0").ram(1024).disk(0).on("c")).unwrap();
    ledger.release("c-0", &[]);
    stand(&mut ledger, "large", 4096);
    assert!(is_settled(&ledger));
    ledger.remove(&handle("c")).unwrap();
    assert!(!is_settled(&ledger), "whoever can never be placed any more is to be told");
    assert_eq!(settle(&mut ledger), []);
    assert!(is_settled(&ledger));
}

#[test]
fn a_line_is_to_be_settled_where_its_first_is_another() {
    let mut ledger = one_in_line();
    stand(&mut ledger, "second", 1024);
    ledger.leave(&project("second"));
    settle(&mut ledger);
    // What is kept is nobody's any more.
    ledger.leave(&project("first"));
    assert!(!is_settled(&ledger));
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(ledger.fleet.line().kept_for(), None);
    assert!(is_settled(&ledger), "whoever hung up is not looked at");
}

#[test]
fn a_line_is_to_be_settled_where_someone_took_a_place() {
    let mut ledger = one_in_line();
    let second = an_ensure("second").ram(1024).disk(0);
    assert!(matches!(ledger.wait(&second, 600), Waited::Waits));
    assert!(!is_settled(&ledger));
    settle(&mut ledger);
    assert!(is_settled(&ledger));
}

#[test]
fn nobody_looks_at_a_line_in_which_nobody_waits() {
    let mut ledger = full();
    settle(&mut ledger);
    ledger.release("a-0", &[]);
    ledger.put_server(a_server("a").ram(8192).server);
    ledger.put_server(a_server("c").server);
    assert!(is_settled(&ledger));
}

#[test]
fn a_refusal_of_one_in_line_changes_nothing_there() {
    let mut ledger = one_in_line();
    ledger.ensure(&an_ensure("first").ram(99_999)).unwrap_err();
    assert!(is_settled(&ledger));
    assert_eq!(places(&ledger), ["first"]);
}

#[test]
fn one_in_line_that_is_served_by_another_call_leaves_it_once_it_holds_all_that_it_waits_for() {
    let mut ledger = full();
    // It waits to grow by what fits nowhere; a port fits.
    assert!(matches!(ledger.wait(&an_ensure("a-0").ram(3072).module("web"), 600), Waited::Waits));
    settle(&mut ledger);
    ledger.ensure(&an_ensure("a-0").module("web")).unwrap();
    assert_eq!(places(&ledger), ["a-0"], "that is not all of it");
    assert!(!is_settled(&ledger), "and what it lacks is another amount now");
    assert_eq!(settle(&mut ledger), []);
    // Another call takes what is kept for it before the line is settled.
    ledger.release("a-1", &[]);
    ledger.release("a-2", &[]);
    ledger.ensure(&an_ensure("a-0").ram(3072)).unwrap();
    assert_eq!(settle(&mut ledger), [left("a-0")]);
    let Some(Committed::Entry(entry)) = ledger.log.last() else { panic!("{:?}", ledger.log) };
    let Operation::LeftLine(LeftLine { cause, .. }) = &entry.operation else { panic!("{entry:?}") };
    assert_eq!(*cause, LeaveCause::Satisfied);
}

#[test]
fn a_place_that_was_read_is_looked_at_as_one_that_was_taken() {
    let waiter = one_in_line().fleet.line().get(&project("first")).unwrap().clone();
    let mut fleet = a_fleet(&[a_server("a").ram(1024).reserved(ram(1024))]);
    fleet.line_mut().load(waiter.clone());
    assert_eq!(fleet.line().waiters().collect::<Vec<_>>(), [&waiter]);
    assert!(!fleet.line().is_settled(NOW));
    let mut ledger = Ledger { fleet, ..Ledger::default() };
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(ledger.fleet.line().kept_for(), Some((&project("first"), &handle("a"))));
    // And so where there is room.
    let mut fleet = a_fleet(&[a_server("a").ram(1024)]);
    fleet.line_mut().load(waiter);
    let mut ledger = Ledger { fleet, ..Ledger::default() };
    assert_eq!(settle(&mut ledger), [served("first")]);
}

/// The module `web` of the project `there` finds its port in use.
fn set_aside_8000(ledger: &mut Ledger) {
    let report = PortInUseReport {
        project_id: project("there"),
        module: module("web"),
        port: port(8000),
        start_port: port(8000),
        detail: String::new(),
    };
    ledger.report_port_in_use(&report).unwrap();
}

#[test]
fn a_port_that_is_free_again_by_the_clock_alone_is_given_to_who_waits_for_it() {
    let mut ledger = Ledger::of(&[a_server("a").port_range(8000, 8001)]);
    ledger.ensure(&an_ensure("there").module("web")).unwrap();
    set_aside_8000(&mut ledger);
    assert!(matches!(ledger.wait(&an_ensure("first"), 7200), Waited::Waits));
    settle(&mut ledger);
    assert_eq!(reason_now(&ledger, "first"), Reason::PortsExhausted);
    ledger.clock += 3599;
    assert_eq!(settle(&mut ledger), []);
    ledger.clock += 1;
    assert!(is_settled(&ledger), "no operation tells of it");
    assert_eq!(ledger.fleet.next_set_aside_end(), Some(ledger.now()));
    assert_eq!(settle(&mut ledger), [served("first")]);
    assert_eq!(ledger.fleet.next_set_aside_end(), None);
}

/// What it lacked when it joined is not what it lacks now.
#[test]
fn a_port_that_is_free_again_by_the_clock_alone_is_given_to_who_came_for_want_of_room() {
    let mut ledger = Ledger::of(&[a_server("a").ram(1024).port_range(8000, 8001)]);
    ledger.ensure(&an_ensure("there").module("web").ram(1024)).unwrap();
    set_aside_8000(&mut ledger);
    let two = an_ensure("first").module("a").module("b").ram(1024);
    assert!(matches!(ledger.wait(&two, 7200), Waited::Waits));
    assert_eq!(ledger.fleet.line().get(&project("first")).unwrap().reason, Reason::InsufficientCapacity);
    ledger.release("there", &[]);
    assert_eq!(settle(&mut ledger), [], "one of the two ports is set aside");
    ledger.clock += 3600;
    assert_eq!(settle(&mut ledger), [served("first")]);
}

#[test]
fn only_a_report_that_is_late_is_waited_for_on_the_server_of_a_project() {
    let mut ledger = Ledger::of(&[a_server("a").reported(0, ram(0), &[])]);
    ledger.ensure(&an_ensure("shop").ram(1024)).unwrap();
    ledger.clock += 301;
    let grown = an_ensure("shop").ram(2048);
    assert!(matches!(ledger.wait(&grown, 600), Waited::Waits));
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(reason_now(&ledger, "shop"), Reason::BoundServerNotAdmissible);
    ledger.put_server(a_server("a").status(ServerStatus::Maintenance).server);
    assert_eq!(
        settle(&mut ledger),
        [left("shop")],
        "of a server that is not READY it is not known when it will be"
    );
    assert!(matches!(ledger.wait(&grown, 600), Waited::Refused));
    ledger.put_server(a_server("a").server);
    assert!(matches!(ledger.wait(&grown, 600), Waited::Waits));
    ledger.observe(&handle("a"), a_report(ledger.now(), ram(0), &[]));
    assert_eq!(settle(&mut ledger), [served("shop")]);
}
