//! How client commands reach the service: the flags that they share, the channel, and the runtime that they run on.

use std::{future::Future, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

use super::{
    credentials::{CredentialArgs, shown},
    duration::at_most_a_day,
    error::CliError,
};
use crate::proto::v1::{
    resource_allocator_client::ResourceAllocatorClient, server_inventory_client::ServerInventoryClient,
};

const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:50051";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("resource-allocator-cli/", env!("CARGO_PKG_VERSION"));
/// A page of 1000 servers with many excluded ports outgrows tonic's 4 MiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The names of the flags in [`ClientArgs`], as clap has them.
pub const FLAGS: [&str; 7] =
    ["endpoint", "timeout", "output", "tls_ca", "tls_certificate", "tls_key", "token_file"];

/// How a command prints its answer, and its error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Tables and sentences.
    Text,
    /// The API's message as JSON, and errors as a JSON object.
    Json,
}

/// The flags of every client command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Client options")]
pub struct ClientArgs {
    /// Where the service listens
    #[arg(
        long, global = true, value_name = "URL", value_parser = parse_endpoint,
        env = "RESOURCE_ALLOCATOR_ENDPOINT", default_value = DEFAULT_ENDPOINT,
    )]
    pub endpoint: Uri,
    /// How long to wait for an answer, such as 30s or 2m, at most 24h; watches are not limited
    #[arg(long, global = true, value_name = "DURATION", value_parser = at_most_a_day, default_value = "30s")]
    pub timeout: Duration,
    /// How to print the answer on standard output, and an error on standard error
    #[arg(long, short, global = true, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// What it shows of itself, and whom it believes.
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

impl ClientArgs {
    /// Takes one flag's value from where it stood before the command.
    pub fn take(&mut self, flag: &str, before: &Self) {
        match flag {
            "endpoint" => self.endpoint = before.endpoint.clone(),
            "timeout" => self.timeout = before.timeout,
            "output" => self.output = before.output,
            "tls_ca" => self.credentials.tls_ca.clone_from(&before.credentials.tls_ca),
            "tls_certificate" => {
                self.credentials.tls_certificate.clone_from(&before.credentials.tls_certificate);
            }
            "tls_key" => self.credentials.tls_key.clone_from(&before.credentials.tls_key),
            "token_file" => self.credentials.token_file.clone_from(&before.credentials.token_file),
            _ => unreachable!("FLAGS names no other"),
        }
    }
}

fn parse_endpoint(text: &str) -> Result<Uri, String> {
    let uri: Uri =
        text.parse().map_err(|error| format!("{error}; an endpoint is written {DEFAULT_ENDPOINT}"))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(format!("it must start with http:// or https://, as in {DEFAULT_ENDPOINT}")),
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(format!("it takes no path, as in {DEFAULT_ENDPOINT}"));
    }
    Ok(uri)
}

/// A connection to the service, and how to use it.
pub struct Session {
    /// Carries the calls.
    pub channel: Channel,
    /// How to print.
    pub output: OutputFormat,
    timeout: Duration,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Session {
    /// Connects to the service.
    ///
    /// # Errors
    /// [`CliError::Unreachable`] when nothing answers there within five seconds, [`CliError::Usage`] when the credentials are not
    /// for such an endpoint.
    pub async fn connect(args: &ClientArgs) -> Result<Self, CliError> {
        let authorization = args.credentials.authorization(&args.endpoint)?;
        let mut endpoint = Endpoint::from(args.endpoint.clone())
            .user_agent(USER_AGENT)
            .context("setting the user agent")?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if let Some(tls) = args.credentials.tls(&args.endpoint)? {
            endpoint = endpoint.tls_config(tls).context("cannot use the certificates")?;
        }
        let channel = endpoint.connect().await.map_err(|error| CliError::Unreachable {
            endpoint: shown(&args.endpoint),
            cause: innermost(&error),
        })?;
        Ok(Self { channel, output: args.output, timeout: args.timeout, authorization })
    }

    /// The client of the placement service.
    #[must_use]
    pub fn allocator(&self) -> ResourceAllocatorClient<Channel> {
        ResourceAllocatorClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The client of the inventory.
    #[must_use]
    pub fn inventory(&self) -> ServerInventoryClient<Channel> {
        ServerInventoryClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// A request with the deadline of `--timeout`.
    #[must_use]
    pub fn request<T>(&self, message: T) -> Request<T> {
        self.request_that_waits(message, Duration::ZERO)
    }

    /// A request that the service may hold for `wait` before the time of `--timeout` runs.
    #[must_use]
    pub fn request_that_waits<T>(&self, message: T, wait: Duration) -> Request<T> {
        let mut request = self.request_without_end(message);
        request.set_timeout(self.timeout.saturating_add(wait));
        request
    }

    /// A request whose answer may take for ever: a watch.
    #[must_use]
    pub fn request_without_end<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }
}

/// tonic's own message is "transport error"; what happened stands at the end of the chain.
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Runs a client command to its end, on a runtime of its own: `serve` starts things before one exists.
///
/// # Errors
/// The command's, or that the runtime cannot be started.
pub fn block_on(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_http_url() {
        for good in [DEFAULT_ENDPOINT, "http://allocator:80", "http://[::1]:50051/", "https://allocator"] {
            assert!(parse_endpoint(good).is_ok(), "{good}");
        }
        for (bad, reason) in [
            ("127.0.0.1:50051", "must start with http:// or https://"),
            ("localhost", "must start with http://"),
            ("ftp://allocator", "must start with http://"),
            ("http://allocator/api", "takes no path"),
            ("http://", "an endpoint is written"),
            ("", "an endpoint is written"),
        ] {
            let error = parse_endpoint(bad).unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }
}
