//! What the port answers beside gRPC, by a real HTTP client over a real socket: JSON for callers that poll, probes, gRPC-web,
//! and what is no request of any of these.

use std::{str::FromStr as _, time::Duration};

use prost::Message as _;
use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use resource_allocator::{http::Origin, postgres, proto::v1, server::RunningServer};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;
use tonic_types::{ErrorDetails, Status as RpcStatus, StatusExt as _};

use crate::support::{
    Client, TestService, error_info,
    process::{PATIENCE, folder},
    requests::module,
    server, start_cluster,
};

const ENSURE: &str = "/resourceallocator.v1.ResourceAllocator/EnsureAllocation";
const WATCH: &str = "/resourceallocator.v1.ResourceAllocator/WatchAllocations";

/// A client as any program has one: HTTP/1.1, connections kept.
struct Http {
    client: reqwest::Client,
    base: String,
}

/// An answer.
#[derive(Debug)]
struct Told {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Told {
    async fn read(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        assert_eq!(headers["content-type"], "application/json", "{headers:?}");
        Self { status, headers, body }
    }

    /// The refusal that it is: its reason and metadata, checked against the HTTP status.
    #[track_caller]
    fn refusal(&self, status: u16, code: Code, reason: &str) -> &Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.body["code"], code as i32, "{self:?}");
        assert!(!self.body["message"].as_str().unwrap().is_empty(), "{self:?}");
        let info = self.detail("google.rpc.ErrorInfo");
        assert_eq!(info["reason"], reason, "{self:?}");
        assert_eq!(info["domain"], "resourceallocator", "{self:?}");
        assert!(info["metadata"]["disposition"].is_string(), "{self:?}");
        assert_eq!(
            info["metadata"]["request_id"],
            self.headers["x-request-id"].to_str().unwrap(),
            "{self:?}"
        );
        &info["metadata"]
    }

    #[track_caller]
    fn detail(&self, kind: &str) -> &Value {
        let kind = format!("type.googleapis.com/{kind}");
        let found = self.body["details"].as_array().unwrap().iter().find(|detail| detail["@type"] == kind);
        found.unwrap_or_else(|| panic!("no {kind}: {self:?}"))
    }

    /// The fields that are told to be bad.
    #[track_caller]
    fn bad_fields(&self) -> Vec<&str> {
        self.refusal(400, Code::InvalidArgument, "INVALID_REQUEST");
        let violations = self.detail("google.rpc.BadRequest")["fieldViolations"].as_array().unwrap();
        assert!(violations.iter().all(|violation| violation["description"].is_string()), "{self:?}");
        violations.iter().map(|violation| violation["field"].as_str().unwrap()).collect()
    }
}

impl Http {
    fn new(running: &RunningServer) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { client, base: format!("http://{}", running.address) }
    }

    /// One that speaks HTTP/2 from the start.
    fn version_2(running: &RunningServer) -> Self {
        let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
        Self { client, ..Self::new(running) }
    }

    async fn get(&self, path: &str) -> Told {
        self.ask(Method::GET, path, &[]).await
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Told {
        Told::read(self.send(method, path, headers, Vec::new()).await).await
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response {
        let headers = headers.iter().map(|(name, value)| {
            (HeaderName::from_str(name).unwrap(), HeaderValue::from_str(value).unwrap())
        });
        let request = self.client.request(method, format!("{}{path}", self.base));
        request.headers(headers.collect()).body(body).send().await.unwrap()
    }

    /// A call by gRPC-web, as a page makes it.
    async fn call(&self, path: &str, request: &impl prost::Message, headers: &[(&str, &str)]) -> Response {
        let mut headers = headers.to_vec();
        headers.push(("content-type", "application/grpc-web+proto"));
        headers.push(("x-grpc-web", "1"));
        self.send(Method::POST, path, &headers, frame(0, &request.encode_to_vec())).await
    }
}

/// A frame of gRPC-web: flags, length, content.
fn frame(flags: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&[flags], &length[..], content].concat()
}

/// The frames of an answer: messages, then the trailers as lines of text.
fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
        frames.push((body[0], body[5..5 + length].to_vec()));
        body = &body[5 + length..];
    }
    frames
}

async fn three_projects() -> (TestService, Http) {
    let mut service = TestService::start().await;
    let with_address =
        |handle: &str, address: &str| v1::Server { address: address.to_owned(), ..server(handle) };
    service.client.register(with_address("web-1", "192.0.2.11")).await;
    service.client.register(with_address("web-2", "web-2.example.com")).await;
    for (project_id, modules, handle) in [
        ("shop", &["frontend", "backend"][..], "web-1"),
        ("blog", &["backend"], "web-2"),
        ("team/app:1.2", &["api"], "web-2"),
    ] {
        let request = v1::EnsureAllocationRequest {
            modules: modules.iter().map(|name| module(name)).collect(),
            server_handle: Some(handle.to_owned()),
            ..ensure(project_id)
        };
        service.client.allocator.ensure_allocation(request).await.unwrap();
    }
    let http = Http::new(&service.running);
    (service, http)
}

/// What a list must be, by what the stubs are told.
async fn expected(client: &Client, request: v1::ListAllocationsRequest) -> Value {
    let listed = client.allocator.clone().list_allocations(request).await.unwrap().into_inner();
    let rows = listed.allocations.into_iter().map(|a| {
        json!({
            "id": a.id,
            "project_id": a.project_id,
            "service_name": a.module,
            "server_handle": a.server_handle,
            "server_ip": a.server_address,
            "port": a.port,
        })
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_polls_finds_what_the_stubs_find() {
    let (service, http) = three_projects().await;
    let project =
        |id: &str| v1::ListAllocationsRequest { project_id: Some(id.to_owned()), ..Default::default() };
    let on = |handle: &str| v1::ListAllocationsRequest {
        server_handle: Some(handle.to_owned()),
        ..Default::default()
    };

    let shop = http.get("/api/allocations/?project_id=shop").await;
    assert_eq!(shop.status, StatusCode::OK);
    assert_eq!(shop.body, expected(&service.client, project("shop")).await);
    let rows = shop.body.as_array().unwrap();
    // By module, not by port or by the order of the request (L3).
    let told: Vec<_> =
        rows.iter().map(|row| (&row["service_name"], &row["port"], &row["server_ip"])).collect();
    assert_eq!(json!(told), json!([["backend", 8001, "192.0.2.11"], ["frontend", 8000, "192.0.2.11"]]));
    let keys: Vec<_> = rows[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["id", "port", "project_id", "server_handle", "server_ip", "service_name"]);

    let web_2 = http.get("/api/allocations/?server_handle=web-2").await;
    assert_eq!(web_2.body, expected(&service.client, on("web-2")).await);
    let projects: Vec<_> = web_2.body.as_array().unwrap().iter().map(|row| &row["project_id"]).collect();
    assert_eq!(json!(projects), json!(["blog", "team/app:1.2"]));
    assert_eq!(web_2.body[0]["server_ip"], "web-2.example.com");

    // Filters that are there all filter; what is not there is an empty list.
    for nothing in ["project_id=shop&server_handle=web-2", "project_id=sho", "server_handle=web-9"] {
        let told = http.get(&format!("/api/allocations/?{nothing}")).await;
        assert_eq!((told.status, &told.body), (StatusCode::OK, &json!([])), "{nothing}");
    }
    let both = http.get("/api/allocations/?server_handle=web-1&project_id=shop").await;
    assert_eq!(both.body, shop.body);
    // The same without the slash at the end, and with what a name may hold escaped or not.
    assert_eq!(http.get("/api/allocations?project_id=shop").await.body, shop.body);
    for id in ["team/app:1.2", "team%2Fapp%3A1%2E2"] {
        let told = http.get(&format!("/api/allocations/?project_id={id}")).await;
        assert_eq!(told.body, expected(&service.client, project("team/app:1.2")).await, "{id}");
    }
    let version_2 = Http::version_2(&service.running);
    assert_eq!(version_2.get("/api/allocations/?project_id=shop").await.body, shop.body);
    // Reads never write (L4).
    let tables = service.database.tables().await;
    http.get("/api/allocations/?project_id=unknown").await;
    assert_eq!(service.database.tables().await, tables);
}

#[tokio::test(flavor = "multi_thread")]
async fn l31_a_filter_that_is_there_filters_and_none_at_all_is_refused() {
    let (_service, http) = three_projects().await;
    let many = "x".repeat(129);
    for (query, fields) in [
        ("", &["project_id"][..]),
        ("?", &["project_id"]),
        ("?&&", &["project_id"]),
        ("?project_id=", &["project_id"]),
        ("?project_id", &["project_id"]),
        ("?project_id=&server_handle=web-1", &["project_id"]),
        ("?server_handle=", &["server_handle"]),
        ("?project_id=-&server_handle=%20", &["project_id", "server_handle"]),
        (&format!("?project_id={many}"), &["project_id"]),
        // Broken escapes, bytes that are no UTF-8, a NUL, a plus for a blank, SQL.
        ("?project_id=%", &["project_id"]),
        ("?project_id=%zz", &["project_id"]),
        ("?project_id=shop%2", &["project_id"]),
        ("?project_id=%ff%fe", &["project_id"]),
        ("?project_id=shop%00", &["project_id"]),
        ("?project_id=hello+world", &["project_id"]),
        ("?project_id=shop'--", &["project_id"]),
        // Twice, whether or not it says the same.
        ("?project_id=shop&project_id=shop", &["project_id"]),
        ("?project_id=shop&project_id=blog", &["project_id"]),
        ("?server_handle=web-1&server_handle=", &["server_handle"]),
        // Names that are close to ours are not ours.
        ("?project=shop", &["project", "project_id"]),
        ("?PROJECT_ID=shop", &["PROJECT_ID", "project_id"]),
        ("?project_id=shop&page_size=10", &["page_size"]),
        ("?project_id=shop&=", &["query"]),
        ("?project_id=shop&%00%1b=1", &["\\0\\u{1b}"]),
        ("?id=0", &["id", "project_id"]),
    ] {
        let told = http.get(&format!("/api/allocations/{query}")).await;
        assert_eq!(told.bad_fields(), fields, "{query}");
        assert!(told.headers.get("retry-after").is_none(), "{query}");
    }
    // `0` is a name like any other.
    assert_eq!(http.get("/api/allocations/?project_id=0").await.body, json!([]));
    // A long query is refused with an answer of a bounded size.
    let long = "&parameter=x".repeat(2000);
    let told = http.get(&format!("/api/allocations/?project_id=shop{long}")).await;
    assert!(told.bad_fields().len() >= 20);
    assert!(told.body.to_string().len() < 8192);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_whole_or_refused() {
    let mut service = TestService::start().await;
    let capacity = v1::Resources { cpu_millis: Some(0), ram_mb: Some(1_000_000), disk_mb: Some(1_000_000) };
    service.client.register(v1::Server { capacity: Some(capacity), ..server("large") }).await;
    let place = async |projects: std::ops::Range<usize>| {
        let calls: Vec<_> = projects
            .map(|project| {
                let mut client = service.client.allocator.clone();
                let modules = (0..64).map(|n| module(&format!("m{n:02}"))).collect();
                let request = v1::EnsureAllocationRequest {
                    project_id: format!("project-{project:03}"),
                    modules,
                    ..Default::default()
                };
                tokio::spawn(async move { client.ensure_allocation(request).await.unwrap() })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    };
    let http = Http::new(&service.running);

    // More than the pages of the stubs hold.
    place(0..20).await;
    let told = http.get("/api/allocations/?server_handle=large").await;
    let keys: Vec<_> = told
        .body
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["project_id"].as_str().unwrap(), row["service_name"].as_str().unwrap()))
        .collect();
    assert_eq!(keys.len(), 20 * 64);
    assert!(keys.is_sorted_by(|a, b| a < b));

    place(20..157).await;
    let told = http.get("/api/allocations/?server_handle=large").await;
    assert_eq!(told.bad_fields(), ["server_handle"]);
    let one = http.get("/api/allocations/?server_handle=large&project_id=project-156").await;
    assert_eq!(one.body.as_array().unwrap().len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nowhere_or_no_method_is_told_so() {
    let service = TestService::start().await;
    for http in [Http::new(&service.running), Http::version_2(&service.running)] {
        for path in
            ["/", "/api", "/api/", "/api/allocations/7", "/api/allocations//", "/healthz/", "/favicon.ico"]
        {
            let told = http.get(path).await;
            assert_eq!(told.refusal(404, Code::NotFound, "PATH_NOT_FOUND")["path"], path);
        }
        let long = format!("/{}", "x".repeat(5000));
        let told = http.get(&long).await;
        assert!(told.refusal(404, Code::NotFound, "PATH_NOT_FOUND")["path"].as_str().unwrap().len() < 500);

        for path in ["/api/allocations/?project_id=shop", "/healthz", "/readyz"] {
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
                let told = http.ask(method.clone(), path, &[]).await;
                let metadata = told.refusal(405, Code::Unimplemented, "NOT_IMPLEMENTED");
                assert_eq!(metadata["method"], method.as_str());
                assert_eq!(told.headers["allow"], "GET,HEAD");
            }
            let head = http.send(Method::HEAD, path, &[], Vec::new()).await;
            assert_eq!(head.status(), StatusCode::OK, "{path}");
            assert!(head.bytes().await.unwrap().is_empty());
        }

        // A method of a service, asked as a page of the web.
        let told = http.get(ENSURE).await;
        told.refusal(415, Code::InvalidArgument, "INVALID_REQUEST");
        let told = http.ask(Method::POST, ENSURE, &[("content-type", "application/json")]).await;
        told.refusal(415, Code::InvalidArgument, "INVALID_REQUEST");
        let told = http.ask(Method::GET, ENSURE, &[("content-type", "application/grpc-web")]).await;
        told.refusal(405, Code::Unimplemented, "NOT_IMPLEMENTED");
        assert_eq!(told.headers["allow"], "POST");
    }
    // gRPC itself over HTTP/1.1.
    let http = Http::new(&service.running);
    let told = http.ask(Method::POST, ENSURE, &[("content-type", "application/grpc")]).await;
    told.refusal(400, Code::InvalidArgument, "INVALID_REQUEST");
    assert!(told.body["message"].as_str().unwrap().contains("HTTP/2"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_id_and_keeps_its_own() {
    let (_service, http) = three_projects().await;
    let path = "/api/allocations/?project_id=shop";
    let told = http.ask(Method::GET, path, &[("x-request-id", "worker-7")]).await;
    assert_eq!(told.headers["x-request-id"], "worker-7");
    let told = http.ask(Method::GET, "/api/allocations/", &[("x-request-id", "worker-8")]).await;
    assert_eq!(told.refusal(400, Code::InvalidArgument, "INVALID_REQUEST")["request_id"], "worker-8");
    let (first, second) = (http.get(path).await, http.get("/nowhere").await);
    assert_ne!(first.headers["x-request-id"], second.headers["x-request-id"]);
    // One that could not be told back as it is, is none.
    let told = http.ask(Method::GET, path, &[("x-request-id", "<script>")]).await;
    assert_ne!(told.headers["x-request-id"], "<script>");
}

/// Asks until the status is this.
async fn until(http: &Http, path: &str, status: StatusCode) -> Told {
    let asked = async {
        loop {
            let told = http.get(path).await;
            if told.status == status {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{path} never told {status}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_told_with_when_to_come_back() {
    let folder = folder();
    let cluster = start_cluster(folder.path());
    let connect = PgConnectOptions::from_str(&cluster.url(postgres::DATABASE)).unwrap();
    let (running, mut client, _shutdown) = TestService::builder().start_at(connect).await;
    client.register(server("web-1")).await;
    client.ensure("shop", &[]).await.unwrap();
    let http = Http::new(&running);
    let list = "/api/allocations/?project_id=shop";
    let before = http.get(list).await;
    assert_eq!(before.body.as_array().unwrap().len(), 1);
    for probe in ["/healthz", "/readyz"] {
        let told = http.get(probe).await;
        assert_eq!((told.status, told.body), (StatusCode::OK, json!({ "status": "SERVING" })), "{probe}");
    }

    tokio::task::spawn_blocking(move || cluster.stop().unwrap()).await.unwrap();
    let unready = until(&http, "/readyz", StatusCode::SERVICE_UNAVAILABLE).await;
    let refused = http.get(list).await;
    for told in [&unready, &refused] {
        let metadata = told.refusal(503, Code::Unavailable, "DATABASE_UNAVAILABLE");
        assert_eq!(metadata["disposition"], "TECHNICAL");
        assert_eq!(told.detail("google.rpc.RetryInfo")["retryDelay"], "1s");
        assert_eq!(told.headers["retry-after"], "1");
    }
    // The process lives, so that it need not be started anew.
    let live = http.get("/healthz").await;
    assert_eq!((live.status, live.body), (StatusCode::OK, json!({ "status": "NOT_SERVING" })));

    let data_dir = folder.path().to_owned();
    let _cluster = tokio::task::spawn_blocking(move || start_cluster(&data_dir)).await.unwrap();
    until(&http, "/readyz", StatusCode::OK).await;
    assert_eq!(until(&http, list, StatusCode::OK).await.body, before.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn l43_a_stop_ends_connections_that_are_kept_and_answers_what_is_under_way() {
    let mut builder = TestService::builder();
    builder.drain_timeout = PATIENCE;
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    let address = service.running.address;

    // One that is kept after an answer, one that never asks, and one whose answer is under way.
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: allocator\r\n\r\n").await.unwrap();
    let mut answer = [0; 1024];
    let length = kept.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
    let mut silent = TcpStream::connect(address).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test stands in the queue of writers")]
    let mut held = service.database.sql.begin().await.unwrap();
    sqlx::query("LOCK TABLE port_allocations IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let http = Http::new(&service.running);
    let listing = tokio::spawn(async move { http.get("/api/allocations/?project_id=shop").await });
    service.database.wait_for_lock().await;

    service.shutdown.soft.cancel();
    for idle in [&mut kept, &mut silent] {
        let end = tokio::time::timeout(PATIENCE, idle.read(&mut answer)).await.expect("it is kept");
        // Whether by an orderly end or a reset is the kernel's choice.
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    assert!(!listing.is_finished());
    held.rollback().await.unwrap();
    assert_eq!(listing.await.unwrap().body, json!([]));
    drop(service.client);
    tokio::time::timeout(PATIENCE, service.running.stopped()).await.expect("no end").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn l43_a_stop_has_an_end_with_half_a_request() {
    let mut builder = TestService::builder();
    builder.drain_timeout = Duration::from_millis(300);
    let service = builder.start().await;
    let mut half = TcpStream::connect(service.running.address).await.unwrap();
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: exam").await.unwrap();
    service.shutdown.soft.cancel();
    tokio::time::timeout(PATIENCE, service.running.stopped()).await.expect("no end").unwrap();
}

fn ensure(project_id: &str) -> v1::EnsureAllocationRequest {
    v1::EnsureAllocationRequest { project_id: project_id.to_owned(), ..Default::default() }
}

/// The status that gRPC-web tells in the headers of an answer without messages.
fn web_status(headers: &HeaderMap) -> (i32, ErrorDetails) {
    let status = tonic::Status::from_header_map(headers).unwrap();
    let details = RpcStatus::decode(status.details()).unwrap();
    assert_eq!(details.code, status.code() as i32);
    (details.code, status.get_error_details())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_calls_by_grpc_web() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    for (project_id, http) in
        [("by-http-1", Http::new(&service.running)), ("by-http-2", Http::version_2(&service.running))]
    {
        let answer = http.call(ENSURE, &ensure(project_id), &[]).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "application/grpc-web+proto");
        let frames = frames(&answer.bytes().await.unwrap());
        let [(0, message), (0x80, trailers)] = frames.as_slice() else { panic!("{frames:?}") };
        let answer = v1::EnsureAllocationResponse::decode(message.as_slice()).unwrap();
        assert_eq!(answer.allocations[0].project_id, project_id);
        let trailers = String::from_utf8(trailers.clone()).unwrap();
        assert!(trailers.contains("grpc-status:0"), "{trailers}");

        // A stream comes message by message, for as long as it is read.
        let request = v1::WatchAllocationsRequest { from_beginning: true, ..Default::default() };
        let mut stream = http.call(WATCH, &request, &[]).await;
        let mut body = Vec::new();
        let watched = async {
            while !String::from_utf8_lossy(&body).contains(project_id) {
                body.extend_from_slice(&stream.chunk().await.unwrap().unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, watched).await.expect("the event never comes");

        // Refusals, of the service and of the transport, have their details where pages read them.
        let refused = http.call(ENSURE, &ensure("-"), &[]).await;
        assert_eq!(refused.headers()["content-type"], "application/grpc-web+proto");
        let (code, details) = web_status(refused.headers());
        assert_eq!(code, Code::InvalidArgument as i32);
        assert_eq!(details.error_info().unwrap().reason, "INVALID_REQUEST");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "project_id");
        for path in ["/resourceallocator.v1.ResourceAllocator/Move", "/resourceallocator.v1.Unknown/Get"] {
            let refused = http.call(path, &ensure("shop"), &[]).await;
            assert_eq!(refused.headers()["content-type"], "application/grpc-web+proto");
            let (code, details) = web_status(refused.headers());
            assert_eq!(code, Code::Unimplemented as i32, "{path}");
            assert_eq!(details.error_info().unwrap().reason, "NOT_IMPLEMENTED", "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_an_unknown_origin_does_nothing() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let before = service.database.tables().await;
    let http = Http::new(&service.running);
    // What a browser sends for a page that rebound its own name to our address is not told from any other.
    for origin in ["https://example.com", "http://localhost:3000", "null", "file://", &http.base] {
        let from = [("origin", origin)];
        for path in ["/api/allocations/?project_id=shop", "/healthz", "/nowhere"] {
            let told = http.ask(Method::GET, path, &from).await;
            let metadata = told.refusal(403, Code::PermissionDenied, "ORIGIN_NOT_ALLOWED");
            assert_eq!((&metadata["origin"], &metadata["disposition"]), (&json!(origin), &json!("OPERATOR")));
        }
        let preflight = [("origin", origin), ("access-control-request-method", "POST")];
        let told = http.ask(Method::OPTIONS, ENSURE, &preflight).await;
        told.refusal(403, Code::PermissionDenied, "ORIGIN_NOT_ALLOWED");
        let refused = http.call(ENSURE, &ensure("shop"), &from).await;
        let (code, details) = web_status(refused.headers());
        assert_eq!(code, Code::PermissionDenied as i32);
        assert_eq!(details.error_info().unwrap().reason, "ORIGIN_NOT_ALLOWED");
        assert!(!refused.headers().contains_key("access-control-allow-origin"));
    }
    // A form or a script that asks no leave can only send what is no call.
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let told = http.ask(Method::POST, ENSURE, &[("content-type", content_type)]).await;
        told.refusal(415, Code::InvalidArgument, "INVALID_REQUEST");
    }
    assert_eq!(service.database.tables().await, before);
    // A gRPC client that tells an origin is one too.
    let mut request = tonic::Request::new(ensure("shop"));
    request.metadata_mut().insert("origin", "https://example.com".parse().unwrap());
    let refused = service.client.allocator.ensure_allocation(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(error_info(&refused).0, "ORIGIN_NOT_ALLOWED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_known_origin_may_call_and_read_the_answer() {
    let mut builder = TestService::builder();
    builder.cors_origins =
        ["https://console.example.com", "http://localhost:5173"].map(|o| o.parse::<Origin>().unwrap()).into();
    let mut service = builder.start().await;
    service.client.register(server("web-1")).await;
    let http = Http::new(&service.running);
    for origin in ["https://console.example.com", "http://localhost:5173"] {
        let from = [("origin", origin)];
        let asked = "content-type,x-grpc-web,x-user-agent,grpc-timeout,x-request-id,authorization";
        let preflight = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", asked),
        ];
        let leave = http.send(Method::OPTIONS, ENSURE, &preflight, Vec::new()).await;
        assert_eq!(leave.status(), StatusCode::OK);
        let list = |headers: &HeaderMap, name: &str| -> Vec<String> {
            let value = headers[name].to_str().unwrap().to_ascii_lowercase();
            value.split(',').map(|word| word.trim().to_owned()).collect()
        };
        assert_eq!(leave.headers()["access-control-allow-origin"], origin);
        assert!(list(leave.headers(), "access-control-allow-methods").contains(&"post".to_owned()));
        let allowed = list(leave.headers(), "access-control-allow-headers");
        assert!(asked.split(',').all(|header| allowed.contains(&header.to_owned())), "{allowed:?}");
        // Credentials of a browser are never taken along.
        assert!(!leave.headers().contains_key("access-control-allow-credentials"));

        let refused = http.call(ENSURE, &ensure("-"), &from).await;
        assert_eq!(refused.headers()["access-control-allow-origin"], origin);
        let exposed = list(refused.headers(), "access-control-expose-headers");
        for header in ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"] {
            assert!(exposed.contains(&header.to_owned()), "{header}: {exposed:?}");
        }
        let placed = http.call(ENSURE, &ensure("shop"), &from).await;
        assert_eq!(frames(&placed.bytes().await.unwrap()).len(), 2);
        let told = http.ask(Method::GET, "/api/allocations/?project_id=shop", &from).await;
        assert_eq!(told.headers["access-control-allow-origin"], origin);
        assert_eq!(told.body.as_array().unwrap().len(), 1);
    }
    for origin in
        ["https://console.example.com.evil.example", "http://console.example.com", "https://localhost:5173"]
    {
        let told = http.ask(Method::GET, "/healthz", &[("origin", origin)]).await;
        told.refusal(403, Code::PermissionDenied, "ORIGIN_NOT_ALLOWED");
        assert!(!told.headers.contains_key("access-control-allow-origin"));
    }
    // Programs that are no pages have none.
    assert_eq!(http.get("/healthz").await.status, StatusCode::OK);
}

/// The transport would say so without a reason, and nothing would be counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_is_told_with_its_reason() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    let held = service.database.hold_pool().await;
    let request = v1::EnsureAllocationRequest { project_id: "shop".to_owned(), ..Default::default() };
    let message = request.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let answer = reqwest::Client::new()
        .post(format!("http://{}{ENSURE}", service.running.address))
        .header("content-type", "application/grpc-web+proto")
        .header("grpc-timeout", "300m")
        .header("x-request-id", "in-a-hurry")
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["x-request-id"], "in-a-hurry");
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let (reason, metadata) = error_info(&status);
    assert_eq!((reason.as_str(), metadata["disposition"].as_str()), ("DEADLINE_PASSED", "TECHNICAL"));
    assert_eq!(metadata["request_id"], "in-a-hurry");
    held.rollback().await.unwrap();
    service.client.ensure("shop", &[]).await.unwrap();
}
