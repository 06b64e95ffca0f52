//! What is read off the fleet's indexes is what a look at every server says, word for word, whatever happened to the fleet since
//! they were last looked at.

use std::{cell::Cell, collections::BTreeMap};

use proptest::{collection, prelude::*};
use time::Duration;

use crate::domain::{
    Fleet, Refusal, Resources, ServerHandle,
    fleet::{Among, PortStanding, Room, ServerRow, Verdict},
    placement::{
        Context, Decision, decide,
        explain::refuse_by_each,
        filter::{Ask, fits},
        modules_or_default,
        score::{self, Score},
    },
    policy::FleetPolicy,
    ports::PortGrant,
    request::{self, DEFAULT_RESOURCES, EnsureRequest},
    resources::PerResource,
    server::Observation,
    testing::{
        TestServer,
        arbitrary::{arbitrary_ensure, arbitrary_report, arbitrary_server},
        *,
    },
};

/// The choice, and the refusal, from a look at every server.
fn by_each(
    fleet: &Fleet,
    request: &EnsureRequest,
    context: &Context,
) -> Result<(ServerHandle, Vec<PortGrant>), Refusal> {
    let modules = modules_or_default(&request.modules);
    let resources = request.resources.or(DEFAULT_RESOURCES);
    let ask = Ask {
        resources,
        whole: resources,
        selector: &request.selector,
        modules: &modules,
        start_port: request.start_port,
        leaving: None,
        bound: false,
    };
    fleet
        .iter()
        .filter_map(|state| {
            Some((Score::of(state, resources, request.strategy), fits(state, &ask, context).ok()?, state))
        })
        .min_by(|(a, ..), (b, ..)| a.cmp(b))
        .map(|(_, ports, state)| (state.server.handle.clone(), ports))
        .ok_or_else(|| refuse_by_each(fleet, &ask, context))
}

fn by_index(
    fleet: &Fleet,
    request: &EnsureRequest,
    context: &Context,
) -> Result<(ServerHandle, Vec<PortGrant>), Refusal> {
    let project = crate::domain::Project::unplaced(request.project_id.clone());
    decide(fleet, &project, request, context).map(|decision| match decision {
        Decision::Place { server_handle, ports, .. } => (server_handle, ports),
        other => panic!("a new project is placed, not {other:?}"),
    })
}

#[derive(Debug, Clone)]
enum Step {
    /// A server is as described from now on.
    Put(usize, Box<TestServer>),
    Remove(usize),
    Report(usize, Observation),
    /// Seconds pass; fewer than none after a failover to a clock that is behind.
    Pass(i64),
    /// So much RAM is kept free of placements, or may be reserved for each hundred.
    Policy(i64, i64),
    /// So much RAM is kept for the first in line.
    Keep(usize, Option<i64>),
    /// Whether servers that never reported take something too.
    Ask(Box<EnsureRequest>, bool),
}

fn arbitrary_step(servers: usize) -> impl Strategy<Value = Step> {
    let ask = (arbitrary_ensure(), prop::bool::weighted(0.1)).prop_map(|(mut request, usage_required)| {
        request.server_handle = None;
        Step::Ask(Box::new(request), usage_required)
    });
    let policy = (prop::sample::select(vec![0i64, 256, 2048]), prop::sample::select(vec![100i64, 150]));
    prop_oneof![
        4 => (0..servers, arbitrary_server()).prop_map(|(number, server)| Step::Put(number, Box::new(server))),
        1 => (0..servers).prop_map(Step::Remove),
        1 => (0..servers, arbitrary_report()).prop_map(|(number, report)| Step::Report(number, report)),
        1 => prop::sample::select(vec![-200i64, 1, 200, 400]).prop_map(Step::Pass),
        1 => policy.prop_map(|(headroom, overcommit)| Step::Policy(headroom, overcommit)),
        1 => (0..servers, prop::option::of(prop::sample::select(vec![128i64, 1024, i64::MAX / 4])))
            .prop_map(|(number, ram_mb)| Step::Keep(number, ram_mb)),
        8 => ask,
    ]
}

/// Handles whose order is not that of their numbers.
fn name(number: usize) -> ServerHandle {
    handle(&format!("s-{}", number * 7919 % 1009))
}

fn put(fleet: &mut Fleet, number: usize, mut server: TestServer) {
    server.server.handle = name(number);
    fleet.load_row(ServerRow { state: server.state(), revision: 1 });
    for (protocol, port) in &server.held {
        fleet.load_port(&server.server.handle, *protocol, *port, PortStanding::Held, NOW);
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn an_index_says_what_a_look_at_every_server_says(
        servers in collection::vec(arbitrary_server(), 0..40),
        steps in collection::vec(arbitrary_step(40), 1..60),
    ) {
        let mut fleet = Fleet::default();
        for (number, server) in servers.into_iter().enumerate() {
            put(&mut fleet, number, server);
        }
        let mut clock = 0;
        for step in steps {
            let now = NOW + Duration::seconds(clock);
            match step {
                Step::Put(number, server) => put(&mut fleet, number, *server),
                Step::Remove(number) => fleet.remove(&name(number)),
                Step::Report(number, report) => {
                    let observe_time = now + (report.observe_time - NOW);
                    fleet.observe(&name(number), Observation { observe_time, ..report });
                }
                Step::Pass(seconds) => clock += seconds,
                Step::Policy(headroom, overcommit) => {
                    fleet.set_policy(FleetPolicy {
                        headroom: ram(headroom),
                        overcommit_percent: PerResource { ram: overcommit, ..PerResource::all(100) },
                        ..FleetPolicy::default()
                    });
                }
                Step::Keep(number, ram_mb) => {
                    fleet.keep(&name(number), ram_mb.map(ram));
                }
                Step::Ask(request, usage_required) => {
                    let context = Context { usage_required, ..context_at(now) };
                    prop_assert_eq!(by_index(&fleet, &request, &context), by_each(&fleet, &request, &context));
                }
            }
        }
    }

    /// Where nearly every server is full, the indexes have most to leave aside.
    #[test]
    fn a_full_fleet_is_searched_like_any_other(
        servers in collection::vec((arbitrary_server(), 0..3i64, 0..3i64), 20..60),
        asks in collection::vec((arbitrary_ensure(), 0..4i64, 0..4i64), 1..30),
    ) {
        let mut fleet = Fleet::default();
        for (number, (mut server, cpu, ram)) in servers.into_iter().enumerate() {
            server.server.managed = true;
            server.server.status = crate::domain::ServerStatus::Ready;
            server.observed = None;
            server.reserved = server.state().budget();
            server.reserved.cpu_millis -= cpu * 100;
            server.reserved.ram_mb -= ram * 50;
            put(&mut fleet, number, server);
        }
        for (mut request, cpu, ram) in asks {
            request.server_handle = None;
            request.resources.cpu_millis = Some(cpu * 70);
            request.resources.ram_mb = Some(ram * 30);
            request.resources.disk_mb = Some(0);
            prop_assert_eq!(by_index(&fleet, &request, &context()), by_each(&fleet, &request, &context()));
        }
    }
}

/// At how much a choice looks in a fleet of so many servers, each a little fuller than the one before.
fn looks(servers: i64, strategy: request::Strategy) -> usize {
    let servers: Vec<_> = (0..servers)
        .map(|number| a_server(&format!("s-{number:05}")).ram(10_000).reserved(ram(number * 9_000 / servers)))
        .collect();
    let fleet = a_fleet(&servers);
    let asked = Resources { cpu_millis: 100, ..ram(2_000) };
    let looks = Cell::new(0);
    let looked = fleet.read_index(&BTreeMap::new(), None, &context(), |view| {
        let bound = |room: &Room| {
            looks.set(looks.get() + 1);
            score::bound(room, asked, strategy)
        };
        view.rooms.least(1, bound, |_| Verdict::Take)
    });
    let Among::View(Some(found)) = looked else { panic!("there is room: {looked:?}") };
    assert_eq!(found.len(), 1);
    looks.get()
}

#[test]
fn the_work_of_an_ensure_does_not_grow_with_the_fleet_l33() {
    for strategy in [request::Strategy::Spread, request::Strategy::Binpack] {
        let (few, many) = (looks(100, strategy), looks(10_000, strategy));
        assert!(many < 4 * few, "{few} of 100, {many} of 10,000 by {strategy:?}");
    }
}
