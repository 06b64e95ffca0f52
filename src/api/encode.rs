//! Answers, from the domain to the wire.

use time::OffsetDateTime;

use crate::{
    allocator::command::{Outcome, ProjectView},
    domain::{
        Allocation, Disposition, PortRange, ProjectId, Protocol, ResourceRequest, Resources, Server,
        ServerHandle, ServerStatus,
        event::{Event, LogEntry, ReleaseCause, Relocated, Requested, ServerChange},
        fleet::ServerState,
        inventory,
        line::LeaveCause,
        policy::FleetPolicy,
        request::{ModuleRequest, Strategy},
        resources::PerResource,
        server::{Observation, Observer},
    },
    proto::v1,
    store::servers::ServerRecord,
};

pub(super) fn timestamp(time: OffsetDateTime) -> pbjson_types::Timestamp {
    // Nanoseconds of a second are below 10^9, so that they fit.
    pbjson_types::Timestamp {
        seconds: time.unix_timestamp(),
        nanos: i32::try_from(time.nanosecond()).unwrap_or(0),
    }
}

fn unsigned(amount: i64) -> u64 {
    u64::try_from(amount).unwrap_or(0)
}

pub(super) fn resources(amounts: Resources) -> v1::Resources {
    v1::Resources {
        // Over-commit lets the sum of a server grow past what one request may ask for.
        cpu_millis: Some(u32::try_from(amounts.cpu_millis.max(0)).unwrap_or(u32::MAX)),
        ram_mb: Some(unsigned(amounts.ram_mb)),
        disk_mb: Some(unsigned(amounts.disk_mb)),
    }
}

pub(super) fn resource_request(amounts: ResourceRequest) -> v1::Resources {
    v1::Resources {
        cpu_millis: amounts.cpu_millis.map(|amount| u32::try_from(amount).unwrap_or(0)),
        ram_mb: amounts.ram_mb.map(unsigned),
        disk_mb: amounts.disk_mb.map(unsigned),
    }
}

pub(super) fn free(amounts: Resources) -> v1::FreeResources {
    v1::FreeResources { cpu_millis: amounts.cpu_millis, ram_mb: amounts.ram_mb, disk_mb: amounts.disk_mb }
}

fn percentages(figures: PerResource<Option<i64>>) -> v1::Percentages {
    // Percentages are at most ten thousand.
    let figure = |figure: Option<i64>| figure.map(|figure| u32::try_from(figure).unwrap_or(0));
    v1::Percentages { cpu: figure(figures.cpu), ram: figure(figures.ram), disk: figure(figures.disk) }
}

/// What holds for every server that does not say otherwise.
pub(super) fn policy(policy: &FleetPolicy) -> v1::FleetPolicy {
    let all = |figures: PerResource<i64>| {
        let PerResource { cpu, ram, disk } = figures;
        percentages(PerResource { cpu: Some(cpu), ram: Some(ram), disk: Some(disk) })
    };
    v1::FleetPolicy {
        default_headroom: Some(resources(policy.headroom)),
        default_headroom_percent: Some(all(policy.headroom_percent)),
        overcommit_percent: Some(all(policy.overcommit_percent)),
    }
}

fn protocol(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
    }
}

pub(super) fn outcome(outcome: Outcome) -> v1::EnsureOutcome {
    match outcome {
        Outcome::Created => v1::EnsureOutcome::Created,
        Outcome::Extended => v1::EnsureOutcome::Extended,
        Outcome::Unchanged => v1::EnsureOutcome::Unchanged,
    }
}

fn strategy(strategy: Strategy) -> v1::PlacementStrategy {
    match strategy {
        Strategy::Spread => v1::PlacementStrategy::Spread,
        Strategy::Binpack => v1::PlacementStrategy::Binpack,
    }
}

pub(super) fn disposition(disposition: Disposition) -> v1::Disposition {
    match disposition {
        Disposition::Wait => v1::Disposition::Wait,
        Disposition::Operator => v1::Disposition::Operator,
        Disposition::Caller => v1::Disposition::Caller,
        Disposition::Technical => v1::Disposition::Technical,
    }
}

fn status(status: ServerStatus, placement_count: i64) -> v1::ServerStatus {
    match status {
        ServerStatus::Ready if placement_count > 0 => v1::ServerStatus::InUse,
        ServerStatus::Ready => v1::ServerStatus::Ready,
        ServerStatus::Discovered => v1::ServerStatus::Discovered,
        ServerStatus::Provisioning => v1::ServerStatus::Provisioning,
        ServerStatus::Maintenance => v1::ServerStatus::Maintenance,
        ServerStatus::Error => v1::ServerStatus::Error,
        ServerStatus::Unreachable => v1::ServerStatus::Unreachable,
        ServerStatus::Missing => v1::ServerStatus::Missing,
        ServerStatus::Decommissioned => v1::ServerStatus::Decommissioned,
    }
}

pub(super) fn allocation(
    project_id: &ProjectId,
    server_handle: &ServerHandle,
    server_address: &str,
    allocation: &Allocation,
) -> v1::Allocation {
    v1::Allocation {
        id: allocation.id.to_string(),
        project_id: project_id.to_string(),
        module: allocation.module.to_string(),
        server_handle: server_handle.to_string(),
        server_address: server_address.to_owned(),
        port: allocation.port.into(),
        protocol: protocol(allocation.protocol).into(),
        create_time: Some(timestamp(allocation.create_time)),
    }
}

/// A project's placement and its ports, ordered by module.
pub(super) fn project(view: &ProjectView) -> (Option<v1::Placement>, Vec<v1::Allocation>) {
    let Some(placement) = &view.project.placement else { return (None, Vec::new()) };
    let allocations = view
        .project
        .allocations
        .iter()
        .map(|held| allocation(&view.project.id, &placement.server_handle, &view.server_address, held))
        .collect();
    let placement = v1::Placement {
        project_id: view.project.id.to_string(),
        server_handle: placement.server_handle.to_string(),
        server_address: view.server_address.clone(),
        server_admissible: view.server_admissible,
        reserved: Some(resources(placement.reserved)),
        etag: format!("p{}", placement.revision),
        create_time: Some(timestamp(placement.create_time)),
        update_time: Some(timestamp(placement.update_time)),
        server_selector: placement.selector.clone(),
        expire_time: placement.expire_time.map(timestamp),
    };
    (Some(placement), allocations)
}

fn port_range(range: PortRange) -> v1::PortRange {
    v1::PortRange { start: range.start.into(), end: range.end.into() }
}

/// What operators and sources set, without outputs.
fn bare_server(server: &Server, placement_count: i64) -> v1::Server {
    v1::Server {
        handle: server.handle.to_string(),
        address: server.address.clone(),
        status: status(server.status, placement_count).into(),
        managed: Some(server.managed),
        labels: server.labels.clone(),
        capacity: Some(resources(server.capacity)),
        headroom: (server.headroom != ResourceRequest::default()).then(|| resource_request(server.headroom)),
        overcommit_percent: (!server.overcommit_percent.is_empty())
            .then(|| percentages(server.overcommit_percent)),
        port_range: Some(port_range(server.port_range)),
        excluded_ports: server.excluded_ports.iter().copied().map(port_range).collect(),
        source: server.source.clone(),
        external_id: server.external_id.clone().unwrap_or_default(),
        ..v1::Server::default()
    }
}

fn observed_usage(observed: &Observation) -> v1::ObservedUsage {
    let by = match observed.observer {
        Observer::Host => v1::UsageObserver::Host,
        Observer::Provider => v1::UsageObserver::Provider,
    };
    v1::ObservedUsage {
        usage: Some(v1::Usage {
            cpu_millis: observed.cpu_millis.map(|amount| u32::try_from(amount).unwrap_or(0)),
            ram_mb: observed.ram_mb.map(unsigned),
            disk_mb: observed.disk_mb.map(unsigned),
            listening_ports: observed.listening_ports.iter().copied().map(u32::from).collect(),
        }),
        observe_time: Some(timestamp(observed.observe_time)),
        observer: by.into(),
    }
}

/// A server, but for its times.
pub(super) fn server_state(state: &ServerState) -> v1::Server {
    v1::Server {
        reserved: Some(resources(state.reserved)),
        observed: state.observed.as_ref().map(observed_usage),
        budget: Some(free(state.budget())),
        free: Some(free(state.free())),
        placement_count: u32::try_from(state.placement_count).unwrap_or(0),
        etag: inventory::etag(state),
        ..bare_server(&state.server, state.placement_count)
    }
}

/// A server.
pub(super) fn server(record: &ServerRecord) -> v1::Server {
    v1::Server {
        create_time: Some(timestamp(record.create_time)),
        update_time: Some(timestamp(record.update_time)),
        ..server_state(&record.row.state)
    }
}

pub(super) fn module_spec(module: &ModuleRequest) -> v1::ModuleSpec {
    v1::ModuleSpec {
        name: module.name.to_string(),
        port: module.port.map(u32::from),
        protocol: module.protocol.map_or(v1::Protocol::Unspecified, protocol).into(),
    }
}

fn server_change(change: ServerChange) -> v1::server_changed::Change {
    match change {
        ServerChange::Registered => v1::server_changed::Change::Registered,
        ServerChange::Status => v1::server_changed::Change::Status,
        ServerChange::Capacity => v1::server_changed::Change::Capacity,
        ServerChange::Updated => v1::server_changed::Change::Updated,
        ServerChange::UsageStale => v1::server_changed::Change::UsageStale,
        ServerChange::Removed => v1::server_changed::Change::Removed,
    }
}

fn duration(duration: time::Duration) -> pbjson_types::Duration {
    pbjson_types::Duration { seconds: duration.whole_seconds(), nanos: duration.subsec_nanoseconds() }
}

fn left_line(cause: &LeaveCause) -> v1::left_line::Cause {
    match cause {
        LeaveCause::Cancelled => v1::left_line::Cause::Cancelled,
        LeaveCause::Released => v1::left_line::Cause::Released,
        // One with a refusal is told as a failure.
        LeaveCause::Satisfied | LeaveCause::Refused(_) => v1::left_line::Cause::Satisfied,
    }
}

fn requested(requested: &Requested) -> v1::Requested {
    v1::Requested {
        modules: requested.modules.iter().map(module_spec).collect(),
        resources: Some(resource_request(requested.resources)),
        server_handle: requested.server_handle.as_ref().map(ToString::to_string),
        server_selector: requested.selector.clone(),
        start_port: requested.start_port.map(u32::from),
    }
}

fn relocated(entry: &LogEntry, relocated: &Relocated) -> v1::Relocated {
    let from = &relocated.from_server_handle;
    let released = entry.project_id.iter().flat_map(|project_id| {
        relocated
            .released
            .iter()
            .map(move |held| allocation(project_id, from, &relocated.from_server_address, held))
    });
    v1::Relocated {
        from_server_handle: from.to_string(),
        from_server_address: relocated.from_server_address.clone(),
        to_server_handle: entry.server_handle.as_ref().map(ToString::to_string).unwrap_or_default(),
        to_server_address: relocated.server_address.clone(),
        reserved: Some(resources(relocated.reserved)),
        released: released.collect(),
        strategy: strategy(relocated.selected.strategy).into(),
        free_before: Some(free(relocated.selected.free_before)),
        free_after: Some(free(relocated.selected.free_after)),
    }
}

/// The events of an operation.
pub(super) fn events(entry: &LogEntry) -> impl Iterator<Item = v1::AllocationEvent> {
    entry.operation.events().into_iter().enumerate().map(|(index, told)| event(entry, index, told))
}

fn event(entry: &LogEntry, index: usize, event: Event<'_>) -> v1::AllocationEvent {
    let allocation_of = |address: &str, held: &Allocation| match (&entry.project_id, &entry.server_handle) {
        (Some(project_id), Some(handle)) => Some(allocation(project_id, handle, address, held)),
        _ => None,
    };
    let handle = entry.server_handle.as_ref().map(ToString::to_string).unwrap_or_default();
    let detail = match event {
        Event::Requested(requested) => v1::allocation_event::Detail::Requested(self::requested(requested)),
        Event::ServerSelected(ensured, selected) => {
            v1::allocation_event::Detail::ServerSelected(v1::ServerSelected {
                server_handle: handle.clone(),
                server_address: ensured.server_address.clone(),
                strategy: strategy(selected.strategy).into(),
                free_before: Some(free(selected.free_before)),
                free_after: Some(free(selected.free_after)),
            })
        }
        Event::PortAllocated { server_address, allocation } => {
            v1::allocation_event::Detail::PortAllocated(v1::PortAllocated {
                allocation: allocation_of(server_address, allocation),
            })
        }
        Event::Completed(ensured) => v1::allocation_event::Detail::Completed(v1::Completed {
            outcome: match ensured.selected {
                Some(_) => v1::EnsureOutcome::Created,
                None => v1::EnsureOutcome::Extended,
            }
            .into(),
            allocation_count: ensured.allocation_count,
            expire_time: ensured.expire_time.map(timestamp),
            waited: ensured.served.map(|served| duration(entry.event_time - served.since)),
        }),
        Event::Failed(refused) => v1::allocation_event::Detail::Failed(v1::Failed {
            code: super::status::code(refused.reason).into(),
            reason: refused.reason.as_str().to_owned(),
            disposition: disposition(refused.disposition).into(),
            message: refused.message.clone(),
        }),
        Event::Released(released) => v1::allocation_event::Detail::Released(v1::Released {
            allocations: released
                .allocations
                .iter()
                .filter_map(|held| allocation_of(&released.server_address, held))
                .collect(),
            placement_removed: released.returned.is_some(),
            cause: match released.cause {
                ReleaseCause::Requested => v1::released::Cause::Requested,
                ReleaseCause::Expired => v1::released::Cause::Expired,
            }
            .into(),
        }),
        Event::Relocated(relocated) => {
            v1::allocation_event::Detail::Relocated(self::relocated(entry, relocated))
        }
        Event::PortSetAside(replaced) => v1::allocation_event::Detail::PortSetAside(v1::PortSetAside {
            allocation: allocation_of(&replaced.server_address, &replaced.set_aside),
            until: Some(timestamp(replaced.until)),
            detail: replaced.detail.clone(),
        }),
        Event::PolicyChanged(changed) => {
            v1::allocation_event::Detail::FleetPolicyChanged(v1::FleetPolicyChanged {
                policy: Some(policy(&changed.policy)),
            })
        }
        Event::ServerChanged(changed) => v1::allocation_event::Detail::ServerChanged(v1::ServerChanged {
            changes: changed.changes.iter().map(|change| server_change(*change).into()).collect(),
            server: Some(bare_server(&changed.server, 0)),
        }),
        Event::Waiting(waiting) => v1::allocation_event::Detail::Waiting(v1::Waiting {
            reason: waiting.reason.as_str().to_owned(),
            place: waiting.place,
            join_time: Some(timestamp(waiting.since)),
            deadline: Some(timestamp(waiting.deadline)),
        }),
        Event::LeftLine(left) => {
            v1::allocation_event::Detail::LeftLine(v1::LeftLine { cause: left_line(&left.cause).into() })
        }
    };
    // The request came before a server was chosen.
    let requested = matches!(detail, v1::allocation_event::Detail::Requested(_));
    v1::AllocationEvent {
        sequence: entry.sequence_of(index),
        event_time: Some(timestamp(entry.event_time)),
        project_id: entry.project_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        server_handle: if requested { String::new() } else { handle },
        request_id: entry.request_id.clone(),
        actor: entry.actor.clone(),
        detail: Some(detail),
    }
}

/// What is only planned has no id, no etag and no time; so that an answer reads alike, neither has what is committed already.
pub(super) fn leave_out_what_is_not_written(
    placement: Option<&mut v1::Placement>,
    allocations: &mut [v1::Allocation],
) {
    if let Some(placement) = placement {
        placement.etag = String::new();
        placement.create_time = None;
        placement.update_time = None;
        placement.expire_time = None;
    }
    for allocation in allocations {
        allocation.id = String::new();
        allocation.create_time = None;
    }
}
