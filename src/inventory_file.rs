//! The inventory file: servers written down by hand, as TOML or JSON of the same shape.
//!
//! Pure: bytes and a format in, the API's servers out. Every error names the line or the server. A field that the file's
//! readers do not know is refused, so that a misspelt one is never silently left out. A new field is a line in
//! `ServerEntry` and one in its conversion.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
    str::Utf8Error,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::proto::v1::{Percentages, PortRange, Resources, Server, ServerStatus};

const STATUS_PREFIX: &str = "SERVER_STATUS_";

/// How an inventory file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `[[servers]]` tables.
    Toml,
    /// An object with the list `servers`.
    Json,
}

impl Format {
    /// Tells the format by the file name's extension.
    ///
    /// # Errors
    /// [`InventoryFileError::UnknownFormat`] for an extension other than `toml` and `json`.
    pub fn of(path: &Path) -> Result<Self, InventoryFileError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(extension) if extension.eq_ignore_ascii_case("toml") => Ok(Self::Toml),
            Some(extension) if extension.eq_ignore_ascii_case("json") => Ok(Self::Json),
            _ => Err(InventoryFileError::UnknownFormat),
        }
    }
}

/// Why an inventory file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum InventoryFileError {
    /// The file name's extension names no known format.
    #[error("the file's name must end in .toml or .json")]
    UnknownFormat,
    /// The file is not text.
    #[error("not UTF-8: {0}")]
    NotText(#[from] Utf8Error),
    /// The TOML is malformed, or does not have the inventory's shape.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// The JSON is malformed, or does not have the inventory's shape.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A server's handle is the empty string.
    #[error("server {position}: the handle is empty")]
    EmptyHandle {
        /// The server's place in the file, from 1.
        position: usize,
    },
    /// Two servers have one handle.
    #[error("servers {first} and {second} have the same handle `{handle}`")]
    DuplicateHandle {
        /// The handle.
        handle: String,
        /// The place of the first of them in the file, from 1.
        first: usize,
        /// The place of the second.
        second: usize,
    },
}

/// Reads an inventory, in the order of the file.
///
/// # Errors
/// Malformed text, an unknown or missing field, a malformed value, an empty or a repeated handle.
pub fn parse(bytes: &[u8], format: Format) -> Result<Vec<Server>, InventoryFileError> {
    let text = str::from_utf8(bytes)?;
    let file: InventoryFile = match format {
        Format::Toml => toml::from_str(text)?,
        Format::Json => serde_json::from_str(text)?,
    };
    let mut positions = HashMap::new();
    for (position, entry) in (1..).zip(&file.servers) {
        if entry.handle.is_empty() {
            return Err(InventoryFileError::EmptyHandle { position });
        }
        if let Some(first) = positions.insert(&entry.handle, position) {
            let handle = entry.handle.clone();
            return Err(InventoryFileError::DuplicateHandle { handle, first, second: position });
        }
    }
    Ok(file.servers.into_iter().map(Server::from).collect())
}

/// Reads a status by its name without prefix, in any case, `-` for `_`: `maintenance`, `IN_USE`.
///
/// # Errors
/// A sentence that lists the names there are.
pub fn parse_status(text: &str) -> Result<ServerStatus, String> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    ServerStatus::from_str_name(&format!("{STATUS_PREFIX}{name}"))
        .filter(|status| *status != ServerStatus::Unspecified)
        .ok_or_else(|| {
            format!(
                "`{text}` is no status; there are discovered, provisioning, ready, in_use, maintenance, error, \
                 unreachable, missing and decommissioned"
            )
        })
}

/// Reads `START-END`, both ends inside, or a single port.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse_port_range(text: &str) -> Result<PortRange, String> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    port_range(parse_port(start.trim())?, parse_port(end.trim())?)
}

fn parse_port(text: &str) -> Result<u32, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(u32::from(port)),
        _ => Err(format!("`{text}` is no port: a range is written 1024-32767, with ports from 1 to 65535")),
    }
}

fn port_range(start: u32, end: u32) -> Result<PortRange, String> {
    if start == 0 || end > u32::from(u16::MAX) {
        return Err(format!("the port range {start}-{end} leaves 1 to 65535"));
    }
    if start > end {
        return Err(format!("the port range {start}-{end} ends before it starts"));
    }
    Ok(PortRange { start, end })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InventoryFile {
    servers: Vec<ServerEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerEntry {
    handle: String,
    address: String,
    #[serde(default)]
    status: StatusEntry,
    managed: Option<bool>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    capacity: ResourcesEntry,
    headroom: Option<ResourcesEntry>,
    overcommit_percent: Option<PercentagesEntry>,
    port_range: Option<RangeEntry>,
    #[serde(default)]
    excluded_ports: Vec<RangeEntry>,
    #[serde(default)]
    source: String,
    #[serde(default)]
    external_id: String,
}

impl From<ServerEntry> for Server {
    fn from(entry: ServerEntry) -> Self {
        Self {
            handle: entry.handle,
            address: entry.address,
            status: entry.status.0.into(),
            managed: entry.managed,
            labels: entry.labels,
            capacity: Some(entry.capacity.into()),
            headroom: entry.headroom.map(Resources::from),
            overcommit_percent: entry.overcommit_percent.map(Percentages::from),
            port_range: entry.port_range.map(|range| range.0),
            excluded_ports: entry.excluded_ports.into_iter().map(|range| range.0).collect(),
            source: entry.source,
            external_id: entry.external_id,
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourcesEntry {
    cpu_millis: Option<u32>,
    ram_mb: Option<u64>,
    disk_mb: Option<u64>,
}

impl From<ResourcesEntry> for Resources {
    fn from(entry: ResourcesEntry) -> Self {
        Self { cpu_millis: entry.cpu_millis, ram_mb: entry.ram_mb, disk_mb: entry.disk_mb }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PercentagesEntry {
    cpu: Option<u32>,
    ram: Option<u32>,
    disk: Option<u32>,
}

impl From<PercentagesEntry> for Percentages {
    fn from(entry: PercentagesEntry) -> Self {
        Self { cpu: entry.cpu, ram: entry.ram, disk: entry.disk }
    }
}

#[derive(Default)]
struct StatusEntry(ServerStatus);

impl<'de> Deserialize<'de> for StatusEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_status(&text).map(Self).map_err(de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeTable {
    start: u32,
    end: u32,
}

struct RangeEntry(PortRange);

impl<'de> Deserialize<'de> for RangeEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untagged enum would do the same and answer every mistake with "did not match any variant".
        deserializer.deserialize_any(RangeVisitor)
    }
}

struct RangeVisitor;

impl<'de> Visitor<'de> for RangeVisitor {
    type Value = RangeEntry;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a port range: \"1024-32767\", a single port, or a table of start and end")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RangeEntry, E> {
        parse_port_range(text).map(RangeEntry).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, port: i64) -> Result<RangeEntry, E> {
        self.visit_str(&port.to_string())
    }

    fn visit_u64<E: de::Error>(self, port: u64) -> Result<RangeEntry, E> {
        self.visit_str(&port.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RangeEntry, A::Error> {
        let table = RangeTable::deserialize(MapAccessDeserializer::new(map))?;
        port_range(table.start, table.end).map(RangeEntry).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str =
        "[[servers]]\nhandle = \"web-1\"\naddress = \"10.0.0.1\"\ncapacity = { ram_mb = 4096 }\n";

    fn parse_toml(text: &str) -> Result<Vec<Server>, String> {
        parse(text.as_bytes(), Format::Toml).map_err(|error| error.to_string())
    }

    fn parse_json(text: &str) -> Result<Vec<Server>, String> {
        parse(text.as_bytes(), Format::Json).map_err(|error| error.to_string())
    }

    #[test]
    fn toml_and_json_of_one_shape_give_the_same_servers() {
        let toml = parse_toml(
            r#"
            [[servers]]
            handle = "web-1"
            address = "10.0.0.1"
            status = "maintenance"
            managed = true
            labels = { region = "eu" }
            capacity = { ram_mb = 4096, disk_mb = 9000, cpu_millis = 2000 }
            headroom = { ram_mb = 512 }
            overcommit_percent = { cpu = 400 }
            port_range = "2000-3000"
            excluded_ports = ["2080-2090", 2100, { start = 2200, end = 2300 }]
            source = "cloud"
            external_id = "i-7"
            "#,
        )
        .unwrap();
        let json = parse_json(
            r#"{"servers": [{
                "handle": "web-1", "address": "10.0.0.1", "status": "MAINTENANCE", "managed": true,
                "labels": {"region": "eu"},
                "capacity": {"ram_mb": 4096, "disk_mb": 9000, "cpu_millis": 2000},
                "headroom": {"ram_mb": 512}, "overcommit_percent": {"cpu": 400},
                "port_range": {"start": 2000, "end": 3000},
                "excluded_ports": ["2080-2090", 2100, {"start": 2200, "end": 2300}],
                "source": "cloud", "external_id": "i-7"
            }]}"#,
        )
        .unwrap();
        assert_eq!(toml, json);
        let server = &toml[0];
        assert_eq!(server.status(), ServerStatus::Maintenance);
        assert_eq!(server.port_range, Some(PortRange { start: 2000, end: 3000 }));
        assert_eq!(server.excluded_ports[1], PortRange { start: 2100, end: 2100 });
        assert_eq!(server.headroom, Some(Resources { ram_mb: Some(512), ..Resources::default() }));
        assert_eq!(server.overcommit_percent, Some(Percentages { cpu: Some(400), ..Percentages::default() }));
    }

    #[test]
    fn what_a_file_leaves_out_is_left_to_the_service() {
        let servers = parse_toml(SERVER).unwrap();
        assert_eq!(servers[0].status(), ServerStatus::Unspecified);
        assert_eq!(servers[0].managed, None);
        assert_eq!(servers[0].port_range, None);
    }

    #[test]
    fn an_empty_list_is_written_out_not_left_out() {
        assert_eq!(parse_toml("servers = []").unwrap(), []);
        assert!(parse_toml("").unwrap_err().contains("missing field `servers`"));
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_line() {
        let error = parse_toml(&format!("{SERVER}ram = 7\n")).unwrap_err();
        assert!(error.contains("line 5") && error.contains("unknown field `ram`"), "{error}");
        let error = parse_json(r#"{"servers": [{"handle": "a", "ip": "b"}]}"#).unwrap_err();
        assert!(error.contains("line 1") && error.contains("unknown field `ip`"), "{error}");
    }

    #[test]
    fn a_bad_port_range_is_refused_with_its_line_and_the_reason() {
        for (range, reason) in [
            ("\"3000-2000\"", "ends before it starts"),
            ("\"web\"", "`web` is no port"),
            ("\"1-70000\"", "`70000` is no port"),
            ("{ start = 0, end = 5 }", "leaves 1 to 65535"),
            ("true", "expected a port range"),
        ] {
            let error = parse_toml(&format!("{SERVER}port_range = {range}\n")).unwrap_err();
            assert!(error.contains("line 5") && error.contains(reason), "{range}: {error}");
        }
    }

    #[test]
    fn a_missing_handle_and_an_unknown_status_are_refused() {
        let error = parse_toml(&SERVER.replace("handle = \"web-1\"", "")).unwrap_err();
        assert!(error.contains("line 1") && error.contains("missing field `handle`"), "{error}");
        let error = parse_toml(&SERVER.replace("web-1", "")).unwrap_err();
        assert_eq!(error, "server 1: the handle is empty");
        let error = parse_toml(&format!("{SERVER}status = \"broken\"\n")).unwrap_err();
        assert!(error.contains("line 5") && error.contains("`broken` is no status"), "{error}");
    }

    #[test]
    fn a_repeated_handle_names_both_servers() {
        let error = parse_toml(&format!("{SERVER}{SERVER}")).unwrap_err();
        assert_eq!(error, "servers 1 and 2 have the same handle `web-1`");
    }

    #[test]
    fn the_format_is_told_by_the_extension() {
        assert_eq!(Format::of(Path::new("a/servers.toml")).unwrap(), Format::Toml);
        assert_eq!(Format::of(Path::new("servers.JSON")).unwrap(), Format::Json);
        assert!(Format::of(Path::new("servers.yaml")).is_err());
    }

    #[test]
    fn the_example_parses() {
        let servers = parse_toml(include_str!("../examples/servers.toml")).unwrap();
        assert_eq!(servers.len(), 4);
    }
}
