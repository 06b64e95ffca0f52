//! The requests of `ServerInventory`.

use std::collections::BTreeSet;

use super::{
    FieldViolation, Fields,
    fields::{
        cpu_millis, enumeration, etag, handle, labels, megabytes, percentages, port, resources, short_text,
        source, told,
    },
    fleet::OVERCOMMIT,
};
use crate::{
    domain::{
        PortRange, ResourceRequest, Resources, ServerHandle, ServerStatus,
        ids::check_name,
        inventory::{ServerPatch, ServerSpec, SyncRequest},
        resources::Resource,
        server::{Observation, Observer},
    },
    proto::v1,
};

/// The most excluded ranges of a server.
const MAX_EXCLUDED: usize = 1024;
/// The most ports of a usage report: all that there are.
const MAX_LISTENING: usize = 65_535;
/// The most servers of a sync.
const MAX_SYNC: usize = 10_000;

fn address(fields: &mut Fields, field: &str, address: &str) {
    // An IP address, or a DNS name as RFC 1123 has it.
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let dns_name = |name: &str| name.len() <= 253 && name.split('.').all(label);
    let all_numeric = |name: &str| name.split('.').all(|part| part.chars().all(|c| c.is_ascii_digit()));
    let valid = address.parse::<std::net::IpAddr>().is_ok() || (dns_name(address) && !all_numeric(address));
    if !valid {
        fields.refuse(field, "must be an IP address or a DNS name of at most 253 characters");
    }
}

fn external_id(fields: &mut Fields, field: &str, id: String) -> Option<String> {
    short_text(fields, field, &id);
    (!id.is_empty()).then_some(id)
}

fn port_range(fields: &mut Fields, field: &str, range: v1::PortRange) -> Option<PortRange> {
    let start = port(fields, format!("{field}.start"), range.start);
    let end = port(fields, format!("{field}.end"), range.end);
    let range = PortRange { start: start?, end: end? };
    if range.start > range.end {
        fields.refuse(field, "must not end before it starts");
        return None;
    }
    Some(range)
}

fn excluded_ports(fields: &mut Fields, field: &str, ranges: Vec<v1::PortRange>) -> Vec<PortRange> {
    if ranges.len() > MAX_EXCLUDED {
        fields.refuse(field, format!("must be at most {MAX_EXCLUDED} ranges"));
        return Vec::new();
    }
    let ranges = ranges.into_iter().enumerate();
    ranges.filter_map(|(i, range)| port_range(fields, &format!("{field}[{i}]"), range)).collect()
}

fn status(fields: &mut Fields, field: &str, value: i32) -> Option<ServerStatus> {
    Some(match enumeration(fields, field, value)? {
        v1::ServerStatus::Unspecified => return None,
        v1::ServerStatus::InUse => {
            fields.refuse(field, "IN_USE follows from the placements and cannot be set; set READY");
            return None;
        }
        v1::ServerStatus::Discovered => ServerStatus::Discovered,
        v1::ServerStatus::Provisioning => ServerStatus::Provisioning,
        v1::ServerStatus::Ready => ServerStatus::Ready,
        v1::ServerStatus::Maintenance => ServerStatus::Maintenance,
        v1::ServerStatus::Error => ServerStatus::Error,
        v1::ServerStatus::Unreachable => ServerStatus::Unreachable,
        v1::ServerStatus::Missing => ServerStatus::Missing,
        v1::ServerStatus::Decommissioned => ServerStatus::Decommissioned,
    })
}

/// A status to filter by, as the table has it; none where it is unspecified.
pub fn status_filter(fields: &mut Fields, value: i32) -> Option<&'static str> {
    Some(match enumeration(fields, "status", value)? {
        v1::ServerStatus::Unspecified => return None,
        v1::ServerStatus::Discovered => "discovered",
        v1::ServerStatus::Provisioning => "provisioning",
        v1::ServerStatus::Ready => "ready",
        v1::ServerStatus::InUse => "in_use",
        v1::ServerStatus::Maintenance => "maintenance",
        v1::ServerStatus::Error => "error",
        v1::ServerStatus::Unreachable => "unreachable",
        v1::ServerStatus::Missing => "missing",
        v1::ServerStatus::Decommissioned => "decommissioned",
    })
}

/// A server that is registered or listed.
fn server(fields: &mut Fields, path: &str, server: v1::Server) -> Option<ServerSpec> {
    let at = |field: &str| format!("{path}.{field}");
    let handle = handle(fields, &at("handle"), &server.handle);
    address(fields, &at("address"), &server.address);
    if server.capacity.is_none() {
        fields.refuse(at("capacity"), "must be set");
    }
    source(fields, &at("source"), &server.source);
    let external_id = external_id(fields, &at("external_id"), server.external_id);
    if external_id.is_some() && server.source.is_empty() && path == "server" {
        fields.refuse(at("external_id"), "must come with the `source` whose name for the server it is");
    }
    let spec = ServerSpec {
        handle: handle.clone().unwrap_or_else(placeholder),
        address: server.address,
        status: status(fields, &at("status"), server.status),
        managed: server.managed,
        labels: labels(fields, &at("labels"), server.labels),
        capacity: resources(fields, &at("capacity"), server.capacity).or(Resources::ZERO),
        headroom: resources(fields, &at("headroom"), server.headroom),
        overcommit_percent: percentages(
            fields,
            &at("overcommit_percent"),
            server.overcommit_percent,
            OVERCOMMIT,
        ),
        port_range: match server.port_range {
            Some(range) => port_range(fields, &at("port_range"), range).unwrap_or(PortRange::DEFAULT),
            None => PortRange::DEFAULT,
        },
        excluded_ports: excluded_ports(fields, &at("excluded_ports"), server.excluded_ports),
        source: server.source,
        external_id,
        etag: etag(server.etag),
        seed: server
            .provider_usage
            .and_then(|usage| observation(fields, &at("provider_usage"), usage, Observer::Provider)),
    };
    handle.map(|_| spec)
}

/// Stands in for a handle that is malformed, so that the other fields are checked all the same; never leaves this file.
fn placeholder() -> ServerHandle {
    ServerHandle::parse("x").unwrap_or_else(|_| unreachable!("`x` is a name"))
}

/// A server to register, and what must still stand.
///
/// # Errors
/// Every bad field.
pub fn register(
    request: v1::RegisterServerRequest,
) -> Result<(ServerSpec, Option<String>), Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let Some(proto) = request.server else {
        fields.refuse("server", "must be set");
        return fields.finish(None);
    };
    let etag = etag(proto.etag.clone());
    if proto.provider_usage.is_some() {
        fields.refuse("server.provider_usage", "is taken by SyncServers alone; hosts report by ReportUsage");
    }
    let spec = server(&mut fields, "server", proto);
    fields.finish(spec.map(|spec| (spec, etag)))
}

/// The changes of an update: which server, what, and what must still stand.
///
/// # Errors
/// Every bad field.
pub fn update(
    request: v1::UpdateServerRequest,
) -> Result<(ServerHandle, ServerPatch, Option<String>), Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let proto = request.server.unwrap_or_default();
    let handle = handle(&mut fields, "server.handle", &proto.handle);
    let paths: BTreeSet<String> = request.update_mask.unwrap_or_default().paths.into_iter().collect();
    if paths.is_empty() {
        fields.refuse("update_mask", "must name at least one field");
    }
    let mut patch = ServerPatch::default();
    for path in &paths {
        patch_field(&mut fields, &mut patch, path, &proto);
    }
    let etag = etag(proto.etag);
    fields.finish(handle.map(|handle| (handle, patch, etag)))
}

fn patch_field(fields: &mut Fields, patch: &mut ServerPatch, field: &str, given: &v1::Server) {
    let zero = ResourceRequest { cpu_millis: Some(0), ram_mb: Some(0), disk_mb: Some(0) };
    let whole = |amounts: ResourceRequest| ResourceRequest {
        cpu_millis: amounts.cpu_millis.or(zero.cpu_millis),
        ram_mb: amounts.ram_mb.or(zero.ram_mb),
        disk_mb: amounts.disk_mb.or(zero.disk_mb),
    };
    match field {
        "address" => {
            address(fields, "server.address", &given.address);
            patch.address = Some(given.address.clone());
        }
        "status" => {
            patch.status = status(fields, "server.status", given.status);
            if given.status == 0 {
                fields.refuse("server.status", "must be set where the mask names it");
            }
        }
        "managed" => patch.managed = Some(given.managed.unwrap_or(true)),
        "labels" => patch.labels = Some(labels(fields, "server.labels", given.labels.clone())),
        "capacity" => patch.capacity = whole(resources(fields, "server.capacity", given.capacity)),
        "headroom" => {
            let headroom = resources(fields, "server.headroom", given.headroom);
            patch.headroom.extend([
                (Resource::Cpu, headroom.cpu_millis),
                (Resource::Ram, headroom.ram_mb),
                (Resource::Disk, headroom.disk_mb),
            ]);
        }
        "overcommit_percent" => {
            let percent =
                percentages(fields, "server.overcommit_percent", given.overcommit_percent, OVERCOMMIT);
            patch.overcommit_percent.extend(Resource::ALL.map(|resource| (resource, percent.get(resource))));
        }
        "port_range" => {
            patch.port_range = Some(match given.port_range {
                Some(range) => port_range(fields, "server.port_range", range).unwrap_or(PortRange::DEFAULT),
                None => PortRange::DEFAULT,
            });
        }
        "excluded_ports" => {
            patch.excluded_ports =
                Some(excluded_ports(fields, "server.excluded_ports", given.excluded_ports.clone()));
        }
        "source" => {
            source(fields, "server.source", &given.source);
            patch.source = Some(given.source.clone());
        }
        "external_id" => {
            patch.external_id = Some(external_id(fields, "server.external_id", given.external_id.clone()));
        }
        other => match other.split_once('.') {
            Some(("capacity", amount)) => {
                patch_amount(fields, &mut patch.capacity, "capacity", amount, given.capacity);
            }
            Some(("headroom", amount)) => {
                let mut headroom = ResourceRequest::default();
                if let Some(resource) =
                    patch_amount(fields, &mut headroom, "headroom", amount, given.headroom)
                {
                    // Named and not set: the fleet's default.
                    let set = given.headroom.is_some_and(|given| match resource {
                        Resource::Cpu => given.cpu_millis.is_some(),
                        Resource::Ram => given.ram_mb.is_some(),
                        Resource::Disk => given.disk_mb.is_some(),
                    });
                    patch.headroom.push((resource, headroom.get_mut(resource).filter(|_| set)));
                }
            }
            Some(("overcommit_percent", figure)) => {
                let Some(resource) = Resource::ALL.into_iter().find(|resource| resource.name() == figure)
                else {
                    let problem =
                        format!("`overcommit_percent.{}` is not a field that can be changed", told(figure));
                    fields.refuse("update_mask", problem);
                    return;
                };
                let percent =
                    percentages(fields, "server.overcommit_percent", given.overcommit_percent, OVERCOMMIT);
                patch.overcommit_percent.push((resource, percent.get(resource)));
            }
            _ => {
                fields.refuse("update_mask", format!("`{}` is not a field that can be changed", told(other)));
            }
        },
    }
}

fn patch_amount(
    fields: &mut Fields,
    patch: &mut ResourceRequest,
    field: &str,
    amount: &str,
    given: Option<v1::Resources>,
) -> Option<Resource> {
    let given = given.unwrap_or_default();
    let at = format!("server.{field}");
    match amount {
        "cpu_millis" => {
            patch.cpu_millis = cpu_millis(fields, &at, given.cpu_millis).or(Some(0));
            Some(Resource::Cpu)
        }
        "ram_mb" => {
            patch.ram_mb = megabytes(fields, &format!("{at}.ram_mb"), given.ram_mb).or(Some(0));
            Some(Resource::Ram)
        }
        "disk_mb" => {
            patch.disk_mb = megabytes(fields, &format!("{at}.disk_mb"), given.disk_mb).or(Some(0));
            Some(Resource::Disk)
        }
        _ => {
            fields.refuse(
                "update_mask",
                format!("`{field}.{}` is not a field that can be changed", told(amount)),
            );
            None
        }
    }
}

/// A usage report.
///
/// # Errors
/// Every bad field.
pub fn usage(request: v1::ReportUsageRequest) -> Result<(ServerHandle, Observation), Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let handle = handle(&mut fields, "handle", &request.handle);
    let Some(usage) = request.usage else {
        fields.refuse("usage", "must be set");
        return fields.finish(None);
    };
    let observation = observation(&mut fields, "usage", usage, Observer::Host);
    let report = handle.zip(observation);
    fields.finish(report)
}

/// What was seen of a server.
fn observation(
    fields: &mut Fields,
    field: &str,
    usage: v1::Usage,
    observer: Observer,
) -> Option<Observation> {
    if usage.listening_ports.len() > MAX_LISTENING {
        fields.refuse(format!("{field}.listening_ports"), format!("must be at most {MAX_LISTENING}"));
        return None;
    }
    let mut ports = BTreeSet::new();
    for (index, number) in usage.listening_ports.into_iter().enumerate() {
        ports.extend(port(fields, format!("{field}.listening_ports[{index}]"), number));
    }
    Some(Observation {
        observer,
        cpu_millis: cpu_millis(fields, field, usage.cpu_millis),
        ram_mb: megabytes(fields, &format!("{field}.ram_mb"), usage.ram_mb),
        disk_mb: megabytes(fields, &format!("{field}.disk_mb"), usage.disk_mb),
        listening_ports: ports.into_iter().collect(),
        // Set by the database's clock when it is committed.
        observe_time: time::OffsetDateTime::UNIX_EPOCH,
    })
}

/// A source's list.
///
/// # Errors
/// Every bad field.
pub fn sync(request: v1::SyncServersRequest) -> Result<SyncRequest, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    if let Err(error) = check_name(&request.source, 63, "._-") {
        fields.refuse("source", error);
    }
    if request.servers.len() > MAX_SYNC {
        fields.refuse("servers", format!("must be at most {MAX_SYNC}"));
        return fields.finish(None);
    }
    let mut servers = Vec::with_capacity(request.servers.len());
    let mut handles = BTreeSet::new();
    let mut external_ids = BTreeSet::new();
    for (index, proto) in request.servers.into_iter().enumerate() {
        let path = format!("servers[{index}]");
        if !proto.source.is_empty() && proto.source != request.source {
            fields.refuse(format!("{path}.source"), "must be empty or the request's own `source`");
        }
        let Some(mut spec) = server(&mut fields, &path, proto) else { continue };
        if !handles.insert(spec.handle.clone()) {
            fields.refuse(format!("{path}.handle"), "is listed already");
        }
        if spec.external_id.as_ref().is_some_and(|id| !external_ids.insert(id.clone())) {
            fields.refuse(format!("{path}.external_id"), "is listed already");
        }
        spec.source.clone_from(&request.source);
        servers.push(spec);
    }
    fields.finish(Some(SyncRequest {
        source: request.source,
        servers,
        allow_mass_missing: request.allow_mass_missing,
    }))
}
