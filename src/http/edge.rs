//! What may come in, and the answers where nothing else answers.
//!
//! A browser sends a request for any page that its user visits, and tells the page's origin with it. A page of an origin that
//! nobody named may not call, whether or not it could read the answer: an allocation would be made all the same.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::Next,
    response::Response,
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{Http, Origin, status};
use crate::api::{request_id::RequestId, status::ApiError};

/// The content types of gRPC-web that are served.
const GRPC_WEB: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];
/// What a page may send beside the headers that any may: those of gRPC-web, a request's own id, and credentials.
const ALLOWED_HEADERS: [&str; 6] =
    ["content-type", "x-grpc-web", "x-user-agent", "grpc-timeout", "x-request-id", "authorization"];
/// What a page may read of an answer: the status, which an error has in its headers, and when to come back.
const EXPOSED_HEADERS: [&str; 5] =
    ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id", "retry-after"];

/// The answers to a browser's questions before a call of a page; none where no page may call.
pub(super) fn cors(origins: &[Origin]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().map(|origin| origin.header().clone())))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(ALLOWED_HEADERS.map(HeaderName::from_static))
        .expose_headers(EXPOSED_HEADERS.map(HeaderName::from_static));
    Some(layer)
}

/// Refuses what a page of an unknown origin has its reader's browser send.
pub(super) async fn known_origins(
    State(http): State<Arc<Http>>,
    Extension(id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let unknown = |origin: &&HeaderValue| !http.origins.iter().any(|known| known.header() == *origin);
    let Some(origin) = request.headers().get(header::ORIGIN).filter(unknown) else {
        return next.run(request).await;
    };
    let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
    status::as_asked(&http.api.refuse(&ApiError::OriginNotAllowed { origin }, &id.0), request.headers())
}

/// Refuses a request for a method of a service that is no call of one.
pub(super) async fn grpc_alone(
    State(http): State<Arc<Http>>,
    Extension(id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let refuse = |description: &str, status: StatusCode| {
        let error = ApiError::invalid("content-type", description);
        let mut response = status::response(&http.api.refuse(&error, &id.0));
        *response.status_mut() = status;
        response
    };
    let content_type = status::content_type(request.headers());
    if !status::is_grpc(request.headers()) {
        let description = "must be application/grpc, or application/grpc-web in a browser: this is a method of a gRPC service";
        return refuse(description, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    if request.method() != Method::POST {
        return not_allowed(&http, &id, request.method(), "POST");
    }
    if request.version() < Version::HTTP_2 && !GRPC_WEB.contains(&content_type) {
        let description = "must be application/grpc-web over HTTP/1.1; gRPC itself needs HTTP/2";
        return refuse(description, StatusCode::BAD_REQUEST);
    }
    next.run(request).await
}

/// The answer on a path of ours that does not take the method. The router adds which ones it takes.
pub(super) async fn another_method(
    State(http): State<Arc<Http>>,
    Extension(id): Extension<RequestId>,
    method: Method,
) -> Response {
    refused_method(&http, &id, &method)
}

fn refused_method(http: &Http, id: &RequestId, method: &Method) -> Response {
    let error = ApiError::MethodNotAllowed { method: method.to_string() };
    let mut response = status::response(&http.api.refuse(&error, &id.0));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

fn not_allowed(http: &Http, id: &RequestId, method: &Method, allowed: &'static str) -> Response {
    let mut response = refused_method(http, id, method);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The answer on a path that nothing is at.
pub(super) async fn nothing_here(
    State(http): State<Arc<Http>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Response {
    let path = request.uri().path().to_owned();
    let error = if status::is_grpc(request.headers()) {
        ApiError::UnknownService
    } else {
        ApiError::PathNotFound { path }
    };
    status::as_asked(&http.api.refuse(&error, &id.0), request.headers())
}
