//! Request ids: each request has one, the caller's own (`x-request-id`) or a new one. It is in the logs, in the event log, in the
//! answer's headers and in every error.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use tonic::{
    body::Body,
    codegen::http::{HeaderValue, Request, Response},
};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use super::{call_notes, code_name, deadline, rpc_metrics, status};
use crate::{domain::ids::check_name, traced};

/// The header that carries it.
pub const HEADER: &str = "x-request-id";
/// Where JSON is answered; what else HTTP asks for is a probe or a mistake.
const JSON: &str = "/api/";
/// A caller's own id that is longer is not taken.
const MAX_LENGTH: usize = 128;

/// The id of a request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// A call's span in its trace.
#[derive(Debug, Clone)]
pub struct CallTrace(pub Span);

/// The id that the layer gave a request; a new one where there is no layer.
#[must_use]
pub fn of<T>(request: &tonic::Request<T>) -> String {
    request.extensions().get::<RequestId>().map_or_else(new, |id| id.0.clone())
}

fn new() -> String {
    Uuid::now_v7().to_string()
}

/// Gives each request its id and its span, and writes a line when it is answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestIdLayer;

impl<S> Layer<S> for RequestIdLayer {
    type Service = RequestIdService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestIdService { inner }
    }
}

/// See [`RequestIdLayer`].
#[derive(Debug, Clone)]
pub struct RequestIdService<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for RequestIdService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let given = request.headers().get(HEADER).and_then(|value| value.to_str().ok());
        let id = given
            .filter(|id| check_name(id, MAX_LENGTH, "._:/-").is_ok())
            .map_or_else(new, ToOwned::to_owned);
        request.extensions_mut().insert(RequestId(id.clone()));
        let path = request.uri().path();
        let method = rpc_metrics::find(path);
        let span = tracing::info_span!("rpc", method = path, request_id = id, actor = tracing::field::Empty);
        let is_ours = method.is_some() || path.starts_with(JSON);
        // Paths that callers make up are none of ours.
        let trace = if method.is_some() { traced::call(path, &id, request.headers()) } else { Span::none() };
        if !trace.is_disabled() {
            request.extensions_mut().insert(CallTrace(trace.clone()));
        }
        let limit = deadline::limit(request.headers());
        let future = self.inner.call(request);
        let noted = id.clone();
        let answer = async move {
            let start = tokio::time::Instant::now();
            let mut response = match limit {
                None => future.await?,
                Some(limit) => match tokio::time::timeout(limit, future).await {
                    Ok(response) => response?,
                    Err(_) => status::deadline_passed(&id),
                },
            };
            // The ids that pass the check are all characters that a header may have.
            if let Ok(value) = HeaderValue::from_str(&id) {
                response.headers_mut().insert(HEADER, value);
            }
            let duration = start.elapsed();
            if let Some(method) = method {
                rpc_metrics::count(method, &response, duration);
            }
            if !trace.is_disabled() {
                let (code, is_our_fault) = code_name::number_of(&response);
                traced::end(&trace, code, is_our_fault);
            }
            call_notes::write(&response, duration, is_ours);
            Ok(response)
        };
        Box::pin(call_notes::noting(noted, answer).instrument(span))
    }
}
