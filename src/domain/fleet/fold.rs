//! The fold: what operations of the log do to a fleet.

use time::OffsetDateTime;

use super::Fleet;
use crate::domain::{
    Allocation, Port, ProjectId, Protocol, Resources, ServerHandle,
    event::{Change, Grant, LogEntry, Operation, ServerChange},
};

impl Fleet {
    /// Folds an operation that was read from the log, outside of an attempt.
    pub fn follow(&mut self, change: &Change) {
        debug_assert!(!self.is_attempting(), "what was read is not taken back");
        match change {
            Change::Operation(entry) => self.apply(entry),
            Change::Grant(grant) => {
                let Grant { project_id, server_handle, is_placement, grown, ports, .. } = grant;
                self.advance(grant.last_sequence, grant.event_time);
                self.line.note_change(project_id);
                self.grant(Some(project_id), server_handle, *is_placement, *grown, ports.iter().copied());
            }
        }
    }

    fn advance(&mut self, sequence: i64, time: OffsetDateTime) {
        self.sequence = sequence;
        self.come_to(time);
    }

    fn grant(
        &mut self,
        project: Option<&ProjectId>,
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
        if let Some(project) = project {
            self.refusals.forget(project);
        }
    }

    /// Folds an operation.
    pub fn apply(&mut self, entry: &LogEntry) {
        self.note_step(entry);
        self.advance(entry.last_sequence(), entry.event_time);
        self.line.fold(entry);
        match (&entry.operation, &entry.server_handle) {
            (Operation::Ensured(ensured), Some(handle)) => {
                let ports = ensured.allocations.iter().map(|held| (held.protocol, held.port));
                let is_placement = ensured.selected.is_some();
                self.grant(entry.project_id.as_ref(), handle, is_placement, ensured.grown, ports);
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
