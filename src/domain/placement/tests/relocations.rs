//! Moving a placed project, and another port for a module whose port is in use.

use crate::domain::{
    Allocation, Protocol, Reason, Refusal, ServerStatus,
    placement::{PortReplacement, Relocation},
    request::{PortInUseReport, RelocateRequest, Strategy},
    testing::{Ledger, a_module, a_server, an_ensure, handle, module, port, project, ram},
};

fn away(name: &str) -> RelocateRequest {
    RelocateRequest {
        project_id: project(name),
        server_handle: None,
        from_server_handle: None,
        strategy: Strategy::Spread,
    }
}

fn to(name: &str, server: &str) -> RelocateRequest {
    RelocateRequest { server_handle: Some(handle(server)), ..away(name) }
}

fn in_use(name: &str, of: &str, number: u32) -> PortInUseReport {
    PortInUseReport {
        project_id: project(name),
        module: module(of),
        port: port(number),
        start_port: port(8000),
        detail: "nginx".to_owned(),
    }
}

fn reason<T: std::fmt::Debug>(refused: Result<T, Refusal>) -> Reason {
    refused.unwrap_err().reason
}

fn server_of(ledger: &Ledger, name: &str) -> String {
    ledger.held_by(name).placement.unwrap().server_handle.to_string()
}

fn numbers(ledger: &Ledger, name: &str) -> Vec<(String, u16)> {
    let port = |held: Allocation| (held.module.to_string(), held.port.get());
    ledger.held_by(name).allocations.into_iter().map(port).collect()
}

#[test]
fn a_project_moves_with_all_that_it_holds_and_its_old_ports_rest() {
    let mut ledger = Ledger::of(&[a_server("web-1"), a_server("web-2").ram(8000)]);
    ledger.ensure(&an_ensure("shop").module("api").module("web").ram(600)).unwrap();
    assert_eq!(server_of(&ledger, "shop"), "web-1");
    ledger.relocate(&away("shop")).unwrap();
    assert_eq!(server_of(&ledger, "shop"), "web-2");
    assert_eq!(ledger.reserved_on("web-1"), ram(0));
    assert_eq!(ledger.reserved_on("web-2").ram_mb, 600);
    assert_eq!(numbers(&ledger, "shop"), [("api".to_owned(), 8000), ("web".to_owned(), 8001)]);
    // L19: the next one on the server that was left gets ports that do not rest.
    ledger.ensure(&an_ensure("next").on("web-1")).unwrap();
    assert_eq!(numbers(&ledger, "next"), [("backend".to_owned(), 8002)]);
}

#[test]
fn a_move_keeps_the_labels_the_lowest_port_and_the_explicit_ports_of_the_placement() {
    let eu = |name| a_server(name).label("region", "eu");
    let mut ledger = Ledger::of(&[eu("web-1"), a_server("web-2").ram(99_999), eu("web-3").ram(4000)]);
    let request = an_ensure("shop")
        .labelled("region", "eu")
        .start_at(9000)
        .module("api")
        .with(a_module("dns").at(53).over(Protocol::Udp));
    ledger.put(&eu("web-1").port_range(1, 20000));
    ledger.put(&eu("web-3").ram(4000).port_range(1, 20000));
    ledger.ensure(&request).unwrap();
    ledger.relocate(&away("shop")).unwrap();
    assert_eq!(server_of(&ledger, "shop"), "web-3", "web-2 has more room and not the label");
    assert_eq!(numbers(&ledger, "shop"), [("api".to_owned(), 9000), ("dns".to_owned(), 53)]);
    assert_eq!(ledger.held_by("shop").allocations[1].protocol, Protocol::Udp);
    // Repeating the request that placed it finds all of it.
    ledger.ensure(&request).unwrap();
    assert_eq!(server_of(&ledger, "shop"), "web-3");
    // An explicit port that is taken there is in the way.
    ledger.ensure(&an_ensure("other").on("web-1").with(a_module("dns").at(53).over(Protocol::Udp))).unwrap();
    assert_eq!(reason(ledger.relocate(&away("shop"))), Reason::PortTaken);
}

#[test]
fn a_repeat_moves_nothing() {
    let mut ledger = Ledger::of(&[a_server("web-1"), a_server("web-2"), a_server("web-3")]);
    ledger.ensure(&an_ensure("shop")).unwrap();
    let leave = RelocateRequest { from_server_handle: Some(handle("web-1")), ..away("shop") };
    assert_ne!(ledger.relocate(&leave).unwrap(), Relocation::Unchanged);
    assert_eq!(ledger.relocate(&leave).unwrap(), Relocation::Unchanged);
    assert_eq!(ledger.relocate(&to("shop", "web-2")).unwrap(), Relocation::Unchanged);
    assert_eq!(server_of(&ledger, "shop"), "web-2");
}

#[test]
fn a_move_is_refused_as_a_placement_is() {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(5000)]);
    assert_eq!(reason(ledger.relocate(&away("shop"))), Reason::ProjectNotFound);
    ledger.ensure(&an_ensure("shop").ram(2000)).unwrap();
    assert_eq!(reason(ledger.relocate(&to("shop", "web-9"))), Reason::ServerNotFound);
    let alone = ledger.relocate(&away("shop")).unwrap_err();
    assert_eq!(alone.reason, Reason::NoServers);
    insta::assert_snapshot!(alone.message, @"no server is registered beside the one that the project is to leave; register one with `RegisterServer`");
    ledger.put(&a_server("web-2").ram(1999));
    assert_eq!(reason(ledger.relocate(&away("shop"))), Reason::RequestExceedsFleet);
    ledger.put(&a_server("web-2").ram(2000).status(ServerStatus::Maintenance));
    assert_eq!(reason(ledger.relocate(&away("shop"))), Reason::NoAdmissibleServer);
    ledger.put(&a_server("web-2").ram(2100));
    ledger.ensure(&an_ensure("other").on("web-2").ram(101)).unwrap();
    let full = ledger.relocate(&away("shop")).unwrap_err();
    assert_eq!(full.reason, Reason::InsufficientCapacity);
    assert_eq!(full.metadata["nearest.short.ram_mb"], "1");
    assert_eq!(
        (&full.metadata["rejected.LEFT"], &full.metadata["from_server_handle"]),
        (&"1".to_owned(), &"web-1".to_owned())
    );
    assert_eq!(server_of(&ledger, "shop"), "web-1", "nothing was moved");
}

#[test]
fn a_project_leaves_a_server_of_any_status() {
    let mut ledger = Ledger::of(&[a_server("web-1"), a_server("web-2").ram(4000)]);
    for status in [ServerStatus::Maintenance, ServerStatus::Error, ServerStatus::Missing] {
        ledger.put(&a_server("web-1"));
        ledger.ensure(&an_ensure("shop").on("web-1")).unwrap();
        ledger.put(&a_server("web-1").status(status));
        ledger.relocate(&away("shop")).unwrap();
        assert_eq!(server_of(&ledger, "shop"), "web-2");
        ledger.release("shop", &[]);
    }
}

#[test]
fn l18_a_port_that_is_in_use_is_set_aside_and_its_module_gets_another() {
    let mut ledger = Ledger::of(&[a_server("web-1").port_range(8000, 8002)]);
    ledger.ensure(&an_ensure("shop").module("api").module("web")).unwrap();
    let PortReplacement::Replace { held, grant } =
        ledger.report_port_in_use(&in_use("shop", "api", 8000)).unwrap()
    else {
        panic!("it is replaced")
    };
    assert_eq!((held.port, grant.port), (port(8000), port(8002)));
    assert_eq!(numbers(&ledger, "shop"), [("api".to_owned(), 8002), ("web".to_owned(), 8001)]);
    // Where a resting port would be given, a port that is set aside is not, not even to who asks for it.
    ledger.release("shop", &["web"]);
    ledger.ensure(&an_ensure("next")).unwrap();
    assert_eq!(numbers(&ledger, "next"), [("backend".to_owned(), 8001)]);
    assert_eq!(reason(ledger.ensure(&an_ensure("late"))), Reason::PortsExhausted);
    let asked = ledger.ensure(&an_ensure("late").with(a_module("api").at(8000))).unwrap_err();
    assert_eq!((asked.reason, asked.metadata["cause"].as_str()), (Reason::PortTaken, "SET_ASIDE"));
    ledger.clock += Ledger::PORT_SET_ASIDE.whole_seconds() - 1;
    assert_eq!(reason(ledger.ensure(&an_ensure("late"))), Reason::PortsExhausted);
    ledger.clock += 1;
    ledger.ensure(&an_ensure("late")).unwrap();
    assert_eq!(numbers(&ledger, "late"), [("backend".to_owned(), 8000)]);
}

#[test]
fn a_report_that_is_repeated_or_of_another_time_changes_nothing() {
    let mut ledger = Ledger::of(&[a_server("web-1")]);
    ledger.ensure(&an_ensure("shop").module("api")).unwrap();
    ledger.report_port_in_use(&in_use("shop", "api", 8000)).unwrap();
    let told = ledger.log.len();
    assert_eq!(ledger.report_port_in_use(&in_use("shop", "api", 8000)).unwrap(), PortReplacement::Unchanged);
    assert_eq!(ledger.report_port_in_use(&in_use("shop", "api", 7)).unwrap(), PortReplacement::Unchanged);
    assert_eq!((numbers(&ledger, "shop"), ledger.log.len()), (vec![("api".to_owned(), 8001)], told));
}

#[test]
fn a_report_is_refused_where_there_is_nothing_to_give() {
    let mut ledger = Ledger::of(&[a_server("web-1").port_range(8000, 8000)]);
    assert_eq!(reason(ledger.report_port_in_use(&in_use("shop", "api", 8000))), Reason::ProjectNotFound);
    ledger.ensure(&an_ensure("shop").module("api")).unwrap();
    let unknown = ledger.report_port_in_use(&in_use("shop", "web", 8000)).unwrap_err();
    assert_eq!((unknown.reason, unknown.metadata["modules"].as_str()), (Reason::ModuleNotFound, "api"));
    assert_eq!(reason(ledger.report_port_in_use(&in_use("shop", "api", 8000))), Reason::PortsExhausted);
    assert_eq!(numbers(&ledger, "shop"), [("api".to_owned(), 8000)], "the module keeps what it has");
    // Rule 4: a new port is something new.
    ledger.put(&a_server("web-1").status(ServerStatus::Maintenance));
    assert_eq!(
        reason(ledger.report_port_in_use(&in_use("shop", "api", 8000))),
        Reason::BoundServerNotAdmissible
    );
}

#[test]
fn a_server_that_is_over_its_budget_gives_another_port_all_the_same() {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(2000)]);
    ledger.ensure(&an_ensure("shop").module("api").ram(2000)).unwrap();
    ledger.put(&a_server("web-1").ram(1000));
    ledger.report_port_in_use(&in_use("shop", "api", 8000)).unwrap();
    assert_eq!(numbers(&ledger, "shop"), [("api".to_owned(), 8001)], "it makes nothing worse");
}
