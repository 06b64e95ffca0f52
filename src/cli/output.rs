//! What commands print on standard output: tables for people, JSON for programs. All talk goes to standard error.
//!
//! Tables have no borders, wrap only on a terminal that is too narrow, and name units in their headings.

use std::io::{self, Write as _};

use anyhow::Context as _;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use pbjson_types::Timestamp;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{client::OutputFormat, error::CliError};
use crate::api::is_hidden;
use crate::proto::v1::{
    Allocation, FleetPolicy, FreeResources, Percentages, Protocol, Resources, Server, ServerStatus,
};

/// Prints an answer: its text, or the message itself as JSON.
///
/// # Errors
/// Standard output cannot be written.
pub fn print<M: Serialize>(
    output: OutputFormat,
    message: &M,
    text: impl FnOnce(&M) -> String,
) -> Result<(), CliError> {
    match output {
        OutputFormat::Text => print_text(&text(message)),
        OutputFormat::Json => {
            print_text(&serde_json::to_string_pretty(message).context("writing the answer as JSON")?)
        }
    }
}

/// Prints an answer of several as one line, of text or of JSON.
///
/// # Errors
/// Standard output cannot be written.
pub fn print_line<M: Serialize>(
    output: OutputFormat,
    message: &M,
    text: impl FnOnce(&M) -> String,
) -> Result<(), CliError> {
    match output {
        OutputFormat::Text => print_text(&text(message)),
        OutputFormat::Json => {
            print_text(&serde_json::to_string(message).context("writing the answer as JSON")?)
        }
    }
}

/// Prints text that ends its last line.
///
/// # Errors
/// Standard output cannot be written.
pub fn print_text(text: &str) -> Result<(), CliError> {
    // Not `println!`, which panics when the reader has gone.
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.trim_end_matches('\n').as_bytes())?;
    stdout.write_all(b"\n")?;
    Ok(stdout.flush()?)
}

/// Says something beside the answer, on standard error.
pub fn note(text: &str) {
    tell(&format!("note: {text}"));
}

/// Writes to standard error, as far as anyone reads it: not `eprintln!`, which panics when no one does.
pub fn tell(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(shown(text.trim_end_matches('\n')).as_bytes());
    let _ = stderr.write_all(b"\n");
}

/// A text from elsewhere as it may be written to a terminal: one could hold what moves the cursor, or turns the text around.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Lays out rows under headings; a heading that starts with `>` aligns its column to the right.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // A terminal that does not know how wide it is, as one of a container may not, is not one without room.
    if table.width() == Some(0) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(headings.map(|heading| heading.trim_start_matches('>')));
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| shown(&cell))));
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        if heading.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A table of ports.
pub fn allocations_table(allocations: &[Allocation]) -> String {
    table(
        ["PROJECT", "MODULE", "SERVER", "ADDRESS", ">PORT", "PROTOCOL", "CREATED"],
        allocations.iter().map(|allocation| {
            [
                allocation.project_id.clone(),
                allocation.module.clone(),
                allocation.server_handle.clone(),
                allocation.server_address.clone(),
                allocation.port.to_string(),
                protocol(allocation.protocol()).to_owned(),
                timestamp(allocation.create_time.as_ref()),
            ]
        }),
    )
}

/// A table of servers.
pub fn servers_table(servers: &[Server]) -> String {
    table(
        [
            "HANDLE",
            "ADDRESS",
            "STATUS",
            ">PROJECTS",
            ">RAM FREE/ALL MB",
            ">DISK FREE/ALL MB",
            ">CPU FREE/ALL m",
            "LABELS",
        ],
        servers.iter().map(|server| {
            let free = server.free.unwrap_or_default();
            let capacity = server.capacity.unwrap_or_default();
            [
                server.handle.clone(),
                server.address.clone(),
                server_state(server),
                server.placement_count.to_string(),
                format!("{}/{}", free.ram_mb, capacity.ram_mb()),
                format!("{}/{}", free.disk_mb, capacity.disk_mb()),
                format!("{}/{}", free.cpu_millis, capacity.cpu_millis()),
                labels(server),
            ]
        }),
    )
}

/// A server's status, and whether the service may place projects there.
pub fn server_state(server: &Server) -> String {
    let status = server_status(server.status());
    if server.managed() { status.to_owned() } else { format!("{status} (unmanaged)") }
}

/// Labels as they are written on the command line.
pub fn labels(server: &Server) -> String {
    let pairs: Vec<_> = server.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// Amounts of each resource, with units.
pub fn resources(amounts: &Resources) -> String {
    format!("{} MB RAM, {} MB disk, {} CPU millis", amounts.ram_mb(), amounts.disk_mb(), amounts.cpu_millis())
}

/// What is free of each resource, with units.
pub fn free_resources(free: &FreeResources) -> String {
    format!("{} MB RAM, {} MB disk, {} CPU millis", free.ram_mb, free.disk_mb, free.cpu_millis)
}

/// Figures in percent of each resource.
pub fn percentages(figures: &Percentages) -> String {
    let figures = [("RAM", figures.ram), ("disk", figures.disk), ("CPU", figures.cpu)];
    let told: Vec<_> = figures
        .iter()
        .filter_map(|(name, figure)| figure.map(|figure| format!("{figure} % {name}")))
        .collect();
    told.join(", ")
}

/// What holds for every server that does not say otherwise.
pub fn policy(policy: &FleetPolicy) -> String {
    format!(
        "default headroom: {}, and at least {}; over-commit: {}",
        resources(&policy.default_headroom.unwrap_or_default()),
        percentages(&policy.default_headroom_percent.unwrap_or_default()),
        percentages(&policy.overcommit_percent.unwrap_or_default()),
    )
}

/// A port as `8000/TCP`.
pub fn port(allocation: &Allocation) -> String {
    format!("{}/{}", allocation.port, protocol(allocation.protocol()))
}

/// A protocol's name without its type.
pub fn protocol(protocol: Protocol) -> &'static str {
    short_name(protocol.as_str_name(), "PROTOCOL_")
}

/// A status's name without its type.
pub fn server_status(status: ServerStatus) -> &'static str {
    short_name(status.as_str_name(), "SERVER_STATUS_")
}

/// An enum value's name without its type, as the contract writes it.
pub fn short_name(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// A point in time, to the second; empty where there is none.
pub fn timestamp(time: Option<&Timestamp>) -> String {
    time.and_then(|time| OffsetDateTime::from_unix_timestamp(time.seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// A count with its noun: `1 port`, `2 ports`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_trailing_blanks() {
        let rows = [["web-1".to_owned(), "8000".to_owned()], ["a".to_owned(), "80".to_owned()]];
        insta::assert_snapshot!(table(["SERVER", ">PORT"], rows), @r"
        SERVER  PORT
        web-1   8000
        a         80
        ");
    }

    #[test]
    fn times_are_utc_to_the_second() {
        assert_eq!(timestamp(Some(&Timestamp { seconds: 1_767_225_600, nanos: 5 })), "2026-01-01T00:00:00Z");
        assert_eq!(timestamp(None), "");
    }

    #[test]
    fn an_unmanaged_server_says_so() {
        let mut server =
            Server { status: ServerStatus::Ready.into(), managed: Some(true), ..Server::default() };
        assert_eq!(server_state(&server), "READY");
        server.managed = Some(false);
        assert_eq!(server_state(&server), "READY (unmanaged)");
    }
}
