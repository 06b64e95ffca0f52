//! What a refusal tells: what was asked, what was found, what to do.

use std::collections::BTreeMap;

use super::funnel::rejected;
use crate::domain::{Disposition, Reason, Resources, testing::*};

#[test]
fn the_refusal_carries_its_budget_l10() {
    // web-1 lacks more RAM than web-2, and web-3 is as short as web-2.
    let fleet = a_fleet(&[
        a_server("web-3").ram(4096).headroom(ram(512)).reserved(ram(3000)),
        a_server("web-2").ram(4096).headroom(ram(512)).reserved(ram(3000)),
        a_server("web-1").ram(4096).headroom(ram(512)).reserved(ram(3500)),
    ]);
    let refusal = refused(&fleet, &an_ensure("shop").ram(1024).disk(2048));
    assert_eq!(refusal.reason, Reason::InsufficientCapacity);
    let expected = [
        ("asked.cpu_millis", "0"),
        ("asked.disk_mb", "2048"),
        ("asked.ram_mb", "1024"),
        ("nearest.free.cpu_millis", "8000"),
        ("nearest.free.disk_mb", "102400"),
        ("nearest.free.ram_mb", "584"),
        ("nearest.headroom.ram_mb", "512"),
        ("nearest.server_handle", "web-2"),
        ("nearest.short.ram_mb", "440"),
        ("rejected.CAPACITY", "3"),
        ("servers", "3"),
    ];
    let figures: Vec<_> =
        refusal.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(figures, expected);
    insta::assert_snapshot!(refusal, @"asked for 1024 MB RAM, 2048 MB disk, 0 thousandths of a CPU, and nothing in the fleet of 3 servers has room for it now: `web-2` is the nearest, short of 440 MB RAM; wait for a release, ask for less, or register a server");
}

#[test]
fn the_nearest_server_is_the_one_that_lacks_the_least_share_of_what_is_asked() {
    // 1500 of 10000 MB disk are less of a lack than 100 of 500 MB RAM.
    let fleet = a_fleet(&[a_server("web-1").ram(400), a_server("web-2").disk(8500)]);
    let refusal = refused(&fleet, &an_ensure("shop").ram(500).disk(10_000));
    assert_eq!(refusal.reason, Reason::RequestExceedsFleet);
    assert_eq!(refusal.figure("nearest.server_handle"), "web-2");
    assert_eq!(refusal.figure("nearest.short.disk_mb"), "1500");
    assert_eq!(refusal.figure("nearest.short.ram_mb"), "");
    insta::assert_snapshot!(refusal, @"asked for 500 MB RAM, 10000 MB disk, 0 thousandths of a CPU, and nothing in the fleet of 2 servers could hold that even empty, its headroom kept: `web-2` is the nearest, short of 1500 MB disk; ask for less, or register a larger server");
}

#[test]
fn the_nearest_server_is_one_that_reached_the_last_stage() {
    // web-1 lacks a megabyte even when empty; web-2 could hold it and lacks much more now.
    let fleet = a_fleet(&[a_server("web-1").ram(1023), a_server("web-2").ram(2048).reserved(ram(2048))]);
    let refusal = refused(&fleet, &an_ensure("shop").ram(1024));
    assert_eq!(refusal.reason, Reason::InsufficientCapacity);
    assert_eq!(refusal.figure("nearest.server_handle"), "web-2");
}

#[test]
fn stale_reports_are_told_with_their_servers() {
    let servers: Vec<_> =
        ["a", "b", "c", "d", "e"].map(|name| a_server(name).reported(400, Resources::ZERO, &[])).into();
    insta::assert_snapshot!(refused(&a_fleet(&servers), &an_ensure("shop")), @"asked for 512 MB RAM, 1024 MB disk, 0 thousandths of a CPU, and the only servers left in the fleet of 5 servers, `a`, `b`, `c`, and 2 more, did not report their usage in the last 300 s; see why their reports stopped");
    insta::assert_snapshot!(refused(&a_fleet(&servers[..2]), &an_ensure("shop")), @"asked for 512 MB RAM, 1024 MB disk, 0 thousandths of a CPU, and the only servers left in the fleet of 2 servers, `a`, `b`, did not report their usage in the last 300 s; see why their reports stopped");
}

#[test]
fn a_taken_port_is_told_with_its_server_and_cause() {
    let server = || a_server("web-1").port_range(8000, 9000);
    let cases = [
        (server().holding(8080), "ALLOCATED"),
        (server().reported(0, Resources::ZERO, &[8080]), "LISTENED_ON"),
        (server().excluding(8080, 8090), "EXCLUDED"),
        (server().port_range(8081, 9000), "OUT_OF_RANGE"),
        (server().port_range(8000, 8079), "OUT_OF_RANGE"),
        // Held and listened on is ours, running.
        (server().holding(8080).reported(0, Resources::ZERO, &[8080]), "ALLOCATED"),
    ];
    for (server, cause) in cases {
        let refusal = refused(&a_fleet(&[server]), &an_ensure("shop").with(a_module("api").at(8080)));
        assert_eq!((refusal.reason, refusal.reason.disposition()), (Reason::PortTaken, Disposition::Caller));
        assert_eq!(refusal.figure("cause"), cause);
        assert_eq!(refusal.figure("server_handle"), "web-1");
        assert_eq!(refusal.figure("module"), "api");
        assert_eq!(refusal.figure("port"), "8080");
        assert_eq!(refusal.figure("protocol"), "TCP");
    }
    let fleet = a_fleet(&[server().holding(8080)]);
    insta::assert_snapshot!(refused(&fleet, &an_ensure("shop").with(a_module("api").at(8080))), @"asked for port 8080/TCP for module `api`, and no server with room can give it: on `web-1` it is allocated to a project; ask for another port, or leave `port` out");
}

#[test]
fn an_explicit_port_that_is_taken_on_one_server_is_given_by_another() {
    let fleet = a_fleet(&[a_server("web-1").ram(32768).holding(8080), a_server("web-2")]);
    assert_eq!(chosen(&fleet, &an_ensure("shop").with(a_module("api").at(8080))), "web-2");
}

#[test]
fn a_taken_port_is_told_before_an_exhausted_range_for_the_caller_can_mend_it() {
    let request = an_ensure("shop").with(a_module("api").at(8080)).module("web");
    let exhausted = a_server("web-1").port_range(8080, 8080);
    let taken = a_server("web-2").holding(8080);
    assert_eq!(refused(&a_fleet([&exhausted]), &request).reason, Reason::PortsExhausted);
    let refusal = refused(&a_fleet([&exhausted, &taken]), &request);
    assert_eq!(refusal.reason, Reason::PortTaken);
    assert_eq!(refusal.figure("server_handle"), "web-2");
    assert_eq!(rejected(&refusal), BTreeMap::from([("PORTS", "2")]));
}

#[test]
fn exhausted_ports_are_told_with_the_range() {
    let fleet = a_fleet(&[a_server("web-1").port_range(8000, 8001).holding(8000).holding(8001)]);
    let refusal = refused(&fleet, &an_ensure("shop"));
    assert_eq!(
        (refusal.reason, refusal.reason.disposition()),
        (Reason::PortsExhausted, Disposition::Operator)
    );
    assert_eq!(refusal.figure("start_port"), "8000");
    assert_eq!(refusal.figure("port_range"), "8000-8001");
    assert_eq!(refusal.figure("server_handle"), "web-1");
    assert_eq!(refusal.figure("protocol"), "TCP");
    insta::assert_snapshot!(refusal, @"asked for 1 port at or above 8000, and none of the servers with room, `web-1`, has enough that are free in its range; widen `port_range`, start lower, or register a server");
}
