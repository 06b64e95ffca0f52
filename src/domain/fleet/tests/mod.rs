//! The fold: what each operation does to it.

mod attempts;
mod clock;
mod histories;

use std::{cmp::Reverse, collections::BTreeMap};

use time::Duration;

use super::*;
use crate::domain::{
    Disposition,
    event::{LogEntry, Operation, Refused, Requested, ServerChange},
    testing::{
        Ledger, NOW, TestServer, a_fleet, a_report, a_server, an_ensure, context, decide_new, handle, port,
        project, ram,
    },
};

/// All of a server that decisions depend on.
type Standing<'a> =
    (&'a Server, Resources, i64, Option<&'a Observation>, bool, &'a crate::domain::ports::ServerPorts);

fn standing(fleet: &Fleet) -> BTreeMap<&ServerHandle, Standing<'_>> {
    fleet
        .iter()
        .map(|state| {
            let ServerState { server, reserved, placement_count, observed, usage_stale, ports, .. } = state;
            (&server.handle, (server, *reserved, *placement_count, observed.as_ref(), *usage_stale, ports))
        })
        .collect()
}

/// Two fleets that hold the same, in the same order.
fn assert_same(a: &Fleet, b: &Fleet) {
    assert_eq!(standing(a), standing(b));
    assert_eq!(a.sequence(), b.sequence());
    assert_eq!(by_free_ram(a), by_free_ram(b));
}

/// What the index says of the servers that admit work, the most free RAM first.
fn by_free_ram(fleet: &Fleet) -> Vec<&str> {
    let read = |view: &View| {
        view.rooms.least(
            usize::MAX,
            |room| Some((Reverse(room.free_max.ram_mb), room.rank)),
            |_| Verdict::Take,
        )
    };
    match fleet.read_index(&BTreeMap::new(), None, &context(), read) {
        Among::View(Some(found)) => {
            found.iter().map(|(_, slot)| fleet.at(*slot).unwrap().server.handle.as_str()).collect()
        }
        other => panic!("a view of every server, not {other:?}"),
    }
}

/// The index is what sorting says, with every server that admits work in it once.
fn assert_indexed(fleet: &Fleet) {
    let mut sorted: Vec<_> = fleet
        .iter()
        .filter(|state| fleet.admits(&state.server.handle, &context()))
        .map(|state| (Reverse(state.free().ram_mb), state.server.handle.as_str()))
        .collect();
    sorted.sort_unstable();
    let sorted: Vec<_> = sorted.into_iter().map(|(_, handle)| handle).collect();
    assert_eq!(by_free_ram(fleet), sorted);
    assert!(fleet.iter().all(|state| fleet.get(&state.server.handle).is_some()));
}

fn state<'a>(fleet: &'a Fleet, name: &str) -> &'a ServerState {
    fleet.get(&handle(name)).unwrap()
}

#[test]
fn a_fleet_is_empty_until_a_server_is_registered_and_once_it_is_removed() {
    let mut fleet = Fleet::default();
    assert!(fleet.is_empty());
    fleet.upsert(a_server("web-1").server);
    assert_eq!(fleet.len(), 1);
    assert!(!fleet.is_empty());
    fleet.remove(&handle("web-9"));
    assert_eq!(fleet.len(), 1);
    fleet.remove(&handle("web-1"));
    assert!(fleet.is_empty());
    assert_indexed(&fleet);
}

#[test]
fn the_place_of_a_server_that_went_is_taken_by_the_next() {
    let mut fleet = a_fleet(&["web-1", "web-2", "web-3"].map(a_server));
    fleet.remove(&handle("web-2"));
    fleet.upsert(a_server("web-4").ram(65536).server);
    fleet.upsert(a_server("web-5").server);
    assert_eq!(by_free_ram(&fleet), ["web-4", "web-1", "web-3", "web-5"]);
    assert_indexed(&fleet);
}

#[test]
fn a_server_that_is_registered_anew_starts_with_nothing() {
    let mut fleet =
        a_fleet(&[a_server("web-1").reserved(ram(100)).holding(8000).reported(0, ram(9), &[8001])]);
    fleet.remove(&handle("web-1"));
    fleet.upsert(a_server("web-1").server);
    assert_same(&fleet, &a_fleet(&[a_server("web-1")]));
}

#[test]
fn a_change_of_a_server_leaves_what_it_holds_as_it_is() {
    let mut fleet =
        a_fleet(&[a_server("web-1").reserved(ram(100)).holding(8000).reported(0, ram(9), &[8001])]);
    fleet.upsert(a_server("web-1").ram(50).address("web-1.example.com").server);
    assert_eq!(state(&fleet, "web-1").free().ram_mb, -50);
    assert_eq!(state(&fleet, "web-1").placement_count, 1);
    assert_eq!(state(&fleet, "web-1").ports.held_count(), 1);
    assert_indexed(&fleet);
}

#[test]
fn a_row_that_differs_from_the_log_was_changed_by_hand() {
    let mut fleet = a_fleet(&[a_server("web-1").reserved(ram(100))]);
    let row = |server: TestServer| ServerRow { state: server.state(), revision: 7 };
    // Its sums follow from the log, not from the row.
    assert_eq!(fleet.take_row(row(a_server("web-1"))), None);
    assert_eq!(state(&fleet, "web-1").reserved, ram(100));
    let changed = fleet.take_row(row(a_server("web-1").ram(2048).reported(0, ram(1000), &[8000]))).unwrap();
    assert_eq!(changed.changes, [ServerChange::Capacity]);
    assert_eq!(state(&fleet, "web-1").free().ram_mb, 1048);
    assert_eq!(decide_new(&fleet, &an_ensure("shop")).unwrap().port_numbers(), [8001]);
    assert_indexed(&fleet);

    let unknown = fleet.take_row(row(a_server("web-2"))).unwrap();
    assert_eq!(unknown.changes, [ServerChange::Registered]);
    assert_eq!(fleet.len(), 2);
}

#[test]
fn usage_is_stale_from_the_log_until_the_next_report() {
    let mut ledger = Ledger::of(&[a_server("web-1").reported(0, ram(100), &[])]);
    let changed = ServerChanged { changes: vec![ServerChange::UsageStale], server: a_server("web-1").server };
    ledger.fleet.apply(&entry(1, None, Operation::ServerChanged(changed)));
    assert!(state(&ledger.fleet, "web-1").usage_stale);
    assert_eq!(state(&ledger.fleet, "web-1").observed.as_ref().unwrap().ram_mb, Some(100));
    ledger.observe(&handle("web-1"), a_report(NOW, ram(200), &[]));
    assert!(!state(&ledger.fleet, "web-1").usage_stale);
    assert_indexed(&ledger.fleet);
}

#[test]
fn usage_of_a_server_that_nobody_knows_is_passed_over() {
    let mut fleet = Fleet::default();
    fleet.observe(&handle("web-9"), a_report(NOW, ram(200), &[]));
    assert!(fleet.is_empty());
}

#[test]
fn a_decision_may_depend_on_usage_while_any_server_has_a_report() {
    let mut fleet = a_fleet(&["web-1", "web-2"].map(a_server));
    assert!(!fleet.usage_counts());
    for name in ["web-1", "web-1", "web-2"] {
        fleet.observe(&handle(name), a_report(NOW, ram(9), &[]));
        assert!(fleet.usage_counts());
    }
    fleet.remove(&handle("web-1"));
    assert!(fleet.usage_counts());
    fleet.remove(&handle("web-2"));
    assert!(!fleet.usage_counts());
}

#[test]
fn ports_that_were_read_as_held_are_not_given_again() {
    let mut fleet = a_fleet(&[a_server("web-1")]);
    fleet.load_held(&handle("web-1"), Protocol::Tcp, &[port(8000), port(8001)]);
    assert_eq!(state(&fleet, "web-1").ports.held_count(), 2);
    assert_eq!(decide_new(&fleet, &an_ensure("shop")).unwrap().port_numbers(), [8002]);
}

fn entry(first_sequence: i64, project_id: Option<ProjectId>, operation: Operation) -> LogEntry {
    let request_id = String::new();
    LogEntry {
        first_sequence,
        event_time: NOW,
        project_id,
        server_handle: None,
        request_id,
        actor: String::new(),
        operation,
    }
}

fn refusal_of(name: &str, reason: Reason, seconds: i64) -> LogEntry {
    let refused = Refused {
        usage_counted: false,
        requested: Requested::of(&an_ensure(name)),
        reason,
        disposition: Disposition::Wait,
        message: String::new(),
        metadata: BTreeMap::new(),
    };
    let event_time = NOW + Duration::seconds(seconds);
    LogEntry { event_time, ..entry(1, Some(project(name)), Operation::Refused(refused)) }
}

#[test]
fn the_same_refusal_of_the_same_project_is_told_once_in_ten_seconds() {
    let mut fleet = Fleet::default();
    let at = |seconds: i64| NOW + Duration::seconds(seconds);
    let just = |fleet: &Fleet, name: &str, reason, seconds| {
        fleet.was_just_refused(&project(name), reason, at(seconds))
    };
    assert!(!just(&fleet, "shop", Reason::NoServers, 0));
    fleet.apply(&refusal_of("shop", Reason::NoServers, 0));
    assert!(just(&fleet, "shop", Reason::NoServers, 0));
    assert!(just(&fleet, "shop", Reason::NoServers, 9));
    assert!(!just(&fleet, "shop", Reason::NoServers, 10));
    assert!(!just(&fleet, "shop", Reason::PortTaken, 0), "another refusal is news");
    assert!(!just(&fleet, "wiki", Reason::NoServers, 0), "another project's is news");
    fleet.apply(&refusal_of("shop", Reason::PortTaken, 1));
    assert!(just(&fleet, "shop", Reason::PortTaken, 10));
    assert!(just(&fleet, "shop", Reason::NoServers, 9), "told already, whatever else was told since");
    assert!(!just(&fleet, "shop", Reason::NoServers, 10));
}

#[test]
fn a_refusal_after_a_success_is_news() {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(512)]);
    ledger.ensure(&an_ensure("wiki")).unwrap();
    ledger.ensure(&an_ensure("shop")).unwrap_err();
    let told = ledger.log.len();
    ledger.ensure(&an_ensure("shop")).unwrap_err();
    assert_eq!(ledger.log.len(), told, "told already");
    ledger.release("wiki", &[]);
    ledger.ensure(&an_ensure("shop")).unwrap();
    ledger.release("shop", &[]);
    ledger.ensure(&an_ensure("wiki")).unwrap();
    let told = ledger.log.len();
    ledger.ensure(&an_ensure("shop")).unwrap_err();
    assert_eq!(ledger.log.len(), told + 1);
}

#[test]
fn refusals_are_forgotten_once_they_are_old() {
    let mut fleet = Fleet::default();
    for second in 0..5_000 {
        fleet.apply(&refusal_of(&format!("bot-{second}"), Reason::NoServers, second));
        assert!(fleet.refusals.projects().len() <= 20);
    }
    for rare in 1..10 {
        fleet.apply(&refusal_of(&format!("rare-{rare}"), Reason::NoServers, 5_000 + 20 * rare));
        assert_eq!(fleet.refusals.projects().len(), 1);
    }
}

#[test]
fn a_refusal_that_is_no_news_yet_is_kept_where_older_ones_are_forgotten() {
    let mut fleet = Fleet::default();
    for (name, second) in [("old", 0), ("recent", 5), ("now", 10)] {
        fleet.apply(&refusal_of(name, Reason::NoServers, second));
    }
    assert!(fleet.was_just_refused(&project("recent"), Reason::NoServers, NOW + Duration::seconds(10)));
    assert_eq!(fleet.refusals.projects(), ["now", "recent"]);
}

#[test]
fn of_what_was_told_of_a_project_each_is_kept_once_and_while_it_is_no_news() {
    let mut fleet = Fleet::default();
    for (reason, second) in [(Reason::NoServers, 0), (Reason::PortTaken, 1), (Reason::UsageStale, 5)] {
        fleet.apply(&refusal_of("shop", reason, second));
    }
    fleet.apply(&refusal_of("shop", Reason::UsageStale, 10));
    let told = [(Reason::PortTaken, 1), (Reason::UsageStale, 10)];
    let told = told.map(|(reason, second)| (reason, NOW + Duration::seconds(second)));
    assert_eq!(fleet.refusals.of(&project("shop")), told);
}

#[test]
fn a_fleet_that_was_read_anew_takes_over_which_refusals_are_no_news_yet() {
    let mut before = Fleet::default();
    before.apply(&refusal_of("shop", Reason::NoServers, 0));
    let mut fleet = a_fleet(&[a_server("web-1")]);
    assert!(!fleet.was_just_refused(&project("shop"), Reason::NoServers, NOW));
    fleet.take_refusals_of(before);
    assert!(fleet.was_just_refused(&project("shop"), Reason::NoServers, NOW));
}

#[test]
fn the_sequence_is_that_of_the_last_event() {
    let mut ledger = Ledger::of(&[a_server("web-1")]);
    assert_eq!(ledger.fleet.sequence(), 1);
    ledger.ensure(&an_ensure("shop").module("a").module("b")).unwrap();
    assert_eq!(ledger.fleet.sequence(), 6, "requested, selected, two ports, completed");
    ledger.ensure(&an_ensure("shop").ram(1000)).unwrap();
    assert_eq!(ledger.fleet.sequence(), 8, "requested, completed");
    ledger.ensure(&an_ensure("wiki").ram(99_999)).unwrap_err();
    assert_eq!(ledger.fleet.sequence(), 10, "requested, failed");
    ledger.release("shop", &[]);
    assert_eq!(ledger.fleet.sequence(), 11);
    ledger.fleet.set_sequence(40);
    assert_eq!(ledger.fleet.sequence(), 40);
}

#[test]
fn a_fleet_that_is_described_decides_in_tests_as_one_that_is_folded() {
    let server = a_server("web-1").reserved(ram(100)).holding(8000);
    let fleet = a_fleet(&[server]);
    assert!(fleet.admits(&handle("web-1"), &context()));
    assert_eq!(decide_new(&fleet, &an_ensure("shop")).unwrap().port_numbers(), [8001]);
}

#[test]
fn a_policy_is_another_or_not() {
    let mut fleet = a_fleet(&[a_server("web-1")]);
    let policy = FleetPolicy { headroom: ram(100), ..FleetPolicy::default() };
    assert!(!fleet.set_policy(FleetPolicy::default()));
    assert!(fleet.set_policy(policy));
    assert!(!fleet.set_policy(policy));
    assert_eq!(*fleet.policy(), policy);
}
