//! Requests, from the wire to the domain. Every bad field of a request is named at once, by its path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use crate::{
    domain::{
        ModuleName, Port, PortRange, ProjectId, Protocol, ResourceRequest, Resources, ServerHandle, ServerStatus,
        ids::check_name,
        inventory::{ServerPatch, ServerSpec, SyncRequest},
        ports::DEFAULT_START_PORT,
        request::{EnsureRequest, FindRequest, ModuleRequest, ReleaseRequest, Strategy},
        resources::{MAX_CPU_MILLIS, MAX_MB},
        server::Observation,
    },
    proto::v1,
};

/// The most modules of a request.
const MAX_MODULES: usize = 64;
/// The most labels of a server or a selector.
const MAX_LABELS: usize = 64;
/// The most excluded ranges of a server.
const MAX_EXCLUDED: usize = 1024;
/// The most ports of a usage report: all that there are.
const MAX_LISTENING: usize = 65_535;
/// The most servers of a sync.
const MAX_SYNC: usize = 10_000;
/// The most names of bad fields that are told of one request.
const MAX_VIOLATIONS: usize = 50;

/// A field that is malformed, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path, such as `modules[3].port`.
    pub field: String,
    /// What it must be.
    pub description: String,
}

/// What is wrong with a request.
#[derive(Debug, Default)]
pub struct Fields {
    violations: Vec<FieldViolation>,
}

impl Fields {
    /// Notes a bad field.
    pub fn refuse(&mut self, field: impl Into<String>, description: impl Display) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(FieldViolation { field: field.into(), description: description.to_string() });
        }
    }

    /// The value, or `None` with the field noted as bad.
    pub fn take<T, E: Display>(&mut self, field: impl Into<String>, value: Result<T, E>) -> Option<T> {
        value.map_err(|error| self.refuse(field, error)).ok()
    }

    /// The request, if nothing is wrong with it.
    ///
    /// # Errors
    /// Every bad field.
    pub fn finish<T>(self, request: Option<T>) -> Result<T, Vec<FieldViolation>> {
        match request {
            Some(request) if self.violations.is_empty() => Ok(request),
            _ => Err(self.violations),
        }
    }
}

/// A project's id.
pub fn project_id(fields: &mut Fields, field: &str, id: &str) -> Option<ProjectId> {
    fields.take(field, ProjectId::parse(id))
}

/// A server's handle.
pub fn handle(fields: &mut Fields, field: &str, handle: &str) -> Option<ServerHandle> {
    fields.take(field, ServerHandle::parse(handle))
}

fn port(fields: &mut Fields, field: String, port: u32) -> Option<Port> {
    fields.take(field, Port::try_from(port))
}

/// What a caller wrote, as it is told back: without control characters, and not more of it than a reader needs.
fn told(text: &str) -> String {
    const MOST: usize = 64;
    let start: String = text.chars().take(MOST).collect();
    let rest = if text.chars().nth(MOST).is_some() { "…" } else { "" };
    format!("{}{rest}", start.escape_debug())
}

/// A value of an enum, none where it is unspecified.
fn enumeration<E: TryFrom<i32>>(fields: &mut Fields, field: impl Into<String>, value: i32) -> Option<E> {
    let known = E::try_from(value);
    if known.is_err() {
        fields.refuse(field, format!("{value} is none of its values"));
    }
    known.ok()
}

fn protocol(fields: &mut Fields, field: String, value: i32) -> Option<Protocol> {
    match enumeration(fields, field, value)? {
        v1::Protocol::Unspecified => None,
        v1::Protocol::Tcp => Some(Protocol::Tcp),
        v1::Protocol::Udp => Some(Protocol::Udp),
    }
}

fn strategy(fields: &mut Fields, value: i32, default: Strategy) -> Strategy {
    match enumeration(fields, "strategy", value) {
        Some(v1::PlacementStrategy::Spread) => Strategy::Spread,
        Some(v1::PlacementStrategy::Binpack) => Strategy::Binpack,
        Some(v1::PlacementStrategy::Unspecified) | None => default,
    }
}

/// Amounts that may each be left out.
fn resources(fields: &mut Fields, field: &str, amounts: Option<v1::Resources>) -> ResourceRequest {
    let amounts = amounts.unwrap_or_default();
    ResourceRequest {
        cpu_millis: cpu_millis(fields, field, amounts.cpu_millis),
        ram_mb: megabytes(fields, &format!("{field}.ram_mb"), amounts.ram_mb),
        disk_mb: megabytes(fields, &format!("{field}.disk_mb"), amounts.disk_mb),
    }
}

fn cpu_millis(fields: &mut Fields, field: &str, amount: Option<u32>) -> Option<i64> {
    let amount = amount?;
    if amount > MAX_CPU_MILLIS {
        fields.refuse(format!("{field}.cpu_millis"), format!("must be at most {MAX_CPU_MILLIS}"));
    }
    Some(i64::from(amount))
}

fn megabytes(fields: &mut Fields, field: &str, amount: Option<u64>) -> Option<i64> {
    let amount = amount?;
    if amount > MAX_MB {
        fields.refuse(field, format!("must be at most {MAX_MB}"));
    }
    i64::try_from(amount).ok()
}

fn start_port(fields: &mut Fields, start: Option<u32>) -> Port {
    start.and_then(|start| port(fields, "start_port".to_owned(), start)).unwrap_or(DEFAULT_START_PORT)
}

/// Labels, of a server or of a selector.
fn labels(fields: &mut Fields, field: &str, labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if labels.len() > MAX_LABELS {
        fields.refuse(field, format!("must be at most {MAX_LABELS} labels"));
    }
    for (key, value) in labels.iter().take(MAX_LABELS) {
        if let Err(error) = check_name(key, 63, "._/-") {
            fields.refuse(format!("{field}[{}]", told(key)), format!("the key {error}"));
        }
        if value.chars().count() > 255 || value.chars().any(char::is_control) {
            let problem = "the value must be at most 255 characters, none of them a control character";
            fields.refuse(format!("{field}[{}]", told(key)), problem);
        }
    }
    labels
}

/// Modules: identical duplicates collapse, contradictory ones are refused (L8).
fn modules(fields: &mut Fields, specs: Vec<v1::ModuleSpec>) -> Vec<ModuleRequest> {
    if specs.len() > MAX_MODULES {
        fields.refuse("modules", format!("must be at most {MAX_MODULES}"));
        return Vec::new();
    }
    let mut modules: Vec<ModuleRequest> = Vec::with_capacity(specs.len());
    let mut ports: BTreeMap<(Protocol, Port), usize> = BTreeMap::new();
    for (index, spec) in specs.into_iter().enumerate() {
        let path = format!("modules[{index}]");
        let name = fields.take(format!("{path}.name"), ModuleName::parse(&spec.name));
        let port = spec.port.and_then(|number| port(fields, format!("{path}.port"), number));
        let protocol = protocol(fields, format!("{path}.protocol"), spec.protocol);
        let Some(name) = name else { continue };
        let module = ModuleRequest { name, port, protocol };
        match modules.iter().find(|known| known.name == module.name) {
            Some(known) if *known == module => continue,
            Some(_) => {
                fields.refuse(path, format!("names `{}` again with another port or protocol", module.name));
                continue;
            }
            None => {}
        }
        if let Some(port) = module.port {
            let key = (module.protocol.unwrap_or(Protocol::Tcp), port);
            if let Some(first) = ports.insert(key, index) {
                fields.refuse(format!("{path}.port"), format!("is asked for by modules[{first}] already"));
            }
        }
        modules.push(module);
    }
    modules
}

/// An ensure, but for `validate_only` and `wait_for_capacity`.
pub fn ensure(request: v1::EnsureAllocationRequest, default: Strategy) -> Result<EnsureRequest, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    if let Some(wait) = &request.wait_for_capacity
        && (wait.seconds < 0 || wait.nanos < 0 || wait.nanos > 999_999_999)
    {
        fields.refuse("wait_for_capacity", "must be a duration that is not negative");
    }
    let id = project_id(&mut fields, "project_id", &request.project_id);
    let modules = modules(&mut fields, request.modules);
    let resources = resources(&mut fields, "resources", request.resources);
    let pin = request.server_handle.and_then(|pin| handle(&mut fields, "server_handle", &pin));
    let selector = labels(&mut fields, "server_selector", request.server_selector);
    let start_port = start_port(&mut fields, request.start_port);
    let strategy = strategy(&mut fields, request.strategy, default);
    let request = id.map(|project_id| EnsureRequest {
        project_id,
        modules,
        resources,
        server_handle: pin,
        selector,
        start_port,
        strategy,
    });
    fields.finish(request)
}

/// A release.
pub fn release(request: &v1::ReleaseAllocationRequest) -> Result<ReleaseRequest, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let id = project_id(&mut fields, "project_id", &request.project_id);
    if request.modules.len() > MAX_MODULES {
        fields.refuse("modules", format!("must be at most {MAX_MODULES}"));
    }
    let names = request.modules.iter().take(MAX_MODULES).enumerate();
    let modules: Vec<_> =
        names.filter_map(|(i, name)| fields.take(format!("modules[{i}]"), ModuleName::parse(name))).collect();
    let request = id.map(|project_id| ReleaseRequest { project_id, modules });
    fields.finish(request)
}

/// A search.
pub fn find(request: v1::FindServerRequest, default: Strategy) -> Result<FindRequest, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let max_candidates = match request.max_candidates {
        0 => 1,
        count @ 1..=100 => count,
        _ => {
            fields.refuse("max_candidates", "must be 1 to 100, or 0 for the default of 1");
            1
        }
    };
    let request = FindRequest {
        resources: resources(&mut fields, "resources", request.resources),
        selector: labels(&mut fields, "server_selector", request.server_selector),
        modules: modules(&mut fields, request.modules),
        start_port: start_port(&mut fields, request.start_port),
        strategy: strategy(&mut fields, request.strategy, default),
        max_candidates: usize::try_from(max_candidates).unwrap_or(1),
    };
    fields.finish(Some(request))
}

/// A page size: 0 is the default of 100, more than 1000 is 1000 (AIP-158).
pub fn page_size(fields: &mut Fields, size: i32) -> i64 {
    match size {
        ..0 => {
            fields.refuse("page_size", "must not be negative");
            0
        }
        0 => 100,
        size => i64::from(size.min(1000)),
    }
}

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

/// A source's name, or nothing for a server that was registered by hand.
pub fn source(fields: &mut Fields, field: &str, source: &str) {
    if !source.is_empty()
        && let Err(error) = check_name(source, 63, "._-")
    {
        fields.refuse(field, error);
    }
}

fn external_id(fields: &mut Fields, field: &str, id: String) -> Option<String> {
    if id.chars().count() > 255 || id.chars().any(char::is_control) {
        fields.refuse(field, "must be at most 255 characters, none of them a control character");
    }
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

/// An etag, none where it is empty.
pub fn etag(etag: String) -> Option<String> {
    (!etag.is_empty()).then_some(etag)
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
        headroom: resources(fields, &at("headroom"), server.headroom).or(Resources::ZERO),
        port_range: match server.port_range {
            Some(range) => port_range(fields, &at("port_range"), range).unwrap_or(PortRange::DEFAULT),
            None => PortRange::DEFAULT,
        },
        excluded_ports: excluded_ports(fields, &at("excluded_ports"), server.excluded_ports),
        source: server.source,
        external_id,
    };
    handle.map(|_| spec)
}

/// Stands in for a handle that is malformed, so that the other fields are checked all the same; never leaves this file.
fn placeholder() -> ServerHandle {
    ServerHandle::parse("x").unwrap_or_else(|_| unreachable!("`x` is a name"))
}

/// A server to register, and what must still stand.
pub fn register(request: v1::RegisterServerRequest) -> Result<(ServerSpec, Option<String>), Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let Some(proto) = request.server else {
        fields.refuse("server", "must be set");
        return fields.finish(None);
    };
    let etag = etag(proto.etag.clone());
    let spec = server(&mut fields, "server", proto);
    fields.finish(spec.map(|spec| (spec, etag)))
}

/// The changes of an update: which server, what, and what must still stand.
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

fn patch_field(fields: &mut Fields, patch: &mut ServerPatch, path: &str, proto: &v1::Server) {
    let zero = ResourceRequest { cpu_millis: Some(0), ram_mb: Some(0), disk_mb: Some(0) };
    let whole = |given: ResourceRequest| ResourceRequest {
        cpu_millis: given.cpu_millis.or(zero.cpu_millis),
        ram_mb: given.ram_mb.or(zero.ram_mb),
        disk_mb: given.disk_mb.or(zero.disk_mb),
    };
    match path {
        "address" => {
            address(fields, "server.address", &proto.address);
            patch.address = Some(proto.address.clone());
        }
        "status" => {
            patch.status = status(fields, "server.status", proto.status);
            if proto.status == 0 {
                fields.refuse("server.status", "must be set where the mask names it");
            }
        }
        "managed" => patch.managed = Some(proto.managed.unwrap_or(true)),
        "labels" => patch.labels = Some(labels(fields, "server.labels", proto.labels.clone())),
        "capacity" => patch.capacity = whole(resources(fields, "server.capacity", proto.capacity)),
        "headroom" => patch.headroom = whole(resources(fields, "server.headroom", proto.headroom)),
        "port_range" => {
            patch.port_range = Some(match proto.port_range {
                Some(range) => port_range(fields, "server.port_range", range).unwrap_or(PortRange::DEFAULT),
                None => PortRange::DEFAULT,
            });
        }
        "excluded_ports" => {
            patch.excluded_ports = Some(excluded_ports(fields, "server.excluded_ports", proto.excluded_ports.clone()));
        }
        "source" => {
            source(fields, "server.source", &proto.source);
            patch.source = Some(proto.source.clone());
        }
        "external_id" => {
            patch.external_id = Some(external_id(fields, "server.external_id", proto.external_id.clone()));
        }
        path => match path.split_once('.') {
            Some(("capacity", amount)) => {
                patch_amount(fields, &mut patch.capacity, "capacity", amount, proto.capacity);
            }
            Some(("headroom", amount)) => {
                patch_amount(fields, &mut patch.headroom, "headroom", amount, proto.headroom);
            }
            _ => fields.refuse("update_mask", format!("`{}` is not a field that can be changed", told(path))),
        },
    }
}

fn patch_amount(
    fields: &mut Fields,
    patch: &mut ResourceRequest,
    field: &str,
    amount: &str,
    given: Option<v1::Resources>,
) {
    let given = given.unwrap_or_default();
    let path = format!("server.{field}");
    match amount {
        "cpu_millis" => patch.cpu_millis = cpu_millis(fields, &path, given.cpu_millis).or(Some(0)),
        "ram_mb" => patch.ram_mb = megabytes(fields, &format!("{path}.ram_mb"), given.ram_mb).or(Some(0)),
        "disk_mb" => patch.disk_mb = megabytes(fields, &format!("{path}.disk_mb"), given.disk_mb).or(Some(0)),
        _ => fields.refuse(
            "update_mask",
            format!("`{field}.{}` is not a field that can be changed", told(amount)),
        ),
    }
}

/// A usage report.
pub fn usage(request: v1::ReportUsageRequest) -> Result<(ServerHandle, Observation), Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let handle = handle(&mut fields, "handle", &request.handle);
    let Some(usage) = request.usage else {
        fields.refuse("usage", "must be set");
        return fields.finish(None);
    };
    if usage.listening_ports.len() > MAX_LISTENING {
        fields.refuse("usage.listening_ports", format!("must be at most {MAX_LISTENING}"));
        return fields.finish(None);
    }
    let mut ports = BTreeSet::new();
    for (index, number) in usage.listening_ports.into_iter().enumerate() {
        ports.extend(port(&mut fields, format!("usage.listening_ports[{index}]"), number));
    }
    let observation = Observation {
        cpu_millis: cpu_millis(&mut fields, "usage", usage.cpu_millis),
        ram_mb: megabytes(&mut fields, "usage.ram_mb", usage.ram_mb),
        disk_mb: megabytes(&mut fields, "usage.disk_mb", usage.disk_mb),
        listening_ports: ports.into_iter().collect(),
        // Set by the database's clock when it is committed.
        observe_time: time::OffsetDateTime::UNIX_EPOCH,
    };
    fields.finish(handle.map(|handle| (handle, observation)))
}

/// A source's list.
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
