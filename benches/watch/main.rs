//! The stream's figures: how soon a watcher at another replica is told of a commit, what thousands of watchers cost the
//! ensures, and how fast the history is replayed. Real processes over one Postgres of their own, fsync on, service, database and
//! callers on one machine.
//!
//! ```sh
//! cargo bench --bench watch                # all three
//! cargo bench --bench watch -- latency     # or crowd, or replay
//! ```

mod bed;
mod cpu;
mod crowd;
mod latency;
mod load;
mod raw;
mod replay;
#[path = "../support/mod.rs"]
mod support;

/// The one in the middle.
fn median<T: PartialOrd + Copy>(mut figures: Vec<T>) -> T {
    figures.sort_unstable_by(|one, other| one.partial_cmp(other).expect("no figure is NaN"));
    figures[figures.len() / 2]
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if is_asked("latency") {
        runtime.block_on(latency::measure());
    }
    if is_asked("crowd") {
        runtime.block_on(crowd::measure());
    }
    if is_asked("replay") {
        runtime.block_on(replay::measure());
    }
}
