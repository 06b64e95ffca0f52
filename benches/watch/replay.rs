//! How fast the history is replayed, against Postgres' own `COPY … TO` of the same rows.

use std::time::{Duration, Instant};

use resource_allocator::proto::v1::WatchAllocationsRequest;
use sqlx::{Connection as _, PgConnection, postgres::PgPoolCopyExt as _};
use tokio_stream::StreamExt as _;

use super::{bed::Bed, load::ensure, median, raw::Told};

/// Of four events each.
const OPERATIONS: i64 = 250_000;
const RUNS: usize = 3;

/// Measures, and prints the figures.
pub async fn measure() {
    let bed = Bed::start().await;
    bed.replicas[0].client().await.ensure_allocation(ensure("first".to_owned())).await.expect("it is placed");
    fill(&bed).await;
    let events: i64 =
        sqlx::query_scalar("SELECT last_sequence FROM pools").fetch_one(&bed.sql).await.expect("a pool");
    let (mut of_copy, mut of_replay) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        of_copy.push(copy(&bed).await);
        of_replay.push(replay(&bed, events).await);
    }
    let (copied, replayed) = (median(of_copy), median(of_replay));
    println!(
        "replay: {events} events in {:.2} s, COPY TO of the same rows in {:.2} s: {:.2} of its speed, {:.0} events/s",
        replayed.as_secs_f64(),
        copied.as_secs_f64(),
        copied.as_secs_f64() / replayed.as_secs_f64(),
        rate(events, replayed),
    );
}

#[expect(clippy::cast_precision_loss, reason = "a million or so")]
fn rate(events: i64, time: Duration) -> f64 {
    events as f64 / time.as_secs_f64()
}

/// Repeats what the service wrote of one ensure, for other projects.
async fn fill(bed: &Bed) {
    let mut conn = PgConnection::connect(&bed.url).await.expect("the database answers");
    for statement in [
        "SET session_replication_role = replica",
        "INSERT INTO allocation_events (pool_id, first_sequence, last_sequence, event_time, kind, project_id, server_handle,
             request_id, payload)
         SELECT pool_id, pool.last + 4 * n + 1, pool.last + 4 * n + 4, event_time, kind, 'project-' || n, server_handle,
                gen_random_uuid()::text, payload
         FROM allocation_events, (SELECT last_sequence AS last FROM pools) AS pool, generate_series(0, 249999) AS n
         WHERE kind = 'ensured'",
        "UPDATE pools SET last_sequence = (SELECT max(last_sequence) FROM allocation_events)",
        "SET session_replication_role = origin",
        "VACUUM ANALYZE allocation_events",
    ] {
        sqlx::query(statement).execute(&mut conn).await.expect("the log is filled");
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM allocation_events WHERE kind = 'ensured'")
        .fetch_one(&mut conn)
        .await
        .expect("the log is there");
    assert_eq!(rows, OPERATIONS + 1);
}

async fn copy(bed: &Bed) -> Duration {
    let begun = Instant::now();
    let mut rows = bed.sql.copy_out_raw("COPY allocation_events TO STDOUT").await.expect("it copies");
    let mut bytes = 0;
    while let Some(chunk) = rows.next().await {
        bytes += chunk.expect("it goes on").len();
    }
    assert!(bytes > 0);
    begun.elapsed()
}

async fn replay(bed: &Bed, events: i64) -> Duration {
    let begun = Instant::now();
    let request = WatchAllocationsRequest { from_beginning: true, ..Default::default() };
    let mut connection = bed.replicas[1].watch(&[request]).await;
    let mut last = 0;
    let events = u64::try_from(events).expect("a count");
    while last < events {
        let read = connection.read(|_, told| {
            if let Told::Event(number) = told {
                assert_eq!(number, last + 1, "each once and in order");
                last = number;
            }
        });
        read.await.expect("it goes on");
    }
    begun.elapsed()
}
