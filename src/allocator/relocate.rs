//! RelocateProject and ReportPortInUse within a transaction: what a placed project holds is exchanged for something else, and
//! the log tells both sides in one operation.

use time::OffsetDateTime;

use super::{
    command::{PortReplaceAnswer, RelocateAnswer},
    ensure::{address, allocation, view},
    journal::Journal,
};
use crate::domain::{
    Allocation, Fleet, Project, Refusal,
    event::{Operation, PortReplaced, Relocated},
    placement::{
        Context, PortReplacement, Relocation, project_not_found, relocate as decide_relocation,
        replace_port as decide_replacement,
    },
    ports::DEFAULT_START_PORT,
    request::{PortInUseReport, RelocateRequest},
};

/// Decides a relocation and takes it up.
///
/// # Errors
/// The refusal; the log is not told, for nothing of the project changed.
pub fn relocate(
    journal: &mut Journal,
    fleet: &mut Fleet,
    request: &RelocateRequest,
    request_id: &str,
    context: &Context,
    free_after: OffsetDateTime,
) -> Result<RelocateAnswer, Refusal> {
    let project = journal.project(&request.project_id);
    let (mut project, operation) = moved(fleet, project, request, context, free_after)?;
    let Some(relocated) = operation else {
        return Ok(RelocateAnswer { from_server_handle: None, view: view(fleet, project, context) });
    };
    let from_server_handle = Some(relocated.from_server_handle.clone());
    record(journal, fleet, &mut project, request_id, Operation::Relocated(relocated));
    Ok(RelocateAnswer { from_server_handle, view: view(fleet, project, context) })
}

/// Says what a relocation would do, and changes nothing.
///
/// # Errors
/// The refusal.
pub fn preview(
    fleet: &Fleet,
    project: Project,
    request: &RelocateRequest,
    context: &Context,
) -> Result<RelocateAnswer, Refusal> {
    let (project, operation) = moved(fleet, project, request, context, context.now)?;
    Ok(RelocateAnswer {
        from_server_handle: operation.map(|relocated| relocated.from_server_handle),
        view: view(fleet, project, context),
    })
}

/// The project as a relocation leaves it, and the operation that says so; none where it does not move.
pub(super) fn moved(
    fleet: &Fleet,
    mut project: Project,
    request: &RelocateRequest,
    context: &Context,
    free_after: OffsetDateTime,
) -> Result<(Project, Option<Relocated>), Refusal> {
    let (server_handle, selected, ports) = match decide_relocation(fleet, &project, request, context)? {
        Relocation::Unchanged => return Ok((project, None)),
        Relocation::Move { server_handle, selected, ports } => (server_handle, selected, ports),
    };
    let Some(placement) = &mut project.placement else { return Err(project_not_found(&project.id)) };
    let allocations: Vec<Allocation> = ports.into_iter().map(|grant| allocation(grant, context)).collect();
    let released = std::mem::replace(&mut project.allocations, allocations.clone());
    let server_address = address(fleet, &server_handle);
    let from_server_handle = std::mem::replace(&mut placement.server_handle, server_handle);
    placement.update_time = context.now;
    let relocated = Relocated {
        usage_counted: fleet.usage_counts(),
        from_server_address: address(fleet, &from_server_handle),
        from_server_handle,
        server_address,
        selected,
        reserved: placement.reserved,
        released,
        free_after,
        allocations,
    };
    Ok((project, Some(relocated)))
}

/// Decides a report of a port in use and takes it up.
///
/// # Errors
/// The refusal; nothing is set aside then, for the module would be left without a port.
pub fn replace_port(
    journal: &mut Journal,
    fleet: &mut Fleet,
    report: &PortInUseReport,
    request_id: &str,
    context: &Context,
    until: OffsetDateTime,
) -> Result<PortReplaceAnswer, Refusal> {
    let mut project = journal.project(&report.project_id);
    let (held, grant) = match decide_replacement(fleet, &project, report, context)? {
        PortReplacement::Unchanged => {
            return Ok(PortReplaceAnswer { set_aside_until: None, view: view(fleet, project, context) });
        }
        PortReplacement::Replace { held, grant } => (held, grant),
    };
    let Some(placement) = &mut project.placement else { return Err(project_not_found(&project.id)) };
    let new = allocation(grant, context);
    let server_address = address(fleet, &placement.server_handle);
    placement.update_time = context.now;
    for allocation in &mut project.allocations {
        if allocation.module == held.module {
            *allocation = new.clone();
        }
    }
    let detail = report.detail.clone();
    let replaced = PortReplaced {
        server_address,
        set_aside: held,
        until,
        detail,
        allocation: new,
        start_port: (report.start_port != DEFAULT_START_PORT).then_some(report.start_port),
        usage_counted: fleet.usage_counts(),
    };
    record(journal, fleet, &mut project, request_id, Operation::PortReplaced(replaced));
    Ok(PortReplaceAnswer { set_aside_until: Some(until), view: view(fleet, project, context) })
}

/// Takes up an operation of a placed project, which is its placement's newest.
fn record(
    journal: &mut Journal,
    fleet: &mut Fleet,
    project: &mut Project,
    request_id: &str,
    operation: Operation,
) {
    let server_handle = project.placement.as_ref().map(|placement| placement.server_handle.clone());
    let sequence = journal.record(fleet, Some(project.id.clone()), server_handle, request_id, operation);
    if let Some(placement) = &mut project.placement {
        placement.revision = sequence;
    }
    journal.set_project(project.clone());
}
