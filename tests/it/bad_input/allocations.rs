//! Every field of the requests to the allocator.

use resource_allocator::proto::v1;
use tonic::Code;

use crate::support::{
    error_info,
    malformed::{Table, stocked, tells_no_more_than_it_should, tokens},
    requests::{labels, module, module_at, request, resources},
    violations,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_ensure_is_refused_field_by_field() {
    let service = stocked().await;
    let duration = |seconds, nanos| pbjson_types::Duration { seconds, nanos };
    let valid = v1::EnsureAllocationRequest {
        modules: vec![module("web"), module_at("api", 9000)],
        resources: resources(1, 1, 1),
        server_handle: Some("web-1".to_owned()),
        server_selector: labels(&[("region", "eu")]),
        start_port: Some(8000),
        strategy: v1::PlacementStrategy::Binpack.into(),
        ..request("shop")
    };
    Table::of(valid)
        .name("project_id", 128, |q, id| q.project_id = id)
        .modules(|q| &mut q.modules)
        .resources("resources", |q, amounts| q.resources = Some(amounts))
        .name("server_handle", 128, |q, handle| q.server_handle = Some(handle))
        .labels("server_selector", |q, key, value| drop(q.server_selector.insert(key, value)))
        .port("start_port", |q, port| q.start_port = Some(port))
        .enumeration("strategy", 2, |q, strategy| q.strategy = strategy)
        .each(
            "wait_for_capacity",
            [
                duration(-1, 0),
                duration(0, -1),
                duration(i64::MIN, 0),
                duration(1, 1_000_000_000),
                duration(1, i32::MIN),
                duration(0, i32::MAX),
            ],
            |q, wait| q.wait_for_capacity = Some(wait),
        )
        .each(
            "ttl",
            [
                duration(-1, 0),
                duration(0, 1),
                duration(4, 999_999_999),
                duration(5, -1),
                duration(366 * 24 * 3600, 1),
                duration(i64::MAX, 0),
            ],
            |q, ttl| q.ttl = Some(ttl),
        )
        // The same whether it is meant or just asked.
        .bad(&["project_id"], |q| (q.project_id, q.validate_only) = (String::new(), true))
        .bad(
            &[
                "wait_for_capacity",
                "ttl",
                "project_id",
                "modules[0].name",
                "modules[1].port",
                "modules[1].protocol",
                "resources.cpu_millis",
                "resources.ram_mb",
                "resources.disk_mb",
                "server_handle",
                "server_selector[a b]",
                "server_selector[region]",
                "start_port",
                "strategy",
            ],
            |q| {
                *q = v1::EnsureAllocationRequest {
                    project_id: "a b".to_owned(),
                    modules: vec![
                        module(""),
                        v1::ModuleSpec { name: "a".to_owned(), port: Some(65_536), protocol: 9 },
                    ],
                    resources: resources(u32::MAX, u64::MAX, u64::MAX),
                    server_handle: Some("/".to_owned()),
                    server_selector: labels(&[("a b", "c"), ("region", "\0")]),
                    start_port: Some(0),
                    strategy: 99,
                    validate_only: false,
                    wait_for_capacity: Some(duration(-1, 0)),
                    ttl: Some(duration(4, 999_999_999)),
                };
            },
        )
        .refuse(&service, async |mut client, q| client.place(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_release_is_refused_field_by_field() {
    let service = stocked().await;
    let valid = v1::ReleaseAllocationRequest {
        project_id: "first".to_owned(),
        modules: vec!["api".to_owned(), "web".to_owned()],
    };
    Table::of(valid)
        .name("project_id", 128, |q, id| q.project_id = id)
        .name("modules[1]", 63, |q, name| q.modules[1] = name)
        .bad(&["modules"], |q| q.modules = (0..65).map(|n| format!("module-{n}")).collect())
        .bad(&["project_id", "modules[0]", "modules[1]"], |q| {
            (q.project_id, q.modules) = (String::new(), vec!["a/b".to_owned(), String::new()]);
        })
        .refuse(&service, async |mut client, q| client.allocator.release_allocation(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_list_is_refused_field_by_field() {
    let mut service = stocked().await;
    let tokens = tokens(&mut service.client).await;
    Table::of(v1::ListAllocationsRequest::default())
        .name("project_id", 128, |q, id| q.project_id = Some(id))
        .name("server_handle", 128, |q, handle| q.server_handle = Some(handle))
        .name("module", 63, |q, name| q.module = Some(name))
        .each("page_size", [-1, -1000, i32::MIN], |q, size| q.page_size = size)
        .token("page_token", &tokens, |q, token| q.page_token = token)
        .bad(&["page_size", "project_id", "server_handle", "module", "page_token"], |q| {
            let bad = || "é".to_owned();
            *q = v1::ListAllocationsRequest {
                project_id: Some(bad()),
                server_handle: Some(bad()),
                module: Some(bad()),
                page_size: -1,
                page_token: bad(),
            };
        })
        .refuse(&service, async |mut client, q| client.list(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_read_of_a_placement_or_a_server_is_refused() {
    let service = stocked().await;
    Table::of(v1::GetPlacementRequest { project_id: "first".to_owned() })
        .name("project_id", 128, |q, id| q.project_id = id)
        .refuse(&service, async |mut client, q| client.allocator.get_placement(q).await.map(drop))
        .await;
    Table::of(v1::GetServerRequest { handle: "web-1".to_owned() })
        .name("handle", 128, |q, handle| q.handle = handle)
        .refuse(&service, async |mut client, q| client.inventory.get_server(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_search_is_refused_field_by_field() {
    let service = stocked().await;
    let valid = v1::FindServerRequest {
        modules: vec![module("web"), module("api")],
        server_selector: labels(&[("region", "eu")]),
        ..Default::default()
    };
    Table::of(valid)
        .modules(|q| &mut q.modules)
        .resources("resources", |q, amounts| q.resources = Some(amounts))
        .labels("server_selector", |q, key, value| drop(q.server_selector.insert(key, value)))
        .port("start_port", |q, port| q.start_port = Some(port))
        .enumeration("strategy", 2, |q, strategy| q.strategy = strategy)
        .each("max_candidates", [-1, 101, i32::MIN, i32::MAX], |q, count| q.max_candidates = count)
        .bad(
            &[
                "max_candidates",
                "resources.ram_mb",
                "server_selector[é]",
                "modules[0].name",
                "start_port",
                "strategy",
            ],
            |q| {
                *q = v1::FindServerRequest {
                    resources: resources(0, u64::MAX, 0),
                    server_selector: labels(&[("é", "")]),
                    modules: vec![module("é")],
                    start_port: Some(0),
                    strategy: -1,
                    max_candidates: -1,
                    explain: true,
                };
            },
        )
        .refuse(&service, async |mut client, q| client.find(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_watch_is_refused_field_by_field() {
    let mut service = stocked().await;
    let [allocations, servers, resume] = tokens(&mut service.client).await;
    Table::of(v1::WatchAllocationsRequest::default())
        .name("project_id", 128, |q, id| q.project_id = Some(id))
        .name("server_handle", 128, |q, handle| q.server_handle = Some(handle))
        .token("resume_token", &[resume.clone(), allocations, servers], |q, token| q.resume_token = token)
        .bad(&["from_beginning"], |q| (q.from_beginning, q.resume_token) = (true, resume))
        .bad(&["project_id", "server_handle", "from_beginning", "resume_token"], |q| {
            *q = v1::WatchAllocationsRequest {
                project_id: Some(String::new()),
                server_handle: Some(String::new()),
                resume_token: "x".to_owned(),
                from_beginning: true,
            };
        })
        .refuse(&service, async |mut client, q| client.allocator.watch_allocations(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_bad_fields_than_an_error_can_carry_are_told_as_far_as_it_does() {
    let service = stocked().await;
    let before = service.database.tables().await;
    let modules = vec![v1::ModuleSpec { name: "é".repeat(60), port: Some(0), protocol: 9 }; 64];
    let selector = (0..64).map(|n| (format!("{}-{n}", "🦀".repeat(70)), "\0".to_owned())).collect();
    let wanted = v1::EnsureAllocationRequest { modules, server_selector: selector, ..request("") };
    let refused = service.client.clone().place(wanted).await.unwrap_err();
    assert_eq!((refused.code(), error_info(&refused).0.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    let told = violations(&refused);
    assert!(told.len() > 15, "{told:?}");
    assert_eq!(told[..4], ["project_id", "modules[0].name", "modules[0].port", "modules[0].protocol"]);
    tells_no_more_than_it_should(&refused);
    let servers = (0..10_000).map(|_| v1::Server { handle: "é".repeat(200), ..Default::default() }).collect();
    let sync = v1::SyncServersRequest { source: "cloud".to_owned(), servers, ..Default::default() };
    let refused = service.client.clone().inventory.sync_servers(sync).await.unwrap_err();
    assert!(violations(&refused).len() > 15);
    tells_no_more_than_it_should(&refused);
    assert_eq!(service.database.tables().await, before);
}
