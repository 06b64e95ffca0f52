//! Random histories, in which nothing may ever be wrong.

use std::time::Duration as Age;

use proptest::{collection, option, prelude::*, sample};
use serde::{Serialize, de::DeserializeOwned};

use super::*;
use crate::domain::{
    Allocation, ModuleName, Project, Refusal, ServerStatus,
    event::Change,
    placement::{Decision, PortReplacement, Relocation, decide},
    ports::{PortShortage, TakenCause},
    replay::{Again, Replay},
    request::{EnsureRequest, PortInUseReport, RelocateRequest, Strategy as Placing},
    resources::PerResource,
    testing::{
        a_fleet_at, a_module,
        arbitrary::{HANDLES, PORTS, arbitrary_ensure, arbitrary_report, arbitrary_server},
        cases, context_at,
        ledger::Committed,
        oracle::{self, Verdict},
        port, range, read_again,
    },
};

/// What another replica reads of an operation: the payload as it is stored.
fn stored<T: Serialize + DeserializeOwned>(payload: &T) -> T {
    serde_json::from_str(&serde_json::to_string(payload).unwrap()).unwrap()
}

/// The fold of another replica, which reads the log and the usage reports; of what was granted the little that it has to know, or
/// all that the log has.
fn replayed(log: &[Committed], by_grants: bool) -> Fleet {
    let mut fleet = Fleet::default();
    for committed in log {
        match committed {
            Committed::Entry(entry) => {
                let operation = match &entry.operation {
                    Operation::Ensured(ensured) => Operation::Ensured(stored(ensured)),
                    Operation::Refused(refused) => Operation::Refused(stored(refused)),
                    Operation::Released(released) => Operation::Released(stored(released)),
                    Operation::Relocated(relocated) => Operation::Relocated(stored(relocated)),
                    Operation::PortReplaced(replaced) => Operation::PortReplaced(stored(replaced)),
                    Operation::PolicyChanged(changed) => Operation::PolicyChanged(stored(changed)),
                    Operation::ServerChanged(changed) => Operation::ServerChanged(stored(changed)),
                    Operation::Waiting(waiting) => Operation::Waiting(stored(waiting)),
                    Operation::LeftLine(left) => Operation::LeftLine(stored(left)),
                };
                let entry = LogEntry { operation, ..entry.as_ref().clone() };
                fleet.follow(&if by_grants {
                    read_again(&entry)
                } else {
                    Change::Operation(Box::new(entry))
                });
            }
            Committed::Usage(handle, observation) => fleet.observe(handle, observation.clone()),
        }
    }
    fleet
}

/// Something that happens to a pool.
#[derive(Debug, Clone)]
enum Step {
    Put(Box<TestServer>),
    Remove(&'static str),
    Ensure(EnsureRequest),
    Release(&'static str, Vec<&'static str>),
    Usage(&'static str, Observation),
    Relocate(RelocateRequest),
    /// A module of a project, whether it is its own port that is reported, and the lowest port for another.
    PortInUse(&'static str, usize, bool, u32),
    Policy(FleetPolicy),
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
        3 => arbitrary_relocation().prop_map(Step::Relocate),
        2 => (names(), 0..3usize, prop::bool::weighted(0.8), PORTS)
            .prop_map(|(name, module, own, start)| Step::PortInUse(name, module, own, start)),
        1 => arbitrary_policy().prop_map(Step::Policy),
        2 => sample::select(vec![1, 30, 60, 200, 3600]).prop_map(Step::Pass),
    ]
}

fn arbitrary_relocation() -> impl Strategy<Value = RelocateRequest> {
    let server = |probability| option::weighted(probability, sample::select(HANDLES.to_vec()));
    (sample::select(vec!["blog", "bot", "shop", "wiki"]), server(0.3), server(0.3), any::<bool>()).prop_map(
        |(name, to, from, binpack)| RelocateRequest {
            project_id: project(name),
            server_handle: to.map(handle),
            from_server_handle: from.map(handle),
            strategy: if binpack { Placing::Binpack } else { Placing::Spread },
        },
    )
}

fn arbitrary_policy() -> impl Strategy<Value = FleetPolicy> {
    let figures = |figures: &[i64]| {
        let figure = sample::select(figures.to_vec());
        (figure.clone(), figure.clone(), figure).prop_map(|(cpu, ram, disk)| PerResource { cpu, ram, disk })
    };
    (figures(&[0, 0, 100]), figures(&[0, 7, 50]), figures(&[100, 100, 130, 400])).prop_map(
        |(headroom, headroom_percent, overcommit_percent)| FleetPolicy {
            headroom: Resources { cpu_millis: headroom.cpu, ram_mb: headroom.ram, disk_mb: headroom.disk },
            headroom_percent,
            overcommit_percent,
        },
    )
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
        Step::Policy(policy) => ledger.set_policy(*policy),
        Step::Relocate(request) => {
            let project = ledger.project(&request.project_id);
            let expected = oracle::relocation(&ledger.servers(), &project, request, &ledger.context());
            let verdict = match ledger.relocate(request) {
                Ok(Relocation::Unchanged) => Verdict::Unchanged,
                Ok(Relocation::Move { server_handle, ports, .. }) => Verdict::Given {
                    server_handle,
                    added: project.placement.unwrap().reserved,
                    ports: ports
                        .into_iter()
                        .map(|grant| (grant.module, grant.protocol, grant.port))
                        .collect(),
                },
                Err(refusal) => Verdict::Refused(refusal.reason),
            };
            assert_eq!(verdict, expected);
        }
        Step::PortInUse(name, module, own, start) => {
            report_port_in_use(ledger, name, *module, *own, *start);
        }
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

fn report_port_in_use(ledger: &mut Ledger, name: &str, module: usize, own: bool, start: u32) {
    let project = ledger.held_by(name);
    let held = project.allocations.get(module).or(project.allocations.first());
    let report = PortInUseReport {
        project_id: project.id.clone(),
        module: held.map_or_else(ModuleName::backend, |held| held.module.clone()),
        port: held.filter(|_| own).map_or(port(9999), |held| held.port),
        start_port: port(start),
        detail: "nginx".to_owned(),
    };
    let expected = oracle::replacement(&ledger.servers(), &project, &report, &ledger.context());
    let replaced = match ledger.report_port_in_use(&report) {
        Ok(PortReplacement::Replace { grant, .. }) => Some(Ok((grant.protocol, grant.port))),
        Ok(PortReplacement::Unchanged) => None,
        Err(refusal) if refusal.reason == Reason::ProjectNotFound => {
            assert!(project.placement.is_none());
            None
        }
        Err(refusal) => Some(Err(refusal.reason)),
    };
    assert_eq!(replaced, expected);
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
fn next_decisions(fleet: &Fleet, ledger: &Ledger, now: OffsetDateTime) -> Vec<Result<Decision, Refusal>> {
    let context = context_at(now);
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
        let next = next_decisions(&ledger.fleet, &ledger, ledger.now());
        for by_grants in [true, false] {
            let replica = replayed(&ledger.log, by_grants);
            assert_same(&replica, &ledger.fleet);
            assert_eq!((&replica.refusals, replica.time), (&ledger.fleet.refusals, ledger.fleet.time));
            assert_eq!(next_decisions(&replica, &ledger, ledger.now()), next);
        }
        // A replica that starts anew reads the tables instead.
        let loaded = a_fleet_at(ledger.now(), &ledger.servers());
        assert_eq!(next_decisions(&loaded, &ledger, ledger.now()), next);
        assert_indexed(&loaded);
    }

    #[test]
    fn the_log_folded_into_an_empty_fleet_is_what_stands_and_decides_alike_again(history in arbitrary_history()) {
        let mut ledger = Ledger::default();
        for step in &history {
            take(&mut ledger, step);
        }
        let mut replay = Replay::default();
        for committed in &ledger.log {
            match committed {
                Committed::Entry(entry) => {
                    let again = replay.take(entry, &ledger.context());
                    prop_assert!(matches!(again, Again::Same | Again::NoDecision), "{:?}: {:?}", entry, again);
                }
                Committed::Usage(handle, observation) => replay.observe(handle, observation.clone()),
            }
        }
        assert_same(replay.fleet(), &ledger.fleet);
        let held: BTreeMap<_, _> = replay.projects().iter().map(|(id, project)| (id, holdings(project))).collect();
        let expected: BTreeMap<_, _> =
            ledger.projects.iter().map(|(id, project)| (id, holdings(project))).collect();
        prop_assert_eq!(held, expected);
    }

    #[test]
    fn a_decision_that_is_not_what_follows_from_the_log_is_found(history in arbitrary_history(), which in any::<sample::Index>()) {
        let mut ledger = Ledger::default();
        for step in &history {
            take(&mut ledger, step);
        }
        // Another port than the one that was given.
        let mut log = ledger.log.clone();
        let ensured = log.iter_mut().filter_map(|committed| match committed {
            Committed::Entry(entry) => Some(entry),
            Committed::Usage(..) => None,
        });
        let mut given: Vec<_> = ensured
            .filter(|entry| matches!(&entry.operation, Operation::Ensured(ensured) if !ensured.allocations.is_empty()))
            .collect();
        prop_assume!(!given.is_empty());
        let at = which.index(given.len());
        let sequence = given[at].first_sequence;
        if let Operation::Ensured(ensured) = &mut given[at].operation {
            ensured.allocations[0].port = port(60_000);
        }
        let mut replay = Replay::default();
        for committed in &log {
            match committed {
                Committed::Entry(entry) => {
                    let again = replay.take(entry, &ledger.context());
                    if entry.first_sequence == sequence {
                        prop_assert!(matches!(again, Again::Differs { .. }), "{:?}", again);
                        break;
                    }
                }
                Committed::Usage(handle, observation) => replay.observe(handle, observation.clone()),
            }
        }
    }

    #[test]
    fn a_release_gives_back_exactly_what_was_taken(
        history in arbitrary_history(), request in arbitrary_ensure(), more in arbitrary_ensure(), one_by_one in any::<bool>(),
    ) {
        let mut ledger = Ledger::default();
        for step in &history {
            take(&mut ledger, step);
        }
        // A project of its own, after a while in which everything has rested and nothing is set aside any more, with one server at least that has room for it.
        let request = EnsureRequest { project_id: project("guest"), server_handle: None, ..request };
        let more = EnsureRequest { project_id: project("guest"), server_handle: None, ..more };
        let mut roomy = a_server("roomy").ram(9000).port_range(7998, 8020).headroom(Resources::ZERO);
        roomy.server.labels = request.selector.clone();
        ledger.put(&roomy);
        ledger.clock += 3600;
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
        let rested = Context {
            now: ledger.now() + Ledger::PORT_REST,
            usage_max_age: ledger.context().usage_max_age + Age::from_mins(1),
            usage_required: false,
        };
        prop_assert_eq!(decide(&ledger.fleet, &ledger.held_by("guest"), &request, &rested), first);
    }
}

/// What a project holds, but for the times and numbers that the ledger does not keep.
fn holdings(project: &Project) -> (ServerHandle, Resources, BTreeMap<String, String>, Port, Vec<Allocation>) {
    let placement = project.placement.clone().unwrap();
    let mut allocations = project.allocations.clone();
    allocations.sort_by(|a, b| a.module.cmp(&b.module));
    (placement.server_handle, placement.reserved, placement.selector, placement.start_port, allocations)
}

/// What is reserved on a server, how many projects it has, and the ports that they hold.
type Sums = (Resources, i64, Vec<(Protocol, u16)>);

/// What is reserved, how many projects are placed and which ports are held: all that a release gives back.
fn sums(fleet: &Fleet) -> BTreeMap<ServerHandle, Sums> {
    let modules = [a_module("probe")];
    fleet
        .iter()
        .map(|state| {
            let held = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|protocol| {
                let module = modules[0].clone().over(protocol);
                PORTS.filter_map(move |number| {
                    // Asked over all ports, so that what is left is what is held.
                    let mut server = state.server.clone();
                    server.port_range = range(1, 65535);
                    let probe = [module.clone().at(number)];
                    match state.ports.choose(&server, &probe, port(1), NOW) {
                        Err(PortShortage::Taken { cause: TakenCause::Allocated, .. }) => {
                            Some((protocol, u16::try_from(number).unwrap()))
                        }
                        _ => None,
                    }
                })
            });
            (state.server.handle.clone(), (state.reserved, state.placement_count, held.collect()))
        })
        .collect()
}
