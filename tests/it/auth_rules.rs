//! Which role may call what: every cell of the table against a live service, and the table against the API and its page.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use prost_reflect::DescriptorPool;
use reqwest::{Client as Http, Method, StatusCode, Version};
use resource_allocator::{
    auth::{
        Role,
        rules::{self, Access, RULES},
    },
    proto::FILE_DESCRIPTOR_SET,
};
use tonic::{Code, Status};

use crate::support::{TestDatabase, TestService, credentials::CredentialFile, error_info};

/// How a call is made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Grpc,
    GrpcWeb,
    Json,
}

/// What became of a call at the gate.
#[derive(Debug, PartialEq)]
enum Verdict {
    Passed,
    Unauthenticated,
    Forbidden,
}

struct Caller<'a> {
    http1: &'a Http,
    http2: &'a Http,
    address: String,
}

impl Caller<'_> {
    /// Calls with a message that has nothing set, which whatever is behind the gate may refuse as it likes.
    async fn call(&self, path: &str, by: By, authorization: Option<&str>) -> Verdict {
        let url = format!("http://{}{path}", self.address);
        let mut request = match by {
            By::Grpc => {
                self.http2.request(Method::POST, url).version(Version::HTTP_2).header("te", "trailers")
            }
            By::GrpcWeb => self.http1.request(Method::POST, url),
            By::Json => self.http1.request(Method::GET, url + "?project_id=shop"),
        };
        let content_type = match by {
            By::Grpc => Some("application/grpc"),
            By::GrpcWeb => Some("application/grpc-web+proto"),
            By::Json => None,
        };
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type).body(vec![0; 5]);
        }
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let response = request.send().await.unwrap();
        if by == By::Json {
            return match response.status() {
                StatusCode::UNAUTHORIZED => {
                    assert_eq!(response.headers()["www-authenticate"], "Bearer");
                    Verdict::Unauthenticated
                }
                StatusCode::FORBIDDEN => Verdict::Forbidden,
                _ => Verdict::Passed,
            };
        }
        // A refusal without a message is in the headers; what comes later has passed the gate.
        let Some(refused) = Status::from_header_map(response.headers()) else { return Verdict::Passed };
        let verdict = match refused.code() {
            Code::Unauthenticated => Verdict::Unauthenticated,
            Code::PermissionDenied => Verdict::Forbidden,
            _ => return Verdict::Passed,
        };
        let (reason, metadata) = error_info(&refused);
        let expected = if verdict == Verdict::Forbidden { "FORBIDDEN" } else { "UNAUTHENTICATED" };
        assert_eq!((reason.as_str(), metadata["disposition"].as_str()), (expected, "CALLER"), "{path}");
        verdict
    }
}

/// Each row: its path, what it takes, and how it is called.
fn rows() -> Vec<(String, Access, Vec<By>)> {
    let rows = RULES.iter().flat_map(|(prefix, rules)| {
        rules.iter().map(move |(name, access)| {
            let by = if *prefix == "/" { vec![By::Json] } else { vec![By::Grpc, By::GrpcWeb] };
            (format!("{prefix}{name}"), *access, by)
        })
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_call_what_the_table_says() {
    let mut file = CredentialFile::new();
    let tokens: Vec<_> = Role::ALL.map(|role| (role, file.token(role.as_str(), role.as_str(), ""))).into();
    let mut builder = TestService::builder();
    builder.auth_tokens = Some(file.path());
    let database = TestDatabase::create().await;
    let (running, _shutdown) = builder.serve(database.connect_options()).await;
    let http1 = Http::builder().build().unwrap();
    let http2 = Http::builder().http2_prior_knowledge().build().unwrap();
    let caller = Caller { http1: &http1, http2: &http2, address: running.address.to_string() };
    let mut cells = 0;
    let mut wrong = String::new();
    for (path, access, ways) in rows() {
        for by in ways {
            let mut check = |who: &str, is: Verdict, expected: Verdict| {
                cells += 1;
                if is != expected {
                    writeln!(wrong, "{who} calls {path} by {by:?}: {is:?}, not {expected:?}").unwrap();
                }
            };
            let unknown = if access == Access::Open { Verdict::Passed } else { Verdict::Unauthenticated };
            for bad in [None, Some("Bearer ra_unknown"), Some("Basic YTpi"), Some("Bearer")] {
                let expected =
                    if unknown == Verdict::Passed { Verdict::Passed } else { Verdict::Unauthenticated };
                check(bad.unwrap_or("nobody"), caller.call(&path, by, bad).await, expected);
            }
            for (role, token) in &tokens {
                let may = match access {
                    Access::Open => true,
                    Access::From(takes) => *role >= takes,
                };
                let expected = if may { Verdict::Passed } else { Verdict::Forbidden };
                let is = caller.call(&path, by, Some(&format!("Bearer {token}"))).await;
                check(role.as_str(), is, expected);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(cells > 400, "{cells}");
    // What is nowhere is told to those alone that are known.
    let viewer = format!("Bearer {}", tokens[0].1);
    for (path, by) in [("/nowhere.Service/Method", By::Grpc), ("/metrics", By::Json), ("/", By::Json)] {
        assert_eq!(caller.call(path, by, None).await, Verdict::Unauthenticated, "{path}");
        assert_eq!(caller.call(path, by, Some(&viewer)).await, Verdict::Passed, "{path}");
    }
}

#[test]
fn every_rpc_has_a_row_and_every_row_an_rpc() {
    let mut methods = BTreeSet::new();
    for set in [
        FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        for service in DescriptorPool::decode(set).unwrap().services() {
            methods.extend(
                service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name())),
            );
        }
    }
    assert!(methods.len() > 20, "{methods:?}");
    let rows: BTreeSet<_> =
        rows().into_iter().filter(|(_, _, by)| !by.contains(&By::Json)).map(|(path, ..)| path).collect();
    assert_eq!(rows, methods);
}

#[test]
fn the_page_about_security_has_the_same_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let page = fs::read_to_string(page).unwrap();
    let told: BTreeSet<_> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `/")?.split('|').map(str::trim);
            Some((format!("/{}", cells.next()?.trim_end_matches('`')), cells.next()?.to_owned()))
        })
        .collect();
    let expected: BTreeSet<_> = rows()
        .into_iter()
        .map(|(path, access, _)| {
            let takes = match access {
                Access::Open => "open".to_owned(),
                Access::From(role) => role.to_string(),
            };
            (path, takes)
        })
        .collect();
    assert_eq!(told, expected);
    assert_eq!(rules::access("/healthz"), Access::Open);
}
