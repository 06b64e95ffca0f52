//! Reads of single projects, many in one statement: whatever waits while a read is under way is read by the next one. What was read
//! not long ago is only looked at for changes.

use std::{collections::HashMap, iter, sync::Arc, time::Duration};

use sqlx::{PgConnection, Postgres, pool::PoolConnection};
use tokio::sync::{mpsc, oneshot};

use super::{Error, remembered::Remembered};
use crate::{
    domain::ProjectId,
    store::{Store, StoreError, changes, placements, within},
};

/// How many projects are read at once at the most.
const MAX_BATCH: usize = 512;
/// How long a read may take. A database that froze in the middle of one says nothing, and every later read waits behind it.
const LIMIT: Duration = Duration::from_secs(5);

type Found = Result<Option<placements::ProjectRecord>, Error>;

/// Reads projects.
#[derive(Debug, Clone)]
pub struct Reader {
    queue: mpsc::Sender<(ProjectId, oneshot::Sender<Found>)>,
    limit: usize,
}

impl Reader {
    /// A reader, and the task that reads for it; the task ends when the last reader is dropped.
    pub fn new(store: Store, limit: usize) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(limit);
        (Self { queue, limit }, run(store, waiting))
    }

    /// What is committed for a project, as of a moment after the call.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::ShuttingDown`] or [`Error::Store`].
    pub async fn find(&self, id: ProjectId) -> Found {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send((id, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded { limit: self.limit },
            mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
        })?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}

async fn run(store: Store, mut waiting: mpsc::Receiver<(ProjectId, oneshot::Sender<Found>)>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut conn = None;
    let mut remembered = Remembered::default();
    while waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        // The first one woke this task, which runs before all others that are ready: calls that came with it have yet to be read.
        tokio::task::yield_now().await;
        let room = MAX_BATCH - batch.len();
        batch.extend(iter::from_fn(|| waiting.try_recv().ok()).take(room));
        batch.retain(|(_, reply)| !reply.is_closed());
        let mut ids: Vec<ProjectId> = batch.iter().map(|(id, _)| id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        match within(LIMIT, read(&store, &mut conn, &mut remembered, &ids)).await {
            Ok(found) => {
                for (id, reply) in batch.drain(..) {
                    // A caller that hung up has no use for the answer.
                    let _ = reply.send(Ok(found.get(&id).cloned()));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                // Whoever waited meanwhile would only wait as long again for the same answer.
                while let Ok(waited) = waiting.try_recv() {
                    batch.push(waited);
                }
                for (_, reply) in batch.drain(..) {
                    let _ = reply.send(Err(Error::Store(Arc::clone(&error))));
                }
            }
        }
    }
    drop(conn);
    store.close_reader().await;
}

async fn read(
    store: &Store,
    kept: &mut Option<PoolConnection<Postgres>>,
    remembered: &mut Remembered,
    ids: &[ProjectId],
) -> Result<HashMap<ProjectId, placements::ProjectRecord>, StoreError> {
    if let Some(mut conn) = kept.take() {
        match find(&mut conn, remembered, ids).await {
            Ok(found) => {
                *kept = Some(conn);
                return Ok(found);
            }
            // One that broke while it lay idle.
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let mut conn = store.acquire_for_reader().await?;
    let found = find(&mut conn, remembered, ids).await?;
    *kept = Some(conn);
    Ok(found)
}

/// Finds the projects among those that are remembered and did not change, and reads the others.
async fn find(
    conn: &mut PgConnection,
    remembered: &mut Remembered,
    ids: &[ProjectId],
) -> Result<HashMap<ProjectId, placements::ProjectRecord>, StoreError> {
    let mut found = HashMap::with_capacity(ids.len());
    let mut unknown = Vec::new();
    if let Some(mark) = remembered.mark_for(ids) {
        let changes = changes::list_since(conn, &mark).await?;
        remembered.take(&changes);
        for id in ids {
            match remembered.find(id, &changes) {
                Some(record) => drop(found.insert(id.clone(), record)),
                None => unknown.push(id.to_string()),
            }
        }
    } else {
        unknown.extend(ids.iter().map(ToString::to_string));
    }
    metrics::counter!("allocator_project_reads_total", "source" => "memory").increment(found.len() as u64);
    metrics::counter!("allocator_project_reads_total", "source" => "tables").increment(unknown.len() as u64);
    if !unknown.is_empty() {
        let read = placements::list_projects(conn, &unknown).await?;
        for record in read.values() {
            remembered.keep(record);
        }
        found.extend(read);
    }
    Ok(found)
}
