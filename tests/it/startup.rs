//! What stands in the way of a start is told in one clear line, with an exit code, and without a password or a backtrace.

use std::{fs, net::TcpListener, path::Path, process::Output};

use sqlx::{Connection as _, PgConnection};

use crate::support::{
    TestDatabase,
    certificates::{Authority, CertificateFolder},
    process::{binary, folder, run},
};

/// What a failed start says: its exit code and its one error line.
struct Refusal {
    code: Option<i32>,
    line: String,
    /// The line and what follows it, such as the place in a file or a hint at `--help`.
    text: String,
}

/// Takes the error line of a start that failed, and looks at what must be true of every one.
fn refusal(output: &Output) -> Refusal {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line: {said}");
    assert!(output.stdout.is_empty(), "nothing on standard output: {output:?}");
    for word in ["hunter2", "panicked", "RUST_BACKTRACE", "stack backtrace", "Caused by"] {
        assert!(!said.contains(word), "`{word}` in: {said}");
    }
    Refusal { code: output.status.code(), line: errors[0].to_owned(), text: said.clone() }
}

fn refused(arguments: &[&str]) -> Refusal {
    refusal(&run(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat()))
}

#[track_caller]
fn assert_refused(arguments: &[&str], code: i32, words: &[&str]) {
    let refusal = refused(arguments);
    assert_eq!(refusal.code, Some(code), "{arguments:?}: {}", refusal.line);
    for word in words {
        assert!(refusal.line.contains(word), "{arguments:?}: no `{word}` in: {}", refusal.line);
    }
    // What the system said is told once.
    for cause in ["(os error", "Connection refused"] {
        assert!(refusal.line.matches(cause).count() <= 1, "{arguments:?}: twice in: {}", refusal.line);
    }
}

#[test]
fn an_unreachable_database_is_told_with_its_place_and_cause() {
    let url = "postgres://u:hunter2@127.0.0.1:1/x";
    assert_refused(&["--database-url", url], 1, &["cannot reach the database", "127.0.0.1:1", "refused"]);
    let by_environment =
        binary().args(["serve", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", url).output();
    let refusal = refusal(&by_environment.unwrap());
    assert_eq!(refusal.code, Some(1));
    assert!(refusal.line.contains("127.0.0.1:1"), "{}", refusal.line);
    // However much is logged.
    let logged = binary()
        .args(["serve", "--listen", "127.0.0.1:0", "--database-url", url])
        .env("RUST_LOG", "trace")
        .output();
    assert!(!String::from_utf8_lossy(&logged.unwrap().stderr).contains("hunter2"));
}

#[test]
fn a_host_name_that_does_not_exist_is_told() {
    let url = "postgres://u:hunter2@no-such-host.invalid/x";
    assert_refused(&["--database-url", url], 1, &["cannot reach the database", "no-such-host.invalid"]);
}

#[test]
fn a_database_url_that_is_none_is_wrong_usage_and_its_password_stays_unsaid() {
    for (url, word) in [
        ("mysql://u:hunter2@127.0.0.1:1/x", "postgres://"),
        ("u:hunter2@127.0.0.1:1/x", "postgres://"),
        ("postgres://u:hunter2@[/x", "not a valid"),
        ("postgres://u:hunter2@host:port/x", "not a valid"),
    ] {
        assert_refused(&["--database-url", url], 2, &["--database-url", word]);
        let by_environment = binary().arg("serve").env("DATABASE_URL", url).output();
        let refusal = refusal(&by_environment.unwrap());
        assert_eq!(refusal.code, Some(2), "{url}");
        assert!(refusal.line.contains(word), "{}", refusal.line);
    }
    assert_eq!(
        refusal(&run(&["migrate", "--database-url", "mysql://u:hunter2@127.0.0.1:1/x"])).code,
        Some(2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_exist_is_told_by_name() {
    let database = TestDatabase::create().await;
    let (server, parameters) = database.url().split_once('?').unwrap_or((database.url(), ""));
    let (server, _) = server.rsplit_once('/').unwrap();
    let url = format!("{server}/no_such_database?{parameters}");
    assert_refused(&["--database-url", &url], 1, &["no_such_database", "does not exist"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_release_is_left_alone() {
    let database = TestDatabase::create().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'from the future', true, '\\x00', 0)",
    )
    .execute(&database.sql)
    .await
    .unwrap();
    assert_refused(&["--database-url", database.url()], 1, &["newer release", "9999"]);
    let migrate = refusal(&run(&["migrate", "--database-url", database.url()]));
    assert_eq!(migrate.code, Some(1));
    assert!(migrate.line.contains("newer release"), "{}", migrate.line);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_build_is_left_alone() {
    let database = TestDatabase::create().await;
    sqlx::query("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1")
        .execute(&database.sql)
        .await
        .unwrap();
    assert_refused(&["--database-url", database.url()], 1, &["migration 1", "differs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_told() {
    let database = TestDatabase::create().await;
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut conn).await.unwrap();
    let statement = format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on");
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut conn).await.unwrap();
    // There is something to migrate, so that the start cannot do without writing.
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 4").execute(&mut conn).await.unwrap();
    assert_refused(&["--database-url", database.url()], 1, &["read-only", "primary"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_told_by_its_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let database = TestDatabase::create().await;
    let output = run(&["serve", "--listen", &address, "--database-url", database.url()]);
    let refusal = refusal(&output);
    assert_eq!(refusal.code, Some(1));
    assert!(refusal.line.contains(&format!("cannot listen on {address}")), "{}", refusal.line);
    assert_eq!(refusal.line.matches("in use").count(), 1, "{}", refusal.line);
}

#[test]
fn no_credentials_beyond_loopback_means_no_l38() {
    let url = "postgres://u:hunter2@127.0.0.1:1/x";
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let folder = CertificateFolder::of(&ours.service());
    let path = |name: &str| folder.path(name).to_str().unwrap().to_owned();
    folder.write("clients.pem", &theirs.pem);
    folder.write("tokens.toml", "");
    let tls = ["--tls-certificate", &path("service.pem"), "--tls-key", &path("service.key")];
    let client_ca = ["--tls-client-ca", &path("clients.pem")];
    let tokens = ["--auth-tokens", &path("tokens.toml")];
    let asked_for = ["--insecure-allow-remote"];
    for listen in ["0.0.0.0:0", "[::]:0"] {
        for (flags, told) in [
            (vec![], "there is neither TLS (--tls-certificate and --tls-key) nor authentication"),
            (vec![&tls[..]], "there is no authentication (--auth-tokens or --tls-client-ca)"),
            (vec![&tokens[..]], "there is no TLS (--tls-certificate and --tls-key)"),
            // With what is asked for, or told by name to do without, it fails on what comes next.
            (vec![&tls[..], &tokens[..]], "cannot reach the database"),
            (vec![&tls[..], &client_ca[..]], "cannot reach the database"),
            (vec![&tls[..], &asked_for[..]], "cannot reach the database"),
            (vec![&tokens[..], &asked_for[..]], "cannot reach the database"),
            (vec![&asked_for[..]], "cannot reach the database"),
        ] {
            let arguments = ["serve", "--listen", listen, "--database-url", url];
            let refusal = refusal(&run(&[&arguments[..], &flags.concat()].concat()));
            assert_eq!(refusal.code, Some(1));
            assert!(refusal.line.contains(told), "{flags:?}: {}", refusal.line);
            let starts = told == "cannot reach the database";
            assert_eq!(refusal.line.contains("--insecure-allow-remote"), !starts, "{flags:?}");
        }
    }
}

#[test]
fn certificates_and_credentials_that_cannot_be_used_are_told_by_their_file() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let folder = CertificateFolder::of(&ours.service());
    let write = |name: &str, text: &str| folder.write(name, text).to_str().unwrap().to_owned();
    let (certificate, key) =
        (write("a.pem", &ours.service().certificate), write("a.key", &other.service().key));
    let (empty, secret) = (write("empty.pem", ""), write("tokens.toml", "[[tokens]]\ntoken = 'hunter2'\n"));
    let missing = folder.path("missing").to_str().unwrap().to_owned();
    for (flags, word) in [
        (
            vec!["--tls-certificate", &certificate, "--tls-key", &key],
            "the certificate and its key cannot be used",
        ),
        (vec!["--tls-certificate", &empty, "--tls-key", &key], "there is no certificate in"),
        (vec!["--tls-certificate", &certificate, "--tls-key", &empty], "there is no key in"),
        (vec!["--tls-certificate", &missing, "--tls-key", &key], "No such file"),
        (vec!["--auth-tokens", &missing], "No such file"),
        (vec!["--auth-tokens", &secret], "line 2: unknown field `token`"),
    ] {
        assert_refused(&[&flags[..], &["--database-url", "postgres://u@127.0.0.1:1/x"]].concat(), 1, &[word]);
    }
    // One half of a pair is wrong usage.
    for flags in [["--tls-certificate", &certificate], ["--tls-key", &key], ["--tls-client-ca", &certificate]]
    {
        assert_refused(&flags, 2, &["required"]);
    }
}

#[test]
fn a_data_folder_that_cannot_be_used_is_told_by_name() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let inside = file.join("data");
    assert_refused(&["--data-dir", inside.to_str().unwrap()], 1, &[inside.to_str().unwrap(), "--data-dir"]);
    // Where not even root may write.
    if Path::new("/proc/self").exists() {
        assert_refused(&["--data-dir", "/proc/nowhere"], 1, &["/proc/nowhere", "--data-dir"]);
    }
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let data_dir = folder.path().join("data");
    let arguments = ["--data-dir", data_dir.to_str().unwrap(), "--postgres-bin", empty.to_str().unwrap()];
    assert_refused(&arguments, 1, &[empty.to_str().unwrap(), "--postgres-bin"]);
}

#[test]
fn an_inventory_that_cannot_be_read_is_told_before_anything_is_started() {
    let folder = folder();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let missing = folder.path().join("missing.toml");
    let missing = missing.to_str().unwrap();
    let data_dir = folder.path().join("data");
    for (path, word) in [
        (missing.to_owned(), "No such file"),
        (file("malformed.toml", "[[servers]\nhandle = 'a'"), "line 1"),
        (file("malformed.json", "{\"servers\": ["), "line 1"),
        (file("unknown.toml", "[[servers]]\nhandle = 'a'\naddress = 'b'\ncolour = 'red'\n"), "colour"),
        (
            file(
                "twice.json",
                r#"{"servers": [{"handle": "a", "address": "b", "capacity": {"ram_mb": 1}}, {"handle": "a", "address": "b", "capacity": {"ram_mb": 1}}]}"#,
            ),
            "same handle `a`",
        ),
        (file("inventory.yaml", "servers: []"), ".toml or .json"),
    ] {
        let refusal = refused(&["--inventory", &path, "--data-dir", data_dir.to_str().unwrap()]);
        assert_eq!(refusal.code, Some(1), "{path}");
        assert!(refusal.line.contains(&path), "{}", refusal.line);
        assert!(refusal.text.contains(word), "no `{word}` in {}", refusal.text);
    }
    assert!(!data_dir.exists(), "no Postgres was made for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inventory_with_a_bad_server_is_told_by_its_handle() {
    let folder = folder();
    let path = folder.path().join("servers.toml");
    fs::write(
        &path,
        "[[servers]]\nhandle = 'good'\naddress = '192.0.2.1'\ncapacity = { ram_mb = 1024 }\n\
         [[servers]]\nhandle = 'bad'\naddress = 'not an address'\ncapacity = { ram_mb = 1024 }\n",
    )
    .unwrap();
    let database = TestDatabase::create().await;
    let arguments = ["--inventory", path.to_str().unwrap(), "--database-url", database.url()];
    assert_refused(&arguments, 1, &["`bad`", "address"]);
}

#[test]
fn wrong_usage_is_told_before_anything_is_started() {
    for (arguments, word) in [
        (&["--usage-max-age", "soon"][..], "--usage-max-age"),
        (&["--port-rest", "60"], "--port-rest"),
        (&["--drain-timeout=-1s"], "--drain-timeout"),
        (&["--listen", "localhost"], "--listen"),
        (&["--cors-origin", "*"], "--cors-origin"),
        (&["--cors-origin", "https://a.example.com/path"], "--cors-origin"),
        (&["--strategy", "random"], "--strategy"),
        (&["--queue-limit", "0"], "--queue-limit"),
        (&["--line-limit", "0"], "--line-limit"),
        (&["--database-connections", "1"], "--database-connections"),
        (&["--log-format", "xml"], "--log-format"),
        (&["--unknown"], "--unknown"),
        (&["surplus"], "surplus"),
    ] {
        let refusal = refusal(&run(&[&["serve"], arguments].concat()));
        assert_eq!(refusal.code, Some(2), "{arguments:?}: {}", refusal.line);
        assert!(refusal.line.contains(word), "{arguments:?}: {}", refusal.line);
    }
    for (variable, value) in [
        ("RESOURCE_ALLOCATOR_PORT_REST", "later"),
        ("RESOURCE_ALLOCATOR_CORS_ORIGINS", "https://a.example.com,*"),
    ] {
        let by_environment = binary().arg("serve").env(variable, value).output().unwrap();
        assert_eq!(refusal(&by_environment).code, Some(2), "{variable}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_can_be_brought_up_to_date_by_itself() {
    let database = TestDatabase::create().await;
    let output = run(&["migrate", "--database-url", database.url()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("the schema is up to date: migration "), "{said}");
}
