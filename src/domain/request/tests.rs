//! When a request asks for nothing that is not held already, and what it makes of a lease.

use super::*;
use crate::domain::testing::{Ledger, NOW, a_module, a_server, an_ensure};

/// A project with one module, on a TCP port of its own, and 512 MB.
fn placed() -> Project {
    let mut ledger = Ledger::of(&[a_server("web-1"), a_server("web-2")]);
    ledger.ensure(&an_ensure("shop").on("web-1").with(a_module("api").at(8000))).unwrap();
    ledger.held_by("shop")
}

/// The same, for a while.
fn leased() -> Project {
    let mut project = placed();
    project.placement.as_mut().unwrap().expire_time = Some(NOW);
    project
}

fn for_a_while(seconds: u64) -> EnsureRequest {
    EnsureRequest { ttl: Some(Duration::from_secs(seconds)), ..an_ensure("shop") }
}

#[test]
fn what_is_held_is_not_asked_for_again() {
    let project = placed();
    let api = || an_ensure("shop").module("api");
    for held in [
        an_ensure("shop"),
        api().ram(512).disk(1024).cpu(0).on("web-1"),
        an_ensure("shop").with(a_module("api").at(8000).over(Protocol::Tcp)),
    ] {
        assert!(held.is_held_by(&project), "{held:?}");
        assert!(held.is_satisfied_by(&project), "{held:?}");
    }
    for more in [
        api().ram(513),
        api().on("web-2"),
        api().module("web"),
        an_ensure("shop").with(a_module("api").at(8001)),
        an_ensure("shop").with(a_module("api").over(Protocol::Udp)),
    ] {
        assert!(!more.is_held_by(&project), "{more:?}");
        assert!(!more.is_satisfied_by(&project), "{more:?}");
    }
    assert!(!an_ensure("shop").is_held_by(&Project::unplaced(project.id)));
}

#[test]
fn a_lease_that_is_renewed_or_ended_is_a_change_and_no_lease_leaves_it_as_it_stands() {
    assert!(!for_a_while(60).is_satisfied_by(&placed()));
    assert!(!for_a_while(60).is_satisfied_by(&leased()));
    assert!(for_a_while(0).is_satisfied_by(&placed()), "it ends never as it is");
    assert!(!for_a_while(0).is_satisfied_by(&leased()), "it ends never from now on");
    assert!(an_ensure("shop").is_satisfied_by(&leased()));
    // Whether it is held is another question.
    assert!(for_a_while(60).is_held_by(&placed()));
}

#[test]
fn a_lease_ends_so_long_after_now_or_never_or_as_it_stands() {
    let (stands, now) = (Some(NOW), NOW + Duration::from_secs(5));
    assert_eq!(for_a_while(60).expire_time(stands, now), Some(NOW + Duration::from_secs(65)));
    assert_eq!(for_a_while(60).expire_time(None, now), Some(NOW + Duration::from_secs(65)));
    assert_eq!(for_a_while(0).expire_time(stands, now), None);
    assert_eq!(an_ensure("shop").expire_time(stands, now), stands);
    assert_eq!(an_ensure("shop").expire_time(None, now), None);
}
