//! Every field of the requests to the inventory.

use resource_allocator::proto::v1;

use crate::support::{
    malformed::{NO_OVERCOMMIT, OVERSIZED, Table, no_addresses, no_names, stocked, tokens},
    requests::{labels, resources},
    server,
};

/// What a server must not be, where it is registered or listed.
fn server_fields<Q: Clone + std::fmt::Debug>(
    table: Table<Q>,
    path: &str,
    at: impl Fn(&mut Q) -> &mut v1::Server,
) -> Table<Q> {
    let field = |name: &str| format!("{path}.{name}");
    let range = |start, end| v1::PortRange { start, end };
    let no_text = || {
        ["a\0", "\n", "\u{7f}"]
            .map(ToOwned::to_owned)
            .into_iter()
            .chain(["🦀".repeat(256), "x".repeat(OVERSIZED)])
    };
    table
        .name(&field("handle"), 128, |q, handle| at(q).handle = handle)
        .each(&field("address"), no_addresses(), |q, address| at(q).address = address)
        .enumeration(&field("status"), 9, |q, status| at(q).status = status)
        .bad(&[&field("status")], |q| at(q).set_status(v1::ServerStatus::InUse))
        .labels(&field("labels"), |q, key, value| drop(at(q).labels.insert(key, value)))
        .bad(&[&field("capacity")], |q| at(q).capacity = None)
        .resources(&field("capacity"), |q, amounts| at(q).capacity = Some(amounts))
        .resources(&field("headroom"), |q, amounts| at(q).headroom = Some(amounts))
        .each(&field("overcommit_percent.cpu"), NO_OVERCOMMIT, |q, cpu| {
            at(q).overcommit_percent = Some(v1::Percentages { cpu: Some(cpu), ..Default::default() });
        })
        .each(&field("overcommit_percent.ram"), NO_OVERCOMMIT, |q, ram| {
            at(q).overcommit_percent = Some(v1::Percentages { ram: Some(ram), ..Default::default() });
        })
        .each(&field("overcommit_percent.disk"), NO_OVERCOMMIT, |q, disk| {
            at(q).overcommit_percent = Some(v1::Percentages { disk: Some(disk), ..Default::default() });
        })
        .port(&field("port_range.start"), |q, port| at(q).port_range = Some(range(port, 9000)))
        .port(&field("port_range.end"), |q, port| at(q).port_range = Some(range(9000, port)))
        .bad(&[&field("port_range")], |q| at(q).port_range = Some(range(9000, 8999)))
        .bad(&[&field("port_range.start"), &field("port_range.end")], |q| {
            at(q).port_range = Some(range(0, 0));
        })
        .port(&field("excluded_ports[1].start"), |q, port| {
            at(q).excluded_ports = vec![range(1, 1), range(port, 9000)];
        })
        .port(&field("excluded_ports[0].end"), |q, port| at(q).excluded_ports = vec![range(9000, port)])
        .bad(&[&field("excluded_ports[0]")], |q| at(q).excluded_ports = vec![range(2, 1)])
        .bad(&[&field("excluded_ports")], |q| at(q).excluded_ports = vec![range(1, 1); 1025])
        .each(&field("external_id"), no_text(), |q, id| at(q).external_id = id)
        .bad(
            &[
                &field("handle"),
                &field("address"),
                &field("capacity"),
                &field("external_id"),
                &field("status"),
                &field("labels[é]"),
                &field("headroom.ram_mb"),
                &field("port_range"),
                &field("excluded_ports[0].end"),
            ],
            |q| {
                let source = at(q).source.clone();
                *at(q) = v1::Server {
                    handle: String::new(),
                    status: 99,
                    labels: labels(&[("é", "")]),
                    headroom: resources(0, u64::MAX, 0),
                    port_range: Some(range(2, 1)),
                    excluded_ports: vec![range(1, 0)],
                    external_id: "\0".to_owned(),
                    source,
                    ..Default::default()
                };
            },
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_registration_is_refused_field_by_field() {
    let service = stocked().await;
    let server = v1::Server { source: "cloud".to_owned(), external_id: "i-3".to_owned(), ..server("web-3") };
    let table = Table::of(v1::RegisterServerRequest { server: Some(server) });
    server_fields(table, "server", |q| q.server.as_mut().unwrap())
        .bad(&["server"], |q| q.server = None)
        .bad(&["server.handle", "server.address", "server.capacity"], |q| {
            q.server = Some(v1::Server::default());
        })
        .each(
            "server.source",
            no_names().into_iter().filter(|name| !name.is_empty()).chain(["x".repeat(64)]),
            |q, source| {
                q.server.as_mut().unwrap().source = source;
            },
        )
        // An external id is somebody's.
        .bad(&["server.external_id"], |q| q.server.as_mut().unwrap().source = String::new())
        .refuse(&service, async |mut client, q| client.inventory.register_server(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_list_of_servers_is_refused_field_by_field() {
    let mut service = stocked().await;
    let [allocations, servers, resume] = tokens(&mut service.client).await;
    Table::of(v1::ListServersRequest::default())
        .enumeration("status", 9, |q, status| q.status = status)
        .each(
            "label",
            ["\0", "a=\n", "a\tb=c"]
                .map(ToOwned::to_owned)
                .into_iter()
                .chain(["🦀".repeat(513), "x".repeat(OVERSIZED)]),
            |q, label| q.label = label,
        )
        .each(
            "source",
            no_names().into_iter().filter(|name| !name.is_empty()).chain(["x".repeat(64)]),
            |q, source| {
                q.source = Some(source);
            },
        )
        .each("page_size", [-1, i32::MIN], |q, size| q.page_size = size)
        .token("page_token", &[servers, allocations, resume], |q, token| q.page_token = token)
        .bad(&["page_size", "status", "label", "page_token", "source"], |q| {
            *q = v1::ListServersRequest {
                status: 99,
                label: "\0".to_owned(),
                source: Some("é".to_owned()),
                page_size: -1,
                page_token: "x".to_owned(),
                managed: None,
            };
        })
        .refuse(&service, async |mut client, q| client.inventory.list_servers(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn a_malformed_update_is_refused_field_by_field() {
    let service = stocked().await;
    let update = |server: v1::Server, paths: &[&str]| v1::UpdateServerRequest {
        server: Some(server),
        update_mask: Some(pbjson_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
    };
    let named = |server: v1::Server, paths: &[&str]| {
        update(v1::Server { handle: "web-1".to_owned(), ..server }, paths)
    };
    let no_paths = [
        "",
        "*",
        "handle",
        "etag",
        "reserved",
        "observed",
        "free",
        "placement_count",
        "create_time",
        "update_time",
        "server",
        "server.status",
        "Status",
        "status ",
        "capacity.",
        "capacity.ram",
        "capacity.ram_mb.x",
        ".status",
        "port_range.start",
        "labels.region",
        "статус",
        "status\0",
        "🦀",
        "'; DROP TABLE servers; --",
        "../status",
        "headroom.",
    ]
    .map(ToOwned::to_owned);
    let range = |start, end| v1::PortRange { start, end };
    let no_masks = [None, Some(pbjson_types::FieldMask::default())];
    let mut table = Table::of(named(server("x"), &["address", "capacity", "headroom", "labels"]))
        .name("server.handle", 128, |q, handle| q.server.as_mut().unwrap().handle = handle)
        .bad(&["server.handle", "server.address"], |q| {
            (q.server, q.update_mask.as_mut().unwrap().paths) = (None, vec!["address".to_owned()]);
        })
        .each("update_mask", no_masks, |q, mask| q.update_mask = mask)
        .each(
            "update_mask",
            no_paths
                .into_iter()
                .chain(["x".repeat(OVERSIZED), "capacity.".to_owned() + &"x".repeat(OVERSIZED)]),
            |q, path| {
                q.update_mask.as_mut().unwrap().paths = vec![path];
            },
        )
        .each("server.address", no_addresses(), |q, address| {
            *q = named(v1::Server { address, ..Default::default() }, &["address"]);
        })
        .enumeration("server.status", 9, |q, status| {
            *q = named(v1::Server { status, ..Default::default() }, &["status"]);
        })
        // IN_USE cannot be set, and to be set to nothing is not to be left.
        .each("server.status", [4, 0], |q, status| {
            *q = named(v1::Server { status, ..Default::default() }, &["status"]);
        })
        .labels("server.labels", |q, key, value| drop(q.server.as_mut().unwrap().labels.insert(key, value)))
        .resources("server.capacity", |q, amounts| q.server.as_mut().unwrap().capacity = Some(amounts))
        .resources("server.headroom", |q, amounts| q.server.as_mut().unwrap().headroom = Some(amounts))
        .port("server.port_range.start", |q, port| {
            *q = named(
                v1::Server { port_range: Some(range(port, 9000)), ..Default::default() },
                &["port_range"],
            );
        })
        .port("server.excluded_ports[0].end", |q, port| {
            *q = named(
                v1::Server { excluded_ports: vec![range(1, port)], ..Default::default() },
                &["excluded_ports"],
            );
        })
        .bad(&["server.excluded_ports"], |q| {
            *q = named(
                v1::Server { excluded_ports: vec![range(1, 1); 1025], ..Default::default() },
                &["excluded_ports"],
            );
        })
        .each("server.source", no_names().into_iter().filter(|name| !name.is_empty()), |q, source| {
            *q = named(v1::Server { source, ..Default::default() }, &["source"]);
        })
        .each(
            "server.external_id",
            ["\0".to_owned(), "🦀".repeat(256), "x".repeat(OVERSIZED)],
            |q, external_id| {
                *q = named(v1::Server { external_id, ..Default::default() }, &["external_id"]);
            },
        )
        .bad(&["server.address", "update_mask", "server.status"], |q| {
            *q = named(
                v1::Server { status: 99, ..Default::default() },
                &["status", "nothing", "address", "status"],
            );
        });
    // Each amount by its own path is told of once, and what no path names is not looked at.
    let too_much = v1::Server {
        capacity: resources(0, u64::MAX, 0),
        headroom: resources(u32::MAX, 0, u64::MAX),
        ..Default::default()
    };
    table = table.bad(&["server.capacity.ram_mb"], |q| {
        *q = named(too_much.clone(), &["capacity.ram_mb", "capacity.disk_mb"]);
    });
    table = table.bad(&["server.headroom.disk_mb"], |q| *q = named(too_much.clone(), &["headroom.disk_mb"]));
    table.refuse(&service, async |mut client, q| client.inventory.update_server(q).await.map(drop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_deletion_or_usage_report_is_refused_field_by_field() {
    let mut service = stocked().await;
    service.client.register(server("spare")).await;
    Table::of(v1::DeleteServerRequest { handle: "spare".to_owned(), etag: String::new() })
        .name("handle", 128, |q, handle| q.handle = handle)
        .refuse(&service, async |mut client, q| client.inventory.delete_server(q).await.map(drop))
        .await;
    let usage = |ports: Vec<u32>| v1::Usage { listening_ports: ports, ..Default::default() };
    Table::of(v1::ReportUsageRequest { handle: "web-1".to_owned(), usage: Some(usage(vec![80, 65_535])) })
        .name("handle", 128, |q, handle| q.handle = handle)
        .bad(&["usage"], |q| q.usage = None)
        .bad(&["handle", "usage"], |q| *q = v1::ReportUsageRequest::default())
        .resources("usage", |q, amounts| {
            let v1::Resources { cpu_millis, ram_mb, disk_mb } = amounts;
            q.usage = Some(v1::Usage { cpu_millis, ram_mb, disk_mb, listening_ports: vec![] });
        })
        .port("usage.listening_ports[2]", |q, port| q.usage = Some(usage(vec![80, 81, port])))
        .bad(&["usage.listening_ports"], |q| q.usage = Some(usage(vec![80; 65_536])))
        .refuse(&service, async |mut client, q| client.inventory.report_usage(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_sync_is_refused_field_by_field() {
    let service = stocked().await;
    let listed = |name: &str| v1::Server {
        source: "cloud".to_owned(),
        external_id: format!("i-{name}"),
        ..server(name)
    };
    let valid = v1::SyncServersRequest {
        source: "cloud".to_owned(),
        servers: vec![listed("web-1"), listed("web-9")],
        ..Default::default()
    };
    let without_source = |q: &mut v1::SyncServersRequest| {
        q.servers.iter_mut().for_each(|server| server.source = String::new());
    };
    server_fields(Table::of(valid), "servers[1]", |q| &mut q.servers[1])
        .name("source", 63, |q, source| {
            without_source(q);
            q.source = source;
        })
        .bad(&["servers[0].source"], |q| q.servers[0].source = "other".to_owned())
        .bad(&["servers[1].handle"], |q| q.servers[1].handle = "web-1".to_owned())
        .bad(&["servers[1].external_id"], |q| q.servers[1].external_id = "i-web-1".to_owned())
        .bad(&["servers"], |q| q.servers = vec![v1::Server::default(); 10_001])
        // Also where it is only asked what would happen, and where it is meant.
        .bad(&["source", "servers[1].address"], |q| {
            without_source(q);
            (q.source, q.validate_only) = (String::new(), true);
            q.servers[1].address = String::new();
        })
        .bad(&["servers[0].handle"], |q| {
            q.allow_mass_missing = true;
            q.servers[0].handle = "é".to_owned();
        })
        .refuse(&service, async |mut client, q| client.inventory.sync_servers(q).await.map(drop))
        .await;
}
