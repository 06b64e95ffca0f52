//! Until when a caller waits for its answer. It travels beside the request, as its span does: with the task that serves it.

use tokio::time::Instant;

tokio::task_local! {
    static DEADLINE: Option<Instant>;
}

/// Runs the work of a request whose caller waits until then, or as long as it takes.
pub fn with<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> impl Future<Output = T> {
    DEADLINE.scope(deadline, work)
}

/// Until when the caller of the request at hand waits; none where it did not say.
#[must_use]
pub fn current() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).unwrap_or_default()
}
