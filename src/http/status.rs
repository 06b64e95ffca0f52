//! Refusals in JSON: the same `google.rpc.Status` that gRPC callers get, details and all, under the HTTP status that
//! `google.rpc.Code` names for its code.

use std::{sync::LazyLock, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What all content types of gRPC and gRPC-web begin with.
const GRPC: &str = "application/grpc";

static RPC_STATUS: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(tonic_types::pb::FILE_DESCRIPTOR_SET).ok()?;
    pool.get_message_by_name("google.rpc.Status")
});

/// The content type of a request; empty where it has none.
pub(super) fn content_type(headers: &HeaderMap) -> &str {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether a request is a call by gRPC or gRPC-web.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    content_type(headers).starts_with(GRPC)
}

/// A refusal as its caller reads it, by the headers of the request: gRPC's headers, or JSON.
pub(super) fn as_asked(status: &Status, asked: &HeaderMap) -> Response {
    if !is_grpc(asked) {
        return response(status);
    }
    let mut response: Response = status.clone().into_http();
    if let Some(content_type) = asked.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    }
    response
}

/// A refusal in JSON.
pub(super) fn response(status: &Status) -> Response {
    let message = RPC_STATUS.clone().and_then(|rpc_status| {
        let message = DynamicMessage::decode(rpc_status, status.details()).ok()?;
        serde_json::to_vec(&message).ok()
    });
    let mut response = Response::new(Body::from(message.unwrap_or_else(|| b"{}".to_vec())));
    *response.status_mut() = http_status(status.code());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status.code() == Code::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(delay) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(delay)));
    }
    response
}

/// Rounded up: who comes back earlier than told is told again.
fn whole_seconds(delay: Duration) -> u64 {
    delay.as_secs() + u64::from(delay.subsec_nanos() > 0)
}

/// The HTTP status of a code, as the comments of `google/rpc/code.proto` map them.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_told_in_whole_seconds_that_are_not_less() {
        for (millis, seconds) in [(0, 0), (1, 1), (1000, 1), (1001, 2), (5000, 5)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis}");
        }
    }
}
