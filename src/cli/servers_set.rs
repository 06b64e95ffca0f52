//! `servers set`: changes of single fields, written `field=value`.
//!
//! Every field becomes a path of the update mask, so that what is not named stays. The API replaces labels as a whole, so
//! a change of one label reads the server first and sends the etag that it read: a change in between is refused, not lost.
//! A new field is a line in [`parse_change`] and one in each of [`Edit`]'s matches.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use pbjson_types::FieldMask;

use super::{
    client::{ClientArgs, Session},
    error::CliError,
    output,
    request::parse_label,
    servers::server_text,
};
use crate::{
    inventory_file::{parse_port_range, parse_status},
    policy_figure::{PolicyFigure, overcommit},
    proto::v1::{GetServerRequest, PortRange, Resources, Server, ServerStatus, UpdateServerRequest},
};

const FIELDS_HELP: &str = "\
Fields:
  address=HOST
  status=ready|maintenance|discovered|provisioning|error|unreachable|missing|decommissioned
  managed=true|false
  ram_mb=N disk_mb=N cpu_millis=N                    the capacity; also written capacity.ram_mb=N
  headroom.ram_mb=N headroom.disk_mb=N headroom.cpu_millis=N
                                                     =default takes the fleet's
  overcommit.cpu=RATIO overcommit.ram=RATIO overcommit.disk=RATIO
                                                     such as 4 or 1.5; =default takes the fleet's
  labels.KEY=VALUE                                   sets one label and keeps the others
  labels.KEY-                                        removes one label
  labels=KEY=VALUE,...                               replaces all labels; labels= removes them
  port_range=START-END
  excluded_ports=START-END,...                       replaces all; excluded_ports= removes them
  source=NAME external_id=ID

Example: resource-allocator servers set web-1 status=maintenance headroom.ram_mb=512 labels.region=eu";

/// Arguments of `servers set`.
#[derive(Debug, Args)]
#[command(after_help = FIELDS_HELP)]
pub struct SetArgs {
    /// The server
    handle: String,
    /// What to change
    #[arg(value_name = "FIELD=VALUE", required = true, value_parser = parse_change)]
    changes: Vec<Edit>,
    /// Change only while the server has this etag
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

/// Changes fields of a server.
///
/// # Errors
/// Fields that are named twice, the service's refusal, or that it cannot be reached.
pub async fn set(args: SetArgs, client: &ClientArgs) -> Result<(), CliError> {
    let update_mask = update_mask(&args.changes)?;
    let session = Session::connect(client).await?;
    let mut inventory = session.inventory();
    let mut server = Server { handle: args.handle, etag: args.etag, ..Server::default() };
    if args.changes.iter().any(Edit::needs_the_labels) {
        let request = session.request(GetServerRequest { handle: server.handle.clone() });
        let current = inventory.get_server(request).await?.into_inner().server.unwrap_or_default();
        server.labels = current.labels;
        if server.etag.is_empty() {
            server.etag = current.etag;
        }
    }
    for change in args.changes {
        change.apply(&mut server);
    }
    let request = UpdateServerRequest { server: Some(server), update_mask: Some(update_mask) };
    let answer = inventory.update_server(session.request(request)).await?.into_inner();
    output::print(session.output, &answer, |answer| server_text(answer.server.as_ref()))
}

/// One change of one field.
#[derive(Debug, Clone, PartialEq)]
enum Edit {
    Address(String),
    Status(ServerStatus),
    Managed(bool),
    Capacity(Amount),
    Headroom(Amount),
    HeadroomDefault(&'static str),
    Overcommit { resource: &'static str, percent: Option<u32> },
    Label { key: String, value: Option<String> },
    Labels(BTreeMap<String, String>),
    PortRange(PortRange),
    ExcludedPorts(Vec<PortRange>),
    Source(String),
    ExternalId(String),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Amount {
    CpuMillis(u32),
    RamMb(u64),
    DiskMb(u64),
}

impl Amount {
    fn field(self) -> &'static str {
        match self {
            Self::CpuMillis(_) => "cpu_millis",
            Self::RamMb(_) => "ram_mb",
            Self::DiskMb(_) => "disk_mb",
        }
    }

    fn apply(self, resources: &mut Resources) {
        match self {
            Self::CpuMillis(amount) => resources.cpu_millis = Some(amount),
            Self::RamMb(amount) => resources.ram_mb = Some(amount),
            Self::DiskMb(amount) => resources.disk_mb = Some(amount),
        }
    }
}

impl Edit {
    /// The path in the update mask.
    fn path(&self) -> String {
        match self {
            Self::Address(_) => "address".to_owned(),
            Self::Status(_) => "status".to_owned(),
            Self::Managed(_) => "managed".to_owned(),
            Self::Capacity(amount) => format!("capacity.{}", amount.field()),
            Self::Headroom(amount) => format!("headroom.{}", amount.field()),
            Self::HeadroomDefault(field) => format!("headroom.{field}"),
            Self::Overcommit { resource, .. } => format!("overcommit_percent.{resource}"),
            Self::Label { .. } | Self::Labels(_) => "labels".to_owned(),
            Self::PortRange(_) => "port_range".to_owned(),
            Self::ExcludedPorts(_) => "excluded_ports".to_owned(),
            Self::Source(_) => "source".to_owned(),
            Self::ExternalId(_) => "external_id".to_owned(),
        }
    }

    fn needs_the_labels(&self) -> bool {
        matches!(self, Self::Label { .. })
    }

    fn apply(self, server: &mut Server) {
        match self {
            Self::Address(address) => server.address = address,
            Self::Status(status) => server.status = status.into(),
            Self::Managed(managed) => server.managed = Some(managed),
            Self::Capacity(amount) => amount.apply(server.capacity.get_or_insert_default()),
            Self::Headroom(amount) => amount.apply(server.headroom.get_or_insert_default()),
            // Named by the mask and not set: the fleet's default.
            Self::HeadroomDefault(_) => {}
            Self::Overcommit { resource, percent } => {
                let figures = server.overcommit_percent.get_or_insert_default();
                match resource {
                    "cpu" => figures.cpu = percent,
                    "ram" => figures.ram = percent,
                    _ => figures.disk = percent,
                }
            }
            Self::Label { key, value: Some(value) } => drop(server.labels.insert(key, value)),
            Self::Label { key, value: None } => drop(server.labels.remove(&key)),
            Self::Labels(labels) => server.labels = labels,
            Self::PortRange(range) => server.port_range = Some(range),
            Self::ExcludedPorts(ranges) => server.excluded_ports = ranges,
            Self::Source(source) => server.source = source,
            Self::ExternalId(external_id) => server.external_id = external_id,
        }
    }
}

/// The mask of all changes, each path once.
fn update_mask(changes: &[Edit]) -> Result<FieldMask, CliError> {
    let mut named = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for change in changes {
        let path = change.path();
        let name = match change {
            Edit::Label { key, .. } => format!("labels.{key}"),
            _ => path.clone(),
        };
        if !named.insert(name.clone()) {
            return Err(CliError::Usage(format!("{name} is changed twice")));
        }
        paths.insert(path);
    }
    if named.contains("labels") && changes.iter().any(Edit::needs_the_labels) {
        return Err(CliError::Usage(
            "labels= replaces all labels: it cannot stand beside labels.KEY".to_owned(),
        ));
    }
    Ok(FieldMask { paths: paths.into_iter().collect() })
}

/// Reads `field=value`, or `labels.KEY-`.
fn parse_change(text: &str) -> Result<Edit, String> {
    let Some((field, value)) = text.split_once('=') else {
        return match text.strip_prefix("labels.").and_then(|label| label.strip_suffix('-')) {
            Some(key) if !key.is_empty() => Ok(Edit::Label { key: key.to_owned(), value: None }),
            _ => Err("a change is written field=value".to_owned()),
        };
    };
    match field {
        "address" => Ok(Edit::Address(value.to_owned())),
        "status" => parse_status(value).map(Edit::Status),
        "managed" => {
            value.parse().map(Edit::Managed).map_err(|_| format!("`{value}` is neither true nor false"))
        }
        "labels" => list(value, parse_label).map(|labels| Edit::Labels(labels.into_iter().collect())),
        "port_range" => parse_port_range(value).map(Edit::PortRange),
        "excluded_ports" => list(value, parse_port_range).map(Edit::ExcludedPorts),
        "source" => Ok(Edit::Source(value.to_owned())),
        "external_id" => Ok(Edit::ExternalId(value.to_owned())),
        _ => match field.split_once('.') {
            Some(("labels", key)) if !key.is_empty() => {
                Ok(Edit::Label { key: key.to_owned(), value: Some(value.to_owned()) })
            }
            Some(("headroom", name)) if value == "default" => {
                let amount = parse_amount(field, name, "0")?;
                Ok(Edit::HeadroomDefault(amount.field()))
            }
            Some(("headroom", name)) => parse_amount(field, name, value).map(Edit::Headroom),
            Some(("overcommit", name)) => parse_overcommit(field, name, value),
            Some(("capacity", name)) => parse_amount(field, name, value).map(Edit::Capacity),
            Some(_) => Err(no_such_field(field)),
            None => parse_amount(field, field, value).map(Edit::Capacity),
        },
    }
}

fn parse_amount(field: &str, name: &str, value: &str) -> Result<Amount, String> {
    let amount = match name {
        "cpu_millis" => value.parse().ok().map(Amount::CpuMillis),
        "ram_mb" => value.parse().ok().map(Amount::RamMb),
        "disk_mb" => value.parse().ok().map(Amount::DiskMb),
        _ => return Err(no_such_field(field)),
    };
    amount.ok_or_else(|| format!("`{value}` is no whole number that {field} can be"))
}

fn parse_overcommit(field: &str, name: &str, value: &str) -> Result<Edit, String> {
    let Some(resource) = ["cpu", "ram", "disk"].into_iter().find(|resource| *resource == name) else {
        return Err(no_such_field(field));
    };
    let percent = match value {
        "default" => None,
        ratio => match overcommit(&format!("{name}={ratio}"))? {
            PolicyFigure::OvercommitPercent(_, percent) => u32::try_from(percent).ok(),
            _ => None,
        },
    };
    Ok(Edit::Overcommit { resource, percent })
}

fn no_such_field(field: &str) -> String {
    format!("there is no field `{field}` to set; `servers set --help` lists them")
}

/// Reads a list that commas separate; an empty text is an empty list.
fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').filter(|item| !item.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::Percentages;

    fn edits(texts: &[&str]) -> Vec<Edit> {
        texts.iter().map(|text| parse_change(text).unwrap()).collect()
    }

    fn mask(texts: &[&str]) -> Result<Vec<String>, String> {
        update_mask(&edits(texts)).map(|mask| mask.paths).map_err(|error| error.to_string())
    }

    #[test]
    fn every_field_becomes_a_path_and_a_value() {
        let texts = [
            "address=10.0.0.9",
            "status=maintenance",
            "managed=false",
            "ram_mb=4096",
            "capacity.disk_mb=9000",
            "headroom.cpu_millis=250",
            "headroom.ram_mb=default",
            "overcommit.cpu=1.5",
            "overcommit.ram=default",
            "labels=region=eu,disk=ssd",
            "port_range=2000-3000",
            "excluded_ports=2080-2090,2100",
            "source=cloud",
            "external_id=i-7",
        ];
        let paths = [
            "address",
            "capacity.disk_mb",
            "capacity.ram_mb",
            "excluded_ports",
            "external_id",
            "headroom.cpu_millis",
            "headroom.ram_mb",
            "labels",
            "managed",
            "overcommit_percent.cpu",
            "overcommit_percent.ram",
            "port_range",
            "source",
            "status",
        ];
        assert_eq!(mask(&texts).unwrap(), paths);
        let mut server = Server::default();
        for edit in edits(&texts) {
            edit.apply(&mut server);
        }
        let labels =
            [("disk", "ssd"), ("region", "eu")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let expected = Server {
            address: "10.0.0.9".to_owned(),
            status: ServerStatus::Maintenance.into(),
            managed: Some(false),
            labels: labels.into(),
            capacity: Some(Resources { ram_mb: Some(4096), disk_mb: Some(9000), cpu_millis: None }),
            headroom: Some(Resources { cpu_millis: Some(250), ..Resources::default() }),
            overcommit_percent: Some(Percentages { cpu: Some(150), ..Percentages::default() }),
            port_range: Some(PortRange { start: 2000, end: 3000 }),
            excluded_ports: vec![PortRange { start: 2080, end: 2090 }, PortRange { start: 2100, end: 2100 }],
            source: "cloud".to_owned(),
            external_id: "i-7".to_owned(),
            ..Server::default()
        };
        assert_eq!(server, expected);
    }

    #[test]
    fn one_label_is_set_or_removed_and_the_others_stay() {
        let mut server = Server { labels: [("a".to_owned(), "1".to_owned())].into(), ..Server::default() };
        server.labels.insert("b".to_owned(), "2".to_owned());
        let texts = ["labels.a-", "labels.example.com/tier=gold"];
        assert_eq!(mask(&texts).unwrap(), ["labels"]);
        for edit in edits(&texts) {
            edit.apply(&mut server);
        }
        let expected = [("b", "2"), ("example.com/tier", "gold")];
        assert_eq!(server.labels, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn a_field_changes_once() {
        assert_eq!(mask(&["ram_mb=1", "capacity.ram_mb=2"]).unwrap_err(), "capacity.ram_mb is changed twice");
        assert_eq!(mask(&["labels.a=1", "labels.a-"]).unwrap_err(), "labels.a is changed twice");
        assert!(mask(&["labels=a=1", "labels.b=2"]).unwrap_err().contains("cannot stand beside"));
    }

    #[test]
    fn a_malformed_change_says_what_is_wrong() {
        for (text, reason) in [
            ("status", "written field=value"),
            ("labels.-", "written field=value"),
            ("labels.=x", "no field `labels.`"),
            ("handle=web-2", "no field `handle`"),
            ("headroom.gpu=1", "no field `headroom.gpu`"),
            ("overcommit.gpu=1", "no field `overcommit.gpu`"),
            ("overcommit.cpu=0.5", "`0.5` is no ratio"),
            ("ram_mb=-1", "`-1` is no whole number that ram_mb can be"),
            ("cpu_millis=4294967296", "no whole number"),
            ("managed=yes", "neither true nor false"),
            ("status=broken", "`broken` is no status"),
            ("excluded_ports=9-1", "ends before it starts"),
            ("labels=a", "written key=value"),
        ] {
            let error = parse_change(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
