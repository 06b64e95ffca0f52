//! Hints from replica to replica that something was committed, by NOTIFY. They may be lost.

use std::time::Duration;

use sqlx::{
    Executor as _, PgConnection,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use uuid::Uuid;

use super::{StoreError, sessions::KEEP_ALIVE};

const CHANNEL: &str = "resource_allocator_commits";

/// How long it is tried to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Hears hints. Holds a connection, and makes it anew when it breaks.
#[derive(Debug)]
pub struct HintListener(PgListener);

impl HintListener {
    /// A connection that listens. No pool has it: what is said to it must reach no statement of another.
    pub(super) async fn connect(options: &PgConnectOptions) -> Result<Self, StoreError> {
        let own = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_LIMIT)
            .after_connect(|conn, _| Box::pin(async move { conn.execute(KEEP_ALIVE).await.map(drop) }));
        let mut listener = PgListener::connect_with(&own.connect_lazy_with(options.clone())).await?;
        listener.listen(CHANNEL).await?;
        Ok(Self(listener))
    }

    /// The next hint: which replica gave it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hear(&mut self) -> Result<Uuid, StoreError> {
        // What anyone else sends there is a hint of nobody in particular.
        Ok(self.0.recv().await?.payload().parse().unwrap_or_default())
    }
}

/// Gives a hint. It writes nothing, so that its commit waits for no flush of the write-ahead log.
///
/// # Errors
/// [`StoreError`].
pub async fn give(conn: &mut PgConnection, replica: Uuid) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_notify($1, $2)", CHANNEL, replica.to_string()).execute(conn).await?;
    Ok(())
}
