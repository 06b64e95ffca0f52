//! One run: callers and watchers at work, faults one after the other, and then every check of what came of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use resource_allocator::proto::v1;
use tokio::time::{Instant, sleep};

use super::{
    bed::{Bed, BedOptions},
    callers::{self, Callers, Repeats},
    faults::{Fault, Host, Made, deck},
    history::{self, Answer, Operation},
    holdings,
    linearizable::{self, Found},
    told,
};
use crate::support::{
    Client,
    inventory::events,
    process::PATIENCE,
    server,
    watching::{Watching, watch},
};

/// The servers that there are.
const SERVERS: usize = 3;
/// The RAM of each: room for those who are called for, and not for many who stay.
const RAM_MB: u64 = 512 * 12;
/// How many watch.
pub const WATCHERS: u64 = 6;
/// So much of what is wrong is printed.
const SHOWN: usize = 10;

/// How long faults are made.
pub enum Length {
    /// Each kind once.
    EachKindOnce,
    /// All of them, in another order each time, until so long has passed.
    For(Duration),
}

/// What came of a run.
pub struct Outcome {
    /// What is wrong; nothing, where all is well.
    pub wrong: Vec<String>,
    /// The faults that were made.
    pub faults: Vec<String>,
    /// What was asked and told.
    pub operations: Vec<Operation>,
    /// Figures for people.
    pub summary: String,
}

/// Callers and watchers at work on a bed.
pub struct Storm {
    callers: Arc<Callers>,
    watchers: Vec<tokio::task::JoinHandle<Watching>>,
    last: Arc<Mutex<Option<i64>>>,
    working: Vec<tokio::task::JoinHandle<()>>,
}

impl Storm {
    /// Sets callers and watchers to work.
    pub async fn begin(bed: &Bed, run: &str, seed: u64, watchers: u64) -> Self {
        Self::begin_with(bed, run, seed, watchers, Repeats::No).await
    }

    /// The same with callers that repeat what is answered UNAVAILABLE, and take it for wrong where that does not help.
    pub async fn begin_repeating(bed: &Bed, run: &str, seed: u64, watchers: u64) -> Self {
        Self::begin_with(bed, run, seed, watchers, Repeats::Yes).await
    }

    async fn begin_with(bed: &Bed, run: &str, seed: u64, watchers: u64, repeats: Repeats) -> Self {
        let mut client = Client::connect(&bed.endpoints[0]).await;
        for number in 0..SERVERS {
            let capacity =
                v1::Resources { cpu_millis: Some(0), ram_mb: Some(RAM_MB), disk_mb: Some(10_000_000) };
            let server = server(&format!("web-{number}"));
            client.register(v1::Server { capacity: Some(capacity), ..server }).await;
        }
        let callers = Callers::new(run, &bed.endpoints, repeats);
        let last = Arc::new(Mutex::new(None));
        let watchers = (0..watchers)
            .map(|number| tokio::spawn(watch(bed.endpoints.clone(), number, None, Arc::clone(&last))))
            .collect();
        let working = callers.start(seed);
        Self { callers, watchers, last, working }
    }

    /// Waits until so many more calls were answered: whatever broke works again.
    pub async fn wait_for_answers(&self, count: usize) {
        let (before, begin) = (self.callers.answered(), Instant::now());
        while self.callers.answered() < before + count {
            assert!(begin.elapsed() < PATIENCE, "nothing is answered any more");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the load, and checks what came of it.
    pub async fn end(self, bed: &Bed) -> (Vec<String>, Vec<Operation>, String) {
        self.callers.stop();
        for caller in self.working {
            caller.await.unwrap();
        }
        let mut wrong = bed.ended().await;
        let projects: BTreeSet<_> =
            self.callers.operations().into_iter().map(|operation| operation.project).collect();
        let projects: Arc<[String]> = projects.into_iter().collect();
        self.callers.read_all(&projects).await;
        let operations = self.callers.operations();

        let tables = told::read_tables(&mut bed.connect().await).await;
        *self.last.lock().unwrap() = Some(tables.sequence);
        let sql = sqlx::PgPool::connect(&bed.database_url()).await.unwrap();
        let log = events(&mut Client::connect(&bed.endpoints[0]).await, &sql).await;
        wrong.extend(watched(self.watchers, &log, tables.sequence).await);
        wrong.extend(told::check(&log, &tables, &self.callers, &operations));
        wrong.extend(callers::strange(&operations));
        wrong.extend(self.callers.failed());
        let room = room(bed).await;
        wrong.extend(holdings::check(&operations, room));
        let resolved = told::resolve(&log, &self.callers, &operations);
        wrong.extend(orders(&resolved));
        let audit = bed.run(&["audit", "--output", "json"]).await;
        if !audit.status.success() {
            wrong.push(format!(
                "the audit found differences: {}{}",
                String::from_utf8_lossy(&audit.stdout),
                String::from_utf8_lossy(&audit.stderr)
            ));
        }
        let count =
            |is: fn(&Answer) -> bool| resolved.iter().filter(|operation| is(&operation.answer)).count();
        let summary = format!(
            "{} calls of {} projects: {} placed or found placed, {} given back, {} refused for want of room, {} of unknown \
             outcome and {} more that were done; {} events, seen by {WATCHERS} watchers",
            operations.len(),
            projects.len(),
            count(|answer| matches!(answer, Answer::Ensured(..) | Answer::Found(_))),
            count(|answer| matches!(answer, Answer::Released(..))),
            count(|answer| matches!(answer, Answer::Refused(_))),
            count(|answer| matches!(answer, Answer::Unlogged(_))),
            count(|answer| matches!(answer, Answer::Unknown(_))),
            tables.sequence,
        );
        (wrong, operations, summary)
    }
}

/// Runs callers through the faults of this seed.
pub async fn run(seed: u64, length: &Length, host: &Host) -> Outcome {
    let options = BedOptions {
        data_dir: host.disk.as_ref().map(|disk| disk.path().join("data")),
        environment: host.clock.as_ref().map(super::host::Clock::environment).unwrap_or_default(),
        ..BedOptions::default()
    };
    let bed = Bed::make(options).await;
    let mut draw = StdRng::seed_from_u64(seed);
    let storm = Storm::begin(&bed, &format!("chaos-{seed}"), seed, WATCHERS).await;
    let begin = Instant::now();
    let mut made = Made::default();
    let mut faults = Vec::new();
    'run: loop {
        for fault in round(&mut draw, host, length) {
            sleep(Duration::from_millis(draw.random_range(100..500))).await;
            let at = begin.elapsed();
            let was_made = fault.make(&bed, host).await;
            made.count(&fault, was_made);
            let missed = if was_made { "" } else { " (nothing to hit came by)" };
            faults.push(format!("{:.3} s: {fault}{missed}", at.as_secs_f64()));
            storm.wait_for_answers(20).await;
            if matches!(length, Length::For(length) if begin.elapsed() > *length) {
                break 'run;
            }
        }
        if matches!(length, Length::EachKindOnce) {
            break;
        }
    }
    let (wrong, operations, summary) = storm.end(&bed).await;
    let summary = format!("seed {seed}, {:.0} s: {summary}{made}", begin.elapsed().as_secs_f64());
    Outcome { wrong, faults, operations, summary }
}

fn round(draw: &mut StdRng, host: &Host, length: &Length) -> Vec<Fault> {
    let mut faults = deck(draw, host);
    if matches!(length, Length::EachKindOnce) {
        let mut kinds = BTreeSet::new();
        faults.retain(|fault| {
            !matches!(fault, Fault::FreezeHolder(frozen) if *frozen > Duration::from_secs(3))
                && kinds.insert(fault.kind())
        });
    }
    faults
}

impl Outcome {
    /// Tells what came of it, and fails where something is wrong.
    pub fn settle(self, name: &str) {
        let path = history::keep(name, &self.faults, &self.operations);
        println!("{}\nthe history is in {}", self.summary, path.display());
        assert!(
            self.wrong.is_empty(),
            "{} things are wrong; the first are:\n{}\nfaults:\n{}\n{}\nthe history is in {}",
            self.wrong.len(),
            self.wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n"),
            self.faults.join("\n"),
            self.summary,
            path.display()
        );
    }
}

/// What may be reserved on a server.
async fn room(bed: &Bed) -> u64 {
    let room: i64 = sqlx::query_scalar("SELECT max(budget_ram_mb) FROM servers")
        .fetch_one(&mut bed.connect().await)
        .await
        .unwrap();
    let room = u64::try_from(room).unwrap();
    assert!(room <= RAM_MB);
    room
}

/// What watchers saw otherwise than once and in order.
async fn watched(
    watchers: Vec<tokio::task::JoinHandle<Watching>>,
    log: &[v1::AllocationEvent],
    newest: i64,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected: Vec<_> = log.iter().filter(|event| event.sequence <= newest).collect();
    for (number, watcher) in watchers.into_iter().enumerate() {
        let watching = match watcher.await {
            Ok(watching) => watching,
            Err(panicked) => {
                wrong.push(format!("watcher {number}: {panicked}"));
                continue;
            }
        };
        let seen: Vec<_> = watching.seen.iter().filter(|event| event.sequence <= newest).collect();
        if seen != expected {
            let place = seen.iter().zip(&expected).position(|(seen, expected)| seen != expected);
            let place = place.unwrap_or(seen.len().min(expected.len()));
            wrong.push(format!(
                "watcher {number} saw {} events of {}; at {place} it saw {:?} and not {:?}",
                seen.len(),
                expected.len(),
                seen.get(place),
                expected.get(place)
            ));
        }
    }
    wrong
}

/// The projects whose answers fit no order of their calls, each with the shortest beginning that shows it.
pub fn orders(operations: &[Operation]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (project, operations) in history::by_project(operations) {
        let found = linearizable::search(&operations);
        if found == Found::Order {
            continue;
        }
        let shortest = linearizable::shortest(&operations);
        let lines: Vec<_> = shortest.iter().map(|operation| format!("    {operation}")).collect();
        wrong.push(format!("{project}: {found:?} of its calls explains the answers\n{}", lines.join("\n")));
    }
    wrong
}
