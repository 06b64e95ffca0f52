//! The flags about what a connection and a caller may cost.

use std::{num::NonZeroU32, time::Duration};

use clap::Args;

use super::duration;
use crate::listener::{ConnectionLimits, ListenerOptions};

/// What a connection and a caller may cost.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// How many connections there may be at a time; a few more are answered `OVERLOADED`, others wait
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_CONNECTIONS", default_value_t = 10_000, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// How long a client may take to shake hands for TLS
    #[arg(long, env = "RESOURCE_ALLOCATOR_TLS_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub tls_handshake_timeout: Duration,
    /// How many clients may begin to shake hands at a time; others wait
    #[arg(long, env = "RESOURCE_ALLOCATOR_TLS_HANDSHAKES", default_value_t = 128, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub tls_handshakes: u32,
    /// How many calls a connection may have under way at a time
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_STREAMS", default_value_t = 200, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_streams: u32,
    /// How many calls of a connection may be cancelled before they were looked at; then the connection ends
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_PENDING_RESETS", default_value_t = 200, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_pending_resets: u32,
    /// How large the headers of a call may be
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_HEADER_BYTES", default_value_t = 16 << 10, value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(1024..=1 << 20))]
    pub max_header_bytes: u32,
    /// How large a message may be; a sync of ten thousand servers with a dozen labels each takes less than the default
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_MESSAGE_BYTES", default_value_t = 16 << 20, value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(1024..=64 << 20))]
    pub max_message_bytes: u32,
    /// How often an idle connection is asked whether its client is there
    #[arg(long, env = "RESOURCE_ALLOCATOR_KEEPALIVE_INTERVAL", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub keepalive_interval: Duration,
    /// How long the client may take to answer that
    #[arg(long, env = "RESOURCE_ALLOCATOR_KEEPALIVE_TIMEOUT", default_value = "20s", value_parser = duration, value_name = "DURATION")]
    pub keepalive_timeout: Duration,
    /// How old a connection may grow before it takes no new calls, so that balancers spread clients anew [default: any age]
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_CONNECTION_AGE", value_parser = duration, value_name = "DURATION")]
    pub max_connection_age: Option<Duration>,
    /// How long the calls of such a connection may go on, also its streams
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_CONNECTION_AGE_GRACE", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub max_connection_age_grace: Duration,
    /// How many calls a second a caller may make, by its name, or its address where it has none [default: any number]
    #[arg(long, env = "RESOURCE_ALLOCATOR_MAX_CALL_RATE", value_name = "N")]
    pub max_call_rate: Option<NonZeroU32>,
}

impl LimitArgs {
    /// What the listener takes.
    ///
    /// # Errors
    /// On a machine whose addresses are too short for the numbers.
    pub fn listener_options(&self) -> Result<ListenerOptions, std::num::TryFromIntError> {
        Ok(ListenerOptions {
            max_connections: self.max_connections.try_into()?,
            max_handshakes: self.tls_handshakes.try_into()?,
            handshake_timeout: self.tls_handshake_timeout,
            connection: ConnectionLimits {
                max_streams: self.max_streams,
                max_pending_resets: self.max_pending_resets.try_into()?,
                max_header_bytes: self.max_header_bytes,
                max_message_bytes: self.max_message_bytes.try_into()?,
                keepalive_interval: self.keepalive_interval,
                keepalive_timeout: self.keepalive_timeout,
                max_age: self.max_connection_age,
                max_age_grace: self.max_connection_age_grace,
            },
        })
    }
}
