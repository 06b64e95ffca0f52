//! What the service does in a second, beside what the same machine could do: every comparison is taken side by side in one run,
//! against a Postgres of its own with default durability and the service's release build.
//!
//! ```sh
//! cargo bench --bench service                 # everything; prints the tables
//! cargo bench --bench service -- new repeats  # only these
//! cargo bench --bench service -- --write      # everything, and writes the tables and plots into docs/
//! cargo bench --bench service -- c2m          # the two-million challenge
//! ```
//!
//! One scenario is one file. A new one is a module, a name in `SCENARIOS` and its marks in `docs/benchmarks.md`.

#[path = "../choice/measure.rs"]
mod choice;
#[path = "../support/mod.rs"]
mod support;

mod baselines;
mod c2m;
mod fullness;
mod latency;
mod lists;
mod load;
mod observability;
mod place;
mod plot;
mod report;
mod throughput;
mod upkeep;

use std::env;

use place::Place;
use report::Report;
use support::Result;

type Scenario = fn(&Place, &mut Report) -> Result<()>;

const SCENARIOS: [(&str, Scenario); 10] = [
    ("choice", choices),
    ("new", throughput::new_projects),
    ("replicas", throughput::replicas),
    ("repeats", latency::repeats),
    ("lone", latency::lone),
    ("fullness", fullness::fullness),
    ("lists", lists::lists_and_start),
    ("overload", throughput::overload),
    ("upkeep", upkeep::upkeep),
    ("observability", observability::observability),
];

/// How often each figure is taken; the median is told.
const ROUNDS: usize = 3;

fn main() -> Result<()> {
    let mut asked: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let write = asked.iter().position(|argument| argument == "--write").map(|at| asked.remove(at)).is_some();
    let challenge = asked.iter().any(|name| name == "c2m");
    if let Some(unknown) =
        asked.iter().find(|name| *name != "c2m" && SCENARIOS.iter().all(|(known, _)| known != name))
    {
        return Err(format!("there is no scenario `{unknown}`").into());
    }
    // Before any thread of a runtime: the kernel tells Postgres when the thread that started it ends.
    let place = Place::start()?;
    let mut report = Report::new();
    for (name, scenario) in SCENARIOS {
        if (asked.is_empty() && !challenge) || asked.iter().any(|other| other == name) {
            eprintln!("== {name}");
            scenario(&place, &mut report)?;
        }
    }
    if challenge {
        eprintln!("== c2m");
        c2m::challenge(&place, &mut report)?;
    }
    report.print();
    if write {
        report.write()?;
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "as every scenario does")]
fn choices(_place: &Place, report: &mut Report) -> Result<()> {
    let rows = choice::rows();
    let mut table =
        report::Table::new(&["µs for one decision", "1,000", "10,000", "100,000", "last / first"]);
    for row in &rows {
        let [first, middle, last] = row.microseconds;
        table.row([
            row.name.clone(),
            format!("{first:.1}"),
            format!("{middle:.1}"),
            format!("{last:.1}"),
            format!("{:.2}", last / first),
        ]);
    }
    report.table("choice", table);
    let series: Vec<plot::Series> = rows
        .iter()
        .filter(|row| row.name.contains("nearly full") || row.name.ends_with("empty"))
        .map(|row| plot::Series {
            name: row.name.clone(),
            points: [1_000.0, 10_000.0, 100_000.0].into_iter().zip(row.microseconds).collect(),
        })
        .collect();
    report.plot(
        "choice",
        &plot::Plot { title: "One decision in memory", x: "servers", y: "µs", logarithmic_x: true, series },
    );
    Ok(())
}
