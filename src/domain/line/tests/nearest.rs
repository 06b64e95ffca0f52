//! Which server is the nearest to having room, and where what is kept is kept.

use super::*;
use crate::domain::{
    ServerStatus,
    testing::{a_fleet, a_module, context, ram},
};

/// How far the nearest server is from having room for what a project asks, and which it is.
fn nearest(servers: &[TestServer], request: &EnsureRequest) -> Option<(i128, String)> {
    let project = crate::domain::Project::unplaced(request.project_id.clone());
    let (fleet, ask) = (a_fleet(servers), WaitingAsk::of(&project, request));
    let found = ask.nearest_of_all(&fleet, &context());
    found.map(|(distance, state)| (distance, state.server.handle.to_string()))
}

fn kept_on(ledger: &Ledger) -> Option<&str> {
    ledger.fleet.line().kept_for().map(|(_, handle)| handle.as_str())
}

#[test]
fn a_server_is_as_far_as_the_shares_come_to_that_are_missing() {
    let large = an_ensure("large").ram(3000).disk(2000);
    // A third of the RAM and a quarter of the disk.
    let server = a_server("a").ram(3000).disk(2000).reserved(Resources { disk_mb: 500, ..ram(1000) });
    assert_eq!(nearest(&[server], &large), Some((333_333 + 250_000, "a".to_owned())));
    let further = a_server("a").ram(3000).reserved(ram(1000));
    let nearer = a_server("b").ram(4000).reserved(ram(1999));
    assert_eq!(nearest(&[further, nearer], &large), Some((333_000, "b".to_owned())));
}

#[test]
fn of_who_is_placed_the_shares_are_of_the_whole_that_it_asks_for() {
    let ledger = full();
    let ask = WaitingAsk::of(&ledger.held_by("a-0"), &an_ensure("a-0").ram(4096));
    let (distance, state) = ask.nearest_of_all(&ledger.fleet, &ledger.context()).unwrap();
    assert_eq!((distance, state.server.handle.as_str()), (750_000, "a"));
}

#[test]
fn a_server_that_time_alone_does_not_make_fit_is_not_near() {
    let request = an_ensure("first").ram(1024).with(a_module("web").at(8000));
    let full = |name: &str| a_server(name).ram(2048).reserved(ram(1536));
    // Neither one whose port is taken, nor one that is too small, nor one that is not READY; nor one that has room.
    for server in [
        full("a").holding(8000),
        a_server("a").ram(1023),
        full("a").status(ServerStatus::Maintenance),
        a_server("a"),
        a_server("a").holding(8000),
    ] {
        assert_eq!(nearest(std::slice::from_ref(&server), &request), None, "{server:?}");
        let further = a_server("b").ram(2048).reserved(ram(2048));
        assert_eq!(nearest(&[server, further], &request), Some((1_000_000, "b".to_owned())));
    }
}

#[test]
fn a_server_with_room_that_lacks_ports_is_the_nearest() {
    let without_ports = a_server("b").port_range(8000, 8000).holding(8000);
    let almost = a_server("a").ram(2048).reserved(ram(1025));
    assert_eq!(nearest(&[almost, without_ports], &an_ensure("first").ram(1024)), Some((0, "b".to_owned())));
}

#[test]
fn what_is_kept_moves_on_where_its_server_got_further() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    assert_eq!(kept_on(&ledger), Some("a"));
    // More is in use there than is reserved.
    let report = crate::domain::testing::a_report(ledger.now(), ram(5000), &[]);
    ledger.observe(&handle("a"), report);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(kept_on(&ledger), Some("b"));
}

#[test]
fn what_is_kept_moves_on_where_the_first_asks_for_something_else_by_now() {
    let mut ledger = full();
    assert!(matches!(ledger.wait(&an_ensure("a-0").ram(4096).disk(0), 600), Waited::Waits));
    settle(&mut ledger);
    ledger.release("b-0", &[]);
    ledger.release("b-1", &[]);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(kept_on(&ledger), Some("a"), "it is placed there");
    ledger.release("a-0", &[]);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(kept_on(&ledger), Some("b"), "it may be placed anywhere");
}

#[test]
fn what_is_kept_no_longer_is_given_to_who_waits_for_it() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    stand(&mut ledger, "small", 1024);
    ledger.release("a-0", &[]);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(kept_on(&ledger), Some("a"));
    // A server of which nothing is kept yet comes nearer.
    ledger.put(&a_server("c").ram(4096).reported(0, ram(100), &[]));
    assert_eq!(settle(&mut ledger), [served("small")]);
    assert_eq!(kept_on(&ledger), Some("c"));
}
