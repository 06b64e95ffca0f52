//! Moving a placed project to another server: the funnel over all but the one that it leaves, for all that it holds.

use super::{
    Context, choose, explain,
    filter::{Ask, fits},
    server_not_found,
};
use crate::domain::{
    Fleet, Project, ProjectId, Reason, Refusal, ServerHandle,
    event::Selected,
    ports::PortGrant,
    request::{ModuleRequest, RelocateRequest},
};

/// What a relocation is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relocation {
    /// The project is where it is to be.
    Unchanged,
    /// The project moves.
    Move {
        /// The server that it moves to.
        server_handle: ServerHandle,
        /// How that was chosen.
        selected: Selected,
        /// The ports of its modules there.
        ports: Vec<PortGrant>,
    },
}

/// Decides a relocation. The labels and the lowest port are those that the project was placed with, its explicit ports stay
/// explicit; what it holds on the server that it leaves is neither for nor against it.
///
/// # Errors
/// `PROJECT_NOT_FOUND`, `SERVER_NOT_FOUND`, or the [`Refusal`] of the funnel over the other servers, or over the one that is
/// named.
pub fn relocate(
    fleet: &Fleet,
    project: &Project,
    request: &RelocateRequest,
    context: &Context,
) -> Result<Relocation, Refusal> {
    let Some(placement) = &project.placement else { return Err(project_not_found(&project.id)) };
    let bound = &placement.server_handle;
    let is_there = request.server_handle.as_ref() == Some(bound);
    // It may have left a server that was removed since: a repeat asks that too.
    let has_left = request.from_server_handle.as_ref().is_some_and(|from| from != bound);
    if is_there || has_left {
        return Ok(Relocation::Unchanged);
    }
    if let Some(to) = request.server_handle.as_ref().filter(|to| fleet.get(to).is_none()) {
        return Err(server_not_found(to));
    }
    let modules: Vec<ModuleRequest> = project
        .allocations
        .iter()
        .map(|held| ModuleRequest {
            name: held.module.clone(),
            port: held.pinned.then_some(held.port),
            protocol: Some(held.protocol),
        })
        .collect();
    let ask = Ask {
        resources: placement.reserved,
        whole: placement.reserved,
        selector: &placement.selector,
        modules: &modules,
        start_port: placement.start_port,
        leaving: Some(bound),
        bound: false,
    };
    let chosen = match &request.server_handle {
        Some(to) => {
            fleet.get(to).and_then(|state| fits(state, &ask, context).ok().map(|ports| (state, ports)))
        }
        None => choose::choose(fleet, &ask, request.strategy, context),
    };
    let Some((state, ports)) = chosen else {
        return Err(explain::refuse(fleet, &ask, request.server_handle.as_ref(), context)
            .with("project_id", &project.id)
            .with("from_server_handle", bound));
    };
    Ok(Relocation::Move {
        server_handle: state.server.handle.clone(),
        selected: Selected {
            strategy: request.strategy,
            free_before: state.free(),
            free_after: state.free_with(placement.reserved),
        },
        ports,
    })
}

/// The refusal of a project that has no placement.
#[must_use]
pub fn project_not_found(id: &ProjectId) -> Refusal {
    Refusal::new(
        Reason::ProjectNotFound,
        format!("project `{id}` has no placement; `EnsureAllocation` makes one"),
    )
    .with("project_id", id)
}
