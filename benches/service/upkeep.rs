//! What keeping the tables small costs: new projects in a second, with and without events and rested ports to remove all the while.

use crate::{
    ROUNDS, Result,
    load::{self, NewProjects, median, numbers},
    place::Place,
    report::{Report, Table, thousands},
    support::Replica,
    throughput::{SERVERS, must_be_clean},
};

const CALLERS: usize = 64;
const SECONDS: f64 = 8.0;
/// Ports whose rest is over, beside the ports that the projects of a run get.
const RESTED: &str = "INSERT INTO port_allocations (id, server_handle, protocol, port, free_after)
     SELECT gen_random_uuid(), 'server-' || n % 2000, 'udp', 8000 + n / 2000, now() - interval '1 minute'
     FROM generate_series(0, 399999) n";

pub fn upkeep(place: &Place, report: &mut Report) -> Result<()> {
    let mut table = Table::new(&[
        "64 callers",
        "projects/s",
        "p99, ms",
        "of the first",
        "events removed/s",
        "ports removed/s",
    ]);
    let (still, busy) = (place.database()?, place.database()?);
    for database in [&still, &busy] {
        place.sql(database, &[SERVERS])?;
    }
    place.sql(&busy, &[RESTED, "VACUUM ANALYZE port_allocations", "CHECKPOINT"])?;
    let replicas = [Replica::start(&still.url, &[])?, Replica::start(&busy.url, &["--event-limit", "1000"])?];
    let number = numbers();
    let call = NewProjects::spread("upkeep");
    let mut figures = [const { (Vec::new(), Vec::new(), Vec::new(), Vec::new()) }; 2];
    for _ in 0..ROUNDS {
        for ((replica, database), (rates, p99, events, ports)) in
            replicas.iter().zip([&still, &busy]).zip(&mut figures)
        {
            let channels = load::connect(place, &[&replica.endpoint], CALLERS)?;
            let before = removed(place, database)?;
            let outcome = load::run(place, &channels, CALLERS, SECONDS, &number, &call);
            let after = removed(place, database)?;
            must_be_clean(&outcome)?;
            rates.push(outcome.rate);
            p99.push(outcome.percentile_ms(99));
            events.push((after.0 - before.0) / SECONDS);
            ports.push((after.1 - before.1) / SECONDS);
        }
    }
    let mut first = None;
    for (name, (rates, p99, events, ports)) in ["nothing to remove", "all the while"].into_iter().zip(figures)
    {
        let rate = median(rates);
        let first = *first.get_or_insert(rate);
        table.row([
            name.to_owned(),
            thousands(rate),
            format!("{:.1}", median(p99)),
            format!("{:.2}", rate / first),
            thousands(median(events)),
            thousands(median(ports)),
        ]);
    }
    report.table("upkeep", table);
    drop(replicas);
    place.drop(&still)?;
    place.drop(&busy)
}

/// How many operations and rested ports were removed so far, or a number that falls behind by as many.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn removed(place: &Place, database: &crate::place::Database) -> Result<(f64, f64)> {
    let events = place.figure(database, "SELECT compacted_sequence FROM pools")?;
    let ports =
        place.figure(database, "SELECT -count(*) FROM port_allocations WHERE free_after IS NOT NULL")?;
    Ok((events as f64, ports as f64))
}
