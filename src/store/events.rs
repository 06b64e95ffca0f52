//! The table `allocation_events`: the log.

use serde::Serialize;
use sqlx::{
    Decode, PgConnection, Postgres, Type,
    error::BoxDynError,
    postgres::{PgTypeInfo, PgValueFormat, PgValueRef},
};
use time::OffsetDateTime;
use tokio_stream::{Stream, StreamExt as _};

use super::{StoreError, actors, grants, pools::DEFAULT_POOL};
use crate::domain::{
    ProjectId, ServerHandle,
    event::{Change, Grant, LogEntry, Operation},
};

/// What is before the text of a `jsonb` in Postgres' binary format.
const JSONB_VERSION: u8 = 1;

struct Row {
    first_sequence: i64,
    event_time: OffsetDateTime,
    kind: String,
    project_id: Option<String>,
    server_handle: Option<String>,
    request_id: String,
    payload: Payload,
}

struct ChangeRow {
    first_sequence: i64,
    last_sequence: i64,
    event_time: OffsetDateTime,
    kind: String,
    project_id: Option<String>,
    server_handle: Option<String>,
    granted: Option<Vec<u8>>,
    /// These two where nothing is granted.
    request_id: Option<String>,
    payload: Option<Payload>,
}

/// The text of a payload, which is read once: into the operation that it is of.
struct Payload(String);

impl Type<Postgres> for Payload {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("jsonb")
    }
}

impl Decode<'_, Postgres> for Payload {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let text = match value.format() {
            PgValueFormat::Binary => match value.as_bytes()? {
                [JSONB_VERSION, text @ ..] => str::from_utf8(text)?,
                _ => return Err("a jsonb of another version".into()),
            },
            PgValueFormat::Text => value.as_str()?,
        };
        Ok(Self(text.to_owned()))
    }
}

/// The operations that hold an event after a number, as rows of these columns. The operation that the number is in the middle of
/// starts at or before it: the greatest start not after it. Asked for as `max`, it is looked for in all of the log by a plan that was
/// made while that was empty.
macro_rules! select_after {
    ($row:ident, $columns:tt, $sequence:expr, $limit:expr) => {
        sqlx::query_as!(
            $row,
            r#"
        SELECT "#
                + $columns
                + r#"
        FROM allocation_events
        WHERE pool_id = $1 AND last_sequence > $2
          AND first_sequence >= coalesce((SELECT first_sequence FROM allocation_events
                                          WHERE pool_id = $1 AND first_sequence <= $2
                                          ORDER BY first_sequence DESC LIMIT 1), 0)
        ORDER BY first_sequence LIMIT $3
        "#,
            DEFAULT_POOL,
            $sequence,
            $limit
        )
    };
}

/// Reads the operations that hold an event after `sequence`, in commit order, up to `limit` of them.
///
/// Event numbers are given under the pool's row, which the writer holds until it has committed. So no event with a lower number
/// can appear later, and `> sequence` misses none (L42). A number from a plain sequence would not have that.
///
/// # Errors
/// [`StoreError`].
pub async fn list_after(
    conn: &mut PgConnection,
    sequence: i64,
    limit: i64,
) -> Result<Vec<LogEntry>, StoreError> {
    let rows = select_after!(
        Row,
        r#"first_sequence, event_time, kind::text AS "kind!", project_id, server_handle, request_id,
               payload AS "payload: Payload""#,
        sequence,
        limit
    )
    .fetch(conn);
    decode(rows).await
}

/// The same, each with what its column `granted` says: none where that is empty, and what is wrong where it says nothing.
///
/// # Errors
/// [`StoreError`].
pub async fn list_with_grants_after(
    conn: &mut PgConnection,
    sequence: i64,
    limit: i64,
) -> Result<Vec<(LogEntry, Option<Result<Grant, String>>)>, StoreError> {
    let rows = select_after!(
        ChangeRow,
        r#"first_sequence, last_sequence, event_time, kind::text AS "kind!", project_id, server_handle, granted,
               request_id AS "request_id?", payload AS "payload?: Payload""#,
        sequence,
        limit
    )
    .fetch_all(conn)
    .await?;
    let with_grant = |row: ChangeRow| {
        let granted = row.grant();
        Ok((row.into_entry()?, granted))
    };
    rows.into_iter().map(with_grant).collect()
}

/// The same, as another replica than the one that committed them folds them.
///
/// # Errors
/// [`StoreError`].
pub async fn list_changes_after(
    conn: &mut PgConnection,
    sequence: i64,
    limit: i64,
) -> Result<Vec<Change>, StoreError> {
    let mut rows = select_after!(
        ChangeRow,
        r#"first_sequence, last_sequence, event_time, kind::text AS "kind!", project_id, server_handle, granted,
               CASE WHEN granted IS NULL THEN request_id END AS request_id,
               CASE WHEN granted IS NULL THEN payload END AS "payload: Payload""#,
        sequence,
        limit
    )
    .fetch(conn);
    let mut changes = Vec::new();
    while let Some(row) = rows.next().await {
        changes.push(row?.try_into()?);
    }
    Ok(changes)
}

/// The same as [`list_after`], of one project.
///
/// # Errors
/// [`StoreError`].
pub async fn list_project_after(
    conn: &mut PgConnection,
    project_id: &str,
    sequence: i64,
    up_to: i64,
    limit: i64,
) -> Result<Vec<LogEntry>, StoreError> {
    // The sum leaves the index of the projects alone to be used: a plan that is made before the log was ever analysed would look for
    // them in all of it, by its primary key.
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT first_sequence, event_time, kind::text AS "kind!", project_id, server_handle, request_id,
               payload AS "payload: Payload"
        FROM allocation_events
        WHERE pool_id + 0::smallint = $1 AND project_id = $2 AND last_sequence > $3 AND first_sequence <= $4
          AND first_sequence >= coalesce((SELECT first_sequence FROM allocation_events
                                          WHERE pool_id + 0::smallint = $1 AND project_id = $2 AND first_sequence <= $3
                                          ORDER BY first_sequence DESC LIMIT 1), 0)
        ORDER BY first_sequence LIMIT $5
        "#,
        DEFAULT_POOL,
        project_id,
        sequence,
        up_to,
        limit
    )
    .fetch(conn);
    decode(rows).await
}

/// Decodes each while Postgres sends the next.
async fn decode(
    mut rows: impl Stream<Item = Result<Row, sqlx::Error>> + Unpin,
) -> Result<Vec<LogEntry>, StoreError> {
    let mut entries = Vec::new();
    while let Some(row) = rows.next().await {
        entries.push(row?.try_into()?);
    }
    Ok(entries)
}

impl TryFrom<Row> for LogEntry {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let broken = |problem: String| {
            StoreError::inconsistent("allocation_events", row.first_sequence.to_string(), problem)
        };
        let payload = row.payload.0.as_str();
        let operation = match row.kind.as_str() {
            "ensured" => serde_json::from_str(payload).map(Operation::Ensured),
            "refused" => serde_json::from_str(payload).map(Operation::Refused),
            "released" => serde_json::from_str(payload).map(Operation::Released),
            "relocated" => serde_json::from_str(payload).map(Operation::Relocated),
            "port_replaced" => serde_json::from_str(payload).map(Operation::PortReplaced),
            "policy_changed" => serde_json::from_str(payload).map(Operation::PolicyChanged),
            "server_changed" => serde_json::from_str(payload).map(Operation::ServerChanged),
            "waiting" => serde_json::from_str(payload).map(Operation::Waiting),
            "left_line" => serde_json::from_str(payload).map(Operation::LeftLine),
            kind => return Err(broken(format!("unknown kind {kind}"))),
        }
        .map_err(|error| broken(format!("payload: {error}")))?;
        let project_id = row.project_id.as_deref().map(ProjectId::parse).transpose();
        let server_handle = row.server_handle.as_deref().map(ServerHandle::parse).transpose();
        Ok(Self {
            first_sequence: row.first_sequence,
            event_time: row.event_time,
            project_id: project_id.map_err(|error| broken(format!("project_id: {error}")))?,
            server_handle: server_handle.map_err(|error| broken(format!("server_handle: {error}")))?,
            request_id: row.request_id.clone(),
            actor: actors::find(payload),
            operation,
        })
    }
}

impl ChangeRow {
    fn broken(&self, problem: String) -> StoreError {
        StoreError::inconsistent("allocation_events", self.first_sequence.to_string(), problem)
    }

    /// What its `granted` says; none where that is empty.
    fn grant(&self) -> Option<Result<Grant, String>> {
        let granted = self.granted.as_deref()?;
        Some(self.grant_of(granted))
    }

    fn grant_of(&self, granted: &[u8]) -> Result<Grant, String> {
        if self.kind != "ensured" {
            return Err(format!("something is granted by one that is {}", self.kind));
        }
        let project_id = ProjectId::parse(self.project_id.as_deref().unwrap_or_default());
        let server_handle = ServerHandle::parse(self.server_handle.as_deref().unwrap_or_default());
        let (is_placement, grown, ports) =
            grants::decode(granted).map_err(|error| format!("granted: {error}"))?;
        Ok(Grant {
            first_sequence: self.first_sequence,
            last_sequence: self.last_sequence,
            event_time: self.event_time,
            project_id: project_id.map_err(|error| format!("project_id: {error}"))?,
            server_handle: server_handle.map_err(|error| format!("server_handle: {error}"))?,
            is_placement,
            grown,
            ports,
        })
    }

    fn into_entry(self) -> Result<LogEntry, StoreError> {
        let Self { request_id: Some(request_id), payload: Some(payload), .. } = self else {
            return Err(self.broken("neither `granted` nor `payload`".to_owned()));
        };
        let Self { first_sequence, event_time, kind, project_id, server_handle, .. } = self;
        Row { first_sequence, event_time, kind, project_id, server_handle, request_id, payload }.try_into()
    }
}

impl TryFrom<ChangeRow> for Change {
    type Error = StoreError;

    fn try_from(row: ChangeRow) -> Result<Self, StoreError> {
        match row.grant() {
            Some(grant) => grant.map(Self::Grant).map_err(|problem| row.broken(problem)),
            None => row.into_entry().map(|entry| Self::Operation(Box::new(entry))),
        }
    }
}

/// Operations as columns, for statements over arrays.
#[derive(Debug, Default)]
pub struct EventColumns {
    pub(super) first: Vec<i64>,
    pub(super) last: Vec<i64>,
    pub(super) event_time: Vec<OffsetDateTime>,
    pub(super) kind: Vec<&'static str>,
    pub(super) project_id: Vec<Option<String>>,
    pub(super) server_handle: Vec<Option<String>>,
    pub(super) request_id: Vec<String>,
    pub(super) payload: Vec<String>,
    pub(super) granted: Vec<Option<Vec<u8>>>,
}

impl EventColumns {
    /// The columns of these operations.
    ///
    /// # Errors
    /// [`StoreError`] for one that cannot be written down.
    pub fn of(entries: &[LogEntry]) -> Result<Self, StoreError> {
        let mut columns = Self::default();
        for entry in entries {
            let (kind, payload) = match &entry.operation {
                Operation::Ensured(ensured) => ("ensured", encode(ensured, entry)?),
                Operation::Refused(refused) => ("refused", encode(refused, entry)?),
                Operation::Released(released) => ("released", encode(released, entry)?),
                Operation::Relocated(relocated) => ("relocated", encode(relocated, entry)?),
                Operation::PortReplaced(replaced) => ("port_replaced", encode(replaced, entry)?),
                Operation::PolicyChanged(changed) => ("policy_changed", encode(changed, entry)?),
                Operation::ServerChanged(changed) => ("server_changed", encode(changed, entry)?),
                Operation::Waiting(waiting) => ("waiting", encode(waiting, entry)?),
                Operation::LeftLine(left) => ("left_line", encode(left, entry)?),
            };
            columns.first.push(entry.first_sequence);
            columns.last.push(entry.last_sequence());
            columns.event_time.push(entry.event_time);
            columns.kind.push(kind);
            columns.project_id.push(entry.project_id.as_ref().map(ToString::to_string));
            columns.server_handle.push(entry.server_handle.as_ref().map(ToString::to_string));
            columns.request_id.push(entry.request_id.clone());
            columns.payload.push(payload);
            columns.granted.push(Grant::of(entry).as_ref().map(grants::encode));
        }
        Ok(columns)
    }
}

fn encode(payload: &impl Serialize, entry: &LogEntry) -> Result<String, StoreError> {
    actors::encode(payload, &entry.actor).map_err(|error| {
        StoreError::inconsistent("allocation_events", entry.first_sequence.to_string(), error)
    })
}

/// The number up to which the operations that begin in the next `span` numbers after `compacted` are all from before `cutoff` or not
/// after `newest_to_go`; none where the oldest is to stay. Both ends of what is read are given: told to order and to stop, Postgres
/// may read the whole log where its statistics are old.
///
/// # Errors
/// [`StoreError`].
pub async fn find_expired(
    conn: &mut PgConnection,
    compacted: i64,
    span: i64,
    cutoff: Option<OffsetDateTime>,
    newest_to_go: i64,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"
        SELECT max(last_sequence) FROM (
            SELECT last_sequence, bool_and(event_time < $4 IS TRUE OR last_sequence <= $5) OVER (ORDER BY first_sequence) AS goes
            FROM allocation_events
            WHERE pool_id = $1 AND first_sequence > $2 AND first_sequence <= $3) AS oldest
        WHERE goes
        "#,
        DEFAULT_POOL,
        compacted,
        compacted.saturating_add(span),
        cutoff,
        newest_to_go
    )
    .fetch_one(conn)
    .await?)
}

/// Removes the operations between two numbers. The lower one spares it what was removed before, which the index has until it is
/// vacuumed.
///
/// # Errors
/// [`StoreError`].
pub async fn delete_between(conn: &mut PgConnection, after: i64, up_to: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM allocation_events WHERE pool_id = $1 AND first_sequence > $2 AND first_sequence <= $3",
        DEFAULT_POOL,
        after,
        up_to
    )
    .execute(conn)
    .await?;
    Ok(())
}
