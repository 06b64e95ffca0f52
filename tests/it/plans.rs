//! The plans of our statements: none reads more of a large table than it is asked for, whatever the planner knows of it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use resource_allocator::proto::v1::ListAllocationsRequest;
use serde_json::Value;
use sqlx::{Executor as _, PgConnection, PgPool};

use crate::support::{Client, TestDatabase, TestService, process::PATIENCE, requests::request};

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

async fn add_servers(conn: &mut PgConnection) {
    let add = "INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb)
               SELECT 'server-' || n, '192.0.2.1', 1000000, 1000000, 1000000 FROM generate_series(0, 999) n";
    conn.execute(add).await.unwrap();
}

/// Has what the planner knows of the large tables stay as it is.
async fn keep_statistics(conn: &mut PgConnection) {
    for table in LARGE {
        let no_autovacuum = format!("ALTER TABLE {table} SET (autovacuum_enabled = off)");
        conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(no_autovacuum))).await.unwrap();
    }
}

/// Fills the tables as the service would have, without its triggers, which would take minutes. Of what was there that part of the
/// log is left which is newer; a replica that knew it reads the tables anew.
async fn fill(conn: &mut PgConnection) {
    for statement in [
        "BEGIN",
        "SET LOCAL session_replication_role = replica",
        "DELETE FROM port_allocations",
        "DELETE FROM placements",
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
        "UPDATE pools SET last_sequence = greatest(last_sequence, 200000), edit_count = edit_count + 1",
        "COMMIT",
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

/// The plan that a prepared statement has.
async fn explain(conn: &mut PgConnection, options: &str, prepared: &str) -> Value {
    let explain = format!("EXPLAIN ({options}) EXECUTE {prepared}");
    let plan: Value = sqlx::query_scalar(sqlx::AssertSqlSafe(explain))
        .persistent(false)
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    plan[0]["Plan"].clone()
}

/// How a statement reads large tables from end to end; nothing where it does not.
async fn scans(conn: &mut PgConnection, statement: &str, parameters: usize) -> Vec<String> {
    let arguments = vec!["NULL"; parameters].join(", ");
    let arguments = if parameters == 0 { String::new() } else { format!("({arguments})") };
    let run = async |conn: &mut PgConnection, sql: String| {
        conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.unwrap();
    };
    run(conn, format!("PREPARE pinned AS {statement}")).await;
    let plan = explain(conn, "FORMAT JSON", &format!("pinned{arguments}")).await;
    run(conn, "DEALLOCATE pinned".to_owned()).await;
    let mut found = Vec::new();
    look(&plan, &mut found);
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
    keep_statistics(&mut conn).await;
    add_servers(&mut conn).await;
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

/// How many pages a statement reads that was prepared, run with these arguments by the plan that it has.
async fn pages_read(conn: &mut PgConnection, name: &str, arguments: &str) -> i64 {
    let plan = explain(conn, "ANALYZE, BUFFERS, FORMAT JSON", &format!("{name}({arguments})")).await;
    let pages = |blocks: &str| plan[blocks].as_i64().unwrap();
    pages("Shared Hit Blocks") + pages("Shared Read Blocks")
}

/// Replicas plan their statements on a new database, and go on with the plans while the log grows.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_log_alone_is_read_by_plans_that_were_made_while_it_was_empty() {
    let database = TestDatabase::create().await;
    let mut conn = database.sql.acquire().await.unwrap();
    conn.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan").await.unwrap();
    keep_statistics(&mut conn).await;
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
        pages_read(&mut conn, &format!("read_{number}"), &arguments(*parameters, 0)).await;
    }
    // By another connection: to change who one writes as has it plan anew.
    let mut other = database.sql.acquire().await.unwrap();
    add_servers(&mut other).await;
    fill(&mut other).await;
    for plans in ["of the empty log", "of a log without statistics"] {
        for (number, (statement, parameters)) in reads.iter().enumerate() {
            let pages =
                pages_read(&mut conn, &format!("read_{number}"), &arguments(*parameters, 199_990)).await;
            // Of the log's 700, and its index' 140.
            assert!((1..50).contains(&pages), "{pages} pages by the plans {plans}: {statement}");
        }
        conn.execute("DISCARD PLANS").await.unwrap();
    }
    assert_eq!(reads.len(), 5, "{reads:#?}");
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

/// How many connections of the service there are.
async fn sessions(sql: &PgPool) -> i64 {
    let service = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'resource-allocator'";
    sqlx::query_scalar(service).fetch_one(sql).await.unwrap()
}

/// Calls of every kind that many callers make, some of them for projects that are there.
async fn call(client: &mut Client, round: &str, there: &str) {
    for number in 0..20 {
        let project = format!("{round}-{number}");
        client.ensure(&project, &["backend", "frontend"]).await.unwrap();
        client.ensure(&project, &["backend", "frontend"]).await.unwrap();
        client.ensure(&project, &["admin"]).await.unwrap();
        client.placement(&project).await.unwrap();
        client.place(request(&format!("{there}-{}", number * 1000))).await.unwrap();
        client.release(&project, &[]).await;
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
        ListAllocationsRequest { project_id: Some(format!("{there}-7")), ..Default::default() },
    ];
    for list in lists {
        let mut list = ListAllocationsRequest { page_size: 20, ..list };
        for _ in 0..4 {
            let page = client.list(list.clone()).await.unwrap();
            list.page_token = page.next_page_token;
            if list.page_token.is_empty() {
                break;
            }
        }
    }
}

/// Calls a service on a full database, which it finds so or which becomes full under it; looks at how many rows were then read,
/// by whomever: what the triggers do is in no plan of ours.
async fn call_on_full_tables(full_at_start: bool) {
    let database = TestDatabase::create().await;
    let mut conn = database.sql.acquire().await.unwrap();
    add_servers(&mut conn).await;
    if full_at_start {
        fill(&mut conn).await;
    } else {
        // What fills it later is older than what is written before, so that nobody reads it for news.
        conn.execute("UPDATE pools SET last_sequence = 200000, compacted_sequence = 200000").await.unwrap();
        // So that what is planned on the empty tables stays so.
        keep_statistics(&mut conn).await;
    }
    let mut service = TestService::builder().start_on(database).await;
    if !full_at_start {
        call(&mut service.client, "first", "there").await;
        fill(&mut conn).await;
    }
    conn.execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    drop(conn);
    let before = rows_read(&service.database.sql).await;
    call(&mut service.client, "new", "project").await;
    let TestService { running, shutdown, database, client } = service;
    drop(client);
    shutdown.soft.cancel();
    running.stopped().await.unwrap();
    // What a connection read is counted when it ends at the latest.
    let ended = async {
        while sessions(&database.sql).await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the service's connections end with it");

    let after = rows_read(&database.sql).await;
    let read = |table: &str| after[table] - before.get(table).copied().unwrap_or(0);
    // A few hundred calls; one that read a whole table would be far above.
    let few = PROJECTS / 5;
    assert!(read("allocation_events") < few, "{before:?} {after:?}");
    assert!(read(SERVERS) < few, "{before:?} {after:?}");
    // The fleet is read from the ports once, and once who is placed.
    assert!(read("placements") < PROJECTS + few, "{before:?} {after:?}");
    assert!(read("port_allocations") < PORTS + few, "{before:?} {after:?}");
    assert!(read("port_allocations") >= PORTS, "the counters count: {before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_read_a_few_rows_each_of_large_tables() {
    call_on_full_tables(true).await;
}

/// A new database is what every installation begins with, and its plans outlive the emptiness.
#[tokio::test(flavor = "multi_thread")]
async fn calls_read_a_few_rows_each_of_tables_that_were_empty_when_they_were_first_read() {
    call_on_full_tables(false).await;
}
