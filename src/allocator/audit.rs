//! The audit: whether the tables are what the log says, whether every sum is the sum of its rows, and whether every decision is
//! what is decided again. It reads one snapshot and changes nothing.
//!
//! It keeps what it reads in memory, as much as the tables hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use sqlx::PgConnection;
use tokio_stream::StreamExt as _;

use crate::{
    domain::{
        Allocation, Port, Project, ProjectId, Protocol, Resources, ServerHandle,
        event::Grant,
        fleet::{PortStanding, ServerState},
        line::Waiter,
        placement::Context,
        replay::{Again, Replay},
    },
    store::{Store, StoreError, events, placements, pools, ports, servers, waiters},
};

/// How many operations, and how many projects, are read at once.
const PAGE: i64 = 1_000;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// What it is about, such as `server web-1`.
    pub subject: String,
    /// Which of its figures.
    pub what: String,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// What an audit found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// How many servers were looked at.
    pub servers: usize,
    /// How many placements.
    pub placements: usize,
    /// How many ports that have a row.
    pub ports: usize,
    /// The number of the newest event.
    pub sequence: i64,
    /// How many operations of the log were folded; none where retention has dropped its beginning.
    pub operations: Option<u64>,
    /// How many decisions came out the same again.
    pub decisions_same: u64,
    /// How many came out otherwise, and may: they depended on usage reports, which the log does not carry, or on the line.
    pub decisions_open: u64,
    /// What is not as it should be.
    pub differences: Vec<Difference>,
}

/// What the tables hold.
#[derive(Default)]
struct Tables {
    servers: BTreeMap<ServerHandle, ServerState>,
    projects: BTreeMap<ProjectId, Project>,
    ports: BTreeMap<(ServerHandle, Protocol, Port), PortStanding>,
    waiting: BTreeSet<ProjectId>,
}

/// Audits a database. `context` is what decisions depend on but for their time.
///
/// # Errors
/// [`StoreError`], also for a row that cannot be read at all.
pub async fn audit(store: &Store, context: &Context) -> Result<Report, StoreError> {
    let mut snapshot = store.begin_snapshot().await?;
    let pool = pools::find(&mut snapshot).await?;
    let tables = read_tables(&mut snapshot, &pool).await?;
    let mut report = Report {
        servers: tables.servers.len(),
        placements: tables.projects.len(),
        ports: tables.ports.len(),
        sequence: pool.last_sequence,
        ..Report::default()
    };
    check_sums(&tables, &mut report);
    check_ports(&tables, &mut report);
    if pool.compacted_sequence == 0 {
        let replay = replay(&mut snapshot, &pool, context, &mut report).await?;
        report.check("fleet", "policy", replay.fleet().policy(), &pool.policy);
        check_fold(&tables, &replay, &mut report);
    }
    Ok(report)
}

impl Report {
    fn check<T: PartialEq + Debug + ?Sized>(&mut self, subject: &str, what: &str, expected: &T, found: &T) {
        if expected != found {
            self.note(subject, what, format!("{expected:?}"), format!("{found:?}"));
        }
    }

    fn check_amounts(&mut self, subject: &str, what: &str, expected: Resources, found: Resources) {
        if expected != found {
            self.note(subject, what, expected.to_string(), found.to_string());
        }
    }

    fn note(&mut self, subject: &str, what: &str, expected: String, found: String) {
        let (subject, what) = (subject.to_owned(), what.to_owned());
        self.differences.push(Difference { subject, what, expected, found });
    }
}

async fn read_tables(conn: &mut PgConnection, pool: &pools::PoolState) -> Result<Tables, StoreError> {
    let mut tables = Tables::default();
    for record in servers::list_changed(conn, &pool.policy, -1).await? {
        let state = record.row.state;
        tables.servers.insert(state.server.handle.clone(), state);
    }
    let mut after = String::new();
    loop {
        let ids = placements::list_ids_after(conn, &after, PAGE).await?;
        let Some(last) = ids.last() else { break };
        after.clone_from(last);
        let found = placements::list_projects(conn, &ids).await?;
        tables.projects.extend(found.into_iter().map(|(id, record)| (id, record.project)));
    }
    let mut rows = ports::list_held(conn);
    while let Some(held) = rows.next().await {
        let held = held?;
        for port in held.ports {
            tables.ports.insert((held.server_handle.clone(), held.protocol, port), PortStanding::Held);
        }
    }
    drop(rows);
    let mut rows = ports::list_given_back(conn);
    while let Some(row) = rows.next().await {
        let row = row?;
        tables.ports.insert((row.server_handle, row.protocol, row.port), row.standing);
    }
    drop(rows);
    let present = waiters::list_all(conn).await?.into_iter().filter(Waiter::is_present);
    tables.waiting = present.map(|waiter| waiter.project_id).collect();
    Ok(tables)
}

/// Each sum is counted anew from the rows that it sums.
fn check_sums(tables: &Tables, report: &mut Report) {
    let mut sums: BTreeMap<&ServerHandle, (Resources, i64)> = BTreeMap::new();
    for placement in tables.projects.values().filter_map(|project| project.placement.as_ref()) {
        let (reserved, count) = sums.entry(&placement.server_handle).or_default();
        *reserved += placement.reserved;
        *count += 1;
    }
    for (handle, state) in &tables.servers {
        let (reserved, count) = sums.remove(handle).unwrap_or_default();
        let subject = format!("server {handle}");
        report.check_amounts(&subject, "reserved, by its placements", reserved, state.reserved);
        report.check(&subject, "placement_count, by its placements", &count, &state.placement_count);
    }
    for (handle, (_, count)) in sums {
        report.check(&format!("server {handle}"), "placements on a server that is not there", &0, &count);
    }
}

/// Each port that a module holds has its row on the project's own server, and each row that is held its module.
fn check_ports(tables: &Tables, report: &mut Report) {
    let mut held = BTreeSet::new();
    for project in tables.projects.values() {
        let Some(placement) = &project.placement else { continue };
        if project.allocations.is_empty() {
            report.note(
                &format!("project {}", project.id),
                "ports",
                "one at least".to_owned(),
                "none".to_owned(),
            );
        }
        held.extend(
            project.allocations.iter().map(|a| (placement.server_handle.clone(), a.protocol, a.port)),
        );
    }
    let mut rows = BTreeSet::new();
    for (key, standing) in &tables.ports {
        if *standing == PortStanding::Held {
            rows.insert(key.clone());
        }
    }
    for (handle, protocol, port) in held.symmetric_difference(&rows) {
        let key = (handle.clone(), *protocol, *port);
        let subject = format!("port {port}/{protocol} of server {handle}");
        report.check(&subject, "held, by the projects", &held.contains(&key), &rows.contains(&key));
    }
}

/// Folds the log from its beginning, and makes its decisions again.
async fn replay(
    conn: &mut PgConnection,
    pool: &pools::PoolState,
    context: &Context,
    report: &mut Report,
) -> Result<Replay, StoreError> {
    let mut replay = Replay::default();
    let mut operations = 0;
    while replay.fleet().sequence() < pool.last_sequence {
        let entries = events::list_with_grants_after(conn, replay.fleet().sequence(), PAGE).await?;
        if entries.is_empty() {
            report.check("log", "newest event", &pool.last_sequence, &replay.fleet().sequence());
            break;
        }
        for (entry, granted) in entries {
            operations += 1;
            if let Some(granted) = granted {
                let subject = format!("event {}", entry.first_sequence);
                let expected = Grant::of(&entry).ok_or_else(|| "nothing".to_owned());
                report.check(&subject, "granted, by the payload", &expected, &granted);
            }
            report.check("log", "next event", &(replay.fleet().sequence() + 1), &entry.first_sequence);
            match replay.take(&entry, context) {
                Again::NoDecision => {}
                Again::Same => report.decisions_same += 1,
                Again::Open => report.decisions_open += 1,
                Again::Differs { logged, decided } => {
                    let project = entry.project_id.as_ref().map_or("nobody", ProjectId::as_str);
                    let subject = format!("event {}", entry.first_sequence);
                    report.note(&subject, &format!("decision for {project}"), decided, logged);
                }
            }
        }
    }
    report.operations = Some(operations);
    Ok(replay)
}

/// The tables are what the log folds to.
fn check_fold(tables: &Tables, replay: &Replay, report: &mut Report) {
    let logged: BTreeMap<_, _> = replay.fleet().iter().map(|state| (&state.server.handle, state)).collect();
    for handle in logged.keys().copied().chain(tables.servers.keys()).collect::<BTreeSet<_>>() {
        check_server(handle, logged.get(handle).copied(), tables.servers.get(handle), report);
    }
    for id in replay.projects().keys().chain(tables.projects.keys()).collect::<BTreeSet<_>>() {
        check_project(id, replay.projects().get(id), tables.projects.get(id), report);
    }
    let present = replay.fleet().line().waiters().filter(|waiter| waiter.is_present());
    let waiting: BTreeSet<_> = present.map(|waiter| waiter.project_id.clone()).collect();
    report.check("line", "who waits, by the log", &waiting, &tables.waiting);
}

fn check_server(
    handle: &ServerHandle,
    logged: Option<&ServerState>,
    found: Option<&ServerState>,
    report: &mut Report,
) {
    let subject = format!("server {handle}");
    let (Some(logged), Some(found)) = (logged, found) else {
        report.check(&subject, "registered, by the log", &logged.is_some(), &found.is_some());
        return;
    };
    for field in logged.server.changed_fields(&found.server) {
        let of = |state: &ServerState| {
            let server = serde_json::to_value(&state.server).unwrap_or_default();
            server.get(field).map_or_else(|| "unset".to_owned(), ToString::to_string)
        };
        report.note(&subject, &format!("{field}, by the log"), of(logged), of(found));
    }
    report.check_amounts(&subject, "reserved, by the log", logged.reserved, found.reserved);
    report.check(&subject, "placement_count, by the log", &logged.placement_count, &found.placement_count);
}

fn check_project(id: &ProjectId, logged: Option<&Project>, found: Option<&Project>, report: &mut Report) {
    let subject = format!("project {id}");
    let placement = |project: Option<&Project>| project.and_then(|project| project.placement.clone());
    let (Some(logged_at), Some(found_at)) = (placement(logged), placement(found)) else {
        let placed = |project| placement(project).is_some();
        report.check(&subject, "placed, by the log", &placed(logged), &placed(found));
        return;
    };
    report.check(
        &subject,
        "server, by the log",
        logged_at.server_handle.as_str(),
        found_at.server_handle.as_str(),
    );
    report.check_amounts(&subject, "reserved, by the log", logged_at.reserved, found_at.reserved);
    report.check(&subject, "revision, by the log", &logged_at.revision, &found_at.revision);
    report.check(&subject, "selector, by the log", &logged_at.selector, &found_at.selector);
    report.check(&subject, "start_port, by the log", &logged_at.start_port, &found_at.start_port);
    report.check(&subject, "ports, by the log", &ports_of(logged), &ports_of(found));
}

fn ports_of(project: Option<&Project>) -> Vec<String> {
    let allocations = project.map(|project| project.allocations.as_slice()).unwrap_or_default();
    let told = |Allocation { module, port, protocol, .. }: &Allocation| format!("{module} {port}/{protocol}");
    allocations.iter().map(told).collect()
}
