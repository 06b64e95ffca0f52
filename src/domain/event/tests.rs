//! What operations expand to, and how they are stored.

use serde::de::DeserializeOwned;
use time::Duration;
use uuid::Uuid;

use super::*;
use crate::domain::{
    Protocol, ServerStatus,
    line::{LeaveCause, WaitingRequest},
    testing::{
        Ledger, NOW, a_module, a_server, an_ensure, handle, ledger::Committed, module, port, project, ram,
        range, read_again,
    },
};

fn requested() -> Requested {
    let request = an_ensure("shop").with(a_module("api").at(8080).over(Protocol::Udp)).module("web").ram(0);
    Requested::of(&request)
}

fn allocation(name: &str, number: u32) -> Allocation {
    Allocation {
        id: Uuid::from_u128(u128::from(number)),
        module: module(name),
        protocol: Protocol::Tcp,
        port: port(number),
        pinned: false,
        create_time: NOW + Duration::microseconds(123_456),
    }
}

fn ensured(selected: bool, ports: u32) -> Ensured {
    let free_before = Resources { cpu_millis: 8000, ram_mb: 16384, disk_mb: 102_400 };
    let free_after = free_before - ram(512);
    Ensured {
        usage_counted: false,
        requested: requested(),
        selected: selected.then_some(Selected { strategy: Strategy::Binpack, free_before, free_after }),
        server_address: "10.0.0.1".to_owned(),
        grown: ram(512),
        allocations: (0..ports).map(|n| allocation(&format!("m{n}"), 8000 + n)).collect(),
        allocation_count: ports + 1,
        expire_time: None,
        served: None,
    }
}

fn served(selected: bool) -> Ensured {
    let served = Some(Served { arrival: 7, since: NOW });
    Ensured { served, expire_time: Some(NOW + Duration::seconds(60)), ..ensured(selected, 1) }
}

fn waiting(arrival: Option<i64>) -> Waiting {
    Waiting {
        request: WaitingRequest { requested: requested(), strategy: Strategy::Binpack, ttl_ms: Some(60_000) },
        reason: Reason::InsufficientCapacity,
        place: 3,
        caller: Uuid::from_u128(1),
        arrival,
        since: NOW,
        deadline: NOW + Duration::seconds(600),
    }
}

fn left(cause: LeaveCause) -> LeftLine {
    LeftLine { arrival: 7, caller: Uuid::from_u128(1), cause }
}

fn refused() -> Refused {
    Refused {
        usage_counted: false,
        requested: requested(),
        reason: Reason::InsufficientCapacity,
        disposition: Disposition::Wait,
        message: "no room".to_owned(),
        metadata: BTreeMap::from([("asked.ram_mb".to_owned(), "0".to_owned())]),
    }
}

fn released(returned: Option<Resources>) -> Released {
    Released {
        cause: ReleaseCause::Requested,
        server_address: "10.0.0.1".to_owned(),
        allocations: vec![allocation("api", 8000)],
        returned,
        free_after: NOW + Duration::seconds(60),
    }
}

fn relocated() -> Relocated {
    let free_before = ram(4096);
    Relocated {
        usage_counted: false,
        from_server_handle: handle("web-1"),
        from_server_address: "10.0.0.1".to_owned(),
        server_address: "10.0.0.2".to_owned(),
        selected: Selected { strategy: Strategy::Spread, free_before, free_after: ram(3584) },
        reserved: ram(512),
        released: vec![allocation("api", 8000)],
        free_after: NOW + Duration::seconds(60),
        allocations: vec![Allocation { pinned: true, ..allocation("api", 8001) }],
    }
}

fn replaced() -> PortReplaced {
    PortReplaced {
        server_address: "10.0.0.1".to_owned(),
        set_aside: allocation("api", 8000),
        until: NOW + Duration::hours(1),
        detail: "nginx".to_owned(),
        allocation: allocation("api", 8001),
        start_port: Some(port(7000)),
        usage_counted: true,
    }
}

fn policy() -> FleetPolicy {
    let mut policy = FleetPolicy::default();
    policy.headroom_percent.ram = 5;
    policy.overcommit_percent.cpu = 400;
    policy
}

fn changed(changes: Vec<ServerChange>) -> ServerChanged {
    let server = a_server("web-1")
        .headroom(Resources::ZERO)
        .label("region", "eu")
        .excluding(8000, 8001)
        .listed_by("cloud", Some("i-1"));
    ServerChanged { changes, server: server.status(ServerStatus::Maintenance).server }
}

/// An operation of each kind and shape.
fn operations() -> Vec<Operation> {
    let mut operations: Vec<_> = [(true, 1), (true, 3), (true, 0), (false, 0), (false, 2), (true, 64)]
        .into_iter()
        .map(|(selected, ports)| Operation::Ensured(ensured(selected, ports)))
        .collect();
    operations.extend([true, false].map(|selected| Operation::Ensured(served(selected))));
    operations.extend([None, Some(7)].map(|arrival| Operation::Waiting(Box::new(waiting(arrival)))));
    let causes = [LeaveCause::Cancelled, LeaveCause::Satisfied, LeaveCause::Refused(Box::new(refused()))];
    operations.extend(causes.map(|cause| Operation::LeftLine(left(cause))));
    operations.push(Operation::Refused(refused()));
    operations.push(Operation::Released(released(None)));
    operations.push(Operation::Released(released(Some(ram(512)))));
    operations.push(Operation::ServerChanged(changed(vec![ServerChange::Registered])));
    operations.push(Operation::ServerChanged(changed(vec![ServerChange::Status, ServerChange::Capacity])));
    operations.push(Operation::Relocated(relocated()));
    operations.push(Operation::PortReplaced(replaced()));
    operations.push(Operation::PolicyChanged(PolicyChanged { policy: policy() }));
    operations
}

/// An operation as the log has it from this number on.
fn entry_from(first_sequence: i64, operation: Operation) -> LogEntry {
    LogEntry {
        first_sequence,
        event_time: NOW,
        project_id: None,
        server_handle: None,
        request_id: String::new(),
        actor: String::new(),
        operation,
    }
}

#[test]
fn an_operation_spans_as_many_numbers_as_it_has_events() {
    for operation in operations() {
        let events = i64::try_from(operation.events().len()).unwrap();
        assert_eq!(operation.event_count(), events, "{operation:?}");
        let entry = entry_from(41, operation);
        assert_eq!(entry.last_sequence(), 40 + events);
    }
}

#[test]
fn the_numbers_of_a_log_have_no_gap() {
    let mut ledger = Ledger::of(&[a_server("web-1"), a_server("web-2")]);
    ledger.ensure(&an_ensure("shop").module("a").module("b")).unwrap();
    ledger.ensure(&an_ensure("shop").module("c").ram(1024)).unwrap();
    ledger.ensure(&an_ensure("wiki").ram(99_999)).unwrap_err();
    ledger.release("shop", &["a"]);
    ledger.release("shop", &[]);
    let mut next = 1;
    for committed in &ledger.log {
        let Committed::Entry(entry) = committed else { continue };
        assert_eq!(entry.first_sequence, next);
        next = entry.last_sequence() + 1;
    }
    assert_eq!(next, ledger.fleet.sequence() + 1);
}

#[test]
fn the_events_of_a_placement_tell_it_in_its_order() {
    let operation = Operation::Ensured(ensured(true, 2));
    let Operation::Ensured(told) = &operation else { unreachable!() };
    let expected = [
        Event::Requested(&told.requested),
        Event::ServerSelected(told, told.selected.unwrap()),
        Event::PortAllocated { server_address: "10.0.0.1", allocation: &told.allocations[0] },
        Event::PortAllocated { server_address: "10.0.0.1", allocation: &told.allocations[1] },
        Event::Completed(told),
    ];
    assert_eq!(operation.events(), expected);
}

#[test]
fn the_other_operations_tell_what_was_done() {
    let operation = Operation::Ensured(ensured(false, 1));
    assert!(matches!(
        &operation.events()[..],
        [Event::Requested(_), Event::PortAllocated { .. }, Event::Completed(_)]
    ));
    let operation = Operation::Refused(refused());
    assert!(matches!(&operation.events()[..], [Event::Requested(_), Event::Failed(_)]));
    let operation = Operation::Released(released(None));
    assert!(matches!(&operation.events()[..], [Event::Released(_)]));
    let operation = Operation::ServerChanged(changed(vec![ServerChange::Removed]));
    assert!(matches!(&operation.events()[..], [Event::ServerChanged(_)]));
    let operation = Operation::Relocated(relocated());
    assert!(matches!(&operation.events()[..], [Event::Relocated(_), Event::PortAllocated { .. }]));
    let operation = Operation::PortReplaced(replaced());
    assert!(matches!(&operation.events()[..], [Event::PortSetAside(_), Event::PortAllocated { .. }]));
    let operation = Operation::PolicyChanged(PolicyChanged { policy: policy() });
    assert!(matches!(&operation.events()[..], [Event::PolicyChanged(_)]));
}

#[test]
fn a_move_concerns_the_server_that_is_left_and_its_ports_the_new_one_alone() {
    let entry = LogEntry {
        first_sequence: 7,
        event_time: NOW,
        project_id: None,
        server_handle: Some(handle("web-2")),
        request_id: String::new(),
        actor: String::new(),
        operation: Operation::Relocated(relocated()),
    };
    let concerned = |index| ["web-1", "web-2", "web-3"].map(|name| entry.concerns(index, &handle(name)));
    assert_eq!(concerned(0), [true, true, false]);
    assert_eq!(concerned(1), [false, true, false]);
    assert_eq!(entry.servers().collect::<Vec<_>>(), [&handle("web-2"), &handle("web-1")]);
    let release = LogEntry { operation: Operation::Released(released(None)), ..entry };
    assert_eq!(release.servers().collect::<Vec<_>>(), [&handle("web-2")]);
}

#[test]
fn whoever_resumes_within_an_operation_is_told_the_rest_of_it() {
    let entry = entry_from(41, Operation::Ensured(ensured(true, 2)));
    assert_eq!(entry.last_sequence(), 45);
    assert_eq!([0, 1, 4].map(|index| entry.sequence_of(index)), [41, 42, 45]);
    let seen = |sequence| entry.events_up_to(sequence);
    assert_eq!([i64::MIN / 2, 39, 40, 41, 43, 45, 46, i64::MAX].map(seen), [0, 0, 0, 1, 3, 5, 5, 5]);
}

fn assert_stored<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(payload: &T) {
    let json = serde_json::to_value(payload).unwrap();
    assert_eq!(&serde_json::from_value::<T>(json).unwrap(), payload);
}

#[test]
fn every_operation_is_read_as_it_was_written() {
    for operation in operations() {
        match &operation {
            Operation::Ensured(ensured) => assert_stored(ensured),
            Operation::Refused(refused) => assert_stored(refused),
            Operation::Released(released) => assert_stored(released),
            Operation::Relocated(relocated) => assert_stored(relocated),
            Operation::PortReplaced(replaced) => assert_stored(replaced),
            Operation::ServerChanged(changed) => assert_stored(changed),
            Operation::Waiting(waiting) => assert_stored(waiting),
            Operation::LeftLine(left) => assert_stored(left),
            Operation::PolicyChanged(changed) => assert_stored(changed),
        }
    }
}

#[test]
fn a_malformed_payload_is_not_read() {
    let json = serde_json::to_string(&ensured(true, 1)).unwrap();
    for (found, instead) in
        [(r#""port":8000"#, r#""port":0"#), (r#""module":"m0""#, r#""module":"-""#), ("binpack", "heaviest")]
    {
        assert!(json.contains(found), "{json}");
        assert!(serde_json::from_str::<Ensured>(&json.replace(found, instead)).is_err());
    }
}

#[test]
fn what_changed_of_a_server_is_told_by_kind() {
    let before = a_server("web-1").server;
    let kinds = |after: &Server| ServerChanged::between(Some(&before), after).map(|changed| changed.changes);
    assert_eq!(ServerChanged::between(None, &before).unwrap().changes, [ServerChange::Registered]);
    assert_eq!(kinds(&before), None);
    for (after, kind) in [
        (a_server("web-1").status(ServerStatus::Error), ServerChange::Status),
        (a_server("web-1").unmanaged(), ServerChange::Status),
        (a_server("web-1").ram(1), ServerChange::Capacity),
        (a_server("web-1").headroom(ram(1)), ServerChange::Capacity),
        (a_server("web-1").address("10.0.0.2"), ServerChange::Updated),
        (a_server("web-1").label("a", "b"), ServerChange::Updated),
        (a_server("web-1").port_range(1, 2), ServerChange::Updated),
        (a_server("web-1").excluding(1, 2), ServerChange::Updated),
        (a_server("web-1").listed_by("cloud", None), ServerChange::Updated),
        (a_server("web-1").listed_by("", Some("i-1")), ServerChange::Updated),
    ] {
        assert_eq!(kinds(&after.server), Some(vec![kind]));
    }
    let all = a_server("web-1").unmanaged().ram(1).address("10.0.0.2").server;
    assert_eq!(kinds(&all).unwrap(), [ServerChange::Status, ServerChange::Capacity, ServerChange::Updated]);
    assert_eq!(ServerChanged::between(Some(&before), &all).unwrap().server, all);
    assert_eq!(before.port_range, range(1024, 32767));
}

// What is stored must be read by releases to come: a change of these is a change of the format of the log.

#[test]
fn the_stored_form_of_an_ensured_is_as_it_was() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&ensured(true, 1)).unwrap(), @r#"
        {
          "requested": {
            "modules": [
              {
                "name": "api",
                "port": 8080,
                "protocol": "udp"
              },
              {
                "name": "web"
              }
            ],
            "resources": {
              "ram_mb": 0
            }
          },
          "selected": {
            "strategy": "binpack",
            "free_before": {
              "cpu_millis": 8000,
              "ram_mb": 16384,
              "disk_mb": 102400
            },
            "free_after": {
              "cpu_millis": 8000,
              "ram_mb": 15872,
              "disk_mb": 102400
            }
          },
          "server_address": "10.0.0.1",
          "grown": {
            "cpu_millis": 0,
            "ram_mb": 512,
            "disk_mb": 0
          },
          "allocations": [
            {
              "id": "00000000-0000-0000-0000-000000001f40",
              "module": "m0",
              "protocol": "tcp",
              "port": 8000,
              "create_time": 1772625600123456
            }
          ],
          "allocation_count": 2
        }
        "#);
}

#[test]
fn the_stored_form_of_the_line_is_as_it_was() {
    insta::assert_snapshot!(serde_json::to_string(&waiting(Some(7))).unwrap(), @r#"{"request":{"requested":{"modules":[{"name":"api","port":8080,"protocol":"udp"},{"name":"web"}],"resources":{"ram_mb":0}},"strategy":"binpack","ttl_ms":60000},"reason":"INSUFFICIENT_CAPACITY","place":3,"caller":"00000000-0000-0000-0000-000000000001","arrival":7,"since":1772625600000000,"deadline":1772626200000000}"#);
    insta::assert_snapshot!(serde_json::to_string(&left(LeaveCause::Cancelled)).unwrap(), @r#"{"arrival":7,"caller":"00000000-0000-0000-0000-000000000001","cause":"cancelled"}"#);
    let refused = left(LeaveCause::Refused(Box::new(refused())));
    insta::assert_snapshot!(serde_json::to_string(&refused).unwrap(), @r#"{"arrival":7,"caller":"00000000-0000-0000-0000-000000000001","cause":{"refused":{"requested":{"modules":[{"name":"api","port":8080,"protocol":"udp"},{"name":"web"}],"resources":{"ram_mb":0}},"reason":"INSUFFICIENT_CAPACITY","disposition":"WAIT","message":"no room","metadata":{"asked.ram_mb":"0"}}}}"#);
    let Ensured { served, expire_time, .. } = served(true);
    insta::assert_snapshot!(serde_json::to_string(&served).unwrap(), @r#"{"arrival":7,"since":1772625600000000}"#);
    assert_eq!(expire_time.unwrap().unix_timestamp(), NOW.unix_timestamp() + 60);
    let expired = Released { cause: ReleaseCause::Expired, ..released(None) };
    assert!(serde_json::to_string(&expired).unwrap().starts_with(r#"{"cause":"expired","#));
}

#[test]
fn the_stored_form_of_a_released_is_as_it_was() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&released(Some(ram(512)))).unwrap(), @r#"
        {
          "server_address": "10.0.0.1",
          "allocations": [
            {
              "id": "00000000-0000-0000-0000-000000001f40",
              "module": "api",
              "protocol": "tcp",
              "port": 8000,
              "create_time": 1772625600123456
            }
          ],
          "returned": {
            "cpu_millis": 0,
            "ram_mb": 512,
            "disk_mb": 0
          },
          "free_after": 1772625660000000
        }
        "#);
}

#[test]
fn the_stored_form_of_a_server_changed_is_as_it_was() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&changed(vec![ServerChange::UsageStale])).unwrap(), @r#"
        {
          "changes": [
            "usage_stale"
          ],
          "server": {
            "handle": "web-1",
            "address": "10.0.0.1",
            "status": "maintenance",
            "managed": true,
            "labels": {
              "region": "eu"
            },
            "capacity": {
              "cpu_millis": 8000,
              "ram_mb": 16384,
              "disk_mb": 102400
            },
            "headroom": {
              "cpu_millis": 0,
              "ram_mb": 0,
              "disk_mb": 0
            },
            "port_range": {
              "start": 1024,
              "end": 32767
            },
            "excluded_ports": [
              {
                "start": 8000,
                "end": 8001
              }
            ],
            "source": "cloud",
            "external_id": "i-1"
          }
        }
        "#);
}

fn of_shop(first_sequence: i64, operation: Operation) -> LogEntry {
    let (project_id, server_handle) = (Some(project("shop")), Some(handle("web-1")));
    LogEntry { project_id, server_handle, ..entry_from(first_sequence, operation) }
}

#[test]
fn what_places_a_project_and_what_takes_it_off_its_server_is_told() {
    for operation in operations() {
        let entry = of_shop(7, operation);
        let placed = match &entry.operation {
            Operation::Ensured(ensured) => ensured.selected.map(|_| true),
            Operation::Released(released) => released.returned.map(|_| false),
            _ => None,
        };
        let expected = placed.map(|placed| (entry.project_id.as_ref().unwrap(), placed));
        assert_eq!(entry.placement(), expected, "{entry:?}");
        let read = read_again(&entry);
        assert_eq!(read.placement(), expected, "{entry:?}");
        assert_eq!(read.first_sequence(), 7);
    }
}

#[test]
fn what_is_granted_has_its_ports_in_order() {
    let ensured = Ensured {
        served: None,
        allocations: vec![allocation("b", 8001), allocation("a", 8000)],
        ..ensured(true, 0)
    };
    let grant = Grant::of(&of_shop(1, Operation::Ensured(ensured))).unwrap();
    let ports: Vec<_> = grant.ports.iter().map(|(_, port)| port.get()).collect();
    assert_eq!(ports, [8000, 8001]);
    assert!(grant.is_placement);
}
