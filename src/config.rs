//! The flags of `serve`, each with its environment variable and its default. There is no other configuration file.

mod limits;
mod telemetry;

use std::{ffi::OsStr, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Arg, Args, Command, ValueEnum, builder::TypedValueParser, error::ErrorKind};
use sqlx::postgres::PgConnectOptions;

pub use self::{limits::LimitArgs, telemetry::TelemetryArgs};
use crate::{
    domain::{policy::PolicyPatch, request::Strategy},
    http::Origin,
    listener::TlsFiles,
    policy_figure::{PolicyFigure, headroom, overcommit},
    store::{self, StoreOptions},
};

/// How long a request waits for a connection to the database.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// As good as for ever: a thousand years, as humantime counts them. Further on are the ends of clocks, past which nothing can be
/// added to a time.
const LONGEST: Duration = Duration::from_hours(1000 * 8766);

/// A duration as people write it: `5m`, `90s`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write for example `5m` or `90s`"))?;
    if duration > LONGEST {
        return Err("it must be at most 1000 years".to_owned());
    }
    Ok(duration)
}

/// Where the database is. What it holds is not shown: a password may be in it.
#[derive(Clone)]
pub struct DatabaseUrl(PgConnectOptions);

impl DatabaseUrl {
    /// The connection.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        self.0.clone()
    }

    /// Where it leads, without credentials.
    #[must_use]
    pub fn place(&self) -> String {
        store::place(&self.0)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({})", self.place())
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err("it must start with postgres:// or postgresql://".to_owned());
        }
        // What the parser says could repeat the URL, and with it the password.
        url.parse().map(Self).map_err(|_| "it is not a valid postgres:// URL".to_owned())
    }
}

/// Reads a [`DatabaseUrl`] without repeating it: clap's own message would show the password.
#[derive(Debug, Clone)]
struct DatabaseUrlParser;

impl TypedValueParser for DatabaseUrlParser {
    type Value = DatabaseUrl;

    fn parse_ref(
        &self,
        command: &Command,
        _: Option<&Arg>,
        value: &OsStr,
    ) -> Result<DatabaseUrl, clap::Error> {
        let url = value.to_str().ok_or_else(|| "it is not UTF-8".to_owned()).and_then(str::parse);
        url.map_err(|problem| {
            let message = format!("invalid value for '--database-url <URL>': {problem}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

/// Which database.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseArgs {
    /// The Postgres to use; without it, the service keeps a private one in its data folder
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = DatabaseUrlParser)]
    pub database_url: Option<DatabaseUrl>,
    /// The most connections to it
    #[arg(long, env = "RESOURCE_ALLOCATOR_DATABASE_CONNECTIONS", default_value_t = 16, value_name = "N",
        value_parser = clap::value_parser!(u32).range(7..=1000))]
    pub database_connections: u32,
    /// The folder of the private Postgres [default: /var/lib/resource-allocator for root, else the XDG state folder]
    #[arg(long, env = "RESOURCE_ALLOCATOR_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The folder of the binaries of the private Postgres [default: looked for on the machine]
    #[arg(long, env = "RESOURCE_ALLOCATOR_POSTGRES_BIN", value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
}

impl DatabaseArgs {
    /// How the store reaches the database.
    #[must_use]
    pub fn store_options(&self, connect: PgConnectOptions) -> StoreOptions {
        StoreOptions { connect, max_connections: self.database_connections, acquire_timeout: ACQUIRE_TIMEOUT }
    }
}

/// How long the log goes back.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Events")]
pub struct EventArgs {
    /// For how long events are kept, for watchers that resume and for the history
    #[arg(long, env = "RESOURCE_ALLOCATOR_EVENT_MAX_AGE", default_value = "30d", value_parser = duration, value_name = "DURATION")]
    pub event_max_age: Duration,
    /// How many events are kept
    #[arg(long, env = "RESOURCE_ALLOCATOR_EVENT_LIMIT", default_value_t = 100_000_000, value_name = "N",
        value_parser = clap::value_parser!(i64).range(1..))]
    pub event_limit: i64,
}

/// Where and how to listen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listener")]
pub struct ListenArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(
        long,
        env = "RESOURCE_ALLOCATOR_LISTEN",
        default_value = "127.0.0.1:50051",
        value_name = "ADDRESS:PORT"
    )]
    pub listen: SocketAddr,
    /// Speak TLS, with this certificate and those between it and its authority (PEM); read again when the file changes
    #[arg(long, env = "RESOURCE_ALLOCATOR_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key (PEM); read again when the file changes
    #[arg(long, env = "RESOURCE_ALLOCATOR_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// The authorities of clients (PEM): who shows no certificate of theirs is sent away
    #[arg(long, env = "RESOURCE_ALLOCATOR_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,
    /// Let clients in without a certificate although --tls-client-ca is given: those that show a token, and probes
    #[arg(long, env = "RESOURCE_ALLOCATOR_TLS_CLIENT_OPTIONAL", value_name = "BOOL", num_args = 0..=1,
        default_value_t = false, default_missing_value = "true")]
    pub tls_client_optional: bool,
    /// The file of tokens and certificates that may call, and of their roles (TOML); read again when it changes
    #[arg(long, env = "RESOURCE_ALLOCATOR_AUTH_TOKENS", value_name = "FILE")]
    pub auth_tokens: Option<PathBuf>,
    /// Where Prometheus finds figures, at /metrics, by TLS and with credentials where the other port wants them; port 0 takes a
    /// free one [default: nowhere]
    #[arg(long, env = "RESOURCE_ALLOCATOR_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Listen beyond loopback although TLS or authentication is missing: strangers can read everything, or do everything
    #[arg(long, env = "RESOURCE_ALLOCATOR_INSECURE_ALLOW_REMOTE", value_name = "BOOL", num_args = 0..=1,
        default_value_t = false, default_missing_value = "true")]
    pub insecure_allow_remote: bool,
    /// How long requests under way may take once the service is told to stop
    #[arg(long, env = "RESOURCE_ALLOCATOR_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
    /// For how long a watcher may take nothing before its stream ends as too slow
    #[arg(long, env = "RESOURCE_ALLOCATOR_WATCH_STALL_LIMIT", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub watch_stall_limit: Duration,
    /// Whether replicas tell each other of commits by LISTEN and NOTIFY; say false behind a pooler that hands connections round
    /// by transaction
    #[arg(long, env = "RESOURCE_ALLOCATOR_COMMIT_HINTS", default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub commit_hints: bool,
    /// An origin whose pages may call from a browser, by gRPC-web or JSON, such as `https://console.example.com`; may be repeated
    #[arg(
        long = "cors-origin",
        env = "RESOURCE_ALLOCATOR_CORS_ORIGINS",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub cors_origins: Vec<Origin>,
}

impl ListenArgs {
    /// Where the certificates are.
    #[must_use]
    pub fn tls_files(&self) -> Option<TlsFiles> {
        let (certificate, key) = self.tls_certificate.clone().zip(self.tls_key.clone())?;
        let client_ca = self.tls_client_ca.clone();
        Some(TlsFiles { certificate, key, client_ca, client_certificate_optional: self.tls_client_optional })
    }
}

/// How servers are chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Placement")]
pub struct PlacementArgs {
    /// A file of servers, TOML or JSON, that are registered at start
    #[arg(long, env = "RESOURCE_ALLOCATOR_INVENTORY", value_name = "FILE")]
    pub inventory: Option<PathBuf>,
    /// How old a server's usage report may be before the server takes nothing new
    #[arg(long, env = "RESOURCE_ALLOCATOR_USAGE_MAX_AGE", default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub usage_max_age: Duration,
    /// Place nothing new on a server that never reported its usage, too
    #[arg(long, env = "RESOURCE_ALLOCATOR_USAGE_REQUIRED", value_name = "BOOL", num_args = 0..=1,
        default_value_t = false, default_missing_value = "true")]
    pub usage_required: bool,
    /// Kept free on servers that name no headroom of their own, such as ram=5%,disk=2048,cpu=500 (MB, CPU millis or percent);
    /// written into the fleet's policy at start [default: what stands there]
    #[arg(long, env = "RESOURCE_ALLOCATOR_DEFAULT_HEADROOM", value_name = "RESOURCE=AMOUNT", value_delimiter = ',', value_parser = headroom)]
    pub default_headroom: Vec<PolicyFigure>,
    /// How much may be reserved of what there is, such as cpu=4,ram=1.2; written into the fleet's policy at start
    /// [default: what stands there]
    #[arg(long, env = "RESOURCE_ALLOCATOR_OVERCOMMIT", value_name = "RESOURCE=RATIO", value_delimiter = ',', value_parser = overcommit)]
    pub overcommit: Vec<PolicyFigure>,
    /// How long a port that a worker found in use is given to nobody
    #[arg(long, env = "RESOURCE_ALLOCATOR_PORT_SET_ASIDE", default_value = "1h", value_parser = duration, value_name = "DURATION")]
    pub port_set_aside: Duration,
    /// How long a port that was given back rests while another is free
    #[arg(long, env = "RESOURCE_ALLOCATOR_PORT_REST", default_value = "60s", value_parser = duration, value_name = "DURATION")]
    pub port_rest: Duration,
    /// Which server is chosen where a request does not say
    #[arg(long, env = "RESOURCE_ALLOCATOR_STRATEGY", default_value = "spread", value_name = "STRATEGY")]
    pub strategy: StrategyArg,
    /// How many requests may wait before others are told to come back
    #[arg(long, env = "RESOURCE_ALLOCATOR_QUEUE_LIMIT", default_value_t = 4096, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue_limit: u32,
    /// How many projects may stand in line for capacity before others are told to come back
    #[arg(long, env = "RESOURCE_ALLOCATOR_LINE_LIMIT", default_value_t = 1000, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub line_limit: u32,
}

impl PlacementArgs {
    /// The figures of the fleet's policy that were named.
    #[must_use]
    pub fn policy(&self) -> PolicyPatch {
        let mut patch = PolicyPatch::default();
        for figure in self.default_headroom.iter().chain(&self.overcommit) {
            figure.apply(&mut patch);
        }
        patch
    }
}

/// A strategy by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StrategyArg {
    /// The most free RAM
    Spread,
    /// The tightest fit that strands least
    Binpack,
}

impl From<StrategyArg> for Strategy {
    fn from(strategy: StrategyArg) -> Self {
        match strategy {
            StrategyArg::Spread => Self::Spread,
            StrategyArg::Binpack => Self::Binpack,
        }
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// How log lines are written to standard error [default: text on a terminal, else json]
    #[arg(long, env = "RESOURCE_ALLOCATOR_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// A format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For machines: an object a line
    Json,
}
