//! What a write makes of a server.

use super::*;

#[test]
fn a_new_server_is_ready_and_managed_unless_it_says_otherwise() {
    let server = spec(a_server("web-1")).onto(None);
    assert_eq!(server, a_server("web-1").server);
    let spec = ServerSpec {
        status: Some(ServerStatus::Provisioning),
        managed: Some(false),
        ..spec(a_server("web-1"))
    };
    assert_eq!(spec.onto(None), a_server("web-1").status(ServerStatus::Provisioning).unmanaged().server);
}

#[test]
fn a_replaced_server_keeps_its_status_and_whether_it_is_managed_unless_it_says_otherwise() {
    let standing = a_server("web-1").status(ServerStatus::Maintenance).unmanaged().label("old", "1").server;
    let replaced = spec(a_server("web-1").ram(99).label("new", "1")).onto(Some(&standing));
    assert_eq!((replaced.status, replaced.managed), (ServerStatus::Maintenance, false));
    assert_eq!(replaced.capacity.ram_mb, 99);
    assert_eq!(replaced.labels.keys().collect::<Vec<_>>(), ["new"], "the rest is replaced whole");
    let spec =
        ServerSpec { status: Some(ServerStatus::Ready), managed: Some(true), ..spec(a_server("web-1")) };
    let replaced = spec.onto(Some(&standing));
    assert_eq!((replaced.status, replaced.managed), (ServerStatus::Ready, true));
}

#[test]
fn a_replaced_server_that_is_missing_keeps_the_status_to_return_to() {
    let standing = missing(listed("web-1", "i-1"), Some(ServerStatus::Maintenance)).server;
    let replaced = spec(listed("web-1", "i-1").ram(99)).onto(Some(&standing));
    assert_eq!(replaced.status, ServerStatus::Missing);
    assert_eq!(replaced.status_before_missing, Some(ServerStatus::Maintenance));
    let plan = plan_sync(
        &a_fleet(&[TestServer { server: replaced, ..listed("web-1", "i-1") }]),
        &list([spec(listed("web-1", "i-1"))]),
    );
    assert_eq!(updated(&plan.unwrap(), "web-1").0.status, ServerStatus::Maintenance);

    let told = ServerSpec { status: Some(ServerStatus::Ready), ..spec(listed("web-1", "i-1")) }
        .onto(Some(&standing));
    assert_eq!((told.status, told.status_before_missing), (ServerStatus::Ready, None));
}

#[test]
fn an_empty_patch_changes_nothing() {
    let standing =
        missing(listed("web-1", "i-1").label("a", "b").excluding(1, 2), Some(ServerStatus::Ready)).server;
    assert_eq!(ServerPatch::default().onto(&standing), standing);
}

#[test]
fn a_patch_changes_what_it_names_and_nothing_else() {
    let standing = listed("web-1", "i-1").label("a", "b").headroom(ram(100)).server;
    let changed = |patch: ServerPatch| {
        let after = patch.onto(&standing);
        let fields = standing.changed_fields(&after);
        assert_eq!(fields.len(), 1, "{fields:?}");
        (fields[0], after)
    };
    let patch = ServerPatch::default;
    assert_eq!(changed(ServerPatch { address: Some("10.0.0.9".to_owned()), ..patch() }).0, "address");
    assert_eq!(changed(ServerPatch { status: Some(ServerStatus::Error), ..patch() }).0, "status");
    assert_eq!(changed(ServerPatch { managed: Some(false), ..patch() }).0, "managed");
    assert_eq!(changed(ServerPatch { labels: Some(BTreeMap::new()), ..patch() }).0, "labels");
    assert_eq!(changed(ServerPatch { port_range: Some(range(1, 2)), ..patch() }).0, "port_range");
    assert_eq!(
        changed(ServerPatch { excluded_ports: Some(vec![range(1, 2)]), ..patch() }).0,
        "excluded_ports"
    );
    assert_eq!(changed(ServerPatch { source: Some(String::new()), ..patch() }).0, "source");
    assert_eq!(changed(ServerPatch { external_id: Some(None), ..patch() }).0, "external_id");

    // L31: one amount is changed, to zero even, and the others stay.
    let amount = ResourceRequest { disk_mb: Some(0), ..ResourceRequest::default() };
    let (field, after) = changed(ServerPatch { capacity: amount, ..patch() });
    assert_eq!((field, after.capacity), ("capacity", Resources { disk_mb: 0, ..standing.capacity }));
    let headroom = vec![(Resource::Ram, Some(0))];
    let (field, after) = changed(ServerPatch { headroom, ..patch() });
    assert_eq!((field, after.headroom.ram_mb), ("headroom", Some(0)));
    let headroom = vec![(Resource::Ram, None)];
    let (field, after) = changed(ServerPatch { headroom, ..patch() });
    assert_eq!((field, after.headroom.ram_mb), ("headroom", None), "back to the fleet's default");
    let overcommit_percent = vec![(Resource::Cpu, Some(400))];
    let (field, after) = changed(ServerPatch { overcommit_percent, ..patch() });
    assert_eq!((field, after.overcommit_percent.cpu), ("overcommit_percent", Some(400)));
}

#[test]
fn a_status_that_is_set_by_hand_is_not_undone_when_the_source_lists_the_server_again() {
    let standing = missing(listed("web-1", "i-1"), Some(ServerStatus::Ready)).server;
    let patch = ServerPatch { status: Some(ServerStatus::Maintenance), ..ServerPatch::default() };
    let after = patch.onto(&standing);
    assert_eq!((after.status, after.status_before_missing), (ServerStatus::Maintenance, None));
    let fleet = a_fleet(&[TestServer { server: after, ..listed("web-1", "i-1") }]);
    let plan = plan_sync(&fleet, &list([spec(listed("web-1", "i-1"))])).unwrap();
    assert_eq!(kinds(&plan), [("web-1", "unchanged")]);
}
