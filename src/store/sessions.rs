//! How a session with Postgres begins, and how it is found out that one is of no use any more.

use std::{
    io::ErrorKind,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::write;

/// Postgres finds out within half a minute that a replica's host is gone, also where it had just sent something, and within seconds
/// that a replica has closed the connection over which a statement runs or waits for a lock. What such sessions hold, and their
/// places among `max_connections`, are then free, where the kernel's own settings take a quarter of an hour to two hours.
macro_rules! keep_alive {
    () => {
        "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = '25s'; SET client_connection_check_interval = '5s'"
    };
}
pub(super) const KEEP_ALIVE: &str = keep_alive!();

/// While a migration waits for a table, as that of a dump, whoever comes after waits behind it: so it waits in short turns. A
/// replica that freezes in the middle of one, or between two, loses it.
pub(super) const MIGRATE: &str = concat!(
    keep_alive!(),
    "; SET lock_timeout = '1s'; SET idle_in_transaction_session_timeout = '20s'; SET idle_session_timeout = '60s'"
);

/// Every statement of ours that is run often has its index. A plan that was cached while a table was small, or before its
/// statistics were gathered, would scan the table all the same, and go on to while it grows.
macro_rules! prefer_indexes {
    () => {
        concat!(keep_alive!(), "; SET enable_seqscan = off")
    };
}
pub(super) const PREFER_INDEXES: &str = prefer_indexes!();

/// The combiner and the reader run the same few statements over arrays, thousands of times a second: those are planned once, where
/// Postgres would plan them anew for each length of the arrays.
macro_rules! plan_once {
    () => {
        concat!(prefer_indexes!(), "; SET plan_cache_mode = force_generic_plan")
    };
}
pub(super) const PLAN_ONCE: &str = plan_once!();

/// The combiner's connection is its alone, so that what holds for each of its transactions is said once.
pub(super) const PLAN_ONCE_AND_WRITE: &str = concat!(plan_once!(), "; ", write::settings!("SET"));

/// How long a connection that lay idle is asked whether it is still there. Behind a host that is gone without a word it would be asked
/// for a quarter of an hour. Less than one waits for a connection, so that there is time for another one.
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// The same of one that was used: what it was used for may still be under way, and nobody waits.
const USED_LIMIT: Duration = Duration::from_secs(5);

/// Connections that are begun with these settings, and lead to a database that takes writes: what is read of a standby, where a
/// name led to it for a moment, may be of long ago, and such a session would be kept.
pub(super) fn pool(
    connect: &PgConnectOptions,
    acquire_timeout: Duration,
    max_connections: u32,
    settings: &'static str,
) -> PgPool {
    options(acquire_timeout, max_connections, settings).connect_lazy_with(connect.clone())
}

/// The same, each asked before it is used whether it is still there, and afterwards: they lie idle for long, and those that a Postgres
/// which is gone has left behind must not fail one caller each. Where one does not answer, none is asked that was not used since.
pub(super) fn tested_pool(
    connect: &PgConnectOptions,
    acquire_timeout: Duration,
    max_connections: u32,
    settings: &'static str,
) -> PgPool {
    let silent = Arc::new(Mutex::new(None::<Instant>));
    options(acquire_timeout, max_connections, settings)
        .before_acquire(move |conn, meta| {
            let silent = Arc::clone(&silent);
            Box::pin(async move {
                let begin = Instant::now();
                let is_older = |silent: Instant| silent.elapsed() <= meta.idle_for;
                if silent.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(is_older) {
                    return Err(sqlx::Error::Io(ErrorKind::TimedOut.into()));
                }
                let answer = ask(conn, IDLE_LIMIT).await;
                if answer.is_err() {
                    *silent.lock().unwrap_or_else(PoisonError::into_inner) = Some(begin);
                }
                answer
            })
        })
        .after_release(|conn, _| Box::pin(ask(conn, USED_LIMIT)))
        .connect_lazy_with(connect.clone())
}

fn options(acquire_timeout: Duration, max_connections: u32, settings: &'static str) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(acquire_timeout)
        .test_before_acquire(false)
        .after_connect(move |conn, _| {
            Box::pin(async move {
                conn.execute(settings).await?;
                refuse_read_only(conn).await
            })
        })
}

/// An error where the database takes no writes. A standby says so of every transaction, as does a database that is set to be read
/// alone.
pub(super) async fn refuse_read_only(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let is_read_only =
        sqlx::query_scalar!(r#"SELECT current_setting('transaction_read_only')::boolean AS "is_read_only!""#)
            .fetch_one(conn)
            .await?;
    if is_read_only {
        return Err(sqlx::Error::Protocol("the database is read-only".to_owned()));
    }
    Ok(())
}

/// Asks a connection whether it is still there. An error has it closed without a word to the other end.
async fn ask(conn: &mut PgConnection, limit: Duration) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(limit, conn.ping()).await {
        Ok(answer) => answer.map(|()| true),
        Err(_) => Err(sqlx::Error::Io(ErrorKind::TimedOut.into())),
    }
}
