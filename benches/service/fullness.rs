//! New projects in a second while the fleet fills: its memory, and its ports.

use crate::{
    ROUNDS, Result,
    load::{self, NewProjects, median, numbers},
    place::Place,
    report::{Report, Table, thousands},
    support::Replica,
    throughput::must_be_clean,
};

const SECONDS: f64 = 3.0;
const CALLERS: usize = 64;

pub fn fullness(place: &Place, report: &mut Report) -> Result<()> {
    let mut table = Table::new(&["how full", "projects/s", "p50, ms", "times slower than the first"]);
    // Each server has room for thousands of projects, so that what a run places hardly moves the share.
    let capacity = 4_000_000;
    let servers = format!(
        "INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb)
         SELECT 'server-' || n, '192.0.2.1', 1000000, {capacity}, 900000000 FROM generate_series(0, 1999) n"
    );
    let mut cases: Vec<(String, Vec<String>)> = [5, 50, 95]
        .into_iter()
        .map(|percent| {
            let ballast = format!(
                "INSERT INTO placements (project_id, server_handle, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb, revision)
                 SELECT 'ballast-' || n, 'server-' || n, 0, {}, 0, 0 FROM generate_series(0, 1999) n",
                capacity / 100 * percent
            );
            (format!("{percent} % of memory reserved"), vec![servers.clone(), ballast])
        })
        .collect();
    // A range of 12,000 ports on each of 400 servers: more than all rounds together fill.
    let ranged = format!(
        "INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb, port_range_start, port_range_end)
         SELECT 'server-' || n, '192.0.2.1', 1000000, {capacity}, 900000000, 8000, 19999 FROM generate_series(0, 399) n"
    );
    for percent in [5, 95] {
        let held = 12_000 * percent / 100;
        cases.push((format!("{percent} % of ports given"), vec![
            ranged.clone(),
            "INSERT INTO placements (project_id, server_handle, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb, revision)
             SELECT 'ballast-' || n, 'server-' || n, 0, 0, 0, 0 FROM generate_series(0, 399) n"
                .to_owned(),
            "SET session_replication_role = replica".to_owned(),
            format!(
                "INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module)
                 SELECT gen_random_uuid(), 'server-' || n, 'tcp', 8000 + p, 'ballast-' || n, 'm' || p
                 FROM generate_series(0, 399) n, generate_series(0, {}) p",
                held - 1
            ),
            "RESET session_replication_role".to_owned(),
            "CHECKPOINT".to_owned(),
        ]));
    }
    let mut databases = Vec::new();
    let mut replicas = Vec::new();
    for (_, statements) in &cases {
        let database = place.database()?;
        place.sql(&database, &statements.iter().map(String::as_str).collect::<Vec<_>>())?;
        place.sql(&database, &["VACUUM ANALYZE"])?;
        replicas.push(Replica::start(&database.url, &[])?);
        databases.push(database);
    }
    let number = numbers();
    let call = NewProjects::spread("full");
    let mut figures: Vec<(Vec<f64>, Vec<f64>)> = cases.iter().map(|_| (Vec::new(), Vec::new())).collect();
    for _ in 0..ROUNDS {
        for (replica, (rates, p50)) in replicas.iter().zip(&mut figures) {
            let channels = load::connect(place, &[&replica.endpoint], CALLERS)?;
            let outcome = load::run(place, &channels, CALLERS, SECONDS, &number, &call);
            must_be_clean(&outcome)?;
            rates.push(outcome.rate);
            p50.push(outcome.percentile_ms(50));
        }
    }
    let mut first = None;
    for ((name, _), (rates, p50)) in cases.iter().zip(figures) {
        let rate = median(rates);
        if name.starts_with("5 %") {
            first = Some(rate);
        }
        table.row([
            name.clone(),
            thousands(rate),
            format!("{:.1}", median(p50)),
            format!("{:.2}", first.unwrap_or(rate) / rate),
        ]);
    }
    report.table("fullness", table);
    drop(replicas);
    for database in &databases {
        place.drop(database)?;
    }
    Ok(())
}
