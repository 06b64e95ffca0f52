//! The requests of `ResourceAllocator`.

use std::time::Duration;

use super::{
    FieldViolation, Fields,
    fields::{MAX_MODULES, enumeration, handle, labels, modules, port, project_id, resources, short_text},
};
use crate::{
    domain::{
        ModuleName, Port,
        micros::whole_micros,
        ports::DEFAULT_START_PORT,
        request::{EnsureRequest, FindRequest, PortInUseReport, ReleaseRequest, RelocateRequest, Strategy},
    },
    proto::v1,
};

pub(super) fn strategy(fields: &mut Fields, value: i32, default: Strategy) -> Strategy {
    match enumeration(fields, "strategy", value) {
        Some(v1::PlacementStrategy::Spread) => Strategy::Spread,
        Some(v1::PlacementStrategy::Binpack) => Strategy::Binpack,
        Some(v1::PlacementStrategy::Unspecified) | None => default,
    }
}

fn start_port(fields: &mut Fields, start: Option<u32>) -> Port {
    start.and_then(|start| port(fields, "start_port".to_owned(), start)).unwrap_or(DEFAULT_START_PORT)
}

/// The longest that a call may wait in line.
const MAX_WAIT: Duration = Duration::from_hours(24);
/// The shortest and the longest lease.
const MIN_TTL: Duration = Duration::from_secs(5);
const MAX_TTL: Duration = Duration::from_hours(366 * 24);

/// How long a lease is; zero for none.
fn ttl(fields: &mut Fields, value: Option<pbjson_types::Duration>) -> Option<Duration> {
    let ttl = duration(fields, "ttl", value, MAX_TTL)?;
    if !ttl.is_zero() && ttl < MIN_TTL {
        fields.refuse("ttl", format!("must be at least {} seconds, or 0", MIN_TTL.as_secs()));
        return None;
    }
    Some(whole_micros(ttl))
}

/// A duration of at most `most`.
fn duration(
    fields: &mut Fields,
    field: &str,
    value: Option<pbjson_types::Duration>,
    most: Duration,
) -> Option<Duration> {
    let value = value?;
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos <= 999_999_999);
    let duration = u64::try_from(value.seconds).ok().zip(nanos).map(|(s, ns)| Duration::new(s, ns));
    let good = duration.filter(|duration| *duration <= most);
    if good.is_none() {
        let hours = most.as_secs() / 3600;
        fields.refuse(field, format!("must be a duration that is not negative and at most {hours} hours"));
    }
    good
}

/// An ensure, but for `validate_only`, and for how long it waits in line; none where it does not.
///
/// # Errors
/// Every bad field.
pub fn ensure(
    request: v1::EnsureAllocationRequest,
    default: Strategy,
) -> Result<(EnsureRequest, Option<Duration>), Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let wait = duration(&mut fields, "wait_for_capacity", request.wait_for_capacity, MAX_WAIT);
    let wait = wait.filter(|wait| !wait.is_zero()).map(whole_micros);
    let ttl = ttl(&mut fields, request.ttl);
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
        ttl,
    });
    fields.finish(request.map(|request| (request, wait)))
}

/// A release.
///
/// # Errors
/// Every bad field.
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

/// A relocation, but for `validate_only`.
///
/// # Errors
/// Every bad field.
pub fn relocate(
    request: &v1::RelocateProjectRequest,
    default: Strategy,
) -> Result<RelocateRequest, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let id = project_id(&mut fields, "project_id", &request.project_id);
    let to = request.server_handle.as_ref().and_then(|to| handle(&mut fields, "server_handle", to));
    let from =
        request.from_server_handle.as_ref().and_then(|from| handle(&mut fields, "from_server_handle", from));
    let strategy = strategy(&mut fields, request.strategy, default);
    let request = id.map(|project_id| RelocateRequest {
        project_id,
        server_handle: to,
        from_server_handle: from,
        strategy,
    });
    fields.finish(request)
}

/// A report of a port in use.
///
/// # Errors
/// Every bad field.
pub fn port_in_use(request: v1::ReportPortInUseRequest) -> Result<PortInUseReport, Vec<FieldViolation>> {
    let mut fields = Fields::default();
    let id = project_id(&mut fields, "project_id", &request.project_id);
    let module = fields.take("module", ModuleName::parse(&request.module));
    let port = port(&mut fields, "port".to_owned(), request.port);
    let start_port = start_port(&mut fields, request.start_port);
    short_text(&mut fields, "detail", &request.detail);
    let report = match (id, module, port) {
        (Some(project_id), Some(module), Some(port)) => {
            Some(PortInUseReport { project_id, module, port, start_port, detail: request.detail })
        }
        _ => None,
    };
    fields.finish(report)
}

/// A search.
///
/// # Errors
/// Every bad field.
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
