//! The waiting line: who waits for capacity, in the order of arrival. A fold of the log like the fleet, of which it is a part, so
//! that every replica knows the same line; `settle` says who is served.
//!
//! **The rule.** Whoever came first is tried first. A younger request passes an older one only where the older one has no use for
//! what it takes. Of what the first in line could use on the server that is nearest to having room for it, nothing is given to
//! anyone else (`ServerState::kept_for`), whether that one stands in line or not. So by what the service decides, the first in
//! line never gets further from its place; everyone in line becomes the first, for each one before it is served, gives up, or
//! comes to its deadline; and a large request is not passed for ever by small ones.

mod reason;
mod settle;
mod standing;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use self::standing::WaitingAsk;
pub use self::{
    reason::Reasons,
    settle::{Known, Settling, Step, decide_in_line, refresh_kept},
};
use super::{
    ProjectId, Reason, Refusal, ServerHandle,
    event::{LogEntry, Operation, Refused, Requested},
    ports::DEFAULT_START_PORT,
    request::{EnsureRequest, Strategy},
};

/// For how long whoever left keeps its place, should it come back with the same request: a connection that broke looks like a
/// caller that cancelled.
pub const PLACE_KEPT: Duration = Duration::seconds(30);

/// What someone in line asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingRequest {
    /// What is asked for, as the request named it.
    pub requested: Requested,
    /// Which of the servers that fit is chosen.
    pub strategy: Strategy,
    /// After what time the placement ends by itself, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

impl WaitingRequest {
    /// What a request asks for.
    #[must_use]
    pub fn of(request: &EnsureRequest) -> Self {
        let ttl_ms = request.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        Self { requested: Requested::of(request), strategy: request.strategy, ttl_ms }
    }

    /// The request again.
    #[must_use]
    pub fn of_project(&self, project_id: ProjectId) -> EnsureRequest {
        EnsureRequest {
            project_id,
            modules: self.requested.modules.clone(),
            resources: self.requested.resources,
            server_handle: self.requested.server_handle.clone(),
            selector: self.requested.selector.clone(),
            start_port: self.requested.start_port.unwrap_or(DEFAULT_START_PORT),
            strategy: self.strategy,
            ttl: self.ttl_ms.map(std::time::Duration::from_millis),
        }
    }
}

/// A project took a place in line, or goes on standing there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// What it waits for.
    pub request: WaitingRequest,
    /// Why it cannot be placed now.
    pub reason: Reason,
    /// Its place, from 1.
    pub place: u32,
    /// The call that waits. A later one takes over from it.
    pub caller: Uuid,
    /// The operation by which the place was taken, where it was taken before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<i64>,
    /// Since when it stands in line.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub since: OffsetDateTime,
    /// Until when it waits.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub deadline: OffsetDateTime,
}

/// Why a project left the line without being served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveCause {
    /// Its caller hung up.
    Cancelled,
    /// It was released.
    Released,
    /// It got what it waited for by another call.
    Satisfied,
    /// Its time was over, or it can never be placed any more.
    Refused(Box<Refused>),
}

/// A project left the line without being served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeftLine {
    /// The operation by which it took its place.
    pub arrival: i64,
    /// The call that waited last.
    pub caller: Uuid,
    /// Why.
    pub cause: LeaveCause,
}

/// Who stands in line.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiter {
    /// The project.
    pub project_id: ProjectId,
    /// What it waits for.
    pub request: WaitingRequest,
    /// The request's id in the logs and in the log.
    pub request_id: String,
    /// Who made the request; empty without authentication.
    pub actor: String,
    /// The log's number of the operation by which it took its place: the order of the line.
    pub arrival: i64,
    /// The call that waits.
    pub caller: Uuid,
    /// Why it could not be placed when its call came; [`Reasons`] tells why it waits now.
    pub reason: Reason,
    /// Since when it stands in line.
    pub since: OffsetDateTime,
    /// Until when it waits.
    pub deadline: OffsetDateTime,
    /// Since when its caller is gone. Then its place is kept for a while, but it is not served.
    pub absent_since: Option<OffsetDateTime>,
}

impl Waiter {
    /// Whether its caller waits.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.absent_since.is_none()
    }

    /// When it is out of the line by itself.
    #[must_use]
    pub fn end(&self) -> OffsetDateTime {
        self.absent_since.map_or(self.deadline, |since| since + PLACE_KEPT)
    }

    /// The request again.
    #[must_use]
    pub fn ensure_request(&self) -> EnsureRequest {
        self.request.of_project(self.project_id.clone())
    }

    /// The refusal of who waited in vain.
    #[must_use]
    pub fn timed_out(&self, now: OffsetDateTime) -> Refusal {
        let waited_s = (now - self.since + Duration::milliseconds(500)).whole_seconds().max(0);
        timed_out(&self.project_id, waited_s, self.reason)
    }

    /// The operation of who leaves with a refusal.
    #[must_use]
    pub fn refused(&self, refusal: &Refusal) -> LeftLine {
        let refused = Refused {
            usage_counted: false,
            requested: self.request.requested.clone(),
            reason: refusal.reason,
            disposition: refusal.reason.disposition(),
            message: refusal.message.clone(),
            metadata: refusal.metadata.clone(),
        };
        self.left(LeaveCause::Refused(Box::new(refused)))
    }

    /// The operation of who leaves.
    #[must_use]
    pub fn left(&self, cause: LeaveCause) -> LeftLine {
        LeftLine { arrival: self.arrival, caller: self.caller, cause }
    }
}

/// The refusal of who waited in vain, for so many seconds.
#[must_use]
pub fn timed_out(project: &ProjectId, waited_s: i64, reason: Reason) -> Refusal {
    let reason = reason.as_str();
    Refusal::new(
        Reason::WaitTimedOut,
        format!(
            "project `{project}` stood in line for {waited_s} s and was not placed ({reason} when it joined); wait longer, ask for less, or register a server"
        ),
    )
    .with("project_id", project)
    .with("waited_s", waited_s)
    .with("waited_for", reason)
}

/// Whether a refusal is one that waiting may cure.
#[must_use]
pub fn may_wait(refusal: &Refusal) -> bool {
    match refusal.reason {
        Reason::InsufficientCapacity | Reason::PortsExhausted | Reason::UsageStale => true,
        // The server is well, but for a report that is late.
        Reason::BoundServerNotAdmissible => {
            refusal.metadata.get("cause").is_some_and(|cause| cause == "USAGE_STALE")
        }
        _ => false,
    }
}

/// Which servers may have got room since the line was last settled.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Changed {
    These(BTreeSet<ServerHandle>),
    Any,
}

impl Default for Changed {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// What is kept for the first in line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    server_handle: ServerHandle,
    /// Whose it is.
    arrival: i64,
    /// How far the server is from having room.
    distance: i128,
}

#[derive(Debug, Clone)]
struct Member {
    waiter: Waiter,
    /// What it asks of a server, worked out from what its project holds; none while that is not known.
    ask: Option<WaitingAsk>,
    /// Whether every server must be looked at for it, not only those that changed.
    look_everywhere: bool,
}

/// The line.
#[derive(Debug, Clone, Default)]
pub struct Line {
    members: BTreeMap<i64, Member>,
    arrivals: HashMap<ProjectId, i64>,
    ends: BTreeSet<(OffsetDateTime, i64)>,
    present: usize,
    changed: Changed,
    /// Whether servers may have become unable to ever hold what someone waits for.
    shrunk: bool,
    kept: Option<Kept>,
    /// For whom it was last worked out what is kept.
    keeps_for: Option<i64>,
}

impl Line {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.present
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// A project in line, or one that left it a moment ago.
    #[must_use]
    pub fn get(&self, project: &ProjectId) -> Option<&Waiter> {
        self.arrivals.get(project).map(|arrival| &self.members[arrival].waiter)
    }

    /// A project's place, from 1; where it stands in no line, the place at the end.
    #[must_use]
    pub fn place(&self, project: &ProjectId) -> u32 {
        let arrival = self.arrivals.get(project).copied().unwrap_or(i64::MAX);
        let before = self.waiters().take_while(|waiter| waiter.arrival < arrival).count();
        u32::try_from(before + 1).unwrap_or(u32::MAX)
    }

    /// Who waits, in order.
    pub fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.members.values().map(|member| &member.waiter).filter(|waiter| waiter.is_present())
    }

    /// When someone is next out of the line by itself.
    #[must_use]
    pub fn next_end(&self) -> Option<OffsetDateTime> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Whether the line need not be looked at: nothing changed since it was settled, and nobody's time is over.
    #[must_use]
    pub fn is_settled(&self, now: OffsetDateTime) -> bool {
        self.next_end().is_none_or(|end| end > now)
            && self.keeps_for == self.first().map(|(arrival, _)| arrival)
            && !self.shrunk
            && self.changed == Changed::default()
            && self.members.values().all(|member| !member.waiter.is_present() || member.ask.is_some())
    }

    /// Takes up a server that may have got room.
    pub(super) fn touch(&mut self, handle: &ServerHandle) {
        if self.present == 0 {
            return;
        }
        if let Changed::These(handles) = &mut self.changed {
            handles.insert(handle.clone());
        }
    }

    /// Takes up a place as it was read.
    pub fn load(&mut self, waiter: Waiter) {
        self.changed = Changed::Any;
        self.shrunk = true;
        self.insert(waiter);
    }

    /// Takes out a project whose place was kept for long enough.
    pub fn forget(&mut self, project: &ProjectId) {
        let Some(arrival) = self.arrivals.remove(project) else { return };
        if let Some(Member { waiter, .. }) = self.members.remove(&arrival) {
            self.ends.remove(&(waiter.end(), arrival));
            self.present -= usize::from(waiter.is_present());
        }
    }

    /// Folds what an operation does to the line.
    pub(super) fn fold(&mut self, entry: &LogEntry) {
        let Some(project) = &entry.project_id else {
            self.shrunk |= self.present > 0;
            return;
        };
        match &entry.operation {
            Operation::Waiting(waiting) => self.insert(Waiter {
                project_id: project.clone(),
                request: waiting.request.clone(),
                request_id: entry.request_id.clone(),
                actor: entry.actor.clone(),
                arrival: waiting.arrival.unwrap_or(entry.first_sequence),
                caller: waiting.caller,
                reason: waiting.reason,
                since: waiting.since,
                deadline: waiting.deadline,
                absent_since: None,
            }),
            Operation::LeftLine(LeftLine { cause: LeaveCause::Cancelled, .. }) => {
                if let Some(waiter) = self.get(project).cloned() {
                    self.insert(Waiter { absent_since: Some(entry.event_time), ..waiter });
                }
            }
            Operation::LeftLine(_) => self.forget(project),
            Operation::Ensured(ensured) if ensured.served.is_some() => self.forget(project),
            Operation::Refused(_) => {}
            _ => self.note_change(project),
        }
    }

    /// Takes up that what a project holds is another now, and so may be what it asks for.
    pub(super) fn note_change(&mut self, project: &ProjectId) {
        let arrival = self.arrivals.get(project);
        if let Some(member) = arrival.and_then(|arrival| self.members.get_mut(arrival)) {
            member.ask = None;
        }
    }

    fn insert(&mut self, waiter: Waiter) {
        self.forget(&waiter.project_id);
        self.arrivals.insert(waiter.project_id.clone(), waiter.arrival);
        self.ends.insert((waiter.end(), waiter.arrival));
        self.present += usize::from(waiter.is_present());
        self.members.insert(waiter.arrival, Member { waiter, ask: None, look_everywhere: true });
    }

    /// The first who waits.
    fn first(&self) -> Option<(i64, &Member)> {
        self.members
            .iter()
            .find(|(_, member)| member.waiter.is_present())
            .map(|(arrival, member)| (*arrival, member))
    }
}

#[cfg(test)]
mod tests;
