//! The allocator without a database: what is decided is committed at once, and folded.

use std::collections::{BTreeMap, BTreeSet};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{NOW, TestServer, context_at, handle, project};
use crate::domain::{
    Allocation, Fleet, ModuleName, Placement, Project, ProjectId, Refusal, ResourceRequest, Resources,
    Server, ServerHandle,
    event::{
        Ensured, LogEntry, Operation, PolicyChanged, PortReplaced, Refused, ReleaseCause, Released,
        Relocated, Requested, Served, ServerChange, ServerChanged,
    },
    inventory::check_removable,
    line::decide_in_line,
    placement::{Context, Decision, PortReplacement, Relocation, relocate, replace_port},
    policy::FleetPolicy,
    ports::{DEFAULT_START_PORT, PortGrant},
    request::{EnsureRequest, PortInUseReport, RelocateRequest},
    resources::PerResource,
    server::Observation,
};

/// What the tables would hold, beside the fleet that is folded from the log.
///
/// When not to use it: where one decision over a described fleet is enough (`decide_new`), which says more in fewer lines.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The fold.
    pub fleet: Fleet,
    /// What each project holds.
    pub projects: BTreeMap<ProjectId, Project>,
    /// What was committed, in order.
    pub log: Vec<Committed>,
    /// The time, in seconds from [`NOW`].
    pub clock: i64,
}

/// One thing that a replica takes up.
#[derive(Debug, Clone)]
pub enum Committed {
    /// An operation of the log.
    Entry(Box<LogEntry>),
    /// A usage report, which is read from the server's row.
    Usage(ServerHandle, Observation),
}

impl Ledger {
    /// For how long a port rests.
    pub const PORT_REST: Duration = Duration::seconds(60);

    /// For how long a port is set aside.
    pub const PORT_SET_ASIDE: Duration = Duration::seconds(3600);

    /// A ledger in which the servers are registered, and nothing is placed.
    pub fn of<'a>(servers: impl IntoIterator<Item = &'a TestServer>) -> Self {
        let mut ledger = Self::default();
        for server in servers {
            ledger.put(server);
        }
        ledger
    }

    /// The time.
    pub fn now(&self) -> OffsetDateTime {
        NOW + Duration::seconds(self.clock)
    }

    /// What decisions depend on now.
    pub fn context(&self) -> Context {
        context_at(self.now())
    }

    /// What a project holds.
    pub fn project(&self, id: &ProjectId) -> Project {
        self.projects.get(id).cloned().unwrap_or_else(|| Project::unplaced(id.clone()))
    }

    /// What a project holds, by name.
    pub fn held_by(&self, name: &str) -> Project {
        self.project(&project(name))
    }

    /// What is reserved on a server, by name.
    pub fn reserved_on(&self, name: &str) -> Resources {
        self.fleet.get(&handle(name)).unwrap().reserved
    }

    /// Registers or changes a server, and takes its usage report if it is described with one.
    pub fn put(&mut self, server: &TestServer) {
        self.put_server(server.server.clone());
        if let Some(observation) = &server.observed {
            self.observe(&server.server.handle, observation.clone());
        }
    }

    /// Registers or changes a server.
    pub fn put_server(&mut self, server: Server) {
        let standing = self.fleet.get(&server.handle).map(|state| &state.server);
        if let Some(changed) = ServerChanged::between(standing, &server) {
            self.record(None, Some(server.handle), Operation::ServerChanged(changed));
        }
    }

    /// Removes a server.
    pub fn remove(&mut self, server_handle: &ServerHandle) -> Result<(), Refusal> {
        let Some(state) = self.fleet.get(server_handle) else { return Ok(()) };
        check_removable(state)?;
        let changed = ServerChanged { changes: vec![ServerChange::Removed], server: state.server.clone() };
        self.record(None, Some(server_handle.clone()), Operation::ServerChanged(changed));
        Ok(())
    }

    /// Takes a usage report.
    pub fn observe(&mut self, server_handle: &ServerHandle, observation: Observation) {
        self.fleet.observe(server_handle, observation.clone());
        self.log.push(Committed::Usage(server_handle.clone(), observation));
    }

    /// Ensures, and commits what is decided.
    pub fn ensure(&mut self, request: &EnsureRequest) -> Result<Decision, Refusal> {
        let decision = self.ensure_served(request, None);
        if let Err(refusal) = &decision
            && !self.fleet.was_just_refused(&request.project_id, refusal.reason, self.now())
        {
            let operation = Operation::Refused(Refused {
                usage_counted: false,
                requested: Requested::of(request),
                reason: refusal.reason,
                disposition: refusal.reason.disposition(),
                message: refusal.message.clone(),
                metadata: refusal.metadata.clone(),
            });
            self.record(Some(request.project_id.clone()), None, operation);
        }
        decision
    }

    /// The same of one who stood in line, but for a refusal, which is not committed.
    pub fn ensure_served(
        &mut self,
        request: &EnsureRequest,
        served: Option<Served>,
    ) -> Result<Decision, Refusal> {
        let mut project = self.project(&request.project_id);
        let context = self.context();
        let decision = decide_in_line(&mut self.fleet, &project, request, &context);
        let requested = Requested::of(request);
        let (server_handle, selected, grown) = match &decision {
            Ok(Decision::Place { server_handle, selected, reserve, .. }) => {
                (server_handle, Some(*selected), *reserve)
            }
            Ok(Decision::Extend { server_handle, grow, .. }) => (server_handle, None, *grow),
            Ok(Decision::Unchanged) | Err(_) => return decision,
        };
        let now = self.now();
        let placement = project.placement.get_or_insert_with(|| Placement {
            server_handle: server_handle.clone(),
            reserved: Resources::ZERO,
            selector: request.selector.clone(),
            start_port: request.start_port,
            revision: 0,
            create_time: now,
            update_time: now,
            expire_time: None,
        });
        placement.reserved += grown;
        let ports = decision.as_ref().map(Decision::ports).unwrap_or_default();
        let allocations = self.allocations(ports);
        project.allocations.extend(allocations.iter().cloned());
        project.allocations.sort_by(|a, b| a.module.cmp(&b.module));
        let ensured = Ensured {
            usage_counted: false,
            requested,
            selected,
            server_address: self.fleet.get(server_handle).unwrap().server.address.clone(),
            grown,
            allocations,
            allocation_count: u32::try_from(project.allocations.len()).unwrap(),
            expire_time: None,
            served,
        };
        self.record(Some(project.id.clone()), Some(server_handle.clone()), Operation::Ensured(ensured));
        self.projects.insert(project.id.clone(), project);
        decision
    }

    /// The allocations that a decision gives.
    fn allocations(&self, grants: &[PortGrant]) -> Vec<Allocation> {
        let id = |index: usize| Uuid::from_u128((self.log.len() * 100 + index) as u128);
        let allocation = |(index, grant): (usize, &PortGrant)| Allocation {
            id: id(index),
            module: grant.module.clone(),
            protocol: grant.protocol,
            port: grant.port,
            pinned: grant.pinned,
            create_time: self.now(),
        };
        grants.iter().enumerate().map(allocation).collect()
    }

    /// Relocates, and commits what is decided.
    pub fn relocate(&mut self, request: &RelocateRequest) -> Result<Relocation, Refusal> {
        let mut project = self.project(&request.project_id);
        let relocation = relocate(&self.fleet, &project, request, &self.context())?;
        let Relocation::Move { server_handle, selected, ports } = &relocation else { return Ok(relocation) };
        let allocations = self.allocations(ports);
        let address = |handle: &ServerHandle| self.fleet.get(handle).unwrap().server.address.clone();
        let placement = project.placement.as_mut().unwrap();
        let from_server_handle = std::mem::replace(&mut placement.server_handle, server_handle.clone());
        let operation = Operation::Relocated(Relocated {
            usage_counted: false,
            from_server_address: address(&from_server_handle),
            from_server_handle,
            server_address: address(server_handle),
            selected: *selected,
            reserved: placement.reserved,
            released: std::mem::replace(&mut project.allocations, allocations.clone()),
            free_after: self.now() + Self::PORT_REST,
            allocations,
        });
        self.record(Some(project.id.clone()), Some(server_handle.clone()), operation);
        self.projects.insert(project.id.clone(), project);
        Ok(relocation)
    }

    /// Takes a report of a port in use, and commits what is decided.
    pub fn report_port_in_use(&mut self, report: &PortInUseReport) -> Result<PortReplacement, Refusal> {
        let mut project = self.project(&report.project_id);
        let replacement = replace_port(&self.fleet, &project, report, &self.context())?;
        let PortReplacement::Replace { held, grant } = &replacement else { return Ok(replacement) };
        let allocation = self.allocations(std::slice::from_ref(grant)).remove(0);
        let server_handle = project.placement.as_ref().unwrap().server_handle.clone();
        for standing in &mut project.allocations {
            if standing.module == held.module {
                *standing = allocation.clone();
            }
        }
        let operation = Operation::PortReplaced(PortReplaced {
            server_address: self.fleet.get(&server_handle).unwrap().server.address.clone(),
            set_aside: held.clone(),
            until: self.now() + Self::PORT_SET_ASIDE,
            detail: report.detail.clone(),
            allocation,
            start_port: (report.start_port != DEFAULT_START_PORT).then_some(report.start_port),
            usage_counted: false,
        });
        self.record(Some(project.id.clone()), Some(server_handle), operation);
        self.projects.insert(project.id.clone(), project);
        Ok(replacement)
    }

    /// Changes the policy.
    pub fn set_policy(&mut self, policy: FleetPolicy) {
        if policy != *self.fleet.policy() {
            self.record(None, None, Operation::PolicyChanged(PolicyChanged { policy }));
        }
    }

    /// Releases modules of a project, or all where none is named; returns what was given back.
    pub fn release(&mut self, name: &str, modules: &[&str]) -> Vec<Allocation> {
        let modules: Vec<_> = modules.iter().map(|name| super::module(name)).collect();
        self.release_modules(&project(name), &modules)
    }

    /// The same, of names that are parsed.
    pub fn release_modules(&mut self, id: &ProjectId, modules: &[ModuleName]) -> Vec<Allocation> {
        let mut project = self.project(id);
        let Some(placement) = project.placement.clone() else { return Vec::new() };
        let goes = |allocation: &Allocation| modules.is_empty() || modules.contains(&allocation.module);
        let (released, kept): (Vec<_>, Vec<_>) = project.allocations.into_iter().partition(goes);
        if released.is_empty() && !kept.is_empty() {
            return released;
        }
        let returned = kept.is_empty().then_some(placement.reserved);
        let operation = Operation::Released(Released {
            cause: ReleaseCause::Requested,
            server_address: self.fleet.get(&placement.server_handle).unwrap().server.address.clone(),
            allocations: released.clone(),
            returned,
            free_after: self.now() + Self::PORT_REST,
        });
        self.record(Some(id.clone()), Some(placement.server_handle), operation);
        project.allocations = kept;
        if returned.is_some() {
            self.projects.remove(id);
        } else {
            self.projects.insert(id.clone(), project);
        }
        released
    }

    pub(super) fn record(
        &mut self,
        project_id: Option<ProjectId>,
        server_handle: Option<ServerHandle>,
        operation: Operation,
    ) {
        let entry = LogEntry {
            first_sequence: self.fleet.sequence() + 1,
            event_time: self.now(),
            project_id,
            server_handle,
            request_id: format!("request-{}", self.log.len()),
            actor: String::new(),
            operation,
        };
        self.fleet.apply(&entry);
        self.log.push(Committed::Entry(Box::new(entry)));
    }

    /// A server that says itself what the policy says for it.
    fn spelled_out(&self, server: &Server) -> Server {
        let policy = self.fleet.policy();
        let or_default = |own: Option<i64>, capacity: i64, amount: i64, percent: i64| {
            let share = capacity * percent / 100 + i64::from(capacity * percent % 100 != 0);
            Some(own.unwrap_or(if amount > share { amount } else { share }))
        };
        let (own, capacity) = (server.headroom, server.capacity);
        let (amount, percent) = (policy.headroom, policy.headroom_percent);
        let ratio = |own: Option<i64>, policy: i64| own.or(Some(policy));
        Server {
            headroom: ResourceRequest {
                cpu_millis: or_default(own.cpu_millis, capacity.cpu_millis, amount.cpu_millis, percent.cpu),
                ram_mb: or_default(own.ram_mb, capacity.ram_mb, amount.ram_mb, percent.ram),
                disk_mb: or_default(own.disk_mb, capacity.disk_mb, amount.disk_mb, percent.disk),
            },
            overcommit_percent: PerResource {
                cpu: ratio(server.overcommit_percent.cpu, policy.overcommit_percent.cpu),
                ram: ratio(server.overcommit_percent.ram, policy.overcommit_percent.ram),
                disk: ratio(server.overcommit_percent.disk, policy.overcommit_percent.disk),
            },
            ..server.clone()
        }
    }

    /// The servers as the log's bookkeeper would write them down: every sum counted anew from what the projects hold, every
    /// resting port from what was given back.
    ///
    /// The policy is written out on each server, so that these stand for themselves.
    pub fn servers(&self) -> Vec<TestServer> {
        let mut servers: Vec<_> = self
            .fleet
            .iter()
            .map(|state| TestServer {
                server: self.spelled_out(&state.server),
                reserved: Resources::ZERO,
                placement_count: 0,
                observed: state.observed.clone(),
                held: BTreeSet::new(),
                resting: BTreeMap::new(),
                set_aside: BTreeMap::new(),
            })
            .collect();
        for server in &mut servers {
            let name = server.server.handle.clone();
            for entry in &self.log {
                let Committed::Entry(entry) = entry else { continue };
                match &entry.operation {
                    // A server that was removed takes its resting ports along.
                    Operation::ServerChanged(changed)
                        if changed.server.handle == name
                            && changed.changes.contains(&ServerChange::Removed) =>
                    {
                        server.resting.clear();
                        server.set_aside.clear();
                    }
                    Operation::Released(released) if entry.server_handle.as_ref() == Some(&name) => {
                        for allocation in &released.allocations {
                            server
                                .resting
                                .insert((allocation.protocol, allocation.port), released.free_after);
                        }
                    }
                    Operation::Ensured(Ensured { allocations, .. })
                        if entry.server_handle.as_ref() == Some(&name) =>
                    {
                        server.take(allocations);
                    }
                    Operation::Relocated(relocated) => {
                        if relocated.from_server_handle == name {
                            for allocation in &relocated.released {
                                server
                                    .resting
                                    .insert((allocation.protocol, allocation.port), relocated.free_after);
                            }
                        }
                        if entry.server_handle.as_ref() == Some(&name) {
                            server.take(&relocated.allocations);
                        }
                    }
                    Operation::PortReplaced(replaced) if entry.server_handle.as_ref() == Some(&name) => {
                        let Allocation { protocol, port, .. } = replaced.set_aside;
                        server.set_aside.insert((protocol, port), replaced.until);
                        server.take(std::slice::from_ref(&replaced.allocation));
                    }
                    _ => {}
                }
            }
            for project in self.projects.values() {
                let Some(placement) = &project.placement else { continue };
                if placement.server_handle != name {
                    continue;
                }
                server.reserved += placement.reserved;
                server.placement_count += 1;
                for allocation in &project.allocations {
                    let new = server.held.insert((allocation.protocol, allocation.port));
                    assert!(new, "{}/{} on {name} was given twice", allocation.port, allocation.protocol);
                }
            }
        }
        servers
    }
}

impl TestServer {
    /// Ports that are given neither rest nor are set aside.
    fn take(&mut self, allocations: &[Allocation]) {
        for Allocation { protocol, port, .. } in allocations {
            self.resting.remove(&(*protocol, *port));
            self.set_aside.remove(&(*protocol, *port));
        }
    }
}
