//! What replay says of a decision that comes out otherwise than the log says. Random histories are with the fleet's tests.

use super::*;
use crate::domain::testing::{
    Ledger, a_server, an_ensure, context, handle, ledger::Committed, module, port, project, queue::Waited,
};

/// Replays all but the last of what was committed, and then that as `doctor` leaves it.
fn again(ledger: &Ledger, doctor: impl FnOnce(&mut Operation)) -> Again {
    let Some((Committed::Entry(last), before)) = ledger.log.split_last() else { panic!("{:?}", ledger.log) };
    let mut replay = Replay::default();
    for committed in before {
        match committed {
            Committed::Entry(entry) => {
                let again = replay.take(entry, &context());
                assert!(matches!(again, Again::Same | Again::NoDecision), "{entry:?}: {again:?}");
            }
            Committed::Usage(handle, observation) => replay.observe(handle, observation.clone()),
        }
    }
    let mut entry = last.as_ref().clone();
    doctor(&mut entry.operation);
    replay.take(&entry, &context())
}

fn differs(logged: &str, decided: &str) -> Again {
    Again::Differs { logged: logged.to_owned(), decided: decided.to_owned() }
}

/// Two servers, and someone in line for a third where `in_line` says so.
fn a_ledger(in_line: bool) -> Ledger {
    let mut ledger = Ledger::of(&[a_server("web-1").ram(4096), a_server("web-2").ram(4096)]);
    if in_line {
        for server in ["web-1", "web-2"] {
            ledger.ensure(&an_ensure(server).ram(1024).disk(0).on(server)).unwrap();
        }
        assert!(matches!(ledger.wait(&an_ensure("large").ram(4096).disk(0), 600), Waited::Waits));
    }
    ledger
}

fn ensured(in_line: bool) -> Ledger {
    let mut ledger = a_ledger(in_line);
    ledger.ensure(&an_ensure("shop").ram(512).start_at(9000)).unwrap();
    ledger
}

fn refused(in_line: bool) -> Ledger {
    let mut ledger = a_ledger(in_line);
    ledger.ensure(&an_ensure("shop").ram(4097)).unwrap_err();
    ledger
}

fn relocated(in_line: bool) -> Ledger {
    let mut ledger = ensured(in_line);
    let request = RelocateRequest {
        project_id: project("shop"),
        server_handle: None,
        from_server_handle: None,
        strategy: Strategy::Spread,
    };
    ledger.relocate(&request).unwrap();
    ledger
}

fn replaced(in_line: bool) -> Ledger {
    let mut ledger = ensured(in_line);
    let report = PortInUseReport {
        project_id: project("shop"),
        module: module("backend"),
        port: port(9000),
        start_port: port(9000),
        detail: String::new(),
    };
    ledger.report_port_in_use(&report).unwrap();
    ledger
}

/// Another port than the one that was given.
fn misplace(operation: &mut Operation, counted: bool) {
    let allocation = match operation {
        Operation::Ensured(Ensured { allocations, usage_counted, .. })
        | Operation::Relocated(Relocated { allocations, usage_counted, .. }) => {
            *usage_counted = counted;
            &mut allocations[0]
        }
        Operation::PortReplaced(PortReplaced { allocation, usage_counted, .. }) => {
            *usage_counted = counted;
            allocation
        }
        other => panic!("{other:?} gives no port"),
    };
    allocation.port = port(60_000);
}

#[test]
fn what_differs_is_told_as_it_was_logged_and_as_it_is_decided() {
    assert_eq!(
        again(&ensured(false), |operation| misplace(operation, false)),
        differs(
            "web-1 with 512 MB RAM, 1024 MB disk, 0 thousandths of a CPU and backend 60000/TCP",
            "web-1 with 512 MB RAM, 1024 MB disk, 0 thousandths of a CPU and backend 9000/TCP",
        )
    );
    assert_eq!(
        again(&refused(false), |operation| {
            let Operation::Refused(refused) = operation else { panic!("{operation:?}") };
            refused.reason = Reason::NoServers;
        }),
        differs("NO_SERVERS", "REQUEST_EXCEEDS_FLEET")
    );
    let mut twice = ensured(false);
    let last = twice.log.last().unwrap().clone();
    twice.log.push(last);
    let logged = "web-1 with 512 MB RAM, 1024 MB disk, 0 thousandths of a CPU and backend 9000/TCP";
    assert_eq!(again(&twice, |_| {}), differs(logged, "unchanged"));
}

#[test]
fn what_is_decided_as_it_was_logged_is_the_same_whatever_it_depended_on() {
    for in_line in [false, true] {
        for ledger in [ensured(in_line), refused(in_line), relocated(in_line), replaced(in_line)] {
            assert_eq!(again(&ledger, |_| {}), Again::Same);
        }
    }
}

#[test]
fn what_differs_is_wrong_unless_it_depended_on_what_the_log_does_not_carry() {
    for ledger in [ensured(false), relocated(false), replaced(false)] {
        let wrong = again(&ledger, |operation| misplace(operation, false));
        assert!(matches!(wrong, Again::Differs { .. }), "{wrong:?}");
        assert_eq!(again(&ledger, |operation| misplace(operation, true)), Again::Open, "a report counted");
    }
    for ledger in [ensured(true), relocated(true)] {
        let in_line = again(&ledger, |operation| misplace(operation, false));
        assert_eq!(in_line, Again::Open, "something may have been kept");
    }
    let served = again(&ensured(false), |operation| {
        misplace(operation, false);
        let Operation::Ensured(ensured) = operation else { panic!("{operation:?}") };
        ensured.served = Some(crate::domain::event::Served { arrival: 1, since: context().now });
    });
    assert_eq!(served, Again::Open);
}

#[test]
fn a_refusal_that_would_be_another_is_wrong_unless_it_depended_on_what_the_log_does_not_carry() {
    let told = |ledger: &Ledger, reason, cause: Option<&str>, counted| {
        again(ledger, |operation| {
            let Operation::Refused(refused) = operation else { panic!("{operation:?}") };
            refused.reason = reason;
            refused.usage_counted = counted;
            refused.metadata.extend(cause.map(|cause| ("cause".to_owned(), cause.to_owned())));
        })
    };
    let wrong = |again| assert!(matches!(again, Again::Differs { .. }), "{again:?}");
    wrong(told(&refused(false), Reason::InsufficientCapacity, None, false));
    wrong(told(&refused(false), Reason::BoundServerNotAdmissible, Some("STATUS"), false));
    for open in [
        told(&refused(false), Reason::InsufficientCapacity, None, true),
        told(&refused(true), Reason::InsufficientCapacity, None, false),
        // Whether reports are required is not in the log.
        told(&refused(false), Reason::UsageStale, None, false),
        told(&refused(false), Reason::BoundServerNotAdmissible, Some("USAGE_STALE"), false),
    ] {
        assert_eq!(open, Again::Open);
    }
}

#[test]
fn a_move_to_a_server_that_was_named_is_the_same_though_another_is_better() {
    let mut ledger = ensured(false);
    ledger.put(&a_server("web-3").ram(65_536));
    let request = RelocateRequest {
        project_id: project("shop"),
        server_handle: Some(handle("web-2")),
        from_server_handle: None,
        strategy: Strategy::Spread,
    };
    ledger.relocate(&request).unwrap();
    assert_eq!(again(&ledger, |_| {}), Again::Same);
}

#[test]
fn a_decision_is_made_again_at_its_own_time() {
    let mut ledger = ensured(false);
    ledger.release("shop", &[]);
    ledger.clock += 60;
    // What rested is given again.
    ledger.ensure(&an_ensure("wiki").start_at(9000)).unwrap();
    assert_eq!(ledger.held_by("wiki").allocations[0].port, port(9000));
    assert_eq!(again(&ledger, |_| {}), Again::Same);
}
