//! Replay: the log, folded into an empty fleet, with every decision made again on what the fold left before it. What the log
//! says and what the tables hold must be this fold, and what was decided must be what is decided now: that is what
//! "deterministic" means.
//!
//! The log carries everything that a decision depends on but usage reports, of which there are too many. A decision that could
//! depend on one says so (`usage_counted`), and one that comes out otherwise now is then not counted as wrong. The same goes
//! for decisions that were made while projects stood in line.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::{
    Allocation, Fleet, ModuleName, Placement, Port, Project, ProjectId, Protocol, Reason, Resources,
    ServerHandle,
    event::{Ensured, LogEntry, Operation, PortReplaced, Refused, Released, Relocated, Requested, Selected},
    placement::{
        Context, Decision, PortReplacement, Relocation, decide, filter::Stage, relocate, replace_port,
    },
    ports::{DEFAULT_START_PORT, PortGrant},
    request::{EnsureRequest, PortInUseReport, RelocateRequest, Strategy},
    server::Observation,
};

/// What came of making a decision again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// The operation is no decision.
    NoDecision,
    /// It came out the same.
    Same,
    /// It came out otherwise, and may: it depended on what the log does not carry.
    Open,
    /// It came out otherwise: what was committed, and what is decided now.
    Differs {
        /// What the log says.
        logged: String,
        /// What is decided now.
        decided: String,
    },
}

/// A fold of the log, with what each project holds.
#[derive(Debug, Default)]
pub struct Replay {
    fleet: Fleet,
    projects: BTreeMap<ProjectId, Project>,
}

/// What a decision gives, in a form that can be compared and told.
#[derive(Debug, PartialEq, Eq)]
enum Outcome<'a> {
    Given {
        server_handle: Option<&'a ServerHandle>,
        grown: Resources,
        ports: Vec<(&'a ModuleName, Protocol, Port)>,
    },
    Refused(Reason),
    Unchanged,
}

impl Replay {
    /// The fold.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// What each project holds that holds anything.
    #[must_use]
    pub fn projects(&self) -> &BTreeMap<ProjectId, Project> {
        &self.projects
    }

    /// Takes a usage report, where the reports are known.
    pub fn observe(&mut self, handle: &ServerHandle, observation: Observation) {
        self.fleet.observe(handle, observation);
    }

    /// Decides again what the operation decided, and folds it. `context` is what decisions depend on but for the time.
    pub fn take(&mut self, entry: &LogEntry, context: &Context) -> Again {
        let again = self.decide_again(entry, &Context { now: entry.event_time, ..*context });
        self.fold(entry);
        self.fleet.apply(entry);
        again
    }

    fn project(&self, id: &ProjectId) -> Project {
        self.projects.get(id).cloned().unwrap_or_else(|| Project::unplaced(id.clone()))
    }

    fn decide_again(&self, entry: &LogEntry, context: &Context) -> Again {
        let Some(id) = &entry.project_id else { return Again::NoDecision };
        let project = self.project(id);
        let server_handle = entry.server_handle.as_ref();
        let in_line = !self.fleet.line().is_empty();
        match &entry.operation {
            Operation::Ensured(Ensured {
                requested,
                selected,
                grown,
                allocations,
                usage_counted,
                served,
                ..
            }) => {
                let logged = Outcome::Given { server_handle, grown: *grown, ports: held(allocations) };
                let request = request(id, requested, selected.as_ref());
                let decided = decide(&self.fleet, &project, &request, context);
                let open = *usage_counted || in_line || served.is_some();
                compare(&logged, &of_decision(&decided), open)
            }
            Operation::Refused(Refused { requested, reason, metadata, usage_counted, .. }) => {
                let request = request(id, requested, None);
                let decided = decide(&self.fleet, &project, &request, context);
                // Whether reports are required is the service's own setting.
                let for_usage = *reason == Reason::UsageStale
                    || metadata.get("cause").is_some_and(|cause| cause == Stage::UsageStale.as_str());
                let open = *usage_counted || in_line || for_usage;
                compare(&Outcome::Refused(*reason), &of_decision(&decided), open)
            }
            Operation::Relocated(Relocated { selected, reserved, allocations, usage_counted, .. }) => {
                let logged = Outcome::Given { server_handle, grown: *reserved, ports: held(allocations) };
                let request = RelocateRequest {
                    project_id: id.clone(),
                    server_handle: None,
                    from_server_handle: None,
                    strategy: selected.strategy,
                };
                let decided = relocate(&self.fleet, &project, &request, context);
                let same = compare(&logged, &of_relocation(&decided, *reserved), *usage_counted || in_line);
                // The log does not say whether the server was named. Then it is one that would have done.
                let Again::Differs { .. } = same else { return same };
                let named = RelocateRequest { server_handle: server_handle.cloned(), ..request };
                let decided = relocate(&self.fleet, &project, &named, context);
                compare(&logged, &of_relocation(&decided, *reserved), false)
            }
            Operation::PortReplaced(PortReplaced {
                set_aside,
                allocation,
                detail,
                start_port,
                usage_counted,
                ..
            }) => {
                let held = std::slice::from_ref(allocation);
                let ports = self::held(held);
                let logged = Outcome::Given { server_handle, grown: Resources::ZERO, ports };
                let report = PortInUseReport {
                    project_id: id.clone(),
                    module: set_aside.module.clone(),
                    port: set_aside.port,
                    start_port: start_port.unwrap_or(DEFAULT_START_PORT),
                    detail: detail.clone(),
                };
                let decided = replace_port(&self.fleet, &project, &report, context);
                compare(&logged, &of_replacement(&decided, server_handle), *usage_counted)
            }
            Operation::Released(_)
            | Operation::ServerChanged(_)
            | Operation::PolicyChanged(_)
            | Operation::Waiting(_)
            | Operation::LeftLine(_) => Again::NoDecision,
        }
    }

    /// Folds what the operation does to its project.
    fn fold(&mut self, entry: &LogEntry) {
        let Some(id) = &entry.project_id else { return };
        let mut project = self.project(id);
        match &entry.operation {
            Operation::Ensured(ensured) => {
                let Some(server_handle) = &entry.server_handle else { return };
                let placement = project.placement.get_or_insert_with(|| {
                    new_placement(server_handle, &ensured.requested, entry.event_time)
                });
                placement.reserved += ensured.grown;
                project.allocations.extend(ensured.allocations.iter().cloned());
                project.allocations.sort_by(|a, b| a.module.cmp(&b.module));
            }
            Operation::Released(Released { allocations, returned, .. }) => {
                project.allocations.retain(|held| !allocations.iter().any(|gone| gone.id == held.id));
                if returned.is_some() {
                    project.placement = None;
                }
            }
            Operation::Relocated(relocated) => {
                if let (Some(placement), Some(handle)) = (&mut project.placement, &entry.server_handle) {
                    placement.server_handle = handle.clone();
                }
                project.allocations.clone_from(&relocated.allocations);
            }
            Operation::PortReplaced(replaced) => {
                for held in &mut project.allocations {
                    if held.id == replaced.set_aside.id {
                        *held = replaced.allocation.clone();
                    }
                }
            }
            Operation::Refused(_)
            | Operation::ServerChanged(_)
            | Operation::PolicyChanged(_)
            | Operation::Waiting(_)
            | Operation::LeftLine(_) => return,
        }
        match &mut project.placement {
            Some(placement) => {
                placement.revision = entry.last_sequence();
                placement.update_time = entry.event_time;
                self.projects.insert(id.clone(), project);
            }
            None => drop(self.projects.remove(id)),
        }
    }
}

fn new_placement(server_handle: &ServerHandle, requested: &Requested, now: OffsetDateTime) -> Placement {
    Placement {
        server_handle: server_handle.clone(),
        reserved: Resources::ZERO,
        selector: requested.selector.clone(),
        start_port: requested.start_port.unwrap_or(DEFAULT_START_PORT),
        revision: 0,
        create_time: now,
        update_time: now,
        // Renewals are not told in the log.
        expire_time: None,
    }
}

/// The request again.
fn request(id: &ProjectId, requested: &Requested, selected: Option<&Selected>) -> EnsureRequest {
    EnsureRequest {
        project_id: id.clone(),
        modules: requested.modules.clone(),
        resources: requested.resources,
        server_handle: requested.server_handle.clone(),
        selector: requested.selector.clone(),
        start_port: requested.start_port.unwrap_or(DEFAULT_START_PORT),
        // Where none is told nothing was chosen, and a refusal does not depend on it.
        strategy: selected.map_or(Strategy::Spread, |selected| selected.strategy),
        ttl: None,
    }
}

fn held(allocations: &[Allocation]) -> Vec<(&ModuleName, Protocol, Port)> {
    let mut ports: Vec<_> = allocations.iter().map(|held| (&held.module, held.protocol, held.port)).collect();
    ports.sort_unstable();
    ports
}

fn granted(grants: &[PortGrant]) -> Vec<(&ModuleName, Protocol, Port)> {
    let mut ports: Vec<_> = grants.iter().map(|grant| (&grant.module, grant.protocol, grant.port)).collect();
    ports.sort_unstable();
    ports
}

fn of_decision(decided: &Result<Decision, super::Refusal>) -> Outcome<'_> {
    match decided {
        Ok(Decision::Unchanged) => Outcome::Unchanged,
        Ok(
            Decision::Place { server_handle, reserve: grown, ports, .. }
            | Decision::Extend { server_handle, grow: grown, ports },
        ) => Outcome::Given { server_handle: Some(server_handle), grown: *grown, ports: granted(ports) },
        Err(refusal) => Outcome::Refused(refusal.reason),
    }
}

fn of_relocation(decided: &Result<Relocation, super::Refusal>, reserved: Resources) -> Outcome<'_> {
    match decided {
        Ok(Relocation::Unchanged) => Outcome::Unchanged,
        Ok(Relocation::Move { server_handle, ports, .. }) => {
            Outcome::Given { server_handle: Some(server_handle), grown: reserved, ports: granted(ports) }
        }
        Err(refusal) => Outcome::Refused(refusal.reason),
    }
}

fn of_replacement<'a>(
    decided: &'a Result<PortReplacement, super::Refusal>,
    server_handle: Option<&'a ServerHandle>,
) -> Outcome<'a> {
    match decided {
        Ok(PortReplacement::Unchanged) => Outcome::Unchanged,
        Ok(PortReplacement::Replace { grant, .. }) => {
            let ports = granted(std::slice::from_ref(grant));
            Outcome::Given { server_handle, grown: Resources::ZERO, ports }
        }
        Err(refusal) => Outcome::Refused(refusal.reason),
    }
}

fn compare(logged: &Outcome<'_>, decided: &Outcome<'_>, open: bool) -> Again {
    if logged == decided {
        Again::Same
    } else if open {
        Again::Open
    } else {
        Again::Differs { logged: told(logged), decided: told(decided) }
    }
}

fn told(outcome: &Outcome<'_>) -> String {
    match outcome {
        Outcome::Unchanged => "unchanged".to_owned(),
        Outcome::Refused(reason) => reason.as_str().to_owned(),
        Outcome::Given { server_handle, grown, ports } => {
            let server = server_handle.map_or("no server", ServerHandle::as_str);
            let ports: Vec<_> =
                ports.iter().map(|(module, protocol, port)| format!("{module} {port}/{protocol}")).collect();
            format!("{server} with {grown} and {}", ports.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
