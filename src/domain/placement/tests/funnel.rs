//! The funnel (contract, "The funnel"): every cause alone, every pair of causes, and what each refusal tells.

use std::collections::BTreeMap;

use crate::domain::{
    Disposition, Fleet, Reason, Refusal, ResourceRequest, Resources, ServerStatus,
    placement::{
        filter::{Exclusion, Stage, admits},
        find_servers,
    },
    ports::DEFAULT_START_PORT,
    request::{EnsureRequest, FindRequest, Strategy},
    testing::*,
};

/// Something about a server that stops [`request`], in the order of the funnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    OtherLabel,
    Unmanaged,
    TooSmall,
    Provisioning,
    StaleUsage,
    Full,
    NoPort,
}

impl Cause {
    const ALL: [Self; 7] = [
        Self::OtherLabel,
        Self::Unmanaged,
        Self::TooSmall,
        Self::Provisioning,
        Self::StaleUsage,
        Self::Full,
        Self::NoPort,
    ];

    /// Adds the cause to a server; causes do not stand in each other's way.
    fn afflict(self, server: TestServer) -> TestServer {
        match self {
            Self::OtherLabel => server.label("region", "us"),
            Self::Unmanaged => server.unmanaged(),
            Self::TooSmall => server.ram(256),
            Self::Provisioning => server.status(ServerStatus::Provisioning),
            Self::StaleUsage => server.reported(301, Resources::ZERO, &[]),
            Self::Full => server.reserved(Resources { cpu_millis: 0, ram_mb: 16000, disk_mb: 0 }),
            Self::NoPort => server.port_range(1024, 7999),
        }
    }

    fn stage(self) -> Stage {
        match self {
            Self::OtherLabel => Stage::Labels,
            Self::Unmanaged => Stage::Unmanaged,
            Self::TooSmall => Stage::Size,
            Self::Provisioning => Stage::Status,
            Self::StaleUsage => Stage::UsageStale,
            Self::Full => Stage::Capacity,
            Self::NoPort => Stage::Ports,
        }
    }

    /// What an ensure is told where this is the furthest that a server gets.
    fn refusal(self) -> (Reason, Disposition) {
        match self {
            Self::OtherLabel => (Reason::NoMatchingServer, Disposition::Caller),
            Self::Unmanaged | Self::Provisioning => (Reason::NoAdmissibleServer, Disposition::Operator),
            Self::TooSmall => (Reason::RequestExceedsFleet, Disposition::Operator),
            Self::StaleUsage => (Reason::UsageStale, Disposition::Technical),
            Self::Full => (Reason::InsufficientCapacity, Disposition::Wait),
            Self::NoPort => (Reason::PortsExhausted, Disposition::Operator),
        }
    }
}

/// Every two causes, either first, among them every cause twice.
fn pairs() -> impl Iterator<Item = (Cause, Cause)> {
    Cause::ALL.into_iter().flat_map(|a| Cause::ALL.into_iter().map(move |b| (a, b)))
}

fn request() -> EnsureRequest {
    an_ensure("shop").labelled("region", "eu").module("api").ram(512).disk(1024).cpu(100)
}

fn healthy(name: &str) -> TestServer {
    a_server(name).label("region", "eu")
}

/// The same as [`request`], for `FindServer`.
fn find() -> FindRequest {
    let EnsureRequest { modules, resources, selector, start_port, strategy, .. } = request();
    FindRequest { resources, selector, modules, start_port, strategy, max_candidates: 10 }
}

/// The stages in the metadata, with their counts.
fn rejected(refusal: &Refusal) -> BTreeMap<&str, &str> {
    let figures = refusal.metadata.iter();
    figures.filter_map(|(key, value)| Some((key.strip_prefix("rejected.")?, value.as_str()))).collect()
}

fn assert_asked(refusal: &Refusal) {
    assert_eq!(refusal.figure("asked.ram_mb"), "512");
    assert_eq!(refusal.figure("asked.disk_mb"), "1024");
    assert_eq!(refusal.figure("asked.cpu_millis"), "100");
}

#[test]
fn a_server_without_any_cause_is_chosen() {
    assert_eq!(chosen(&a_fleet(&[healthy("web-1")]), &request()), "web-1");
}

#[test]
fn every_cause_is_its_own_refusal_l12() {
    for cause in Cause::ALL {
        let refusal = refused(&a_fleet(&[cause.afflict(healthy("web-1"))]), &request());
        assert_eq!((refusal.reason, refusal.reason.disposition()), cause.refusal(), "{cause:?}");
        assert_eq!(refusal.figure("servers"), "1", "{cause:?}");
        assert_eq!(rejected(&refusal), BTreeMap::from([(cause.stage().as_str(), "1")]), "{cause:?}");
        assert_asked(&refusal);
    }
}

#[test]
fn of_two_servers_the_one_that_gets_further_names_the_refusal_l12() {
    for (a, b) in pairs() {
        let fleet = a_fleet(&[a.afflict(healthy("web-1")), b.afflict(healthy("web-2"))]);
        let refusal = refused(&fleet, &request());
        assert_eq!((refusal.reason, refusal.reason.disposition()), a.max(b).refusal(), "{a:?} and {b:?}");
        assert_eq!(refusal.figure("servers"), "2");
        let counts = if a == b {
            BTreeMap::from([(a.stage().as_str(), "2")])
        } else {
            BTreeMap::from([(a.stage().as_str(), "1"), (b.stage().as_str(), "1")])
        };
        assert_eq!(rejected(&refusal), counts, "{a:?} and {b:?}");
        assert_asked(&refusal);
    }
}

#[test]
fn of_two_causes_on_one_server_the_earlier_leaves_it_out_l12() {
    for (a, b) in pairs() {
        let server = b.afflict(a.afflict(healthy("web-1")));
        let fleet = a_fleet(&[server]);
        let explained = find_servers(&fleet, &find(), &context());
        let [(_, exclusion)] = &explained.rejections[..] else { panic!("one server, one rejection") };
        assert_eq!(exclusion.stage(), a.min(b).stage(), "{a:?} and {b:?}");
        assert_eq!(refused(&fleet, &request()).reason, a.min(b).refusal().0, "{a:?} and {b:?}");
    }
}

#[test]
fn a_server_that_fits_is_chosen_whatever_ails_the_others() {
    for (a, b) in pairs() {
        let fleet = a_fleet(&[a.afflict(healthy("web-1")), healthy("web-2"), b.afflict(healthy("web-3"))]);
        assert_eq!(chosen(&fleet, &request()), "web-2", "{a:?} and {b:?}");
    }
}

#[test]
fn a_pin_runs_the_same_funnel_over_that_server_alone() {
    for (a, b) in pairs() {
        // The others would give another refusal, or none at all.
        let fleet = a_fleet(&[
            healthy("web-1"),
            b.afflict(a.afflict(healthy("web-2"))),
            Cause::NoPort.afflict(healthy("web-3")),
        ]);
        let refusal = refused(&fleet, &request().on("web-2"));
        assert_eq!(refusal.reason, a.min(b).refusal().0, "{a:?} and {b:?}");
        assert_eq!(refusal.figure("servers"), "1");
        assert_eq!(refusal.figure("server_handle"), "web-2");
        assert_eq!(rejected(&refusal), BTreeMap::from([(a.min(b).stage().as_str(), "1")]));
        assert!(refusal.message.contains("`web-2`"), "{}", refusal.message);
        assert_eq!(chosen(&fleet, &request().on("web-1")), "web-1");
    }
}

#[test]
fn a_pin_to_a_server_that_nobody_registered_is_not_found() {
    for fleet in [Fleet::default(), a_fleet(&[healthy("web-1")])] {
        let refusal = refused(&fleet, &request().on("web-9"));
        assert_eq!(refusal.reason, Reason::ServerNotFound);
        assert_eq!(refusal.figure("server_handle"), "web-9");
    }
    let refusal = refused(&Fleet::default(), &request().on("web-9"));
    insta::assert_snapshot!(refusal, @"no server has the handle `web-9`; `ListServers` shows those that are registered");
}

#[test]
fn an_empty_inventory_is_its_own_refusal() {
    let refusal = refused(&Fleet::default(), &request());
    assert_eq!((refusal.reason, refusal.reason.disposition()), (Reason::NoServers, Disposition::Operator));
    assert_eq!(refusal.figure("servers"), "0");
    assert_eq!(rejected(&refusal), BTreeMap::new());
    assert_asked(&refusal);
    insta::assert_snapshot!(refusal, @"asked for 512 MB RAM, 1024 MB disk, 100 thousandths of a CPU, and no server is registered; register one with `RegisterServer`");
}

#[test]
fn find_servers_refuses_as_ensure_does_l13() {
    for (a, b) in pairs() {
        let fleet = a_fleet(&[a.afflict(healthy("web-1")), b.afflict(healthy("web-2"))]);
        let explained = find_servers(&fleet, &find(), &context());
        assert_eq!(explained.refusal.as_ref(), Some(&refused(&fleet, &request())));
        assert!(explained.candidates.is_empty());
        let counts: BTreeMap<_, _> = explained
            .rejected_by_stage()
            .into_iter()
            .map(|(stage, count)| (stage.as_str(), count.to_string()))
            .collect();
        let told = explained.refusal.unwrap();
        assert_eq!(
            counts.iter().map(|(stage, count)| (*stage, count.as_str())).collect::<BTreeMap<_, _>>(),
            rejected(&told)
        );
    }
}

#[test]
fn find_servers_ranks_those_that_fit_and_names_why_each_other_does_not() {
    let servers = [
        healthy("web-4"),
        healthy("web-3").ram(32768),
        healthy("web-2"),
        Cause::Full.afflict(healthy("web-1")),
        Cause::Provisioning.afflict(healthy("web-0")),
    ];
    let explained = find_servers(&a_fleet(&servers), &find(), &context());
    let found: Vec<_> = explained.candidates.iter().map(|found| found.state.server.handle.as_str()).collect();
    assert_eq!(found, ["web-3", "web-2", "web-4"]);
    assert_eq!(explained.candidates[0].score.measure(), 32768);
    let rejected: Vec<_> =
        explained.rejections.iter().map(|(handle, why)| (handle.as_str(), why.stage())).collect();
    assert_eq!(rejected, [("web-0", Stage::Status), ("web-1", Stage::Capacity)]);
    assert_eq!(explained.refusal, None);

    let one = find_servers(&a_fleet(&servers), &FindRequest { max_candidates: 1, ..find() }, &context());
    assert_eq!(one.candidates.len(), 1);
    assert_eq!(one.candidates[0].state.server.handle.as_str(), chosen(&a_fleet(&servers), &request()));
}

#[test]
fn find_servers_takes_the_defaults_of_a_first_placement() {
    let find = FindRequest {
        resources: ResourceRequest::default(),
        selector: BTreeMap::new(),
        modules: Vec::new(),
        start_port: DEFAULT_START_PORT,
        strategy: Strategy::Spread,
        max_candidates: 10,
    };
    for (server, fits) in [
        (a_server("web-1").ram(512).disk(1024).cpu(0), true),
        (a_server("web-1").ram(511), false),
        (a_server("web-1").disk(1023), false),
        (a_server("web-1").port_range(8000, 8000), true),
    ] {
        let fleet = a_fleet(&[server]);
        assert_eq!(find_servers(&fleet, &find, &context()).candidates.len(), usize::from(fits));
        assert_eq!(decide_new(&fleet, &an_ensure("shop")).is_ok(), fits);
    }
}

#[test]
fn every_status_but_ready_is_told_as_a_status_and_never_as_a_shortage_l12() {
    for status in [
        ServerStatus::Discovered,
        ServerStatus::Provisioning,
        ServerStatus::Maintenance,
        ServerStatus::Error,
        ServerStatus::Unreachable,
        ServerStatus::Missing,
        ServerStatus::Decommissioned,
    ] {
        // Full as well, so that a shortage is at hand to be told instead.
        let refusal = refused(&a_fleet(&[Cause::Full.afflict(healthy("web-1")).status(status)]), &request());
        assert_eq!(refusal.reason, Reason::NoAdmissibleServer, "{status}");
        assert_eq!(refusal.figure(&format!("status.{status}")), "1", "{status}");
        assert!(refusal.message.contains(&format!("1 {status}")), "{}", refusal.message);
        assert!(!refusal.message.contains("short of"), "{}", refusal.message);
    }
}

#[test]
fn the_statuses_of_those_that_could_hold_it_are_counted() {
    let fleet = a_fleet(&[
        healthy("web-1").status(ServerStatus::Maintenance),
        healthy("web-2").status(ServerStatus::Maintenance),
        healthy("web-3").status(ServerStatus::Error),
        healthy("web-4").status(ServerStatus::Error).ram(256),
        healthy("web-5").status(ServerStatus::Error).unmanaged(),
    ]);
    let refusal = refused(&fleet, &request());
    assert_eq!((refusal.figure("status.MAINTENANCE"), refusal.figure("status.ERROR")), ("2", "1"));
    assert_eq!(rejected(&refusal), BTreeMap::from([("STATUS", "3"), ("SIZE", "1"), ("UNMANAGED", "1")]));
    insta::assert_snapshot!(refusal, @"asked for 512 MB RAM, 1024 MB disk, 100 thousandths of a CPU, and nothing in the fleet of 5 servers admits work: of those that could hold it, 1 ERROR, 2 MAINTENANCE; make a server READY and managed, or register one");
}

#[test]
fn a_fleet_of_unmanaged_servers_is_told_as_one() {
    let refusal =
        refused(&a_fleet(&[healthy("web-1").unmanaged(), healthy("web-2").unmanaged()]), &request());
    insta::assert_snapshot!(refusal, @"asked for 512 MB RAM, 1024 MB disk, 100 thousandths of a CPU, and nothing in the fleet of 2 servers admits work: 2 UNMANAGED; make a server READY and managed, or register one");
}

#[test]
fn labels_must_all_be_carried_with_their_values() {
    let fleet = a_fleet(&[
        a_server("web-1").label("region", "eu"),
        a_server("web-2").label("region", "us").label("disk", "ssd"),
    ]);
    assert_eq!(chosen(&fleet, &an_ensure("shop").labelled("region", "us")), "web-2");
    assert_eq!(chosen(&fleet, &an_ensure("shop").labelled("region", "us").labelled("disk", "ssd")), "web-2");
    let refusal = refused(&fleet, &an_ensure("shop").labelled("region", "eu").labelled("disk", "ssd"));
    assert_eq!(refusal.reason, Reason::NoMatchingServer);
    assert_eq!(refusal.figure("selector"), "disk=ssd,region=eu");
    insta::assert_snapshot!(refusal, @"asked for the labels disk=ssd,region=eu, and none of the fleet of 2 servers carries them all; change `server_selector`, or label a server");
}

#[test]
fn a_server_is_full_to_its_last_megabyte_for_each_resource() {
    let exact = || a_server("web-1").ram(512).disk(1024).cpu(100);
    let request = an_ensure("shop").ram(512).disk(1024).cpu(100);
    assert_eq!(chosen(&a_fleet(&[exact()]), &request), "web-1");
    for (server, resource) in [
        (exact().ram(511), "ram_mb"),
        (exact().disk(1023), "disk_mb"),
        (exact().cpu(99), "cpu_millis"),
        (exact().headroom(Resources { ram_mb: 1, ..Resources::ZERO }), "ram_mb"),
        (exact().headroom(Resources { disk_mb: 1, ..Resources::ZERO }), "disk_mb"),
        (exact().headroom(Resources { cpu_millis: 1, ..Resources::ZERO }), "cpu_millis"),
    ] {
        let refusal = refused(&a_fleet(&[server]), &request);
        assert_eq!(refusal.reason, Reason::RequestExceedsFleet);
        assert_eq!(refusal.figure(&format!("nearest.short.{resource}")), "1");
    }
    for (taken, resource) in [
        (Resources { ram_mb: 1, ..Resources::ZERO }, "ram_mb"),
        (Resources { disk_mb: 1, ..Resources::ZERO }, "disk_mb"),
        (Resources { cpu_millis: 1, ..Resources::ZERO }, "cpu_millis"),
    ] {
        // L25: whatever is checked is reserved, and whatever is observed in use counts alike.
        for server in [exact().reserved(taken), exact().reported(0, taken, &[])] {
            let refusal = refused(&a_fleet(&[server]), &request);
            assert_eq!(refusal.reason, Reason::InsufficientCapacity);
            assert_eq!(refusal.figure(&format!("nearest.short.{resource}")), "1");
        }
    }
}

#[test]
fn never_fits_and_does_not_fit_now_are_different_reasons_l11() {
    let full = a_server("web-1").ram(1024).reserved(ram(1024));
    assert_eq!(refused(&a_fleet([&full]), &an_ensure("shop").ram(1024)).reason, Reason::InsufficientCapacity);
    assert_eq!(refused(&a_fleet([&full]), &an_ensure("shop").ram(1025)).reason, Reason::RequestExceedsFleet);
}

#[test]
fn the_greater_of_reserved_and_observed_counts_l21() {
    for (reserved, observed, free) in [(300, 100, 724), (100, 300, 724), (300, 300, 724), (0, 2000, -976)] {
        let server = a_server("web-1").ram(1024).reserved(ram(reserved)).reported(0, ram(observed), &[]);
        assert_eq!(server.state().free().ram_mb, free);
        let fleet = a_fleet(&[server]);
        assert_eq!(decide_new(&fleet, &an_ensure("shop").ram(724)).is_ok(), free == 724);
        assert_eq!(refused(&fleet, &an_ensure("shop").ram(725)).reason, Reason::InsufficientCapacity);
    }
}

#[test]
fn what_a_report_leaves_out_is_as_reserved() {
    let mut server = a_server("web-1").ram(1024).reserved(ram(300)).reported(0, ram(0), &[]);
    server.observed.as_mut().unwrap().ram_mb = None;
    assert_eq!(server.state().free().ram_mb, 724);
}

#[test]
fn a_server_over_its_capacity_takes_no_new_project_even_one_that_asks_for_nothing() {
    let nothing = an_ensure("shop").ram(0).disk(0).cpu(0);
    assert_eq!(chosen(&a_fleet(&[a_server("web-1").ram(1024).reserved(ram(1024))]), &nothing), "web-1");
    for strategy in [nothing.clone(), nothing.clone().binpack(), nothing.on("web-1")] {
        let refusal = refused(&a_fleet(&[a_server("web-1").ram(1024).reserved(ram(1025))]), &strategy);
        assert_eq!(refusal.reason, Reason::InsufficientCapacity);
        assert_eq!(refusal.figure("nearest.short.ram_mb"), "1");
        assert_eq!(refusal.figure("nearest.free.ram_mb"), "-1");
    }
}

#[test]
fn a_report_is_fresh_up_to_its_greatest_age_and_from_a_clock_ahead_l28() {
    for (age, fresh) in [(-3600, true), (-1, true), (0, true), (300, true), (301, false)] {
        let server = healthy("web-1").reported(age, Resources::ZERO, &[]);
        let observe_time = server.observed.as_ref().map(|observed| observed.observe_time);
        let admitted = admits(true, ServerStatus::Ready, observe_time, &context());
        assert_eq!(admitted.is_ok(), fresh, "{age}");
        let fleet = a_fleet(&[server]);
        assert_eq!(fleet.admits(&handle("web-1"), &context()), fresh);
        match decide_new(&fleet, &request()) {
            Ok(_) => assert!(fresh),
            Err(refusal) => {
                assert_eq!(refusal.reason, Reason::UsageStale);
                assert_eq!(refusal.figure("usage_max_age_s"), "300");
            }
        }
    }
    // A server that never reported is not stale.
    assert_eq!(chosen(&a_fleet(&[healthy("web-1")]), &request()), "web-1");
}

#[test]
fn admission_is_the_funnel_without_the_fit() {
    let context = context();
    let stale = Some(NOW - time::Duration::seconds(301));
    assert_eq!(admits(false, ServerStatus::Error, stale, &context), Err(Exclusion::Unmanaged));
    assert_eq!(
        admits(true, ServerStatus::Error, stale, &context),
        Err(Exclusion::Status(ServerStatus::Error))
    );
    let limit = std::time::Duration::from_secs(301);
    assert_eq!(
        admits(true, ServerStatus::Ready, stale, &context),
        Err(Exclusion::UsageStale { age: limit, max_age: MAX_AGE })
    );
    assert_eq!(admits(true, ServerStatus::Ready, None, &context), Ok(()));
    assert!(!Fleet::default().admits(&handle("web-9"), &context));
}

#[test]
fn the_refusal_carries_its_budget_l10() {
    // web-1 lacks more RAM than web-2, and web-3 is as short as web-2.
    let fleet = a_fleet(&[
        a_server("web-3").ram(4096).headroom(ram(512)).reserved(ram(3000)),
        a_server("web-2").ram(4096).headroom(ram(512)).reserved(ram(3000)),
        a_server("web-1").ram(4096).headroom(ram(512)).reserved(ram(3500)),
    ]);
    let refusal = refused(&fleet, &an_ensure("shop").ram(1024).disk(2048));
    assert_eq!(refusal.reason, Reason::InsufficientCapacity);
    let expected = [
        ("asked.cpu_millis", "0"),
        ("asked.disk_mb", "2048"),
        ("asked.ram_mb", "1024"),
        ("nearest.free.cpu_millis", "8000"),
        ("nearest.free.disk_mb", "102400"),
        ("nearest.free.ram_mb", "584"),
        ("nearest.headroom.ram_mb", "512"),
        ("nearest.server_handle", "web-2"),
        ("nearest.short.ram_mb", "440"),
        ("rejected.CAPACITY", "3"),
        ("servers", "3"),
    ];
    let figures: Vec<_> =
        refusal.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(figures, expected);
    insta::assert_snapshot!(refusal, @"asked for 1024 MB RAM, 2048 MB disk, 0 thousandths of a CPU, and nothing in the fleet of 3 servers has room for it now: `web-2` is the nearest, short of 440 MB RAM; wait for a release, ask for less, or register a server");
}

#[test]
fn the_nearest_server_is_the_one_that_lacks_the_least_share_of_what_is_asked() {
    // 1500 of 10000 MB disk are less of a lack than 100 of 500 MB RAM.
    let fleet = a_fleet(&[a_server("web-1").ram(400), a_server("web-2").disk(8500)]);
    let refusal = refused(&fleet, &an_ensure("shop").ram(500).disk(10_000));
    assert_eq!(refusal.reason, Reason::RequestExceedsFleet);
    assert_eq!(refusal.figure("nearest.server_handle"), "web-2");
    assert_eq!(refusal.figure("nearest.short.disk_mb"), "1500");
    assert_eq!(refusal.figure("nearest.short.ram_mb"), "");
    insta::assert_snapshot!(refusal, @"asked for 500 MB RAM, 10000 MB disk, 0 thousandths of a CPU, and nothing in the fleet of 2 servers could hold that even empty, its headroom kept: `web-2` is the nearest, short of 1500 MB disk; ask for less, or register a larger server");
}

#[test]
fn the_nearest_server_is_one_that_reached_the_last_stage() {
    // web-1 lacks a megabyte even when empty; web-2 could hold it and lacks much more now.
    let fleet = a_fleet(&[a_server("web-1").ram(1023), a_server("web-2").ram(2048).reserved(ram(2048))]);
    let refusal = refused(&fleet, &an_ensure("shop").ram(1024));
    assert_eq!(refusal.reason, Reason::InsufficientCapacity);
    assert_eq!(refusal.figure("nearest.server_handle"), "web-2");
}

#[test]
fn stale_reports_are_told_with_their_servers() {
    let servers: Vec<_> =
        ["a", "b", "c", "d", "e"].map(|name| a_server(name).reported(400, Resources::ZERO, &[])).into();
    insta::assert_snapshot!(refused(&a_fleet(&servers), &an_ensure("shop")), @"asked for 512 MB RAM, 1024 MB disk, 0 thousandths of a CPU, and the only servers left in the fleet of 5 servers, `a`, `b`, `c`, and 2 more, did not report their usage in the last 300 s; see why their reports stopped");
    insta::assert_snapshot!(refused(&a_fleet(&servers[..2]), &an_ensure("shop")), @"asked for 512 MB RAM, 1024 MB disk, 0 thousandths of a CPU, and the only servers left in the fleet of 2 servers, `a`, `b`, did not report their usage in the last 300 s; see why their reports stopped");
}

#[test]
fn a_taken_port_is_told_with_its_server_and_cause() {
    let server = || a_server("web-1").port_range(8000, 9000);
    let cases = [
        (server().holding(8080), "ALLOCATED"),
        (server().reported(0, Resources::ZERO, &[8080]), "LISTENED_ON"),
        (server().excluding(8080, 8090), "EXCLUDED"),
        (server().port_range(8081, 9000), "OUT_OF_RANGE"),
        (server().port_range(8000, 8079), "OUT_OF_RANGE"),
        // Held and listened on is ours, running.
        (server().holding(8080).reported(0, Resources::ZERO, &[8080]), "ALLOCATED"),
    ];
    for (server, cause) in cases {
        let refusal = refused(&a_fleet(&[server]), &an_ensure("shop").with(a_module("api").at(8080)));
        assert_eq!((refusal.reason, refusal.reason.disposition()), (Reason::PortTaken, Disposition::Caller));
        assert_eq!(refusal.figure("cause"), cause);
        assert_eq!(refusal.figure("server_handle"), "web-1");
        assert_eq!(refusal.figure("module"), "api");
        assert_eq!(refusal.figure("port"), "8080");
        assert_eq!(refusal.figure("protocol"), "TCP");
    }
    let fleet = a_fleet(&[server().holding(8080)]);
    insta::assert_snapshot!(refused(&fleet, &an_ensure("shop").with(a_module("api").at(8080))), @"asked for port 8080/TCP for module `api`, and no server with room can give it: on `web-1` it is allocated to a project; ask for another port, or leave `port` out");
}

#[test]
fn an_explicit_port_that_is_taken_on_one_server_is_given_by_another() {
    let fleet = a_fleet(&[a_server("web-1").ram(32768).holding(8080), a_server("web-2")]);
    assert_eq!(chosen(&fleet, &an_ensure("shop").with(a_module("api").at(8080))), "web-2");
}

#[test]
fn a_taken_port_is_told_before_an_exhausted_range_for_the_caller_can_mend_it() {
    let request = an_ensure("shop").with(a_module("api").at(8080)).module("web");
    let exhausted = a_server("web-1").port_range(8080, 8080);
    let taken = a_server("web-2").holding(8080);
    assert_eq!(refused(&a_fleet([&exhausted]), &request).reason, Reason::PortsExhausted);
    let refusal = refused(&a_fleet([&exhausted, &taken]), &request);
    assert_eq!(refusal.reason, Reason::PortTaken);
    assert_eq!(refusal.figure("server_handle"), "web-2");
    assert_eq!(rejected(&refusal), BTreeMap::from([("PORTS", "2")]));
}

#[test]
fn exhausted_ports_are_told_with_the_range() {
    let fleet = a_fleet(&[a_server("web-1").port_range(8000, 8001).holding(8000).holding(8001)]);
    let refusal = refused(&fleet, &an_ensure("shop"));
    assert_eq!(
        (refusal.reason, refusal.reason.disposition()),
        (Reason::PortsExhausted, Disposition::Operator)
    );
    assert_eq!(refusal.figure("start_port"), "8000");
    assert_eq!(refusal.figure("port_range"), "8000-8001");
    assert_eq!(refusal.figure("server_handle"), "web-1");
    assert_eq!(refusal.figure("protocol"), "TCP");
    insta::assert_snapshot!(refusal, @"asked for 1 port at or above 8000, and none of the servers with room, `web-1`, has enough that are free in its range; widen `port_range`, start lower, or register a server");
}

#[test]
fn an_exclusion_says_what_it_found() {
    let details: Vec<_> = Cause::ALL
        .into_iter()
        .map(|cause| {
            let fleet = a_fleet(&[cause.afflict(healthy("web-1"))]);
            find_servers(&fleet, &find(), &context()).rejections[0].1.detail()
        })
        .collect();
    insta::assert_snapshot!(details.join("\n"), @r"
        does not carry the label region=eu
        is not managed
        could not hold this even empty, headroom kept: short of 256 MB RAM
        has the status PROVISIONING, which admits no work
        reported its usage 301 s ago, and the limit is 300 s
        has no room now: short of 128 MB RAM
        has no free TCP port at or above 8000 in its range 1024-7999
        ");
}
