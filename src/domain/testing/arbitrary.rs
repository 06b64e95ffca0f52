//! Arbitrary servers and requests for property tests. The amounts are few and small, so that servers tie, fill up and run out of
//! ports within a handful of requests.
//!
//! When not to use these: for a rule about one figure, where a builder says which; and for limits of what a field may hold, which
//! these never come near.

use proptest::{collection, option, prelude::*, sample};
use time::Duration;

use super::{NOW, TestServer, a_module, a_report, a_server, an_ensure, handle, port, project};
use crate::domain::{
    Port, Protocol, ResourceRequest, Resources, ServerStatus,
    request::{EnsureRequest, ModuleRequest, Strategy as Placing},
    resources::PerResource,
    server::{Observation, Observer},
};

/// The handles that arbitrary servers have.
pub const HANDLES: [&str; 6] = ["web-1", "web-2", "web-10", "db-1", "WEB-1", "a"];

/// The lowest and the highest port that arbitrary requests and servers are about.
pub const PORTS: std::ops::RangeInclusive<u32> = 7998..=8008;

fn arbitrary_port() -> impl Strategy<Value = Port> {
    PORTS.prop_map(port)
}

fn arbitrary_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)]
}

fn arbitrary_status() -> impl Strategy<Value = ServerStatus> {
    prop_oneof![
        8 => Just(ServerStatus::Ready),
        1 => sample::select(vec![
            ServerStatus::Discovered, ServerStatus::Provisioning, ServerStatus::Maintenance, ServerStatus::Error,
            ServerStatus::Unreachable, ServerStatus::Missing, ServerStatus::Decommissioned,
        ]),
    ]
}

fn arbitrary_capacity() -> impl Strategy<Value = Resources> {
    let amounts = |amounts: &[i64]| sample::select(amounts.to_vec());
    (amounts(&[0, 1000, 2000, 4000]), amounts(&[256, 1024, 2048, 3072]), amounts(&[512, 2048, 4096, 8192]))
        .prop_map(|(cpu_millis, ram_mb, disk_mb)| Resources { cpu_millis, ram_mb, disk_mb })
}

fn some_of(most: Resources) -> impl Strategy<Value = Resources> {
    (0..=4i64, 0..=4i64, 0..=4i64).prop_map(move |(cpu, ram, disk)| Resources {
        cpu_millis: most.cpu_millis * cpu / 4,
        ram_mb: most.ram_mb * ram / 4,
        disk_mb: most.disk_mb * disk / 4,
    })
}

/// A usage report, most of them fresh at [`NOW`], some from a clock that is ahead.
pub fn arbitrary_report() -> impl Strategy<Value = Observation> {
    let age = prop_oneof![4 => Just(0i64), 1 => sample::select(vec![-1i64, 299, 300, 301, 4000])];
    let listening = collection::btree_set(PORTS, 0..3);
    let (partial, provider) = (any::<bool>(), prop::bool::weighted(0.2));
    let usage = some_of(Resources { cpu_millis: 1000, ram_mb: 1024, disk_mb: 2048 });
    (age, usage, listening, partial, provider).prop_map(|(age, usage, listening, partial, provider)| {
        let listening: Vec<u32> = listening.into_iter().collect();
        let mut report = a_report(NOW - Duration::seconds(age), usage, &listening);
        if provider {
            report.observer = Observer::Provider;
        }
        if partial {
            report.cpu_millis = None;
            report.disk_mb = None;
        }
        report
    })
}

fn arbitrary_overcommit() -> impl Strategy<Value = PerResource<Option<i64>>> {
    let percent = || option::weighted(0.3, sample::select(vec![100, 150, 400]));
    (percent(), percent(), percent()).prop_map(|(cpu, ram, disk)| PerResource { cpu, ram, disk })
}

/// A server of any state, with some of it reserved and some of its ports held or resting; its handle is one of [`HANDLES`].
pub fn arbitrary_server() -> impl Strategy<Value = TestServer> {
    let inventory = (
        sample::select(HANDLES.to_vec()),
        arbitrary_capacity(),
        some_of(Resources { cpu_millis: 800, ram_mb: 512, disk_mb: 1024 }),
        arbitrary_status(),
        prop::bool::weighted(0.9),
        option::weighted(0.7, sample::select(vec!["eu", "us"])),
    );
    let port_range = (PORTS, 0..8u32);
    let excluded = option::weighted(0.3, (PORTS, 0..2u32));
    let state = (
        some_of(Resources { cpu_millis: 2000, ram_mb: 1024, disk_mb: 2048 }),
        option::weighted(0.5, arbitrary_report()),
        collection::btree_set((arbitrary_protocol(), arbitrary_port()), 0..6),
        collection::btree_map((arbitrary_protocol(), arbitrary_port()), -1..=1i64, 0..4),
        collection::btree_map((arbitrary_protocol(), arbitrary_port()), -1..=1i64, 0..3),
        arbitrary_overcommit(),
    );
    (inventory, port_range, excluded, state).prop_map(
        |((name, capacity, headroom, status, managed, region), (start, width), excluded, state)| {
            let (reserved, observed, held, resting, set_aside, overcommit_percent) = state;
            let mut server =
                a_server(name).status(status).port_range(start, start + width).headroom(headroom);
            server.server.capacity = capacity;
            server.server.managed = managed;
            if let Some(region) = region {
                server = server.label("region", region);
            }
            if let Some((start, width)) = excluded {
                server = server.excluding(start, start + width);
            }
            if !reserved.is_zero() {
                server = server.reserved(reserved);
            }
            server.observed = observed;
            server.server.overcommit_percent = overcommit_percent;
            let until = |seconds| NOW + Duration::seconds(seconds);
            server.set_aside = set_aside
                .into_iter()
                .filter(|(port, _)| !held.contains(port))
                .map(|(port, seconds)| (port, until(seconds)))
                .collect();
            server.resting = resting
                .into_iter()
                .filter(|(port, _)| !held.contains(port) && !server.set_aside.contains_key(port))
                .map(|(port, seconds)| (port, until(seconds)))
                .collect();
            server.held = held;
            server
        },
    )
}

/// A few servers, each handle once, in any order.
pub fn arbitrary_servers() -> impl Strategy<Value = Vec<TestServer>> {
    collection::vec(arbitrary_server(), 0..HANDLES.len()).prop_map(|servers| {
        let mut known = std::collections::BTreeSet::new();
        servers.into_iter().filter(|server| known.insert(server.server.handle.clone())).collect()
    })
}

/// Some modules, each name once and each explicit port once, as decoding leaves them.
fn arbitrary_modules() -> impl Strategy<Value = Vec<ModuleRequest>> {
    let module = (
        sample::select(vec!["api", "backend", "db", "web"]),
        option::weighted(0.3, arbitrary_port()),
        option::weighted(0.4, arbitrary_protocol()),
    );
    collection::vec(module, 0..4).prop_map(|modules| {
        let (mut names, mut ports) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        modules
            .into_iter()
            .filter(|(name, port, protocol)| {
                port.is_none_or(|port| ports.insert((protocol.unwrap_or(Protocol::Tcp), port)))
                    && names.insert(*name)
            })
            .map(|(name, port, protocol)| ModuleRequest { port, protocol, ..a_module(name) })
            .collect()
    })
}

/// A request of one of a few projects.
pub fn arbitrary_ensure() -> impl Strategy<Value = EnsureRequest> {
    let amount = |amounts: &[i64]| option::weighted(0.6, sample::select(amounts.to_vec()));
    let resources =
        (amount(&[0, 200, 1000, 5000]), amount(&[0, 128, 512, 2048, 9000]), amount(&[0, 512, 2048]))
            .prop_map(|(cpu_millis, ram_mb, disk_mb)| ResourceRequest { cpu_millis, ram_mb, disk_mb });
    (
        sample::select(vec!["blog", "bot", "shop", "wiki"]),
        arbitrary_modules(),
        resources,
        option::weighted(0.2, sample::select(HANDLES.to_vec())),
        option::weighted(0.3, sample::select(vec!["eu", "us", "mars"])),
        prop_oneof![3 => Just(port(8000)), 1 => arbitrary_port(), 1 => Just(port(1))],
        any::<bool>(),
    )
        .prop_map(|(name, modules, resources, pin, region, start_port, binpack)| {
            let mut request = an_ensure(name);
            request.project_id = project(name);
            request.modules = modules;
            request.resources = resources;
            request.server_handle = pin.map(handle);
            request.start_port = start_port;
            request.strategy = if binpack { Placing::Binpack } else { Placing::Spread };
            if let Some(region) = region {
                request = request.labelled("region", region);
            }
            request
        })
}
