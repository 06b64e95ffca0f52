//! Hints between replicas: one that committed says so, and the others look at the log at once instead of at their next round.
//!
//! A hint is no more than that. It is given after the commit and outside of its transaction, once for many commits: a NOTIFY
//! within each would queue them all behind one lock of the whole database (L41). Where it is lost, the round tells the same a
//! moment later.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::tailer::READ_LIMIT;
use crate::store::{Store, StoreError, hints, within};

/// How far apart the hints of one replica are at least: others need one for many commits.
const APART: Duration = Duration::from_millis(10);
/// How long after an error it is listened anew.
const AGAIN: Duration = Duration::from_secs(5);
/// After so long a silence it is listened anew: a connection that died without a word is silent too.
const SILENCE: Duration = Duration::from_mins(1);

/// Says whenever this replica committed something, until the shutdown.
pub(super) async fn give(
    store: Store,
    replica: Uuid,
    mut committed: watch::Receiver<()>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
        }
        let given = async {
            let mut conn = store.acquire().await?;
            hints::give(&mut conn, replica).await
        };
        if let Err(error) = within(READ_LIMIT, given).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "other replicas were not told of a commit"
            );
        }
        tokio::time::sleep(APART).await;
    }
}

/// Wakes the tailer when another replica says that it committed something, until the shutdown.
pub(super) async fn hear(store: Store, replica: Uuid, news: Arc<Notify>, shutdown: CancellationToken) {
    let hearing = async {
        loop {
            match listen(&store, replica, &news).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "other replicas' commits are not heard of"
                    );
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        infallible = hearing => { let _: Infallible = infallible; }
        () = shutdown.cancelled() => {}
    }
}

/// Listens until there is silence.
async fn listen(store: &Store, replica: Uuid, news: &Notify) -> Result<(), StoreError> {
    let mut listener = store.listen().await?;
    // What came before is not heard.
    news.notify_one();
    while let Ok(heard) = timeout(SILENCE, listener.hear()).await {
        if heard? != replica {
            news.notify_one();
        }
    }
    Ok(())
}
