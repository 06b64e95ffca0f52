//! The gate before everything that the port answers, and the end of what a caller has open once it may not any more.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    Extension,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};

use super::{Http, status};
use crate::{
    api::{request_id::RequestId, status::ApiError},
    auth::{Caller, CallerKey, Denied, Peer},
};

/// Lets a request in whose caller may make it, and notes who that is.
pub(super) async fn admit(
    State(http): State<Arc<Http>>,
    Extension(id): Extension<RequestId>,
    mut request: Request,
    next: Next,
) -> Response {
    let shown = request.headers().get_all(header::AUTHORIZATION).iter().map(AsRef::as_ref);
    let peer = request.extensions().get::<Peer>();
    match http.gate.admit(request.uri().path(), shown, peer) {
        Ok(Some(caller)) => {
            if let Err(error) = has_place(peer).and_then(|()| count(&http, &caller, peer)) {
                return status::as_asked(&http.api.refuse(&error, &id.0), request.headers());
            }
            if !caller.name().is_empty() {
                tracing::Span::current().record("actor", caller.name());
            }
            request.extensions_mut().insert(caller);
        }
        Ok(None) => {}
        Err(denied) => {
            return status::as_asked(&http.api.refuse(&denied.into(), &id.0), request.headers());
        }
    }
    // Nothing behind it needs the token, and so nothing can tell it.
    request.headers_mut().remove(header::AUTHORIZATION);
    next.run(request).await
}

/// Whether the call's connection is one of those that there may be.
fn has_place(peer: Option<&Peer>) -> Result<(), ApiError> {
    match peer.and_then(|peer| peer.beyond) {
        Some(limit) => Err(ApiError::TooManyConnections { limit }),
        None => Ok(()),
    }
}

/// Counts a call of its caller.
fn count(http: &Http, caller: &Caller, peer: Option<&Peer>) -> Result<(), ApiError> {
    let Some(rate) = &http.rate else { return Ok(()) };
    let key = match caller.name() {
        "" => CallerKey::Address(peer.map(|peer| peer.address.ip())),
        name => CallerKey::Name(name.to_owned()),
    };
    let limit = rate.limit;
    rate.count(&key).map_err(|retry_after| ApiError::RateLimited { limit, retry_after })
}

/// Ends a call, and the stream that it answers, when its caller's credential is taken away or over.
pub(super) async fn until_ended(
    State(http): State<Arc<Http>>,
    Extension(id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let caller = request.extensions().get::<Caller>().filter(|caller| caller.can_end()).cloned();
    let Some(caller) = caller else { return next.run(request).await };
    let asked = request.headers().clone();
    let mut ended: Ended = Box::pin(caller.ended());
    let response = tokio::select! {
        response = next.run(request) => response,
        denied = &mut ended => return status::as_asked(&http.api.refuse(&denied.into(), &id.0), &asked),
    };
    response.map(|body| Body::new(UntilEnded { body, ended: Some(ended), http, id }))
}

type Ended = Pin<Box<dyn Future<Output = Denied> + Send>>;

/// A body that ends with a refusal when its caller may not read on.
struct UntilEnded {
    body: Body,
    /// None once it has ended.
    ended: Option<Ended>,
    http: Arc<Http>,
    id: RequestId,
}

impl HttpBody for UntilEnded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let Some(ended) = &mut this.ended else { return Poll::Ready(None) };
        // Before the body is asked: one that always has something would never come to its end.
        let Poll::Ready(denied) = ended.as_mut().poll(cx) else {
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
            return Poll::Ready(frame);
        };
        this.ended = None;
        let mut trailers = HeaderMap::new();
        // Details are bytes, and bytes always make a header.
        let _ = this.http.api.refuse(&denied.into(), &this.id.0).add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
