//! What the combiner does where nothing is heard: of the database that it waits for, and of another replica that has the pool's row.

use std::time::Duration;

use super::follow::Follower;
use crate::store::{Store, within};

/// How long a transaction may take before the database counts as frozen: longer than its own limits let it take.
const LIMIT: Duration = Duration::from_secs(30);

/// How often it is asked, over another connection, whether the database works on a transaction that has no answer. Longer than the
/// pool's row is waited for.
const LOOK: Duration = Duration::from_secs(7);
/// How long such a look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How much later is looked once more: what was sent just before the first look may not have been there.
const AGAIN: Duration = Duration::from_secs(1);

/// Waits until a transaction that began just now, and has no answer yet, is not to be waited for any longer.
pub(super) async fn of_database(follower: &Follower) {
    let unheard = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if is_unheard(follower).await {
                tokio::time::sleep(AGAIN).await;
                if is_unheard(follower).await {
                    return;
                }
            }
        }
    };
    // One that says nothing at all is given time until its own limits are over.
    let _ = tokio::time::timeout(LIMIT, unheard).await;
}

/// Whether the database waits for the combiner, which waits for it. While the tables are read anew the combiner may wait for that.
async fn is_unheard(follower: &Follower) -> bool {
    !follower.is_loading() && matches!(within(LOOK_LIMIT, follower.store.hears_combiner()).await, Ok(false))
}

/// Takes the pool's row from replicas that are gone, where it can be found out that they are.
pub(super) async fn of_others(store: &Store) {
    match within(LOOK_LIMIT, store.end_abandoned()).await {
        Ok(0) => {}
        Ok(ended) => {
            tracing::warn!(ended, "ended sessions that had the pool's row, and whose replicas were gone");
        }
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "it is not known whether a replica that is gone has the pool's row"
        ),
    }
}
