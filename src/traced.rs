//! The spans that traces are made of: a call, the batch that wrote it, the statements of that batch, named as OpenTelemetry's
//! semantic conventions have it.
//!
//! They are apart from the log's spans, and cost nothing where nobody collects them: what takes them is `telemetry::traces`, by
//! their [`TARGET`]. A call that is not sampled has none, and neither has what is done for it.

use opentelemetry::{
    propagation::{Extractor, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::codegen::http::{HeaderMap, HeaderName};
use tracing::{Span, field::Empty, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of these spans, and of nothing else.
pub const TARGET: &str = "resource_allocator::traced";

/// The span of a call, continued from the `traceparent` of its headers; none where it is not sampled. What else it tells is put
/// together for those that are.
#[must_use]
pub fn call(path: &str, request_id: &str, headers: &HeaderMap) -> Span {
    let name = path.trim_start_matches('/');
    let span = info_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = Empty,
        rpc.service = Empty,
        rpc.method = Empty,
        rpc.grpc.status_code = Empty,
        resource_allocator.request_id = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    // It fails where the span was built already, which this one was not.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(headers)));
    if !span.context().span().span_context().is_sampled() {
        return Span::none();
    }
    let (service, method) = name.split_once('/').unwrap_or_default();
    span.record("rpc.system", "grpc");
    span.record("rpc.service", service);
    span.record("rpc.method", method);
    span.record("resource_allocator.request_id", request_id);
    span
}

/// Notes how a call ended: by its code, and whether that is the service's fault.
pub fn end(call: &Span, code: i64, is_our_fault: bool) {
    call.record("rpc.grpc.status_code", code);
    if is_our_fault {
        call.record("otel.status_code", "ERROR");
    }
}

/// The span of a batch. It is of the trace of its first call that is sampled, and linked to every such call.
#[derive(Debug)]
pub struct Batch {
    span: Span,
    looked_at: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { span: Span::none(), looked_at: 0 }
    }
}

impl Batch {
    /// Takes up the calls of a batch that it has not seen yet. Those that join it later come last.
    pub fn join<'a>(&mut self, calls: impl ExactSizeIterator<Item = &'a Span>) {
        let seen = std::mem::replace(&mut self.looked_at, calls.len());
        for call in calls.skip(seen).filter(|call| !call.is_disabled()) {
            if self.span.is_disabled() {
                self.span = info_span!(target: TARGET, parent: call, "write batch", otel.kind = "internal");
            }
            self.span.follows_from(call);
        }
    }

    /// The span; none where no call is sampled.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span.clone()
    }
}

/// The span of a statement of the batch at hand; none elsewhere. `summary` is the statement in three words, such as
/// `INSERT placements`.
#[must_use]
pub fn statement(operation: &'static str, summary: &'static str) -> Span {
    let in_batch = Span::current().metadata().is_some_and(|span| span.target() == TARGET);
    if !in_batch {
        return Span::none();
    }
    info_span!(
        target: TARGET,
        "statement",
        otel.name = summary,
        otel.kind = "client",
        db.system.name = "postgresql",
        db.operation.name = operation,
        db.query.summary = summary,
    )
}

/// Headers, as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
