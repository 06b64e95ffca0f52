//! The names of gRPC's status codes, for people and for figures.

use tonic::{Code, codegen::http::HeaderMap};

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

/// Whether an answer's headers tell of no error.
#[must_use]
pub fn is_ok(headers: &HeaderMap) -> bool {
    code(headers) == Code::Ok
}

/// The code's number, and whether it says that the service is at fault and not its caller.
#[must_use]
pub fn number_of(headers: &HeaderMap) -> (i64, bool) {
    let code = code(headers);
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

/// The name of the code that an answer's headers tell. A call that succeeds tells it in trailers; one that fails before its first
/// message has headers alone.
#[must_use]
pub fn code_of(headers: &HeaderMap) -> &'static str {
    code_name(code(headers))
}

fn code(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}
