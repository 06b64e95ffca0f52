//! What probes ask: whether the process answers, and whether it can do its work.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;

use super::{Http, status};
use crate::{
    allocator,
    api::{request_id::RequestId, status::ApiError},
};

/// Whether the service can do its work; the same as its health by gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// Its database does not answer, or takes no writes.
    DatabaseUnavailable,
    /// It was told to stop.
    ShuttingDown,
}

#[derive(Serialize)]
struct Health {
    /// As in `grpc.health.v1.HealthCheckResponse.ServingStatus`.
    status: &'static str,
}

/// Always 200, for as long as the process answers: a service that is started anew because its database is away gains nothing.
/// What it can do is told all the same.
pub(super) async fn live(State(http): State<Arc<Http>>) -> Response {
    let status = match *http.readiness.borrow() {
        Readiness::Ready => "SERVING",
        Readiness::DatabaseUnavailable | Readiness::ShuttingDown => "NOT_SERVING",
    };
    Json(Health { status }).into_response()
}

/// 200 while the service serves, otherwise a refusal that says why it does not.
pub(super) async fn ready(State(http): State<Arc<Http>>, Extension(id): Extension<RequestId>) -> Response {
    let readiness = *http.readiness.borrow();
    let error = match readiness {
        Readiness::Ready => return Json(Health { status: "SERVING" }).into_response(),
        Readiness::DatabaseUnavailable => ApiError::DatabaseUnavailable,
        Readiness::ShuttingDown => allocator::Error::ShuttingDown.into(),
    };
    status::response(&http.api.refuse(&error, &id.0))
}
