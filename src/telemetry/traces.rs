//! Traces: takes the spans of `traced`, and sends those that are sampled to a collector, by OTLP.
//!
//! Whoever calls never waits for the collector. Spans go through a bounded queue to a thread that sends them; what does not fit is
//! dropped.

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider},
};
use tonic::transport::ClientTlsConfig;
use uuid::Uuid;

/// How long the collector may take for what it is sent.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long what is left may take at the end.
const LAST: Duration = Duration::from_secs(4);
/// How often spans are sent, where they are few.
const INTERVAL: Duration = Duration::from_secs(2);
/// How many spans wait to be sent at the most.
const QUEUE: usize = 8_192;
/// A batch is linked to each of its calls.
const MAX_LINKS: u32 = 1_000;
/// The variable by which OpenTelemetry has a service be named.
const NAME_VARIABLE: &str = "OTEL_SERVICE_NAME";
const NAME: &str = "resource-allocator";

/// Where traces go.
#[derive(Debug, Clone)]
pub struct TraceOptions {
    /// The collector, such as `http://127.0.0.1:4317`.
    pub endpoint: String,
    /// Which share of the calls is traced whose callers do not say.
    pub sample_ratio: f64,
}

/// Sends traces until it is told to finish.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins; needs the runtime that sends. A collector that is not there yet is no error.
    ///
    /// # Errors
    /// When the address cannot be one.
    pub fn start(options: &TraceOptions) -> Result<Self, ExporterBuildError> {
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(options.endpoint.as_str())
            .with_timeout(TIMEOUT);
        if options.endpoint.starts_with("https:") {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let queue =
            BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(INTERVAL).build();
        let processor = BatchSpanProcessor::builder(exporter.build()?).with_batch_config(queue).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.sample_ratio))))
            .with_max_links_per_span(MAX_LINKS)
            .with_resource(resource())
            .build();
        Ok(Self(provider))
    }

    /// What makes spans.
    #[must_use]
    pub fn tracer(&self) -> SdkTracer {
        self.0.tracer(NAME)
    }

    /// Sends what is left.
    pub async fn finish(self) {
        let finished = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST)).await;
        if let Ok(Err(error)) = finished {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Who sends. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say more, or otherwise.
fn resource() -> Resource {
    let builder = Resource::builder();
    let builder =
        if std::env::var_os(NAME_VARIABLE).is_some() { builder } else { builder.with_service_name(NAME) };
    builder
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ])
        .build()
}
