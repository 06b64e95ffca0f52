//! The fleet: the state of a pool of servers as a fold over its log. Each replica keeps one and plans against it; it is a cache
//! that can be thrown away and read from the tables again at any time.
//!
//! It holds what a choice needs (servers, sums, ports), not what each project holds: that is read for the projects at hand.

mod attempt;
mod clock;
mod fold;
mod index;
mod refusals;
mod state;
mod trie;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use time::OffsetDateTime;

use self::{attempt::Attempt, index::Index, refusals::ToldRefusals};
pub use self::{
    clock::CLOCK_SKEW,
    index::Among,
    refusals::REFUSAL_QUIET,
    state::{PortStanding, ServerRow, ServerState},
    trie::{Cover, Verdict},
    view::{Room, Size, Standing, View},
};
use super::{
    Port, ProjectId, Protocol, Reason, Resources, Server, ServerHandle,
    event::ServerChanged,
    line::Line,
    placement::{Context, filter::admits},
    policy::FleetPolicy,
    request::ModuleRequest,
    server::{Observation, Observer},
};

/// A pool's servers in memory.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    servers: Vec<Option<ServerState>>,
    vacant: Vec<usize>,
    by_handle: HashMap<ServerHandle, usize>,
    line: Line,
    policy: FleetPolicy,
    /// How many servers have a usage report.
    observed: usize,
    index: Index,
    refusals: ToldRefusals,
    /// Until when ports are set aside, and on which servers; also such as are not any more.
    set_aside_ends: BTreeSet<(OffsetDateTime, ServerHandle)>,
    sequence: i64,
    /// The latest time that it was told of.
    time: Option<OffsetDateTime>,
    attempt: Option<Attempt>,
}

impl Fleet {
    /// The number of the last event that was folded.
    #[must_use]
    pub fn sequence(&self) -> i64 {
        self.sequence
    }

    /// Sets the number of the last event that the tables contained when they were read.
    pub fn set_sequence(&mut self, sequence: i64) {
        self.sequence = sequence;
    }

    /// Who waits for capacity.
    #[must_use]
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Who waits for capacity, for whoever settles the line.
    pub fn line_mut(&mut self) -> &mut Line {
        &mut self.line
    }

    /// Keeps of a server's room up to so much for the first in line.
    pub(super) fn keep(&mut self, handle: &ServerHandle, kept: Option<Resources>) {
        self.change_quietly(handle, |state| state.kept = kept);
    }

    /// What holds for every server that does not say otherwise.
    #[must_use]
    pub fn policy(&self) -> &FleetPolicy {
        &self.policy
    }

    /// Takes up another policy; tells whether it is another.
    pub fn set_policy(&mut self, policy: FleetPolicy) -> bool {
        if self.policy == policy {
            return false;
        }
        self.policy = policy;
        let handles: Vec<_> = self.by_handle.keys().cloned().collect();
        for handle in handles {
            self.change(&handle, |state| state.terms = policy.terms(&state.server));
        }
        true
    }

    /// Whether a decision may depend on a usage report.
    #[must_use]
    pub fn usage_counts(&self) -> bool {
        self.observed > 0
    }

    /// How many servers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_handle.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_handle.is_empty()
    }

    /// One server.
    #[must_use]
    pub fn get(&self, handle: &ServerHandle) -> Option<&ServerState> {
        self.by_handle.get(handle).and_then(|slot| self.servers[*slot].as_ref())
    }

    /// Every server, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &ServerState> {
        self.servers.iter().flatten()
    }

    /// The server that has this place in the indexes.
    #[must_use]
    pub fn at(&self, slot: u32) -> Option<&ServerState> {
        self.servers.get(slot as usize).and_then(Option::as_ref)
    }

    /// Reads off the index of the servers that carry the labels and, where `ports` says what is asked for from where on, may
    /// have the ports.
    pub fn read_index<T>(
        &self,
        selector: &BTreeMap<String, String>,
        ports: Option<(&[ModuleRequest], Port)>,
        context: &Context,
        read: impl FnOnce(&View) -> T,
    ) -> Among<T> {
        self.index.read(&self.servers, selector, ports, context, read)
    }

    /// Whether the servers that carry the labels and may have the ports are looked up at once.
    pub fn keeps_index(&self, selector: &BTreeMap<String, String>, ports: (&[ModuleRequest], Port)) -> bool {
        self.index.keeps(selector, ports)
    }

    /// Changes one server, tells the indexes, and has the line look at it; tells whether it is known.
    fn change(&mut self, handle: &ServerHandle, change: impl FnOnce(&mut ServerState)) -> bool {
        self.line.touch(handle);
        self.change_quietly(handle, change)
    }

    /// The same of a change that gives nobody room.
    fn change_quietly(&mut self, handle: &ServerHandle, change: impl FnOnce(&mut ServerState)) -> bool {
        let Some(slot) = self.by_handle.get(handle).copied() else { return false };
        let Some(state) = self.servers[slot].as_mut() else { return false };
        let reported = state.observed.is_some();
        change(state);
        self.observed = self.observed + usize::from(state.observed.is_some()) - usize::from(reported);
        self.index.changed(as_slot(slot), Some(state));
        true
    }

    /// Takes up what operators and sources set on a server, new or known.
    pub fn upsert(&mut self, server: Server) {
        let handle = server.handle.clone();
        if let Some(slot) = self.by_handle.get(&handle).copied() {
            if let Some(state) = &self.servers[slot]
                && state.server.labels != server.labels
            {
                self.index.unlabel(as_slot(slot), &state.server);
                self.index.label(as_slot(slot), &server);
            }
            let terms = self.policy.terms(&server);
            self.change(&handle, |state| {
                state.server = server;
                state.terms = terms;
                state.ports.block(&state.server, state.observed.as_ref());
            });
            return;
        }
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.servers.push(None);
            self.servers.len() - 1
        });
        let state = ServerState::empty(server, &self.policy);
        self.index.add(as_slot(slot), &state.server);
        self.index.changed(as_slot(slot), Some(&state));
        self.servers[slot] = Some(state);
        self.line.touch(&handle);
        self.by_handle.insert(handle, slot);
    }

    /// Takes a server out.
    pub fn remove(&mut self, handle: &ServerHandle) {
        let Some(slot) = self.by_handle.remove(handle) else { return };
        if let Some(state) = self.servers[slot].take() {
            self.observed -= usize::from(state.observed.is_some());
            self.index.remove(as_slot(slot), &state.server);
        }
        self.vacant.push(slot);
    }

    /// Takes up a row of the inventory as it was read, but for its sums: those follow from the log. Tells what was changed
    /// past the log, by hand.
    pub fn take_row(&mut self, row: ServerRow) -> Option<ServerChanged> {
        let ServerState { server, observed, usage_stale, generation, .. } = row.state;
        let handle = server.handle.clone();
        let changed = ServerChanged::between(self.get(&handle).map(|state| &state.server), &server);
        if changed.is_some() {
            self.upsert(server);
        }
        self.change(&handle, |state| {
            if state.observed != observed {
                state.observed = observed;
                state.ports.block(&state.server, state.observed.as_ref());
            }
            state.usage_stale = usage_stale;
            state.generation = generation;
        });
        changed
    }

    /// Takes up a row with its sums, where the tables are read from scratch.
    pub fn load_row(&mut self, row: ServerRow) {
        let (handle, reserved, placement_count) =
            (row.state.server.handle.clone(), row.state.reserved, row.state.placement_count);
        self.take_row(row);
        self.change(&handle, |state| {
            state.reserved = reserved;
            state.placement_count = placement_count;
        });
    }

    /// Takes up ports that are held, as they were read.
    pub fn load_held(&mut self, handle: &ServerHandle, protocol: Protocol, ports: &[Port]) {
        self.change(handle, |state| {
            for port in ports {
                state.ports.take(protocol, *port);
            }
        });
    }

    /// Takes up a port as it was read.
    pub fn load_port(
        &mut self,
        handle: &ServerHandle,
        protocol: Protocol,
        port: Port,
        standing: PortStanding,
        now: OffsetDateTime,
    ) {
        self.come_to(now);
        if let PortStanding::SetAside(until) = standing {
            self.set_aside_ends.insert((until, handle.clone()));
        }
        self.change(handle, |state| match standing {
            PortStanding::Held => state.ports.take(protocol, port),
            PortStanding::Resting(until) => state.ports.give_back(protocol, port, until, now),
            PortStanding::SetAside(until) => state.ports.set_aside(protocol, port, until, now),
        });
    }

    /// Whether the server admits work.
    #[must_use]
    pub fn admits(&self, handle: &ServerHandle, context: &Context) -> bool {
        self.get(handle).is_some_and(|state| {
            admits(state.server.managed, state.server.status, state.host_report_time(), context).is_ok()
        })
    }

    /// Takes up a usage report. A provider's figure stands in until the host itself reports (L22).
    pub fn observe(&mut self, handle: &ServerHandle, observation: Observation) {
        self.change(handle, |state| {
            if observation.observer == Observer::Provider && state.host_report_time().is_some() {
                return;
            }
            state.observed = Some(observation);
            state.usage_stale = false;
            state.ports.block(&state.server, state.observed.as_ref());
        });
    }

    /// Whether the same refusal of the project was told so short a while ago that it is not told again.
    #[must_use]
    pub fn was_just_refused(&self, project: &ProjectId, reason: Reason, now: OffsetDateTime) -> bool {
        self.refusals.was_just_told(project, reason, now)
    }

    /// Takes over what another fleet knows of refusals, which is not in the tables.
    pub fn take_refusals_of(&mut self, other: Self) {
        self.refusals = other.refusals;
    }
}

/// A place as the indexes have it. A fleet has nowhere near so many servers that it would not fit.
fn as_slot(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
