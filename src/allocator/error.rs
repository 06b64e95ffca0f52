//! Why a use case did not do what was asked. What that is to gRPC is decided in `api::status`.

use std::sync::Arc;

use crate::{domain::Refusal, store::StoreError};

/// An error of a use case.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request is well-formed and cannot be granted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Postgres failed; shared, for one failure answers a whole batch.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// More requests wait than the queue takes.
    #[error("{limit} requests are waiting already, which is the most that this replica takes")]
    Overloaded {
        /// The queue's length.
        limit: usize,
    },
    /// The caller's deadline passed while its request waited, and nothing was done.
    #[error("the caller's deadline passed while the request waited")]
    DeadlinePassed,
    /// The service is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}
