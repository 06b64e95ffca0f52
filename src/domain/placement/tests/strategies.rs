//! Which of the servers that fit is chosen.

use proptest::prelude::*;

use crate::domain::{
    Resources,
    placement::{Decision, score::Score},
    request::Strategy as Placing,
    testing::{arbitrary::*, *},
};

#[test]
fn spread_takes_the_most_free_ram() {
    let fleet = a_fleet(&[
        a_server("web-1").ram(8192),
        a_server("web-2").ram(65536).reserved(ram(60000)),
        a_server("web-3").ram(16384).headroom(ram(8000)),
        a_server("web-4").ram(32768).reported(0, ram(30000), &[]),
    ]);
    assert_eq!(chosen(&fleet, &an_ensure("shop")), "web-3");
}

#[test]
fn spread_goes_on_to_the_next_where_the_first_lacks_something_else() {
    let fleet = a_fleet(&[
        a_server("web-1").ram(65536).disk(100),
        a_server("web-2").ram(32768).cpu(10),
        a_server("web-3").ram(16384).port_range(1024, 1025),
        a_server("web-4").ram(8192),
        a_server("web-5").ram(4096),
    ]);
    assert_eq!(chosen(&fleet, &an_ensure("shop").cpu(100)), "web-4");
}

#[test]
fn binpack_of_ram_alone_takes_the_least_free_ram_that_fits() {
    let fleet = a_fleet(&[
        a_server("web-1").ram(8192),
        a_server("web-2").ram(65536).reserved(ram(63000)),
        a_server("web-3").ram(1000),
        a_server("web-4").ram(4096),
    ]);
    // Disk has a default and does not take part; neither does a CPU amount of zero.
    for request in [an_ensure("shop").ram(2000), an_ensure("shop").ram(2000).cpu(0).disk(4000)] {
        assert_eq!(chosen(&fleet, &request.binpack()), "web-2");
    }
    assert_eq!(chosen(&fleet, &an_ensure("shop").ram(2537).binpack()), "web-4");
}

#[test]
fn binpack_takes_the_tightest_fit_of_cpu_and_ram() {
    let fleet = a_fleet(&[
        a_server("web-1").cpu(8000).ram(8192),
        a_server("web-2").cpu(2000).ram(2048),
        a_server("web-3").cpu(4000).ram(4096),
    ]);
    assert_eq!(chosen(&fleet, &an_ensure("shop").cpu(1000).ram(1024).binpack()), "web-2");
    assert_eq!(chosen(&fleet, &an_ensure("shop").cpu(3000).ram(1024).binpack()), "web-3");
}

#[test]
fn binpack_strands_as_little_as_it_can() {
    // Either is left with as much: three quarters and one, or a half and a half. The latter stays of use, though more of its
    // RAM is free.
    let fleet = a_fleet(&[
        a_server("web-1").cpu(4000).ram(4096).reserved(ram(2048)),
        a_server("web-2").cpu(4000).ram(4096).reserved(Resources {
            cpu_millis: 1000,
            ram_mb: 1024,
            disk_mb: 0,
        }),
    ]);
    assert_eq!(chosen(&fleet, &an_ensure("shop").cpu(1000).ram(1024).binpack()), "web-2");
}

#[test]
fn binpack_of_cpu_alone_takes_the_least_free_share_of_it() {
    let fleet = a_fleet(&[
        a_server("web-1").cpu(8000).ram(1024),
        a_server("web-2").cpu(4000).ram(8192),
        // Nothing is left of its CPU, whatever stays of its RAM.
        a_server("web-3").cpu(500).ram(65536),
    ]);
    assert_eq!(chosen(&fleet, &an_ensure("shop").cpu(500).ram(0).binpack()), "web-3");
    assert_eq!(chosen(&fleet, &an_ensure("shop").cpu(501).ram(0).binpack()), "web-2");
}

#[test]
fn l26_ties_are_broken_by_handle() {
    for request in [
        an_ensure("shop"),
        an_ensure("shop").binpack(),
        an_ensure("shop").cpu(100).binpack(),
        an_ensure("shop").cpu(100).ram(0).binpack(),
    ] {
        // As text, octet by octet: `web-10` comes before `web-2`, and upper case before lower.
        let mut servers = ["web-2", "web-10", "db", "Z"].map(a_server);
        assert_eq!(chosen(&a_fleet(&servers), &request), "Z");
        servers.reverse();
        assert_eq!(chosen(&a_fleet(&servers), &request), "Z");
        assert_eq!(
            chosen(&a_fleet(servers.iter().filter(|server| server.server.handle.as_str() > "e")), &request),
            "web-10"
        );
    }
}

#[test]
fn ties_of_waste_fall_to_the_least_free_ram() {
    // Both are left with half of each.
    let fleet = a_fleet(&[a_server("web-1").cpu(4000).ram(4096), a_server("web-2").cpu(2000).ram(2048)]);
    let big = Score::of(
        fleet.get(&handle("web-1")).unwrap(),
        Resources { cpu_millis: 2000, ram_mb: 2048, disk_mb: 0 },
        Placing::Binpack,
    );
    let small = Score::of(
        fleet.get(&handle("web-2")).unwrap(),
        Resources { cpu_millis: 1000, ram_mb: 1024, disk_mb: 0 },
        Placing::Binpack,
    );
    assert_eq!(big.measure(), small.measure());
    assert!(small < big);
}

#[test]
fn the_largest_amounts_do_not_overflow() {
    use crate::domain::resources::{MAX_CPU_MILLIS, MAX_MB};
    let most = Resources {
        cpu_millis: MAX_CPU_MILLIS.into(),
        ram_mb: i64::try_from(MAX_MB).unwrap(),
        disk_mb: i64::try_from(MAX_MB).unwrap(),
    };
    let mut server = a_server("web-1");
    server.server.capacity = most;
    let request = an_ensure("shop").ram(most.ram_mb).disk(most.disk_mb).cpu(most.cpu_millis);
    for request in [request.clone(), request.clone().binpack()] {
        assert_eq!(chosen(&a_fleet([&server]), &request), "web-1");
        assert_eq!(chosen(&a_fleet([&server]), &request.cpu(1).ram(1)), "web-1");
    }
    let server = server.reserved(most).reported(0, most, &[]).headroom(most);
    refused(&a_fleet([&server]), &request);
    refused(&a_fleet([&server]), &request.ram(0).cpu(0).binpack());
}

#[test]
fn shares_of_the_most_that_over_commit_makes_of_a_server_are_exact() {
    use crate::domain::{policy::MAX_OVERCOMMIT_PERCENT, resources::MAX_MB};
    let most = i64::try_from(MAX_MB).unwrap();
    let server =
        a_server("web-1").cpu(1000).ram(most).overcommit(MAX_OVERCOMMIT_PERCENT).reserved(ram(most * 60));
    let asked = Resources { cpu_millis: 90_000, ram_mb: most * 10, disk_mb: 0 };
    let score = Score::of(&server.state(), asked, Placing::Binpack);
    // Three tenths of its RAM are left and one of its CPU; as much as they differ by is stranded.
    assert_eq!(score.measure(), -(300_000 + 100_000 + 200_000));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn the_choice_does_not_depend_on_the_order_of_registration(
        servers in arbitrary_servers(), request in arbitrary_ensure(), order in any::<prop::sample::Index>(),
    ) {
        let mut shuffled = servers.clone();
        if !shuffled.is_empty() {
            let mid = order.index(shuffled.len());
            shuffled.rotate_left(mid);
            shuffled[mid..].reverse();
        }
        prop_assert_eq!(decide_new(&a_fleet(&servers), &request), decide_new(&a_fleet(&shuffled), &request));
    }

    #[test]
    fn the_choice_does_not_depend_on_servers_that_came_and_went(
        servers in arbitrary_servers(), gone in arbitrary_servers(), request in arbitrary_ensure(),
    ) {
        let mut fleet = a_fleet(&gone);
        for server in &gone {
            fleet.remove(&server.server.handle);
        }
        prop_assert!(fleet.is_empty());
        for server in &servers {
            load(&mut fleet, server, NOW);
        }
        prop_assert_eq!(fleet.len(), servers.len());
        prop_assert_eq!(decide_new(&fleet, &request), decide_new(&a_fleet(&servers), &request));
    }

    #[test]
    fn the_best_candidate_of_find_is_the_choice_of_ensure(servers in arbitrary_servers(), mut request in arbitrary_ensure()) {
        request.server_handle = None;
        let find = crate::domain::request::FindRequest {
            resources: request.resources,
            selector: request.selector.clone(),
            modules: request.modules.clone(),
            start_port: request.start_port,
            strategy: request.strategy,
            max_candidates: 100,
        };
        let fleet = a_fleet(&servers);
        let found = crate::domain::placement::find_servers(&fleet, &find, &context());
        prop_assert_eq!(found.candidates.len() + found.rejections.len(), servers.len());
        prop_assert!(found.candidates.is_sorted_by(|a, b| a.score < b.score));
        match decide_new(&fleet, &request) {
            Ok(Decision::Place { server_handle, .. }) => {
                prop_assert_eq!(&found.candidates[0].state.server.handle, &server_handle);
                prop_assert_eq!(found.refusal, None);
            }
            Ok(other) => prop_assert!(false, "{other:?}"),
            Err(refusal) => prop_assert_eq!(found.refusal, Some(refusal)),
        }
    }
}
