//! The fold: what operations of the log do to a fleet. There is no other way in which sums and ports change.

use super::Fleet;
use crate::domain::{
    Allocation, Port, Protocol, Resources, ServerHandle,
    event::{Change, Grant, LogEntry, Operation, ServerChange},
};

impl Fleet {
    /// Folds an operation that another replica committed.
    pub fn follow(&mut self, change: &Change) {
        match change {
            Change::Operation(entry) => self.apply(entry),
            Change::Grant(grant) => self.apply_grant(grant),
        }
    }

    fn apply_grant(&mut self, grant: &Grant) {
        let Grant { project_id, server_handle, is_placement, grown, .. } = grant;
        self.note_final_step();
        self.sequence = grant.last_sequence;
        self.come_to(grant.event_time);
        self.line.note_change(project_id);
        self.grant(server_handle, *is_placement, *grown, grant.ports.iter().copied());
        self.refusals.forget(project_id);
    }

    fn grant(
        &mut self,
        handle: &ServerHandle,
        is_placement: bool,
        grown: Resources,
        ports: impl Iterator<Item = (Protocol, Port)>,
    ) {
        self.change_quietly(handle, |state| {
            state.reserved += grown;
            state.placement_count += i64::from(is_placement);
            for (protocol, port) in ports {
                state.ports.take(protocol, port);
            }
        });
    }

    /// Folds an operation.
    pub fn apply(&mut self, entry: &LogEntry) {
        self.note_step(entry);
        self.sequence = entry.last_sequence();
        self.come_to(entry.event_time);
        self.line.fold(entry);
        match (&entry.operation, &entry.server_handle) {
            (Operation::Ensured(ensured), Some(handle)) => {
                let ports = ensured.allocations.iter().map(|held| (held.protocol, held.port));
                self.grant(handle, ensured.selected.is_some(), ensured.grown, ports);
                if let Some(project) = &entry.project_id {
                    self.refusals.forget(project);
                }
            }
            (Operation::Released(released), Some(handle)) => {
                self.change(handle, |state| {
                    for Allocation { protocol, port, .. } in &released.allocations {
                        state.ports.give_back(*protocol, *port, released.free_after, entry.event_time);
                    }
                    if let Some(returned) = released.returned {
                        state.reserved -= returned;
                        state.placement_count -= 1;
                    }
                });
            }
            (Operation::Relocated(relocated), Some(handle)) => {
                self.change(&relocated.from_server_handle, |state| {
                    for Allocation { protocol, port, .. } in &relocated.released {
                        state.ports.give_back(*protocol, *port, relocated.free_after, entry.event_time);
                    }
                    state.reserved -= relocated.reserved;
                    state.placement_count -= 1;
                });
                self.change(handle, |state| {
                    for Allocation { protocol, port, .. } in &relocated.allocations {
                        state.ports.take(*protocol, *port);
                    }
                    state.reserved += relocated.reserved;
                    state.placement_count += 1;
                });
            }
            (Operation::PortReplaced(replaced), Some(handle)) => {
                self.set_aside_ends.insert((replaced.until, handle.clone()));
                self.change(handle, |state| {
                    let Allocation { protocol, port, .. } = replaced.set_aside;
                    state.ports.set_aside(protocol, port, replaced.until, entry.event_time);
                    state.ports.take(replaced.allocation.protocol, replaced.allocation.port);
                });
            }
            (Operation::PolicyChanged(changed), _) => {
                self.set_policy(changed.policy);
            }
            (Operation::Refused(refused), _) => {
                if let Some(project) = &entry.project_id {
                    self.refusals.note(project.clone(), refused.reason, entry.event_time);
                }
            }
            (Operation::ServerChanged(changed), _) => {
                if changed.changes.contains(&ServerChange::Removed) {
                    self.remove(&changed.server.handle);
                } else {
                    self.upsert(changed.server.clone());
                }
                if changed.changes.contains(&ServerChange::UsageStale) {
                    self.change(&changed.server.handle, |state| state.usage_stale = true);
                }
            }
            // The schema of the log has a server on all of these.
            (
                Operation::Ensured(_)
                | Operation::Released(_)
                | Operation::Relocated(_)
                | Operation::PortReplaced(_),
                None,
            )
            // The line has folded these.
            | (Operation::Waiting(_) | Operation::LeftLine(_), _) => {}
        }
    }
}
