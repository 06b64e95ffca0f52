//! Log lines on standard error. `RUST_LOG` sets the levels, `info` without it.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::LogFormat;

/// What is written where `RUST_LOG` does not say: not that a table which sqlx makes if there is none is there.
const DEFAULT_LEVELS: &str = "info,sqlx::postgres::notice=warn";
/// Lines of this target are written whatever `RUST_LOG` says: whoever starts the service waits for them.
pub const READY: &str = "resource_allocator::ready";

/// Starts the log. A second call does nothing, so that tests may start several services.
pub fn init(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LEVELS));
    let filter = match format!("{READY}=info").parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let terminal = stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(stderr);
    // An error here says that a log is started already.
    let _ = match format {
        LogFormat::Text => registry.with(layer.with_ansi(terminal).with_target(false)).try_init().is_ok(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init().is_ok(),
    };
}
