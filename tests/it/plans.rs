//! The plans of our statements: none reads more of a large table than it is asked for, whatever the planner knows of it.

use std::{collections::BTreeMap, fs, path::Path};

use resource_allocator::proto::v1::ListAllocationsRequest;
use serde_json::Value;
use sqlx::{Executor as _, PgConnection, PgPool};

use crate::support::{TestDatabase, TestService, requests::request};

/// The tables that grow with the projects.
const LARGE: [&str; 3] = ["allocation_events", "placements", "port_allocations"];
/// Of these there are a thousand, which a replica reads once.
const SERVERS: &str = "servers";
const PROJECTS: i64 = 50_000;
/// Two modules each.
const PORTS: i64 = 2 * PROJECTS;
/// What reads a large table from end to end, because that is what it is for: the fleet at its start.
const READS_ALL: [&str; 2] = [
    "FROM port_allocations WHERE free_after IS NULL GROUP BY server_handle, protocol",
    "FROM port_allocations WHERE free_after IS NOT NULL\n",
];

/// Fills the tables as the service would have, without its triggers, which would take minutes.
async fn fill(conn: &mut PgConnection) {
    for statement in [
        "INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb)
         SELECT 'server-' || n, '192.0.2.1', 1000000, 1000000, 1000000 FROM generate_series(0, 999) n",
        "SET session_replication_role = replica",
        "UPDATE servers SET status = 'in_use', placement_count = 50, reserved_ram_mb = 50 * 512, reserved_disk_mb = 50 * 1024",
        "INSERT INTO placements (project_id, server_handle, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb, revision)
         SELECT 'project-' || n, 'server-' || n % 1000, 0, 512, 1024, 4 * n + 4 FROM generate_series(0, 49999) n",
        "INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module)
         SELECT gen_random_uuid(), 'server-' || n % 1000, 'tcp', 8000 + 2 * (n / 1000) + m, 'project-' || n,
                CASE m WHEN 0 THEN 'backend' ELSE 'frontend' END
         FROM generate_series(0, 49999) n, generate_series(0, 1) m",
        "INSERT INTO allocation_events (first_sequence, last_sequence, event_time, kind, project_id, server_handle, request_id,
             payload)
         SELECT 4 * n + 1, 4 * n + 4, now(), 'ensured', 'project-' || n, 'server-' || n % 1000, 'r', '{}'
         FROM generate_series(0, 49999) n",
        "UPDATE pools SET last_sequence = 200000",
        "SET session_replication_role = origin",
    ] {
        conn.execute(statement).await.unwrap();
    }
}

/// The statements of the service, each with how many parameters it has.
fn statements() -> Vec<(String, usize)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let statements: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            let file: Value =
                serde_json::from_str(&fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
            let parameters = file["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
            (file["query"].as_str().unwrap().to_owned(), parameters)
        })
        .collect();
    assert!(statements.len() > 20, "{}", statements.len());
    statements
}

/// How a statement reads large tables from end to end; nothing where it does not.
async fn scans(conn: &mut PgConnection, statement: &str, parameters: usize) -> Vec<String> {
    let arguments = vec!["NULL"; parameters].join(", ");
    let arguments = if parameters == 0 { String::new() } else { format!("({arguments})") };
    let run = async |conn: &mut PgConnection, sql: String| {
        conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.unwrap();
    };
    run(conn, format!("PREPARE pinned AS {statement}")).await;
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE pinned{arguments}");
    let plan: Value = sqlx::query_scalar(sqlx::AssertSqlSafe(explain))
        .persistent(false)
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    run(conn, "DEALLOCATE pinned".to_owned()).await;
    let mut found = Vec::new();
    look(&plan[0]["Plan"], &mut found);
    found
}

fn look(node: &Value, found: &mut Vec<String>) {
    let kind = node["Node Type"].as_str().unwrap();
    // A bitmap scan of an index names the index alone, and the table is its parent's.
    let table = node["Relation Name"].as_str().or(node["Index Name"].as_str()).unwrap_or_default();
    let large = LARGE.iter().any(|large| table.starts_with(large));
    let looked_up = node.get("Index Cond").is_some() || kind == "Bitmap Heap Scan";
    if large && kind.ends_with("Scan") && !looked_up {
        found.push(format!("{kind} on {table}"));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        look(child, found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_scans_a_large_table_with_statistics_old_or_new() {
    let database = TestDatabase::create().await;
    let mut conn = database.sql.acquire().await.unwrap();
    // As the service's connections are set, and with the plan that every call shares.
    conn.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan").await.unwrap();
    for table in LARGE {
        let no_autovacuum = format!("ALTER TABLE {table} SET (autovacuum_enabled = off)");
        conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(no_autovacuum))).await.unwrap();
    }
    conn.execute("ANALYZE").await.unwrap();
    fill(&mut conn).await;
    for statistics in ["of empty tables", "of full tables"] {
        let mut wrong = BTreeMap::new();
        let mut read_all = 0;
        for (statement, parameters) in statements() {
            let scans = scans(&mut conn, &statement, parameters).await;
            if READS_ALL.iter().any(|all| statement.contains(all)) {
                read_all += 1;
            } else if !scans.is_empty() {
                wrong.insert(statement, scans);
            }
        }
        assert_eq!(read_all, READS_ALL.len(), "the statements that read all are still there");
        assert!(wrong.is_empty(), "with statistics {statistics}: {wrong:#?}");
        conn.execute("ANALYZE").await.unwrap();
    }
}

/// How many rows a statement reads of large tables, run with these arguments by the plan that it has.
async fn rows_read_by_plan(conn: &mut PgConnection, name: &str, arguments: &str) -> f64 {
    let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {name}({arguments})");
    let plan: Value = sqlx::query_scalar(sqlx::AssertSqlSafe(explain))
        .persistent(false)
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    count(&plan[0]["Plan"])
}

fn count(node: &Value) -> f64 {
    let own = if node["Node Type"].as_str().unwrap().ends_with("Scan") {
        let per_loop =
            ["Actual Rows", "Rows Removed by Filter"].map(|rows| node[rows].as_f64().unwrap_or(0.0));
        per_loop.into_iter().sum::<f64>() * node["Actual Loops"].as_f64().unwrap()
    } else {
        0.0
    };
    own + node["Plans"].as_array().into_iter().flatten().map(count).sum::<f64>()
}

/// Replicas plan their statements on a new database, and go on with the plans while the log grows.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_log_alone_is_read_by_plans_that_were_made_while_it_was_empty() {
    let database = TestDatabase::create().await;
    let mut conn = database.sql.acquire().await.unwrap();
    conn.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan").await.unwrap();
    conn.execute("ALTER TABLE allocation_events SET (autovacuum_enabled = off)").await.unwrap();
    let of_the_log = |(statement, parameters): &(String, usize)| {
        statement.contains("FROM allocation_events")
            && statement.contains("ORDER BY first_sequence LIMIT $")
            && *parameters > 2
    };
    let reads: Vec<_> = statements().into_iter().filter(of_the_log).collect();
    let arguments = |parameters, after: i64| match parameters {
        3 => format!("1, {after}, 10"),
        5 => format!("1, 'project-49999', {after}, 200000, 10"),
        4 => format!("1, {after}, 0, 10"),
        _ => panic!("{parameters} parameters"),
    };
    for (number, (statement, parameters)) in reads.iter().enumerate() {
        let prepare = format!("PREPARE read_{number} AS {statement}");
        conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(prepare))).await.unwrap();
        rows_read_by_plan(&mut conn, &format!("read_{number}"), &arguments(*parameters, 0)).await;
    }
    fill(&mut conn).await;
    for (number, (statement, parameters)) in reads.iter().enumerate() {
        let rows =
            rows_read_by_plan(&mut conn, &format!("read_{number}"), &arguments(*parameters, 199_990)).await;
        assert!((1.0..50.0).contains(&rows), "{rows} rows: {statement}");
    }
    assert_eq!(reads.len(), 3, "{reads:#?}");
}

/// How many rows were read so far of each large table, and of the servers, through its indexes or from end to end.
async fn rows_read(sql: &PgPool) -> BTreeMap<String, i64> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT t.relname::text, (coalesce(t.seq_tup_read, 0) + coalesce(sum(i.idx_tup_read), 0))::bigint
         FROM pg_stat_user_tables t LEFT JOIN pg_stat_user_indexes i USING (relid)
         WHERE t.relname = ANY($1) GROUP BY t.relname, t.seq_tup_read",
    )
    .bind(LARGE.into_iter().chain([SERVERS]).map(str::to_owned).collect::<Vec<_>>())
    .fetch_all(sql)
    .await
    .unwrap();
    rows.into_iter().collect()
}

/// What the triggers do is in no plan of ours; what was read is counted whoever reads it.
#[tokio::test(flavor = "multi_thread")]
async fn calls_read_a_few_rows_each_of_large_tables() {
    let database = TestDatabase::create().await;
    let mut conn = database.sql.acquire().await.unwrap();
    fill(&mut conn).await;
    conn.execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    drop(conn);
    let before = rows_read(&database.sql).await;

    let mut service = TestService::builder().start_on(database).await;
    let calls = 20;
    for number in 0..calls {
        let project = format!("new-{number}");
        service.client.ensure(&project, &["backend", "frontend"]).await.unwrap();
        service.client.ensure(&project, &["backend", "frontend"]).await.unwrap();
        service.client.ensure(&project, &["admin"]).await.unwrap();
        service.client.placement(&project).await.unwrap();
        service.client.place(request(&format!("project-{}", number * 1000))).await.unwrap();
        service.client.release(&project, &[]).await;
    }
    let lists = [
        ListAllocationsRequest::default(),
        ListAllocationsRequest { module: Some("frontend".to_owned()), ..Default::default() },
        ListAllocationsRequest { module: Some("no-such".to_owned()), ..Default::default() },
        ListAllocationsRequest { server_handle: Some("server-7".to_owned()), ..Default::default() },
        ListAllocationsRequest {
            server_handle: Some("server-7".to_owned()),
            module: Some("frontend".to_owned()),
            ..Default::default()
        },
        ListAllocationsRequest { project_id: Some("project-7".to_owned()), ..Default::default() },
    ];
    for list in lists {
        let mut list = ListAllocationsRequest { page_size: 20, ..list };
        for _ in 0..4 {
            let page = service.client.list(list.clone()).await.unwrap();
            list.page_token = page.next_page_token;
            if list.page_token.is_empty() {
                break;
            }
        }
    }
    // What a connection read is counted when it ends at the latest.
    let TestService { running, shutdown, database, client } = service;
    drop(client);
    shutdown.soft.cancel();
    running.stopped().await.unwrap();

    let after = rows_read(&database.sql).await;
    let read = |table: &str| after[table] - before.get(table).copied().unwrap_or(0);
    // A few hundred calls; one that read a whole table would be far above.
    let few = PROJECTS / 5;
    assert!(read("allocation_events") < few, "{after:?}");
    assert!(read(SERVERS) < few, "{after:?}");
    // The fleet is read from the ports once, and once who is placed.
    assert!(read("placements") < PROJECTS + few, "{after:?}");
    assert!(read("port_allocations") < PORTS + few, "{after:?}");
    assert!(read("port_allocations") >= PORTS, "the counters count: {after:?}");
}
