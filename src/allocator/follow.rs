//! Reads what was committed without the pool's row, so that as little as can be is left to be read by whoever has it, while all
//! others wait.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    runtime::Handle,
    sync::{Mutex, RwLock},
    task::JoinError,
};

use super::{AllocatorOptions, line, replica::Replica};
use crate::store::{
    Store, StoreError, events,
    pools::{self, PoolState},
    within,
};

/// How many operations are read at once.
const PAGE: i64 = 1_000;

/// How long it may take to read a page of the log. A host that is gone says nothing, and nobody else has this connection meanwhile.
const PAGE_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take to read the tables. Who reads keeps the replica from everyone else, also where a database that froze says
/// nothing.
const LIMIT: Duration = Duration::from_secs(25);

/// What keeps a replica near where the pool stands.
#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) store: Store,
    pub(super) options: AllocatorOptions,
    pub(super) replica: Arc<RwLock<Replica>>,
    /// The runtime whose connections these are.
    pub(super) runtime: Handle,
    /// Held while the tables are read anew, which may take long, and keeps the replica from everyone else.
    pub(super) loading: Arc<Mutex<()>>,
}

impl Follower {
    /// Folds what the log tells, up to its end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn follow_to_the_end(&self) -> Result<(), StoreError> {
        while self.follow().await? {}
        Ok(())
    }

    /// The same for the combiner, which has a runtime of its own. It goes on by itself where nobody waits for it any more. What goes
    /// wrong here goes wrong again where it is told.
    pub(super) async fn follow_elsewhere(&self) {
        let this = self.clone();
        let followed = self.runtime.spawn(async move { this.follow_to_the_end().await }).await;
        // Whoever failed in the middle left a fleet that is none.
        if let Err(Ok(panic)) = followed.map_err(JoinError::try_into_panic) {
            std::panic::resume_unwind(panic);
        }
    }

    /// Whether the tables are being read anew.
    pub(super) fn is_loading(&self) -> bool {
        self.loading.try_lock().is_err()
    }

    /// Brings the fleet to a state of the tables, and tells which.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn load(&self, replica: &mut Replica) -> Result<PoolState, StoreError> {
        let _loading = self.loading.lock().await;
        let load = async {
            // Begun under the lock: a snapshot from before could be older than what this replica has committed since.
            let mut snapshot = self.store.begin_load().await?;
            self.load_from(&mut snapshot, replica).await
        };
        within(LIMIT, load).await
    }

    /// The same, from a snapshot that was begun.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn load_from(
        &self,
        snapshot: &mut PgConnection,
        replica: &mut Replica,
    ) -> Result<PoolState, StoreError> {
        let pool = pools::find(snapshot).await?;
        replica.catch_up(snapshot, &pool).await?;
        line::refresh(snapshot, replica.fleet_mut(), &self.options.context(pool.now)).await?;
        replica.note_kept();
        Ok(pool)
    }

    /// Folds a page of the log; tells whether there may be more.
    async fn follow(&self) -> Result<bool, StoreError> {
        let Some(after) = self.replica.read().await.folded() else { return Ok(false) };
        let read = async {
            let mut conn = self.store.acquire_for_follower().await?;
            let changes = events::list_changes_after(&mut conn, after, PAGE).await?;
            conn.keep();
            Ok(changes)
        };
        let changes = match within(PAGE_LIMIT, read).await {
            // What this release cannot read in the log is in the tables, which are read before the row is had.
            Err(StoreError::Inconsistent { .. }) => {
                self.replica.write().await.forget();
                return Ok(false);
            }
            changes => changes?,
        };
        if changes.is_empty() {
            return Ok(false);
        }
        let more = i64::try_from(changes.len()) == Ok(PAGE);
        Ok(self.replica.write().await.follow(changes) && more)
    }
}
