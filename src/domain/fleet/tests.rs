//! The fold: what each operation does to it, and random histories in which nothing may ever be wrong.

use std::collections::BTreeMap;

use proptest::{collection, prelude::*, sample};
use serde::{Serialize, de::DeserializeOwned};
use time::OffsetDateTime;

use super::*;
use crate::domain::{
    Disposition, Project, ResourceRequest, ServerStatus,
    event::{Refused, Requested},
    placement::{Decision, decide},
    request::EnsureRequest,
    testing::{
        Ledger, NOW, TestServer, a_fleet, a_fleet_at, a_report, a_server, an_ensure,
        arbitrary::{HANDLES, arbitrary_ensure, arbitrary_report, arbitrary_server},
        cases, context, decide_new, handle,
        ledger::Committed,
        oracle::{self, Verdict},
        port, project, ram,
    },
};

/// All of a server that decisions depend on.
type Standing<'a> = (&'a Server, Resources, i64, Option<&'a Observation>, bool, &'a ServerPorts);

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
    assert!(
        a.by_free_ram()
            .map(|state| &state.server.handle)
            .eq(b.by_free_ram().map(|state| &state.server.handle))
    );
}

/// The index is what sorting says, with every server in it once.
fn assert_indexed(fleet: &Fleet) {
    let mut sorted: Vec<_> =
        fleet.iter().map(|state| (Reverse(state.free().ram_mb), &state.server.handle)).collect();
    sorted.sort();
    let indexed: Vec<_> =
        fleet.by_free_ram().map(|state| (Reverse(state.free().ram_mb), &state.server.handle)).collect();
    assert_eq!(indexed, sorted);
    assert_eq!(fleet.len(), sorted.len());
    assert!(fleet.iter().all(|state| fleet.get(&state.server.handle).is_some()));
}

/// What another replica reads of an operation: the payload as it is stored.
fn stored<T: Serialize + DeserializeOwned>(payload: &T) -> T {
    serde_json::from_str(&serde_json::to_string(payload).unwrap()).unwrap()
}

/// The fold of another replica, which reads the log and the usage reports.
fn replayed(log: &[Committed]) -> Fleet {
    let mut fleet = Fleet::default();
    for committed in log {
        match committed {
            Committed::Entry(entry) => {
                let operation = match &entry.operation {
                    Operation::Ensured(ensured) => Operation::Ensured(stored(ensured)),
                    Operation::Refused(refused) => Operation::Refused(stored(refused)),
                    Operation::Released(released) => Operation::Released(stored(released)),
                    Operation::ServerChanged(changed) => Operation::ServerChanged(stored(changed)),
                };
                fleet.apply(&LogEntry { operation, ..entry.clone() });
            }
            Committed::Usage(handle, observation) => fleet.observe(handle, observation.clone()),
        }
    }
    fleet
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
    let order: Vec<_> = fleet.by_free_ram().map(|state| state.server.handle.as_str()).collect();
    assert_eq!(order, ["web-4", "web-1", "web-3", "web-5"]);
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

fn entry(first_sequence: i64, project_id: Option<ProjectId>, operation: Operation) -> LogEntry {
    let request_id = String::new();
    LogEntry { first_sequence, event_time: NOW, project_id, server_handle: None, request_id, operation }
}

fn refusal_of(name: &str, reason: Reason, seconds: i64) -> LogEntry {
    let refused = Refused {
        requested: Requested { modules: Vec::new(), resources: ResourceRequest::default() },
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
    assert!(!just(&fleet, "shop", Reason::NoServers, 2));
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
        assert!(fleet.recent_refusals.len() <= 1024);
    }
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

/// Something that happens to a pool.
#[derive(Debug, Clone)]
enum Step {
    Put(Box<TestServer>),
    Remove(&'static str),
    Ensure(EnsureRequest),
    Release(&'static str, Vec<&'static str>),
    Usage(&'static str, Observation),
    Pass(i64),
}

fn arbitrary_step() -> impl Strategy<Value = Step> {
    let names = || sample::select(vec!["blog", "bot", "shop", "wiki"]);
    let modules = || sample::subsequence(vec!["api", "backend", "db", "web"], 0..3);
    prop_oneof![
        3 => arbitrary_server().prop_map(|server| Step::Put(Box::new(server))),
        1 => sample::select(HANDLES.to_vec()).prop_map(Step::Remove),
        8 => arbitrary_ensure().prop_map(Step::Ensure),
        4 => (names(), modules()).prop_map(|(name, modules)| Step::Release(name, modules)),
        2 => (sample::select(HANDLES.to_vec()), arbitrary_report()).prop_map(|(name, report)| Step::Usage(name, report)),
        2 => sample::select(vec![1, 30, 60, 200]).prop_map(Step::Pass),
    ]
}

/// Some servers that admit, and what then happens.
fn arbitrary_history() -> impl Strategy<Value = Vec<Step>> {
    let ready = collection::vec(arbitrary_server(), 1..4).prop_map(|mut servers| {
        for server in &mut servers {
            server.server.status = ServerStatus::Ready;
            server.server.managed = true;
            server.observed = None;
        }
        servers.into_iter().map(|server| Step::Put(Box::new(server))).collect::<Vec<_>>()
    });
    (ready, collection::vec(arbitrary_step(), 10..60)).prop_map(|(mut steps, then)| {
        steps.extend(then);
        steps
    })
}

/// Takes a step. An ensure must come to what the oracle says, and must not take more than there is.
fn take(ledger: &mut Ledger, step: &Step) {
    match step {
        Step::Put(server) => ledger.put(server),
        Step::Remove(name) => {
            let _ = ledger.remove(&handle(name));
        }
        Step::Release(name, modules) => {
            ledger.release(name, modules);
        }
        Step::Usage(name, report) => {
            // As the allocator does, only of servers that are known.
            if ledger.fleet.get(&handle(name)).is_some() {
                let observe_time = ledger.now() + (report.observe_time - NOW);
                ledger.observe(&handle(name), Observation { observe_time, ..report.clone() });
            }
        }
        Step::Pass(seconds) => ledger.clock += seconds,
        Step::Ensure(request) => {
            let project = ledger.project(&request.project_id);
            let expected = oracle::verdict(&ledger.servers(), &project, request, &ledger.context());
            let decision = ledger.ensure(request);
            if let Ok(Decision::Place { server_handle, .. } | Decision::Extend { server_handle, .. }) =
                &decision
            {
                assert_within_budget(&ledger.fleet, server_handle, decision.as_ref().unwrap());
            }
            let verdict = decision.map_or_else(|refusal| Verdict::Refused(refusal.reason), Verdict::from);
            assert_eq!(verdict, expected);
        }
    }
}

/// Rule 5: no ensure takes a server's reserved capacity above its capacity less its headroom.
fn assert_within_budget(fleet: &Fleet, server_handle: &ServerHandle, decision: &Decision) {
    let state = fleet.get(server_handle).unwrap();
    let grown = match decision {
        Decision::Place { selected, .. } => {
            assert_eq!(state.free(), selected.free_after);
            // All of it, also what is not asked for.
            Resources { cpu_millis: 1, ram_mb: 1, disk_mb: 1 }
        }
        Decision::Extend { grow, .. } => *grow,
        Decision::Unchanged => Resources::ZERO,
    };
    let over = grown.zip(state.free(), |grown, free| if grown > 0 && free < 0 { free } else { 0 });
    assert_eq!(over, Resources::ZERO, "{server_handle} is over its budget");
    assert_eq!(state.server.status, ServerStatus::Ready);
    assert!(state.server.managed);
}

/// The fold has the sums and ports that counting them anew gives.
fn assert_counted(ledger: &Ledger) {
    for server in ledger.servers() {
        let state = ledger.fleet.get(&server.server.handle).unwrap();
        assert_eq!(state.reserved, server.reserved);
        assert_eq!(state.placement_count, server.placement_count);
        assert_eq!(state.ports.held_count(), server.held.len());
    }
    assert_indexed(&ledger.fleet);
}

/// What a project that nobody has yet, or that has something already, would be told now.
fn next_decisions(
    fleet: &Fleet,
    ledger: &Ledger,
    now: OffsetDateTime,
) -> Vec<Result<Decision, crate::domain::Refusal>> {
    let context = crate::domain::testing::context_at(now);
    let new = an_ensure("new").module("a").module("b").start_at(1);
    let mut decisions = vec![
        decide(fleet, &Project::unplaced(project("new")), &new, &context),
        decide(
            fleet,
            &Project::unplaced(project("new")),
            &new.clone().binpack().ram(0).disk(0).cpu(1),
            &context,
        ),
    ];
    for placed in ledger.projects.values() {
        let request = an_ensure(placed.id.as_str()).module("fresh").ram(700).start_at(1);
        decisions.push(decide(fleet, placed, &request, &context));
    }
    decisions
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn in_no_history_is_a_server_over_its_budget_or_a_port_given_twice(history in arbitrary_history()) {
        let mut ledger = Ledger::default();
        for step in &history {
            take(&mut ledger, step);
            // Counting fails where a port is held twice.
            assert_counted(&ledger);
        }
    }

    #[test]
    fn replicas_that_fold_the_same_log_stand_and_decide_alike(history in arbitrary_history()) {
        let mut ledger = Ledger::default();
        for step in &history {
            take(&mut ledger, step);
        }
        let replica = replayed(&ledger.log);
        assert_same(&replica, &ledger.fleet);
        assert_eq!(replica.recent_refusals, ledger.fleet.recent_refusals);
        let next = next_decisions(&ledger.fleet, &ledger, ledger.now());
        assert_eq!(next_decisions(&replica, &ledger, ledger.now()), next);
        // A replica that starts anew reads the tables instead.
        let loaded = a_fleet_at(ledger.now(), &ledger.servers());
        assert_eq!(next_decisions(&loaded, &ledger, ledger.now()), next);
        assert_indexed(&loaded);
    }

    #[test]
    fn a_release_gives_back_exactly_what_was_taken(
        history in arbitrary_history(), request in arbitrary_ensure(), more in arbitrary_ensure(), one_by_one in any::<bool>(),
    ) {
        let mut ledger = Ledger::default();
        for step in &history {
            take(&mut ledger, step);
        }
        // A project of its own, after a while in which everything has rested, with one server at least that has room for it.
        let request = EnsureRequest { project_id: project("guest"), server_handle: None, ..request };
        let more = EnsureRequest { project_id: project("guest"), server_handle: None, ..more };
        let mut roomy = a_server("roomy").ram(9000).port_range(7998, 8020);
        roomy.server.labels = request.selector.clone();
        ledger.put(&roomy);
        ledger.clock += 60;
        let before = sums(&ledger.fleet);
        let first = decide(&ledger.fleet, &ledger.held_by("guest"), &request, &ledger.context());
        ledger.ensure(&request).unwrap();
        let _ = ledger.ensure(&more);
        prop_assert_ne!(&sums(&ledger.fleet), &before);
        if one_by_one {
            for held in ledger.held_by("guest").allocations {
                ledger.release("guest", &[held.module.as_str()]);
            }
        } else {
            ledger.release("guest", &[]);
        }
        prop_assert_eq!(sums(&ledger.fleet), before);
        prop_assert_eq!(ledger.held_by("guest").placement, None);
        // Reports may grow too old while ports rest: that is not for the release to undo.
        let rested = crate::domain::placement::Context {
            now: ledger.now() + Ledger::PORT_REST,
            usage_max_age: ledger.context().usage_max_age + std::time::Duration::from_mins(1),
        };
        prop_assert_eq!(decide(&ledger.fleet, &ledger.held_by("guest"), &request, &rested), first);
    }
}

/// What is reserved on a server, how many projects it has, and the ports that they hold.
type Sums = (Resources, i64, Vec<(Protocol, u16)>);

/// What is reserved, how many projects are placed and which ports are held: all that a release gives back.
fn sums(fleet: &Fleet) -> BTreeMap<ServerHandle, Sums> {
    let modules = [crate::domain::testing::a_module("probe")];
    fleet
        .iter()
        .map(|state| {
            let held = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|protocol| {
                let module = modules[0].clone().over(protocol);
                crate::domain::testing::arbitrary::PORTS.filter_map(move |number| {
                    // Asked over all ports, so that what is left is what is held.
                    let mut server = state.server.clone();
                    server.port_range = crate::domain::testing::range(1, 65535);
                    let probe = [module.clone().at(number)];
                    match state.ports.choose(&server, None, &probe, port(1), NOW) {
                        Err(crate::domain::ports::PortShortage::Taken {
                            cause: crate::domain::ports::TakenCause::Allocated,
                            ..
                        }) => Some((protocol, u16::try_from(number).unwrap())),
                        _ => None,
                    }
                })
            });
            (state.server.handle.clone(), (state.reserved, state.placement_count, held.collect()))
        })
        .collect()
}

#[test]
fn a_fleet_that_is_described_decides_in_tests_as_one_that_is_folded() {
    let server = a_server("web-1").reserved(ram(100)).holding(8000);
    let fleet = a_fleet(&[server]);
    assert!(fleet.admits(&handle("web-1"), &context()));
    assert_eq!(decide_new(&fleet, &an_ensure("shop")).unwrap().port_numbers(), [8001]);
}
