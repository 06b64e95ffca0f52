//! Reasons for what the transport refuses before a handler sees it: a method that there is not, a message that is too large or
//! none, a deadline that passed. Every refusal has its reason, also the transport's (L44).

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use tonic::{
    body::Body,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};

use super::{request_id::RequestId, status};

/// Adds an ErrorInfo to each error that has no details.
#[derive(Debug, Clone, Copy, Default)]
pub struct TransportErrorsLayer;

impl<S> Layer<S> for TransportErrorsLayer {
    type Service = TransportErrorsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TransportErrorsService { inner }
    }
}

/// See [`TransportErrorsLayer`].
#[derive(Debug, Clone)]
pub struct TransportErrorsService<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for TransportErrorsService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            // What fails before its first message is answered by headers alone.
            let refused = tonic::Status::from_header_map(response.headers());
            let typed = refused.and_then(|refused| status::of_transport(&refused, &id));
            if let Some(typed) = typed {
                // Details are bytes, and bytes always make a header.
                let _ = typed.add_header(response.headers_mut());
            }
            Ok(response)
        })
    }
}
