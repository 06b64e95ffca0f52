//! The shape of `src`: imports point one way, the domain is pure, and one file turns errors into gRPC's; and the page of lessons,
//! whose codes the source and the tests name.
//!
//! It reads the source as tokens, so that comments and strings count for nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
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

/// The files below a folder whose names end so, in order.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().and_then(OsStr::to_str);
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if extension.is_some_and(|extension| extensions.contains(&extension)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let paths = files(&root, &["rs"]);
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
    assert!(long.is_empty(), "more than {MAX_LINES} lines: {long:?}");
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> =
        sources().into_iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path).collect();
    assert!(silent.is_empty(), "{silent:?}");
}

/// The lessons whose codes a text has: `L7` in a comment, `l07` in a name.
fn lessons(text: &str) -> BTreeSet<u32> {
    let number = |word: &str| {
        let digits = word.strip_prefix(['L', 'l'])?;
        let is_code = (1..=2).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
        is_code.then(|| digits.parse().unwrap())
    };
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter_map(number).collect()
}

/// The rows of the page: the number of a lesson, and the tests that hold it, each as `file::name`.
fn rows_of_lessons(page: &str) -> Vec<(u32, Vec<&str>)> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| L")?.split(" | ");
            let number = cells.next()?.parse().ok()?;
            let tests = cells.nth(1)?.split('`').filter(|part| part.contains("::"));
            Some((number, tests.collect()))
        })
        .collect()
}

#[test]
fn every_lesson_has_its_rule_and_the_tests_that_hold_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/lessons.md")).unwrap();
    let rows = rows_of_lessons(&page);
    let numbers: Vec<u32> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=47).collect::<Vec<_>>());

    let mut wrong = Vec::new();
    let mut naming = files(&root.join("src"), &["rs"]);
    naming.extend(files(&root.join("tests"), &["rs", "py"]));
    naming.push(root.join("ARCHITECTURE.md"));
    for path in naming {
        let named = lessons(&fs::read_to_string(&path).unwrap());
        let unknown = named.into_iter().filter(|number| !numbers.contains(number));
        wrong.extend(unknown.map(|number| format!("{}: the page has no L{number}", path.display())));
    }
    for (number, tests) in rows {
        if tests.is_empty() {
            wrong.push(format!("L{number}: no test holds it"));
        }
        for test in tests {
            let (file, name) = test.split_once("::").unwrap();
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            if !["fn", "def"].iter().any(|word| text.contains(&format!("{word} {name}("))) {
                wrong.push(format!("L{number}: there is no {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_code_is_found_in_comments_and_in_names() {
    let text = "/// Fixed (L46), html5. async fn l02_l04_absent() {} fn ties_l26() {} let l = xl3 + l123;";
    assert_eq!(lessons(text).into_iter().collect::<Vec<_>>(), [2, 4, 26, 46]);
    let page = "| code | rule | tests |\n| L7 | a rule | `a.rs::f`, `b.py::g` |\n| L8 | none | |";
    assert_eq!(rows_of_lessons(page), [(7, vec!["a.rs::f", "b.py::g"]), (8, vec![])]);
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
