//! What is fuzzed, with the seeds of each target: `scripts/fuzz` goes on from them.

use std::{fs, path::Path};

#[path = "../../fuzz/src/lib.rs"]
mod entries;

fn run(target: &str, entry: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut count = 0;
    for seed in fs::read_dir(folder).unwrap() {
        let bytes = fs::read(seed.unwrap().path()).unwrap();
        entry(&bytes);
        // And with each byte gone, and each cut.
        for at in 0..bytes.len().min(512) {
            entry(&bytes[..at]);
            entry(&[&bytes[..at], &bytes[at + 1..]].concat());
        }
        count += 1;
    }
    assert!(count > 2, "{target} has few seeds");
}

#[test]
fn the_seeds_of_each_target_are_taken() {
    run("request", entries::request);
    run("token", entries::token);
    run("inventory", entries::inventory);
    run("query", entries::query);
}
