//! What became of a pool since someone looked at it last: so that what is remembered of projects need not be read again.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, pools::DEFAULT_POOL};

/// How many changed projects, and as many servers, are told of at the most. Whoever is further behind has little use for what it
/// remembers.
const LIMIT: i64 = 2_000;

/// How far someone has seen, in all that what a project holds, and what is told of its server, depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The history of the log.
    pub epoch: Uuid,
    /// The number of the newest event.
    pub last_sequence: i64,
    /// Counts changes of the inventory and of usage.
    pub inventory_revision: i64,
    /// Counts what was written by hand past the log.
    pub edit_count: i64,
    /// Counts the statements that gave placements an end which had none.
    pub lease_count: i64,
}

/// What changed.
#[derive(Debug)]
pub struct Changes {
    /// Up to where.
    pub mark: Mark,
    /// The projects and servers that did; none where all may have.
    pub changed: Option<Changed>,
    /// The database's time.
    pub now: OffsetDateTime,
}

/// The projects and servers that changed, and maybe some that did not.
#[derive(Debug)]
pub struct Changed {
    /// Ids.
    pub projects: Vec<String>,
    /// Handles.
    pub servers: Vec<String>,
}

/// Reads what changed since `mark`, all of one snapshot.
///
/// # Errors
/// [`StoreError`].
pub async fn list_since(conn: &mut PgConnection, mark: &Mark) -> Result<Changes, StoreError> {
    let row = sqlx::query!(
        r#"
        SELECT epoch, last_sequence, compacted_sequence, inventory_revision, edit_count, lease_count, clock_timestamp() AS "now!",
               ARRAY(SELECT coalesce(project_id, '') FROM allocation_events
                     WHERE pool_id = $1 AND first_sequence > $2 ORDER BY first_sequence LIMIT $4) AS "projects!",
               ARRAY(SELECT handle FROM servers WHERE pool_id = $1 AND revision > $3 ORDER BY revision LIMIT $4) AS "servers!"
        FROM pools WHERE pool_id = $1
        "#,
        DEFAULT_POOL,
        mark.last_sequence,
        mark.inventory_revision,
        LIMIT
    )
    .fetch_one(conn)
    .await?;
    let now = Mark {
        epoch: row.epoch,
        last_sequence: row.last_sequence,
        inventory_revision: row.inventory_revision,
        edit_count: row.edit_count,
        lease_count: row.lease_count,
    };
    let is_whole = |list: &[String]| i64::try_from(list.len()).is_ok_and(|len| len < LIMIT);
    let leads_here = (mark.epoch, mark.edit_count, mark.lease_count)
        == (now.epoch, now.edit_count, now.lease_count)
        && (row.compacted_sequence..=now.last_sequence).contains(&mark.last_sequence)
        && is_whole(&row.projects)
        && is_whole(&row.servers);
    let changed = leads_here.then_some(Changed { projects: row.projects, servers: row.servers });
    Ok(Changes { mark: now, changed, now: row.now })
}
