//! What goes with a request beside what it asks for: who asks, and until when the answer is waited for. It travels as the
//! request's span does: with the task that serves it.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Span;

tokio::task_local! {
    static CALL: Call;
}

/// A call that is served.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who asks; empty where nobody says who calls, and for what nobody asks for.
    pub actor: Arc<str>,
    /// Until when the caller waits; none where it did not say.
    pub deadline: Option<Instant>,
    /// Its span in the trace; none where it is not traced.
    pub trace: Span,
}

impl Default for Call {
    fn default() -> Self {
        Self { actor: Arc::default(), deadline: None, trace: Span::none() }
    }
}

impl Call {
    /// Runs the work of the call.
    pub fn serve<T>(self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        CALL.scope(self, work)
    }

    /// The call at hand; one of nobody, who waits as long as it takes, where there is none.
    #[must_use]
    pub fn current() -> Self {
        CALL.try_with(Self::clone).unwrap_or_default()
    }
}
