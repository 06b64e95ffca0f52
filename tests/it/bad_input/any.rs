//! Whatever comes: it is taken, or there is a reason.

use std::collections::BTreeMap;

use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use resource_allocator::proto::v1;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    TestService,
    malformed::{no_names, tells_no_more_than_it_should},
    requests::resources,
    server,
};

fn text() -> BoxedStrategy<String> {
    prop_oneof![
        40 => "[a-c]{1,2}",
        1 => any::<String>(),
        1 => proptest::sample::select(no_names()).prop_map(|name| name.chars().take(200).collect()),
        1 => "[A-Za-z0-9][A-Za-z0-9._:/-]{0,140}",
    ]
    .boxed()
}

fn port() -> BoxedStrategy<u32> {
    prop_oneof![40 => 7990..8010_u32, 4 => 0..70_000_u32, 1 => any::<u32>()].boxed()
}

fn amount() -> BoxedStrategy<u64> {
    prop_oneof![40 => 0..2000_u64, 1 => 999_999_999_990..1_000_000_000_010_u64, 1 => any::<u64>()].boxed()
}

fn amounts() -> BoxedStrategy<Option<v1::Resources>> {
    let cpu = amount().prop_map(|amount| u32::try_from(amount).unwrap_or(u32::MAX));
    option::of((option::of(cpu), option::of(amount()), option::of(amount())))
        .prop_map(|amounts| {
            amounts.map(|(cpu_millis, ram_mb, disk_mb)| v1::Resources { cpu_millis, ram_mb, disk_mb })
        })
        .boxed()
}

fn some_labels() -> BoxedStrategy<BTreeMap<String, String>> {
    prop_oneof![3 => Just(BTreeMap::new()), 1 => btree_map(text(), text(), 0..3)].boxed()
}

fn value_of(last: i32) -> BoxedStrategy<i32> {
    prop_oneof![40 => 0..=last, 1 => any::<i32>()].boxed()
}

fn ensures() -> BoxedStrategy<v1::EnsureAllocationRequest> {
    let modules = (text(), option::of(port()), value_of(2))
        .prop_map(|(name, port, protocol)| v1::ModuleSpec { name, port, protocol });
    let wait = || {
        option::weighted(0.05, (any::<i64>(), any::<i32>()))
            .prop_map(|wait| wait.map(|(seconds, nanos)| pbjson_types::Duration { seconds, nanos }))
    };
    (
        (text(), vec(modules, 0..4), amounts(), option::weighted(0.2, text())),
        (some_labels(), option::of(port()), value_of(2), any::<bool>(), wait(), wait()),
    )
        .prop_map(|((project_id, modules, resources, server_handle), rest)| {
            let (server_selector, start_port, strategy, validate_only, wait_for_capacity, ttl) = rest;
            v1::EnsureAllocationRequest {
                project_id,
                modules,
                resources,
                server_handle,
                server_selector,
                start_port,
                strategy,
                validate_only,
                wait_for_capacity,
                ttl,
            }
        })
        .boxed()
}

fn registrations() -> BoxedStrategy<v1::RegisterServerRequest> {
    let range = || (port(), port()).prop_map(|(start, end)| v1::PortRange { start, end });
    let address = prop_oneof![9 => Just("192.0.2.1".to_owned()), 1 => text()];
    let observed = amounts().prop_map(|amounts| amounts.map(|_| v1::ObservedUsage::default()));
    let maybe_text = || prop_oneof![9 => Just(String::new()), 1 => text()];
    let server = (
        (
            text(),
            address,
            prop_oneof![3 => Just(0), 1 => value_of(9)],
            option::of(any::<bool>()),
            some_labels(),
            amounts(),
        ),
        (
            amounts(),
            observed,
            option::weighted(0.3, range()),
            vec(range(), 0..2),
            maybe_text(),
            maybe_text(),
            maybe_text(),
        ),
    )
        .prop_map(|((handle, address, status, managed, labels, capacity), rest)| {
            let (headroom, observed, port_range, excluded_ports, source, external_id, etag) = rest;
            v1::Server {
                handle,
                address,
                status,
                managed,
                labels,
                capacity,
                headroom,
                observed,
                port_range,
                excluded_ports,
                source,
                external_id,
                etag,
                ..Default::default()
            }
        });
    option::weighted(0.98, server).prop_map(|server| v1::RegisterServerRequest { server }).boxed()
}

#[derive(Debug, Clone)]
enum Anything {
    Ensure(v1::EnsureAllocationRequest),
    Register(Box<v1::RegisterServerRequest>),
}

#[test]
fn whatever_is_sent_is_taken_or_refused_with_a_reason() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut service = runtime.block_on(TestService::start());
    // One server that is always there, so that some requests can be granted.
    let capacity = resources(1_000_000, 1_000_000, 1_000_000);
    runtime.block_on(service.client.register(v1::Server { capacity, ..server("solid") }));
    // The same cases in each run.
    let config = Config { cases: 400, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let taken = std::cell::Cell::new([0, 0]);
    let anything = prop_oneof![3 => ensures().prop_map(Anything::Ensure), 2 => registrations().prop_map(|request| Anything::Register(Box::new(request)))];
    let result = runner.run(&anything, |anything| {
        let mut client = service.client.clone();
        let (kind, answer) = runtime.block_on(async {
            match anything {
                Anything::Ensure(request) => (0, client.place(request).await.map(drop)),
                Anything::Register(request) => {
                    (1, client.inventory.register_server(*request).await.map(drop))
                }
            }
        });
        let Err(refusal) = answer else {
            let mut counts = taken.get();
            counts[kind] += 1;
            taken.set(counts);
            return Ok(());
        };
        if matches!(refusal.code(), Code::Internal | Code::Unknown)
            || refusal.get_details_error_info().is_none()
        {
            return Err(TestCaseError::fail(format!("{refusal:?}")));
        }
        tells_no_more_than_it_should(&refusal);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Enough of it was not malformed.
    assert!(taken.get().iter().all(|count| *count > 20), "{taken:?}");
    runtime.block_on(async {
        let database = &service.database;
        // What the contract holds of the tables, whatever was sent.
        assert_eq!(database.count("SELECT count(*) FROM port_allocations AS p WHERE project_id IS NOT NULL AND NOT EXISTS (SELECT FROM placements WHERE (project_id, server_handle) = (p.project_id, p.server_handle))").await, 0);
        assert_eq!(database.count("SELECT count(*) FROM servers AS s WHERE placement_count <> (SELECT count(*) FROM placements WHERE server_handle = s.handle)").await, 0);
        assert_eq!(database.count("SELECT count(*) FROM placements WHERE NOT EXISTS (SELECT FROM port_allocations WHERE project_id = placements.project_id)").await, 0);
    });
}
