//! Who asks. It travels beside the request, as its deadline does: with the task that serves it.

use std::sync::Arc;

tokio::task_local! {
    static ACTOR: Arc<str>;
}

/// Runs the work of a request that this caller makes; the name is empty where nobody says who calls.
pub fn with<T>(actor: Arc<str>, work: impl Future<Output = T>) -> impl Future<Output = T> {
    ACTOR.scope(actor, work)
}

/// Who asks for the request at hand; empty for what nobody asks for.
#[must_use]
pub fn current() -> Arc<str> {
    ACTOR.try_with(Arc::clone).unwrap_or_default()
}
