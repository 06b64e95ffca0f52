//! The funnel (`Rejection.reason`): every cause alone, every pair of causes, and what each refusal tells.

use std::collections::BTreeMap;

use crate::domain::{
    Disposition, Fleet, Reason, Refusal, ResourceRequest, Resources, ServerStatus,
    placement::{filter::Stage, find_servers},
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

pub(super) fn request() -> EnsureRequest {
    an_ensure("shop").labelled("region", "eu").module("api").ram(512).disk(1024).cpu(100)
}

pub(super) fn healthy(name: &str) -> TestServer {
    a_server(name).label("region", "eu")
}

/// The same as [`request`], for `FindServer`.
fn find() -> FindRequest {
    let EnsureRequest { modules, resources, selector, start_port, strategy, .. } = request();
    FindRequest { resources, selector, modules, start_port, strategy, max_candidates: 10 }
}

/// The stages in the metadata, with their counts.
pub(super) fn rejected(refusal: &Refusal) -> BTreeMap<&str, &str> {
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
