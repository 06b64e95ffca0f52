//! Streams of messages that are encoded already, once for everyone who is sent them. What tonic generates would encode each
//! message for each stream; here the bytes that go over the wire are shared.
//!
//! A handler answers with a stream of nothing that carries the [`PreparedBody`], and [`with_prepared_body`], around the service,
//! puts it in place of that.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use tokio_stream::{Empty, Stream, StreamExt as _};
use tonic::{
    Response, Status,
    body::Body,
    codegen::http::{self, HeaderMap},
};

/// What is before each message: whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;

/// Appends a message as it goes over the wire.
pub(super) fn append(buffer: &mut BytesMut, message: &impl Message) {
    let start = buffer.len();
    buffer.put_bytes(0, HEADER_BYTES);
    // The buffer grows as it must, which is all that could fail.
    let _ = message.encode(buffer);
    let length = u32::try_from(buffer.len() - start - HEADER_BYTES).unwrap_or(u32::MAX);
    buffer[start + 1..start + HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// A response's body of messages that are encoded already.
#[derive(Clone)]
pub struct PreparedBody(Arc<Mutex<Option<Body>>>);

impl fmt::Debug for PreparedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedBody").finish_non_exhaustive()
    }
}

impl PreparedBody {
    /// A body of one message or more at a time, each made by [`append`]. It ends with the status.
    pub(super) fn new(messages: impl Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Self {
        let frames = messages.map(|message| {
            Ok::<_, Infallible>(match message {
                Ok(bytes) => Frame::data(bytes),
                Err(status) => {
                    let mut trailers = HeaderMap::new();
                    // A message that no header may hold is left out.
                    let _ = status.add_header(&mut trailers);
                    Frame::trailers(trailers)
                }
            })
        });
        Self(Arc::new(Mutex::new(Some(Body::new(StreamBody::new(frames))))))
    }

    /// The response that carries it, and of its own has nothing.
    pub(super) fn into_response<T>(self) -> Response<Empty<T>> {
        let mut response = Response::new(tokio_stream::empty());
        response.extensions_mut().insert(self);
        response
    }
}

/// Puts the prepared body in place, where the response carries one.
#[must_use]
pub fn with_prepared_body(mut response: http::Response<Body>) -> http::Response<Body> {
    let prepared = response.extensions_mut().remove::<PreparedBody>();
    match prepared.and_then(|body| body.0.lock().unwrap_or_else(PoisonError::into_inner).take()) {
        Some(body) => response.map(|_| body),
        None => response,
    }
}
