//! Reasons for what the transport refuses before a handler sees it: a method that there is not, a message that is too large or
//! none, a deadline that passed. Every refusal has its reason, also the transport's (L44).

use tonic::{body::Body, codegen::http::Response};

use super::{call_notes, status};

/// Adds an `ErrorInfo` to an answer that is an error without details. What fails before its first message is answered by headers
/// alone, the request's id among them.
#[must_use]
pub fn with_reason(mut response: Response<Body>) -> Response<Body> {
    if let Some(typed) = status::of_transport(response.headers(), &call_notes::request_id()) {
        // Details are bytes, and bytes always make a header.
        let _ = typed.add_header(response.headers_mut());
    }
    response
}
