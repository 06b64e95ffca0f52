//! Log lines on standard error. A file, or else `RUST_LOG`, sets the levels; `info` without either. The file is read again when it
//! changes, so that the levels change while the service runs.
//!
//! Whoever calls never waits for the one who reads the log. Lines go through a bounded queue to a thread that writes them, many at once
//! where many wait; what does not fit is dropped, and counted.

use std::{
    io::{self, BufWriter, IsTerminal as _, Stderr, Write, stderr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use opentelemetry_sdk::trace::SdkTracer;
use tracing::{Level, level_filters::LevelFilter};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

use crate::{
    config::LogFormat,
    followed::{self, FollowError},
    traced,
};

/// What is written where nothing else is said: not that a table which sqlx makes if there is none is there, nor how the exporter of
/// traces fares, but for its failures.
const DEFAULT_LEVELS: &str = "info,sqlx::postgres::notice=warn,opentelemetry=warn";
/// Lines of this target are written whatever the levels say: whoever starts the service waits for them.
pub const READY: &str = "resource_allocator::ready";

/// How many lines wait to be written at the most: some seconds of calls, and a few MB.
const QUEUE: usize = 16_384;
/// How much is written at once, in bytes.
const BUFFER: usize = 64 * 1_024;
/// How long lines gather before the next are written. To be woken for each of thousands a second costs more than to write them.
const PAUSE: Duration = Duration::from_millis(5);

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

type Change = Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Writes what it has when it is flushed, and rests then.
struct Paced(BufWriter<Stderr>);

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.flush();
        thread::sleep(PAUSE);
        flushed
    }
}

/// A log that was started. What still waits is written when it is dropped.
pub struct Log {
    change: Change,
    _writer: WorkerGuard,
}

/// Why levels cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LevelsError {
    /// The file is no text.
    #[error("the levels are not UTF-8 text")]
    NoText,
    /// A level is malformed.
    #[error("the levels are not like `info,resource_allocator=debug`: {0}")]
    Malformed(#[from] tracing_subscriber::filter::ParseError),
    /// The log has ended.
    #[error("the levels cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

/// Starts the log, and has `tracer` take the spans of traces. A second call does nothing, so that tests may start several services;
/// it returns nothing to change the levels by.
#[must_use]
pub fn init(format: Option<LogFormat>, tracer: Option<SdkTracer>) -> Option<Log> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LEVELS));
    // The levels are of the whole and come first: of what they leave out, no layer's own filter keeps anything in mind. It would
    // take that for the next event where a library only asks whether one were written.
    let filter = with_own(filter, tracer.is_some());
    let terminal = stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .thread_name("log")
        .finish(Paced(BufWriter::with_capacity(BUFFER, stderr())));
    let dropped = writer.error_counter();
    let layer = fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(terminal).with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    };
    // An error says that a log is started already.
    let change: Change = if let Some(tracer) = tracer {
        // What is not asked for is not paid for.
        let sampled = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        let lines = Targets::new().with_default(Level::TRACE).with_target(traced::TARGET, LevelFilter::OFF);
        let spans = Targets::new().with_target(traced::TARGET, Level::INFO);
        let (filter, handle) = reload::Layer::new(filter);
        let registry =
            tracing_subscriber::registry().with(layer.with_filter(lines)).with(sampled.with_filter(spans));
        registry.with(filter).try_init().ok()?;
        Arc::new(move |filter| handle.reload(with_own(filter, true)))
    } else {
        let (filter, handle) = reload::Layer::new(filter);
        tracing_subscriber::registry().with(layer).with(filter).try_init().ok()?;
        Arc::new(move |filter| handle.reload(with_own(filter, false)))
    };
    let _ = DROPPED.set(dropped);
    Some(Log { change, _writer: guard })
}

/// How many lines were dropped because those before them were not read.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX))
}

impl Log {
    /// Takes its levels from a file, and again when it changes. An empty one stands for the levels that there are without one.
    ///
    /// # Errors
    /// When it cannot be taken as it is now.
    pub fn follow(&self, file: PathBuf) -> Result<(), FollowError<LevelsError>> {
        let change = self.change.clone();
        let mut changes = followed::follow("the levels of the log", vec![file], move |contents| {
            let text = str::from_utf8(&contents[0]).map_err(|_| LevelsError::NoText)?;
            change(levels(text)?).map_err(LevelsError::from)
        })?;
        // It is looked at for as long as anyone waits for a change.
        tokio::spawn(async move { while changes.changed().await.is_ok() {} });
        Ok(())
    }
}

/// The levels that a file names: `RUST_LOG`'s directives, by commas or lines, with comments after `#`.
fn levels(text: &str) -> Result<EnvFilter, LevelsError> {
    let directives: Vec<_> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim().trim_matches(','))
        .filter(|line| !line.is_empty())
        .collect();
    if directives.is_empty() {
        return Ok(EnvFilter::new(DEFAULT_LEVELS));
    }
    Ok(EnvFilter::try_new(directives.join(","))?)
}

/// Adds what holds in any case: the line that the service listens is written, and spans of traces are for those who take them.
fn with_own(filter: EnvFilter, traced: bool) -> EnvFilter {
    let level = if traced { "info" } else { "off" };
    let own = [format!("{READY}=info"), format!("{}={level}", traced::TARGET)];
    own.iter().filter_map(|directive| directive.parse().ok()).fold(filter, EnvFilter::add_directive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_levels_has_directives_by_commas_and_lines() {
        let read = |text| levels(text).map(|filter| filter.to_string());
        assert_eq!(read("warn").unwrap(), "warn");
        assert_eq!(read("# quiet\nwarn, # all\nsqlx=debug\n").unwrap(), read("warn,sqlx=debug").unwrap());
        assert_eq!(read(" \n# nothing\n").unwrap(), levels(DEFAULT_LEVELS).unwrap().to_string());
        assert!(matches!(read("resource_allocator=loud"), Err(LevelsError::Malformed(_))));
    }
}
