//! New projects in a second: beside the strict scheme and beside what one connection can write; by one replica and by four; and
//! at ten times the callers that saturate it.

use std::{sync::atomic::AtomicBool, time::Instant};

use resource_allocator::domain::request::Strategy;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    ROUNDS, Result, baselines,
    load::{self, NewProjects, median, numbers},
    place::{Database, Place, peak_memory_mib},
    plot::{Plot, Series},
    report::{Report, Table, thousands},
    support::Replica,
};

const SECONDS: f64 = 5.0;

/// 2,000 servers with room for whatever a run places.
pub const SERVERS: &str =
    "INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb)
     SELECT 'server-' || n, '192.0.2.1', 1000000, 1000000, 1000000 FROM generate_series(0, 1999) n";

/// A database with 2,000 servers, and a replica of it.
fn fleet(place: &Place) -> Result<(Database, Replica)> {
    let database = place.database()?;
    place.sql(&database, &[SERVERS])?;
    let replica = Replica::start(&database.url, &[])?;
    Ok((database, replica))
}

pub fn new_projects(place: &Place, report: &mut Report) -> Result<()> {
    let mut table = Table::new(&[
        "strategy, callers",
        "service, projects/s",
        "p50, ms",
        "p99, ms",
        "strict scheme, projects/s",
        "planned beforehand, projects/s",
        "× strict",
        "% of planned",
    ]);
    let mut plotted = ["service", "strict scheme", "planned beforehand"]
        .map(|name| Series { name: name.to_owned(), points: Vec::new() });
    for (name, strategy) in [("BINPACK", Strategy::Binpack), ("SPREAD", Strategy::Spread)] {
        // Of their own for each, so that both strategies find the servers empty.
        let (served, replica) = fleet(place)?;
        let strict = place.database()?;
        let planned = place.database()?;
        place.sql(&planned, &[SERVERS])?;
        let number = numbers();
        let call = NewProjects { prefix: "new".to_owned(), strategy };
        for callers in [64, 256] {
            let channels = load::connect(place, &[&replica.endpoint], callers)?;
            let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
            let (mut p50, mut p99) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                theirs.push(baselines::strict(place, &strict, strategy, callers, 5)?);
                bare.push(baselines::planned(place, &planned, strategy, callers, SECONDS)?);
                let outcome = load::run(place, &channels, callers, SECONDS, &number, &call);
                must_be_clean(&outcome)?;
                ours.push(outcome.rate);
                p50.push(outcome.percentile_ms(50));
                p99.push(outcome.percentile_ms(99));
            }
            let (ours, theirs, bare) = (median(ours), median(theirs), median(bare));
            if strategy == Strategy::Binpack {
                for (series, rate) in plotted.iter_mut().zip([ours, theirs, bare]) {
                    series.points.push((f64::from(u32::try_from(callers)?), rate));
                }
            }
            table.row([
                format!("{name}, {callers}"),
                thousands(ours),
                format!("{:.1}", median(p50)),
                format!("{:.1}", median(p99)),
                thousands(theirs),
                thousands(bare),
                format!("{:.1}", ours / theirs),
                format!("{:.0}", 100.0 * ours / bare),
            ]);
        }
        drop(replica);
        for database in [&served, &strict, &planned] {
            place.drop(database)?;
        }
    }
    report.table("new", table);
    report.plot(
        "new",
        &Plot {
            title: "New projects of two modules, BINPACK",
            x: "callers",
            y: "projects/s",
            logarithmic_x: true,
            series: plotted.into(),
        },
    );
    Ok(())
}

pub fn must_be_clean(outcome: &load::Outcome) -> Result<()> {
    if outcome.failed + outcome.shed > 0 {
        return Err(format!("{} calls failed and {} were shed", outcome.failed, outcome.shed).into());
    }
    Ok(())
}

pub fn replicas(place: &Place, report: &mut Report) -> Result<()> {
    const CALLERS: usize = 256;
    let mut table = Table::new(&["replicas", "projects/s in all", "p50, ms", "p99, ms", "of one replica"]);
    let (database, first) = fleet(place)?;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(Replica::start(&database.url, &[])?);
    }
    let number = numbers();
    let call = NewProjects::spread("replicas");
    let alone = [first.endpoint.as_str()];
    let all: Vec<&str> =
        alone.into_iter().chain(others.iter().map(|replica| replica.endpoint.as_str())).collect();
    let channels = [load::connect(place, &alone, CALLERS)?, load::connect(place, &all, CALLERS)?];
    let mut figures = [const { (Vec::new(), Vec::new(), Vec::new()) }; 2];
    for _ in 0..ROUNDS {
        for (channels, (rates, p50, p99)) in channels.iter().zip(&mut figures) {
            let outcome = load::run(place, channels, CALLERS, SECONDS, &number, &call);
            // Neither a conflict nor a retry reaches a caller.
            must_be_clean(&outcome)?;
            rates.push(outcome.rate);
            p50.push(outcome.percentile_ms(50));
            p99.push(outcome.percentile_ms(99));
        }
    }
    let mut one = None;
    for (count, (rates, p50, p99)) in [1, 4].into_iter().zip(figures) {
        let rate = median(rates);
        let one = *one.get_or_insert(rate);
        table.row([
            count.to_string(),
            thousands(rate),
            format!("{:.1}", median(p50)),
            format!("{:.1}", median(p99)),
            format!("{:.2}", rate / one),
        ]);
    }
    report.table("replicas", table);
    drop((first, others));
    place.drop(&database)
}

pub fn overload(place: &Place, report: &mut Report) -> Result<()> {
    const BEST: usize = 512;
    let mut table = Table::new(&[
        "callers",
        "placed/s",
        "of the best",
        "shed/s",
        "p99 of those placed, ms",
        "health, worst answer, ms",
        "peak memory of the service, MiB",
    ]);
    let (database, replica) = fleet(place)?;
    let number = numbers();
    let call = NewProjects::spread("overload");
    let mut best = None;
    for callers in [BEST, 10 * BEST] {
        let channels = load::connect(place, &[&replica.endpoint], callers)?;
        let (mut rates, mut shed, mut p99, mut health) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let watched = HealthWatch::begin(place, &replica)?;
            let outcome = load::run(place, &channels, callers, SECONDS, &number, &call);
            health.push(watched.worst_ms());
            if outcome.failed > 0 {
                return Err(format!("{} calls failed otherwise than by shedding", outcome.failed).into());
            }
            rates.push(outcome.rate);
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            shed.push(outcome.shed as f64 / SECONDS);
            p99.push(outcome.percentile_ms(99));
        }
        let rate = median(rates);
        let best = *best.get_or_insert(rate);
        table.row([
            thousands(f64::from(u32::try_from(callers)?)),
            thousands(rate),
            format!("{:.2}", rate / best),
            thousands(median(shed)),
            format!("{:.0}", median(p99)),
            format!("{:.0}", health.into_iter().fold(0.0, f64::max)),
            peak_memory_mib(&replica).to_string(),
        ]);
    }
    report.table("overload", table);
    drop(replica);
    place.drop(&database)
}

/// Asks for the health again and again, over a connection of its own.
struct HealthWatch {
    stop: std::sync::Arc<AtomicBool>,
    task: tokio::task::JoinHandle<f64>,
    runtime: tokio::runtime::Handle,
}

impl HealthWatch {
    fn begin(place: &Place, replica: &Replica) -> Result<Self> {
        let channels = load::connect(place, &[&replica.endpoint], 1)?;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let task = place.runtime.spawn(async move {
            let mut client = HealthClient::new(channels[0].clone());
            let mut worst: f64 = 0.0;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                let begin = Instant::now();
                let answer = client.check(HealthCheckRequest::default()).await;
                // One that is not answered, or not well, is worse than any.
                let took = if answer.is_ok_and(|answer| answer.get_ref().status == 1) {
                    begin.elapsed().as_secs_f64()
                } else {
                    f64::INFINITY
                };
                worst = worst.max(took * 1000.0);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            worst
        });
        Ok(Self { stop, task, runtime: place.runtime.handle().clone() })
    }

    fn worst_ms(self) -> f64 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.runtime.block_on(self.task).unwrap_or(f64::INFINITY)
    }
}
