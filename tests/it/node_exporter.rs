//! `servers sync --from node-exporter`: the real binary against a live service and a real node_exporter, and against answers
//! that no exporter gives.

use std::{fs, process::Stdio};

use resource_allocator::proto::v1::{self, ServerStatus};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Client, TestDatabase, TestService,
    exporter::{Answer, NodeExporter, WebServer},
    inventory::{get, list, report, update},
    process::{Ended, Process, ProcessOptions, Said, binary, run, wait_until},
};

/// A command that has ended.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A live service, and `servers sync` of the source `rack` against it.
struct Bench {
    service: TestService,
    endpoint: String,
}

impl Bench {
    async fn start() -> Self {
        let service = TestService::start().await;
        let endpoint = format!("http://{}", service.running.address);
        Self { service, endpoint }
    }

    fn client(&mut self) -> &mut Client {
        &mut self.service.client
    }

    fn sync(&self, urls: &[&str], flags: &[&str]) -> Done {
        let fixed =
            ["servers", "sync", "--endpoint", &self.endpoint, "--source", "rack", "--from", "node-exporter"];
        let output = run(&[&fixed[..], urls, flags].concat());
        let done = Done {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!done.stderr.contains("panicked"), "{done:?}");
        done
    }

    #[track_caller]
    fn synced(&self, urls: &[&str], flags: &[&str]) -> Done {
        let done = self.sync(urls, flags);
        assert_eq!(done.code, Some(0), "{done:?}");
        done
    }

    /// The handles of all servers.
    async fn handles(&mut self) -> Vec<String> {
        list(self.client(), v1::ListServersRequest::default()).await.unwrap().0
    }

    async fn newest_event(&self) -> i64 {
        sqlx::query_scalar("SELECT last_sequence FROM pools")
            .fetch_one(&self.service.database.sql)
            .await
            .unwrap()
    }
}

/// A sync that goes on.
struct Observing {
    process: Ended,
    stdout: Said,
}

impl Observing {
    fn start(endpoint: &str, urls: &[&str], flags: &[&str]) -> Self {
        let mut command = binary();
        command.args([
            "servers",
            "sync",
            "--endpoint",
            endpoint,
            "--source",
            "rack",
            "--from",
            "node-exporter",
        ]);
        command.args(urls).args(["--interval", "200ms"]).args(flags).stdout(Stdio::piped());
        let mut process = Ended::start(command);
        let stdout = Said::read(process.child().stdout.take().unwrap());
        Self { process, stdout }
    }

    /// How often it printed a report of this server.
    fn reports(&self, handle: &str) -> usize {
        self.stdout.text().matches(&format!("  {handle}  in use: ")).count()
    }

    /// Waits for two reports of this server more: the first may have been under way already.
    fn wait_for_reports(&self, handle: &str) {
        let before = self.reports(handle);
        wait_until("a report", || self.reports(handle) >= before + 2);
    }

    fn said(&self, words: &str) -> usize {
        self.process.said.text().matches(words).count()
    }

    fn stop(mut self) -> String {
        crate::support::process::signal(self.process.pid(), Signal::INT);
        assert_eq!(self.process.wait().code(), Some(0), "{}", self.process.said.text());
        self.process.said.text()
    }
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// The figures of a host that there is not: 1000 MB of RAM with 400 in use, 2000 of disk with 500, one CPU.
fn host(name: &str) -> String {
    const MB: u64 = 1 << 20;
    format!(
        "# TYPE node_cpu_seconds_total counter\n\
         node_cpu_seconds_total{{cpu=\"0\",mode=\"idle\"}} 100\nnode_cpu_seconds_total{{cpu=\"0\",mode=\"user\"}} 7\n\
         node_filesystem_avail_bytes{{device=\"/dev/vda\",fstype=\"ext4\",mountpoint=\"/\"}} {}\n\
         node_filesystem_size_bytes{{device=\"/dev/vda\",fstype=\"ext4\",mountpoint=\"/\"}} {}\n\
         node_memory_MemAvailable_bytes {}\nnode_memory_MemTotal_bytes {}\n\
         node_uname_info{{machine=\"x86_64\",nodename=\"{name}\",sysname=\"Linux\"}} 1\n",
        1500 * MB,
        2000 * MB,
        600 * MB,
        1000 * MB,
    )
}

fn a_host(name: &str) -> WebServer {
    WebServer::start(Answer::text(&host(name)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_host_is_registered_with_what_it_has_and_reported_with_what_it_uses() {
    let mut bench = Bench::start().await;
    let exporter = NodeExporter::start();
    let url = exporter.url();

    let dry = bench.synced(&[&url], &["--dry-run"]);
    assert!(
        dry.stdout.ends_with(
            "1 created, 0 updated, 0 unchanged, 0 marked missing, 0 rejected; nothing was written\n"
        )
    );
    assert!(bench.handles().await.is_empty());
    assert_eq!(bench.newest_event().await, 0);

    let name = hostname();
    let synced = bench.synced(&[&url], &[]);
    assert!(synced.stdout.contains("1 created, 0 updated"), "{synced:?}");
    assert!(synced.stdout.contains(&format!("  {name}  in use: ")), "{synced:?}");
    assert!(synced.stderr.contains("note: a report counts for the service's --usage-max-age"), "{synced:?}");

    let server = get(bench.client(), &name).await.unwrap();
    assert_eq!(
        (server.address.as_str(), server.source.as_str(), server.external_id.as_str(), server.status()),
        ("127.0.0.1", "rack", exporter.address.as_str(), ServerStatus::Ready)
    );
    // As the kernel tells it without an exporter between.
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total_kb: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    let cpus = fs::read_to_string("/proc/stat").unwrap();
    let cpus = cpus.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let disk = rustix::fs::statvfs("/").unwrap();
    let capacity = server.capacity.unwrap();
    assert_eq!(capacity.ram_mb, Some(total_kb / 1024));
    assert_eq!(capacity.disk_mb, Some(disk.f_blocks * disk.f_frsize / (1 << 20)));
    assert_eq!(capacity.cpu_millis, Some(u32::try_from(cpus).unwrap() * 1000));
    // What is in use changes all the time.
    let usage = server.observed.unwrap().usage.unwrap();
    assert!((1..capacity.ram_mb()).contains(&usage.ram_mb()), "{usage:?}");
    assert!((1..=capacity.disk_mb()).contains(&usage.disk_mb()), "{usage:?}");
    assert!((0..=capacity.cpu_millis()).contains(&usage.cpu_millis.unwrap()), "{usage:?}");
    assert!(usage.listening_ports.is_empty());
    bench.service.client.ensure("shop", &[]).await.unwrap();

    let newest = bench.newest_event().await;
    let again = bench.synced(&[&format!("{url}/metrics")], &["--output", "json"]);
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&again["unchanged"], &again["results"][0]["handle"]), (&1.into(), &name.into()));
    assert_eq!(bench.newest_event().await, newest, "a sync that changes nothing tells the log nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_set_outlives_every_sync() {
    let mut bench = Bench::start().await;
    let exporter = NodeExporter::start();
    let (url, name) = (exporter.url(), hostname());
    bench.synced(&[&url], &[]);
    let set = v1::Server {
        handle: name.clone(),
        address: "203.0.113.5".to_owned(),
        status: ServerStatus::Maintenance.into(),
        managed: Some(false),
        labels: [("region".to_owned(), "eu".to_owned())].into(),
        headroom: Some(v1::Resources { ram_mb: Some(512), disk_mb: Some(7), cpu_millis: Some(100) }),
        port_range: Some(v1::PortRange { start: 2000, end: 3000 }),
        excluded_ports: vec![v1::PortRange { start: 2100, end: 2200 }],
        capacity: Some(v1::Resources { ram_mb: Some(5), disk_mb: Some(5), cpu_millis: Some(5) }),
        ..v1::Server::default()
    };
    let paths =
        ["address", "status", "managed", "labels", "headroom", "port_range", "excluded_ports", "capacity"];
    let before = update(bench.client(), set, &paths).await.unwrap();
    let synced = bench.synced(&[&url], &[]);
    let row: Vec<_> = synced.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, [name.as_str(), "UPDATED", "capacity"]);
    let after = get(bench.client(), &name).await.unwrap();
    assert!(after.capacity.unwrap().ram_mb() > 5);
    let but_for_what_was_read = |server: &v1::Server| v1::Server {
        capacity: None,
        observed: None,
        free: None,
        budget: None,
        etag: String::new(),
        update_time: None,
        ..server.clone()
    };
    assert_eq!(but_for_what_was_read(&after), but_for_what_was_read(&before));
    // Named on the command line, it is what is wanted.
    bench.synced(&[&url], &["--address", &format!("{name}=web-1.example.net")]);
    assert_eq!(get(bench.client(), &name).await.unwrap().address, "web-1.example.net");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_list_is_not_sent_l35() {
    let mut bench = Bench::start().await;
    let exporter = NodeExporter::start();
    let mut dead = NodeExporter::start();
    dead.kill();
    let told = bench.sync(&[&exporter.url(), &dead.url()], &[]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{told:?}");
    assert!(
        told.stderr
            .starts_with(&format!("error: {}/metrics cannot be reached: Connection refused", dead.url())),
        "{told:?}"
    );
    assert!(told.stderr.contains("the list is not whole, so nothing was written"), "{told:?}");
    assert!(bench.handles().await.is_empty());
    assert_eq!(bench.newest_event().await, 0);

    let told = bench.sync(&[&dead.url()], &["--output", "json", "--dry-run"]);
    let told: Value = serde_json::from_str(&told.stderr).unwrap();
    assert_eq!(told["exit_code"], 1);
    assert!(told["message"].as_str().unwrap().starts_with(&dead.url()), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_exporters_is_told_as_what_it_is() {
    let bench = Bench::start().await;
    let good = host("web-1");
    let text = "text/plain; version=0.0.4";
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        Answer::text(&good.replace(from, to))
    };
    let many_lines = "# a line that nobody reads\n".repeat(700_000);
    let cases = [
        (Answer::whole("404 Not Found", "text/plain", b"404 page not found"), "answered 404 Not Found"),
        (Answer::whole("301 Moved Permanently", text, b""), "answered 301 Moved Permanently"),
        (
            Answer::whole("200 OK", "text/html; charset=utf-8", b"<html></html>\n"),
            "answered with text/html, where text/plain is expected",
        ),
        (Answer::text("<html>\n</html>\n"), "tells no node_uname_info; is it a node_exporter on Linux?"),
        (Answer::text(""), "tells no node_uname_info"),
        (
            Answer::whole("200 OK", text, b"node_uname_info\xff\n"),
            "answered with bytes that are not UTF-8 text",
        ),
        (
            Answer::Bytes(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
            "cannot be reached: invalid HTTP version parsed",
        ),
        (Answer::Bytes(Vec::new()), "cannot be reached: connection closed before message completed"),
        (
            Answer::with_length("200 OK", text, good.as_bytes(), good.len() + 1),
            "broke off in the middle of its answer: end of file before message length reached",
        ),
        (Answer::text(good.trim_end()), "broke off in the middle of a line"),
        (Answer::text(&many_lines), "answered with more than 16 MB"),
        (with("MemTotal_bytes 1048576000", "MemTotal_bytes NaN"), "tells node_memory_MemTotal_bytes as NaN"),
        (with("MemTotal_bytes 1048576000", "MemTotal_bytes +Inf"), "tells node_memory_MemTotal_bytes as inf"),
        (with("MemAvailable_bytes ", "MemAvailable_bytes -"), "tells node_memory_MemAvailable_bytes as -"),
        (with("MemTotal_bytes", "MemTotal_kilobytes"), "tells no node_memory_MemTotal_bytes"),
        (
            with("MemTotal_bytes 1048576000", "MemTotal_bytes lots"),
            "tells node_memory_MemTotal_bytes in a line that cannot be read: node_memory_MemTotal_bytes lots",
        ),
        (with("mountpoint=\"/\"", "mountpoint=\"/data\""), "for the mount point /; it does for /data"),
        (with("node_cpu_seconds_total{", "node_cpu_seconds{"), "tells no node_cpu_seconds_total"),
        (with("nodename=\"web-1\"", "nodename=\"(none)\""), "cannot be a server's handle"),
        (Answer::text(&good.repeat(2)), "tells node_uname_info several times over"),
    ];
    let server = WebServer::start(Answer::Silence);
    let told = bench.sync(&[&server.url()], &["--scrape-timeout", "50ms"]);
    let silent = format!("error: {}/metrics did not answer within 50ms\n", server.url());
    assert!(told.code == Some(1) && told.stderr.starts_with(&silent), "{told:?}");
    for (answer, reason) in cases {
        server.answer(answer);
        let told = bench.sync(&[&server.url()], &["--output", "json"]);
        assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{reason}: {told:?}");
        // Nothing else is on standard error.
        let error: Value =
            serde_json::from_str(&told.stderr).unwrap_or_else(|error| panic!("{error}: {told:?}"));
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{}/metrics ", server.url())), "{reason}: {message}");
        assert!(message.contains(reason), "{reason}: {message}");
    }
    assert_eq!(bench.newest_event().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_is_told_before_anything_is_read() {
    let call = |line: &str| {
        let output = run(&line.split(' ').collect::<Vec<_>>());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (line, reason) in [
        ("servers sync servers.toml --source rack --from node-exporter", "is no exporter's URL"),
        ("servers sync --source rack --from node-exporter https://web-1:9100", "https is not supported"),
        ("servers sync --source rack --from node-exporter http://a:1 http://A:1/metrics", "is listed twice"),
        ("servers sync --source rack --from node-exporter", "required"),
        ("servers sync --source rack --from prometheus http://a:1", "possible values: node-exporter"),
        ("servers sync --source rack http://a:1 http://b:1", "say --from node-exporter"),
        ("servers sync --source rack http://a:1 --interval 1s", "--from"),
        ("servers sync --source rack http://a:1 --disk-mountpoint /srv", "--from"),
        (
            "servers sync --source rack --from node-exporter http://a:1 --interval 1s --dry-run",
            "cannot be used",
        ),
        ("servers sync --source rack --from node-exporter http://a:1 --interval 1ms", "at least 100ms"),
        ("servers sync --source rack --from node-exporter http://a:1 --address web-1", "HANDLE=ADDRESS"),
    ] {
        let (code, stderr) = call(line);
        assert_eq!(code, Some(2), "{line}: {stderr}");
        assert!(stderr.contains(reason), "{line}: {stderr}");
    }
    let bench = Bench::start().await;
    let exporter = a_host("web-1");
    let told = bench.sync(&[&exporter.url()], &["--address", "web-2=192.0.2.1"]);
    assert!(told.code == Some(2) && told.stderr.contains("--address is for `web-2`"), "{told:?}");
    assert_eq!(bench.newest_event().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_shrank_is_refused_and_what_it_lacks_goes_missing() {
    let mut bench = Bench::start().await;
    let exporters = ["web-1", "web-2", "web-3"].map(a_host);
    let urls: Vec<_> = exporters.iter().map(WebServer::url).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    bench.synced(&urls, &[]);
    let refused = bench.sync(&urls[..1], &[]);
    assert!(refused.code == Some(4) && refused.stderr.contains("SYNC_REFUSED"), "{refused:?}");
    assert!(refused.stderr.contains("--allow-mass-missing confirms it"), "{refused:?}");
    bench.synced(&urls[..1], &["--allow-mass-missing"]);
    assert_eq!(get(bench.client(), "web-3").await.unwrap().status(), ServerStatus::Missing);
    bench.synced(&urls, &[]);
    assert_eq!(get(bench.client(), "web-3").await.unwrap().status(), ServerStatus::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_moved_is_the_same_server_l34() {
    let mut bench = Bench::start().await;
    let first = a_host("web-1");
    bench.synced(&[&first.url()], &[]);
    let second = a_host("web-1");
    let moved = second.url().replace("127.0.0.1", "localhost");
    let synced = bench.synced(&[&moved], &[]);
    assert!(synced.stdout.contains("0 created, 1 updated"), "{synced:?}");
    assert!(synced.stderr.contains("note: web-1: its exporter was at 127.0.0.1:"), "{synced:?}");
    assert_eq!(get(bench.client(), "web-1").await.unwrap().address, "localhost");
    // Renamed: the handle stands.
    second.answer(Answer::text(&host("renamed")));
    let synced = bench.synced(&[&moved], &[]);
    assert!(synced.stderr.contains("stays the server `web-1`"), "{synced:?}");
    assert_eq!(bench.handles().await, ["web-1"]);
    // Another host of the same name.
    second.answer(Answer::text(&host("web-1")));
    let told = bench.sync(&[&moved, &first.url()], &[]);
    assert!(told.code == Some(1) && told.stderr.contains("are both the server `web-1`"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_source_is_neither_taken_nor_reported() {
    let mut bench = Bench::start().await;
    bench.client().register(crate::support::server("web-1")).await;
    let exporters = ["web-1", "web-2"].map(a_host);
    let [first, second] = exporters.each_ref().map(WebServer::url);
    let told = bench.sync(&[&first, &second], &[]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(
        told.stdout.contains("1 created, 0 updated, 0 unchanged, 0 marked missing, 1 rejected"),
        "{told:?}"
    );
    let untouched = get(bench.client(), "web-1").await.unwrap();
    assert_eq!((untouched.observed, untouched.address.as_str()), (None, "192.0.2.1"));
    assert!(get(bench.client(), "web-2").await.unwrap().observed.is_some());
    // Handed over, it is.
    let set = v1::Server { handle: "web-1".to_owned(), source: "rack".to_owned(), ..v1::Server::default() };
    update(bench.client(), set, &["source"]).await.unwrap();
    bench.synced(&[&first, &second], &[]);
    let taken = get(bench.client(), "web-1").await.unwrap();
    assert_eq!((taken.address.as_str(), taken.capacity.unwrap().ram_mb()), ("192.0.2.1", 1000));
    assert_eq!(taken.observed.unwrap().usage.unwrap().ram_mb, Some(400));
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_another_reporter_told_are_lost_and_that_is_said() {
    let mut bench = Bench::start().await;
    let exporter = a_host("web-1");
    bench.synced(&[&exporter.url()], &[]);
    let usage = v1::Usage { listening_ports: vec![8000], ..v1::Usage::default() };
    report(bench.client(), "web-1", usage).await.unwrap();
    let synced = bench.synced(&[&exporter.url()], &[]);
    assert!(synced.stderr.contains("web-1: its latest usage report names 1 listening port;"), "{synced:?}");
    let observed = get(bench.client(), "web-1").await.unwrap().observed.unwrap();
    assert!(observed.usage.unwrap().listening_ports.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_reported_at_an_interval_and_an_exporter_that_stops_is_told_once() {
    let mut bench = Bench::start().await;
    let mut real = NodeExporter::start();
    let other = a_host("web-2");
    let name = hostname();
    let observing = Observing::start(&bench.endpoint, &[&real.url(), &other.url()], &[]);
    observing.wait_for_reports(&name);
    let reported = get(bench.client(), &name).await.unwrap().observed.unwrap().observe_time.unwrap();

    real.kill();
    observing.process.said.wait_for(&format!("note: {}/metrics cannot be reached", real.url()));
    // What was printed before the note has been read by then.
    observing.wait_for_reports("web-2");
    let silent_at = observing.reports(&name);
    observing.wait_for_reports("web-2");
    assert_eq!(observing.reports(&name), silent_at);

    real = NodeExporter::start_at(&real.address);
    observing.process.said.wait_for(&format!("note: {}/metrics answers again", real.url()));
    observing.wait_for_reports(&name);
    let again = get(bench.client(), &name).await.unwrap().observed.unwrap().observe_time.unwrap();
    assert!((again.seconds, again.nanos) > (reported.seconds, reported.nanos));

    // Garbage is told as silence is.
    other.answer(Answer::text("nothing of use\n"));
    observing.process.said.wait_for(&format!("note: {}/metrics tells no node_uname_info", other.url()));
    observing.wait_for_reports(&name);
    other.answer(Answer::text(&host("web-2")));
    observing.process.said.wait_for(&format!("note: {}/metrics answers again", other.url()));
    let said = observing.stop();
    assert_eq!(said.lines().count(), 4, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capacity_that_changed_is_synced_again_while_another_exporter_is_silent() {
    let mut bench = Bench::start().await;
    let [first, second] = ["web-1", "web-2"].map(a_host);
    let observing = Observing::start(&bench.endpoint, &[&first.url(), &second.url()], &[]);
    observing.wait_for_reports("web-1");
    let newest = bench.newest_event().await;
    observing.wait_for_reports("web-1");
    assert_eq!(bench.newest_event().await, newest, "what stands is not sent again");

    second.answer(Answer::whole("503 Service Unavailable", "text/plain", b""));
    observing.process.said.wait_for("answered 503");
    first.answer(Answer::text(
        &host("web-1").replace("MemTotal_bytes 1048576000", "MemTotal_bytes 2097152000"),
    ));
    observing.stdout.wait_for("0 created, 1 updated, 1 unchanged, 0 marked missing");
    assert_eq!(get(bench.client(), "web-1").await.unwrap().capacity.unwrap().ram_mb, Some(2000));
    assert_eq!(get(bench.client(), "web-2").await.unwrap().status(), ServerStatus::Ready);

    // One that was removed is in the list all the same, and comes back.
    crate::support::inventory::delete(bench.client(), "web-1", "").await.unwrap();
    observing.stdout.wait_for("1 created, 0 updated, 1 unchanged, 0 marked missing");
    let said = observing.stop();
    assert!(said.contains("note: web-1: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_unfinished_at_the_start_waits_and_the_known_are_reported_l35() {
    let mut bench = Bench::start().await;
    let [first, second, third] = ["web-1", "web-2", "web-3"].map(a_host);
    bench.synced(&[&first.url(), &second.url()], &[]);
    second.answer(Answer::Silence);
    let observing = Observing::start(
        &bench.endpoint,
        &[&first.url(), &second.url(), &third.url()],
        &["--scrape-timeout", "300ms"],
    );
    observing.process.said.wait_for("did not answer within 300ms");
    observing.wait_for_reports("web-1");
    assert_eq!(observing.said("note: the list is sent when every exporter has answered"), 1);
    assert_eq!((observing.reports("web-2"), observing.reports("web-3")), (0, 0));
    assert_eq!(bench.handles().await, ["web-1", "web-2"]);
    assert_eq!(get(bench.client(), "web-2").await.unwrap().status(), ServerStatus::Ready);

    second.answer(Answer::text(&host("web-2")));
    observing.stdout.wait_for("1 created, 0 updated, 2 unchanged, 0 marked missing, 0 rejected");
    observing.wait_for_reports("web-3");
    observing.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_restarts_is_waited_for() {
    let database = TestDatabase::create().await;
    let start = |listen: &str| {
        Process::start(&ProcessOptions { listen, database: ["--database-url", database.url()], flags: &[] })
    };
    let mut service = start("127.0.0.1:0");
    let exporter = NodeExporter::start();
    let name = hostname();
    let observing = Observing::start(&service.endpoint(), &[&exporter.url()], &[]);
    observing.wait_for_reports(&name);
    for round in 1..=2 {
        service.kill();
        wait_until("a note", || observing.said("note: the service does not answer") == round);
        service = start(&service.address);
        observing.wait_for_reports(&name);
        wait_until("a note", || observing.said("note: the service answers again") == round);
    }
    let said = observing.stop();
    assert_eq!(said.lines().count(), 4, "{said}");

    // A start without a service is not waited for.
    service.kill();
    let mut never = Observing::start(&service.endpoint(), &[&exporter.url()], &[]);
    assert_eq!(never.process.wait().code(), Some(5), "{}", never.process.said.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_prints_a_line_an_answer_as_json() {
    let bench = Bench::start().await;
    let exporter = NodeExporter::start();
    let observing = Observing::start(&bench.endpoint, &[&exporter.url()], &["--output", "json"]);
    wait_until("three lines", || observing.stdout.text().lines().count() >= 3);
    let text = observing.stdout.text();
    let lines: Vec<Value> = text.lines().take(3).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["created"], 1);
    for line in &lines[1..] {
        assert!(line["server"]["observed"]["usage"]["cpu_millis"].is_u64(), "{line}");
    }
    assert_eq!(observing.stop(), "");
}
