//! The audit: a database that the service alone wrote is what its log says; what anybody else did to it is told by name, and
//! nothing is changed by asking.

use resource_allocator::proto::v1;
use serde_json::Value;
use sqlx::Executor as _;
use tokio::task::JoinSet;

use crate::support::{
    TestService,
    process::run,
    requests::{labels, module, module_at, ram, request, resources, udp},
    server,
};

/// What `audit` says, as JSON, and its exit code.
fn audit(service: &TestService) -> (Value, Option<i32>) {
    let output = run(&["audit", "--database-url", service.database.url(), "-o", "json"]);
    let told = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&told)
        .unwrap_or_else(|error| panic!("{error}: {told} {}", String::from_utf8_lossy(&output.stderr)));
    (report, output.status.code())
}

/// The subjects of the differences and what differs.
fn differences(report: &Value) -> Vec<(String, String)> {
    let text = |difference: &Value, key: &str| difference[key].as_str().unwrap().to_owned();
    let differences = report["differences"].as_array().unwrap();
    differences.iter().map(|found| (text(found, "subject"), text(found, "what"))).collect()
}

/// A bit of everything that the log knows.
async fn history(service: &TestService) {
    let client = &mut service.client.clone();
    for (name, region, ram_mb) in [("web-1", "eu", 8192), ("web-2", "eu", 4096), ("web-3", "us", 2048)] {
        let capacity = resources(8000, ram_mb, 100_000);
        client.register(v1::Server { capacity, labels: labels(&[("region", region)]), ..server(name) }).await;
    }
    let policy = v1::FleetPolicy {
        default_headroom_percent: Some(v1::Percentages { ram: Some(5), ..Default::default() }),
        overcommit_percent: Some(v1::Percentages { cpu: Some(200), ..Default::default() }),
        ..Default::default()
    };
    let update = v1::UpdateFleetPolicyRequest { policy: Some(policy) };
    client.inventory.update_fleet_policy(update).await.unwrap();
    for (index, name) in ["blog", "bot", "shop", "wiki"].into_iter().enumerate() {
        let modules = vec![module("web"), udp("dns"), module_at("api", 9000 + u32::try_from(index).unwrap())];
        let strategy = if index % 2 == 0 { 1 } else { 2 };
        let wanted = v1::EnsureAllocationRequest {
            modules,
            strategy,
            resources: resources(500, 700, 900),
            server_selector: labels(&[("region", "eu")]),
            ..request(name)
        };
        client.place(wanted).await.unwrap();
    }
    client.ensure("shop", &["worker"]).await.unwrap();
    client.place(v1::EnsureAllocationRequest { resources: ram(1500), ..request("blog") }).await.unwrap();
    client.place(v1::EnsureAllocationRequest { resources: ram(99_999), ..request("big") }).await.unwrap_err();
    client.release("bot", &["dns"]).await;
    client.release("wiki", &[]).await;
    let at = client.placement("shop").await.unwrap().placement.unwrap().server_handle;
    let away = v1::RelocateProjectRequest { project_id: "shop".to_owned(), ..Default::default() };
    client.allocator.relocate_project(away).await.unwrap();
    let back = v1::RelocateProjectRequest {
        project_id: "shop".to_owned(),
        server_handle: Some(at),
        ..Default::default()
    };
    client.allocator.relocate_project(back).await.unwrap();
    let held = client.placement("shop").await.unwrap().allocations;
    let web = held.iter().find(|held| held.module == "web").unwrap();
    let report = v1::ReportPortInUseRequest {
        project_id: "shop".to_owned(),
        module: "web".to_owned(),
        port: web.port,
        detail: "nginx".to_owned(),
        ..Default::default()
    };
    client.allocator.report_port_in_use(report).await.unwrap();
    client.set_status("web-3", v1::ServerStatus::Maintenance).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_the_service_alone_wrote_is_what_its_log_says() {
    let service = TestService::start().await;
    history(&service).await;
    let before = service.database.tables().await;
    let (report, code) = audit(&service);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(differences(&report), []);
    // Four placements, an extension, a growth, a refusal, two moves, a port: each came out the same again.
    assert_eq!((report["decisions_same"].as_i64(), report["decisions_open"].as_i64()), (Some(10), Some(0)));
    assert_eq!((report["servers"].as_i64(), report["placements"].as_i64()), (Some(3), Some(3)));
    assert_eq!(service.database.tables().await, before, "an audit changes nothing");

    let output = run(&["audit", "--database-url", service.database.url()]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.ends_with("everything is as it should be\n"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_decided_as_its_requests_are_one_by_one() {
    let service = TestService::start().await;
    history(&service).await;
    let mut callers = JoinSet::new();
    for caller in 0..32 {
        let mut client = service.client.clone();
        callers.spawn(async move {
            for number in 0..8 {
                let name = format!("p-{caller}-{number}");
                // Some find no room, towards the end; some are given back meanwhile.
                let strategy = 1 + number % 2;
                let wanted = v1::EnsureAllocationRequest {
                    strategy,
                    resources: resources(100, 64, 64),
                    ..request(&name)
                };
                let _ = client.place(wanted).await;
                if number % 3 == 0 {
                    client.release(&name, &[]).await;
                }
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    // Transactions of many took them; the audit decides them again, each by itself.
    let (report, code) = audit(&service);
    assert_eq!((code, report["decisions_open"].as_i64()), (Some(0), Some(0)), "{report:#}");
    assert!(report["decisions_same"].as_i64() > Some(200), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_that_usage_reports_counted_in_are_told_apart() {
    let service = TestService::start().await;
    history(&service).await;
    let client = &mut service.client.clone();
    // By what is reserved alone, web-1 would be chosen.
    let usage = v1::Usage { ram_mb: Some(8000), ..Default::default() };
    client.report("web-1", usage).await;
    let placed = client.ensure("late", &[]).await.unwrap();
    assert_eq!(placed.placement.unwrap().server_handle, "web-2");
    let (report, code) = audit(&service);
    assert_eq!((code, report["decisions_open"].as_i64()), (Some(0), Some(1)), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "edits past the service, as a superuser makes them")]
async fn l47_whatever_else_was_done_to_the_tables_is_told_by_name() {
    let service = TestService::start().await;
    history(&service).await;
    // With every trigger off, as only a superuser can: no guard stands in the way.
    for (statement, subject, what) in [
        (
            "UPDATE servers SET reserved_ram_mb = reserved_ram_mb + 1 WHERE handle = 'web-1'",
            "server web-1",
            "reserved, by its placements",
        ),
        (
            "UPDATE servers SET placement_count = 7 WHERE handle = 'web-2'",
            "server web-2",
            "placement_count, by its placements",
        ),
        (
            "UPDATE servers SET capacity_ram_mb = 1 WHERE handle = 'web-3'",
            "server web-3",
            "capacity, by the log",
        ),
        ("UPDATE servers SET status = 'ready' WHERE handle = 'web-3'", "server web-3", "status, by the log"),
        (
            "UPDATE placements SET reserved_disk_mb = 1 WHERE project_id = 'shop'",
            "project shop",
            "reserved, by the log",
        ),
        ("UPDATE placements SET server_selector = NULL", "project shop", "selector, by the log"),
        ("DELETE FROM port_allocations WHERE project_id = 'bot'", "project bot", "ports, by the log"),
        (
            "DELETE FROM placements WHERE project_id = 'blog'; DELETE FROM port_allocations WHERE project_id = 'blog'",
            "project blog",
            "placed, by the log",
        ),
        ("UPDATE pools SET overcommit_cpu_percent = 300", "fleet", "policy"),
        (
            "DELETE FROM allocation_events WHERE first_sequence = (SELECT max(first_sequence) FROM allocation_events)",
            "log",
            "newest event",
        ),
        (
            "UPDATE allocation_events SET payload = jsonb_set(payload, '{allocations,0,port}', '9999')
             WHERE first_sequence = (SELECT min(first_sequence) FROM allocation_events WHERE kind = 'ensured')",
            "event",
            "decision for blog",
        ),
        // No port and no reservation, so that replicas which fold the operation would take them for free.
        (
            "UPDATE allocation_events SET granted = substring(granted FROM 1 FOR 2)
             WHERE first_sequence = (SELECT min(first_sequence) FROM allocation_events WHERE kind = 'ensured')",
            "event",
            "granted, by the payload",
        ),
        (
            "UPDATE allocation_events SET granted = '\\xff'
             WHERE first_sequence = (SELECT min(first_sequence) FROM allocation_events WHERE kind = 'ensured')",
            "event",
            "granted, by the payload",
        ),
        (
            "UPDATE allocation_events SET granted = '\\x0801'
             WHERE first_sequence = (SELECT min(first_sequence) FROM allocation_events WHERE kind <> 'ensured')",
            "event",
            "granted, by the payload",
        ),
    ] {
        let mut edit = service.database.sql.begin().await.unwrap();
        edit.execute("SET LOCAL session_replication_role = replica").await.unwrap();
        for table in ["servers", "placements", "port_allocations", "allocation_events", "pools"] {
            let keep = format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}");
            edit.execute(sqlx::AssertSqlSafe(keep)).await.unwrap();
        }
        edit.execute(statement).await.unwrap();
        edit.commit().await.unwrap();

        let (report, code) = audit(&service);
        assert_eq!(code, Some(1), "{statement}: {report:#}");
        let found = differences(&report);
        let told = |(about, which): &(String, String)| about.starts_with(subject) && which == what;
        assert!(found.iter().any(told), "{statement}: {found:?}");

        let mut restore = service.database.sql.begin().await.unwrap();
        restore.execute("SET LOCAL session_replication_role = replica").await.unwrap();
        for table in ["servers", "placements", "port_allocations", "allocation_events", "pools"] {
            for step in [
                format!("DELETE FROM {table}"),
                format!("INSERT INTO {table} SELECT * FROM kept_{table}"),
                format!("DROP TABLE kept_{table}"),
            ] {
                restore.execute(sqlx::AssertSqlSafe(step)).await.unwrap();
            }
        }
        restore.commit().await.unwrap();
    }
    assert_eq!(audit(&service).1, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_audited_is_told_in_a_line() {
    let folder = crate::support::process::folder();
    let nowhere = folder.path().join("nothing-here");
    let output = run(&["audit", "--data-dir", nowhere.to_str().unwrap()]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("there is no database in") && !nowhere.exists(), "{told}");

    let service = TestService::start().await;
    service
        .database
        .sql
        .execute("UPDATE _sqlx_migrations SET success = false WHERE version > 4")
        .await
        .unwrap();
    let output = run(&["audit", "--database-url", service.database.url()]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("its newest migration is 4, and this release reads"), "{told}");
}
