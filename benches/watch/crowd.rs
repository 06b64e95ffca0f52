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

use super::{bed::Bed, load::Load, median, raw};

const OF_A_PROJECT: usize = 5000;
const OF_EVERYTHING: usize = 200;
/// A connection takes two hundred streams at the most.
const STREAMS: usize = 100;
/// Of the projects that are placed, one in so many is watched.
const WATCHED: usize = 5;
const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_secs(2);
const TIME: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_mins(1);

/// Measures, and prints the figures.
pub async fn measure() {
    let bed = Bed::start().await;
    let (mut without, mut with, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    // Each rate is of a fresh load on a database that grows, so the two take turns.
    for round in 0..ROUNDS {
        let alone = rate(&bed, &format!("alone-{round}")).await;
        let name = format!("watched-{round}");
        let crowd = Crowd::open(&bed, &name).await;
        let watched = rate(&bed, &name).await;
        let report = crowd.close(&bed).await;
        println!(
            "crowd, round {round}: {alone:.0} ensures/s without watchers, {watched:.0} with, {:.2} of it; {report}",
            watched / alone
        );
        without.push(alone);
        with.push(watched);
        shares.push(watched / alone);
    }
    println!(
        "crowd: {:.0} ensures/s without watchers, {:.0} with {OF_A_PROJECT} of a project and {OF_EVERYTHING} of everything: {:.2} of it (medians of {ROUNDS} rounds)",
        median(without),
        median(with),
        median(shares),
    );
}

async fn rate(bed: &Bed, name: &str) -> f64 {
    let load = Load::start(&bed.replicas[0], name).await;
    tokio::time::sleep(WARM_UP).await;
    let rate = load.rate(TIME).await;
    load.stop().await;
    rate
}

/// Watchers, at the replica that the ensures go to.
struct Crowd {
    /// The number of the last event before them.
    start: u64,
    of_a_project: Vec<JoinHandle<()>>,
    of_everything: Vec<JoinHandle<()>>,
    told_a_project: Arc<AtomicU64>,
    /// How many events each of those of everything was told.
    told_everything: Vec<Arc<AtomicU64>>,
}

async fn last_sequence(bed: &Bed) -> u64 {
    let last: i64 =
        sqlx::query_scalar("SELECT last_sequence FROM pools").fetch_one(&bed.sql).await.expect("a pool");
    u64::try_from(last).expect("a count")
}

impl Crowd {
    async fn open(bed: &Bed, name: &str) -> Self {
        let mut crowd = Self {
            start: last_sequence(bed).await,
            of_a_project: Vec::new(),
            of_everything: Vec::new(),
            told_a_project: Arc::default(),
            told_everything: Vec::new(),
        };
        let mut channel = bed.replicas[0].connect_watchers().await;
        for number in 0..OF_A_PROJECT + OF_EVERYTHING {
            if number % STREAMS == 0 {
                channel = bed.replicas[0].connect_watchers().await;
            }
            let project_id = (number < OF_A_PROJECT).then(|| format!("{name}-{}", number * WATCHED));
            let is_of_a_project = project_id.is_some();
            let request = WatchAllocationsRequest { project_id, ..Default::default() };
            let mut messages = raw::watch(channel.clone(), &request).await;
            let told = if is_of_a_project { Arc::clone(&crowd.told_a_project) } else { Arc::default() };
            let counting = Arc::clone(&told);
            let task = tokio::spawn(async move {
                while let Ok(Some(events)) = messages.next().await {
                    counting.fetch_add(events as u64, Ordering::Relaxed);
                }
            });
            if is_of_a_project {
                crowd.of_a_project.push(task);
            } else {
                crowd.of_everything.push(task);
                crowd.told_everything.push(told);
            }
        }
        crowd
    }

    /// Waits until everyone of everything has everything, and says how it went.
    async fn close(self, bed: &Bed) -> String {
        let happened = last_sequence(bed).await - self.start;
        let begun = Instant::now();
        loop {
            let told = self.told_everything.iter().map(|told| told.load(Ordering::Relaxed)).min();
            let told = told.unwrap_or_default();
            if told >= happened {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "a watcher was told {told} of {happened} events");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let late = begun.elapsed();
        let tasks = self.of_a_project.iter().chain(&self.of_everything);
        assert!(tasks.clone().all(|task| !task.is_finished()), "a stream ended");
        tasks.for_each(JoinHandle::abort);
        let narrow = self.told_a_project.load(Ordering::Relaxed);
        // The streams end before the next rate is taken.
        tokio::time::sleep(Duration::from_secs(1)).await;
        format!(
            "{happened} events were told to each of {OF_EVERYTHING}, the last {:.2} s after the load, and {narrow} to those of a project",
            late.as_secs_f64()
        )
    }
}
