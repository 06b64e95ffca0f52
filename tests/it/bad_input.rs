//! Bad input: every field of every request, each with what it must not be. It is refused by its path, all bad fields at once,
//! and nothing is written and nothing of the inside told.

use std::iter::repeat_n;

use proptest::{
    collection::vec,
    option,
    prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use resource_allocator::proto::v1;
use tonic::{
    Code, Request, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_types::StatusExt as _;

use crate::support::{
    Client, TestService, error_info,
    requests::{labels, module, module_at, request, resources},
    server, violations,
};

/// What is no over-commit, in percent.
const NO_OVERCOMMIT: [u32; 4] = [0, 99, 10_001, u32::MAX];

/// A string far longer than any field takes.
const OVERSIZED: usize = 1 << 20;

/// What is no name of a project, a server, a module, a source or a label, whatever punctuation these allow.
fn no_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "",
        // Other alphabets, and what looks like ours.
        "проект",
        "wеb",
        "プロジェクト",
        "🦀",
        "مشروع",
        "\u{202e}bew",
        "ｗｅｂ",
        "é",
        "e\u{301}",
        "web\u{200b}",
        "\u{feff}web",
        "١٢٣",
        // Control characters.
        "\0",
        "a\0b",
        "a\nb",
        "web\n",
        "a\tb",
        "a\r\nb: c",
        "\u{7f}",
        "\u{1b}[31mred",
        "\u{85}",
        // Spaces.
        " ",
        " web",
        "web ",
        "a b",
        "a\u{a0}b",
        // SQL, shells, templates, paths.
        "'; DROP TABLE servers; --",
        "a' OR '1'='1",
        "a\"b",
        "$1",
        "a%",
        "a;b",
        "a`id`",
        "$(id)",
        "{{7*7}}",
        "${x}",
        "<b>",
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "-rf",
        "_",
        "a\\b",
        "~root",
        "a,b",
        "a=b",
        "a*",
        "a?b#c",
        "%2e%2e",
        "@a",
        "a@b",
        "[a]",
    ]
    .map(ToOwned::to_owned)
    .into();
    names.push("x".repeat(OVERSIZED));
    names.push("🦀".repeat(OVERSIZED / 4));
    names
}

/// What is no address of a server.
fn no_addresses() -> Vec<String> {
    let mut addresses: Vec<String> = [
        "",
        " ",
        "a b",
        "a..b",
        ".a",
        "-a",
        "a-",
        "a_b",
        "256.1.1.1",
        "1.2.3",
        "1234",
        "1.2.3.4.5",
        "a:80",
        "192.0.2.1:80",
        "[::1]",
        "::g",
        "1::2::3",
        "http://a",
        "a/b",
        "192.0.2.0/24",
        "пример.рф",
        "🦀.example",
        "a\0",
        "a\n",
        "'; DROP TABLE servers; --",
        "../a",
        "fe80::1%eth0",
        "*.example.org",
    ]
    .map(ToOwned::to_owned)
    .into();
    addresses.push("x".repeat(64));
    addresses.push(repeat_n("abc", 64).collect::<Vec<_>>().join("."));
    addresses.push("x".repeat(OVERSIZED));
    addresses
}

/// What is no value of a label.
fn no_label_values() -> Vec<String> {
    let controls = ["\0", "a\0", "\n", "a\tb", "\u{7f}", "\u{85}", "\u{1b}[31m"].map(ToOwned::to_owned);
    controls.into_iter().chain(["x".repeat(256), "🦀".repeat(256), "x".repeat(OVERSIZED)]).collect()
}

/// Tokens that were never given, made from one that was.
fn forged(token: &str) -> Vec<String> {
    let mut forged = vec![
        "x".to_owned(),
        "AAAA".to_owned(),
        " ".to_owned(),
        "../../etc/passwd".to_owned(),
        "'; DROP TABLE pools; --".to_owned(),
        "токен🦀".to_owned(),
        "\0".to_owned(),
        "A".repeat(200),
        "A".repeat(OVERSIZED),
        token[1..].to_owned(),
        token[..token.len() - 1].to_owned(),
        token[..token.len() / 2].to_owned(),
        format!("{token}A"),
        format!("{token}="),
        format!(" {token}"),
        format!("{token}\n"),
        token.repeat(2),
        token.to_ascii_lowercase(),
    ];
    for position in [0, 1, token.len() / 2, token.len() - 2, token.len() - 1] {
        let mut flipped = token.as_bytes().to_vec();
        flipped[position] = if flipped[position] == b'A' { b'B' } else { b'A' };
        forged.push(String::from_utf8(flipped).unwrap());
    }
    forged
}

/// Whether nothing of the inside is told, and all of it reaches its caller: it is sent in headers, and clients take 8 KB of those.
#[track_caller]
fn tells_no_more_than_it_should(status: &Status) {
    let told = format!("{} {:?}", status.message(), status.get_error_details());
    for inside in [
        "sqlx",
        "postgres",
        "Postgres",
        "port_allocations",
        "allocation_events",
        "SELECT",
        "INSERT",
        "pg_",
        "127.0.0.1",
        "localhost",
        "/tmp",
        ".rs",
        "panicked",
        "backtrace",
        "constraint",
        "relation",
        "column",
    ] {
        assert!(!told.contains(inside), "{inside}: {told}");
    }
    let escaped: usize =
        status.message().bytes().map(|byte| if byte.is_ascii_graphic() { 1 } else { 3 }).sum();
    assert!(
        escaped + status.details().len() * 4 / 3 < 7900,
        "{} bytes: {told:.300}",
        escaped + status.details().len() * 4 / 3
    );
}

/// A valid request of one RPC, and what makes it malformed.
struct Table<Q> {
    valid: Q,
    cases: Vec<(Q, Vec<String>)>,
}

impl<Q: Clone + std::fmt::Debug> Table<Q> {
    fn of(valid: Q) -> Self {
        Self { valid, cases: Vec::new() }
    }

    /// What the change makes malformed at these paths.
    fn bad(mut self, paths: &[&str], change: impl FnOnce(&mut Q)) -> Self {
        let mut request = self.valid.clone();
        change(&mut request);
        self.cases.push((request, paths.iter().map(|path| (*path).to_owned()).collect()));
        self
    }

    /// Each of the values makes it malformed at this path.
    fn each<T>(self, path: &str, values: impl IntoIterator<Item = T>, set: impl Fn(&mut Q, T)) -> Self {
        values.into_iter().fold(self, |table, value| table.bad(&[path], |request| set(request, value)))
    }

    /// A name of at most `limit` characters.
    fn name(self, path: &str, limit: usize, set: impl Fn(&mut Q, String)) -> Self {
        self.each(path, no_names().into_iter().chain(["x".repeat(limit + 1)]), set)
    }

    /// A port.
    fn port(self, path: &str, set: impl Fn(&mut Q, u32)) -> Self {
        self.each(path, [0, 65_536, 80_000, 1 << 31, u32::MAX], set)
    }

    /// An enum whose last value is `last`.
    fn enumeration(self, path: &str, last: i32, set: impl Fn(&mut Q, i32)) -> Self {
        self.each(path, [last + 1, 99, -1, i32::MIN, i32::MAX], set)
    }

    /// Amounts.
    fn resources(self, path: &str, set: impl Fn(&mut Q, v1::Resources)) -> Self {
        let cpu = |amount| v1::Resources { cpu_millis: Some(amount), ..Default::default() };
        let ram = |amount| v1::Resources { ram_mb: Some(amount), ..Default::default() };
        let disk = |amount| v1::Resources { disk_mb: Some(amount), ..Default::default() };
        let megabytes = [1_000_000_000_001, i64::MAX as u64, 1 << 63, u64::MAX];
        self.each(&format!("{path}.cpu_millis"), [1_000_000_001, u32::MAX], |q, amount| set(q, cpu(amount)))
            .each(&format!("{path}.ram_mb"), megabytes, |q, amount| set(q, ram(amount)))
            .each(&format!("{path}.disk_mb"), megabytes, |q, amount| set(q, disk(amount)))
    }

    /// Labels.
    fn labels(self, path: &str, set: impl Fn(&mut Q, String, String)) -> Self {
        let keys = no_names().into_iter().chain(["x".repeat(64), "a:b".to_owned()]);
        let table = keys.fold(self, |table, key| {
            let start: String = key.chars().take(64).collect();
            let rest = if key.chars().count() > 64 { "…" } else { "" };
            let path = format!("{path}[{}{rest}]", start.escape_debug());
            table.bad(&[&path], |request| set(request, key, "value".to_owned()))
        });
        let table = table.each(&format!("{path}[key]"), no_label_values(), |request, value| {
            set(request, "key".to_owned(), value);
        });
        table.bad(&[path], |request| (0..65).for_each(|n| set(request, format!("key-{n}"), String::new())))
    }

    /// Modules that need a port.
    fn modules(self, modules: impl Fn(&mut Q) -> &mut Vec<v1::ModuleSpec>) -> Self {
        let udp = v1::ModuleSpec { protocol: v1::Protocol::Udp.into(), ..module("web") };
        self.name("modules[0].name", 63, |q, name| modules(q)[0].name = name)
            .each("modules[1].name", ["a/b", "a:b"].map(ToOwned::to_owned), |q, name| {
                modules(q)[1].name = name;
            })
            .port("modules[1].port", |q, port| modules(q)[1].port = Some(port))
            .enumeration("modules[0].protocol", 2, |q, protocol| modules(q)[0].protocol = protocol)
            .bad(&["modules"], |q| *modules(q) = (0..65).map(|n| module(&format!("module-{n}"))).collect())
            // One module 65 times is still 65 modules.
            .bad(&["modules"], |q| *modules(q) = vec![module("web"); 65])
            .each("modules[1]", [module_at("web", 80), udp], |q, contradiction| modules(q)[1] = contradiction)
            .bad(&["modules[1].port"], |q| *modules(q) = vec![module_at("a", 9000), module_at("b", 9000)])
            .bad(&["modules[0].name", "modules[0].port", "modules[0].protocol", "modules[2].name"], |q| {
                *modules(q) = vec![
                    v1::ModuleSpec { name: "é".to_owned(), port: Some(0), protocol: 7 },
                    module("a"),
                    module(""),
                ];
            })
    }

    /// Tokens that were never given.
    fn token(self, path: &str, given: &[String], set: impl Fn(&mut Q, String)) -> Self {
        // The first is of this purpose, the others of another one.
        let tokens = forged(&given[0]).into_iter().chain(given[1..].iter().cloned());
        self.each(path, tokens, set)
    }

    /// Sends everything, and the valid request last.
    async fn refuse(self, service: &TestService, call: impl AsyncFn(Client, Q) -> Result<(), Status>) {
        let before = service.database.tables().await;
        assert!(!self.cases.is_empty());
        for (request, paths) in self.cases {
            let shown = format!("{request:.300?}");
            let refused = call(service.client.clone(), request).await.expect_err(&shown);
            let (reason, metadata) = error_info(&refused);
            assert_eq!(
                (refused.code(), reason.as_str()),
                (Code::InvalidArgument, "INVALID_REQUEST"),
                "{refused:?}"
            );
            assert_eq!(metadata["disposition"], "CALLER");
            assert_eq!(violations(&refused), paths, "{shown}");
            let violations = refused.get_details_bad_request().unwrap().field_violations;
            assert!(violations.iter().all(|violation| violation.description.len() > 5), "{violations:?}");
            assert!(refused.message().contains("malformed"), "{refused:?}");
            assert!(
                metadata["fields"].chars().take(20).eq(paths.join(", ").chars().take(20)),
                "{metadata:?}"
            );
            assert!(refused.get_details_retry_info().is_none());
            tells_no_more_than_it_should(&refused);
        }
        assert_eq!(service.database.tables().await, before, "a malformed request wrote something");
        call(service.client.clone(), self.valid).await.expect("the valid request is valid");
    }
}

/// A service with two servers of a source, and two projects on them.
async fn stocked() -> TestService {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    for (name, external_id) in [("web-1", "i-1"), ("web-2", "i-2")] {
        let known =
            v1::Server { source: "cloud".to_owned(), external_id: external_id.to_owned(), ..server(name) };
        client.register(v1::Server { labels: labels(&[("region", "eu")]), ..known }).await;
    }
    for project in ["first", "second"] {
        client.ensure(project, &["api", "web"]).await.unwrap();
    }
    service
}

/// A token of each purpose: to page through allocations, to page through servers, to resume.
async fn tokens(client: &mut Client) -> [String; 3] {
    let list = v1::ListAllocationsRequest { page_size: 1, ..Default::default() };
    let allocations = client.list(list).await.unwrap();
    let list = v1::ListServersRequest { page_size: 1, ..Default::default() };
    let servers = client.inventory.list_servers(list).await.unwrap().into_inner();
    let tokens = [allocations.next_page_token, servers.next_page_token, allocations.resume_token];
    assert!(tokens.iter().all(|token| token.len() > 40));
    tokens
}

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

/// What a server must not be, where it is registered or listed.
fn server_fields<Q: Clone + std::fmt::Debug>(
    table: Table<Q>,
    path: &str,
    at: impl Fn(&mut Q) -> &mut v1::Server,
) -> Table<Q> {
    let field = |name: &str| format!("{path}.{name}");
    let range = |start, end| v1::PortRange { start, end };
    let no_text = || {
        ["a\0", "\n", "\u{7f}"]
            .map(ToOwned::to_owned)
            .into_iter()
            .chain(["🦀".repeat(256), "x".repeat(OVERSIZED)])
    };
    table
        .name(&field("handle"), 128, |q, handle| at(q).handle = handle)
        .each(&field("address"), no_addresses(), |q, address| at(q).address = address)
        .enumeration(&field("status"), 9, |q, status| at(q).status = status)
        .bad(&[&field("status")], |q| at(q).set_status(v1::ServerStatus::InUse))
        .labels(&field("labels"), |q, key, value| drop(at(q).labels.insert(key, value)))
        .bad(&[&field("capacity")], |q| at(q).capacity = None)
        .resources(&field("capacity"), |q, amounts| at(q).capacity = Some(amounts))
        .resources(&field("headroom"), |q, amounts| at(q).headroom = Some(amounts))
        .each(&field("overcommit_percent.cpu"), NO_OVERCOMMIT, |q, cpu| {
            at(q).overcommit_percent = Some(v1::Percentages { cpu: Some(cpu), ..Default::default() });
        })
        .each(&field("overcommit_percent.ram"), NO_OVERCOMMIT, |q, ram| {
            at(q).overcommit_percent = Some(v1::Percentages { ram: Some(ram), ..Default::default() });
        })
        .each(&field("overcommit_percent.disk"), NO_OVERCOMMIT, |q, disk| {
            at(q).overcommit_percent = Some(v1::Percentages { disk: Some(disk), ..Default::default() });
        })
        .port(&field("port_range.start"), |q, port| at(q).port_range = Some(range(port, 9000)))
        .port(&field("port_range.end"), |q, port| at(q).port_range = Some(range(9000, port)))
        .bad(&[&field("port_range")], |q| at(q).port_range = Some(range(9000, 8999)))
        .bad(&[&field("port_range.start"), &field("port_range.end")], |q| {
            at(q).port_range = Some(range(0, 0));
        })
        .port(&field("excluded_ports[1].start"), |q, port| {
            at(q).excluded_ports = vec![range(1, 1), range(port, 9000)];
        })
        .port(&field("excluded_ports[0].end"), |q, port| at(q).excluded_ports = vec![range(9000, port)])
        .bad(&[&field("excluded_ports[0]")], |q| at(q).excluded_ports = vec![range(2, 1)])
        .bad(&[&field("excluded_ports")], |q| at(q).excluded_ports = vec![range(1, 1); 1025])
        .each(&field("external_id"), no_text(), |q, id| at(q).external_id = id)
        .bad(
            &[
                &field("handle"),
                &field("address"),
                &field("capacity"),
                &field("external_id"),
                &field("status"),
                &field("labels[é]"),
                &field("headroom.ram_mb"),
                &field("port_range"),
                &field("excluded_ports[0].end"),
            ],
            |q| {
                let source = at(q).source.clone();
                *at(q) = v1::Server {
                    handle: String::new(),
                    status: 99,
                    labels: labels(&[("é", "")]),
                    headroom: resources(0, u64::MAX, 0),
                    port_range: Some(range(2, 1)),
                    excluded_ports: vec![range(1, 0)],
                    external_id: "\0".to_owned(),
                    source,
                    ..Default::default()
                };
            },
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_registration_is_refused_field_by_field() {
    let service = stocked().await;
    let server = v1::Server { source: "cloud".to_owned(), external_id: "i-3".to_owned(), ..server("web-3") };
    let table = Table::of(v1::RegisterServerRequest { server: Some(server) });
    server_fields(table, "server", |q| q.server.as_mut().unwrap())
        .bad(&["server"], |q| q.server = None)
        .bad(&["server.handle", "server.address", "server.capacity"], |q| {
            q.server = Some(v1::Server::default());
        })
        .each(
            "server.source",
            no_names().into_iter().filter(|name| !name.is_empty()).chain(["x".repeat(64)]),
            |q, source| {
                q.server.as_mut().unwrap().source = source;
            },
        )
        // An external id is somebody's.
        .bad(&["server.external_id"], |q| q.server.as_mut().unwrap().source = String::new())
        .refuse(&service, async |mut client, q| client.inventory.register_server(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_list_of_servers_is_refused_field_by_field() {
    let mut service = stocked().await;
    let [allocations, servers, resume] = tokens(&mut service.client).await;
    Table::of(v1::ListServersRequest::default())
        .enumeration("status", 9, |q, status| q.status = status)
        .each(
            "label",
            ["\0", "a=\n", "a\tb=c"]
                .map(ToOwned::to_owned)
                .into_iter()
                .chain(["🦀".repeat(513), "x".repeat(OVERSIZED)]),
            |q, label| q.label = label,
        )
        .each(
            "source",
            no_names().into_iter().filter(|name| !name.is_empty()).chain(["x".repeat(64)]),
            |q, source| {
                q.source = Some(source);
            },
        )
        .each("page_size", [-1, i32::MIN], |q, size| q.page_size = size)
        .token("page_token", &[servers, allocations, resume], |q, token| q.page_token = token)
        .bad(&["page_size", "status", "label", "page_token", "source"], |q| {
            *q = v1::ListServersRequest {
                status: 99,
                label: "\0".to_owned(),
                source: Some("é".to_owned()),
                page_size: -1,
                page_token: "x".to_owned(),
                managed: None,
            };
        })
        .refuse(&service, async |mut client, q| client.inventory.list_servers(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn a_malformed_update_is_refused_field_by_field() {
    let service = stocked().await;
    let update = |server: v1::Server, paths: &[&str]| v1::UpdateServerRequest {
        server: Some(server),
        update_mask: Some(pbjson_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
    };
    let named = |server: v1::Server, paths: &[&str]| {
        update(v1::Server { handle: "web-1".to_owned(), ..server }, paths)
    };
    let no_paths = [
        "",
        "*",
        "handle",
        "etag",
        "reserved",
        "observed",
        "free",
        "placement_count",
        "create_time",
        "update_time",
        "server",
        "server.status",
        "Status",
        "status ",
        "capacity.",
        "capacity.ram",
        "capacity.ram_mb.x",
        ".status",
        "port_range.start",
        "labels.region",
        "статус",
        "status\0",
        "🦀",
        "'; DROP TABLE servers; --",
        "../status",
        "headroom.",
    ]
    .map(ToOwned::to_owned);
    let range = |start, end| v1::PortRange { start, end };
    let no_masks = [None, Some(pbjson_types::FieldMask::default())];
    let mut table = Table::of(named(server("x"), &["address", "capacity", "headroom", "labels"]))
        .name("server.handle", 128, |q, handle| q.server.as_mut().unwrap().handle = handle)
        .bad(&["server.handle", "server.address"], |q| {
            (q.server, q.update_mask.as_mut().unwrap().paths) = (None, vec!["address".to_owned()]);
        })
        .each("update_mask", no_masks, |q, mask| q.update_mask = mask)
        .each(
            "update_mask",
            no_paths
                .into_iter()
                .chain(["x".repeat(OVERSIZED), "capacity.".to_owned() + &"x".repeat(OVERSIZED)]),
            |q, path| {
                q.update_mask.as_mut().unwrap().paths = vec![path];
            },
        )
        .each("server.address", no_addresses(), |q, address| {
            *q = named(v1::Server { address, ..Default::default() }, &["address"]);
        })
        .enumeration("server.status", 9, |q, status| {
            *q = named(v1::Server { status, ..Default::default() }, &["status"]);
        })
        // IN_USE cannot be set, and to be set to nothing is not to be left.
        .each("server.status", [4, 0], |q, status| {
            *q = named(v1::Server { status, ..Default::default() }, &["status"]);
        })
        .labels("server.labels", |q, key, value| drop(q.server.as_mut().unwrap().labels.insert(key, value)))
        .resources("server.capacity", |q, amounts| q.server.as_mut().unwrap().capacity = Some(amounts))
        .resources("server.headroom", |q, amounts| q.server.as_mut().unwrap().headroom = Some(amounts))
        .port("server.port_range.start", |q, port| {
            *q = named(
                v1::Server { port_range: Some(range(port, 9000)), ..Default::default() },
                &["port_range"],
            );
        })
        .port("server.excluded_ports[0].end", |q, port| {
            *q = named(
                v1::Server { excluded_ports: vec![range(1, port)], ..Default::default() },
                &["excluded_ports"],
            );
        })
        .bad(&["server.excluded_ports"], |q| {
            *q = named(
                v1::Server { excluded_ports: vec![range(1, 1); 1025], ..Default::default() },
                &["excluded_ports"],
            );
        })
        .each("server.source", no_names().into_iter().filter(|name| !name.is_empty()), |q, source| {
            *q = named(v1::Server { source, ..Default::default() }, &["source"]);
        })
        .each(
            "server.external_id",
            ["\0".to_owned(), "🦀".repeat(256), "x".repeat(OVERSIZED)],
            |q, external_id| {
                *q = named(v1::Server { external_id, ..Default::default() }, &["external_id"]);
            },
        )
        .bad(&["server.address", "update_mask", "server.status"], |q| {
            *q = named(
                v1::Server { status: 99, ..Default::default() },
                &["status", "nothing", "address", "status"],
            );
        });
    // Each amount by its own path is told of once, and what no path names is not looked at.
    let too_much = v1::Server {
        capacity: resources(0, u64::MAX, 0),
        headroom: resources(u32::MAX, 0, u64::MAX),
        ..Default::default()
    };
    table = table.bad(&["server.capacity.ram_mb"], |q| {
        *q = named(too_much.clone(), &["capacity.ram_mb", "capacity.disk_mb"]);
    });
    table = table.bad(&["server.headroom.disk_mb"], |q| *q = named(too_much.clone(), &["headroom.disk_mb"]));
    table.refuse(&service, async |mut client, q| client.inventory.update_server(q).await.map(drop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_deletion_or_usage_report_is_refused_field_by_field() {
    let mut service = stocked().await;
    service.client.register(server("spare")).await;
    Table::of(v1::DeleteServerRequest { handle: "spare".to_owned(), etag: String::new() })
        .name("handle", 128, |q, handle| q.handle = handle)
        .refuse(&service, async |mut client, q| client.inventory.delete_server(q).await.map(drop))
        .await;
    let usage = |ports: Vec<u32>| v1::Usage { listening_ports: ports, ..Default::default() };
    Table::of(v1::ReportUsageRequest { handle: "web-1".to_owned(), usage: Some(usage(vec![80, 65_535])) })
        .name("handle", 128, |q, handle| q.handle = handle)
        .bad(&["usage"], |q| q.usage = None)
        .bad(&["handle", "usage"], |q| *q = v1::ReportUsageRequest::default())
        .resources("usage", |q, amounts| {
            let v1::Resources { cpu_millis, ram_mb, disk_mb } = amounts;
            q.usage = Some(v1::Usage { cpu_millis, ram_mb, disk_mb, listening_ports: vec![] });
        })
        .port("usage.listening_ports[2]", |q, port| q.usage = Some(usage(vec![80, 81, port])))
        .bad(&["usage.listening_ports"], |q| q.usage = Some(usage(vec![80; 65_536])))
        .refuse(&service, async |mut client, q| client.inventory.report_usage(q).await.map(drop))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_sync_is_refused_field_by_field() {
    let service = stocked().await;
    let listed = |name: &str| v1::Server {
        source: "cloud".to_owned(),
        external_id: format!("i-{name}"),
        ..server(name)
    };
    let valid = v1::SyncServersRequest {
        source: "cloud".to_owned(),
        servers: vec![listed("web-1"), listed("web-9")],
        ..Default::default()
    };
    let without_source = |q: &mut v1::SyncServersRequest| {
        q.servers.iter_mut().for_each(|server| server.source = String::new());
    };
    server_fields(Table::of(valid), "servers[1]", |q| &mut q.servers[1])
        .name("source", 63, |q, source| {
            without_source(q);
            q.source = source;
        })
        .bad(&["servers[0].source"], |q| q.servers[0].source = "other".to_owned())
        .bad(&["servers[1].handle"], |q| q.servers[1].handle = "web-1".to_owned())
        .bad(&["servers[1].external_id"], |q| q.servers[1].external_id = "i-web-1".to_owned())
        .bad(&["servers"], |q| q.servers = vec![v1::Server::default(); 10_001])
        // Also where it is only asked what would happen, and where it is meant.
        .bad(&["source", "servers[1].address"], |q| {
            without_source(q);
            (q.source, q.validate_only) = (String::new(), true);
            q.servers[1].address = String::new();
        })
        .bad(&["servers[0].handle"], |q| {
            q.allow_mass_missing = true;
            q.servers[0].handle = "é".to_owned();
        })
        .refuse(&service, async |mut client, q| client.inventory.sync_servers(q).await.map(drop))
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

#[tokio::test(flavor = "multi_thread")]
async fn l37_an_etag_that_is_not_the_servers_changes_nothing() {
    let mut service = stocked().await;
    let client = &mut service.client;
    let get = v1::GetServerRequest { handle: "web-2".to_owned() };
    let current = client.inventory.get_server(get).await.unwrap().into_inner().server.unwrap().etag;
    let before = service.database.tables().await;
    let etags = ["x", "0", " ", "\0", "é🦀", "'; DROP TABLE servers; --"].map(ToOwned::to_owned);
    let etags =
        etags.into_iter().chain([format!("{current}0"), current.to_uppercase() + " ", "x".repeat(OVERSIZED)]);
    for etag in etags {
        let known = v1::Server { etag: etag.clone(), address: "192.0.2.9".to_owned(), ..server("web-1") };
        let new = v1::Server { etag: etag.clone(), ..server("web-9") };
        let mask = Some(pbjson_types::FieldMask { paths: vec!["address".to_owned()] });
        for refused in [
            client
                .inventory
                .register_server(v1::RegisterServerRequest { server: Some(known.clone()) })
                .await
                .map(drop),
            client.inventory.register_server(v1::RegisterServerRequest { server: Some(new) }).await.map(drop),
            client
                .inventory
                .update_server(v1::UpdateServerRequest { server: Some(known), update_mask: mask })
                .await
                .map(drop),
            client
                .inventory
                .delete_server(v1::DeleteServerRequest { handle: "web-1".to_owned(), etag })
                .await
                .map(drop),
        ] {
            let refused = refused.unwrap_err();
            let (reason, metadata) = error_info(&refused);
            assert_eq!((refused.code(), reason.as_str()), (Code::Aborted, "ETAG_MISMATCH"));
            assert_eq!(metadata["disposition"], "CALLER");
            tells_no_more_than_it_should(&refused);
        }
    }
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_of_everything_is_taken_and_comes_back() {
    let mut service = TestService::start().await;
    let client = &mut service.client;
    let long = |limit: usize| format!("A{}", ".".repeat(limit - 1));
    let labels: std::collections::BTreeMap<_, _> =
        (0..64).map(|n| (format!("{n:0>63}"), "🦀".repeat(255))).collect();
    let address = [repeat_n('a', 63), repeat_n('b', 63), repeat_n('c', 63), repeat_n('d', 61)]
        .map(String::from_iter)
        .join(".");
    let registered = client
        .register(v1::Server {
            handle: long(128),
            address: address.clone(),
            labels: labels.clone(),
            capacity: resources(1_000_000_000, 1_000_000_000_000, 1_000_000_000_000),
            port_range: Some(v1::PortRange { start: 1, end: 65_535 }),
            excluded_ports: vec![v1::PortRange { start: 1, end: 65_470 }; 1024],
            source: long(63),
            external_id: "🦀".repeat(255),
            ..Default::default()
        })
        .await;
    assert_eq!((&registered.labels, &registered.address), (&labels, &address));
    let modules: Vec<_> = (0..64).map(|n| module(&format!("{n:0>63}"))).collect();
    let placed = client
        .place(v1::EnsureAllocationRequest {
            modules,
            resources: resources(1_000_000_000, 1_000_000_000_000, 1_000_000_000_000),
            server_handle: Some(long(128)),
            server_selector: labels,
            start_port: Some(65_471),
            ..request(&long(128))
        })
        .await
        .unwrap();
    assert_eq!((placed.allocations[0].port, placed.allocations[63].port), (65_471, 65_534));
    let full = client.ensure("other", &[]).await.unwrap_err();
    assert_eq!(error_info(&full).0, "INSUFFICIENT_CAPACITY");
    tells_no_more_than_it_should(&full);

    // Lists with the longest filters go on to their next page.
    // A character that is written in eight where it is escaped.
    let value = "\u{e000}".repeat(255);
    for handle in ["other-1", "other-2"] {
        let labels = [(long(63), value.clone())].into_iter().collect();
        client.register(v1::Server { source: long(63), labels, ..server(handle) }).await;
    }
    let list = v1::ListServersRequest {
        label: format!("{}={value}", long(63)),
        source: Some(long(63)),
        page_size: 1,
        ..Default::default()
    };
    let first = client.inventory.list_servers(list.clone()).await.unwrap().into_inner();
    let second = v1::ListServersRequest { page_token: first.next_page_token, ..list };
    let second = client.inventory.list_servers(second).await.unwrap().into_inner();
    assert_eq!((first.servers[0].handle.as_str(), second.servers[0].handle.as_str()), ("other-1", "other-2"));
    let list = v1::ListAllocationsRequest {
        project_id: Some(long(128)),
        server_handle: Some(long(128)),
        page_size: 1,
        ..Default::default()
    };
    let first = client.list(list.clone()).await.unwrap();
    let second =
        client.list(v1::ListAllocationsRequest { page_token: first.next_page_token, ..list }).await.unwrap();
    assert_eq!(second.allocations[0].module, format!("{:0>63}", 1));
}

// Whatever comes: it is taken, or there is a reason.

fn text() -> BoxedStrategy<String> {
    prop_oneof![
        40 => "[a-c]{1,2}",
        1 => any::<String>(),
        1 => proptest::sample::select(no_names()).prop_map(|name| name.chars().take(200).collect()),
        1 => "[A-Za-z0-9][A-Za-z0-9._:/-]{0,140}",
    ]
    .boxed()
}

fn port() -> BoxedStrategy<u32> {
    prop_oneof![40 => 7990..8010_u32, 4 => 0..70_000_u32, 1 => any::<u32>()].boxed()
}

fn amount() -> BoxedStrategy<u64> {
    prop_oneof![40 => 0..2000_u64, 1 => 999_999_999_990..1_000_000_000_010_u64, 1 => any::<u64>()].boxed()
}

fn amounts() -> BoxedStrategy<Option<v1::Resources>> {
    let cpu = amount().prop_map(|amount| u32::try_from(amount).unwrap_or(u32::MAX));
    option::of((option::of(cpu), option::of(amount()), option::of(amount())))
        .prop_map(|amounts| {
            amounts.map(|(cpu_millis, ram_mb, disk_mb)| v1::Resources { cpu_millis, ram_mb, disk_mb })
        })
        .boxed()
}

fn some_labels() -> BoxedStrategy<std::collections::BTreeMap<String, String>> {
    prop_oneof![3 => Just(std::collections::BTreeMap::new()), 1 => proptest::collection::btree_map(text(), text(), 0..3)].boxed()
}

fn value_of(last: i32) -> BoxedStrategy<i32> {
    prop_oneof![40 => 0..=last, 1 => any::<i32>()].boxed()
}

fn ensures() -> BoxedStrategy<v1::EnsureAllocationRequest> {
    let modules = (text(), option::of(port()), value_of(2))
        .prop_map(|(name, port, protocol)| v1::ModuleSpec { name, port, protocol });
    let wait = || {
        option::weighted(0.05, (any::<i64>(), any::<i32>()))
            .prop_map(|wait| wait.map(|(seconds, nanos)| pbjson_types::Duration { seconds, nanos }))
    };
    (
        (text(), vec(modules, 0..4), amounts(), option::weighted(0.2, text())),
        (some_labels(), option::of(port()), value_of(2), any::<bool>(), wait(), wait()),
    )
        .prop_map(|((project_id, modules, resources, server_handle), rest)| {
            let (server_selector, start_port, strategy, validate_only, wait_for_capacity, ttl) = rest;
            v1::EnsureAllocationRequest {
                project_id,
                modules,
                resources,
                server_handle,
                server_selector,
                start_port,
                strategy,
                validate_only,
                wait_for_capacity,
                ttl,
            }
        })
        .boxed()
}

fn registrations() -> BoxedStrategy<v1::RegisterServerRequest> {
    let range = || (port(), port()).prop_map(|(start, end)| v1::PortRange { start, end });
    let address = prop_oneof![9 => Just("192.0.2.1".to_owned()), 1 => text()];
    let observed = amounts().prop_map(|amounts| amounts.map(|_| v1::ObservedUsage::default()));
    let maybe_text = || prop_oneof![9 => Just(String::new()), 1 => text()];
    let server = (
        (
            text(),
            address,
            prop_oneof![3 => Just(0), 1 => value_of(9)],
            option::of(any::<bool>()),
            some_labels(),
            amounts(),
        ),
        (
            amounts(),
            observed,
            option::weighted(0.3, range()),
            vec(range(), 0..2),
            maybe_text(),
            maybe_text(),
            maybe_text(),
        ),
    )
        .prop_map(|((handle, address, status, managed, labels, capacity), rest)| {
            let (headroom, observed, port_range, excluded_ports, source, external_id, etag) = rest;
            v1::Server {
                handle,
                address,
                status,
                managed,
                labels,
                capacity,
                headroom,
                observed,
                port_range,
                excluded_ports,
                source,
                external_id,
                etag,
                ..Default::default()
            }
        });
    option::weighted(0.98, server).prop_map(|server| v1::RegisterServerRequest { server }).boxed()
}

#[derive(Debug, Clone)]
enum Anything {
    Ensure(v1::EnsureAllocationRequest),
    Register(Box<v1::RegisterServerRequest>),
}

#[test]
fn whatever_is_sent_is_taken_or_refused_with_a_reason() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut service = runtime.block_on(TestService::start());
    // One server that is always there, so that some requests can be granted.
    let capacity = resources(1_000_000, 1_000_000, 1_000_000);
    runtime.block_on(service.client.register(v1::Server { capacity, ..server("solid") }));
    // The same cases in each run.
    let config = Config { cases: 400, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let taken = std::cell::Cell::new([0, 0]);
    let anything = prop_oneof![3 => ensures().prop_map(Anything::Ensure), 2 => registrations().prop_map(|request| Anything::Register(Box::new(request)))];
    let result = runner.run(&anything, |anything| {
        let mut client = service.client.clone();
        let (kind, answer) = runtime.block_on(async {
            match anything {
                Anything::Ensure(request) => (0, client.place(request).await.map(drop)),
                Anything::Register(request) => {
                    (1, client.inventory.register_server(*request).await.map(drop))
                }
            }
        });
        let Err(refusal) = answer else {
            let mut counts = taken.get();
            counts[kind] += 1;
            taken.set(counts);
            return Ok(());
        };
        if matches!(refusal.code(), Code::Internal | Code::Unknown)
            || refusal.get_details_error_info().is_none()
        {
            return Err(TestCaseError::fail(format!("{refusal:?}")));
        }
        tells_no_more_than_it_should(&refusal);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Enough of it was not malformed.
    assert!(taken.get().iter().all(|count| *count > 20), "{taken:?}");
    runtime.block_on(async {
        let database = &service.database;
        // What the contract holds of the tables, whatever was sent.
        assert_eq!(database.count("SELECT count(*) FROM port_allocations AS p WHERE project_id IS NOT NULL AND NOT EXISTS (SELECT FROM placements WHERE (project_id, server_handle) = (p.project_id, p.server_handle))").await, 0);
        assert_eq!(database.count("SELECT count(*) FROM servers AS s WHERE placement_count <> (SELECT count(*) FROM placements WHERE server_handle = s.handle)").await, 0);
        assert_eq!(database.count("SELECT count(*) FROM placements WHERE NOT EXISTS (SELECT FROM port_allocations WHERE project_id = placements.project_id)").await, 0);
    });
}

// Below the messages: bytes, methods and services that are none.

/// Sends bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(target, &item);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = prost::bytes::Buf::remaining(source);
        Ok(Some(prost::bytes::Buf::copy_to_bytes(source, length).to_vec()))
    }
}

async fn send(client: &Client, path: &'static str, bytes: &[u8]) -> Status {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    grpc.unary(Request::new(bytes.to_vec()), path, Raw).await.map(drop).unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_no_method_or_no_service_is_refused_and_the_next_call_answered() {
    const ENSURE: &str = "/resourceallocator.v1.ResourceAllocator/EnsureAllocation";
    let mut service = stocked().await;
    let before = service.database.tables().await;
    let oversized = request(&"x".repeat(17 << 20));
    let oversized = service.client.place(oversized).await.unwrap_err();
    assert_eq!(oversized.code(), Code::OutOfRange, "{oversized:?}");
    let no_method = send(&service.client, "/resourceallocator.v1.ResourceAllocator/Nothing", b"").await;
    assert_eq!(no_method.code(), Code::Unimplemented);
    let no_service = send(&service.client, "/resourceallocator.v1.Nothing/EnsureAllocation", b"").await;
    assert_eq!(no_service.code(), Code::Unimplemented);
    let mut statuses = vec![oversized, no_method, no_service];
    // A field cut off, a wire type that is none, a length past the end, a string that is not UTF-8, a group that never ends.
    for garbage in [
        &b"\x0a"[..],
        b"\x0f",
        b"\x0a\xff\x01",
        b"\x0a\x02\xc3\x28",
        b"\x0b",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        statuses.push(send(&service.client, ENSURE, garbage).await);
    }
    for status in &statuses {
        assert!(!matches!(status.code(), Code::Ok | Code::Unknown | Code::Unavailable), "{status:?}");
        tells_no_more_than_it_should(status);
    }
    // No bytes are a message of defaults.
    let empty = send(&service.client, ENSURE, b"").await;
    assert_eq!(violations(&empty), ["project_id"]);
    // A field that this release does not know is passed over, as protobuf has it.
    let unknown = send(&service.client, ENSURE, b"\xf8\x07\x01").await;
    assert_eq!(violations(&unknown), ["project_id"]);
    assert_eq!(service.database.tables().await, before);
    service.client.ensure("first", &["api"]).await.unwrap();
}
