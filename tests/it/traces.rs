//! Traces: the real binary sends them to a collector, which is a server of OTLP in the test.

use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode},
};
use resource_allocator::proto::v1;
use rustix::process::Signal;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::support::{
    Client, TestDatabase,
    process::{Process, wait_until},
    requests::{request, resources, seconds},
    server,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector, and what it was sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ResourceSpans>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts one; returns where it listens, too.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(collector.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        (collector, format!("http://{address}"))
    }

    fn spans(&self) -> Vec<Span> {
        let sent = self.0.lock().unwrap();
        let scopes = sent.iter().flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn span(&self, name: &str) -> Span {
        let spans = self.spans();
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name}: {spans:#?}")).clone()
    }

    /// The spans below one, the oldest first.
    fn below(&self, parent: &Span) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.parent_span_id == parent.span_id);
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }
}

/// What statements do.
fn operations(statements: &[Span]) -> Vec<String> {
    statements.iter().map(|span| attribute(&span.attributes, "db.operation.name")).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    found.map(|attribute| text(attribute.value.as_ref())).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn traced<T>(message: T, trace: &str, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace}-{PARENT}-{flags}");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

fn start(database: &TestDatabase, flags: &[&str]) -> Process {
    Process::start_on(database.url(), flags)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_traced_from_its_caller_to_the_statements_that_wrote_it() {
    let database = TestDatabase::create().await;
    let (collector, endpoint) = Collector::start().await;
    let flags = ["--otlp-endpoint", &endpoint, "--trace-sample-ratio", "0"];
    let mut service = start(&database, &flags);
    let mut client = Client::connect(&service.endpoint()).await;
    client.register(server("web-1")).await;
    // A lease is written under the pool's row.
    let ttl = Some(seconds(60));
    let lease = v1::EnsureAllocationRequest { ttl, ..request("shop") };
    client.allocator.ensure_allocation(traced(lease, TRACE, "01")).await.unwrap();
    let unsampled = "11111111111111111111111111111111";
    client.allocator.ensure_allocation(traced(request("quiet"), unsampled, "00")).await.unwrap();
    // What waits to be sent is sent when the service stops.
    service.signal(Signal::TERM);
    assert!(service.wait().success());

    let call = collector.span("resourceallocator.v1.ResourceAllocator/EnsureAllocation");
    assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(attribute(&call.attributes, "rpc.system"), "grpc");
    assert_eq!(attribute(&call.attributes, "rpc.service"), "resourceallocator.v1.ResourceAllocator");
    assert_eq!(attribute(&call.attributes, "rpc.method"), "EnsureAllocation");
    assert_eq!(attribute(&call.attributes, "rpc.grpc.status_code"), "0");
    assert!(!attribute(&call.attributes, "resource_allocator.request_id").is_empty());

    let batch = collector.span("write batch");
    assert_eq!((&batch.trace_id, &batch.parent_span_id), (&call.trace_id, &call.span_id));
    let links: Vec<_> = batch.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
    assert_eq!(links, [(&call.trace_id, &call.span_id)]);

    let statements = collector.below(&batch);
    assert_eq!(operations(&statements), ["BEGIN", "INSERT", "COMMIT"]);
    for statement in &statements {
        assert_eq!(statement.kind(), SpanKind::Client);
        assert_eq!(attribute(&statement.attributes, "db.system.name"), "postgresql");
        assert_eq!(attribute(&statement.attributes, "db.query.summary"), statement.name);
    }

    // Neither the call that its caller leaves out, nor those that nobody asks to be traced.
    let traces: Vec<_> = collector.spans().iter().map(|span| hex(&span.trace_id)).collect();
    assert!(traces.iter().all(|trace| trace == TRACE), "{traces:?}");
    let sent = collector.0.lock().unwrap();
    for resource in sent.iter().map(|spans| spans.resource.as_ref().unwrap()) {
        assert_eq!(attribute(&resource.attributes, "service.name"), "resource-allocator");
        assert_eq!(attribute(&resource.attributes, "service.version"), env!("CARGO_PKG_VERSION"));
        assert!(!attribute(&resource.attributes, "service.instance.id").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_projects_that_are_planned_ahead_are_one_statement() {
    let database = TestDatabase::create().await;
    let (collector, endpoint) = Collector::start().await;
    let mut service = start(&database, &["--otlp-endpoint", &endpoint, "--trace-sample-ratio", "0"]);
    let mut client = Client::connect(&service.endpoint()).await;
    client.register(v1::Server { capacity: resources(8000, 1 << 20, 1 << 20), ..server("web-1") }).await;
    // The first may be written under the pool's row, which tells how the pool stands.
    for call in 0..20 {
        client
            .allocator
            .ensure_allocation(traced(request(&format!("shop-{call}")), TRACE, "01"))
            .await
            .unwrap();
    }
    service.signal(Signal::TERM);
    assert!(service.wait().success());

    let spans = collector.spans();
    let mut batches = spans.iter().filter(|span| span.name == "write batch");
    assert!(batches.clone().all(|batch| hex(&batch.trace_id) == TRACE));
    assert!(batches.any(|batch| operations(&collector.below(batch)) == ["INSERT"]), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_share_a_batch_are_linked_to_it_and_what_fails_is_marked() {
    let database = TestDatabase::create().await;
    let (collector, endpoint) = Collector::start().await;
    let service = start(&database, &["--otlp-endpoint", &endpoint, "--trace-sample-ratio", "1"]);
    let mut client = Client::connect(&service.endpoint()).await;
    client.register(v1::Server { capacity: resources(8000, 1 << 20, 1 << 20), ..server("web-1") }).await;
    let batch = v1::BatchEnsureAllocationsRequest {
        requests: (0..20).map(|n| request(&format!("shop-{n}"))).collect(),
    };
    client.allocator.batch_ensure_allocations(batch).await.unwrap();
    let calls = (0..40).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move { client.allocator.ensure_allocation(request(&format!("crowd-{n}"))).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let missing = v1::GetPlacementRequest { project_id: "nobody".to_owned() };
    client.allocator.get_placement(missing).await.unwrap_err();
    wait_until("the spans", || {
        let spans = collector.spans();
        spans.iter().filter(|span| span.name.ends_with("/EnsureAllocation")).count() == 40
            && spans.iter().any(|span| span.name.ends_with("/GetPlacement"))
    });
    let spans = collector.spans();
    let batches: Vec<_> = spans.iter().filter(|span| span.name == "write batch").collect();
    for call in spans.iter().filter(|span| span.name.ends_with("/EnsureAllocation")) {
        let linked = |batch: &&&Span| batch.links.iter().any(|link| link.span_id == call.span_id);
        // Twice where a batch was overtaken, and planned anew.
        assert!(batches.iter().any(|batch| linked(&batch)), "{call:?}");
    }
    // Forty at once are not written one by one.
    assert!(
        batches.iter().any(|batch| batch.links.len() > 1 && batch.links[0].span_id != batch.links[1].span_id)
    );
    let missing = spans.iter().find(|span| span.name.ends_with("/GetPlacement")).unwrap();
    assert_eq!(attribute(&missing.attributes, "rpc.grpc.status_code"), "5");
    // A caller's mistake is no error of the service's.
    assert_ne!(missing.status.clone().unwrap_or_default().code(), StatusCode::Error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_cannot_be_reached_or_says_nothing_harms_no_caller() {
    // It takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for address in [silent.local_addr().unwrap(), closed] {
        let database = TestDatabase::create().await;
        let endpoint = format!("http://{address}");
        let mut service = start(&database, &["--otlp-endpoint", &endpoint, "--trace-sample-ratio", "1"]);
        let mut client = Client::connect(&service.endpoint()).await;
        client.register(server("web-1")).await;
        for _ in 0..200 {
            client.allocator.ensure_allocation(request("shop")).await.unwrap();
        }
        service.said().wait_for("opentelemetry");
        client.allocator.ensure_allocation(request("shop")).await.unwrap();
        service.signal(Signal::TERM);
        assert!(service.wait().success());
    }
}

#[test]
fn what_is_no_address_of_a_collector_is_refused() {
    for wrong in ["collector:4317", "ftp://collector", "http://"] {
        let told = crate::support::process::run(&["serve", "--otlp-endpoint", wrong]);
        assert_eq!(told.status.code(), Some(2), "{told:?}");
    }
    let told = crate::support::process::run(&["serve", "--trace-sample-ratio", "1.5"]);
    assert_eq!(told.status.code(), Some(2), "{told:?}");
}
