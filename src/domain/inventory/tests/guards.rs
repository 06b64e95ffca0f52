//! Writes that are refused.

use super::*;

#[test]
fn an_etag_guards_a_write_that_was_read_first_l37() {
    let fleet = a_fleet(&[a_server("web-1")]);
    let state = fleet.get(&handle("web-1")).unwrap();
    let current = etag(state);
    assert_eq!(check_etag(None, Some(state), &handle("web-1")), Ok(()));
    assert_eq!(check_etag(None, None, &handle("web-1")), Ok(()));
    assert_eq!(check_etag(Some(&current), Some(state), &handle("web-1")), Ok(()));

    let changed = ServerState { generation: state.generation + 1, ..state.clone() };
    assert_ne!(etag(&changed), current);
    for standing in [Some(&changed), None] {
        let refusal = check_etag(Some(&current), standing, &handle("web-1")).unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.reason.disposition()),
            (Reason::EtagMismatch, Disposition::Caller)
        );
        assert_eq!(refusal.figure("server_handle"), "web-1");
    }
    for forged in ["", "1", "G1", "g01", "g1 "] {
        assert!(check_etag(Some(forged), Some(state), &handle("web-1")).is_err(), "{forged:?}");
    }
}

#[test]
fn an_external_id_is_one_servers_within_its_source() {
    let fleet = a_fleet(&[listed("web-1", "i-1"), a_server("web-2").listed_by("other", Some("i-2"))]);
    let refusal = check_external_id(&fleet, &listed("web-9", "i-1").server).unwrap_err();
    assert_eq!(
        (refusal.reason, refusal.reason.disposition()),
        (Reason::ExternalIdTaken, Disposition::Caller)
    );
    assert_eq!(refusal.figure("server_handle"), "web-1");
    assert_eq!((refusal.figure("source"), refusal.figure("external_id")), ("cloud", "i-1"));
    for free in [
        listed("web-1", "i-1"),
        listed("web-9", "i-2"),
        a_server("web-9").listed_by("", Some("i-1")),
        a_server("web-9").listed_by("cloud", None),
    ] {
        assert_eq!(check_external_id(&fleet, &free.server), Ok(()));
    }
}

#[test]
fn a_server_that_holds_a_placement_is_not_removed() {
    let mut ledger = Ledger::of(&[a_server("web-1")]);
    ledger.ensure(&an_ensure("shop").ram(0).disk(0)).unwrap();
    let refusal = ledger.remove(&handle("web-1")).unwrap_err();
    assert_eq!((refusal.reason, refusal.reason.disposition()), (Reason::ServerInUse, Disposition::Caller));
    assert_eq!((refusal.figure("server_handle"), refusal.figure("placements")), ("web-1", "1"));
    ledger.release("shop", &[]);
    ledger.remove(&handle("web-1")).unwrap();
    assert!(ledger.fleet.is_empty());
}
