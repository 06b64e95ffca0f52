//! Calls that change nothing beside calls that do nothing, and a lone caller beside a lone client of Postgres.

use tonic::{Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    ROUNDS, Result, baselines,
    load::{self, Call, Client, NewProjects, median, numbers},
    place::Place,
    report::{Report, Table, thousands},
    support::Replica,
    throughput::{SERVERS, must_be_clean},
};

const SECONDS: f64 = 4.0;
const CALLERS: usize = 64;
/// How many projects are asked for again and again.
const PROJECTS: u64 = 10_000;

/// An empty call through the same stack: health is kept in memory.
#[derive(Debug, Clone)]
struct Nothing;

impl Call for Nothing {
    async fn call(&self, channel: Channel, _number: u64) -> std::result::Result<(), Status> {
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.map(|_| ())
    }
}

/// An ensure of what is there.
#[derive(Debug, Clone)]
struct Repeat;

impl Call for Repeat {
    async fn call(&self, channel: Channel, number: u64) -> std::result::Result<(), Status> {
        let request = load::request(load::project_id("repeat", number * 7919 % PROJECTS));
        Client::new(channel).ensure_allocation(request).await.map(|_| ())
    }
}

pub fn repeats(place: &Place, report: &mut Report) -> Result<()> {
    let mut table =
        Table::new(&["64 callers", "calls/s", "p50, ms", "p99, ms", "rate, of empty", "p99, of empty"]);
    let database = place.database()?;
    place.sql(&database, &[SERVERS])?;
    let replica = Replica::start(&database.url, &[])?;
    let channels = load::connect(place, &[&replica.endpoint], CALLERS)?;
    place.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..PROJECTS {
            let mut client = Client::new(channels[0].clone());
            tasks.spawn(async move {
                client.ensure_allocation(load::request(load::project_id("repeat", number))).await
            });
            if tasks.len() >= 500 {
                tasks.join_next().await.transpose()?.transpose()?;
            }
        }
        while let Some(answer) = tasks.join_next().await {
            answer??;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    let number = numbers();
    let mut figures = [const { (Vec::new(), Vec::new(), Vec::new()) }; 2];
    for _ in 0..ROUNDS {
        for (which, (rates, p50, p99)) in figures.iter_mut().enumerate() {
            let outcome = if which == 0 {
                load::run(place, &channels, CALLERS, SECONDS, &number, &Nothing)
            } else {
                load::run(place, &channels, CALLERS, SECONDS, &number, &Repeat)
            };
            must_be_clean(&outcome)?;
            rates.push(outcome.rate);
            p50.push(outcome.percentile_ms(50));
            p99.push(outcome.percentile_ms(99));
        }
    }
    let mut empty = None;
    for (name, (rates, p50, p99)) in ["empty call", "repeat"].into_iter().zip(figures) {
        let (rate, p99) = (median(rates), median(p99));
        let (empty_rate, empty_p99) = *empty.get_or_insert((rate, p99));
        table.row([
            name.to_owned(),
            thousands(rate),
            format!("{:.2}", median(p50)),
            format!("{p99:.2}"),
            format!("{:.2}", rate / empty_rate),
            format!("{:.1}", p99 / empty_p99),
        ]);
    }
    report.table("repeats", table);
    drop(replica);
    place.drop(&database)
}

pub fn lone(place: &Place, report: &mut Report) -> Result<()> {
    let mut table = Table::new(&["one caller", "p50, ms", "calls/s", "allowed p50, ms"]);
    let database = place.database()?;
    place.sql(&database, &[SERVERS])?;
    let other = place.database()?;
    let replica = Replica::start(&database.url, &[])?;
    let channels = load::connect(place, &[&replica.endpoint], 1)?;
    let number = numbers();
    let call = NewProjects::spread("lone");
    let (mut row, mut row_rate, mut ours, mut rate) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let figures = baselines::one_row(place, &other, 3)?;
        row.push(figures.p50_ms);
        row_rate.push(figures.rate);
        let outcome = load::run(place, &channels, 1, 3.0, &number, &call);
        must_be_clean(&outcome)?;
        ours.push(outcome.percentile_ms(50));
        rate.push(outcome.rate);
    }
    let row = median(row);
    table.row([
        "one-row INSERT, pgbench".to_owned(),
        format!("{row:.2}"),
        thousands(median(row_rate)),
        String::new(),
    ]);
    table.row([
        "new project, service".to_owned(),
        format!("{:.2}", median(ours)),
        thousands(median(rate)),
        format!("{:.2}", 1.5 * row + 0.5),
    ]);
    report.table("lone", table);
    drop(replica);
    place.drop(&database)?;
    place.drop(&other)
}
