//! The decision: which server a project is placed on, what it reserves there, and which ports its modules get. Pure; the
//! allocator feeds it and commits what it says.
//!
//! One predicate, [`filter::fits`], serves every caller of a choice (L13).

mod choose;
mod explain;
mod facts;
pub mod filter;
mod relocate;
mod replace_port;
pub mod score;

use std::time::Duration;

use time::OffsetDateTime;

use self::filter::{Ask, Exclusion, fits};
pub use self::{
    explain::{Explanation, FoundServer, find_servers},
    relocate::{Relocation, project_not_found, relocate},
    replace_port::{PortReplacement, replace_port},
};
use super::{
    Fleet, Placement, Project, Reason, Refusal, Resources, ServerHandle,
    event::Selected,
    fleet::ServerState,
    ports::PortGrant,
    request::{DEFAULT_RESOURCES, EnsureRequest, ModuleRequest},
};
use crate::domain::ModuleName;

/// What a decision depends on beside the fleet and the request.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// The database's time.
    pub now: OffsetDateTime,
    /// How old a usage report may be.
    pub usage_max_age: Duration,
    /// Whether a server that never reported its usage takes nothing new.
    pub usage_required: bool,
}

/// What an ensure is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Everything asked for is already held.
    Unchanged,
    /// The project is placed.
    Place {
        /// The server.
        server_handle: ServerHandle,
        /// How it was chosen.
        selected: Selected,
        /// What is reserved.
        reserve: Resources,
        /// The ports of its modules.
        ports: Vec<PortGrant>,
    },
    /// The project, which stays where it is, gets more.
    Extend {
        /// The server that it is bound to.
        server_handle: ServerHandle,
        /// What is reserved in addition.
        grow: Resources,
        /// The ports of its new modules.
        ports: Vec<PortGrant>,
    },
}

/// Decides an ensure.
///
/// # Errors
/// The [`Refusal`] that the funnel names, or that the project's own placement does.
pub fn decide(
    fleet: &Fleet,
    project: &Project,
    request: &EnsureRequest,
    context: &Context,
) -> Result<Decision, Refusal> {
    if request.is_held_by(project) {
        return Ok(Decision::Unchanged);
    }
    if let Some(pin) = &request.server_handle
        && fleet.get(pin).is_none()
    {
        return Err(server_not_found(pin));
    }
    match &project.placement {
        Some(placement) => extend(fleet, project, placement, request, context)
            .map_err(|refusal| refusal.with("project_id", &project.id)),
        None => place(fleet, request, context),
    }
}

/// The refusal of a handle that no server has.
#[must_use]
pub fn server_not_found(handle: &ServerHandle) -> Refusal {
    Refusal::new(
        Reason::ServerNotFound,
        format!("no server has the handle `{handle}`; `ListServers` shows those that are registered"),
    )
    .with("server_handle", handle)
}

/// The modules that a first placement gives ports to: those that the request names, else `backend`.
#[must_use]
pub fn modules_or_default(modules: &[ModuleRequest]) -> Vec<ModuleRequest> {
    if modules.is_empty() { vec![ModuleRequest::named(ModuleName::backend())] } else { modules.to_vec() }
}

fn place(fleet: &Fleet, request: &EnsureRequest, context: &Context) -> Result<Decision, Refusal> {
    let modules = modules_or_default(&request.modules);
    let reserve = request.resources.or(DEFAULT_RESOURCES);
    let ask = Ask {
        resources: reserve,
        whole: reserve,
        selector: &request.selector,
        modules: &modules,
        start_port: request.start_port,
        leaving: None,
        bound: false,
    };
    let chosen = match &request.server_handle {
        Some(pin) => {
            fleet.get(pin).and_then(|state| fits(state, &ask, context).ok().map(|ports| (state, ports)))
        }
        None => choose::choose(fleet, &ask, request.strategy, context),
    };
    let Some((state, ports)) = chosen else {
        return Err(explain::refuse(fleet, &ask, request.server_handle.as_ref(), context));
    };
    let free_before = state.free();
    Ok(Decision::Place {
        server_handle: state.server.handle.clone(),
        selected: Selected { strategy: request.strategy, free_before, free_after: state.free_with(reserve) },
        reserve,
        ports,
    })
}

fn extend(
    fleet: &Fleet,
    project: &Project,
    placement: &Placement,
    request: &EnsureRequest,
    context: &Context,
) -> Result<Decision, Refusal> {
    let bound = &placement.server_handle;
    if let Some(pin) = request.server_handle.as_ref().filter(|pin| *pin != bound) {
        return Err(Refusal::new(
            Reason::PlacedElsewhere,
            format!(
                "project `{}` is placed on `{bound}`, not on `{pin}`; leave `server_handle` out, or release the project first",
                project.id
            ),
        )
        .with("server_handle", bound)
        .with("pinned.server_handle", pin));
    }
    let mut new_modules = Vec::new();
    for module in &request.modules {
        match project.allocation(&module.name) {
            None => new_modules.push(module.clone()),
            Some(held)
                if module.port.is_some_and(|port| port != held.port)
                    || module.protocol.is_some_and(|protocol| protocol != held.protocol) =>
            {
                let port = module.port.unwrap_or(held.port);
                let protocol = module.protocol.unwrap_or(held.protocol);
                return Err(Refusal::new(
                    Reason::PlacedElsewhere,
                    format!(
                        "asked for port {port}/{protocol} for module `{}` of project `{}`, which holds {}/{} on `{bound}`; leave `port` and `protocol` out, or release the module first",
                        module.name, project.id, held.port, held.protocol
                    ),
                )
                .with("server_handle", bound)
                .with("module", &module.name)
                .with("port", held.port)
                .with("protocol", held.protocol)
                .with("pinned.port", port)
                .with("pinned.protocol", protocol));
            }
            Some(_) => {}
        }
    }
    let grow = request.resources.or(placement.reserved).short_of(placement.reserved);
    let ask = Ask {
        resources: grow,
        whole: placement.reserved + grow,
        // The project stays where it is, whatever labels the server carries by now.
        selector: &std::collections::BTreeMap::new(),
        modules: &new_modules,
        start_port: request.start_port,
        leaving: None,
        bound: true,
    };
    let ports = fit_bound(fleet, project, bound, &ask, context)?;
    Ok(Decision::Extend { server_handle: bound.clone(), grow, ports })
}

/// The ports of something new on the server that a project is placed on.
///
/// # Errors
/// `BOUND_SERVER_NOT_ADMISSIBLE` where it takes nothing new, else the [`Refusal`] of the funnel over that one server.
fn fit_bound(
    fleet: &Fleet,
    project: &Project,
    bound: &ServerHandle,
    ask: &Ask<'_>,
    context: &Context,
) -> Result<Vec<PortGrant>, Refusal> {
    let state = fleet.get(bound).ok_or_else(|| server_not_found(bound))?;
    match fits(state, ask, context) {
        Ok(ports) => Ok(ports),
        Err(exclusion @ (Exclusion::Unmanaged | Exclusion::Status(_) | Exclusion::UsageStale { .. })) => {
            Err(not_admissible(project, state, &exclusion))
        }
        Err(_) => Err(explain::refuse(fleet, ask, Some(bound), context)),
    }
}

fn not_admissible(project: &Project, state: &ServerState, exclusion: &Exclusion) -> Refusal {
    let handle = &state.server.handle;
    let refusal = Refusal::new(
        Reason::BoundServerNotAdmissible,
        format!(
            "project `{}` is placed on `{handle}`, which takes nothing new: it {}; what the project holds stands. Repair the server, or move the project with RelocateProject",
            project.id,
            exclusion.detail()
        ),
    )
    .with("server_handle", handle)
    .with("cause", exclusion.stage().as_str())
    .with("status", state.server.status);
    match exclusion {
        Exclusion::UsageStale { age, max_age } => {
            let refusal = refusal.with("usage_max_age_s", max_age.as_secs());
            match age {
                Some(age) => refusal.with("usage_age_s", age.as_secs()),
                None => refusal,
            }
        }
        _ => refusal,
    }
}

#[cfg(test)]
mod tests;
