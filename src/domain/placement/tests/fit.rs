//! Where the limits are: of what fits, and of what is fresh.

use super::funnel::{healthy, request};
use crate::domain::{
    Fleet, Reason, Resources, ServerStatus,
    placement::filter::{Exclusion, admits},
    testing::*,
};

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
        Err(Exclusion::UsageStale { age: Some(limit), max_age: MAX_AGE })
    );
    assert_eq!(admits(true, ServerStatus::Ready, None, &context), Ok(()));
    let strict = crate::domain::placement::Context { usage_required: true, ..context };
    assert_eq!(
        admits(true, ServerStatus::Ready, None, &strict),
        Err(Exclusion::UsageStale { age: None, max_age: MAX_AGE })
    );
    assert_eq!(admits(true, ServerStatus::Ready, Some(NOW), &strict), Ok(()));
    assert!(!Fleet::default().admits(&handle("web-9"), &context));
}

#[test]
fn over_commit_lets_more_be_reserved_than_there_is() {
    let fleet = a_fleet(&[a_server("web-1").cpu(1000).ram(1000).overcommit(150)]);
    let fits = |cpu, ram| decide_new(&fleet, &an_ensure("shop").cpu(cpu).ram(ram)).is_ok();
    assert!(fits(1500, 1500));
    assert!(!fits(1501, 1500) && !fits(1500, 1501));
}

#[test]
fn l22_a_sources_figure_counts_and_does_not_grow_stale() {
    let seeded = a_server("web-1").ram(1000).seeded(ram(600));
    let fleet = a_fleet(&[seeded]);
    assert!(decide_new(&fleet, &an_ensure("shop").ram(400)).is_ok());
    assert!(decide_new(&fleet, &an_ensure("shop").ram(401)).is_err());
    let later = crate::domain::testing::context_at(NOW + time::Duration::days(9));
    assert!(fleet.admits(&handle("web-1"), &later));
    // Where reports are required, it is none.
    assert!(
        !fleet.admits(&handle("web-1"), &crate::domain::placement::Context { usage_required: true, ..later })
    );
}

#[test]
fn l22_a_sources_figure_does_not_replace_what_the_host_reported() {
    let mut fleet = a_fleet(&[a_server("web-1").reported(0, ram(600), &[])]);
    let seed = a_server("web-1").seeded(ram(1)).observed.unwrap();
    fleet.observe(&handle("web-1"), seed);
    assert_eq!(fleet.get(&handle("web-1")).unwrap().observed.as_ref().unwrap().ram_mb, Some(600));
}
