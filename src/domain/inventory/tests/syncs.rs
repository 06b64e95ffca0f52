//! What a sync makes of a source's list.

use super::*;

/// Of `cloud`, three servers; of others, two.
fn fleet() -> Fleet {
    a_fleet(&[
        listed("web-1", "i-1"),
        listed("web-2", "i-2"),
        a_server("web-3").listed_by("cloud", None),
        a_server("web-4").listed_by("other", Some("i-1")),
        a_server("web-5"),
    ])
}

fn whole() -> Vec<ServerSpec> {
    vec![
        spec(listed("web-1", "i-1")),
        spec(listed("web-2", "i-2")),
        spec(a_server("web-3").listed_by("cloud", None)),
    ]
}

#[test]
fn a_list_of_what_stands_changes_nothing_and_touches_no_other_source() {
    let plan = plan_sync(&fleet(), &list(whole())).unwrap();
    assert_eq!(kinds(&plan), [("web-1", "unchanged"), ("web-2", "unchanged"), ("web-3", "unchanged")]);
}

#[test]
fn what_is_new_is_created() {
    let servers = whole().into_iter().chain([spec(listed("web-6", "i-6"))]);
    let plan = plan_sync(&fleet(), &list(servers)).unwrap();
    assert_eq!(plan[&handle("web-6")], SyncAction::Created(listed("web-6", "i-6").server));
    let first = plan_sync(&Fleet::default(), &list(whole())).unwrap();
    assert_eq!(kinds(&first), [("web-1", "created"), ("web-2", "created"), ("web-3", "created")]);
}

#[test]
fn an_address_may_change_l34() {
    let mut servers = whole();
    servers[0].address = "10.9.9.9".to_owned();
    let plan = plan_sync(&fleet(), &list(servers)).unwrap();
    let (server, fields) = updated(&plan, "web-1");
    assert_eq!((server.address.as_str(), fields), ("10.9.9.9", vec!["address"]));
    assert_eq!(kinds(&plan), [("web-1", "updated"), ("web-2", "unchanged"), ("web-3", "unchanged")]);
}

#[test]
fn a_server_is_known_by_its_external_id_and_keeps_its_handle_l34() {
    let mut servers = whole();
    servers[1].handle = handle("renamed");
    servers[1].capacity.ram_mb = 1;
    let plan = plan_sync(&fleet(), &list(servers)).unwrap();
    let (server, fields) = updated(&plan, "web-2");
    assert_eq!((server.handle.as_str(), server.capacity.ram_mb, fields), ("web-2", 1, vec!["capacity"]));
    assert_eq!(plan.len(), 3, "nothing is created under the new name, and nothing goes missing");
}

#[test]
fn names_that_changed_places_follow_their_external_ids_l34() {
    let mut servers = whole();
    servers[0].handle = handle("web-2");
    servers[1].handle = handle("web-1");
    servers[0].address = "10.0.0.11".to_owned();
    let plan = plan_sync(&fleet(), &list(servers)).unwrap();
    assert_eq!(updated(&plan, "web-1").0.address, "10.0.0.11");
    assert_eq!(kinds(&plan), [("web-1", "updated"), ("web-2", "unchanged"), ("web-3", "unchanged")]);
}

#[test]
fn a_server_is_known_by_its_handle_where_its_external_id_is_new() {
    let mut servers = whole();
    servers[0].external_id = Some("i-9".to_owned());
    servers[2].external_id = Some("i-3".to_owned());
    let plan = plan_sync(&fleet(), &list(servers)).unwrap();
    for (name, external_id) in [("web-1", "i-9"), ("web-3", "i-3")] {
        let (server, fields) = updated(&plan, name);
        assert_eq!((server.external_id.as_deref(), fields), (Some(external_id), vec!["external_id"]));
    }
}

#[test]
fn missing_is_a_state_and_placements_stay_l36() {
    let mut ledger = Ledger::of(&[listed("web-1", "i-1"), listed("web-2", "i-2")]);
    ledger.ensure(&an_ensure("shop").on("web-1")).unwrap();
    let plan = plan_sync(&ledger.fleet, &list([spec(listed("web-2", "i-2"))])).unwrap();
    let SyncAction::MarkedMissing(gone) = &plan[&handle("web-1")] else { panic!("not marked") };
    assert_eq!((gone.status, gone.status_before_missing), (ServerStatus::Missing, Some(ServerStatus::Ready)));
    ledger.put_server(gone.clone());
    assert!(ledger.ensure(&an_ensure("shop")).is_ok());
    assert_eq!(ledger.fleet.get(&handle("web-1")).unwrap().placement_count, 1);
    assert!(ledger.ensure(&an_ensure("shop").module("new")).is_err());
}

#[test]
fn a_server_that_is_listed_again_returns_to_what_it_was() {
    for before in
        [ServerStatus::Ready, ServerStatus::Maintenance, ServerStatus::Error, ServerStatus::Discovered]
    {
        let mut ledger = Ledger::of(&[listed("web-1", "i-1").status(before), listed("web-2", "i-2")]);
        let plan = plan_sync(&ledger.fleet, &list([spec(listed("web-2", "i-2"))])).unwrap();
        let SyncAction::MarkedMissing(gone) = &plan[&handle("web-1")] else { panic!("not marked") };
        ledger.put_server(gone.clone());
        // A list that still lacks it marks it no second time, for its way back would be lost.
        let plan = plan_sync(&ledger.fleet, &list([spec(listed("web-2", "i-2"))])).unwrap();
        assert_eq!(kinds(&plan), [("web-1", "unchanged"), ("web-2", "unchanged")]);
        let plan =
            plan_sync(&ledger.fleet, &list([spec(listed("web-1", "i-1")), spec(listed("web-2", "i-2"))]))
                .unwrap();
        let (server, fields) = updated(&plan, "web-1");
        assert_eq!((server.status, server.status_before_missing, fields), (before, None, vec!["status"]));
    }
}

#[test]
fn a_server_that_is_listed_again_with_a_status_takes_that() {
    let fleet = a_fleet(&[missing(listed("web-1", "i-1"), Some(ServerStatus::Ready))]);
    let told = ServerSpec { status: Some(ServerStatus::Provisioning), ..spec(listed("web-1", "i-1")) };
    let plan = plan_sync(&fleet, &list([told])).unwrap();
    assert_eq!(updated(&plan, "web-1").0.status, ServerStatus::Provisioning);
}

#[test]
fn a_missing_server_that_never_was_anything_else_is_discovered_when_it_is_listed() {
    let fleet = a_fleet(&[missing(listed("web-1", "i-1"), None)]);
    let plan = plan_sync(&fleet, &list([spec(listed("web-1", "i-1"))])).unwrap();
    assert_eq!(updated(&plan, "web-1").0.status, ServerStatus::Discovered);
}

#[test]
fn a_decommissioned_server_is_neither_missed_nor_revived() {
    let fleet =
        a_fleet(&[listed("web-1", "i-1").status(ServerStatus::Decommissioned), listed("web-2", "i-2")]);
    let plan = plan_sync(&fleet, &list([spec(listed("web-2", "i-2"))])).unwrap();
    assert_eq!(kinds(&plan), [("web-1", "unchanged"), ("web-2", "unchanged")]);
    let plan =
        plan_sync(&fleet, &list([spec(listed("web-1", "i-1")), spec(listed("web-2", "i-2"))])).unwrap();
    assert_eq!(kinds(&plan), [("web-1", "unchanged"), ("web-2", "unchanged")]);
}

#[test]
fn an_empty_list_is_refused_unless_it_is_meant_l35() {
    let refusal = plan_sync(&fleet(), &list([])).unwrap_err();
    assert_eq!((refusal.reason, refusal.reason.disposition()), (Reason::SyncRefused, Disposition::Operator));
    assert_eq!(refusal.figure("source"), "cloud");
    assert_eq!(
        (refusal.figure("listed"), refusal.figure("would_be_missing"), refusal.figure("known")),
        ("0", "3", "3")
    );
    insta::assert_snapshot!(refusal, @"source `cloud` lists 0 servers, which would mark 3 of its 3 as missing; see whether its list is whole, or set `allow_mass_missing` if it is");
    // Also where nothing would go missing: an unfinished list looks like this too.
    assert!(plan_sync(&Fleet::default(), &list([])).is_err());

    let plan = plan_sync(&fleet(), &SyncRequest { allow_mass_missing: true, ..list([]) }).unwrap();
    assert_eq!(kinds(&plan), [("web-1", "missing"), ("web-2", "missing"), ("web-3", "missing")]);
}

#[test]
fn a_list_that_would_mark_more_than_half_missing_is_refused_unless_it_is_meant_l35() {
    let servers = ["web-1", "web-2", "web-3", "web-4"].map(|name| listed(name, &format!("i-{name}")));
    let fleet = a_fleet(&servers);
    let first = |count: usize| list(servers[..count].iter().cloned().map(spec));
    assert!(plan_sync(&fleet, &first(2)).is_ok(), "half is not more than half");
    let refusal = plan_sync(&fleet, &first(1)).unwrap_err();
    assert_eq!(
        (refusal.figure("listed"), refusal.figure("would_be_missing"), refusal.figure("known")),
        ("1", "3", "4")
    );
    let plan = plan_sync(&fleet, &SyncRequest { allow_mass_missing: true, ..first(1) }).unwrap();
    assert_eq!(
        kinds(&plan),
        [("web-1", "unchanged"), ("web-2", "missing"), ("web-3", "missing"), ("web-4", "missing")]
    );
}

#[test]
fn a_list_cut_shorter_each_time_is_refused_too_l35() {
    let servers = ["web-1", "web-2", "web-3", "web-4"].map(|name| listed(name, &format!("i-{name}")));
    let [a, b, c, d] = servers.clone();
    let half = a_fleet(&[a, b, missing(c, Some(ServerStatus::Ready)), missing(d, Some(ServerStatus::Ready))]);
    let refusal = plan_sync(&half, &list([])).unwrap_err();
    assert_eq!((refusal.figure("would_be_missing"), refusal.figure("known")), ("2", "2"));
    assert!(plan_sync(&half, &list([spec(servers[0].clone())])).is_ok(), "half of those that are there");
    let [a, b, c, d] = servers.clone();
    let two = [missing(a, None), b, c, d];
    assert!(plan_sync(&a_fleet(&two), &list([spec(servers[1].clone())])).is_err(), "two of three");
}

#[test]
fn new_names_do_not_make_up_for_those_that_vanish_l35() {
    let fleet = a_fleet(&["web-1", "web-2"].map(|name| listed(name, &format!("i-{name}"))));
    let others = ["x-1", "x-2", "x-3"].map(|name| spec(listed(name, &format!("i-{name}"))));
    assert_eq!(plan_sync(&fleet, &list(others)).unwrap_err().reason, Reason::SyncRefused);
}

#[test]
fn the_handle_of_another_sources_server_is_rejected_and_the_rest_goes_on() {
    let servers = whole().into_iter().chain(["web-4", "web-5"].map(|name| spec(listed(name, name))));
    let plan = plan_sync(&fleet(), &list(servers)).unwrap();
    let expected = [
        ("web-1", "unchanged"),
        ("web-2", "unchanged"),
        ("web-3", "unchanged"),
        ("web-4", "rejected"),
        ("web-5", "rejected"),
    ];
    assert_eq!(kinds(&plan), expected);
    let SyncAction::Rejected(foreign) = &plan[&handle("web-4")] else { panic!("not rejected") };
    assert_eq!(foreign, "the handle is that of a server of source `other`, not of source `cloud`");
    let SyncAction::Rejected(by_hand) = &plan[&handle("web-5")] else { panic!("not rejected") };
    assert_eq!(by_hand, "the handle is that of a server of no source, not of source `cloud`");
}

#[test]
fn the_external_id_of_another_source_is_another_id() {
    let servers = whole().into_iter().chain([spec(listed("web-6", "i-6"))]);
    let fleet = a_fleet(&[
        listed("web-1", "i-1"),
        listed("web-2", "i-2"),
        a_server("web-3").listed_by("cloud", None),
        a_server("other-6").listed_by("other", Some("i-6")),
    ]);
    let plan = plan_sync(&fleet, &list(servers)).unwrap();
    assert_eq!(plan[&handle("web-6")], SyncAction::Created(listed("web-6", "i-6").server));
    assert!(!plan.contains_key(&handle("other-6")));
}

#[test]
fn entries_that_are_the_same_server_are_rejected() {
    let mut servers = whole();
    // By handle it is web-1; by external id the second is web-1 too.
    servers.push(ServerSpec { handle: handle("web-9"), ..spec(listed("web-1", "i-1")) });
    servers[0].external_id = None;
    let plan = plan_sync(&fleet(), &list(servers.clone())).unwrap();
    assert_eq!(kinds(&plan), [("web-1", "rejected"), ("web-2", "unchanged"), ("web-3", "unchanged")]);
    let SyncAction::Rejected(why) = &plan[&handle("web-1")] else { panic!("not rejected") };
    assert_eq!(why, "two entries of the list are this one server");
    // A third does not bring it back.
    servers.push(ServerSpec { handle: handle("web-8"), ..spec(listed("web-1", "i-1")) });
    let plan = plan_sync(&fleet(), &list(servers)).unwrap();
    assert_eq!(kinds(&plan)[0], ("web-1", "rejected"));
}

#[test]
fn a_plan_does_not_depend_on_the_order_of_the_list() {
    let mut servers = whole();
    servers.push(spec(listed("web-6", "i-6")));
    servers[1].handle = handle("web-0");
    let plan = plan_sync(&fleet(), &list(servers.clone())).unwrap();
    servers.reverse();
    assert_eq!(plan_sync(&fleet(), &list(servers)).unwrap(), plan);
}

#[test]
fn a_plan_that_was_carried_out_leaves_nothing_to_do() {
    let mut servers = whole();
    servers[0].address = "10.9.9.9".to_owned();
    servers.remove(2);
    servers.push(spec(listed("web-6", "i-6")));
    let mut ledger = Ledger::of(&[
        listed("web-1", "i-1"),
        listed("web-2", "i-2"),
        a_server("web-3").listed_by("cloud", None),
    ]);
    let plan = plan_sync(&ledger.fleet, &list(servers.clone())).unwrap();
    assert_eq!(
        kinds(&plan),
        [("web-1", "updated"), ("web-2", "unchanged"), ("web-3", "missing"), ("web-6", "created")]
    );
    for action in plan.into_values() {
        if let SyncAction::Created(server)
        | SyncAction::Updated(server, _)
        | SyncAction::MarkedMissing(server) = action
        {
            ledger.put_server(server);
        }
    }
    let again = plan_sync(&ledger.fleet, &list(servers)).unwrap();
    assert!(again.values().all(|action| *action == SyncAction::Unchanged), "{again:?}");
}

#[test]
fn l37_an_entry_that_was_made_from_an_older_state_is_rejected_and_the_others_are_not() {
    let fleet = a_fleet(&[listed("web-1", "i-1"), listed("web-2", "i-2")]);
    let entry = |name: &str, id: &str, read: &str| ServerSpec {
        address: "10.0.0.9".to_owned(),
        etag: Some(read.to_owned()),
        ..spec(listed(name, id))
    };
    let current = etag(fleet.get(&handle("web-1")).unwrap());
    let plan =
        plan_sync(&fleet, &list([entry("web-1", "i-1", &current), entry("web-2", "i-2", "g0")])).unwrap();
    assert_eq!(kinds(&plan), [("web-1", "updated"), ("web-2", "rejected")]);
}

/// An entry whose source says how much of the server is in use.
fn seeded(server: TestServer, usage: Resources) -> ServerSpec {
    let seed = Observation { observer: Observer::Provider, ..a_report(NOW, usage, &[]) };
    ServerSpec { seed: Some(seed), ..spec(server) }
}

#[test]
fn what_a_source_says_of_usage_counts_until_the_host_reports_l22() {
    let fleet = a_fleet(&[
        listed("web-1", "i-1"),
        listed("web-2", "i-2").reported(0, ram(7), &[]),
        listed("web-3", "i-3").seeded(ram(7)),
        listed("web-4", "i-4"),
        listed("web-5", "i-5"),
        a_server("mine"),
    ]);
    let request = list([
        seeded(listed("renamed", "i-1"), ram(1)),
        seeded(listed("web-2", "i-2"), ram(2)),
        seeded(listed("web-3", "i-3"), ram(3)),
        // Rejected: two entries are one server.
        seeded(listed("web-4", "i-4"), ram(4)),
        seeded(listed("web-4", "i-4"), ram(4)),
        ServerSpec { external_id: None, ..seeded(listed("web-5", "i-5"), ram(5)) },
        // Another source's.
        seeded(listed("mine", "i-6"), ram(6)),
        spec(listed("web-7", "i-7")),
    ]);
    let plan = plan_sync(&fleet, &request).unwrap();
    let seeds = sync_seeds(&fleet, &request, &plan);
    let told: Vec<_> = seeds.iter().map(|(handle, seed)| (handle.as_str(), seed.ram_mb.unwrap())).collect();
    assert_eq!(told, [("web-1", 1), ("web-3", 3), ("web-5", 5)]);
    assert_eq!(sync_seeds(&fleet, &list([spec(listed("web-1", "i-1"))]), &plan), BTreeMap::new());
}
