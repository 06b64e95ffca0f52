//! The service under faults, judged by its history: many callers over three replicas and one Postgres, every call and answer
//! written down, and then checked against what the service promises. `docs/chaos.md` has the table of faults and checks.
//!
//! Short within the suite, each kind of fault once. `make chaos` goes on for minutes, by a seed that it prints.
//!
//! A new fault is a row of [`faults::Fault`], a new check goes into [`storm::Storm::end`].

mod backends;
mod bed;
mod callers;
mod faults;
mod history;
mod holdings;
mod host;
mod linearizable;
mod model;
mod proof;
pub mod proxy;
mod storm;
mod told;
mod upgrade;
mod wire;

use std::time::Duration;

use faults::Host;
use host::{Clock, Disk};
use storm::{Length, run};

/// The seed of the short form.
const SEED: u64 = 7;

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap_or_else(|_| panic!("{name}={number}")))
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(feature = "without-guards", ignore = "a guard was taken out")]
async fn what_was_answered_under_each_fault_stands_and_has_an_order() {
    let seed = number("CHAOS_SEED").unwrap_or(SEED);
    let outcome = if let Some(seconds) = number("CHAOS_SECONDS") {
        let mut host = Host::default();
        match Disk::mount() {
            Ok(disk) => host.disk = Some(disk),
            Err(reason) => println!("NOT RUN: the database's disk full: {reason}"),
        }
        match Clock::find() {
            Ok(clock) => host.clock = Some(clock),
            Err(reason) => println!("NOT RUN: steps of the wall clock: {reason}"),
        }
        run(seed, &Length::For(Duration::from_secs(seconds)), &host).await
    } else {
        run(seed, &Length::EachKindOnce, &Host::default()).await
    };
    outcome.settle(&format!("seed-{seed}"));
}
