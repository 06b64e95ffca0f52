//! Why an RPC fails. `status` says what callers are told of it.

use std::{num::NonZeroU32, time::Duration};

use super::decode::FieldViolation;
use crate::{allocator::Error, auth::Denied, domain::Refusal, events::WatchError};

/// Why an RPC fails.
#[derive(Debug)]
pub enum ApiError {
    /// Fields are malformed.
    Invalid(Vec<FieldViolation>),
    /// A use case failed.
    Allocator(Error),
    /// A watch did not begin, or ended.
    Watch(WatchError),
    /// No service of that name is offered.
    UnknownService,
    /// There is nothing at a path.
    PathNotFound {
        /// The path.
        path: String,
    },
    /// A path does not take a method of HTTP.
    MethodNotAllowed {
        /// The method.
        method: String,
    },
    /// A page of that origin may not call.
    OriginNotAllowed {
        /// The origin.
        origin: String,
    },
    /// The caller may not.
    Denied(Denied),
    /// The caller calls too often.
    RateLimited {
        /// How many calls a second it may make.
        limit: NonZeroU32,
        /// When it may call again.
        retry_after: Duration,
    },
    /// The caller's connection is one too many.
    TooManyConnections {
        /// How many there may be.
        limit: usize,
    },
    /// The service is up, and its database is not.
    DatabaseUnavailable,
}

impl ApiError {
    /// One field is malformed.
    #[must_use]
    pub fn invalid(field: &str, description: impl std::fmt::Display) -> Self {
        Self::Invalid(vec![FieldViolation { field: field.to_owned(), description: description.to_string() }])
    }
}

impl From<Vec<FieldViolation>> for ApiError {
    fn from(violations: Vec<FieldViolation>) -> Self {
        Self::Invalid(violations)
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::Allocator(error)
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Allocator(Error::Refused(refusal))
    }
}
