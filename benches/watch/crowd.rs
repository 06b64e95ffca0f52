//! What watchers cost the ensures: the rate without any, and with thousands of one project each and hundreds of everything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use resource_allocator::proto::v1::WatchAllocationsRequest;
use tokio::task::JoinHandle;

use super::{
    bed::Bed,
    cpu,
    load::Load,
    median,
    raw::{self, Told},
};

const OF_A_PROJECT: usize = 5000;
const OF_EVERYTHING: usize = 200;
/// A connection takes two hundred streams at the most.
const STREAMS: usize = 100;
/// Of the projects that are placed, one in so many is watched.
const WATCHED: usize = 5;
const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_secs(2);
const TIME: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_mins(1);

/// Measures, and prints the figures.
pub async fn measure() {
    let bed = Bed::start().await;
    let (mut without, mut with, mut shares, mut cpu_shares) = (vec![], vec![], vec![], vec![]);
    // Each rate is of a fresh load on a database that grows, so the two take turns.
    for round in 0..ROUNDS {
        let (alone, alone_cpu) = rate(&bed, &format!("alone-{round}")).await;
        let name = format!("watched-{round}");
        let crowd = Crowd::open(&bed, &name).await;
        let (watched, watched_cpu) = rate(&bed, &name).await;
        let report = crowd.close(&bed).await;
        println!(
            "crowd, round {round}: {alone:.0} ensures/s without watchers, {watched:.0} with, {:.2} of it; {alone_cpu:.0} and {watched_cpu:.0} µs of CPU each, {:.2}; {report}",
            watched / alone,
            alone_cpu / watched_cpu
        );
        without.push(alone);
        with.push(watched);
        shares.push(watched / alone);
        cpu_shares.push(alone_cpu / watched_cpu);
    }
    println!(
        "crowd: {:.0} ensures/s without watchers, {:.0} with {OF_A_PROJECT} of a project and {OF_EVERYTHING} of everything: {:.2} of it; by the CPU that an ensure takes, {:.2} (medians of {ROUNDS} rounds)",
        median(without),
        median(with),
        median(shares),
        median(cpu_shares),
    );
}

/// Ensures a second, and how many microseconds of CPU each takes, of everyone.
async fn rate(bed: &Bed, name: &str) -> (f64, f64) {
    let load = Load::start(&bed.replicas[0], name).await;
    tokio::time::sleep(WARM_UP).await;
    let before = cpu::used();
    let rate = load.rate(TIME).await;
    let used = cpu::used().saturating_sub(before);
    load.stop().await;
    (rate, used.as_secs_f64() * 1e6 / (rate * TIME.as_secs_f64()))
}

/// Watchers, at the replica that the ensures go to.
struct Crowd {
    /// The number of the last event before them.
    start: u64,
    connections: Vec<JoinHandle<()>>,
    /// How many events those of a project were told.
    told_a_project: Arc<AtomicU64>,
    /// The number of the last event that each of those of everything was told.
    told_everything: Vec<Arc<AtomicU64>>,
}

async fn last_sequence(bed: &Bed) -> u64 {
    let last: i64 =
        sqlx::query_scalar("SELECT last_sequence FROM pools").fetch_one(&bed.sql).await.expect("a pool");
    u64::try_from(last).expect("a count")
}

/// Reads until each has its first bookmark.
async fn open(connection: &mut raw::Connection, watchers: usize) {
    let mut opened = vec![false; watchers];
    while opened.contains(&false) {
        let read = connection.read(|watcher, told| opened[watcher] |= told == Told::Bookmark);
        read.await.expect("they open");
    }
}

impl Crowd {
    async fn open(bed: &Bed, name: &str) -> Self {
        let mut crowd = Self {
            start: last_sequence(bed).await,
            connections: Vec::new(),
            told_a_project: Arc::default(),
            told_everything: Vec::new(),
        };
        for first in (0..OF_A_PROJECT).step_by(STREAMS) {
            let requests: Vec<_> = (first..first + STREAMS)
                .map(|number| Some(format!("{name}-{}", number * WATCHED)))
                .map(|project_id| WatchAllocationsRequest { project_id, ..Default::default() })
                .collect();
            let mut connection = bed.replicas[0].watch(&requests).await;
            open(&mut connection, STREAMS).await;
            let counted = Arc::clone(&crowd.told_a_project);
            crowd.connections.push(tokio::spawn(async move {
                let mut last = [0; STREAMS];
                let told = |watcher: usize, told| {
                    if let Told::Event(number) = told {
                        assert!(number > last[watcher], "in order");
                        last[watcher] = number;
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                };
                follow(connection, told).await;
            }));
        }
        for _ in (0..OF_EVERYTHING).step_by(STREAMS) {
            let mut connection =
                bed.replicas[0].watch(&vec![WatchAllocationsRequest::default(); STREAMS]).await;
            open(&mut connection, STREAMS).await;
            let last: Vec<_> = (0..STREAMS).map(|_| Arc::new(AtomicU64::new(crowd.start))).collect();
            crowd.told_everything.extend(last.iter().map(Arc::clone));
            crowd.connections.push(tokio::spawn(async move {
                let told = |watcher: usize, told| {
                    if let Told::Event(number) = told {
                        let before = last[watcher].swap(number, Ordering::Relaxed);
                        assert_eq!(number, before + 1, "each once and in order");
                    }
                };
                follow(connection, told).await;
            }));
        }
        crowd
    }

    /// Waits until everyone of everything has everything, and says how it went.
    async fn close(self, bed: &Bed) -> String {
        let last = last_sequence(bed).await;
        let begun = Instant::now();
        loop {
            let told = self.told_everything.iter().map(|told| told.load(Ordering::Relaxed)).min();
            let told = told.unwrap_or_default();
            if told >= last {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "a watcher was told up to {told} of {last}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let late = begun.elapsed();
        assert!(self.connections.iter().all(|task| !task.is_finished()), "a stream ended");
        self.connections.iter().for_each(JoinHandle::abort);
        let narrow = self.told_a_project.load(Ordering::Relaxed);
        // The streams end before the next rate is taken.
        tokio::time::sleep(Duration::from_secs(1)).await;
        format!(
            "{} events were told to each of {OF_EVERYTHING}, the last {:.2} s after the load, and {narrow} to those of a project",
            last - self.start,
            late.as_secs_f64()
        )
    }
}

/// Reads for as long as the streams last.
async fn follow(mut connection: raw::Connection, mut told: impl FnMut(usize, Told)) {
    while connection.read(&mut told).await.is_ok() {}
}
