//! A rolling upgrade under load: replicas of an older build, on the schema that it knows, are replaced one by one by this one, whose
//! first start migrates. No call fails that a client repeats as its service config says.

use std::path::PathBuf;

use super::{
    bed::{Bed, BedOptions, REPLICAS},
    storm::{Outcome, Storm, WATCHERS},
};

/// How many answers there are to be between two replacements.
const ANSWERS: usize = 150;

async fn newest_migration(bed: &Bed) -> i64 {
    sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(&mut bed.connect().await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a build from before the newest migration in CHAOS_OLD_BINARY: `make chaos` makes one"]
async fn a_rolling_upgrade_fails_no_call_that_is_repeated() {
    let old = std::env::var_os("CHAOS_OLD_BINARY").map(PathBuf::from).expect("the path of an older build");
    let bed = Bed::make(BedOptions { program: Some(old), ..BedOptions::default() }).await;
    let before = newest_migration(&bed).await;
    let storm = Storm::begin_repeating(&bed, "upgrade", 1, WATCHERS).await;
    storm.wait_for_answers(ANSWERS).await;
    let mut steps = Vec::new();
    for replica in 0..REPLICAS {
        bed.replace(replica, &BedOptions::default()).await;
        let now = newest_migration(&bed).await;
        steps.push(format!("replica {replica} was replaced; the newest migration is {now}"));
        assert!(now > before, "this build brings a migration");
        storm.wait_for_answers(ANSWERS).await;
    }
    let (wrong, operations, summary) = storm.end(&bed).await;
    Outcome { wrong, faults: steps, operations, summary }.settle("upgrade");
}
