//! The two-million challenge: 2,000,000 ensures of distinct projects onto 6,100 servers, durable, through the API of one replica;
//! one project a call, and again with a thousand a call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use resource_allocator::proto::v1::{
    BatchEnsureAllocationsRequest, EnsureAllocationRequest, batch_ensure_result::Result as Told,
};
use tonic::transport::Channel;

use crate::{
    Result,
    load::{self, Client, rate},
    place::{Place, peak_memory_mib},
    plot::{Plot, Series},
    report::{Report, Table, thousands},
    support::Replica,
};

const PROJECTS: u64 = 2_000_000;
const CALLERS: usize = 256;
const BATCH: u64 = 1000;
const BULK_CALLERS: usize = 4;

/// What a run came to.
struct Run {
    seconds: f64,
    /// How many were placed up to when, in seconds, about once a second.
    placed: Vec<(f64, u64)>,
    service_mib: u64,
    postgres_mib: u64,
    bytes_an_allocation: f64,
}

impl Run {
    /// When so many had been placed, in seconds: between two looks, as if at an even rate.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    fn time_of(&self, count: u64) -> f64 {
        let look = self.placed.partition_point(|(_, placed)| *placed < count);
        let (since, before) = look.checked_sub(1).map_or((0.0, 0), |earlier| self.placed[earlier]);
        let Some((until, after)) = self.placed.get(look) else { return since };
        let share = (count - before) as f64 / (after - before).max(1) as f64;
        since + (until - since) * share
    }
}

pub fn challenge(place: &Place, report: &mut Report) -> Result<()> {
    // A smaller one, to try the challenge itself.
    let projects = std::env::var("C2M_PROJECTS").map_or(Ok(PROJECTS), |count| count.parse())?;
    let mut table = Table::new(&[
        "2,000,000 ensures",
        "time, s",
        "placements/s",
        "first tenth /s",
        "last tenth /s",
        "last / first",
        "service, peak MiB",
        "Postgres, peak MiB",
        "database, bytes an allocation",
    ]);
    let mut series = Vec::new();
    let ways = [("one a call, 256 callers", false), ("1,000 a call, 4 callers", true)];
    // One of the two, where the other has no time.
    let only = std::env::var("C2M_ONLY").ok();
    for (name, bulk) in
        ways.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| name.starts_with(only)))
    {
        let run = run(place, projects, bulk)?;
        let tenth = |from: u64, to: u64| -> f64 {
            let length = run.time_of(projects * to / 10) - run.time_of(projects * from / 10);
            rate(usize::try_from(projects / 10).unwrap_or(0), Duration::from_secs_f64(length))
        };
        let (first, last) = (tenth(0, 1), tenth(9, 10));
        table.row([
            name.to_owned(),
            format!("{:.0}", run.seconds),
            thousands(rate(usize::try_from(projects)?, Duration::from_secs_f64(run.seconds))),
            thousands(first),
            thousands(last),
            format!("{:.2}", last / first),
            run.service_mib.to_string(),
            run.postgres_mib.to_string(),
            thousands(run.bytes_an_allocation),
        ]);
        // In steps of ten seconds, for a second alone shows each checkpoint.
        let points = run
            .placed
            .iter()
            .step_by(10)
            .zip(run.placed.iter().skip(10).step_by(10))
            .zip((1_u32..).map(|step| f64::from(10 * step)))
            .map(|(((_, before), (_, after)), second)| {
                (second, rate(usize::try_from(after - before).unwrap_or(0), Duration::from_secs(10)))
            })
            .collect();
        series.push(Series { name: name.to_owned(), points });
    }
    report.table("c2m", table);
    report.plot(
        "c2m",
        &Plot {
            title: "2,000,000 ensures onto 6,100 servers",
            x: "seconds",
            y: "placements/s",
            logarithmic_x: false,
            series,
        },
    );
    Ok(())
}

fn run(place: &Place, projects: u64, bulk: bool) -> Result<Run> {
    let database = place.database()?;
    // 330 projects on each server, nearly all that fits, and two fifths of its ports.
    place.sql(
        &database,
        &["INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb)
         SELECT 'server-' || n, '192.0.2.1', 64000, 340 * 512, 340 * 1024 FROM generate_series(0, 6099) n"],
    )?;
    let replica = Replica::start(&database.url, &[])?;
    let callers = if bulk { BULK_CALLERS } else { CALLERS };
    let channels = load::connect(place, &[&replica.endpoint], callers)?;
    let (next, placed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let begin = Instant::now();
    let (mut over_time, mut postgres_mib) = (Vec::new(), 0);
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (channel, next, placed) =
                (channels[caller % channels.len()].clone(), Arc::clone(&next), Arc::clone(&placed));
            place.runtime.spawn(async move {
                if bulk {
                    call_in_bulk(channel, projects, &next, &placed).await
                } else {
                    call(channel, projects, &next, &placed).await
                }
            })
        })
        .collect();
    while tasks.iter().any(|task| !task.is_finished()) {
        let wake = begin + Duration::from_secs(u64::try_from(over_time.len() + 1).unwrap_or(u64::MAX));
        std::thread::sleep(wake.saturating_duration_since(Instant::now()).min(Duration::from_secs(1)));
        if Instant::now() < wake {
            continue;
        }
        over_time.push((begin.elapsed().as_secs_f64(), placed.load(Ordering::Relaxed)));
        if over_time.len().is_multiple_of(10) {
            postgres_mib = postgres_mib.max(place.postgres_memory_mib());
            eprintln!(
                "   {} s: {} placed",
                over_time.len(),
                thousands(rate(usize::try_from(placed.load(Ordering::Relaxed))?, Duration::from_secs(1)))
            );
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    over_time.push((seconds, placed.load(Ordering::Relaxed)));
    place.runtime.block_on(async {
        for task in tasks {
            task.await??;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    let rows = place.figure(&database, "SELECT count(*) FROM placements")?;
    if u64::try_from(rows)? != projects {
        return Err(format!("{rows} projects are placed").into());
    }
    let allocations = place.figure(&database, "SELECT count(*) FROM port_allocations")?;
    let bytes = place.figure(&database, "SELECT pg_database_size(current_database())")?;
    let service_mib = peak_memory_mib(&replica);
    drop(replica);
    place.drop(&database)?;
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let bytes_an_allocation = bytes as f64 / allocations as f64;
    Ok(Run { seconds, placed: over_time, service_mib, postgres_mib, bytes_an_allocation })
}

/// A project as the challenge places it: with its default module.
fn request(number: u64) -> EnsureAllocationRequest {
    EnsureAllocationRequest {
        project_id: load::project_id("c2m", number),
        ..EnsureAllocationRequest::default()
    }
}

async fn call(channel: Channel, projects: u64, next: &AtomicU64, placed: &AtomicU64) -> Result<()> {
    let mut client = Client::new(channel);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= projects {
            return Ok(());
        }
        client.ensure_allocation(request(number)).await?;
        placed.fetch_add(1, Ordering::Relaxed);
    }
}

async fn call_in_bulk(channel: Channel, projects: u64, next: &AtomicU64, placed: &AtomicU64) -> Result<()> {
    let mut client = Client::new(channel).max_decoding_message_size(64 << 20);
    loop {
        let first = next.fetch_add(BATCH, Ordering::Relaxed);
        if first >= projects {
            return Ok(());
        }
        let requests: Vec<_> = (first..projects.min(first + BATCH)).map(request).collect();
        let count = u64::try_from(requests.len())?;
        let answer =
            client.batch_ensure_allocations(BatchEnsureAllocationsRequest { requests }).await?.into_inner();
        if let Some(Told::Status(status)) = answer
            .results
            .into_iter()
            .filter_map(|result| result.result)
            .find(|told| matches!(told, Told::Status(_)))
        {
            return Err(status.message.into());
        }
        placed.fetch_add(count, Ordering::Relaxed);
    }
}
