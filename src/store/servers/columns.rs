//! What operators and sources set on servers, for a statement over many of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::status_to_column;
use crate::domain::{PortRange, Server};

/// What operators and sources set on a server, by the names of the columns.
#[derive(Serialize)]
pub(super) struct Columns<'a> {
    handle: &'a str,
    address: &'a str,
    status: &'static str,
    status_before_missing: Option<&'static str>,
    managed: bool,
    labels: &'a BTreeMap<String, String>,
    capacity_cpu_millis: i64,
    capacity_ram_mb: i64,
    capacity_disk_mb: i64,
    headroom_cpu_millis: Option<i64>,
    headroom_ram_mb: Option<i64>,
    headroom_disk_mb: Option<i64>,
    port_range_start: u16,
    port_range_end: u16,
    /// As Postgres writes ranges, both ends inside.
    excluded_ports: Vec<String>,
    source: &'a str,
    external_id: Option<&'a str>,
    overcommit_cpu_percent: Option<i64>,
    overcommit_ram_percent: Option<i64>,
    overcommit_disk_percent: Option<i64>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(server: &'a Server) -> Self {
        let range = |range: &PortRange| format!("[{},{}]", range.start, range.end);
        Self {
            handle: server.handle.as_str(),
            address: &server.address,
            status: status_to_column(server.status),
            status_before_missing: server.status_before_missing.map(status_to_column),
            managed: server.managed,
            labels: &server.labels,
            capacity_cpu_millis: server.capacity.cpu_millis,
            capacity_ram_mb: server.capacity.ram_mb,
            capacity_disk_mb: server.capacity.disk_mb,
            headroom_cpu_millis: server.headroom.cpu_millis,
            headroom_ram_mb: server.headroom.ram_mb,
            headroom_disk_mb: server.headroom.disk_mb,
            port_range_start: server.port_range.start.get(),
            port_range_end: server.port_range.end.get(),
            excluded_ports: server.excluded_ports.iter().map(range).collect(),
            source: &server.source,
            external_id: server.external_id.as_deref(),
            overcommit_cpu_percent: server.overcommit_percent.cpu,
            overcommit_ram_percent: server.overcommit_percent.ram,
            overcommit_disk_percent: server.overcommit_percent.disk,
        }
    }
}
