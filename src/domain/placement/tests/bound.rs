//! Projects that are placed already: they stay, and what they add runs the funnel over their own server.

use crate::domain::{
    Disposition, Protocol, Reason, Resources, ServerStatus,
    placement::{Context, Decision, decide},
    testing::*,
};

/// `shop` holds 512 MB and its module `api` on `web-1`, a server of 4096 MB; `web-2` is a better choice by far.
fn placed() -> Ledger {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(4096)]);
    ledger.ensure(&an_ensure("shop").module("api").ram(512)).unwrap();
    ledger.put(&a_server("web-2").ram(65536));
    ledger
}

/// Something that no longer lets `web-1` admit work.
fn broken() -> [(TestServer, &'static str, &'static str); 3] {
    let server = || a_server("web-1").ram(4096);
    [
        (server().unmanaged(), "UNMANAGED", "READY"),
        (server().status(ServerStatus::Maintenance), "STATUS", "MAINTENANCE"),
        (server().reported(301, Resources::ZERO, &[]), "USAGE_STALE", "READY"),
    ]
}

#[test]
fn adding_asks_for_admission_l27() {
    for (server, cause, status) in broken() {
        for request in [an_ensure("shop").module("web"), an_ensure("shop").ram(1024)] {
            let mut ledger = placed();
            ledger.put(&server);
            let refusal = ledger.ensure(&request).unwrap_err();
            assert_eq!(refusal.reason, Reason::BoundServerNotAdmissible, "{cause}");
            assert_eq!(refusal.reason.disposition(), Disposition::Operator);
            assert_eq!(refusal.figure("server_handle"), "web-1");
            assert_eq!((refusal.figure("cause"), refusal.figure("status")), (cause, status));
        }
    }
}

#[test]
fn repeating_asks_for_no_admission_l27() {
    for (server, ..) in broken() {
        let mut ledger = placed();
        ledger.put(&server);
        for request in [
            an_ensure("shop"),
            an_ensure("shop").module("api").ram(512),
            an_ensure("shop").with(a_module("api").at(8000).over(Protocol::Tcp)).on("web-1").ram(0),
        ] {
            assert_eq!(ledger.ensure(&request), Ok(Decision::Unchanged));
        }
    }
}

#[test]
fn a_broken_server_is_told_to_its_project_in_words() {
    let told = broken().map(|(server, ..)| {
        let mut ledger = placed();
        ledger.put(&server);
        ledger.ensure(&an_ensure("shop").module("web")).unwrap_err().message
    });
    insta::assert_snapshot!(told.join("\n"), @r"
        project `shop` is placed on `web-1`, which takes nothing new: it is not managed; what the project holds stands. Repair the server, or move the project with RelocateProject
        project `shop` is placed on `web-1`, which takes nothing new: it has the status MAINTENANCE, which admits no work; what the project holds stands. Repair the server, or move the project with RelocateProject
        project `shop` is placed on `web-1`, which takes nothing new: it reported its usage 301 s ago, and the limit is 300 s; what the project holds stands. Repair the server, or move the project with RelocateProject
        ");
}

#[test]
fn how_late_the_report_of_its_server_is_is_told_to_a_project() {
    let mut ledger = placed();
    ledger.put(&a_server("web-1").ram(4096).reported(301, Resources::ZERO, &[]));
    let refusal = ledger.ensure(&an_ensure("shop").module("web")).unwrap_err();
    assert_eq!((refusal.figure("usage_age_s"), refusal.figure("usage_max_age_s")), ("301", "300"));
    // A server that never reported has no age.
    let ledger = placed();
    let required = Context { usage_required: true, ..context() };
    let refusal = decide(&ledger.fleet, &ledger.held_by("shop"), &an_ensure("shop").module("web"), &required)
        .unwrap_err();
    assert_eq!((refusal.figure("cause"), refusal.figure("usage_max_age_s")), ("USAGE_STALE", "300"));
    assert_eq!(refusal.metadata.get("usage_age_s"), None);
}

#[test]
fn a_request_that_no_server_could_hold_is_told_so_before_the_state_of_its_server_l11() {
    let mut ledger = placed();
    ledger.put(&a_server("web-1").ram(4096).status(ServerStatus::Maintenance));
    let refusal = ledger.ensure(&an_ensure("shop").ram(5000)).unwrap_err();
    assert_eq!(refusal.reason, Reason::RequestExceedsFleet);
}

#[test]
fn growth_that_the_server_could_never_hold_is_told_as_the_whole_that_it_makes() {
    let mut ledger = placed();
    let refusal = ledger.ensure(&an_ensure("shop").ram(4097)).unwrap_err();
    assert_eq!(refusal.reason, Reason::RequestExceedsFleet);
    assert_eq!(refusal.figure("nearest.server_handle"), "web-1");
    assert_eq!(refusal.figure("nearest.short.ram_mb"), "1");
    assert_eq!(refusal.figure("asked.ram_mb"), "4097");
    assert_eq!(refusal.figure("server_handle"), "web-1");
    insta::assert_snapshot!(refusal, @"asked for 4097 MB RAM, 1024 MB disk, 0 thousandths of a CPU, and nothing in server `web-1` could hold that even empty, its headroom kept: `web-1` is the nearest, short of 1 MB RAM; ask for less, or register a larger server");
}

#[test]
fn growth_that_does_not_fit_now_is_told_as_the_difference() {
    let mut ledger = placed();
    ledger.ensure(&an_ensure("wiki").on("web-1").ram(3000)).unwrap();
    let refusal = ledger.ensure(&an_ensure("shop").ram(1200)).unwrap_err();
    assert_eq!(
        (refusal.reason, refusal.reason.disposition()),
        (Reason::InsufficientCapacity, Disposition::Wait)
    );
    assert_eq!(refusal.figure("nearest.server_handle"), "web-1");
    assert_eq!(refusal.figure("asked.ram_mb"), "688");
    assert_eq!(refusal.figure("nearest.short.ram_mb"), "104");
    assert_eq!(refusal.figure("servers"), "1");
    insta::assert_snapshot!(refusal, @"asked for 688 MB RAM, 0 MB disk, 0 thousandths of a CPU, and nothing in server `web-1` has room for it now: `web-1` is the nearest, short of 104 MB RAM; wait for a release, ask for less, or register a server");
    assert!(ledger.ensure(&an_ensure("shop").ram(1096)).is_ok());
}

#[test]
fn a_pin_to_another_server_is_placed_elsewhere() {
    let mut ledger = placed();
    for request in [an_ensure("shop").on("web-2"), an_ensure("shop").module("web").ram(1024).on("web-2")] {
        let refusal = ledger.ensure(&request).unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.reason.disposition()),
            (Reason::PlacedElsewhere, Disposition::Caller)
        );
        assert_eq!(refusal.figure("server_handle"), "web-1");
        assert_eq!(refusal.figure("pinned.server_handle"), "web-2");
    }
    insta::assert_snapshot!(ledger.ensure(&an_ensure("shop").on("web-2")).unwrap_err(), @"project `shop` is placed on `web-1`, not on `web-2`; leave `server_handle` out, or release the project first");
    assert_eq!(ledger.ensure(&an_ensure("shop").on("web-9")).unwrap_err().reason, Reason::ServerNotFound);
}

#[test]
fn a_pin_to_another_port_or_protocol_is_placed_elsewhere() {
    let mut ledger = placed();
    for module in [
        a_module("api").at(8001),
        a_module("api").over(Protocol::Udp),
        a_module("api").at(8000).over(Protocol::Udp),
    ] {
        let refusal = ledger.ensure(&an_ensure("shop").module("web").with(module)).unwrap_err();
        assert_eq!(refusal.reason, Reason::PlacedElsewhere);
        assert_eq!(refusal.figure("server_handle"), "web-1");
        assert_eq!(refusal.figure("module"), "api");
        assert_eq!((refusal.figure("port"), refusal.figure("protocol")), ("8000", "TCP"));
    }
    assert_eq!(ledger.held_by("shop").allocations.len(), 1);

    let port = ledger.ensure(&an_ensure("shop").with(a_module("api").at(8001))).unwrap_err();
    assert_eq!((port.figure("pinned.port"), port.figure("pinned.protocol")), ("8001", "TCP"));
    let protocol = ledger.ensure(&an_ensure("shop").with(a_module("api").over(Protocol::Udp))).unwrap_err();
    assert_eq!((protocol.figure("pinned.port"), protocol.figure("pinned.protocol")), ("8000", "UDP"));
    insta::assert_snapshot!(port, @"asked for port 8001/TCP for module `api` of project `shop`, which holds 8000/TCP on `web-1`; leave `port` and `protocol` out, or release the module first");
    insta::assert_snapshot!(protocol, @"asked for port 8000/UDP for module `api` of project `shop`, which holds 8000/TCP on `web-1`; leave `port` and `protocol` out, or release the module first");
}

#[test]
fn a_new_module_of_a_placed_project_may_ask_for_its_port() {
    let mut ledger = placed();
    let decision = ledger.ensure(&an_ensure("shop").module("api").with(a_module("web").at(9000))).unwrap();
    assert_eq!(decision.port_numbers(), [9000]);
    let refusal = ledger.ensure(&an_ensure("shop").with(a_module("db").at(8000))).unwrap_err();
    assert_eq!(refusal.reason, Reason::PortTaken);
    assert_eq!(refusal.figure("cause"), "ALLOCATED");
    assert_eq!(refusal.figure("server_handle"), "web-1");
}

#[test]
fn a_new_module_on_a_server_without_ports_is_refused_for_its_ports() {
    let mut ledger = placed();
    ledger.put(&a_server("web-1").ram(4096).port_range(8000, 8000));
    let refusal = ledger.ensure(&an_ensure("shop").module("web")).unwrap_err();
    assert_eq!(refusal.reason, Reason::PortsExhausted);
    assert_eq!(refusal.figure("port_range"), "8000-8000");
}

#[test]
fn a_new_module_that_asks_for_nothing_more_is_granted_on_a_server_over_its_capacity() {
    let mut ledger = placed();
    // Reality wins: the capacity is lowered below what is reserved, and free is negative.
    ledger.put(&a_server("web-1").ram(256).disk(512));
    assert!(ledger.fleet.get(&handle("web-1")).unwrap().free().ram_mb < 0);
    let decision = ledger.ensure(&an_ensure("shop").module("web")).unwrap();
    assert_eq!(decision.port_numbers(), [8001]);
    assert!(matches!(decision, Decision::Extend { grow: Resources::ZERO, .. }));
    // A resource that has room may grow, one that is over may not.
    assert!(ledger.ensure(&an_ensure("shop").cpu(1000)).is_ok());
    assert_eq!(ledger.ensure(&an_ensure("shop").ram(513)).unwrap_err().reason, Reason::RequestExceedsFleet);

    let refusal = ledger.ensure(&an_ensure("wiki").on("web-1").ram(0).disk(0).cpu(0)).unwrap_err();
    assert_eq!(refusal.reason, Reason::InsufficientCapacity);
}

#[test]
fn a_placed_project_stays_whatever_labels_its_server_carries_by_now() {
    let mut ledger = Ledger::of(&[a_server("web-1").label("region", "eu")]);
    ledger.ensure(&an_ensure("shop").labelled("region", "eu")).unwrap();
    ledger.put(&a_server("web-1").label("region", "us"));
    ledger.put(&a_server("web-2").label("region", "eu"));
    assert_eq!(ledger.ensure(&an_ensure("shop").labelled("region", "eu")), Ok(Decision::Unchanged));
    let decision = ledger.ensure(&an_ensure("shop").labelled("region", "eu").module("web")).unwrap();
    assert!(matches!(decision, Decision::Extend { server_handle, .. } if server_handle.as_str() == "web-1"));
}
