//! From the answer of an ensure at one replica to its last event at a watcher of the other.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use resource_allocator::proto::v1::{
    WatchAllocationsRequest, allocation_event::Detail, watch_allocations_response::Payload,
};
use tokio::sync::oneshot;

use super::{
    bed::Bed,
    load::{Load, ensure},
};

const SAMPLES: usize = 500;
/// Ensures come one by one, far enough apart for each to be handed round alone.
const PAUSE: Duration = Duration::from_millis(27);

/// Measures, and prints the figures.
pub async fn measure() {
    let bed = Bed::start().await;
    report("at rest", &sample(&bed, "rest").await);
    let load = Load::start(&bed.replicas[0], "load").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let delays = sample(&bed, "busy").await;
    let rate = load.rate(Duration::from_secs(2)).await;
    load.stop().await;
    report(&format!("with {rate:.0} ensures/s beside"), &delays);
}

/// When each of the samples was answered, and when its event came.
async fn sample(bed: &Bed, name: &str) -> Vec<Duration> {
    let mut watcher = bed.replicas[1].client().await;
    let mut stream =
        watcher.watch_allocations(WatchAllocationsRequest::default()).await.expect("it opens").into_inner();
    stream.message().await.expect("it stays open");
    let prefix = format!("{name}-");
    let (all_in, done) = oneshot::channel();
    let seeing = tokio::spawn(async move {
        let mut seen = HashMap::new();
        while seen.len() < SAMPLES {
            let message = stream.message().await.expect("it stays open").expect("it does not end");
            if let Some(Payload::Event(event)) = message.payload
                && matches!(event.detail, Some(Detail::Completed(_)))
                && event.project_id.starts_with(&prefix)
            {
                seen.insert(event.project_id, Instant::now());
            }
        }
        let _ = all_in.send(());
        seen
    });
    let mut caller = bed.replicas[0].client().await;
    let mut answered = HashMap::new();
    for number in 0..SAMPLES {
        let project_id = format!("{name}-{number}");
        caller.ensure_allocation(ensure(project_id.clone())).await.expect("it is placed");
        answered.insert(project_id, Instant::now());
        tokio::time::sleep(PAUSE).await;
    }
    done.await.expect("every event comes");
    let seen = seeing.await.expect("no panic");
    let mut delays: Vec<_> =
        answered.into_iter().map(|(id, answered)| seen[&id].saturating_duration_since(answered)).collect();
    delays.sort_unstable();
    delays
}

fn report(what: &str, delays: &[Duration]) {
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    println!(
        "latency {what}: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3,
        at(100).as_secs_f64() * 1e3,
    );
}
