//! Figures for Prometheus, on a port of their own: what was counted, and what is looked at when it is asked for.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::header::CONTENT_TYPE,
    middleware,
    response::{IntoResponse as _, Response},
    routing::get,
};
use metrics::{counter, gauge};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{Http, Readiness, edge, gate};
use crate::{
    allocator::{Allocator, figures::Figures},
    api::Api,
    auth::Gate,
    domain::Resources,
    events::Hub,
    store::Store,
};

/// The version of Prometheus' text format that is written.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The API counts memory and disk in MB, Prometheus in its base units.
const BYTES_PER_MB: f64 = 1_048_576.0;

/// What the figures are of.
#[derive(Debug, Clone)]
pub struct Scraped {
    /// The fleet and the queue.
    pub allocator: Allocator,
    /// The watchers.
    pub hub: Hub,
    /// The connections.
    pub store: Store,
    /// Whether the database answers.
    pub readiness: watch::Receiver<Readiness>,
    /// What was counted.
    pub recorder: PrometheusHandle,
    /// How many lines of the log were dropped.
    pub dropped_lines: fn() -> u64,
}

/// Everything that the port of the figures answers. `gate` lets in who may read.
pub fn routes(scraped: Scraped, api: Api, gate: Gate) -> Routes {
    let http =
        Arc::new(Http { api, readiness: scraped.readiness.clone(), origins: Vec::new(), gate, rate: None });
    let figures = get(scrape).with_state(scraped);
    let router: Router<Arc<Http>> = Router::new()
        .route("/metrics", figures)
        .method_not_allowed_fallback(edge::another_method)
        .fallback(edge::nothing_here)
        .layer(middleware::from_fn_with_state(http.clone(), gate::admit));
    let known_origins = middleware::from_fn_with_state(http.clone(), edge::known_origins);
    router.layer(known_origins).with_state::<()>(http).into()
}

/// Gathers what is counted between two scrapes, so that it does not pile up where nobody asks.
pub async fn keep_up(recorder: PrometheusHandle, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP_INTERVAL)).await.is_some() {
        recorder.run_upkeep();
    }
}

async fn scrape(State(scraped): State<Scraped>) -> Response {
    let up = *scraped.readiness.borrow() != Readiness::DatabaseUnavailable;
    gauge!("allocator_database_up").set(f64::from(u8::from(up)));
    for (pool, open, idle) in scraped.store.connections() {
        gauge!("allocator_database_connections", "pool" => pool, "state" => "busy")
            .set(count(open - idle.min(open)));
        gauge!("allocator_database_connections", "pool" => pool, "state" => "idle").set(count(idle));
    }
    let figures = scraped.allocator.figures().await;
    set(&figures);
    gauge!("allocator_watchers").set(count(scraped.hub.watchers()));
    counter!("allocator_log_lines_dropped_total").absolute((scraped.dropped_lines)());
    let handed_round = scraped.hub.sequence().unwrap_or(figures.sequence);
    gauge!("allocator_log_lag_events").set(signed((figures.sequence - handed_round).max(0)));
    ([(CONTENT_TYPE, TEXT_FORMAT)], scraped.recorder.render()).into_response()
}

fn set(figures: &Figures) {
    gauge!("allocator_queue_requests").set(count(figures.queue.0));
    gauge!("allocator_queue_limit_requests").set(count(figures.queue.1));
    for (status, servers) in &figures.servers {
        gauge!("allocator_servers", "status" => *status).set(count(*servers));
    }
    gauge!("allocator_servers_stale").set(count(figures.stale));
    gauge!("allocator_placements").set(signed(figures.placements));
    gauge!("allocator_ports_held").set(count(figures.ports_held));
    gauge!("allocator_ports_in_range").set(count(figures.ports_in_range));
    gauge!("allocator_waiting_projects").set(count(figures.waiting));
    gauge!("allocator_log_sequence").set(signed(figures.sequence));
    let states = [("budget", figures.budget), ("reserved", figures.reserved), ("free", figures.free)];
    for (state, Resources { cpu_millis, ram_mb, disk_mb }) in states {
        gauge!("allocator_fleet_cpu_millis", "state" => state).set(signed(cpu_millis));
        gauge!("allocator_fleet_ram_bytes", "state" => state).set(signed(ram_mb) * BYTES_PER_MB);
        gauge!("allocator_fleet_disk_bytes", "state" => state).set(signed(disk_mb) * BYTES_PER_MB);
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats alone")]
fn count(figure: usize) -> f64 {
    figure as f64
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats alone")]
fn signed(figure: i64) -> f64 {
    figure as f64
}
