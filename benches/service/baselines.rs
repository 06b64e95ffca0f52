//! What the same machine can do without the service: the strict scheme of one transaction for each request, by pgbench, and the
//! service's own rows, planned beforehand and written by one connection.

use std::{
    fs,
    process::{Command, Stdio},
    str::FromStr as _,
    time::{Duration, Instant},
};

use resource_allocator::{
    domain::{
        Allocation, ModuleName, Placement, Port, ProjectId, Protocol, ResourceRequest, Resources,
        ServerHandle,
        event::{Ensured, LogEntry, Operation, Requested, Selected},
        ports::DEFAULT_START_PORT,
        request::{ModuleRequest, Strategy},
    },
    store::{
        Store, StoreOptions, WriteTransaction,
        batches::{Batch, Expected},
        events::EventColumns,
        placements::PlacementColumns,
        pools::PoolState,
        ports::PortColumns,
        write_planned,
    },
};
use sqlx::postgres::PgConnectOptions;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Result, load,
    place::{Database, Place},
};

/// The tables of the strict scheme: what it needs, and no trigger.
const STRICT_TABLES: [&str; 6] = [
    "CREATE TABLE strict_servers (handle text PRIMARY KEY, free_ram_mb bigint NOT NULL, next_port integer NOT NULL DEFAULT 8000)
         WITH (fillfactor = 50)",
    "CREATE INDEX strict_servers_free ON strict_servers (free_ram_mb DESC, handle)",
    "CREATE TABLE strict_placements (project_id text PRIMARY KEY, server_handle text NOT NULL, ram_mb bigint NOT NULL)",
    "CREATE TABLE strict_ports (server_handle text NOT NULL, port integer NOT NULL, project_id text NOT NULL, module text NOT NULL,
         PRIMARY KEY (server_handle, port), UNIQUE (project_id, module))",
    "CREATE TABLE strict_events (id bigserial PRIMARY KEY, project_id text NOT NULL, server_handle text NOT NULL, payload jsonb NOT NULL)",
    // So much that none fills up during a run: a client that came too late for a server would have to begin again.
    "INSERT INTO strict_servers (handle, free_ram_mb) SELECT 'server-' || n, 1000000000 FROM generate_series(1, 2000) n",
];

/// One request: the best server, conditionally, two ports, and an event.
const STRICT_SCRIPT: &str = r#"\set project random(1, 9000000000000000)
BEGIN;
UPDATE strict_servers SET free_ram_mb = free_ram_mb - 512, next_port = next_port + 2 WHERE handle = (SELECT handle FROM strict_servers WHERE free_ram_mb >= 512 ORDER BY free_ram_mb {order}, handle LIMIT 1) AND free_ram_mb >= 512 RETURNING handle AS server, next_port AS port \gset
INSERT INTO strict_placements VALUES ('project-' || :project::text, :server::text, 512);
INSERT INTO strict_ports VALUES (:server::text, :port::integer - 2, 'project-' || :project::text, 'backend'), (:server::text, :port::integer - 1, 'project-' || :project::text, 'frontend');
INSERT INTO strict_events (project_id, server_handle, payload) VALUES ('project-' || :project::text, :server::text, '{"modules":["backend","frontend"],"ram_mb":512}');
COMMIT;
"#;

/// The strict scheme's projects in a second.
pub fn strict(
    place: &Place,
    database: &Database,
    strategy: Strategy,
    clients: usize,
    seconds: u64,
) -> Result<f64> {
    place.sql(
        database,
        &["DROP TABLE IF EXISTS strict_servers, strict_placements, strict_ports, strict_events"],
    )?;
    place.sql(database, &STRICT_TABLES)?;
    let order = match strategy {
        Strategy::Spread => "DESC",
        Strategy::Binpack => "ASC",
    };
    let script = STRICT_SCRIPT.replace("{order}", order);
    let figures = pgbench(place, database, &script, clients, seconds)?;
    Ok(figures.rate)
}

/// What pgbench said.
pub struct Figures {
    pub rate: f64,
    /// How long a transaction took in the middle, in milliseconds.
    pub p50_ms: f64,
}

/// One row for each transaction, by one client.
pub fn one_row(place: &Place, database: &Database, seconds: u64) -> Result<Figures> {
    place.sql(
        database,
        &["DROP TABLE IF EXISTS one_row", "CREATE TABLE one_row (id bigint NOT NULL, text text NOT NULL)"],
    )?;
    let script =
        "\\set id random(1, 9000000000000000)\nINSERT INTO one_row VALUES (:id, 'a row of a project');\n";
    pgbench(place, database, script, 1, seconds)
}

fn pgbench(
    place: &Place,
    database: &Database,
    script: &str,
    clients: usize,
    seconds: u64,
) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("script.sql");
    fs::write(&file, script)?;
    let log = folder.path().join("log");
    let mut command: Command = place.pgbench(database)?;
    let output = command
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .args(["--client", &clients.to_string(), "--time", &seconds.to_string()])
        .arg("--file")
        .arg(&file)
        .arg("--log")
        .arg("--log-prefix")
        .arg(&log)
        .stderr(Stdio::piped())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let rate = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
        .ok_or_else(|| format!("pgbench: {said}{}", String::from_utf8_lossy(&output.stderr)))?;
    let mut latencies = Vec::new();
    for entry in fs::read_dir(folder.path())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log")) {
            // client, transaction, microseconds, …
            let text = fs::read_to_string(path)?;
            latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
        }
    }
    latencies.sort_by(f64::total_cmp);
    let p50_ms = latencies.get(latencies.len() / 2).copied().unwrap_or(0.0) / 1000.0;
    Ok(Figures { rate, p50_ms })
}

/// The service's rows, planned beforehand and written by one connection in batches of that size: projects in a second.
pub fn planned(
    place: &Place,
    database: &Database,
    strategy: Strategy,
    batch: usize,
    seconds: f64,
) -> Result<f64> {
    let store = place.runtime.block_on(async {
        Ok::<_, sqlx::Error>(Store::new(StoreOptions {
            connect: PgConnectOptions::from_str(&database.url)?,
            max_connections: 6,
            acquire_timeout: Duration::from_secs(5),
        }))
    })?;
    let first = place.figure(database, "SELECT last_sequence FROM pools")?;
    let known = place.figure(database, "SELECT count(*) FROM placements")?;
    let count = 40_000_usize.max(batch);
    let mut planner = Planner { sequence: first, number: u64::try_from(known)?, strategy };
    let batches: Vec<(Batch, i64)> =
        (0..count / batch).map(|_| Ok((planner.batch(batch)?, planner.sequence))).collect::<Result<_>>()?;
    let (written, spent) = place.runtime.block_on(async {
        let mut conn = store.acquire_for_combiner().await?;
        let (transaction, pool) = WriteTransaction::begin(&mut conn).await?;
        transaction.commit().await?;
        let PoolState { epoch, inventory_revision, edit_count, mut last_sequence, mut now, .. } = pool;
        let begin = Instant::now();
        let mut written = 0;
        for (batch, last) in &batches {
            let expected = Expected { epoch, last_sequence, inventory_revision, edit_count, now };
            now = write_planned(&mut conn, batch, &expected).await?.ok_or("someone else wrote")?;
            last_sequence = *last;
            written += batch.placements.len();
            if begin.elapsed().as_secs_f64() > seconds {
                break;
            }
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((written, begin.elapsed()))
    })?;
    place.runtime.block_on(store.close());
    Ok(load::rate(written, spent))
}

/// The servers, and the projects that one has room for.
const SERVERS: u64 = 2000;
const ROOM: u64 = 1_000_000 / 1024;

struct Planner {
    sequence: i64,
    number: u64,
    strategy: Strategy,
}

impl Planner {
    fn batch(&mut self, size: usize) -> Result<Batch> {
        let (mut placements, mut ports) = (PlacementColumns::default(), PortColumns::default());
        let mut planned = Vec::with_capacity(size);
        for _ in 0..size {
            planned.push(self.project()?);
        }
        let mut entries = Vec::with_capacity(size);
        // In the order in which the service writes them.
        planned.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        for (id, placement, allocations, entry) in planned {
            placements.push(&id, &placement);
            for allocation in &allocations {
                ports.push(&id, &placement.server_handle, allocation);
            }
            entries.push(entry);
        }
        entries.sort_by_key(|entry| entry.first_sequence);
        Ok(Batch { placements, ports, may_take_over: false, events: EventColumns::of(&entries)? })
    }

    fn project(&mut self) -> Result<(ProjectId, Placement, Vec<Allocation>, LogEntry)> {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
        let number = self.number;
        self.number += 1;
        let id = ProjectId::parse(&load::project_id("planned", number))?;
        // As many as a server has room for, or one on each.
        let (server, place_on_it) = match self.strategy {
            Strategy::Spread => (number % SERVERS, number / SERVERS),
            Strategy::Binpack => (number / ROOM, number % ROOM),
        };
        let server_handle = ServerHandle::parse(&format!("server-{server}"))?;
        let port = u32::from(DEFAULT_START_PORT.get()) + 2 * u32::try_from(place_on_it)?;
        let reserved = Resources { cpu_millis: 0, ram_mb: 512, disk_mb: 1024 };
        let names = ["backend", "frontend"];
        let mut allocations = Vec::new();
        let mut modules = Vec::new();
        for (place, name) in (0..).zip(names) {
            modules.push(ModuleRequest::named(ModuleName::parse(name)?));
            allocations.push(Allocation {
                id: Uuid::now_v7(),
                module: ModuleName::parse(name)?,
                protocol: Protocol::Tcp,
                port: Port::try_from(port + place)?,
                pinned: false,
                create_time: now,
            });
        }
        let entry = LogEntry {
            first_sequence: self.sequence + 1,
            event_time: now,
            project_id: Some(id.clone()),
            server_handle: Some(server_handle.clone()),
            request_id: Uuid::now_v7().to_string(),
            actor: String::new(),
            operation: Operation::Ensured(Ensured {
                usage_counted: false,
                requested: Requested {
                    modules,
                    resources: ResourceRequest::default(),
                    server_handle: None,
                    selector: std::collections::BTreeMap::new(),
                    start_port: None,
                },
                selected: Some(Selected {
                    strategy: self.strategy,
                    free_before: Resources { cpu_millis: 1_000_000, ram_mb: 1_000_000, disk_mb: 1_000_000 },
                    free_after: Resources { cpu_millis: 1_000_000, ram_mb: 999_488, disk_mb: 998_976 },
                }),
                server_address: "192.0.2.1".to_owned(),
                grown: reserved,
                allocations: allocations.clone(),
                allocation_count: 2,
                served: None,
                expire_time: None,
            }),
        };
        self.sequence = entry.last_sequence();
        let placement = Placement {
            server_handle,
            reserved,
            selector: std::collections::BTreeMap::new(),
            start_port: DEFAULT_START_PORT,
            revision: self.sequence,
            create_time: now,
            update_time: now,
            expire_time: None,
        };
        Ok((id, placement, allocations, entry))
    }
}
