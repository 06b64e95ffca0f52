//! `ServerInventory` through a generated client, but for `SyncServers`.

use std::collections::BTreeMap;

use resource_allocator::proto::v1::{self, ServerStatus, server_changed::Change};
use tonic::Code;

use crate::support::{
    Client, TestService, error_info,
    inventory::{
        assert_consistent, changes, delete, ensure_ram, events, get, list, ram, refused, register, report,
        update, wait_for_change,
    },
    malformed::{OVERSIZED, stocked, tells_no_more_than_it_should},
    server, violations,
};

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn whole(cpu_millis: u32, ram_mb: u64, disk_mb: u64) -> v1::Resources {
    v1::Resources { cpu_millis: Some(cpu_millis), ram_mb: Some(ram_mb), disk_mb: Some(disk_mb) }
}

/// A server of 1000 MB RAM, and nothing else that limits it.
fn roomy(handle: &str) -> v1::Server {
    v1::Server { capacity: Some(whole(4000, 1000, 100_000)), ..server(handle) }
}

/// Makes a usage report look as old as this; stands in for waiting.
async fn age_report(service: &TestService, handle: &str, seconds: f64) {
    sqlx::query(
        "UPDATE servers SET observe_time = clock_timestamp() - make_interval(secs => $2) WHERE handle = $1",
    )
    .bind(handle)
    .bind(seconds)
    .execute(&service.database.sql)
    .await
    .unwrap();
}

// RegisterServer

#[tokio::test(flavor = "multi_thread")]
async fn a_server_registered_with_the_least_gets_the_defaults() {
    let mut service = TestService::start().await;
    let least = v1::Server {
        handle: "web-1".to_owned(),
        address: "web-1.example.org".to_owned(),
        capacity: Some(ram(2048)),
        ..v1::Server::default()
    };
    let registered = service.client.register(least).await;

    assert_eq!(registered.status(), ServerStatus::Ready);
    assert_eq!(registered.managed, Some(true));
    assert_eq!(registered.port_range, Some(v1::PortRange { start: 1024, end: 32767 }));
    assert_eq!(registered.capacity, Some(whole(0, 2048, 0)), "unset amounts are 0");
    assert_eq!((registered.headroom, registered.overcommit_percent), (None, None), "the fleet's");
    assert_eq!(registered.budget, Some(v1::FreeResources { cpu_millis: 0, ram_mb: 2048, disk_mb: 0 }));
    assert_eq!(registered.reserved, Some(whole(0, 0, 0)));
    assert_eq!(registered.free, Some(v1::FreeResources { cpu_millis: 0, ram_mb: 2048, disk_mb: 0 }));
    assert_eq!((registered.observed.as_ref(), registered.placement_count), (None, 0));
    assert_eq!((registered.source.as_str(), registered.external_id.as_str()), ("", ""));
    assert!(registered.labels.is_empty() && registered.excluded_ports.is_empty());
    assert!(!registered.etag.is_empty() && registered.create_time.is_some());

    assert_eq!(get(&mut service.client, "web-1").await.unwrap(), registered);
    let told = events(&mut service.client, &service.database.sql).await;
    assert_eq!(changes(&told, "web-1"), [[Change::Registered]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn l30_what_is_accepted_is_stored() {
    let mut service = TestService::start().await;
    let full = v1::Server {
        handle: "web-1".to_owned(),
        address: "2001:db8::7".to_owned(),
        status: ServerStatus::Provisioning.into(),
        managed: Some(false),
        labels: labels(&[("region", "eu"), ("rack/row", "")]),
        capacity: Some(whole(1, 2, 3)),
        headroom: Some(whole(4, 5, 6)),
        port_range: Some(v1::PortRange { start: 1, end: 65535 }),
        excluded_ports: vec![v1::PortRange { start: 80, end: 80 }, v1::PortRange { start: 1, end: 65535 }],
        source: "cloud".to_owned(),
        external_id: "i-7 / ü".to_owned(),
        overcommit_percent: Some(v1::Percentages { cpu: Some(400), ram: None, disk: Some(150) }),
        ..v1::Server::default()
    };
    let registered = service.client.register(full.clone()).await;
    let inputs = v1::Server {
        reserved: None,
        observed: None,
        free: None,
        budget: None,
        placement_count: 0,
        etag: String::new(),
        create_time: None,
        update_time: None,
        ..registered.clone()
    };
    assert_eq!(inputs, full);
    // 1 CPU milli four times, 2 MB RAM, one and a half times 3 MB disk rounded down, less the headroom.
    assert_eq!(registered.free, Some(v1::FreeResources { cpu_millis: 0, ram_mb: -3, disk_mb: -2 }));
    assert_eq!(get(&mut service.client, "web-1").await.unwrap(), registered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_server_keeps_status_managed_placements_and_usage() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(v1::Server { labels: labels(&[("region", "eu")]), ..server("web-1") }).await;
    client.ensure("hello-world-bot", &[]).await.unwrap();
    report(client, "web-1", v1::Usage { ram_mb: Some(700), ..Default::default() }).await.unwrap();
    let resting =
        v1::Server { status: ServerStatus::Maintenance.into(), managed: Some(false), ..server("web-1") };
    let before = update(client, resting, &["status", "managed"]).await.unwrap();

    let replaced = client.register(v1::Server { address: "192.0.2.9".to_owned(), ..server("web-1") }).await;
    assert_eq!((replaced.status(), replaced.managed), (ServerStatus::Maintenance, Some(false)));
    assert_eq!(replaced.address, "192.0.2.9");
    assert!(replaced.labels.is_empty(), "what a request leaves out is replaced all the same");
    assert_eq!(
        (&replaced.reserved, &replaced.observed, replaced.placement_count, &replaced.create_time),
        (&before.reserved, &before.observed, 1, &before.create_time)
    );
    assert_ne!(replaced.etag, before.etag);
    let repeated = client.ensure("hello-world-bot", &[]).await.unwrap();
    assert_eq!(repeated.placement.unwrap().server_address, "192.0.2.9", "an address may change (L34)");

    // A status that is set is taken.
    let ready = v1::Server { status: ServerStatus::Ready.into(), managed: Some(true), ..server("web-1") };
    let replaced = client.register(ready.clone()).await;
    assert_eq!((replaced.status(), replaced.managed), (ServerStatus::InUse, Some(true)));
    // The same again changes nothing and tells nothing.
    assert_eq!(client.register(ready).await, replaced);
    let told = events(client, &service.database.sql).await;
    let expected = [
        vec![Change::Registered],
        vec![Change::Status],
        vec![Change::Updated],
        vec![Change::Status, Change::Updated],
    ];
    assert_eq!(changes(&told, "web-1"), expected);
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l37_a_register_with_an_old_etag_is_aborted() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let first = client.register(server("web-1")).await;
    let second = v1::Server { etag: first.etag.clone(), address: "192.0.2.2".to_owned(), ..server("web-1") };
    let second = register(client, second).await.unwrap();

    let stale = v1::Server { etag: first.etag.clone(), address: "192.0.2.3".to_owned(), ..server("web-1") };
    let metadata = refused(register(client, stale).await, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!((metadata["server_handle"].as_str(), metadata["disposition"].as_str()), ("web-1", "CALLER"));
    assert_eq!(get(client, "web-1").await.unwrap(), second);

    // An etag of a server that is not there matches nothing.
    let absent = v1::Server { etag: first.etag, ..server("web-2") };
    refused(register(client, absent).await, Code::Aborted, "ETAG_MISMATCH");
    refused(get(client, "web-2").await, Code::NotFound, "SERVER_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn l37_an_etag_that_is_not_the_servers_changes_nothing() {
    let mut service = stocked().await;
    let client = &mut service.client;
    let get = v1::GetServerRequest { handle: "web-2".to_owned() };
    let current = client.inventory.get_server(get).await.unwrap().into_inner().server.unwrap().etag;
    let before = service.database.tables().await;
    let etags = ["x", "0", " ", "\0", "é🦀", "'; DROP TABLE servers; --"].map(ToOwned::to_owned);
    let etags =
        etags.into_iter().chain([format!("{current}0"), current.to_uppercase() + " ", "x".repeat(OVERSIZED)]);
    for etag in etags {
        let known = v1::Server { etag: etag.clone(), address: "192.0.2.9".to_owned(), ..server("web-1") };
        let new = v1::Server { etag: etag.clone(), ..server("web-9") };
        let mask = Some(pbjson_types::FieldMask { paths: vec!["address".to_owned()] });
        for refused in [
            client
                .inventory
                .register_server(v1::RegisterServerRequest { server: Some(known.clone()) })
                .await
                .map(drop),
            client.inventory.register_server(v1::RegisterServerRequest { server: Some(new) }).await.map(drop),
            client
                .inventory
                .update_server(v1::UpdateServerRequest { server: Some(known), update_mask: mask })
                .await
                .map(drop),
            client
                .inventory
                .delete_server(v1::DeleteServerRequest { handle: "web-1".to_owned(), etag })
                .await
                .map(drop),
        ] {
            let refused = refused.unwrap_err();
            let (reason, metadata) = error_info(&refused);
            assert_eq!((refused.code(), reason.as_str()), (Code::Aborted, "ETAG_MISMATCH"));
            assert_eq!(metadata["disposition"], "CALLER");
            tells_no_more_than_it_should(&refused);
        }
    }
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn l37_the_etag_of_a_removed_server_does_not_fit_its_successor() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let first = client.register(server("web-1")).await;
    delete(client, "web-1", &first.etag).await.unwrap();
    let second = client.register(server("web-1")).await;
    assert_ne!(first.etag, second.etag);
    refused(delete(client, "web-1", &first.etag).await, Code::Aborted, "ETAG_MISMATCH");
    let stale = v1::Server { etag: first.etag, status: ServerStatus::Maintenance.into(), ..server("web-1") };
    refused(update(client, stale, &["status"]).await, Code::Aborted, "ETAG_MISMATCH");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_id_is_one_servers_within_its_source() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let with_id = |handle: &str, source: &str, id: &str| v1::Server {
        source: source.to_owned(),
        external_id: id.to_owned(),
        ..server(handle)
    };
    client.register(with_id("web-1", "cloud", "i-7")).await;
    client.register(with_id("web-2", "other", "i-7")).await;
    let second = client.register(with_id("web-3", "cloud", "i-8")).await;

    for result in [
        register(client, with_id("web-4", "cloud", "i-7")).await,
        register(client, with_id("web-3", "cloud", "i-7")).await,
        update(client, with_id("web-3", "", "i-7"), &["external_id"]).await,
        update(client, with_id("web-2", "cloud", ""), &["source"]).await,
    ] {
        let metadata = refused(result, Code::AlreadyExists, "EXTERNAL_ID_TAKEN");
        assert_eq!(metadata["server_handle"], "web-1");
        assert_eq!((metadata["source"].as_str(), metadata["external_id"].as_str()), ("cloud", "i-7"));
        assert_eq!(metadata["disposition"], "CALLER");
    }
    assert_eq!(get(client, "web-3").await.unwrap(), second);
    refused(get(client, "web-4").await, Code::NotFound, "SERVER_NOT_FOUND");

    // Given back, it can be taken.
    update(client, with_id("web-1", "", ""), &["external_id"]).await.unwrap();
    register(client, with_id("web-3", "cloud", "i-7")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_field_of_a_register_is_named_at_once() {
    let mut service = TestService::start().await;
    let bad = v1::Server {
        handle: "-web".to_owned(),
        address: "not an address".to_owned(),
        status: ServerStatus::InUse.into(),
        labels: labels(&[("", "x")]),
        capacity: None,
        headroom: Some(ram(u64::MAX)),
        port_range: Some(v1::PortRange { start: 9, end: 8 }),
        excluded_ports: vec![v1::PortRange { start: 0, end: 70_000 }],
        source: "no spaces".to_owned(),
        external_id: "x\n".to_owned(),
        ..v1::Server::default()
    };
    let status = register(&mut service.client, bad).await.unwrap_err();
    assert_eq!((status.code(), error_info(&status).0.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    let mut fields = violations(&status);
    fields.sort();
    let expected = [
        "server.address",
        "server.capacity",
        "server.excluded_ports[0].end",
        "server.excluded_ports[0].start",
        "server.external_id",
        "server.handle",
        "server.headroom.ram_mb",
        "server.labels[]",
        "server.port_range",
        "server.source",
        "server.status",
    ];
    assert_eq!(fields, expected);
    let status = service.client.inventory.register_server(v1::RegisterServerRequest { server: None }).await;
    assert_eq!(violations(&status.unwrap_err()), ["server"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn l1_a_server_without_a_valid_address_cannot_be_registered() {
    let mut service = TestService::start().await;
    for address in
        ["", " ", "192.0.2.256", "10.0.0", "a..b", "-a.example", "http://a", "a:80", "a\0b", "ü.example"]
    {
        let status =
            register(&mut service.client, v1::Server { address: address.to_owned(), ..server("web-1") })
                .await
                .unwrap_err();
        assert_eq!(violations(&status), ["server.address"], "{address:?}");
    }
    for address in ["192.0.2.255", "::1", "a", "web-1.example.org"] {
        register(&mut service.client, v1::Server { address: address.to_owned(), ..server("web-1") })
            .await
            .unwrap();
    }
}

// GetServer, ListServers

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_not_found_by_any_call() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    for result in [
        get(client, "web-9").await.map(|_| ()),
        update(client, server("web-9"), &["address"]).await.map(|_| ()),
        delete(client, "web-9", "").await,
        report(client, "web-9", v1::Usage::default()).await.map(|_| ()),
    ] {
        let metadata = refused(result, Code::NotFound, "SERVER_NOT_FOUND");
        assert_eq!(
            (metadata["server_handle"].as_str(), metadata["disposition"].as_str()),
            ("web-9", "CALLER")
        );
    }
    refused(get(client, "").await, Code::InvalidArgument, "INVALID_REQUEST");
    assert!(events(client, &service.database.sql).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn l31_filters_that_are_present_filter() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let eu = labels(&[("region", "eu"), ("gpu", "")]);
    client.register(v1::Server { labels: eu, ..server("a") }).await;
    client
        .register(v1::Server {
            labels: labels(&[("region", "us")]),
            source: "cloud".to_owned(),
            ..server("b")
        })
        .await;
    client.register(v1::Server { managed: Some(false), ..server("c") }).await;
    client.register(v1::Server { status: ServerStatus::Missing.into(), ..server("d") }).await;
    let pin = v1::EnsureAllocationRequest {
        project_id: "p".to_owned(),
        server_handle: Some("a".to_owned()),
        ..Default::default()
    };
    client.allocator.ensure_allocation(pin).await.unwrap();

    let filter = v1::ListServersRequest::default;
    let status = |status: ServerStatus| v1::ListServersRequest { status: status.into(), ..filter() };
    let label = |label: &str| v1::ListServersRequest { label: label.to_owned(), ..filter() };
    let source = |source: &str| v1::ListServersRequest { source: Some(source.to_owned()), ..filter() };
    let cases = [
        (filter(), vec!["a", "b", "c", "d"]),
        (status(ServerStatus::Ready), vec!["b", "c"]),
        (status(ServerStatus::InUse), vec!["a"]),
        (status(ServerStatus::Missing), vec!["d"]),
        (status(ServerStatus::Error), vec![]),
        (v1::ListServersRequest { managed: Some(true), ..filter() }, vec!["a", "b", "d"]),
        (v1::ListServersRequest { managed: Some(false), ..filter() }, vec!["c"]),
        (label("region"), vec!["a", "b"]),
        (label("region=eu"), vec!["a"]),
        (label("region="), vec![]),
        (label("gpu="), vec!["a"]),
        (label("gpu=1"), vec![]),
        (label("=eu"), vec![]),
        (label("reg"), vec![]),
        (source("cloud"), vec!["b"]),
        (source(""), vec!["a", "c", "d"]),
        (source("other"), vec![]),
        (
            v1::ListServersRequest { managed: Some(true), source: Some(String::new()), ..label("region") },
            vec!["a"],
        ),
    ];
    for (request, expected) in cases {
        let (handles, next) = list(client, request.clone()).await.unwrap();
        assert_eq!(
            (handles, next.as_str()),
            (expected.iter().map(ToString::to_string).collect(), ""),
            "{request:?}"
        );
    }

    for (request, field) in [
        (v1::ListServersRequest { status: 99, ..filter() }, "status"),
        (v1::ListServersRequest { page_size: -1, ..filter() }, "page_size"),
        (label("a\0b"), "label"),
        (source("a\0b"), "source"),
    ] {
        let status = list(client, request).await.unwrap_err();
        assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, vec![field.to_owned()]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l32_pages_are_in_order_and_tokens_are_their_filters_own() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    // Bytes decide the order, not a locale.
    for handle in ["b", "B", "a:1", "a-1", "0", "a", "z"] {
        client.register(server(handle)).await;
    }
    let in_order = ["0", "B", "a", "a-1", "a:1", "b", "z"];
    for page_size in [1, 3, 7, 8] {
        let mut request = v1::ListServersRequest { page_size, ..Default::default() };
        let mut seen = Vec::new();
        loop {
            let (page, next) = list(client, request.clone()).await.unwrap();
            assert!(page.len() <= usize::try_from(page_size).unwrap());
            seen.extend(page);
            if next.is_empty() {
                break;
            }
            request.page_token = next;
        }
        assert_eq!(seen, in_order, "pages of {page_size}");
    }

    let first = v1::ListServersRequest { page_size: 2, ..Default::default() };
    let (_, token) = list(client, first.clone()).await.unwrap();
    // A page that goes on is not moved by what comes before it.
    client.register(server("A")).await;
    let second = v1::ListServersRequest { page_token: token.clone(), ..first };
    assert_eq!(list(client, second.clone()).await.unwrap().0, ["a", "a-1"]);
    for wrong in [
        v1::ListServersRequest { managed: Some(true), ..second.clone() },
        v1::ListServersRequest { source: Some(String::new()), ..second.clone() },
        v1::ListServersRequest { page_token: format!("{token}x"), ..second.clone() },
        v1::ListServersRequest { page_token: "forged".to_owned(), ..second.clone() },
    ] {
        let status = list(client, wrong).await.unwrap_err();
        assert_eq!(
            (status.code(), violations(&status)),
            (Code::InvalidArgument, vec!["page_token".to_owned()])
        );
    }
}

// UpdateServer

/// Takes one field from the second over to the first.
type Apply = fn(&mut v1::Server, &v1::Server);

#[tokio::test(flavor = "multi_thread")]
async fn each_path_of_the_mask_changes_its_field_and_no_other() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let start = v1::Server {
        labels: labels(&[("region", "eu"), ("rack", "1")]),
        headroom: Some(whole(10, 20, 30)),
        source: "cloud".to_owned(),
        external_id: "i-1".to_owned(),
        ..server("web-1")
    };
    let mut expected = client.register(start).await;
    // Every field is other than what stands, so that a path that changed too much would show.
    let new = v1::Server {
        handle: "web-1".to_owned(),
        address: "192.0.2.77".to_owned(),
        status: ServerStatus::Maintenance.into(),
        managed: Some(false),
        labels: labels(&[("region", "us")]),
        capacity: Some(whole(5000, 9000, 200_000)),
        headroom: Some(whole(11, 21, 31)),
        port_range: Some(v1::PortRange { start: 2000, end: 3000 }),
        excluded_ports: vec![v1::PortRange { start: 2100, end: 2200 }],
        source: "rack".to_owned(),
        external_id: "i-2".to_owned(),
        overcommit_percent: Some(v1::Percentages { cpu: Some(110), ram: Some(120), disk: Some(130) }),
        ..v1::Server::default()
    };
    let cases: [(&str, Change, Apply); 21] = [
        ("address", Change::Updated, |to, from| to.address.clone_from(&from.address)),
        ("status", Change::Status, |to, from| to.status = from.status),
        ("managed", Change::Status, |to, from| to.managed = from.managed),
        ("labels", Change::Updated, |to, from| to.labels.clone_from(&from.labels)),
        ("capacity.cpu_millis", Change::Capacity, |to, from| {
            amounts(&mut to.capacity).cpu_millis = from.capacity.unwrap().cpu_millis;
        }),
        ("capacity.ram_mb", Change::Capacity, |to, from| {
            amounts(&mut to.capacity).ram_mb = from.capacity.unwrap().ram_mb;
        }),
        ("capacity.disk_mb", Change::Capacity, |to, from| {
            amounts(&mut to.capacity).disk_mb = from.capacity.unwrap().disk_mb;
        }),
        ("headroom.cpu_millis", Change::Capacity, |to, from| {
            amounts(&mut to.headroom).cpu_millis = from.headroom.unwrap().cpu_millis;
        }),
        ("headroom.ram_mb", Change::Capacity, |to, from| {
            amounts(&mut to.headroom).ram_mb = from.headroom.unwrap().ram_mb;
        }),
        ("headroom.disk_mb", Change::Capacity, |to, from| {
            amounts(&mut to.headroom).disk_mb = from.headroom.unwrap().disk_mb;
        }),
        ("capacity", Change::Capacity, |to, _| to.capacity = Some(whole(0, 1, 0))),
        // Named and not set, an amount of the headroom is the fleet's default.
        ("headroom", Change::Capacity, |to, _| to.headroom = Some(ram(1))),
        ("overcommit_percent.cpu", Change::Capacity, |to, from| {
            to.overcommit_percent.get_or_insert_default().cpu = from.overcommit_percent.unwrap().cpu;
        }),
        ("overcommit_percent.ram", Change::Capacity, |to, from| {
            to.overcommit_percent.get_or_insert_default().ram = from.overcommit_percent.unwrap().ram;
        }),
        ("overcommit_percent.disk", Change::Capacity, |to, from| {
            to.overcommit_percent.get_or_insert_default().disk = from.overcommit_percent.unwrap().disk;
        }),
        ("overcommit_percent", Change::Capacity, |to, _| {
            to.overcommit_percent = Some(v1::Percentages { ram: Some(200), ..Default::default() });
        }),
        ("headroom.ram_mb", Change::Capacity, |to, _| to.headroom = None),
        ("port_range", Change::Updated, |to, from| to.port_range = from.port_range),
        ("excluded_ports", Change::Updated, |to, from| to.excluded_ports.clone_from(&from.excluded_ports)),
        ("external_id", Change::Updated, |to, from| to.external_id.clone_from(&from.external_id)),
        ("source", Change::Updated, |to, from| to.source.clone_from(&from.source)),
    ];
    let mut told = vec![vec![Change::Registered]];
    for (path, change, apply) in cases {
        let mut request = new.clone();
        if path == "capacity" || path == "headroom" {
            // Named whole, what is unset of the capacity is 0.
            (request.capacity, request.headroom) = (Some(ram(1)), Some(ram(1)));
        }
        if path == "overcommit_percent" {
            request.overcommit_percent = Some(v1::Percentages { ram: Some(200), ..Default::default() });
        }
        if path == "headroom.ram_mb" && expected.headroom == Some(ram(1)) {
            request.headroom = None;
        }
        let updated = update(client, request, &[path]).await.unwrap();
        apply(&mut expected, &new);
        assert_ne!(updated.etag, expected.etag, "{path}");
        (expected.etag, expected.update_time, expected.free, expected.budget) =
            (updated.etag.clone(), updated.update_time, updated.free, updated.budget);
        assert_eq!(updated, expected, "{path}");
        told.push(vec![change]);
    }
    assert_eq!(get(client, "web-1").await.unwrap(), expected);
    let events = events(client, &service.database.sql).await;
    assert_eq!(changes(&events, "web-1"), told);
}

fn amounts(resources: &mut Option<v1::Resources>) -> &mut v1::Resources {
    resources.as_mut().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_paths_are_one_change() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let before = client.register(v1::Server { labels: labels(&[("region", "eu")]), ..server("web-1") }).await;
    let new = v1::Server {
        status: ServerStatus::Error.into(),
        capacity: Some(whole(1, 2, 3)),
        etag: before.etag.clone(),
        ..server("web-1")
    };
    // Labels are replaced whole, so that none is left.
    let after =
        update(client, new.clone(), &["labels", "capacity.ram_mb", "status", "status"]).await.unwrap();
    assert!(after.labels.is_empty());
    assert_eq!((after.status(), after.capacity), (ServerStatus::Error, Some(whole(4000, 2, 100_000))));

    // The etag that was read is used up (L37).
    refused(update(client, new, &["status"]).await, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(get(client, "web-1").await.unwrap(), after);
    // What already stands is no change, and no event.
    let same = v1::Server { status: ServerStatus::Error.into(), etag: after.etag.clone(), ..server("web-1") };
    assert_eq!(update(client, same, &["status"]).await.unwrap(), after);
    let told = events(client, &service.database.sql).await;
    let expected = [vec![Change::Registered], vec![Change::Status, Change::Capacity, Change::Updated]];
    assert_eq!(changes(&told, "web-1"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_names_fields_that_can_be_changed_or_is_refused() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let before = client.register(server("web-1")).await;
    for path in [
        "handle",
        "reserved",
        "reserved.ram_mb",
        "observed",
        "free",
        "placement_count",
        "etag",
        "create_time",
        "update_time",
        "addresses",
        "capacity.ram",
        "capacity.",
        "labels.region",
        "port_range.start",
        "*",
        "",
        "status ",
    ] {
        let status = update(client, server("web-1"), &["address", path]).await.unwrap_err();
        assert_eq!(
            (status.code(), error_info(&status).0.as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST"),
            "{path}"
        );
        assert_eq!(violations(&status), ["update_mask"], "{path}");
        assert!(path.is_empty() || status.message().contains(path), "{status:?}");
    }
    assert_eq!(violations(&update(client, server("web-1"), &[]).await.unwrap_err()), ["update_mask"]);
    let no_mask = v1::UpdateServerRequest { server: Some(server("web-1")), update_mask: None };
    assert_eq!(violations(&client.inventory.update_server(no_mask).await.unwrap_err()), ["update_mask"]);
    let no_server = v1::UpdateServerRequest {
        server: None,
        update_mask: Some(pbjson_types::FieldMask { paths: vec!["managed".to_owned()] }),
    };
    assert_eq!(violations(&client.inventory.update_server(no_server).await.unwrap_err()), ["server.handle"]);

    for status in [ServerStatus::Unspecified, ServerStatus::InUse] {
        let set = v1::Server { status: status.into(), ..server("web-1") };
        assert_eq!(violations(&update(client, set, &["status"]).await.unwrap_err()), ["server.status"]);
    }
    // A field that the mask leaves out is not looked at.
    let odd = v1::Server { address: "not an address".to_owned(), managed: Some(true), ..server("web-1") };
    assert_eq!(update(client, odd, &["managed"]).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capacity_below_what_is_reserved_is_shown_and_takes_nothing_more() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(roomy("web-1")).await;
    ensure_ram(client, "p", 600).await.unwrap();

    let lowered = v1::Server { capacity: Some(ram(500)), ..server("web-1") };
    let shown = update(client, lowered, &["capacity.ram_mb"]).await.unwrap();
    assert_eq!((shown.free.unwrap().ram_mb, shown.reserved.unwrap().ram_mb), (-100, Some(600)));
    assert_eq!(shown.status(), ServerStatus::InUse);

    // Nothing more, not even what asks for no RAM; what is there stays, and may get a port.
    let metadata =
        refused(ensure_ram(client, "q", 0).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
    assert_eq!(metadata["disposition"], "WAIT");
    let repeated = ensure_ram(client, "p", 600).await.unwrap();
    assert_eq!(repeated.outcome(), v1::EnsureOutcome::Unchanged);
    assert_eq!(client.ensure("p", &["second"]).await.unwrap().outcome(), v1::EnsureOutcome::Extended);

    let headroom = v1::Server { headroom: Some(ram(450)), capacity: Some(ram(1000)), ..server("web-1") };
    let shown = update(client, headroom, &["headroom.ram_mb", "capacity.ram_mb"]).await.unwrap();
    assert_eq!(shown.free.unwrap().ram_mb, -50);
    refused(ensure_ram(client, "p", 601).await, Code::FailedPrecondition, "REQUEST_EXCEEDS_FLEET");

    let back = v1::Server { headroom: Some(ram(0)), ..server("web-1") };
    assert_eq!(update(client, back, &["headroom"]).await.unwrap().free.unwrap().ram_mb, 400);
    ensure_ram(client, "q", 400).await.unwrap();
    assert_consistent(&service.database.sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_use_comes_with_a_placement_and_goes_with_it() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let registered = client.register(server("web-1")).await;
    client.ensure("p", &[]).await.unwrap();
    let in_use = get(client, "web-1").await.unwrap();
    assert_eq!((in_use.status(), in_use.placement_count), (ServerStatus::InUse, 1));
    assert_eq!(in_use.etag, registered.etag, "reservations leave the etag");
    assert_eq!(in_use.reserved, Some(whole(0, 512, 1024)));

    // Through maintenance and back it is in use again, by the word READY.
    for (set, shown) in
        [(ServerStatus::Maintenance, ServerStatus::Maintenance), (ServerStatus::Ready, ServerStatus::InUse)]
    {
        let updated =
            update(client, v1::Server { status: set.into(), ..server("web-1") }, &["status"]).await.unwrap();
        assert_eq!(updated.status(), shown);
    }
    let release = v1::ReleaseAllocationRequest { project_id: "p".to_owned(), ..Default::default() };
    client.allocator.release_allocation(release).await.unwrap();
    let ready = get(client, "web-1").await.unwrap();
    assert_eq!(
        (ready.status(), ready.placement_count, ready.reserved),
        (ServerStatus::Ready, 0, Some(whole(0, 0, 0)))
    );
    assert_consistent(&service.database.sql).await;
}

// DeleteServer

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_holds_placements_is_not_removed() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let registered = client.register(server("web-1")).await;
    client.ensure("p", &[]).await.unwrap();
    client.ensure("q", &[]).await.unwrap();
    let metadata = refused(delete(client, "web-1", "").await, Code::FailedPrecondition, "SERVER_IN_USE");
    assert_eq!((metadata["server_handle"].as_str(), metadata["placements"].as_str()), ("web-1", "2"));
    assert_eq!(metadata["disposition"], "CALLER");

    for project_id in ["p", "q"] {
        let release =
            v1::ReleaseAllocationRequest { project_id: project_id.to_owned(), ..Default::default() };
        client.allocator.release_allocation(release).await.unwrap();
    }
    refused(delete(client, "web-1", "g0").await, Code::Aborted, "ETAG_MISMATCH");
    delete(client, "web-1", &registered.etag).await.unwrap();
    refused(delete(client, "web-1", "").await, Code::NotFound, "SERVER_NOT_FOUND");
    assert_eq!(list(client, v1::ListServersRequest::default()).await.unwrap().0, Vec::<String>::new());
    refused(client.ensure("p", &[]).await, Code::FailedPrecondition, "NO_SERVERS");

    let told = events(client, &service.database.sql).await;
    assert_eq!(changes(&told, "web-1"), [[Change::Registered], [Change::Removed]]);
    // Its ports rest no longer: a server of the same name starts with all of them.
    client.register(server("web-1")).await;
    assert_eq!(client.ensure("p", &[]).await.unwrap().allocations[0].port, 8000);
    assert_consistent(&service.database.sql).await;
}

// ReportUsage

async fn find(client: &mut Client, ram_mb: u64) -> Result<v1::FindServerResponse, tonic::Status> {
    let request = v1::FindServerRequest { resources: Some(whole(0, ram_mb, 0)), ..Default::default() };
    client.allocator.find_server(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn l21_free_is_capacity_less_headroom_less_the_greater_of_reserved_and_observed() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let before = client.register(v1::Server { headroom: Some(ram(100)), ..roomy("web-1") }).await;
    ensure_ram(client, "p", 300).await.unwrap();
    for (observed, free) in
        [(Some(0), 600), (Some(300), 600), (Some(301), 599), (None, 600), (Some(2000), -1100)]
    {
        let usage = v1::Usage { ram_mb: observed, cpu_millis: Some(7), ..Default::default() };
        let shown = report(client, "web-1", usage.clone()).await.unwrap();
        let told = shown.observed.clone().unwrap();
        assert_eq!(told.usage, Some(usage), "each report replaces the one before");
        assert!(told.observe_time.is_some());
        assert_eq!(shown.free, Some(v1::FreeResources { cpu_millis: 3993, ram_mb: free, disk_mb: 100_000 }));
        assert_eq!((shown.etag.as_str(), shown.update_time), (before.etag.as_str(), before.update_time));
        assert_eq!(get(client, "web-1").await.unwrap(), shown);
        // The one predicate serves FindServer and ensure (L13).
        if let Ok(free) = u64::try_from(free) {
            let found = find(client, free).await.unwrap();
            assert_eq!(found.candidates[0].server.as_ref().unwrap().handle, "web-1");
            refused(find(client, free + 1).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
        } else {
            refused(find(client, 0).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
            refused(ensure_ram(client, "q", 0).await, Code::ResourceExhausted, "INSUFFICIENT_CAPACITY");
        }
    }
    let told = events(client, &service.database.sql).await;
    assert_eq!(changes(&told, "web-1"), [[Change::Registered]], "usage is no change of the inventory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_report_is_refused_by_field() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let bad = v1::Usage {
        cpu_millis: Some(u32::MAX),
        ram_mb: Some(u64::MAX),
        disk_mb: Some(u64::MAX),
        listening_ports: vec![80, 0, 65536],
    };
    let status = report(&mut service.client, "web-1", bad).await.unwrap_err();
    let expected = [
        "usage.listening_ports[1]",
        "usage.listening_ports[2]",
        "usage.cpu_millis",
        "usage.ram_mb",
        "usage.disk_mb",
    ];
    assert_eq!(violations(&status), expected);
    let none = v1::ReportUsageRequest { handle: "web-1".to_owned(), usage: None };
    let status = service.client.inventory.report_usage(none).await.unwrap_err();
    assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, vec!["usage".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_grew_old_keeps_work_away_until_a_fresh_one_comes() {
    let service = TestService::start().await;
    let mut client = service.client.clone();
    client.register(server("web-1")).await;
    client.register(server("web-2")).await;
    let none_yet = ensure_ram(&mut client, "p", 1).await.unwrap();
    assert!(none_yet.placement.unwrap().server_admissible, "a server that never reported is not stale");

    for handle in ["web-1", "web-2"] {
        report(&mut client, handle, v1::Usage::default()).await.unwrap();
    }
    age_report(&service, "web-1", 299.0).await;
    age_report(&service, "web-2", 301.0).await;
    assert_eq!(ensure_ram(&mut client, "q", 1).await.unwrap().placement.unwrap().server_handle, "web-1");

    age_report(&service, "web-1", 301.0).await;
    let status = ensure_ram(&mut client, "r", 1).await.unwrap_err();
    let (reason, metadata) = error_info(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::Unavailable, "USAGE_STALE"));
    assert_eq!(
        (metadata["disposition"].as_str(), metadata["usage_max_age_s"].as_str()),
        ("TECHNICAL", "300")
    );
    assert_eq!(metadata["rejected.USAGE_STALE"], "2");
    // Adding asks for admission; repeating does not (L27).
    let repeated = ensure_ram(&mut client, "q", 1).await.unwrap();
    assert!(!repeated.placement.unwrap().server_admissible);
    let metadata = refused(
        client.ensure("q", &["second"]).await,
        Code::FailedPrecondition,
        "BOUND_SERVER_NOT_ADMISSIBLE",
    );
    assert_eq!((metadata["cause"].as_str(), metadata["server_handle"].as_str()), ("USAGE_STALE", "web-1"));

    for handle in ["web-1", "web-2"] {
        let told = wait_for_change(&mut client, handle, Change::UsageStale, 1).await;
        assert_eq!((told.project_id.as_str(), told.request_id.as_str()), ("", "clock"));
    }
    report(&mut client, "web-1", v1::Usage::default()).await.unwrap();
    assert_eq!(ensure_ram(&mut client, "r", 1).await.unwrap().placement.unwrap().server_handle, "web-1");
    age_report(&service, "web-1", 301.0).await;
    wait_for_change(&mut client, "web-1", Change::UsageStale, 2).await;

    // Told once each time: the look that tells of a third server has passed over those that were told.
    client.register(server("web-3")).await;
    report(&mut client, "web-3", v1::Usage::default()).await.unwrap();
    age_report(&service, "web-3", 301.0).await;
    wait_for_change(&mut client, "web-3", Change::UsageStale, 1).await;
    let told = events(&mut client, &service.database.sql).await;
    assert_eq!(changes(&told, "web-1"), [[Change::Registered], [Change::UsageStale], [Change::UsageStale]]);
    assert_eq!(changes(&told, "web-2"), [[Change::Registered], [Change::UsageStale]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_may_be_limited_to_no_age_at_all() {
    let mut builder = TestService::builder();
    builder.allocator.usage_max_age = std::time::Duration::ZERO;
    let mut service = builder.start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    client.ensure("p", &[]).await.unwrap();
    report(client, "web-1", v1::Usage::default()).await.unwrap();
    refused(client.ensure("q", &[]).await, Code::Unavailable, "USAGE_STALE");
}

#[tokio::test(flavor = "multi_thread")]
async fn l18_ports_that_a_stranger_listens_on_are_not_given() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    client.register(server("web-1")).await;
    assert_eq!(client.ensure("ours", &[]).await.unwrap().allocations[0].port, 8000);
    let listening = |ports: &[u32]| v1::Usage { listening_ports: ports.to_vec(), ..Default::default() };
    let shown = report(client, "web-1", listening(&[8002, 8001, 8000, 8001])).await.unwrap();
    assert_eq!(
        shown.observed.unwrap().usage.unwrap().listening_ports,
        [8000, 8001, 8002],
        "in order, each once"
    );

    assert_eq!(client.ensure("ours", &["backend", "second"]).await.unwrap().allocations[1].port, 8003);
    // What is ours stays ours, whoever listens.
    let repeated = client.ensure("ours", &["backend"]).await.unwrap();
    assert_eq!((repeated.outcome(), repeated.allocations[0].port), (v1::EnsureOutcome::Unchanged, 8000));
    let pinned = v1::EnsureAllocationRequest {
        project_id: "pinned".to_owned(),
        modules: vec![v1::ModuleSpec { name: "backend".to_owned(), port: Some(8001), ..Default::default() }],
        ..Default::default()
    };
    let metadata = refused(
        client.allocator.ensure_allocation(pinned.clone()).await.map(|_| ()),
        Code::FailedPrecondition,
        "PORT_TAKEN",
    );
    assert_eq!((metadata["port"].as_str(), metadata["cause"].as_str()), ("8001", "LISTENED_ON"));
    // The stranger goes, the port is free.
    report(client, "web-1", listening(&[8000, 8003])).await.unwrap();
    assert_eq!(
        client.allocator.ensure_allocation(pinned).await.unwrap().into_inner().allocations[0].port,
        8001
    );
    assert_consistent(&service.database.sql).await;
}
