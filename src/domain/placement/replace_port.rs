//! Another port for a module whose port was found in use on the host by something that is not ours (L18).

use std::collections::BTreeMap;

use super::{Context, filter::Ask, fit_bound, relocate::project_not_found};
use crate::domain::{
    Allocation, Fleet, Project, Reason, Refusal, Resources,
    ports::PortGrant,
    request::{ModuleRequest, PortInUseReport},
};

/// What a report of a port in use is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortReplacement {
    /// The module holds another port than the one that is reported.
    Unchanged,
    /// The port is set aside, and the module gets another.
    Replace {
        /// What the module holds.
        held: Allocation,
        /// What it gets.
        grant: PortGrant,
    },
}

/// Decides a report of a port in use. A new port is something new, so the server must admit work (`Placement.server_admissible`).
///
/// # Errors
/// `PROJECT_NOT_FOUND`, `MODULE_NOT_FOUND`, `BOUND_SERVER_NOT_ADMISSIBLE`, or `PORTS_EXHAUSTED`.
pub fn replace_port(
    fleet: &Fleet,
    project: &Project,
    report: &PortInUseReport,
    context: &Context,
) -> Result<PortReplacement, Refusal> {
    let Some(placement) = &project.placement else { return Err(project_not_found(&project.id)) };
    let Some(held) = project.allocation(&report.module) else {
        let modules: Vec<_> = project.allocations.iter().map(|held| held.module.as_str()).collect();
        let modules = modules.join(", ");
        return Err(Refusal::new(
            Reason::ModuleNotFound,
            format!("project `{}` has no module `{}`; it has {modules}", project.id, report.module),
        )
        .with("project_id", &project.id)
        .with("module", &report.module)
        .with("modules", modules));
    };
    // A repeat, whose first answer was lost, or the port of another time: the answer is the port that the module has.
    if held.port != report.port {
        return Ok(PortReplacement::Unchanged);
    }
    let module = [ModuleRequest { name: held.module.clone(), port: None, protocol: Some(held.protocol) }];
    let ask = Ask {
        resources: Resources::ZERO,
        whole: placement.reserved,
        selector: &BTreeMap::new(),
        modules: &module,
        start_port: report.start_port,
        leaving: None,
        bound: true,
    };
    let grants = fit_bound(fleet, project, &placement.server_handle, &ask, context)?;
    Ok(match grants.into_iter().next() {
        Some(grant) => PortReplacement::Replace { held: held.clone(), grant },
        None => PortReplacement::Unchanged,
    })
}
