//! The embedded Postgres against the real one: what it survives, and what it says when it cannot.

use std::env;
use std::fs::{self, OpenOptions, Permissions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use resource_allocator::postgres::{Cluster, DATABASE, Error, Options, running_url};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

/// Far above what anything here takes: a bound for a hang, not an expectation.
const PATIENCE: Duration = Duration::from_mins(2);

/// Set for the process that [`sacrifice`] starts.
const SACRIFICE: &str = "RESOURCE_ALLOCATOR_TEST_SACRIFICE";

/// A temporary folder that the user whom root's Postgres runs as may enter.
fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("ra-pg-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

fn options(data_dir: impl Into<PathBuf>) -> Options {
    // Nothing here cuts the power, so the flushing is saved.
    Options { settings: vec![("fsync".to_owned(), "off".to_owned())], ..Options::new(data_dir) }
}

fn start(data_dir: &Path) -> Cluster {
    Cluster::start(options(data_dir)).unwrap()
}

fn refusal(data_dir: &Path) -> Error {
    Cluster::start(options(data_dir)).unwrap_err()
}

fn try_ask(cluster: &Cluster, sql: &'static str) -> Result<String, sqlx::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = PgConnectOptions::from_str(&cluster.url(DATABASE)).unwrap().connect().await?;
        let answer = sqlx::query_scalar(sql).fetch_optional(&mut connection).await?;
        connection.close().await?;
        Ok(answer.unwrap_or_default())
    })
}

fn ask(cluster: &Cluster, sql: &'static str) -> String {
    try_ask(cluster, sql).unwrap()
}

/// Asks until there is an answer, while Postgres is being started again.
fn ask_until_answered(cluster: &Cluster, sql: &'static str) -> String {
    let begin = Instant::now();
    loop {
        match try_ask(cluster, sql) {
            Ok(answer) => return answer,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "no answer: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn keep_a_row(cluster: &Cluster) {
    ask(cluster, "CREATE TABLE kept (word text)");
    ask(cluster, "INSERT INTO kept VALUES ('still here')");
}

const READ_THE_ROW: &str = "SELECT word FROM kept";

/// Works for a while without ever looking whether its postmaster lives.
const WORK: &str = "SELECT count(*)::text FROM generate_series(1, 5000) AS a, generate_series(1, 5000) AS b";
const IS_WORKING: &str =
    "SELECT 'yes'::text FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%AS a%AS b'";

fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("postgres/postmaster.pid")
}

fn postmaster(data_dir: &Path) -> Pid {
    let text = fs::read_to_string(pid_file(data_dir)).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap()
}

/// A process that is ended with the test, by its pid.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a service, in a process of its own, that keeps a row and waits to be killed.
fn sacrifice(data_dir: &Path) -> Child {
    // The path of this module in the test binary, without the binary's name.
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut service = Command::new(std::env::current_exe().unwrap());
    service.args(["--ignored", "--exact"]).arg(format!("{module}::the_service_that_another_test_kills"));
    service.env(SACRIFICE, data_dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn data_is_kept_from_one_start_to_the_next() {
    let folder = folder();
    let data_dir = folder.path().join("made/for/us");
    let cluster = Cluster::start(Options::new(&data_dir)).unwrap();
    keep_a_row(&cluster);
    cluster.stop().unwrap();
    assert!(!pid_file(&data_dir).exists(), "stopped in good order");
    let cluster = start(&data_dir);
    assert_eq!(ask(&cluster, READ_THE_ROW), "still here");
}

#[test]
fn a_new_cluster_is_private_durable_and_ours() {
    let folder = folder();
    let cluster = Cluster::start(Options::new(folder.path())).unwrap();
    assert_eq!(ask(&cluster, "SELECT current_user::text"), "resource_allocator");
    for (question, answer) in [
        ("SHOW listen_addresses", ""),
        ("SHOW fsync", "on"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW max_connections", "200"),
        ("SHOW server_encoding", "UTF8"),
        ("SHOW wal_segment_size", "4MB"),
        ("SELECT datcollate::text FROM pg_database WHERE datname = current_database()", "C"),
        ("SHOW jit", "off"),
    ] {
        assert_eq!(ask(&cluster, question), answer, "{question}");
    }
    assert_eq!(fs::metadata(cluster.socket_dir()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(cluster.data_dir().join("postgres")).unwrap().mode() & 0o777, 0o700);
    assert!(cluster.bin_dir().join("postgres").exists());
    assert!(cluster.data_dir().join("postgres.log").exists());
}

#[test]
fn what_an_operator_sets_by_alter_system_is_kept() {
    let folder = folder();
    let cluster = start(folder.path());
    ask(&cluster, "ALTER SYSTEM SET max_connections = 77");
    cluster.stop().unwrap();
    assert_eq!(ask(&start(folder.path()), "SHOW max_connections"), "77");
}

#[test]
fn a_folder_that_only_we_may_enter_is_opened_when_it_is_empty() {
    let folder = folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    assert_eq!(ask(&start(folder.path()), "SELECT 'in'::text"), "in");
}

#[test]
fn a_postmaster_that_is_killed_is_started_again_at_the_same_url() {
    let folder = folder();
    let cluster = start(folder.path());
    keep_a_row(&cluster);
    for _ in 0..3 {
        let killed = postmaster(folder.path());
        kill_process(killed, Signal::KILL).unwrap();
        assert_eq!(ask_until_answered(&cluster, READ_THE_ROW), "still here");
    }
    cluster.stop().unwrap();
    assert!(!pid_file(folder.path()).exists());
}

#[test]
fn a_postmaster_that_is_killed_under_a_working_backend_is_started_again() {
    let folder = folder();
    let cluster = start(folder.path());
    keep_a_row(&cluster);
    thread::scope(|scope| {
        let _ends_as_it_may = scope.spawn(|| try_ask(&cluster, WORK));
        while ask(&cluster, IS_WORKING) != "yes" {
            thread::sleep(Duration::from_millis(20));
        }
        kill_process(postmaster(folder.path()), Signal::KILL).unwrap();
        assert_eq!(ask_until_answered(&cluster, READ_THE_ROW), "still here");
    });
}

#[test]
fn a_service_that_is_killed_leaves_a_folder_that_starts_again() {
    let folder = folder();
    let ready = folder.path().join("ready");
    let data_dir = folder.path().join("data");
    let mut service = Ended(sacrifice(&data_dir));
    let begin = Instant::now();
    while !ready.exists() {
        assert!(
            begin.elapsed() < PATIENCE && service.0.try_wait().unwrap().is_none(),
            "the service is not ready"
        );
        thread::sleep(Duration::from_millis(20));
    }
    drop(service);
    // At once: the kernel has only just sent the orphan its signal.
    assert_eq!(ask(&start(&data_dir), READ_THE_ROW), "still here");
}

/// The process that [`sacrifice`] starts.
#[test]
#[ignore = "no test: another one starts it, and kills it"]
fn the_service_that_another_test_kills() {
    let data_dir = PathBuf::from(std::env::var_os(SACRIFICE).expect("the test that starts it says where"));
    let cluster = start(&data_dir);
    keep_a_row(&cluster);
    fs::write(data_dir.with_file_name("ready"), "").unwrap();
    thread::sleep(PATIENCE);
}

#[test]
fn a_postgres_that_was_left_running_is_stopped_and_replaced() {
    let folder = folder();
    let cluster = start(folder.path());
    keep_a_row(&cluster);
    let postgres = cluster.bin_dir().join("postgres");
    cluster.stop().unwrap();
    let data = folder.path().join("postgres");
    let owner = fs::metadata(&data).unwrap();
    let mut orphan = Command::new(postgres);
    let socket_dir = folder.path().join("socket");
    orphan.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-k"]).arg(socket_dir);
    if geteuid().is_root() {
        orphan.uid(owner.uid()).gid(owner.gid());
    }
    let mut orphan =
        Ended(orphan.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let begin = Instant::now();
    while !fs::read_to_string(pid_file(folder.path())).is_ok_and(|text| text.contains("ready")) {
        assert!(begin.elapsed() < PATIENCE, "the orphan is not ready");
        thread::sleep(Duration::from_millis(20));
    }
    let cluster = start(folder.path());
    assert!(orphan.0.try_wait().unwrap().is_some_and(|status| status.success()), "stopped in good order");
    assert_eq!(ask(&cluster, READ_THE_ROW), "still here");
}

#[test]
fn a_pid_file_of_a_zombie_of_a_stranger_or_of_nobody_is_no_obstacle() {
    let folder = folder();
    start(folder.path()).stop().unwrap();
    let zombie = Ended(Command::new("true").spawn().unwrap());
    let stranger = Ended(Command::new("sleep").arg("600").spawn().unwrap());
    let dead = {
        let mut dead = Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        dead.id()
    };
    let rest =
        format!("\n{}\n1700000000\n5432\n/nowhere\n\n  5432001 999999\nready   \n", folder.path().display());
    for text in [
        format!("{}{rest}", zombie.0.id()),
        format!("{}{rest}", stranger.0.id()),
        format!("{}{rest}", std::process::id()),
        format!("{dead}{rest}"),
        String::new(),
        "\0\0\0\0".to_owned(),
    ] {
        fs::write(pid_file(folder.path()), &text).unwrap();
        assert_eq!(ask(&start(folder.path()), "SELECT 'up'::text"), "up", "{text:?}");
    }
}

#[test]
fn a_second_service_on_the_folder_is_told_who_has_it() {
    let folder = folder();
    let cluster = start(folder.path());
    let error = refusal(folder.path());
    assert!(matches!(error, Error::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{error:?}");
    let line = error.to_string();
    assert!(line.contains(&*folder.path().to_string_lossy()), "{line}");
    assert_eq!(ask(&cluster, "SELECT 'unharmed'::text"), "unharmed");
    cluster.stop().unwrap();
    start(folder.path());
}

#[test]
fn data_of_another_major_version_is_left_alone() {
    let folder = folder();
    let cluster = folder.path().join("postgres");
    fs::create_dir(&cluster).unwrap();
    fs::write(cluster.join("PG_VERSION"), "9\n").unwrap();
    let error = refusal(folder.path());
    assert!(matches!(&error, Error::OtherVersion { wanted: 9, found, .. } if !found.is_empty()), "{error:?}");
    assert_eq!(fs::read_dir(&cluster).unwrap().count(), 1);
}

#[test]
fn a_folder_of_other_files_is_left_alone() {
    let folder = folder();
    fs::create_dir(folder.path().join("postgres")).unwrap();
    fs::write(folder.path().join("postgres/notes"), "mine").unwrap();
    let error = refusal(folder.path());
    assert!(matches!(error, Error::NotACluster { .. }), "{error:?}");
}

#[test]
fn a_folder_without_binaries_is_named() {
    let folder = folder();
    let without = folder.path().join("empty");
    fs::create_dir(&without).unwrap();
    let options = Options { bin_dir: Some(without.clone()), ..options(folder.path().join("data")) };
    let error = Cluster::start(options).unwrap_err();
    assert!(matches!(&error, Error::NotABinariesFolder { folder, .. } if *folder == without), "{error:?}");
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = refusal(&file.join("data"));
    assert!(matches!(&error, Error::NotWritable { .. }), "{error:?}");
    assert!(error.to_string().contains(&*file.to_string_lossy()), "{error}");
}

/// Only root drops privileges; for others there is nothing to see here.
#[test]
fn a_parent_that_only_root_may_enter_is_named() {
    let folder = folder();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let data_dir = closed.join("further/data");
    if geteuid().is_root() {
        let error = refusal(&data_dir);
        assert!(matches!(&error, Error::ClosedFolder { folder, .. } if *folder == closed), "{error:?}");
        assert_eq!(fs::metadata(&closed).unwrap().mode() & 0o777, 0o700, "what is not ours stays closed");
    } else {
        start(&data_dir);
    }
}

#[test]
fn a_path_too_long_for_a_socket_gets_its_socket_elsewhere() {
    let folder = folder();
    let data_dir = folder.path().join("long-".repeat(20)).join("and-longer-".repeat(10));
    let cluster = start(&data_dir);
    let socket_dir = cluster.socket_dir().to_owned();
    assert!(!socket_dir.starts_with(folder.path()));
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);
    assert_eq!(ask(&cluster, "SELECT 'reached'::text"), "reached");
    cluster.stop().unwrap();
    assert!(!socket_dir.exists(), "removed with the cluster");
}

#[test]
fn a_socket_that_others_may_have_put_there_is_not_taken_for_ours() {
    // A cluster that nobody runs, whose socket is looked for in the temporary folder too.
    let data_dir = folder();
    fs::create_dir(data_dir.path().join("postgres")).unwrap();
    let mut hasher = DefaultHasher::new();
    data_dir.path().hash(&mut hasher);
    let planted = env::temp_dir().join(format!("resource-allocator-{:016x}", hasher.finish()));
    fs::create_dir(&planted).unwrap();
    let listener = UnixListener::bind(planted.join(".s.PGSQL.5432")).unwrap();
    let found = || running_url(data_dir.path(), DATABASE).is_some();

    let by_mode = [0o700, 0o710, 0o755, 0o777].map(|mode| {
        fs::set_permissions(&planted, Permissions::from_mode(mode)).unwrap();
        (mode, found())
    });
    fs::set_permissions(&planted, Permissions::from_mode(0o700)).unwrap();
    let elsewhere = data_dir.path().join("elsewhere");
    fs::rename(&planted, &elsewhere).unwrap();
    symlink(&elsewhere, &planted).unwrap();
    let by_link = found();
    fs::remove_file(&planted).unwrap();
    fs::rename(&elsewhere, &planted).unwrap();
    // Root alone can give something away.
    let of_another = geteuid().is_root() && {
        chown(&planted, Some(54321), None).unwrap();
        found()
    };
    drop(listener);
    fs::remove_dir_all(&planted).unwrap();

    assert_eq!(by_mode, [(0o700, true), (0o710, false), (0o755, false), (0o777, false)]);
    assert!(!by_link, "a link");
    assert!(!of_another, "another user's");
}

#[test]
fn a_path_with_odd_letters_works() {
    let folder = folder();
    let cluster = start(&folder.path().join("a b, \"c\" 100%"));
    assert_eq!(ask(&cluster, "SELECT 'reached'::text"), "reached");
}

#[test]
fn a_truncated_control_file_is_told_from_the_log() {
    let folder = folder();
    start(folder.path()).stop().unwrap();
    let control = folder.path().join("postgres/global/pg_control");
    OpenOptions::new().write(true).open(control).unwrap().set_len(100).unwrap();
    let error = refusal(folder.path());
    assert!(
        matches!(&error, Error::StartFailed { reason, .. } if reason.contains("pg_control")),
        "{error:?}"
    );
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn a_setting_that_postgres_refuses_is_told_from_the_log() {
    let folder = folder();
    let settings = vec![("shared_buffers".to_owned(), "much".to_owned())];
    let error = Cluster::start(Options { settings, ..Options::new(folder.path()) }).unwrap_err();
    assert!(
        matches!(&error, Error::StartFailed { reason, .. } if reason.contains("shared_buffers")),
        "{error:?}"
    );
}

#[test]
fn a_cluster_that_was_made_half_way_is_made_again() {
    let folder = folder();
    let side = folder.path().join("postgres.new.0123");
    fs::create_dir_all(side.join("base/1")).unwrap();
    fs::write(side.join("PG_VERSION"), "15\n").unwrap();
    let cluster = start(folder.path());
    assert_eq!(ask(&cluster, "SELECT 'whole'::text"), "whole");
    assert!(!side.exists());
}

#[test]
fn a_service_that_is_killed_while_it_makes_the_cluster_is_no_obstacle() {
    let folder = folder();
    let data_dir = folder.path().join("data");
    let is_made_half_way = || {
        let entries = fs::read_dir(&data_dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|path| path.join("PG_VERSION").exists())
    };
    let mut service = Ended(sacrifice(&data_dir));
    let begin = Instant::now();
    while !is_made_half_way() {
        assert!(
            begin.elapsed() < PATIENCE && service.0.try_wait().unwrap().is_none(),
            "no cluster is being made"
        );
    }
    drop(service);
    // At once: the killed service's `initdb` may still be writing.
    assert_eq!(ask(&start(&data_dir), "SELECT 'whole'::text"), "whole");
}

#[test]
fn a_cluster_that_is_dropped_stops() {
    let folder = folder();
    drop(start(folder.path()));
    assert!(!pid_file(folder.path()).exists());
}
