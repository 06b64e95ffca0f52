//! Secrets are told nowhere: not in the log however much of it is written, not in errors, help or the names of processes.

use std::{fs, process::Output};

use resource_allocator::auth::Token;

use crate::support::{
    TestDatabase,
    certificates::{Authority, CertificateFolder},
    credentials::CredentialFile,
    process::{Ended, binary, folder, run},
};

const PASSWORD: &str = "hunter2";

#[track_caller]
fn assert_silent(what: &str, said: &str, secrets: &[&str]) {
    for secret in secrets {
        assert!(!said.contains(secret), "{what} tells a secret: {said}");
    }
}

fn all(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_told_by_a_service_or_its_clients() {
    let ours = Authority::new("ours");
    let pair = ours.service();
    let certificates = CertificateFolder::of(&pair);
    certificates.write("authority.pem", &ours.pem);
    let path = |name: &str| certificates.path(name).to_str().unwrap().to_owned();
    let mut file = CredentialFile::new();
    let token = file.token("reader", "viewer", "");
    let unknown = Token::new().unwrap().expose().to_owned();
    let key = pair.key.lines().nth(1).unwrap();
    let database = TestDatabase::create().await;
    // The tests' Postgres asks for no password, and takes any.
    let url = database.url().replacen('@', &format!(":{PASSWORD}@"), 1);
    assert!(url.contains(PASSWORD));
    let secrets = [PASSWORD, token.as_str(), unknown.as_str(), key];

    let mut command = binary();
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    command
        .env("DATABASE_URL", &url)
        .env("RUST_LOG", "trace")
        .env("RESOURCE_ALLOCATOR_AUTH_TOKENS", file.path());
    command.env("RESOURCE_ALLOCATOR_TLS_CERTIFICATE", path("service.pem"));
    command.env("RESOURCE_ALLOCATOR_TLS_KEY", path("service.key"));
    let service = Ended::start(command);
    let address = service.said.wait_for("listening on ");
    let call = |arguments: &[&str], token: &str| {
        let mut command = binary();
        command.args(arguments).args(["--endpoint", &format!("https://{address}")]);
        command.env("RESOURCE_ALLOCATOR_TOKEN", token).env("RUST_LOG", "trace");
        command.env("RESOURCE_ALLOCATOR_TLS_CA", path("authority.pem"));
        command.output().unwrap()
    };
    for (arguments, code) in [
        (&["servers", "list"][..], 0),
        (&["servers", "delete", "web-1"], 4),
        (&["get", "shop", "-o", "json"], 4),
    ] {
        let answer = call(arguments, &token);
        assert_eq!(answer.status.code(), Some(code), "{answer:?}");
        assert_silent("a client", &all(&answer), &secrets);
        let refused = call(arguments, &unknown);
        assert_eq!(refused.status.code(), Some(4), "{refused:?}");
        assert_silent("a client that is refused", &all(&refused), &secrets);
    }
    // A token that cannot be a header, and a file that is none of credentials.
    let refused = call(&["servers", "list"], &format!("{unknown}\u{1}"));
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert_silent("a client with a malformed token", &all(&refused), &secrets);
    fs::write(file.path(), format!("[[tokens]]\ntoken = '{unknown}'\nname = '{token}'\n")).unwrap();
    service.said.wait_for("credentials changed and make no sense");
    certificates.write("service.key", &pair.key.replace("END", "end"));
    service.said.wait_for("certificates changed and make no sense");

    if let Ok(title) = fs::read_to_string(format!("/proc/{}/cmdline", service.pid().as_raw_nonzero())) {
        assert_silent("the name of the process", &title, &secrets);
    }
    assert_silent("the log", &service.said.text(), &secrets);
}

#[test]
fn no_secret_is_told_by_help_or_by_a_start_that_fails() {
    let url = format!("postgres://u:{PASSWORD}@127.0.0.1:1/x");
    let token = Token::new().unwrap().expose().to_owned();
    let folder = folder();
    let files = folder.path().join("tokens.toml");
    fs::write(&files, format!("[[tokens]]\nname = 'a'\nrole = 'viewer'\nsha256 = '{token}'\n")).unwrap();
    let secrets = [PASSWORD, token.as_str()];
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["migrate", "--help"],
        &["audit", "--help"],
        &["list", "--help"],
        &["serve", "--listen", "127.0.0.1:0", "--auth-tokens", files.to_str().unwrap()],
        &["serve", "--listen", "127.0.0.1:0"],
        &["migrate"],
        &["audit"],
        &["serve", "--unknown"],
        &["list", "--all-pages"],
    ] {
        let mut command = binary();
        command.args(arguments).env("DATABASE_URL", &url).env("RESOURCE_ALLOCATOR_TOKEN", &token);
        command.env("RUST_LOG", "trace");
        assert_silent(&format!("{arguments:?}"), &all(&command.output().unwrap()), &secrets);
    }
    // A token is made, and told once.
    let made = run(&["token", "new", "--name", "a", "--role", "viewer"]);
    let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    assert_silent("the entry", &String::from_utf8_lossy(&made.stderr), &[&token]);
}
