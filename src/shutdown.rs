//! When to stop: at a first signal gently, at a second one at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two ways to be told to stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take nothing new, and finish what is under way.
    pub soft: CancellationToken,
    /// Stop at once.
    pub hard: CancellationToken,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT.
    ///
    /// # Errors
    /// When the process cannot listen for signals.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let told = shutdown.clone();
        tokio::spawn(async move {
            for token in [told.soft, told.hard] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "told to stop");
                token.cancel();
            }
        });
        Ok(shutdown)
    }
}
