//! The flags about what the service tells of itself while it runs.

use std::path::PathBuf;

use clap::Args;
use tonic::codegen::http::Uri;

/// What the service tells of itself, beside the format of its log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct TelemetryArgs {
    /// A file of log levels, such as `info,resource_allocator=debug`, in place of `RUST_LOG`; read again when it changes
    #[arg(long, env = "RESOURCE_ALLOCATOR_LOG_LEVELS", value_name = "FILE")]
    pub log_levels: Option<PathBuf>,
    /// The OpenTelemetry collector that traces are sent to by OTLP over gRPC, such as `http://127.0.0.1:4317` [default: nowhere]
    #[arg(long, env = "RESOURCE_ALLOCATOR_OTLP_ENDPOINT", value_name = "URL", value_parser = endpoint)]
    pub otlp_endpoint: Option<String>,
    /// Which share of the calls is traced, 0 to 1; a caller's own `traceparent` goes first
    #[arg(long, env = "RESOURCE_ALLOCATOR_TRACE_SAMPLE_RATIO", default_value_t = 0.01, value_name = "RATIO",
        value_parser = ratio)]
    pub trace_sample_ratio: f64,
}

fn endpoint(text: &str) -> Result<String, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_web && uri.authority().is_some() {
        return Ok(text.to_owned());
    }
    Err("it must be like http://127.0.0.1:4317".to_owned())
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| "it must be from 0 to 1".to_owned())
}
