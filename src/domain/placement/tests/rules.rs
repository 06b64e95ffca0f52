//! The rules of `EnsureAllocation` that are not refusals.

use crate::domain::{
    Fleet, Port, Reason, ResourceRequest, Resources,
    event::Selected,
    placement::{Decision, modules_or_default},
    request::{DEFAULT_RESOURCES, Strategy},
    testing::*,
};

fn ledger() -> Ledger {
    Ledger::of(&[a_server("web-1"), a_server("web-2")])
}

#[test]
fn a_first_ensure_reserves_the_defaults_and_a_port_for_backend() {
    let decision = ledger().ensure(&an_ensure("shop")).unwrap();
    let free_before = Resources { cpu_millis: 8000, ram_mb: 16384, disk_mb: 102_400 };
    let Decision::Place { server_handle, selected, reserve, ports } = decision else { panic!("not placed") };
    assert_eq!(server_handle.as_str(), "web-1");
    assert_eq!(reserve, DEFAULT_RESOURCES);
    assert_eq!(reserve, Resources { cpu_millis: 0, ram_mb: 512, disk_mb: 1024 });
    let free_after = free_before - reserve;
    assert_eq!(selected, Selected { strategy: Strategy::Spread, free_before, free_after });
    assert_eq!(ports.len(), 1);
    assert_eq!((ports[0].module.as_str(), ports[0].port.get()), ("backend", 8000));
}

#[test]
fn what_is_free_after_a_placement_is_what_the_fleet_then_says() {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(4096).reported(0, ram(2000), &[])]);
    for (ram_mb, free_after) in [(1500, 2096), (1000, 1596)] {
        let Ok(Decision::Place { selected, .. }) =
            ledger.ensure(&an_ensure(&format!("p{ram_mb}")).ram(ram_mb))
        else {
            panic!("not placed")
        };
        assert_eq!(selected.free_after.ram_mb, free_after);
        assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().free(), selected.free_after);
    }
}

#[test]
fn a_repeat_is_unchanged_l06() {
    let mut ledger = ledger();
    let request = an_ensure("shop").module("web").module("api").ram(1000).cpu(500);
    ledger.ensure(&request).unwrap();
    let before = ledger.fleet.sequence();
    for _ in 0..3 {
        assert_eq!(ledger.ensure(&request), Ok(Decision::Unchanged));
    }
    assert_eq!(ledger.fleet.sequence(), before, "a repeat writes no event");
}

#[test]
fn a_repeat_is_unchanged_even_where_nothing_is_left() {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(512).disk(1024).port_range(8000, 8000)]);
    ledger.ensure(&an_ensure("shop")).unwrap();
    // L24: what the project holds counts for it; to be placed anew, it would not fit.
    assert_eq!(
        ledger.ensure(&an_ensure("shop").module("backend").ram(512).disk(1024)),
        Ok(Decision::Unchanged)
    );
    assert_eq!(ledger.ensure(&an_ensure("shop").start_at(9000)), Ok(Decision::Unchanged));
    assert_eq!(ledger.ensure(&an_ensure("wiki")).unwrap_err().reason, Reason::InsufficientCapacity);
}

#[test]
fn a_redeploy_need_not_fit_beside_itself_l24() {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(1000)]);
    ledger.ensure(&an_ensure("shop").ram(600)).unwrap();
    assert_eq!(ledger.ensure(&an_ensure("shop").ram(600)), Ok(Decision::Unchanged));
    let grown = ledger.ensure(&an_ensure("shop").ram(1000)).unwrap();
    assert!(matches!(grown, Decision::Extend { grow, .. } if grow == ram(400)), "{grown:?}");
}

#[test]
fn modules_are_compared_one_by_one_l07() {
    let mut ledger = ledger();
    assert_eq!(
        ledger.ensure(&an_ensure("shop").module("api").module("web")).unwrap().port_numbers(),
        [8000, 8001]
    );
    // A new one among those that stand gets its port; one that is left out stays.
    let decision = ledger.ensure(&an_ensure("shop").module("web").module("db")).unwrap();
    assert!(matches!(&decision, Decision::Extend { grow: Resources::ZERO, .. }));
    assert_eq!(decision.ports().len(), 1);
    assert_eq!((decision.ports()[0].module.as_str(), decision.ports()[0].port.get()), ("db", 8002));
    let held = ledger.held_by("shop").allocations;
    let held: Vec<_> = held.iter().map(|held| (held.module.as_str(), held.port.get())).collect();
    // L3: in the order of the modules' names.
    assert_eq!(held, [("api", 8000), ("db", 8002), ("web", 8001)]);
}

#[test]
fn no_modules_mean_backend_for_an_unplaced_project_only() {
    assert_eq!(modules_or_default(&[]), [a_module("backend")]);
    assert_eq!(modules_or_default(&[a_module("api")]), [a_module("api")]);
    let mut ledger = ledger();
    ledger.ensure(&an_ensure("shop").module("api")).unwrap();
    assert_eq!(ledger.ensure(&an_ensure("shop")), Ok(Decision::Unchanged));
    let grown = ledger.ensure(&an_ensure("shop").ram(1024)).unwrap();
    assert!(grown.ports().is_empty());
    let named = ledger.ensure(&an_ensure("shop").module("backend")).unwrap();
    assert_eq!(named.port_numbers(), [8001]);
}

#[test]
fn growth_is_the_difference_to_what_is_reserved() {
    let mut ledger = ledger();
    ledger.ensure(&an_ensure("shop").ram(1000).disk(2000).cpu(100)).unwrap();
    let grown = ledger.ensure(&an_ensure("shop").ram(1500).disk(1000)).unwrap();
    assert!(matches!(grown, Decision::Extend { grow, .. } if grow == ram(500)), "{grown:?}");
    let reserved = Resources { cpu_millis: 100, ram_mb: 1500, disk_mb: 2000 };
    assert_eq!(ledger.held_by("shop").placement.unwrap().reserved, reserved);
    assert_eq!(ledger.reserved_on("web-1"), reserved);
}

#[test]
fn less_never_shrinks_a_reservation() {
    let mut ledger = ledger();
    ledger.ensure(&an_ensure("shop").ram(1000).disk(2000).cpu(100)).unwrap();
    assert_eq!(ledger.ensure(&an_ensure("shop").ram(1).disk(0).cpu(99)), Ok(Decision::Unchanged));
    ledger.ensure(&an_ensure("shop").ram(1).module("web")).unwrap();
    assert_eq!(ledger.reserved_on("web-1"), Resources { cpu_millis: 100, ram_mb: 1000, disk_mb: 2000 });
}

#[test]
fn unset_and_zero_differ_l31() {
    let mut ledger = ledger();
    // On first placement unset is the default, zero is nothing.
    ledger.ensure(&an_ensure("shop").on("web-1").ram(0)).unwrap();
    assert_eq!(ledger.reserved_on("web-1"), Resources { cpu_millis: 0, ram_mb: 0, disk_mb: 1024 });
    ledger.ensure(&an_ensure("wiki").on("web-2").disk(0).cpu(0)).unwrap();
    assert_eq!(ledger.reserved_on("web-2"), Resources { cpu_millis: 0, ram_mb: 512, disk_mb: 0 });
    // On a repeat unset is what stands, also where that is below the default.
    assert_eq!(ledger.ensure(&an_ensure("shop")), Ok(Decision::Unchanged));
    assert_eq!(ledger.ensure(&an_ensure("wiki").disk(0)), Ok(Decision::Unchanged));

    let some = ResourceRequest { ram_mb: Some(0), ..ResourceRequest::default() };
    assert_eq!(some.or(DEFAULT_RESOURCES), Resources { ram_mb: 0, ..DEFAULT_RESOURCES });
}

#[test]
fn a_decision_is_all_or_nothing_l09() {
    let mut ledger = Ledger::of(&[a_server("web-1").port_range(8000, 8001)]);
    for request in [
        an_ensure("shop").module("a").module("b").module("c"),
        an_ensure("shop").module("a").with(a_module("b").at(9000)),
    ] {
        ledger.ensure(&request).unwrap_err();
        assert_eq!(ledger.reserved_on("web-1"), Resources::ZERO);
        assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().ports.held_count(), 0);
    }
    ledger.ensure(&an_ensure("shop").module("a")).unwrap();
    ledger.ensure(&an_ensure("shop").module("b").module("c").ram(2000)).unwrap_err();
    assert_eq!(ledger.reserved_on("web-1"), DEFAULT_RESOURCES);
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().ports.held_count(), 1);
}

#[test]
fn a_reservation_counts_from_the_decision_that_made_it_l23() {
    // 4096 MB of budget take 8 projects of 512 MB, and a ninth is told to wait.
    let mut ledger = Ledger::of(&[a_server("web-1").ram(4608).headroom(ram(512))]);
    for n in 0..8 {
        ledger.ensure(&an_ensure(&format!("bot-{n}")).ram(512).disk(0)).unwrap();
    }
    let refusal = ledger.ensure(&an_ensure("bot-8").ram(512).disk(0)).unwrap_err();
    assert_eq!(refusal.reason, Reason::InsufficientCapacity);
    assert_eq!(ledger.reserved_on("web-1"), ram(4096));
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().placement_count, 8);
}

#[test]
fn capacity_goes_back_with_the_last_module() {
    let mut ledger = ledger();
    ledger.ensure(&an_ensure("shop").on("web-1").module("api").module("web").ram(1000)).unwrap();
    assert_eq!(ledger.release("shop", &["nobody"]), []);
    assert_eq!(ledger.release("shop", &["api", "nobody"]).len(), 1);
    assert_eq!(ledger.reserved_on("web-1"), Resources { ram_mb: 1000, ..DEFAULT_RESOURCES });
    assert_eq!(ledger.release("shop", &["web"]).len(), 1);
    assert_eq!(ledger.reserved_on("web-1"), Resources::ZERO);
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().placement_count, 0);
    assert_eq!(ledger.release("shop", &[]), []);
}

#[test]
fn nothing_has_a_default_address_or_port_l02() {
    assert_eq!(refused(&Fleet::default(), &an_ensure("shop")).reason, Reason::NoServers);
    assert!(Port::try_from(0).is_err());
}
