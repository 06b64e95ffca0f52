//! Connections whose other end is gone without a word.
//!
//! A replica that is gone may leave a session that has the pool's row, or one of upkeep that has rows of ports. Postgres keeps no time
//! between the messages of one round: `idle_in_transaction_session_timeout` begins with the answer to the last of them, and a
//! statement's time limit does not end a session that reads (`SocketBackend` in `tcop/postgres.c` holds it off) or sends. The rows
//! would be had until the kernel gives the connection up.

use sqlx::PgConnection;

use super::StoreError;

/// Ends the service's sessions that have the pool's row, or rows of ports, and have waited for their replica for at least five
/// seconds, as far as this role may; returns how many those were. A replica that lives goes on at once, and no statement of ours that
/// is run with such rows takes as long before it sends. A pooler may add to the name of a session.
///
/// # Errors
/// [`StoreError`].
pub async fn end(conn: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"
        SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) AS "ended!" FROM pg_stat_activity activity
        JOIN pg_roles theirs ON theirs.oid = usesysid JOIN pg_roles ours ON ours.rolname = current_user
        WHERE datname = current_database() AND starts_with(application_name, $1)
            AND pg_has_role(usesysid, 'USAGE') AND (ours.rolsuper OR NOT theirs.rolsuper)
            AND state <> 'idle' AND wait_event IN ('ClientRead', 'ClientWrite')
            AND state_change < clock_timestamp() - interval '5 seconds'
            AND EXISTS (
                SELECT FROM pg_locks held WHERE held.pid = activity.pid
                    AND held.relation IN ('pools'::regclass, 'port_allocations'::regclass)
                    AND held.mode IN ('RowShareLock', 'RowExclusiveLock')
            )
        "#,
        super::APPLICATION_NAME
    )
    .fetch_one(conn)
    .await?)
}

/// The process of Postgres at the other end of a connection.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn read_pid(conn: &mut PgConnection) -> Result<i32, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT pg_backend_pid() AS "pid!""#).fetch_one(conn).await?)
}

/// Whether a process of Postgres works, or has worked within five seconds, and does not wait for its replica.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn is_heard(conn: &mut PgConnection, pid: i32) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"
        SELECT EXISTS (
            SELECT FROM pg_stat_activity WHERE pid = $1
                AND (wait_event = 'ClientRead' AND state_change < clock_timestamp() - interval '5 seconds') IS NOT TRUE
        ) AS "is_heard!"
        "#,
        pid
    )
    .fetch_one(conn)
    .await?)
}
