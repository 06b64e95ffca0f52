//! The names of gRPC's status codes, for people and for figures.

use tonic::{
    Code,
    codegen::http::{Response, StatusCode},
};

/// The code's name as the contract and other gRPC tools write it.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether an answer tells of no error.
#[must_use]
pub fn is_ok<B>(response: &Response<B>) -> bool {
    code(response) == Code::Ok
}

/// The code's number, and whether it says that the service is at fault and not its caller.
#[must_use]
pub fn number_of<B>(response: &Response<B>) -> (i64, bool) {
    let code = code(response);
    let is_our_fault = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    (i32::from(code).into(), is_our_fault)
}

/// The name of the code that an answer tells. A call that succeeds tells it in trailers; one that fails before its first message
/// has headers alone.
#[must_use]
pub fn code_of<B>(response: &Response<B>) -> &'static str {
    code_name(code(response))
}

fn code<B>(response: &Response<B>) -> Code {
    let told = response.headers().get("grpc-status");
    told.map_or_else(|| code_of_http(response.status()), |code| Code::from_bytes(code.as_bytes()))
}

/// The code that an HTTP status stands for where it was no gRPC that was answered. Our refusals go by `google/rpc/code.proto`, and
/// this is the way back. gRPC's own table is for clients that meet a stranger's answer: there a malformed request is `INTERNAL`, and
/// whoever asks for the wrong thing would look like a service that fails.
fn code_of_http(status: StatusCode) -> Code {
    match status.as_u16() {
        ..400 => Code::Ok,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        405 | 501 => Code::Unimplemented,
        409 => Code::Aborted,
        429 => Code::ResourceExhausted,
        499 => Code::Cancelled,
        400..500 => Code::InvalidArgument,
        500 => Code::Internal,
        502 | 503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::HeaderValue;

    use super::*;

    #[test]
    fn an_answer_without_a_code_of_grpc_is_counted_by_its_http_status() {
        for (status, code) in [
            (200, "OK"),
            (304, "OK"),
            (400, "INVALID_ARGUMENT"),
            (401, "UNAUTHENTICATED"),
            (403, "PERMISSION_DENIED"),
            (404, "NOT_FOUND"),
            (405, "UNIMPLEMENTED"),
            (415, "INVALID_ARGUMENT"),
            (429, "RESOURCE_EXHAUSTED"),
            (500, "INTERNAL"),
            (503, "UNAVAILABLE"),
            (504, "DEADLINE_EXCEEDED"),
            (599, "UNKNOWN"),
        ] {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            assert_eq!((code_of(&response), is_ok(&response)), (code, code == "OK"), "{status}");
            // What gRPC says counts.
            response.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
            assert_eq!(code_of(&response), "NOT_FOUND");
        }
    }
}
