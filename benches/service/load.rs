//! Callers: each waits for its answer before it calls again, over a few shared connections, as workers of one host do.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use resource_allocator::{
    domain::request::Strategy,
    listener::Gathered,
    proto::v1::{
        EnsureAllocationRequest, ModuleSpec, PlacementStrategy,
        resource_allocator_client::ResourceAllocatorClient,
    },
};
use tokio::net::TcpStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt as _;
use tower::service_fn;

use crate::{Result, place::Place};

/// How many callers share a connection.
const CALLERS_A_CONNECTION: usize = 32;

/// A client over one of the connections.
pub type Client = ResourceAllocatorClient<Channel>;

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How many calls were answered well in a second.
    pub rate: f64,
    /// How long each took, in microseconds, ascending.
    pub latencies: Vec<u32>,
    /// How many were turned away because the queue was full.
    pub shed: u64,
    /// How many failed in any other way.
    pub failed: u64,
}

impl Outcome {
    /// The latency that so many of a hundred stay below, in milliseconds.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let at = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |latency| f64::from(*latency) / 1000.0)
    }
}

/// Connections to replicas, in turn.
pub fn connect(place: &Place, endpoints: &[&str], callers: usize) -> Result<Vec<Channel>> {
    let count = callers.div_ceil(CALLERS_A_CONNECTION).max(endpoints.len());
    place.runtime.block_on(async {
        let mut channels = Vec::with_capacity(count);
        for number in 0..count {
            let endpoint = Endpoint::from_shared(endpoints[number % endpoints.len()].to_owned())?;
            channels.push(endpoint.connect_with_connector(service_fn(gathering)).await?);
        }
        Ok(channels)
    })
}

/// Connects so that calls which are made at the same time are sent together, as the service sends its answers: what callers take of
/// the machine is what the service does not have.
async fn gathering(uri: Uri) -> io::Result<TokioIo<Gathered<TcpStream>>> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(Gathered::http2_client(stream)))
}

/// One call of a caller; the number is new each time.
pub trait Call: Clone + Send + Sync + 'static {
    fn call(
        &self,
        channel: Channel,
        number: u64,
    ) -> impl Future<Output = std::result::Result<(), Status>> + Send;
}

/// Has so many callers call for so long, after a moment that does not count.
pub fn run<C: Call>(
    place: &Place,
    channels: &[Channel],
    callers: usize,
    seconds: f64,
    numbers: &Arc<AtomicU64>,
    call: &C,
) -> Outcome {
    let warm_up = Duration::from_secs_f64((seconds / 5.0).min(1.0));
    let length = Duration::from_secs_f64(seconds);
    let begin = Instant::now();
    let count_from = begin + warm_up;
    let end = count_from + length;
    place.runtime.block_on(async {
        let mut tasks = Vec::with_capacity(callers);
        for caller in 0..callers {
            let channel = channels[caller % channels.len()].clone();
            let (numbers, call) = (Arc::clone(numbers), call.clone());
            tasks.push(tokio::spawn(async move {
                let mut outcome = Outcome::default();
                loop {
                    let start = Instant::now();
                    if start >= end {
                        return outcome;
                    }
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let answer = call.call(channel.clone(), number).await;
                    let now = Instant::now();
                    let counts = now >= count_from && now < end;
                    match answer {
                        Ok(()) if counts => {
                            let latency = (now - start).as_micros();
                            outcome.latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
                        }
                        Ok(()) => {}
                        Err(status) if status.code() == Code::ResourceExhausted => {
                            outcome.shed += u64::from(counts);
                            // What a caller is told to do.
                            let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
                            tokio::time::sleep(delay.unwrap_or(Duration::from_millis(100))).await;
                        }
                        Err(status) => {
                            if outcome.failed == 0 && caller == 0 {
                                eprintln!("a call failed: {status:?}");
                            }
                            outcome.failed += 1;
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    }
                }
            }));
        }
        let mut all = Outcome::default();
        for task in tasks {
            let one = task.await.unwrap_or_default();
            all.latencies.extend(one.latencies);
            all.shed += one.shed;
            all.failed += one.failed;
        }
        all.latencies.sort_unstable();
        all.rate = rate(all.latencies.len(), length);
        all
    })
}

/// So many in a second.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn rate(count: usize, length: Duration) -> f64 {
    count as f64 / length.as_secs_f64()
}

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// An ensure of a project of two modules.
pub fn request(project_id: String) -> EnsureAllocationRequest {
    let module = |name: &str| ModuleSpec { name: name.to_owned(), ..ModuleSpec::default() };
    EnsureAllocationRequest {
        project_id,
        modules: vec![module("backend"), module("frontend")],
        ..EnsureAllocationRequest::default()
    }
}

/// A project's id: spread over the key space, as the ids of real projects are, for ascending keys would flatter the indexes.
pub fn project_id(prefix: &str, number: u64) -> String {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{prefix}-{spread:016x}")
}

/// Ensures of projects that are new each time.
#[derive(Debug, Clone)]
pub struct NewProjects {
    pub prefix: String,
    pub strategy: Strategy,
}

impl NewProjects {
    /// Those that name no strategy get this one.
    pub fn spread(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), strategy: Strategy::Spread }
    }
}

impl Call for NewProjects {
    async fn call(&self, channel: Channel, number: u64) -> std::result::Result<(), Status> {
        let mut request = request(project_id(&self.prefix, number));
        if self.strategy == Strategy::Binpack {
            request.set_strategy(PlacementStrategy::Binpack);
        }
        Client::new(channel).ensure_allocation(request).await.map(|_| ())
    }
}

/// A counter of numbers.
pub fn numbers() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(0))
}
