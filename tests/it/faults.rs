//! The real binary on its private Postgres under load, and with either of them killed in the middle of it: what was answered
//! stands, once, and every invariant holds.

use std::{
    collections::{BTreeMap, HashMap},
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use resource_allocator::proto::v1::{
    self, EnsureOutcome, resource_allocator_client::ResourceAllocatorClient,
};
use rustix::process::Signal;
use sqlx::{Connection as _, PgConnection};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{
    Client,
    process::{PATIENCE, Process, binary, folder, signal},
    server,
};

const CALLERS: usize = 64;
const SERVERS: usize = 5;

/// Room for a hundred projects or so on each.
async fn register_servers(client: &mut Client) {
    for number in 0..SERVERS {
        let capacity =
            v1::Resources { cpu_millis: Some(64_000), ram_mb: Some(80_000), disk_mb: Some(1_000_000) };
        client
            .register(v1::Server {
                address: format!("192.0.2.{number}"),
                capacity: Some(capacity),
                ..server(&format!("web-{number}"))
            })
            .await;
    }
}

fn request(project_id: &str) -> v1::EnsureAllocationRequest {
    let module = |name: &str| v1::ModuleSpec { name: name.to_owned(), ..Default::default() };
    v1::EnsureAllocationRequest {
        project_id: project_id.to_owned(),
        modules: vec![module("backend"), module("frontend")],
        ..Default::default()
    }
}

/// Where a project is, by what a caller was answered.
type Answered = BTreeMap<String, (String, Vec<(String, u32)>)>;

fn place(answer: &v1::EnsureAllocationResponse) -> (String, Vec<(String, u32)>) {
    let ports = answer.allocations.iter().map(|a| (a.module.clone(), a.port)).collect();
    (answer.placement.as_ref().unwrap().server_handle.clone(), ports)
}

/// Connections that are made anew when they break.
fn channels(endpoint: &str) -> Vec<ResourceAllocatorClient<Channel>> {
    let endpoint = Channel::from_shared(endpoint.to_owned()).unwrap();
    (0..4).map(|_| ResourceAllocatorClient::new(endpoint.clone().connect_lazy())).collect()
}

/// Which errors a caller takes for "repeat the call".
#[derive(Clone, Copy, PartialEq)]
enum Weather {
    /// None.
    Fair,
    /// Those of a service that lives while its database dies: typed, and nothing worse than UNAVAILABLE.
    DatabaseDies,
    /// Those of a connection that breaks as well.
    ServiceDies,
}

impl Weather {
    fn check(self, refused: &Status) {
        match self {
            Self::Fair => panic!("refused: {refused:?}"),
            Self::DatabaseDies => {
                assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
                let info =
                    refused.get_details_error_info().unwrap_or_else(|| panic!("no reason: {refused:?}"));
                assert_eq!(info.reason, "DATABASE_UNAVAILABLE");
                assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
            }
            Self::ServiceDies => {
                let info = refused.get_details_error_info();
                let reason = info.as_ref().map_or("", |info| info.reason.as_str());
                assert!(matches!(reason, "" | "DATABASE_UNAVAILABLE" | "SHUTTING_DOWN"), "{refused:?}");
                let broken = matches!(
                    refused.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                );
                assert!(broken, "{refused:?}");
            }
        }
    }
}

/// Sixty-four callers that ensure these projects between them, each repeating a call until it is answered.
struct Load {
    callers: Vec<tokio::task::JoinHandle<Answered>>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    fn start(endpoint: &str, projects: usize, weather: Weather) -> Self {
        let channels = channels(endpoint);
        let answered = Arc::new(AtomicUsize::new(0));
        let callers = (0..CALLERS).map(|caller| {
            let (mut client, answered) = (channels[caller % channels.len()].clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut places = Answered::new();
                for number in (caller..projects).step_by(CALLERS) {
                    let project_id = format!("project-{number}");
                    let begin = Instant::now();
                    let answer = loop {
                        match client.ensure_allocation(request(&project_id)).await {
                            Ok(answer) => break answer.into_inner(),
                            Err(refused) => weather.check(&refused),
                        }
                        assert!(begin.elapsed() < PATIENCE, "{project_id} was never answered");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    };
                    places.insert(project_id, place(&answer));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                places
            })
        });
        Self { callers: callers.collect(), answered }
    }

    /// Waits until so many calls were answered.
    async fn reach(&self, count: usize) {
        while self.answered.load(Ordering::Relaxed) < count {
            assert!(
                !self.callers.iter().all(tokio::task::JoinHandle::is_finished),
                "the load ended before {count}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn end(self) -> Answered {
        let mut all = Answered::new();
        for caller in self.callers {
            all.extend(caller.await.unwrap());
        }
        all
    }
}

/// Every project again: the same answers, and nothing new.
async fn repeat(endpoint: &str, answered: &Answered) {
    let mut channels = channels(endpoint);
    for (project_id, expected) in answered {
        let answer = channels[0].ensure_allocation(request(project_id)).await.unwrap().into_inner();
        assert_eq!((answer.outcome(), &place(&answer)), (EnsureOutcome::Unchanged, expected), "{project_id}");
    }
}

async fn rows<T>(conn: &mut PgConnection, sql: &'static str) -> Vec<T>
where
    T: for<'row> sqlx::FromRow<'row, sqlx::postgres::PgRow> + Send + Unpin,
{
    sqlx::query_as(sql).fetch_all(conn).await.unwrap()
}

/// What must hold whatever happened; `answered` is what callers hold.
async fn check_invariants(sql_url: &str, answered: &Answered) {
    let conn = &mut PgConnection::connect(sql_url).await.unwrap();
    // What is in the tables is what was answered: nothing lost, nothing left over.
    let placements: Vec<(String, String)> =
        rows(conn, "SELECT project_id, server_handle FROM placements ORDER BY project_id").await;
    let expected: BTreeMap<_, _> =
        answered.iter().map(|(id, (handle, _))| (id.clone(), handle.clone())).collect();
    assert_eq!(placements.into_iter().collect::<BTreeMap<_, _>>(), expected);
    let held: Vec<(String, String, String, i32)> = rows(
        conn,
        "SELECT project_id, module, server_handle, port FROM port_allocations WHERE project_id IS NOT NULL \
         ORDER BY project_id, module",
    )
    .await;
    let expected: Vec<_> = answered
        .iter()
        .flat_map(|(id, (handle, ports))| {
            ports.iter().map(move |(module, port)| {
                (id.clone(), module.clone(), handle.clone(), i32::try_from(*port).unwrap())
            })
        })
        .collect();
    assert_eq!(held, expected);
    // No port twice. The schema says so too; this does not trust it.
    let mut owners = HashMap::new();
    for (project, module, handle, port) in held {
        let before = owners.insert((handle, port), (project, module));
        assert_eq!(before, None);
    }
    let broken = |what, rows: Vec<(String,)>| assert!(rows.is_empty(), "{what}: {rows:?}");
    broken(
        "sums that are not those of the rows",
        rows(
            conn,
            "SELECT s.handle FROM servers s LEFT JOIN placements p ON p.server_handle = s.handle GROUP BY s.handle \
             HAVING (s.placement_count, s.reserved_ram_mb, s.reserved_disk_mb, s.reserved_cpu_millis) IS DISTINCT FROM \
             (count(p.project_id), coalesce(sum(p.reserved_ram_mb), 0), coalesce(sum(p.reserved_disk_mb), 0), \
              coalesce(sum(p.reserved_cpu_millis), 0))",
        )
        .await,
    );
    broken(
        "servers that were sold beyond their capacity",
        rows(
            conn,
            "SELECT handle FROM servers WHERE reserved_ram_mb > capacity_ram_mb - headroom_ram_mb \
             OR reserved_disk_mb > capacity_disk_mb - headroom_disk_mb \
             OR reserved_cpu_millis > capacity_cpu_millis - headroom_cpu_millis",
        )
        .await,
    );
    broken(
        "gaps in the log",
        rows(
            conn,
            "SELECT first_sequence::text FROM (SELECT first_sequence, lag(last_sequence, 1, 0::bigint) \
             OVER (ORDER BY first_sequence) AS before FROM allocation_events) AS log WHERE first_sequence <> before + 1",
        )
        .await,
    );
    broken(
        "a counter that is not the log's",
        rows(
            conn,
            "SELECT last_sequence::text FROM pools \
             WHERE last_sequence <> coalesce((SELECT max(last_sequence) FROM allocation_events), 0)",
        )
        .await,
    );
    // Each project was placed by exactly one operation.
    broken(
        "projects that were placed more than once",
        rows(
            conn,
            "SELECT project_id FROM allocation_events WHERE kind = 'ensured' GROUP BY project_id HAVING count(*) > 1",
        )
        .await,
    );
}

/// The log as a stream, which must tell the same.
async fn check_stream(endpoint: &str, answered: &Answered) {
    let mut client = Client::connect(endpoint).await;
    let request = v1::WatchAllocationsRequest { from_beginning: true, ..Default::default() };
    let mut stream = client.allocator.watch_allocations(request).await.unwrap().into_inner();
    let mut told = Answered::new();
    let mut bookmarks = 0;
    let mut sequence = 0;
    while bookmarks < 2 {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        match message.payload.unwrap() {
            v1::watch_allocations_response::Payload::Bookmark(_) => bookmarks += 1,
            v1::watch_allocations_response::Payload::Event(event) => {
                sequence += 1;
                assert_eq!(event.sequence, sequence);
                if let Some(v1::allocation_event::Detail::PortAllocated(allocated)) = event.detail {
                    let allocation = allocated.allocation.unwrap();
                    let entry = told.entry(allocation.project_id).or_default();
                    entry.0 = allocation.server_handle;
                    entry.1.push((allocation.module, allocation.port));
                }
            }
        }
    }
    assert_eq!(&told, answered);
}

async fn start(data_dir: &Path) -> Process {
    let process = blocking(data_dir, "127.0.0.1:0").await;
    register_servers(&mut Client::connect(&process.endpoint()).await).await;
    process
}

/// Starting waits for the process, which must not hold the callers up.
async fn blocking(data_dir: &Path, listen: &str) -> Process {
    let (data_dir, listen) = (data_dir.to_owned(), listen.to_owned());
    tokio::task::spawn_blocking(move || Process::start_in_at(&data_dir, &listen)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn l15_many_callers_at_once_meet_no_conflict() {
    let folder = folder();
    let service = start(folder.path()).await;
    let answered = Load::start(&service.endpoint(), 500, Weather::Fair).end().await;
    assert_eq!(answered.len(), 500);
    check_invariants(&service.sql_url(), &answered).await;
    check_stream(&service.endpoint(), &answered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l46_many_callers_for_one_project_are_one_success_told_many_times() {
    let folder = folder();
    let service = start(folder.path()).await;
    for round in 0..5 {
        let project_id = format!("wanted-{round}");
        let channels = channels(&service.endpoint());
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (mut client, request) = (channels[caller % channels.len()].clone(), request(&project_id));
                tokio::spawn(async move { client.ensure_allocation(request).await.unwrap().into_inner() })
            })
            .collect();
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(caller.await.unwrap());
        }
        let created = answers.iter().filter(|answer| answer.outcome() == EnsureOutcome::Created).count();
        let unchanged = answers.iter().filter(|answer| answer.outcome() == EnsureOutcome::Unchanged).count();
        assert_eq!((created, unchanged), (1, CALLERS - 1));
        assert!(answers.iter().all(|answer| answer.allocations == answers[0].allocations));
    }
    let conn = &mut PgConnection::connect(&service.sql_url()).await.unwrap();
    let counts: Vec<(i64, i64)> =
        rows(conn, "SELECT (SELECT count(*) FROM placements), (SELECT count(*) FROM port_allocations)").await;
    assert_eq!(counts, [(5, 10)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_killed_under_load_has_lost_and_doubled_nothing() {
    let folder = folder();
    let mut service = start(folder.path()).await;
    let load = Load::start(&service.endpoint(), 240, Weather::ServiceDies);
    for answered in [40, 130] {
        load.reach(answered).await;
        service.kill();
        service = blocking(folder.path(), &service.address).await;
    }
    let answered = load.end().await;
    assert_eq!(answered.len(), 240);
    repeat(&service.endpoint(), &answered).await;
    check_invariants(&service.sql_url(), &answered).await;
    check_stream(&service.endpoint(), &answered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_killed_under_load_is_unavailable_at_worst() {
    let folder = folder();
    let service = start(folder.path()).await;
    let load = Load::start(&service.endpoint(), 240, Weather::DatabaseDies);
    let mut killed = Vec::new();
    for answered in [40, 130] {
        load.reach(answered).await;
        let postmaster = service.postmaster().unwrap();
        signal(postmaster, Signal::KILL);
        killed.push(postmaster);
    }
    let answered = load.end().await;
    assert_eq!(answered.len(), 240);
    assert!(!killed.contains(&service.postmaster().unwrap()), "another one runs");
    repeat(&service.endpoint(), &answered).await;
    check_invariants(&service.sql_url(), &answered).await;
    check_stream(&service.endpoint(), &answered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_killed_at_once_under_load_have_lost_and_doubled_nothing() {
    let folder = folder();
    let mut service = start(folder.path()).await;
    let load = Load::start(&service.endpoint(), 200, Weather::ServiceDies);
    load.reach(60).await;
    let postmaster = service.postmaster().unwrap();
    service.signal(Signal::KILL);
    signal(postmaster, Signal::KILL);
    service.wait();
    service = blocking(folder.path(), &service.address).await;
    let answered = load.end().await;
    repeat(&service.endpoint(), &answered).await;
    check_invariants(&service.sql_url(), &answered).await;
    check_stream(&service.endpoint(), &answered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_told_to_stop_under_load_ends_well_and_its_data_survives() {
    let folder = folder();
    let mut service = start(folder.path()).await;
    let load = Load::start(&service.endpoint(), 200, Weather::ServiceDies);
    load.reach(40).await;
    service.signal(Signal::TERM);
    let status = tokio::task::spawn_blocking(move || (service.wait(), service)).await.unwrap();
    let (status, stopped) = status;
    assert_eq!(status.code(), Some(0), "{}", stopped.said().text());
    assert!(stopped.postmaster().is_none(), "Postgres was left running");
    let service = blocking(folder.path(), &stopped.address).await;
    let answered = load.end().await;
    repeat(&service.endpoint(), &answered).await;
    check_invariants(&service.sql_url(), &answered).await;
}

#[test]
fn a_stop_is_told_by_either_signal_and_needs_no_load() {
    let folder = folder();
    for signal in [Signal::TERM, Signal::INT] {
        let mut service = Process::start_in(folder.path());
        service.signal(signal);
        assert_eq!(service.wait().code(), Some(0), "{}", service.said().text());
        assert!(service.postmaster().is_none(), "Postgres was left running");
    }
}

#[test]
fn a_second_service_on_the_same_data_folder_is_refused_by_name() {
    let folder = folder();
    let service = Process::start_in(folder.path());
    let data_dir = folder.path().to_str().unwrap();
    let output =
        binary().args(["serve", "--listen", "127.0.0.1:0", "--data-dir", data_dir]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains(data_dir) && errors[0].contains("in use"), "{said}");
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
    // The first one is none the worse for it.
    let health = binary().args(["health", "--endpoint", &service.endpoint()]).output().unwrap();
    assert_eq!(health.status.code(), Some(0));
}

#[test]
fn a_port_that_is_taken_leaves_no_postgres_behind() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data_dir = folder.path().to_str().unwrap();
    let output = binary().args(["serve", "--listen", &address, "--data-dir", data_dir]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().any(|line| line.starts_with("error: ") && line.contains(&address)), "{said}");
    assert!(!folder.path().join("postgres/postmaster.pid").exists(), "Postgres was left running");
}
