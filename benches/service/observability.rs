//! What it costs to be watched: new projects in a second by a replica that tells nothing of its calls, and by one that tells all: a JSON
//! line a call, figures for Prometheus, and traces at the default share, to a collector.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    Result,
    load::{self, NewProjects, median, numbers},
    place::Place,
    report::{Report, Table, thousands},
    support::Replica,
    throughput::{SERVERS, must_be_clean},
};

const CALLERS: usize = 64;
const SECONDS: f64 = 5.0;
/// More than elsewhere: what is looked for is small.
const ROUNDS: usize = 7;

/// A collector that counts spans.
#[derive(Clone, Default)]
struct Collector(Arc<AtomicUsize>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> std::result::Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans;
        let scopes = spans.iter().flat_map(|resource| &resource.scope_spans);
        self.0.fetch_add(scopes.map(|scope| scope.spans.len()).sum(), Ordering::Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

pub fn observability(place: &Place, report: &mut Report) -> Result<()> {
    let collector = Collector::default();
    let listener = place.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    place.runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let folder = tempfile::tempdir()?;
    let quiet = folder.path().join("levels");
    fs::write(&quiet, "warn")?;
    let quiet = quiet.to_str().ok_or("the folder's name is not text")?;

    let databases = [place.database()?, place.database()?];
    for database in &databases {
        place.sql(database, &[SERVERS])?;
    }
    let all = ["--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", &endpoint];
    let replicas = [
        Replica::start(&databases[0].url, &["--log-levels", quiet])?,
        Replica::start(&databases[1].url, &all)?,
    ];
    let number = numbers();
    let call = NewProjects::spread("observability");
    let mut figures = [const { (Vec::new(), Vec::new()) }; 2];
    for round in 0..ROUNDS {
        // Who goes first takes turns, too.
        for which in [round % 2, 1 - round % 2] {
            let channels = load::connect(place, &[&replicas[which].endpoint], CALLERS)?;
            let outcome = load::run(place, &channels, CALLERS, SECONDS, &number, &call);
            must_be_clean(&outcome)?;
            figures[which].0.push(outcome.rate);
            figures[which].1.push(outcome.percentile_ms(99));
        }
    }
    if collector.0.load(Ordering::Relaxed) == 0 {
        return Err("the collector was sent nothing".into());
    }
    let mut table = Table::new(&["64 callers", "projects/s", "p99, ms", "of the first"]);
    let mut first = None;
    for (name, (rates, p99)) in ["nothing told", "log, figures, traces"].into_iter().zip(figures) {
        let rate = median(rates);
        let first = *first.get_or_insert(rate);
        table.row([
            name.to_owned(),
            thousands(rate),
            format!("{:.1}", median(p99)),
            format!("{:.3}", rate / first),
        ]);
    }
    report.table("observability", table);
    drop(replicas);
    databases.iter().try_for_each(|database| place.drop(database))
}
