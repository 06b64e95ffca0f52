//! The columns `observed_*` of the table `servers`: what hosts and sources report.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{StoreError, placements::check_count};
use crate::domain::{
    ServerHandle,
    server::{Observation, Observer},
};

/// Writes usage reports, the last of each server.
///
/// # Errors
/// [`StoreError`].
pub async fn update(
    conn: &mut PgConnection,
    reports: &BTreeMap<ServerHandle, Observation>,
) -> Result<(), StoreError> {
    let handles: Vec<String> = reports.keys().map(ToString::to_string).collect();
    let cpu_millis: Vec<Option<i64>> = reports.values().map(|report| report.cpu_millis).collect();
    let ram_mb: Vec<Option<i64>> = reports.values().map(|report| report.ram_mb).collect();
    let disk_mb: Vec<Option<i64>> = reports.values().map(|report| report.disk_mb).collect();
    // Arrays of arrays must be rectangular, so each server's ports go as the text of an array.
    let ports: Vec<String> = reports
        .values()
        .map(|report| {
            let ports: Vec<String> = report.listening_ports.iter().map(ToString::to_string).collect();
            format!("{{{}}}", ports.join(","))
        })
        .collect();
    let times: Vec<OffsetDateTime> = reports.values().map(|report| report.observe_time).collect();
    let by_host: Vec<bool> = reports.values().map(|report| report.observer == Observer::Host).collect();
    let updated = sqlx::query!(
        r#"
        UPDATE servers s SET observed_cpu_millis = n.cpu_millis, observed_ram_mb = n.ram_mb, observed_disk_mb = n.disk_mb,
            observed_ports = n.ports::integer[], observe_time = n.observe_time,
            observed_by_host = n.by_host, usage_stale = false
        FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::timestamptz[], $7::boolean[])
            AS n (handle, cpu_millis, ram_mb, disk_mb, ports, observe_time, by_host)
        WHERE s.handle = n.handle
        "#,
        &handles,
        &cpu_millis as &[Option<i64>],
        &ram_mb as &[Option<i64>],
        &disk_mb as &[Option<i64>],
        &ports,
        &times,
        &by_host
    )
    .execute(conn)
    .await?
    .rows_affected();
    check_count("servers", updated, reports.len())
}

/// Notes that the log has told of a server's report being too old.
///
/// # Errors
/// [`StoreError`].
pub async fn update_stale(conn: &mut PgConnection, handles: &[String]) -> Result<(), StoreError> {
    sqlx::query!("UPDATE servers SET usage_stale = true WHERE handle = ANY($1)", handles)
        .execute(conn)
        .await?;
    Ok(())
}
