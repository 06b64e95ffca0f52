//! The client commands of the real binary against a live service: what they print, and with which exit code they end.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    process::{Output, Stdio},
    sync::mpsc,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    TestDatabase, TestService,
    process::{Ended, PATIENCE, Process, ProcessOptions, binary, folder, run, signal},
    server,
};

/// A command that has ended.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Done {
    #[track_caller]
    fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON object that an error is told as.
    #[track_caller]
    fn error_json(&self) -> Value {
        serde_json::from_str(&self.stderr).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What stands below the headings of a table, by column.
    fn rows(&self) -> Vec<Vec<&str>> {
        self.stdout.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
    }
}

/// A live service and how commands call it.
struct Shell {
    service: TestService,
    endpoint: String,
}

impl Shell {
    async fn start() -> Self {
        let service = TestService::start().await;
        let endpoint = format!("http://{}", service.running.address);
        Self { service, endpoint }
    }

    /// With one server that has room for what a test places.
    async fn with_server() -> Self {
        let mut shell = Self::start().await;
        shell.service.client.register(server("web-1")).await;
        shell
    }

    fn call(&self, line: &str) -> Done {
        let arguments: Vec<_> = line.split(' ').collect();
        run(&[&arguments, &["--endpoint", &self.endpoint][..]].concat()).into()
    }

    fn json(&self, line: &str) -> Value {
        self.json_with_code(line, 0)
    }

    fn json_with_code(&self, line: &str, code: i32) -> Value {
        self.call(&format!("{line} --output json")).assert_code(code).json()
    }
}

fn nowhere() -> String {
    // Taken and given back: nothing listens there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Flags, and variables of the environment.
type Given<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

#[test]
fn credentials_go_by_tls_or_nowhere() {
    let folder = folder();
    let file = folder.path().join("credentials");
    fs::write(&file, "ra_secret\n").unwrap();
    let file = file.to_str().unwrap();
    let call = |endpoint: &str, (flags, variables): Given<'_>| {
        let mut command = binary();
        command.args(["health", "--endpoint", endpoint]).args(flags).envs(variables.iter().copied());
        Done::from(command.output().unwrap())
    };
    // Nothing listens at any of them, so a call that is made cannot reach the service.
    let (here, elsewhere) = (nowhere(), "http://192.0.2.1:1");
    let token: [Given<'_>; 3] = [
        (&[], &[("RESOURCE_ALLOCATOR_TOKEN", "ra_secret")]),
        (&[], &[("RESOURCE_ALLOCATOR_TOKEN_FILE", file)]),
        (&["--token-file", file], &[]),
    ];
    for given in token {
        let refused = call(elsewhere, given).assert_code(2);
        assert!(refused.stderr.contains("would go to http://192.0.2.1:1 in clear text"), "{refused:?}");
        assert!(refused.stderr.contains("name an https:// endpoint"), "{refused:?}");
        assert!(!refused.stderr.contains("ra_secret"), "{refused:?}");
        // What goes to this machine itself is on no wire.
        for endpoint in [&here, &here.replace("127.0.0.1", "localhost"), &here.replace("http", "https")] {
            call(endpoint, given).assert_code(5);
        }
    }
    let by_variables =
        [("RESOURCE_ALLOCATOR_CLIENT_CERTIFICATE", file), ("RESOURCE_ALLOCATOR_CLIENT_KEY", file)];
    let tls: [(Given<'_>, &str); 4] = [
        ((&["--tls-ca", file], &[]), "--tls-ca"),
        ((&[], &[("RESOURCE_ALLOCATOR_TLS_CA", file)]), "RESOURCE_ALLOCATOR_TLS_CA"),
        ((&["--tls-certificate", file, "--tls-key", file], &[]), "--tls-certificate"),
        ((&[], &by_variables), "RESOURCE_ALLOCATOR_CLIENT_CERTIFICATE"),
    ];
    for (given, named) in tls {
        let refused = call(&here, given).assert_code(2);
        assert!(refused.stderr.contains(named) && refused.stderr.contains("https://"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_placed_read_and_given_back() {
    let shell = Shell::with_server().await;
    let created = shell.call("ensure hello-world-bot").assert_code(0);
    assert!(created.stderr.is_empty(), "{created:?}");
    let (head, table) = created.stdout.split_once("\n\n").unwrap();
    insta::assert_snapshot!(head, @r"
    hello-world-bot: CREATED
    server: web-1 at 192.0.2.1
    reserved: 512 MB RAM, 1024 MB disk, 0 CPU millis
    ");
    assert!(table.starts_with("PROJECT"), "{table}");
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().take(6).collect();
    assert_eq!(row, ["hello-world-bot", "backend", "web-1", "192.0.2.1", "8000", "TCP"]);

    assert!(
        shell
            .call("ensure hello-world-bot")
            .assert_code(0)
            .stdout
            .starts_with("hello-world-bot: UNCHANGED\n")
    );
    let would = shell.call("ensure hello-world-bot backend frontend --dry-run").assert_code(0);
    assert!(
        would.stdout.starts_with("hello-world-bot: would be EXTENDED, nothing was written\n"),
        "{would:?}"
    );
    let extended = shell.json("ensure hello-world-bot backend frontend dns:8053/udp --ram-mb 1024");
    assert_eq!(extended["outcome"], "ENSURE_OUTCOME_EXTENDED");
    assert_eq!(extended["placement"]["server_handle"], "web-1");
    let ports: Vec<_> =
        extended["allocations"].as_array().unwrap().iter().map(|a| a["port"].as_u64()).collect();
    assert_eq!(ports, [Some(8000), Some(8053), Some(8001)]);

    let got = shell.call("get hello-world-bot").assert_code(0);
    assert!(got.stdout.contains("reserved: 1024 MB RAM"), "{got:?}");
    assert_eq!(shell.json("get hello-world-bot")["allocations"], extended["allocations"]);

    let listed = shell.call("list").assert_code(0);
    let modules: Vec<_> = listed.rows().iter().map(|row| row[1].to_owned()).collect();
    assert_eq!(modules, ["backend", "dns", "frontend"]);
    assert_eq!(shell.call("list --module dns --server web-1 --project hello-world-bot").rows().len(), 1);
    assert!(shell.call("list --module other").assert_code(0).rows().is_empty());
    assert_eq!(shell.json("list --project hello-world-bot")["allocations"], extended["allocations"]);

    let released = shell.call("release hello-world-bot dns").assert_code(0);
    assert!(released.stdout.starts_with("released 1 port; the project has its place, with other modules\n"));
    let released = shell.json("release hello-world-bot");
    assert_eq!(released["placement_removed"], true);
    insta::assert_snapshot!(shell.call("release hello-world-bot").assert_code(0).stdout, @"nothing to release");
    assert!(shell.call("list").assert_code(0).rows().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_are_read_by_page_and_to_the_end() {
    let mut shell = Shell::with_server().await;
    for number in 0..5 {
        shell.service.client.ensure(&format!("project-{number}"), &["a", "b"]).await.unwrap();
        shell.service.client.register(server(&format!("web-{number}"))).await;
    }
    let limited = shell.call("list --limit 3").assert_code(0);
    assert_eq!(limited.rows().len(), 3);
    assert!(limited.stderr.contains("--all-pages"), "{limited:?}");
    let whole = shell.call("list --all-pages").assert_code(0);
    assert_eq!((whole.rows().len(), whole.stderr.as_str()), (10, ""));
    assert_eq!(shell.call("servers list --limit 2").assert_code(0).rows().len(), 2);
    assert_eq!(shell.call("servers list --all-pages").assert_code(0).rows().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_what_kind_of_act_is_needed() {
    let shell = Shell::with_server().await;
    shell.call("ensure large --ram-mb 8000").assert_code(0);
    // 3: it may fit later by itself.
    let wait = shell.call("ensure shop --ram-mb 1000").assert_code(3);
    assert!(wait.stderr.contains("reason: INSUFFICIENT_CAPACITY (disposition WAIT)"), "{wait:?}");
    assert!(wait.stdout.is_empty(), "{wait:?}");
    let wait = shell.call("ensure shop --ram-mb 1000 --output json").assert_code(3).error_json();
    assert_eq!((&wait["reason"], &wait["exit_code"]), (&"INSUFFICIENT_CAPACITY".into(), &3.into()));
    assert!(wait["retry_delay_ms"].as_u64().is_some(), "{wait}");
    // 4: an operator, or the caller, must act.
    for (line, reason, disposition) in [
        ("ensure shop --ram-mb 99999", "REQUEST_EXCEEDS_FLEET", "OPERATOR"),
        ("ensure shop --selector region=eu", "NO_MATCHING_SERVER", "CALLER"),
        ("ensure shop --server web-9", "SERVER_NOT_FOUND", "CALLER"),
        ("ensure -shop-", "", ""),
        ("ensure not/_so/~bad", "INVALID_REQUEST", "CALLER"),
        ("get shop", "PROJECT_NOT_FOUND", "CALLER"),
        ("find --ram-mb 99999", "REQUEST_EXCEEDS_FLEET", "OPERATOR"),
        ("servers get web-9", "SERVER_NOT_FOUND", "CALLER"),
        ("servers set web-9 status=ready", "SERVER_NOT_FOUND", "CALLER"),
        ("servers delete web-1", "SERVER_IN_USE", "CALLER"),
        ("servers set web-1 status=maintenance --etag nonsense", "ETAG_MISMATCH", "CALLER"),
        ("watch --resume-token nonsense", "INVALID_REQUEST", "CALLER"),
    ] {
        if reason.is_empty() {
            // 2: wrong usage, which clap tells.
            shell.call(line).assert_code(2);
            continue;
        }
        let told = shell.call(line).assert_code(4);
        assert!(
            told.stderr.contains(&format!("reason: {reason} (disposition {disposition})")),
            "{line}: {told:?}"
        );
        let told = shell.call(&format!("{line} -o json")).assert_code(4).error_json();
        assert_eq!(
            (&told["reason"], &told["disposition"], &told["exit_code"]),
            (&reason.into(), &disposition.into(), &4.into()),
            "{line}"
        );
        assert!(told["metadata"]["request_id"].is_string(), "{line}: {told}");
    }
    // 2: wrong usage.
    for line in
        ["ensure", "unknown", "list --limit some", "servers set web-1 colour=red", "find --strategy best"]
    {
        let told = shell.call(line).assert_code(2);
        assert!(told.stderr.starts_with("error: "), "{told:?}");
    }
    // 1: a failure on this side.
    for line in ["servers apply /no/such/file.toml", "servers sync /no/such/file.json --source cloud"] {
        let told = shell.call(line).assert_code(1);
        assert!(told.stderr.contains("No such file"), "{told:?}");
    }
    // 5: nobody there.
    let nowhere = nowhere();
    for line in ["ensure shop", "list", "servers list", "watch", "health"] {
        let line: Vec<_> = line.split(' ').collect();
        let told = Done::from(run(&[&line, &["--endpoint", &nowhere][..]].concat())).assert_code(5);
        assert!(told.stderr.contains(&format!("cannot reach the service at {nowhere}")), "{told:?}");
        assert!(told.stdout.is_empty(), "{told:?}");
    }
    let told = Done::from(run(&["list", "-o", "json", "--endpoint", &nowhere])).assert_code(5).error_json();
    assert_eq!((&told["code"], &told["exit_code"]), (&"UNAVAILABLE".into(), &5.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_inventory_is_applied_as_it_says() {
    let shell = Shell::start().await;
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/servers.toml");
    insta::assert_snapshot!(shell.call(&format!("servers apply {sample}")).assert_code(0).stdout, @r"
    web-1: READY at 192.0.2.11
    web-2: READY at 192.0.2.12
    web-3: MAINTENANCE at web-3.example.net
    tiny-1: READY at 192.0.2.21
    ");
    let listed = shell.call("servers list").assert_code(0);
    insta::assert_snapshot!(listed.stdout, @r"
    HANDLE  ADDRESS            STATUS       PROJECTS  RAM FREE/ALL MB  DISK FREE/ALL MB  CPU FREE/ALL m  LABELS
    tiny-1  192.0.2.21         READY               0         768/1024         4096/4096       1000/1000  region=eu,size=small
    web-1   192.0.2.11         READY               0      15360/16384     194560/204800       7500/8000  disk=ssd,region=eu
    web-2   192.0.2.12         READY               0        7680/8192      97280/102400       4000/4000  disk=ssd,region=us
    web-3   web-3.example.net  MAINTENANCE         0      32768/32768     409600/409600     16000/16000  disk=hdd,region=eu
    ");
    // Its own promise.
    let placed = shell.json("ensure hello-world-bot");
    assert_eq!(placed["placement"]["server_handle"], "web-1");
    assert_eq!(placed["allocations"][0]["port"], 8000);
    // Again: nothing changes, and the status that stands is kept.
    let again = shell.call(&format!("servers apply {sample}")).assert_code(0);
    assert!(again.stdout.contains("web-1: IN_USE at 192.0.2.11"), "{again:?}");

    let found = shell.call("find --max 9 --explain --selector region=eu").assert_code(0);
    assert!(found.stdout.contains("web-1") && found.stdout.contains("refused by reason: "), "{found:?}");
    let found = shell.json("find --max 9 --explain");
    let handles: Vec<_> =
        found["candidates"].as_array().unwrap().iter().map(|c| &c["server"]["handle"]).collect();
    assert_eq!(handles, ["web-1", "web-2", "tiny-1"]);
    assert_eq!(found["rejected_by_reason"]["STATUS"], 1);
    assert_eq!(
        shell.call("find --explain --ram-mb 99999").assert_code(0).stdout.lines().next(),
        Some("no server fits")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_servers_is_applied_as_far_as_it_goes() {
    let shell = Shell::start().await;
    let folder = folder();
    let path = folder.path().join("servers.json");
    fs::write(
        &path,
        r#"{"servers": [
            {"handle": "web-1", "address": "192.0.2.1", "capacity": {"ram_mb": 1024}},
            {"handle": "web-2", "address": "not an address", "capacity": {"ram_mb": 1024}},
            {"handle": "web-3", "address": "192.0.2.3", "capacity": {"ram_mb": 1024}}
        ]}"#,
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let applied = shell.call(&format!("servers apply {path}")).assert_code(4);
    insta::assert_snapshot!(applied.stdout, @r"
    web-1: READY at 192.0.2.1
    web-2: failed
    web-3: READY at 192.0.2.3
    ");
    assert!(applied.stderr.contains("error: web-2: "), "{applied:?}");
    let applied = shell.call(&format!("servers apply {path} -o json")).assert_code(4);
    let handles: Vec<_> = applied
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["server"]["handle"].clone())
        .collect();
    assert_eq!(handles, ["web-1", "web-3"]);
    assert_eq!(applied.error_json()["server_handle"], "web-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_registered_changed_and_removed_by_hand() {
    let shell = Shell::start().await;
    let registered = shell.call(
        "servers register web-1 --address 192.0.2.1 --ram-mb 8192 --disk-mb 1000 --cpu-millis 4000 \
         --headroom-ram-mb 512 --label region=eu --label tier=gold --exclude-ports 9000-9010,9100 --port-range 8000-9999"
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .as_str(),
    );
    let text = registered.assert_code(0).stdout;
    for line in [
        "handle      web-1",
        "status      READY",
        "labels      region=eu,tier=gold",
        "capacity    8192 MB RAM, 1000 MB disk, 4000 CPU millis",
        "free        7680 MB RAM, 1000 MB disk, 4000 CPU millis",
        "ports       8000-9999",
        "excluded    9000-9010,9100",
        "observed    never",
    ] {
        assert!(text.lines().any(|told| told == line), "no `{line}` in {text}");
    }
    let etag = shell.json("servers get web-1")["server"]["etag"].as_str().unwrap().to_owned();
    let set =
        shell.call("servers set web-1 status=maintenance headroom.ram_mb=1024 labels.tier- labels.zone=a");
    assert!(set.assert_code(0).stdout.contains("labels      region=eu,zone=a"));
    let server = &shell.json("servers get web-1")["server"];
    assert_eq!(server["status"], "SERVER_STATUS_MAINTENANCE");
    assert_eq!(server["headroom"]["ram_mb"], "1024");
    shell.call(&format!("servers set web-1 status=ready --etag {etag}")).assert_code(4);
    shell.call("servers set web-1 status=ready").assert_code(0);
    assert_eq!(shell.call("servers list --status ready --label zone=a --managed true").rows().len(), 1);
    assert!(shell.call("servers list --status maintenance").rows().is_empty());
    insta::assert_snapshot!(shell.call("servers delete web-1").assert_code(0).stdout, @"web-1: deleted");
    shell.call("servers get web-1").assert_code(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sources_whole_list_is_taken() {
    let shell = Shell::start().await;
    let folder = folder();
    let write = |name: &str, handles: &[&str]| {
        let servers: Vec<_> = handles
            .iter()
            .map(|handle| {
                serde_json::json!({"handle": handle, "address": "192.0.2.1", "capacity": {"ram_mb": 1024}, "external_id": handle})
            })
            .collect();
        let path = folder.path().join(name);
        fs::write(&path, serde_json::json!({ "servers": servers }).to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = write("whole.json", &["a", "b", "c"]);
    let most = write("most.json", &["a", "b"]);
    let empty = write("empty.json", &[]);
    let dry = shell.call(&format!("servers sync {whole} --source cloud --dry-run")).assert_code(0);
    assert!(dry.stdout.ends_with("0 rejected; nothing was written\n"), "{dry:?}");
    assert!(shell.call("servers list").rows().is_empty());
    let synced = shell.call(&format!("servers sync {whole} --source cloud")).assert_code(0);
    insta::assert_snapshot!(synced.stdout.lines().last().unwrap(), @"3 created, 0 updated, 0 unchanged, 0 marked missing, 0 rejected");
    let synced = shell.json(&format!("servers sync {most} --source cloud"));
    assert_eq!((&synced["unchanged"], &synced["marked_missing"]), (&2.into(), &1.into()));
    let refused = shell.call(&format!("servers sync {empty} --source cloud")).assert_code(4);
    assert!(
        refused.stderr.contains("SYNC_REFUSED") && refused.stderr.contains("--allow-mass-missing"),
        "{refused:?}"
    );
    shell.call(&format!("servers sync {empty} --source cloud --allow-mass-missing")).assert_code(0);
    assert_eq!(shell.call("servers list --status missing --source cloud").rows().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_comes_from_the_environment_or_the_flag_which_counts_more() {
    let shell = Shell::with_server().await;
    let nowhere = nowhere();
    let call = |environment: &str, arguments: &[&str]| {
        Done::from(binary().args(arguments).env("RESOURCE_ALLOCATOR_ENDPOINT", environment).output().unwrap())
    };
    call(&shell.endpoint, &["ensure", "shop"]).assert_code(0);
    call(&nowhere, &["get", "shop"]).assert_code(5);
    call(&nowhere, &["get", "shop", "--endpoint", &shell.endpoint]).assert_code(0);
    call(&nowhere, &["--endpoint", &shell.endpoint, "get", "shop"]).assert_code(0);
    call("not a url", &["get", "shop"]).assert_code(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_an_exit_code() {
    let shell = Shell::start().await;
    insta::assert_snapshot!(shell.call("health").assert_code(0).stdout, @"SERVING");
    for service in ["ResourceAllocator", "ServerInventory"] {
        shell.call(&format!("health --service resourceallocator.v1.{service}")).assert_code(0);
    }
    assert_eq!(shell.json("health")["status"], "SERVING");
    shell.call("health --service unknown").assert_code(1);
}

#[test]
fn completions_are_written_for_each_shell() {
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef resource-allocator"), ("fish", "complete -c")]
    {
        let script = Done::from(run(&["completions", shell])).assert_code(0).stdout;
        assert!(script.contains(word), "{shell}");
        for command in ["ensure", "servers", "completions"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    Done::from(run(&["completions", "cmd"])).assert_code(2);
}

#[test]
fn help_and_version_are_answers() {
    let help = Done::from(run(&["--help"])).assert_code(0);
    assert!(help.stdout.contains("Exit codes:") && help.stderr.is_empty(), "{help:?}");
    let version = Done::from(run(&["--version"])).assert_code(0);
    assert_eq!(version.stdout, concat!("resource-allocator ", env!("CARGO_PKG_VERSION"), "\n"));
    Done::from(run(&[])).assert_code(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_failure() {
    let mut shell = Shell::with_server().await;
    for number in 0..10 {
        shell.service.client.ensure(&format!("project-{number}"), &["a", "b", "c"]).await.unwrap();
    }
    for line in ["list", "watch --from-beginning", "servers list -o json", "completions bash"] {
        let mut command = binary();
        command.args(line.split(' '));
        if line != "completions bash" {
            command.args(["--endpoint", &shell.endpoint]);
        }
        command.stdout(Stdio::piped());
        let mut process = Ended::start(command);
        // Closed before anything is written there.
        drop(process.child().stdout.take());
        assert_eq!(process.wait().code(), Some(0), "{line}: {}", process.said.text());
        assert_eq!(process.said.text(), "", "{line}");
    }
}

/// A `watch` that runs, line by line.
struct Watching {
    process: Ended,
    lines: mpsc::Receiver<String>,
}

impl Watching {
    fn start(arguments: &[&str]) -> Self {
        let mut command = binary();
        command.arg("watch").args(arguments).stdout(Stdio::piped());
        let mut process = Ended::start(command);
        let stdout = process.child().stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, lines }
    }

    fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("{error}: {}", self.process.said.text()))
    }

    /// The number and the kind of the next event of a watch that prints JSON.
    fn event(&self) -> (u64, String) {
        loop {
            let message: Value = serde_json::from_str(&self.line()).unwrap();
            assert!(message["resume_token"].is_string(), "{message}");
            if let Some(event) = message.get("event") {
                let sequence = event["sequence"].as_str().unwrap().parse().unwrap();
                let kinds = [
                    "requested",
                    "server_selected",
                    "port_allocated",
                    "completed",
                    "failed",
                    "released",
                    "server_changed",
                ];
                let kind = kinds.iter().find(|kind| event.get(**kind).is_some()).unwrap();
                return (sequence, (*kind).to_owned());
            }
            assert!(message["bookmark"].is_object(), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_prints_a_line_an_event() {
    let shell = Shell::with_server().await;
    shell.call("ensure shop").assert_code(0);
    let watching = Watching::start(&["--from-beginning", "--project", "shop", "--endpoint", &shell.endpoint]);
    let kinds: Vec<_> =
        (0..4).map(|_| watching.line().split_whitespace().nth(3).unwrap().to_owned()).collect();
    assert_eq!(kinds, ["REQUESTED", "SERVER_SELECTED", "PORT_ALLOCATED", "COMPLETED"]);
    shell.call("release shop").assert_code(0);
    assert!(watching.line().ends_with("shop  RELEASED  backend 8000/TCP; its place is given back"));
    // Ctrl-C is the way out, and says how to go on.
    let mut process = watching.process;
    signal(process.pid(), Signal::INT);
    assert_eq!(process.wait().code(), Some(0));
    let token = process.said.text();
    let token = token.split_whitespace().skip_while(|word| *word != "--resume-token").nth(1).unwrap();
    shell.call("ensure shop").assert_code(0);
    let resumed = Watching::start(&["--resume-token", token, "-o", "json", "--endpoint", &shell.endpoint]);
    assert_eq!(resumed.event(), (7, "requested".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_its_service_and_loses_nothing() {
    let database = TestDatabase::create().await;
    let start = |listen: &str| {
        Process::start(&ProcessOptions { listen, database: ["--database-url", database.url()], flags: &[] })
    };
    let mut service = start("127.0.0.1:0");
    let endpoint = service.endpoint();
    let call = |line: &str| {
        let line: Vec<_> = line.split(' ').collect();
        Done::from(run(&[&line, &["--endpoint", &endpoint][..]].concat())).assert_code(0)
    };
    let watching = Watching::start(&["--from-beginning", "-o", "json", "--endpoint", &endpoint]);
    call("servers register web-1 --address 192.0.2.1 --ram-mb 8192 --disk-mb 99999");
    let mut told = vec![watching.event()];
    // Killed, and told to stop.
    for (how, signal) in [("killed", Signal::KILL), ("stopped", Signal::TERM)] {
        call(&format!("ensure before-it-was-{how}"));
        told.extend((0..4).map(|_| watching.event()));
        service.signal(signal);
        service.wait();
        service = start(&service.address);
        call(&format!("ensure after-it-was-{how}"));
        told.extend((0..4).map(|_| watching.event()));
    }
    let sequences: Vec<_> = told.iter().map(|(sequence, _)| *sequence).collect();
    assert_eq!(sequences, (1..=17).collect::<Vec<_>>());
    let said = watching.process.said.text();
    assert_eq!(said.matches("note: connected again").count(), 2, "{said}");
    let placed: Vec<_> = told.iter().filter(|(_, kind)| kind == "completed").collect();
    assert_eq!(placed.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_service_told_where_it_listens_on_standard_error_alone() {
    let database = TestDatabase::create().await;
    for format in ["text", "json"] {
        let mut command = binary();
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--database-url",
            database.url(),
            "--log-format",
            format,
        ]);
        // Whatever is logged, this line is.
        command.env("RUST_LOG", "off").stdout(Stdio::piped());
        let mut process = Ended::start(command);
        let address = process.said.wait_for("listening on ");
        assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
        signal(process.pid(), Signal::TERM);
        assert_eq!(process.wait().code(), Some(0));
        let mut stdout = String::new();
        process.child().stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        assert_eq!(stdout, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_takes_an_inventory_at_its_start() {
    let database = TestDatabase::create().await;
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/servers.toml");
    for _ in 0..2 {
        let mut service = Process::start_on(database.url(), &["--inventory", sample]);
        let placed =
            Done::from(run(&["ensure", "hello-world-bot", "-o", "json", "--endpoint", &service.endpoint()]));
        let placed = placed.assert_code(0).json();
        assert_eq!(placed["placement"]["server_handle"], "web-1");
        service.signal(Signal::TERM);
        assert_eq!(service.wait().code(), Some(0));
    }
    let changes: i64 =
        sqlx::query_scalar("SELECT count(*) FROM allocation_events WHERE kind = 'server_changed'")
            .fetch_one(&database.sql)
            .await
            .unwrap();
    assert_eq!(changes, 4, "a second start with the same file changes nothing");
}

/// A server that is full, and a command that waits for room on it.
fn waiting_command(shell: &Shell, project: &str, wait: &str) -> Ended {
    let mut command = binary();
    command.args(["--endpoint", &shell.endpoint, "ensure", project, "--ram-mb", "8192", "--wait", wait]);
    command.stdout(Stdio::piped());
    Ended::start(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensure_that_waits_says_where_it_stands_and_then_where_it_is_placed() {
    let shell = Shell::with_server().await;
    shell.call("ensure holder --ram-mb 8192").assert_code(0);
    let first = waiting_command(&shell, "first", "10m");
    first.said.wait_for("waiting: place 1 in line, INSUFFICIENT_CAPACITY, ");
    let mut second = waiting_command(&shell, "second", "10m");
    second.said.wait_for("waiting: place 2 in line, INSUFFICIENT_CAPACITY, ");

    let listed = shell.call("waiting").assert_code(0);
    let rows = listed.rows();
    assert_eq!((rows[0][0], rows[0][1], rows[0][2]), ("1", "first", "INSUFFICIENT_CAPACITY"), "{listed:?}");
    assert_eq!((rows[1][0], rows[1][1]), ("2", "second"), "{listed:?}");
    assert!(listed.stdout.contains("8192 MB RAM"), "{listed:?}");
    let json = shell.call("waiting --project second -o json").assert_code(0).json();
    assert_eq!(
        (&json["waiters"][0]["place"], json["waiters"].as_array().unwrap().len()),
        (&Value::from(2), 1)
    );

    // Ctrl-C leaves the line.
    signal(first.pid(), Signal::INT);
    first.said.wait_for("note: left the line");
    let mut first = first;
    assert_eq!(first.wait().code(), Some(1));
    second.said.wait_for("waiting: place 1 in line");
    shell.call("release holder").assert_code(0);
    assert_eq!(second.wait().code(), Some(0));
    let mut printed = String::new();
    second.child().stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(printed.starts_with("second: CREATED\nserver: web-1 at "), "{printed}");
    assert!(shell.call("waiting").assert_code(0).stdout.contains("nobody stands in line"));
    let done = shell.call("ensure third --ram-mb 8192 --wait 1s").assert_code(3);
    assert!(done.stderr.contains("WAIT_TIMED_OUT"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_outlives_its_service_in_the_same_place() {
    let data_dir = folder();
    let mut service = Process::start_in(data_dir.path());
    let address = service.address.clone();
    let endpoint = service.endpoint();
    let ok = |arguments: &[&str]| {
        let all = [&["--endpoint", &endpoint], arguments].concat();
        Done::from(run(&all)).assert_code(0)
    };
    ok(&["servers", "register", "web-1", "--address", "192.0.2.1", "--ram-mb", "1024", "--disk-mb", "4096"]);
    ok(&["ensure", "holder", "--ram-mb", "1024"]);
    let mut command = binary();
    command.args(["--endpoint", &endpoint, "ensure", "first", "--ram-mb", "1024", "--wait", "10m"]);
    command.stdout(Stdio::piped());
    let mut first = Ended::start(command);
    first.said.wait_for("waiting: place 1 in line");
    service.kill();
    first.said.wait_for("going on in the same place");
    let _service = Process::start_in_at(data_dir.path(), &address);
    ok(&["release", "holder"]);
    assert_eq!(first.wait().code(), Some(0), "{}", first.said.text());
    assert!(ok(&["get", "first"]).stdout.contains("web-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_asked_for_and_told() {
    let shell = Shell::with_server().await;
    let leased = shell.call("ensure preview --ttl 2h").assert_code(0);
    assert!(leased.stdout.contains("\nends: 20"), "{leased:?}");
    assert!(shell.call("get preview").assert_code(0).stdout.contains("\nends: 20"));
    let kept = shell.call("ensure preview --ttl 0s").assert_code(0);
    assert!(!kept.stdout.contains("ends: "), "{kept:?}");
    shell.call("ensure preview --ttl 1s").assert_code(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_coloured_where_it_is_asked_to_be_and_not_for_a_pipe() {
    let shell = Shell::with_server().await;
    shell.call("ensure shop").assert_code(0);
    for (color, green) in [("always", true), ("never", false), ("auto", false)] {
        let mut command = binary();
        command.args(["--endpoint", &shell.endpoint, "watch", "--from-beginning", "--color", color]);
        command.stdout(Stdio::piped());
        let mut watch = Ended::start(command);
        let lines = BufReader::new(watch.child().stdout.take().unwrap()).lines();
        let completed = lines.map(Result::unwrap).find(|line| line.contains("COMPLETED")).unwrap();
        assert_eq!(
            completed.contains("\u{1b}[1m\u{1b}[32mCOMPLETED\u{1b}[0m"),
            green,
            "{color}: {completed:?}"
        );
        assert_eq!(completed.contains('\u{1b}'), green, "{color}: {completed:?}");
    }
}

/// A register that leaves nothing but the RAM to decide.
fn with_ram(handle: &str, ram_mb: u32) -> String {
    format!(
        "servers register {handle} --address 192.0.2.9 --ram-mb {ram_mb} --disk-mb 100000 --cpu-millis 4000"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_moved_and_told_from_where() {
    let shell = Shell::with_server().await;
    shell.call("ensure shop backend dns:8053/udp").assert_code(0);
    let told = shell.call("relocate shop").assert_code(4).stderr;
    assert!(
        told.contains("reason: NO_SERVERS (disposition OPERATOR)") && told.contains("RegisterServer"),
        "{told}"
    );
    shell.call(&with_ram("web-2", 4096)).assert_code(0);
    let would = shell.call("relocate shop --dry-run").assert_code(0).stdout;
    assert!(would.starts_with("shop: would move from web-1, nothing was written\n"), "{would}");
    assert_eq!(shell.json("get shop")["placement"]["server_handle"], "web-1");

    let moved = shell.call("relocate shop --from web-1").assert_code(0).stdout;
    let (head, table) = moved.split_once("\n\n").unwrap();
    insta::assert_snapshot!(head, @r"
    shop: moved from web-1
    server: web-2 at 192.0.2.9
    reserved: 512 MB RAM, 1024 MB disk, 0 CPU millis
    ");
    let rows: Vec<Vec<_>> =
        table.lines().skip(1).map(|line| line.split_whitespace().skip(1).take(5).collect()).collect();
    assert_eq!(
        rows,
        [["backend", "web-2", "192.0.2.9", "8000", "TCP"], ["dns", "web-2", "192.0.2.9", "8053", "UDP"]]
    );
    for again in ["relocate shop --from web-1", "relocate shop --to web-2"] {
        let again = shell.call(again).assert_code(0).stdout;
        assert!(again.starts_with("shop: is there already\nserver: web-2 at "), "{again}");
    }
    let back = shell.json("relocate shop --to web-1 --strategy binpack");
    assert_eq!((&back["moved"], &back["from_server_handle"]), (&true.into(), &"web-2".into()));

    // A larger one fits on no other now, and may later.
    shell.call("ensure large --ram-mb 4000 --server web-1").assert_code(0);
    shell.call("ensure small --ram-mb 500 --server web-2").assert_code(0);
    let waits = shell.call("relocate large").assert_code(3).stderr;
    assert!(
        waits.contains("INSUFFICIENT_CAPACITY (disposition WAIT)") && waits.contains("`web-2`"),
        "{waits}"
    );
    for (line, reason) in
        [("relocate never", "PROJECT_NOT_FOUND"), ("relocate shop --to nowhere", "SERVER_NOT_FOUND")]
    {
        let told = shell.call(&format!("{line} -o json")).assert_code(4).error_json();
        assert_eq!((&told["reason"], &told["exit_code"]), (&reason.into(), &4.into()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_drained_and_what_stays_is_an_exit_code() {
    let shell = Shell::with_server().await;
    for (project, ram_mb) in [("large", 5000), ("medium", 2500), ("small", 100)] {
        shell.call(&format!("ensure {project} --ram-mb {ram_mb}")).assert_code(0);
    }
    shell.call(&with_ram("web-2", 2550)).assert_code(0);
    let plan = shell.call("servers drain web-1 --dry-run").assert_code(4).stdout;
    assert!(plan.contains("\nmedium   web-2  backend 8000/TCP\n"), "{plan}");
    assert!(plan.ends_with("\n\n1 project would move; nothing was written; 3 there now\n"), "{plan}");
    assert!(shell.call("servers get web-1").stdout.contains("status      IN_USE"));

    // One needs a larger server.
    let drained = shell.call("servers drain web-1").assert_code(4);
    assert_eq!(drained.stderr, "");
    let told: Vec<_> = drained.rows().iter().take(3).map(|row| row[..3].join(" ")).collect();
    assert_eq!(
        told,
        ["medium web-2 backend", "large stays REQUEST_EXCEEDS_FLEET:", "small stays INSUFFICIENT_CAPACITY:"]
    );
    assert!(drained.stdout.ends_with("\n\n1 project moved; 2 left\n"), "{drained:?}");
    assert!(shell.call("servers get web-1").stdout.contains("status      MAINTENANCE"));

    // The other waits for room.
    shell.call("release large").assert_code(0);
    let waits = shell.json_with_code("servers drain web-1", 3);
    assert_eq!(waits["remaining_count"], 1);
    assert_eq!(
        (&waits["results"][0]["reason"], &waits["results"][0]["disposition"]),
        (&"INSUFFICIENT_CAPACITY".into(), &"DISPOSITION_WAIT".into())
    );
    shell.call("release medium").assert_code(0);
    let done = shell.call("servers drain web-1").assert_code(0).stdout;
    assert!(done.ends_with("\n\n1 project moved; 0 left\n"), "{done}");
    let nothing = shell.call("servers drain web-1").assert_code(0).stdout;
    assert!(nothing.ends_with("0 projects moved; 0 left\n"), "{nothing}");
    let unknown = shell.call("servers drain nowhere").assert_code(4).stderr;
    assert!(unknown.contains("SERVER_NOT_FOUND"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_is_shown_and_changed_by_name() {
    let shell = Shell::with_server().await;
    insta::assert_snapshot!(shell.call("servers policy").assert_code(0).stdout, @r"
    default headroom: 0 MB RAM, 0 MB disk, 0 CPU millis, and at least 0 % RAM, 0 % disk, 0 % CPU
    over-commit: 100 % RAM, 100 % disk, 100 % CPU
    ");
    let changed = shell.call("servers policy --headroom ram=512,disk=5% --overcommit cpu=4,ram=1.25");
    insta::assert_snapshot!(changed.assert_code(0).stdout, @r"
    default headroom: 512 MB RAM, 0 MB disk, 0 CPU millis, and at least 0 % RAM, 5 % disk, 0 % CPU
    over-commit: 125 % RAM, 100 % disk, 400 % CPU
    ");
    assert_eq!(shell.json("servers policy")["policy"]["overcommit_percent"]["cpu"], 400);
    let shown = shell.call("servers set web-1 overcommit.cpu=2").assert_code(0).stdout;
    let lines = [
        "headroom    the fleet's default",
        "over-commit 200 % CPU",
        "budget      9728 MB RAM, 95000 MB disk, 8000 CPU millis",
        "free        9728 MB RAM, 95000 MB disk, 8000 CPU millis",
    ];
    assert_eq!(shell.call("servers get web-1").assert_code(0).stdout, shown);
    for line in lines {
        assert!(shown.lines().any(|told| told == line), "no `{line}` in {shown}");
    }
    for (flags, words) in [
        ("--headroom ram=101%", "no share from 0% to 100%"),
        ("--headroom gpu=1", "there are cpu, ram and disk"),
        ("--overcommit ram=0.99", "no ratio from 1 to 100"),
        ("--overcommit ram=100.01", "no ratio from 1 to 100"),
    ] {
        let told = shell.call(&format!("servers policy {flags}")).assert_code(2).stderr;
        assert!(told.contains(words), "{flags}: {told}");
    }
    let stands = shell.call("servers policy").stdout;
    assert!(stands.contains("over-commit: 125 % RAM"), "{stands}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_reported_and_another_told() {
    let shell = Shell::with_server().await;
    shell.call("ensure shop api").assert_code(0);
    let told = shell.call("port-in-use shop api 8000 --detail nginx").assert_code(0).stdout;
    assert!(
        told.starts_with("api: now 8001/TCP on web-1 at 192.0.2.1; 8000 is set aside until 20"),
        "{told}"
    );
    insta::assert_snapshot!(shell.call("port-in-use shop api 8000").assert_code(0).stdout, @"api: holds 8001/TCP on web-1 at 192.0.2.1; 8000 is not its port, and nothing was changed");
    let watching = Watching::start(&["--from-beginning", "--project", "shop", "--endpoint", &shell.endpoint]);
    let lines: Vec<_> = (0..6).map(|_| watching.line()).collect();
    assert!(lines[4].contains("PORT_SET_ASIDE") && lines[4].contains("nginx"), "{lines:?}");
    assert!(lines[5].contains("PORT_ALLOCATED") && lines[5].contains("8001"), "{lines:?}");
    let taken = shell.call("ensure other api:8000").assert_code(4).stderr;
    assert!(taken.contains("PORT_TAKEN") && taken.contains("was found in use on the host"), "{taken}");
    let placed = shell.json("port-in-use shop api 8001 --start-port 9000");
    assert_eq!((&placed["replaced"], &placed["allocation"]["port"]), (&true.into(), &9000.into()));

    shell.call("servers set web-1 status=maintenance").assert_code(0);
    for (line, reason, words) in [
        ("port-in-use never api 8000", "PROJECT_NOT_FOUND", "has no placement"),
        ("port-in-use shop db 8000", "MODULE_NOT_FOUND", "it has api"),
        ("port-in-use shop api 9000", "BOUND_SERVER_NOT_ADMISSIBLE", "Repair the server"),
    ] {
        let told = shell.call(line).assert_code(4).stderr;
        assert!(told.contains(&format!("reason: {reason} ")) && told.contains(words), "{line}: {told}");
    }
    shell.call("port-in-use shop api 65536").assert_code(2);
}
