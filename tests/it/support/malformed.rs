//! What no field takes, and tables of requests that are malformed: each is refused by its path, with nothing written and nothing of
//! the inside told.

use std::iter::repeat_n;

use resource_allocator::proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{
    Client, TestService, error_info,
    requests::{labels, module, module_at},
    server, violations,
};

/// What is no over-commit, in percent.
pub const NO_OVERCOMMIT: [u32; 4] = [0, 99, 10_001, u32::MAX];

/// A string far longer than any field takes.
pub const OVERSIZED: usize = 1 << 20;

/// What is no name of a project, a server, a module, a source or a label, whatever punctuation these allow.
pub fn no_names() -> Vec<String> {
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
pub fn no_addresses() -> Vec<String> {
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
pub fn tells_no_more_than_it_should(status: &Status) {
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
pub struct Table<Q> {
    valid: Q,
    cases: Vec<(Q, Vec<String>)>,
}

impl<Q: Clone + std::fmt::Debug> Table<Q> {
    pub fn of(valid: Q) -> Self {
        Self { valid, cases: Vec::new() }
    }

    /// What the change makes malformed at these paths.
    pub fn bad(mut self, paths: &[&str], change: impl FnOnce(&mut Q)) -> Self {
        let mut request = self.valid.clone();
        change(&mut request);
        self.cases.push((request, paths.iter().map(|path| (*path).to_owned()).collect()));
        self
    }

    /// Each of the values makes it malformed at this path.
    pub fn each<T>(self, path: &str, values: impl IntoIterator<Item = T>, set: impl Fn(&mut Q, T)) -> Self {
        values.into_iter().fold(self, |table, value| table.bad(&[path], |request| set(request, value)))
    }

    /// A name of at most `limit` characters.
    pub fn name(self, path: &str, limit: usize, set: impl Fn(&mut Q, String)) -> Self {
        self.each(path, no_names().into_iter().chain(["x".repeat(limit + 1)]), set)
    }

    /// A port.
    pub fn port(self, path: &str, set: impl Fn(&mut Q, u32)) -> Self {
        self.each(path, [0, 65_536, 80_000, 1 << 31, u32::MAX], set)
    }

    /// An enum whose last value is `last`.
    pub fn enumeration(self, path: &str, last: i32, set: impl Fn(&mut Q, i32)) -> Self {
        self.each(path, [last + 1, 99, -1, i32::MIN, i32::MAX], set)
    }

    /// Amounts.
    pub fn resources(self, path: &str, set: impl Fn(&mut Q, v1::Resources)) -> Self {
        let cpu = |amount| v1::Resources { cpu_millis: Some(amount), ..Default::default() };
        let ram = |amount| v1::Resources { ram_mb: Some(amount), ..Default::default() };
        let disk = |amount| v1::Resources { disk_mb: Some(amount), ..Default::default() };
        let megabytes = [1_000_000_000_001, i64::MAX as u64, 1 << 63, u64::MAX];
        self.each(&format!("{path}.cpu_millis"), [1_000_000_001, u32::MAX], |q, amount| set(q, cpu(amount)))
            .each(&format!("{path}.ram_mb"), megabytes, |q, amount| set(q, ram(amount)))
            .each(&format!("{path}.disk_mb"), megabytes, |q, amount| set(q, disk(amount)))
    }

    /// Labels.
    pub fn labels(self, path: &str, set: impl Fn(&mut Q, String, String)) -> Self {
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
    pub fn modules(self, modules: impl Fn(&mut Q) -> &mut Vec<v1::ModuleSpec>) -> Self {
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
    pub fn token(self, path: &str, given: &[String], set: impl Fn(&mut Q, String)) -> Self {
        // The first is of this purpose, the others of another one.
        let tokens = forged(&given[0]).into_iter().chain(given[1..].iter().cloned());
        self.each(path, tokens, set)
    }

    /// Sends everything, and the valid request last.
    pub async fn refuse(self, service: &TestService, call: impl AsyncFn(Client, Q) -> Result<(), Status>) {
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
pub async fn stocked() -> TestService {
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
pub async fn tokens(client: &mut Client) -> [String; 3] {
    let list = v1::ListAllocationsRequest { page_size: 1, ..Default::default() };
    let allocations = client.list(list).await.unwrap();
    let list = v1::ListServersRequest { page_size: 1, ..Default::default() };
    let servers = client.inventory.list_servers(list).await.unwrap().into_inner();
    let tokens = [allocations.next_page_token, servers.next_page_token, allocations.resume_token];
    assert!(tokens.iter().all(|token| token.len() > 40));
    tokens
}
