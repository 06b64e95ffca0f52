//! Postgres' own view of the replicas: which of their backends is at which step of a transaction that writes. Steps are told by
//! what a backend does, not by the text of its statements.

use std::time::Duration;

use sqlx::{Executor as _, PgConnection};
use tokio::time::{Instant, sleep};

/// How long is looked for a backend at a step.
const LOOK: Duration = Duration::from_secs(2);

/// A step of a transaction that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It waits for a lock that another holds.
    WaitingForLock,
    /// It holds locks, and its replica thinks.
    HoldingLock,
    /// It runs a statement that writes.
    Writing,
    /// Its commit is on its way to the disk.
    Committing,
}

/// Every step.
pub const STEPS: [Step; 4] = [Step::WaitingForLock, Step::HoldingLock, Step::Writing, Step::Committing];

impl Step {
    /// Ends one backend that is at the step, and says how many that were.
    fn statement(self) -> &'static str {
        match self {
            Self::WaitingForLock => {
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                 WHERE usename LIKE 'replica\\_%' AND wait_event_type = 'Lock' LIMIT 1) AS found"
            }
            Self::HoldingLock => {
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                 WHERE usename LIKE 'replica\\_%' AND state = 'idle in transaction' AND backend_xid IS NOT NULL \
                 LIMIT 1) AS found"
            }
            Self::Writing => {
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                 WHERE usename LIKE 'replica\\_%' AND state = 'active' AND backend_xid IS NOT NULL \
                 AND wait_event_type IS DISTINCT FROM 'Lock' AND wait_event_type IS DISTINCT FROM 'IO' \
                 AND query NOT ILIKE 'commit%' LIMIT 1) AS found"
            }
            Self::Committing => {
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                 WHERE usename LIKE 'replica\\_%' AND state = 'active' AND (query ILIKE 'commit%' \
                 OR wait_event IN ('WALSync', 'WALWrite')) LIMIT 1) AS found"
            }
        }
    }
}

/// Ends a backend that is at this step; false where none was seen there in time.
pub async fn terminate(conn: &mut PgConnection, step: Step) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < LOOK {
        let ended: i64 = sqlx::query_scalar(step.statement()).fetch_one(&mut *conn).await.unwrap();
        if ended > 0 {
            return true;
        }
        sleep(Duration::from_micros(200)).await;
    }
    false
}

/// The replica one of whose backends has begun to write, as soon as there is one.
pub async fn find_writer(conn: &mut PgConnection) -> Option<usize> {
    let begin = Instant::now();
    while begin.elapsed() < LOOK {
        let role: Option<String> = sqlx::query_scalar(
            "SELECT usename::text FROM pg_stat_activity WHERE usename LIKE 'replica\\_%' AND backend_xid IS NOT NULL \
             AND wait_event_type IS DISTINCT FROM 'Lock' LIMIT 1",
        )
        .fetch_optional(&mut *conn)
        .await
        .unwrap();
        if let Some(number) = role.and_then(|role| role.strip_prefix("replica_")?.parse().ok()) {
            return Some(number);
        }
        sleep(Duration::from_micros(200)).await;
    }
    None
}

/// Whether a replica's backend holds locks while its replica says nothing.
pub async fn holds_lock(conn: &mut PgConnection, replica: usize) -> bool {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE usename = $1 AND state = 'idle in transaction' \
         AND backend_xid IS NOT NULL)",
    )
    .bind(format!("replica_{replica}"))
    .fetch_one(conn)
    .await
    .unwrap()
}

/// Whether Postgres cannot write any more, for it says that there is no room, or has ended for the want of it.
pub async fn meets_full_disk(conn: &mut PgConnection) -> bool {
    let written =
        conn.execute("CREATE TABLE ballast AS SELECT repeat('x', 1000) FROM generate_series(1, 2000)").await;
    if written.is_ok() {
        let _ = conn.execute("DROP TABLE ballast").await;
    }
    written.is_err()
}
