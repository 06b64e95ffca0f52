//! The shape of `src`: imports point one way, the domain is pure, and one file turns errors into gRPC's.
//!
//! It reads the source as tokens, so that comments and strings count for nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each module at the root of the crate may use of the others. A module that is not here may use none and be used by none.
const MAY_USE: &[(&str, &[&str])] = &[
    // The picture of `lib.rs`: cli → server → http → api → allocator → events → store → domain.
    ("domain", &[]),
    ("store", &["domain", "traced"]),
    ("events", &["store", "domain"]),
    ("allocator", &["events", "store", "domain", "traced"]),
    ("api", &["auth", "allocator", "events", "store", "domain", "proto", "traced"]),
    ("http", &["api", "auth", "allocator", "events", "store", "domain", "proto"]),
    // Who calls: what of it is a matter of the connection, and of the file of credentials.
    ("followed", &[]),
    ("auth", &["domain", "followed"]),
    ("listener", &["auth", "followed"]),
    (
        "server",
        &[
            "listener",
            "auth",
            "http",
            "api",
            "allocator",
            "events",
            "store",
            "domain",
            "proto",
            "shutdown",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "server",
            "http",
            "api",
            "allocator",
            "events",
            "store",
            "domain",
            "proto",
            "config",
            "auth",
            "followed",
            "inventory_file",
            "policy_figure",
            "postgres",
            "shutdown",
            "telemetry",
        ],
    ),
    // Beside it.
    ("proto", &[]),
    ("codec", &[]),
    ("postgres", &[]),
    ("shutdown", &[]),
    ("traced", &[]),
    ("inventory_file", &["proto"]),
    ("policy_figure", &["domain"]),
    ("config", &["listener", "http", "store", "domain", "policy_figure"]),
    ("telemetry", &["config", "followed", "traced"]),
    ("lib", &[]),
    ("main", &[]),
];

/// The most lines of a file, its tests not counted.
const MAX_LINES: usize = 400;

/// Files that are longer for now, and how long each may be. One that was split is taken off the list.
const TOO_LONG: &[(&str, usize)] = &[];

/// What the domain must not name: no IO, no clock, no randomness, no database, no transport.
const IMPURE: &[&str] = &[
    "sqlx",
    "tonic",
    "tokio",
    "prost",
    "SystemTime",
    "Instant",
    "now_utc",
    "now_local",
    "now_v7",
    "new_v4",
    "rand",
    "thread_rng",
    "async",
    "await",
    "env",
    "fs",
    "net",
    "thread",
    "process",
    "println",
    "eprintln",
    "dbg",
];

/// What may be called of a status anywhere: it takes one that is there.
const READS_OF_A_STATUS: &[&str] = &["code", "message", "details", "metadata", "from_header_map"];

struct File {
    /// Relative to `src`, such as `api/status.rs`.
    path: String,
    /// The whole text.
    text: String,
    /// The text before its tests; none of a file that is tests alone. Tests may use what they compare with.
    code: String,
}

impl File {
    /// The module at the root of the crate that the file is of.
    fn root(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// How many `super` lead from the file's module to the root of the crate.
    fn depth(&self) -> usize {
        let file = usize::from(!self.path.ends_with("/mod.rs"));
        self.path.matches('/').count() + file
    }
}

fn sources() -> Vec<File> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    assert!(paths.len() > 50, "the source is not where it was: {}", root.display());
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let is_tests = path.split('/').any(|part| ["tests", "tests.rs", "testing"].contains(&part));
            let code = if is_tests { "" } else { before_tests(&text) };
            File { code: code.to_owned(), path, text }
        })
        .collect()
}

/// The text before the module of its tests, which is the last of it.
fn before_tests(text: &str) -> &str {
    let starts = text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at);
    let is_module = |at: &usize| {
        let item = text[*at..].lines().skip(2).find(|line| !line.starts_with("#["));
        item.is_some_and(|item| item.starts_with("mod tests {"))
    };
    starts.into_iter().find(is_module).map_or(text, |at| &text[..at])
}

/// The words and the punctuation of Rust source, without comments, strings and characters.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let raw_string = ["r\"", "r#\"", "r##\""].iter().find(|start| rest.starts_with(**start));
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(start) = raw_string {
            let end = format!("\"{}", "#".repeat(start.len() - 2));
            rest[start.len()..].find(&end).map_or(rest.len(), |at| start.len() + at + end.len())
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            quoted(rest, '\'')
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// How long the string or character is that starts here.
fn quoted(source: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in source.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    source.len()
}

/// The words that stand next in a path or in each branch of a braced one: `a` of `a::b`, `a` and `b` of `{a::x, b}`.
fn heads(tokens: &[String]) -> Vec<&str> {
    if tokens.first().is_none_or(|token| token != "{") {
        return tokens.first().map(String::as_str).into_iter().collect();
    }
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut at_head = true;
    for token in tokens {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => at_head = true,
            word if depth == 1 && at_head => {
                heads.push(word);
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// The modules at the root of the crate that a file names, by `crate::` or by as many `super::` as lead there.
fn used(file: &File) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let code = tokens(&file.code);
    for (at, _) in code.windows(2).enumerate().filter(|(_, pair)| pair[0] == "crate" && pair[1] == "::") {
        found.extend(heads(&code[at + 2..]).into_iter().map(str::to_owned));
    }
    let step = |at: usize| {
        code.get(at).is_some_and(|token| token == "super")
            && code.get(at + 1).is_some_and(|token| token == "::")
    };
    for at in 0..code.len() {
        let is_start = !(at >= 2 && step(at - 2));
        if is_start && (0..file.depth()).all(|n| step(at + 2 * n)) {
            found.extend(heads(&code[at + 2 * file.depth()..]).into_iter().map(str::to_owned));
        }
    }
    found
}

/// Whether the tokens follow each other somewhere.
fn contains(tokens: &[String], words: &[&str]) -> bool {
    tokens.windows(words.len()).any(|window| window.iter().eq(words))
}

#[test]
fn imports_point_one_way() {
    let allowed: BTreeMap<_, BTreeSet<_>> =
        MAY_USE.iter().map(|(module, may)| (*module, may.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for file in sources() {
        let root = file.root();
        let Some(may_use) = allowed.get(root) else {
            wrong.push(format!("{}: say in this test what `{root}` may use, and who may use it", file.path));
            continue;
        };
        for module in used(&file) {
            // What is not a module of the root is a macro or a re-export, of which there is none.
            if module != root && !may_use.contains(module.as_str()) {
                wrong.push(format!("{} uses crate::{module}", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_program_itself_uses_the_command_line_alone() {
    let main = sources().into_iter().find(|file| file.path == "main.rs").unwrap();
    let all = tokens(&main.text);
    for (at, _) in
        all.windows(2).enumerate().filter(|(_, pair)| pair[0] == "resource_allocator" && pair[1] == "::")
    {
        assert_eq!(heads(&all[at + 2..]), ["cli"]);
    }
    assert!(main.code.lines().count() <= 25);
}

#[test]
fn the_domain_is_pure() {
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|file| file.root() == "domain") {
        let words = tokens(&file.code);
        wrong.extend(
            IMPURE
                .iter()
                .filter(|word| contains(&words, &[word]))
                .map(|word| format!("{}: {word}", file.path)),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn one_file_makes_statuses_and_names_codes() {
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|file| file.path != "api/status.rs") {
        let words = tokens(&file.code);
        // The command line reads the codes that it is sent, HTTP has numbers of its own for them, and people have names.
        if file.root() != "cli"
            && !["http/status.rs", "api/code_name.rs"].contains(&file.path.as_str())
            && (contains(&words, &["Code", "::"]) || contains(&words, &["tonic", "::", "Code"]))
        {
            wrong.push(format!("{} names a code", file.path));
        }
        let makes = |step: &[String]| {
            step[0] == "Status" && step[1] == "::" && !READS_OF_A_STATUS.contains(&step[2].as_str())
        };
        if words.windows(3).any(makes) {
            wrong.push(format!("{} makes a status", file.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_longer_than_can_be_read_at_once() {
    let long: Vec<(String, usize)> = sources()
        .into_iter()
        .map(|file| (file.path, file.code.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .collect();
    let known: Vec<&str> = TOO_LONG.iter().map(|(path, _)| *path).collect();
    let names: Vec<&str> = long.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(names, known, "more than {MAX_LINES} lines: {long:?}");
    for ((path, lines), (_, limit)) in long.iter().zip(TOO_LONG) {
        assert!(lines <= limit, "{path} grew to {lines} lines");
    }
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> =
        sources().into_iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path).collect();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn the_source_is_read_as_the_compiler_reads_it() {
    let file =
        |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned(), code: text.to_owned() };
    let source = r##"
        // use crate::comment;
        use crate::{api::{self, store}, domain::Fleet, events};
        use super::{allocator as a};
        use super::super::server;
        fn f<'a>(x: &'a str) -> char { "crate::string"; r#"crate::"raw"#; '"'; '\''; crate::cli::run(); 'x' }
    "##;
    let found = |path| used(&file(path, source)).into_iter().collect::<Vec<_>>();
    assert_eq!(found("config.rs"), ["allocator", "api", "cli", "domain", "events", "super"]);
    assert_eq!(found("api/mod.rs"), ["allocator", "api", "cli", "domain", "events", "super"]);
    assert_eq!(found("domain/placement/score.rs"), ["api", "cli", "domain", "events"]);
    assert_eq!(found("api/status.rs"), ["api", "cli", "domain", "events", "server"]);
}
