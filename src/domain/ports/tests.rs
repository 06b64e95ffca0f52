//! The choice of ports, over a fleet of one server.

use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::domain::{
    Fleet, Reason, Resources,
    fleet::PortStanding,
    request::EnsureRequest,
    testing::{
        Ledger, NOW, TestServer, a_fleet, a_module, a_report, a_server, an_ensure, cases, decide_new, handle,
        module, port, refused,
    },
};

fn server() -> TestServer {
    a_server("web-1").port_range(8000, 8009)
}

fn given(server: &TestServer, request: &EnsureRequest) -> Vec<u16> {
    decide_new(&a_fleet([server]), request).unwrap().port_numbers()
}

fn in_a_minute() -> OffsetDateTime {
    NOW + Duration::seconds(60)
}

#[test]
fn a_port_is_1_to_65535_l17() {
    for number in [1, 80, 65535] {
        assert_eq!(u32::from(Port::try_from(number).unwrap()), number);
    }
    for number in [0, 65536, u32::MAX] {
        assert_eq!(Port::try_from(number), Err(PortError));
        assert!(serde_json::from_str::<Port>(&number.to_string()).is_err());
    }
    assert_eq!(PortError.to_string(), "must be 1 to 65535");
}

#[test]
fn the_lowest_free_port_at_or_above_the_start_is_given() {
    assert_eq!(given(&server(), &an_ensure("shop")), [8000]);
    assert_eq!(given(&server(), &an_ensure("shop").start_at(8004)), [8004]);
    assert_eq!(given(&server(), &an_ensure("shop").start_at(1)), [8000]);
    assert_eq!(given(&server().holding(8000).holding(8001).holding(8003), &an_ensure("shop")), [8002]);
    assert_eq!(given(&a_server("web-1"), &an_ensure("shop").start_at(1)), [1024]);
}

#[test]
fn modules_get_their_ports_in_the_order_of_the_request() {
    let decision =
        decide_new(&a_fleet(&[server()]), &an_ensure("shop").module("web").module("api").module("db"))
            .unwrap();
    let ports: Vec<_> =
        decision.ports().iter().map(|grant| (grant.module.as_str(), grant.port.get())).collect();
    assert_eq!(ports, [("web", 8000), ("api", 8001), ("db", 8002)]);
}

#[test]
fn explicit_ports_are_claimed_before_the_others_choose() {
    let request = an_ensure("shop")
        .module("web")
        .with(a_module("api").at(8000))
        .module("db")
        .with(a_module("log").at(8001));
    assert_eq!(given(&server(), &request), [8002, 8000, 8003, 8001]);
}

#[test]
fn an_explicit_port_may_lie_below_the_start_but_not_outside_the_range() {
    assert_eq!(given(&server(), &an_ensure("shop").start_at(8005).with(a_module("api").at(8000))), [8000]);
    for number in [7999, 8010, 1, 65535] {
        let refusal = refused(&a_fleet(&[server()]), &an_ensure("shop").with(a_module("api").at(number)));
        assert_eq!(
            (refusal.reason, refusal.figure("cause")),
            (Reason::PortTaken, "OUT_OF_RANGE"),
            "{number}"
        );
    }
}

#[test]
fn each_protocol_has_its_own_ports() {
    let udp = || a_module("dns").over(Protocol::Udp);
    assert_eq!(given(&server(), &an_ensure("shop").module("api").with(udp())), [8000, 8000]);
    assert_eq!(given(&server().holding(8000), &an_ensure("shop").with(udp()).module("api")), [8000, 8001]);
    assert_eq!(given(&server().holding(8000), &an_ensure("shop").with(udp().at(8000))), [8000]);
    let request = an_ensure("shop").with(a_module("api").at(8000)).with(udp().at(8000));
    assert_eq!(given(&server(), &request), [8000, 8000]);
    // TCP is what a module has that names none.
    let refusal =
        refused(&a_fleet(&[server().holding(8000)]), &an_ensure("shop").with(a_module("api").at(8000)));
    assert_eq!(refusal.figure("protocol"), "TCP");
}

#[test]
fn excluded_ranges_are_never_given_in_either_protocol() {
    let server = server().excluding(8000, 8001).excluding(8003, 8003).excluding(1, 10);
    let request = an_ensure("shop").module("a").module("b").with(a_module("c").over(Protocol::Udp));
    assert_eq!(given(&server, &request), [8002, 8004, 8002]);
    for number in [8000, 8001, 8003] {
        let refusal = refused(&a_fleet([&server]), &an_ensure("shop").with(a_module("api").at(number)));
        assert_eq!((refusal.reason, refusal.figure("cause")), (Reason::PortTaken, "EXCLUDED"));
    }
}

#[test]
fn ports_that_a_stranger_listens_on_are_not_given_l18() {
    let server = server().reported(0, Resources::ZERO, &[8000, 8002]);
    assert_eq!(given(&server, &an_ensure("shop").module("a").module("b")), [8001, 8003]);
    let refusal = refused(&a_fleet([&server]), &an_ensure("shop").with(a_module("api").at(8002)));
    assert_eq!((refusal.reason, refusal.figure("cause")), (Reason::PortTaken, "LISTENED_ON"));
}

#[test]
fn a_port_of_ours_that_is_listened_on_is_blocked_only_once_it_is_given_back_l18() {
    let mut ledger = Ledger::of(&[server()]);
    ledger.ensure(&an_ensure("shop")).unwrap();
    let web = handle("web-1");
    ledger.observe(&web, a_report(NOW, Resources::ZERO, &[8000]));
    // Held and running: nothing about the next choice changes.
    assert_eq!(ledger.ensure(&an_ensure("wiki")).unwrap().port_numbers(), [8001]);
    ledger.release("shop", &[]);
    ledger.clock = 61;
    // Given back, rested and still listened on: an orphan holds it.
    assert_eq!(ledger.ensure(&an_ensure("blog")).unwrap().port_numbers(), [8002]);
    let refusal = ledger.ensure(&an_ensure("bot").with(a_module("api").at(8000))).unwrap_err();
    assert_eq!((refusal.reason, refusal.figure("cause")), (Reason::PortTaken, "LISTENED_ON"));
    // The orphan is gone with the next report.
    ledger.observe(&web, a_report(NOW, Resources::ZERO, &[8001]));
    assert_eq!(ledger.ensure(&an_ensure("bot")).unwrap().port_numbers(), [8000]);
}

#[test]
fn a_port_of_ours_that_is_listened_on_can_be_given_for_the_other_protocol_l18() {
    let udp = || a_module("dns").over(Protocol::Udp);
    // Where it is asked for, and where it is the lowest.
    for module in [udp().at(8000), udp()] {
        let mut ledger = Ledger::of(&[server()]);
        ledger.ensure(&an_ensure("shop")).unwrap();
        ledger.observe(&handle("web-1"), a_report(NOW, Resources::ZERO, &[8000]));
        assert_eq!(ledger.ensure(&an_ensure("wiki").with(module)).unwrap().port_numbers(), [8000]);
    }
}

#[test]
fn a_changed_server_keeps_its_ports_and_takes_up_its_new_ranges() {
    let mut ledger = Ledger::of(&[server()]);
    ledger.ensure(&an_ensure("shop").module("a").module("b")).unwrap();
    ledger.observe(&handle("web-1"), a_report(NOW, Resources::ZERO, &[8002]));
    ledger.put(&server().excluding(8003, 8003));
    assert_eq!(ledger.ensure(&an_ensure("wiki")).unwrap().port_numbers(), [8004]);
    // A range that moved away from what is held takes nothing from its holder.
    ledger.put(&server().port_range(9000, 9001));
    assert_eq!(ledger.ensure(&an_ensure("blog").start_at(1)).unwrap().port_numbers(), [9000]);
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().ports.held_count(), 4);
    assert_eq!(ledger.release("shop", &[]).len(), 2);
}

#[test]
fn both_ends_of_a_range_are_given() {
    let one = a_server("web-1").port_range(8000, 8000);
    assert_eq!(given(&one, &an_ensure("shop")), [8000]);
    let refusal = refused(&a_fleet([&one]), &an_ensure("shop").module("a").module("b"));
    assert_eq!(refusal.reason, Reason::PortsExhausted);
    assert_eq!(given(&server(), &an_ensure("shop").start_at(8009)), [8009]);
    assert_eq!(
        given(&server(), &an_ensure("shop").with(a_module("a").at(8009)).with(a_module("b").at(8000))),
        [8009, 8000]
    );

    let all = a_server("web-1").port_range(1, 65535);
    assert_eq!(given(&all, &an_ensure("shop").start_at(1)), [1]);
    assert_eq!(given(&all, &an_ensure("shop").start_at(65535)), [65535]);
    let refusal = refused(&a_fleet(&[all.holding(65535)]), &an_ensure("shop").start_at(65535));
    assert_eq!(refusal.reason, Reason::PortsExhausted);
}

#[test]
fn a_start_above_the_range_finds_it_exhausted() {
    let refusal = refused(&a_fleet(&[server()]), &an_ensure("shop").start_at(8010));
    assert_eq!(refusal.reason, Reason::PortsExhausted);
    assert_eq!((refusal.figure("start_port"), refusal.figure("port_range")), ("8010", "8000-8009"));
}

#[test]
fn a_range_fills_to_its_last_port_and_empties_again() {
    let mut ledger = Ledger::of(&[server()]);
    for number in 8000..=8009 {
        let decision = ledger.ensure(&an_ensure(&format!("bot-{number}"))).unwrap();
        assert_eq!(decision.port_numbers(), [number]);
    }
    assert_eq!(ledger.ensure(&an_ensure("shop")).unwrap_err().reason, Reason::PortsExhausted);
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().ports.held_count(), 10);
    for number in 8000..=8009 {
        ledger.release(&format!("bot-{number}"), &[]);
    }
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().ports.held_count(), 0);
    ledger.clock += 60;
    let mut request = an_ensure("shop");
    for n in 0..10 {
        request = request.module(&format!("m{n}"));
    }
    assert_eq!(ledger.ensure(&request).unwrap().port_numbers(), (8000..=8009).collect::<Vec<_>>());
}

#[test]
fn a_port_that_rests_is_taken_only_where_no_other_is_free_l19() {
    let resting = server().port_range(8000, 8003).resting(8000, in_a_minute()).resting(8002, in_a_minute());
    assert_eq!(given(&resting, &an_ensure("shop")), [8001]);
    let four = an_ensure("shop").module("a").module("b").module("c").module("d");
    assert_eq!(given(&resting, &four), [8001, 8003, 8000, 8002], "those that rest go last, the lowest first");
    let five = four.module("e");
    assert_eq!(refused(&a_fleet([&resting]), &five).reason, Reason::PortsExhausted);
}

#[test]
fn an_explicit_port_may_rest_l19() {
    let resting = server().resting(8000, in_a_minute());
    assert_eq!(given(&resting, &an_ensure("shop").with(a_module("api").at(8000))), [8000]);
}

#[test]
fn a_port_rests_in_its_own_protocol_and_until_its_time() {
    let resting = server().resting(8000, in_a_minute());
    assert_eq!(given(&resting, &an_ensure("shop").with(a_module("dns").over(Protocol::Udp))), [8000]);

    let mut ledger = Ledger::of(&[server()]);
    ledger.ensure(&an_ensure("shop")).unwrap();
    ledger.release("shop", &[]);
    for (clock, number) in [(0, 8001), (59, 8002), (60, 8000)] {
        ledger.clock = clock;
        assert_eq!(ledger.ensure(&an_ensure(&format!("bot-{clock}"))).unwrap().port_numbers(), [number]);
    }
}

#[test]
fn a_port_that_is_taken_while_it_rests_rests_no_more() {
    let mut ledger = Ledger::of(&[server()]);
    ledger.ensure(&an_ensure("shop")).unwrap();
    ledger.release("shop", &[]);
    ledger.ensure(&an_ensure("shop").with(a_module("api").at(8000))).unwrap();
    let mut expected = ServerPorts::default();
    expected.take(Protocol::Tcp, port(8000));
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().ports, expected);
}

#[test]
fn a_port_that_need_not_rest_does_not() {
    let mut ports = ServerPorts::default();
    ports.take(Protocol::Tcp, port(8000));
    ports.give_back(Protocol::Tcp, port(8000), NOW, NOW);
    let chosen = ports.choose(&server().server, &[a_module("api")], DEFAULT_START_PORT, NOW).unwrap();
    assert_eq!(chosen[0].port, port(8000));
}

#[test]
fn a_port_that_was_given_back_is_known_as_such_until_it_is_taken() {
    let mut ports = ServerPorts::default();
    let known =
        |ports: &ServerPorts| [8000, 8001, 8002].map(|n| ports.was_given_back(Protocol::Tcp, port(n)));
    assert_eq!(known(&ports), [false, false, false]);
    ports.give_back(Protocol::Tcp, port(8000), NOW, NOW);
    ports.set_aside(Protocol::Tcp, port(8001), NOW, NOW);
    ports.give_back(Protocol::Udp, port(8002), in_a_minute(), NOW);
    assert_eq!(known(&ports), [true, true, false]);
    ports.take(Protocol::Tcp, port(8000));
    ports.take(Protocol::Tcp, port(8001));
    assert_eq!(known(&ports), [false, false, false]);
}

#[test]
fn a_port_is_set_aside_until_its_time_l18() {
    let mut ports = ServerPorts::default();
    let is_given = |ports: &ServerPorts, now: OffsetDateTime| {
        let chosen = ports.choose(&server().server, &[a_module("api").at(8000)], DEFAULT_START_PORT, now);
        chosen.is_ok()
    };
    ports.take(Protocol::Tcp, port(8000));
    ports.set_aside(Protocol::Tcp, port(8000), in_a_minute(), NOW);
    ports.set_aside(Protocol::Tcp, port(8001), in_a_minute() + Duration::seconds(1), NOW);
    let is_known = [8000, 8001].map(|number| ports.was_given_back(Protocol::Tcp, port(number)));
    assert_eq!((ports.held_count(), is_known), (0, [true, true]));
    assert!(!is_given(&ports, NOW + Duration::seconds(59)));
    assert!(is_given(&ports, in_a_minute()));
}

#[test]
fn a_port_that_cannot_be_given_for_two_reasons_cannot_be_given() {
    let held_and_excluded = server().excluding(8000, 8000).holding(8000);
    assert_eq!(given(&held_and_excluded, &an_ensure("shop")), [8001]);
    let listened_on_and_excluded = server().excluding(8000, 8000).reported(0, Resources::ZERO, &[8000]);
    assert_eq!(given(&listened_on_and_excluded, &an_ensure("shop")), [8001]);
    let all_three = held_and_excluded.reported(0, Resources::ZERO, &[8000]);
    assert_eq!(given(&all_three, &an_ensure("shop")), [8001]);
    // Held over TCP, excluded in both.
    assert_eq!(given(&all_three, &an_ensure("shop").with(a_module("dns").over(Protocol::Udp))), [8001]);
}

#[test]
fn one_port_is_not_given_to_two_modules_of_one_request() {
    let modules = [a_module("a").at(8000), a_module("b").at(8000)];
    let chosen = ServerPorts::default().choose(&server().server, &modules, DEFAULT_START_PORT, NOW);
    let taken = PortShortage::Taken {
        module: module("b"),
        port: port(8000),
        protocol: Protocol::Tcp,
        cause: TakenCause::Allocated,
    };
    assert_eq!(chosen, Err(taken));
}

#[test]
fn the_default_range_is_between_the_privileged_and_the_ephemeral_ports() {
    assert_eq!(PortRange::DEFAULT.to_string(), "1024-32767");
    for (number, inside) in [(1023, false), (1024, true), (32767, true), (32768, false)] {
        assert_eq!(PortRange::DEFAULT.contains(port(number)), inside);
    }
    assert_eq!(DEFAULT_START_PORT.get(), 8000);
}

#[test]
fn ports_of_a_server_that_nobody_knows_are_passed_over() {
    let mut fleet = Fleet::default();
    fleet.load_port(&handle("web-9"), Protocol::Tcp, port(8000), PortStanding::Held, NOW);
    assert!(fleet.is_empty());
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn ports_are_given_as_long_as_there_are_any_and_each_once(
        sizes in prop::collection::vec(1..4usize, 1..12), excluded in 8000..8012u32,
    ) {
        let mut ledger = Ledger::of(&[server().excluding(excluded, excluded)]);
        let mut left = if excluded <= 8009 { 9 } else { 10 };
        let mut given = std::collections::BTreeSet::new();
        for (index, size) in sizes.into_iter().enumerate() {
            let mut request = an_ensure(&format!("bot-{index}")).ram(0).disk(0);
            for n in 0..size {
                request = request.module(&format!("m{n}"));
            }
            match ledger.ensure(&request) {
                Ok(decision) => {
                    left -= size;
                    for port in decision.port_numbers() {
                        prop_assert!(given.insert(port), "{port} twice");
                        prop_assert!((8000..=8009).contains(&port) && u32::from(port) != excluded);
                    }
                }
                Err(refusal) => {
                    prop_assert_eq!(refusal.reason, Reason::PortsExhausted);
                    prop_assert!(left < size);
                }
            }
        }
    }
}
