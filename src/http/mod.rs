//! HTTP beside gRPC, on the same port: JSON for callers that poll, what probes ask, and gRPC-web for pages in browsers.
//!
//! `edge` decides what may come in and answers what nothing else does, `gate` who, `allocations` and `probes` are the paths,
//! `metrics` is the one on a port of its own, `status` turns a refusal into JSON. The work itself is the RPCs'.

mod allocations;
mod edge;
mod gate;
pub mod metrics;
mod origin;
mod probes;
mod status;

use std::{num::NonZeroU32, sync::Arc};

use axum::{Router, middleware, routing::get};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;

pub use self::{allocations::filters, origin::Origin, probes::Readiness};
use crate::{
    api::Api,
    auth::{CallRate, Gate},
};

/// What the paths share. Each layer of each call has its own hold of it.
#[derive(Debug)]
struct Http {
    api: Api,
    readiness: watch::Receiver<Readiness>,
    origins: Vec<Origin>,
    gate: Gate,
    rate: Option<CallRate>,
}

/// Everything that the port answers: the services, by gRPC and by gRPC-web, and the paths of this module. `origins` are those
/// whose pages may call, `gate` lets callers in, `max_call_rate` times a second each.
#[must_use]
pub fn routes(
    services: Routes,
    api: Api,
    readiness: watch::Receiver<Readiness>,
    origins: Vec<Origin>,
    gate: Gate,
    max_call_rate: Option<NonZeroU32>,
) -> Routes {
    let cors = edge::cors(&origins);
    let http = Arc::new(Http { api, readiness, origins, gate, rate: max_call_rate.map(CallRate::new) });
    let mut router: Router<Arc<Http>> = services
        .into_axum_router()
        .with_state(())
        .route_layer(middleware::from_fn_with_state(http.clone(), gate::until_ended))
        .route_layer(GrpcWebLayer::new())
        .route_layer(middleware::from_fn_with_state(http.clone(), edge::grpc_alone))
        .route("/api/allocations/", get(allocations::list))
        .route("/api/allocations", get(allocations::list))
        .route("/healthz", get(probes::live))
        .route("/readyz", get(probes::ready))
        .method_not_allowed_fallback(edge::another_method)
        .fallback(edge::nothing_here)
        // Behind the answers to a browser's questions, which carry no credentials, and before everything else.
        .layer(middleware::from_fn_with_state(http.clone(), gate::admit));
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    let known_origins = middleware::from_fn_with_state(http.clone(), edge::known_origins);
    router.layer(known_origins).with_state::<()>(http).into()
}
