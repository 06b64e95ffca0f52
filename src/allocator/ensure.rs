//! EnsureAllocation and ReleaseAllocation within a transaction: the decision becomes an operation, and the project as it stands
//! after it.

use uuid::Uuid;

use super::{
    command::{EnsureAnswer, Outcome, ProjectView, ReleaseAnswer},
    journal::Journal,
};
use crate::domain::{
    Allocation, Fleet, Placement, Project, Refusal, Resources, ServerHandle,
    event::{Ensured, Operation, Refused, ReleaseCause, Released, Requested, Selected, Served},
    line::decide_in_line,
    placement::{Context, Decision, decide},
    ports::PortGrant,
    request::{EnsureRequest, ReleaseRequest},
};

/// What a decision makes of a project, and the operation that says so; none where nothing changes.
struct Effect {
    project: Project,
    operation: Option<(ServerHandle, Ensured)>,
    outcome: Outcome,
}

/// Decides an ensure and takes it up.
///
/// # Errors
/// The refusal, which is taken up too.
pub fn ensure(
    journal: &mut Journal,
    fleet: &mut Fleet,
    request: &EnsureRequest,
    request_id: &str,
    context: &Context,
) -> Result<EnsureAnswer, Refusal> {
    decide_and_record(journal, fleet, request, request_id, context, None).inspect_err(|refusal| {
        record_refusal(journal, fleet, request, request_id, refusal);
    })
}

/// Decides an ensure and takes it up, but for a refusal; `served` is the place in line that it had.
///
/// # Errors
/// The refusal.
pub fn decide_and_record(
    journal: &mut Journal,
    fleet: &mut Fleet,
    request: &EnsureRequest,
    request_id: &str,
    context: &Context,
    served: Option<Served>,
) -> Result<EnsureAnswer, Refusal> {
    let project = journal.project(&request.project_id);
    let decision = decide_in_line(fleet, &project, request, context)?;
    let mut effect = effect(fleet, project, request, decision, context);
    if effect.outcome == Outcome::Unchanged
        && effect.project.placement.is_some()
        && effect.project != journal.project(&request.project_id)
    {
        // A lease is renewed without a word in the log: it would say little else.
        journal.set_project(effect.project.clone());
        journal.note_renewal(request.project_id.clone());
    }
    if let Some((server_handle, ensured)) = effect.operation.take() {
        let ensured = Ensured { served, usage_counted: fleet.usage_counts(), ..ensured };
        let sequence = journal.record(
            fleet,
            Some(request.project_id.clone()),
            Some(server_handle),
            request_id,
            Operation::Ensured(ensured),
        );
        if let Some(placement) = &mut effect.project.placement {
            placement.revision = sequence;
        }
        journal.set_project(effect.project.clone());
    }
    Ok(answer(fleet, effect, context))
}

/// Says what an ensure would do, and changes nothing: ids and times are left out.
///
/// # Errors
/// The refusal.
pub fn preview(
    fleet: &Fleet,
    project: Project,
    request: &EnsureRequest,
    context: &Context,
) -> Result<EnsureAnswer, Refusal> {
    let decision = decide(fleet, &project, request, context)?;
    Ok(answer(fleet, effect(fleet, project, request, decision, context), context))
}

/// The same of the project for which something is kept, as the first in line.
///
/// # Errors
/// The refusal.
pub fn preview_in_line(
    fleet: &mut Fleet,
    project: Project,
    request: &EnsureRequest,
    context: &Context,
) -> Result<EnsureAnswer, Refusal> {
    let decision = decide_in_line(fleet, &project, request, context)?;
    Ok(answer(fleet, effect(fleet, project, request, decision, context), context))
}

fn answer(fleet: &Fleet, effect: Effect, context: &Context) -> EnsureAnswer {
    EnsureAnswer { outcome: effect.outcome, view: view(fleet, effect.project, context) }
}

/// A project as it stands, with what is told of its server.
pub(super) fn view(fleet: &Fleet, project: Project, context: &Context) -> ProjectView {
    let handle = project.placement.as_ref().map(|placement| &placement.server_handle);
    ProjectView {
        server_address: handle.map(|handle| address(fleet, handle)).unwrap_or_default(),
        server_admissible: handle.is_some_and(|handle| fleet.admits(handle, context)),
        sequence: fleet.sequence(),
        project,
    }
}

fn effect(
    fleet: &Fleet,
    mut project: Project,
    request: &EnsureRequest,
    decision: Decision,
    context: &Context,
) -> Effect {
    let (server_handle, selected, grown, grants, outcome) = match decision {
        Decision::Unchanged => {
            if let Some(placement) = &mut project.placement {
                placement.expire_time = request.expire_time(placement.expire_time, context.now);
            }
            return Effect { project, operation: None, outcome: Outcome::Unchanged };
        }
        Decision::Place { server_handle, selected, reserve, ports } => {
            (server_handle, Some(selected), reserve, ports, Outcome::Created)
        }
        Decision::Extend { server_handle, grow, ports } => {
            (server_handle, None, grow, ports, Outcome::Extended)
        }
    };
    let allocations = give(&mut project, request, &server_handle, grown, grants, context);
    let server_address = address(fleet, &server_handle);
    let ensured = ensured(request, selected, &server_address, grown, allocations, &project);
    Effect { project, operation: Some((server_handle, ensured)), outcome }
}

pub(super) fn address(fleet: &Fleet, handle: &ServerHandle) -> String {
    fleet.get(handle).map(|state| state.server.address.clone()).unwrap_or_default()
}

fn ensured(
    request: &EnsureRequest,
    selected: Option<Selected>,
    server_address: &str,
    grown: Resources,
    allocations: Vec<Allocation>,
    project: &Project,
) -> Ensured {
    Ensured {
        usage_counted: false,
        requested: Requested::of(request),
        selected,
        server_address: server_address.to_owned(),
        grown,
        allocations,
        allocation_count: u32::try_from(project.allocations.len()).unwrap_or(u32::MAX),
        expire_time: project.placement.as_ref().and_then(|placement| placement.expire_time),
        served: None,
    }
}

/// Adds to what the project holds; returns the new allocations.
fn give(
    project: &mut Project,
    request: &EnsureRequest,
    server_handle: &ServerHandle,
    grown: Resources,
    grants: Vec<PortGrant>,
    context: &Context,
) -> Vec<Allocation> {
    let placement = project.placement.get_or_insert_with(|| Placement {
        server_handle: server_handle.clone(),
        reserved: Resources::ZERO,
        selector: request.selector.clone(),
        start_port: request.start_port,
        revision: 0,
        create_time: context.now,
        update_time: context.now,
        expire_time: None,
    });
    placement.reserved += grown;
    placement.update_time = context.now;
    placement.expire_time = request.expire_time(placement.expire_time, context.now);
    let allocations: Vec<_> = grants.into_iter().map(|grant| allocation(grant, context)).collect();
    project.allocations.extend(allocations.iter().cloned());
    project.allocations.sort_by(|a, b| a.module.cmp(&b.module));
    allocations
}

/// A port that is given now.
pub(super) fn allocation(grant: PortGrant, context: &Context) -> Allocation {
    Allocation {
        id: Uuid::now_v7(),
        module: grant.module,
        protocol: grant.protocol,
        port: grant.port,
        pinned: grant.pinned,
        create_time: context.now,
    }
}

/// A refusal is told in the log, but not again and again while a caller retries.
pub fn record_refusal(
    journal: &mut Journal,
    fleet: &mut Fleet,
    request: &EnsureRequest,
    request_id: &str,
    refusal: &Refusal,
) {
    if fleet.was_just_refused(&request.project_id, refusal.reason, journal.now) {
        return;
    }
    let refused = Refused {
        usage_counted: fleet.usage_counts(),
        requested: Requested::of(request),
        reason: refusal.reason,
        disposition: refusal.reason.disposition(),
        message: refusal.message.clone(),
        metadata: refusal.metadata.clone(),
    };
    let operation = Operation::Refused(refused);
    journal.record(fleet, Some(request.project_id.clone()), None, request_id, operation);
}

/// Takes up a release. What is not there is not given back, which is no error.
pub fn release(
    journal: &mut Journal,
    fleet: &mut Fleet,
    request: &ReleaseRequest,
    request_id: &str,
    free_after: time::OffsetDateTime,
    cause: ReleaseCause,
) -> ReleaseAnswer {
    let mut project = journal.project(&request.project_id);
    let nothing = ReleaseAnswer { server: None, released: Vec::new(), placement_removed: false };
    let Some(placement) = &mut project.placement else { return nothing };
    let goes =
        |allocation: &Allocation| request.modules.is_empty() || request.modules.contains(&allocation.module);
    let (released, kept): (Vec<_>, Vec<_>) =
        std::mem::take(&mut project.allocations).into_iter().partition(goes);
    let placement_removed = kept.is_empty();
    if released.is_empty() && !placement_removed {
        return nothing;
    }
    let server_handle = placement.server_handle.clone();
    let server_address = address(fleet, &server_handle);
    let operation = Operation::Released(Released {
        cause,
        server_address: server_address.clone(),
        allocations: released.clone(),
        returned: placement_removed.then_some(placement.reserved),
        free_after,
    });
    let sequence =
        journal.record(fleet, Some(project.id.clone()), Some(server_handle.clone()), request_id, operation);
    placement.revision = sequence;
    placement.update_time = journal.now;
    if placement_removed {
        project.placement = None;
    }
    project.allocations = kept;
    journal.set_project(project);
    ReleaseAnswer { server: Some((server_handle, server_address)), released, placement_removed }
}
