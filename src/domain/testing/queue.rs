//! The waiting line without a database: the ledger's part of it, done as the allocator does.

use time::Duration;
use uuid::Uuid;

use super::Ledger;
use crate::domain::{
    ProjectId, Refusal,
    event::{Operation, Served},
    line::{LeaveCause, Settling, Step, Waiter, Waiting, WaitingRequest, may_wait},
    request::EnsureRequest,
};

/// What became of someone in line.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// It was served.
    Served(ProjectId),
    /// It left: its time was over, or it can never be placed.
    Left(ProjectId),
}

/// What became of an ensure that waits.
#[derive(Debug)]
pub enum Waited {
    /// It was placed at once.
    Placed,
    /// It stands in line.
    Waits,
    /// It was refused.
    Refused,
}

impl Ledger {
    /// Ensures, and stands in line for so many seconds where there is no room.
    pub fn wait(&mut self, request: &EnsureRequest, seconds: i64) -> Waited {
        let now = self.now();
        let wanted = WaitingRequest::of(request);
        let id = request.project_id.clone();
        let standing = self.fleet.line().get(&id).filter(|waiter| waiter.end() > now).cloned();
        let same = standing.filter(|waiter| waiter.request == wanted);
        let served = same.as_ref().map(|waiter| Served { arrival: waiter.arrival, since: waiter.since });
        let refusal = match self.ensure_served(request, served) {
            Ok(_) => return Waited::Placed,
            Err(refusal) if !may_wait(&refusal) => return Waited::Refused,
            Err(refusal) => refusal,
        };
        let waiting = Waiting {
            request: wanted,
            reason: refusal.reason,
            place: self.fleet.line().place(&id),
            caller: Uuid::from_u128(self.log.len() as u128),
            arrival: same.as_ref().map(|waiter| waiter.arrival),
            since: same.as_ref().map_or(now, |waiter| waiter.since),
            deadline: now + Duration::seconds(seconds),
        };
        self.record(Some(id), None, Operation::Waiting(Box::new(waiting)));
        Waited::Waits
    }

    /// The caller of a project in line hangs up.
    pub fn leave(&mut self, id: &ProjectId) {
        let standing = self.fleet.line().get(id).filter(|waiter| waiter.is_present()).cloned();
        if let Some(waiter) = standing {
            self.left(&waiter, LeaveCause::Cancelled);
        }
    }

    fn left(&mut self, waiter: &Waiter, cause: LeaveCause) {
        self.record(Some(waiter.project_id.clone()), None, Operation::LeftLine(waiter.left(cause)));
    }

    /// Settles the line; `watch` is shown the ledger before each step that changes something.
    pub fn settle(&mut self, mut watch: impl FnMut(&Self, &Step)) -> Vec<Ended> {
        self.fleet.end_set_asides(self.now());
        let mut settling = Settling::begin();
        let mut ended = Vec::new();
        loop {
            let context = self.context();
            let projects = self.projects.clone();
            let known = |id: &ProjectId| {
                let unplaced = || crate::domain::Project::unplaced(id.clone());
                Some(projects.get(id).cloned().unwrap_or_else(unplaced))
            };
            let step = settling.next(&mut self.fleet, &known, &context);
            watch(self, &step);
            match step {
                Step::Settled => return ended,
                Step::Look(ids) => panic!("all projects are known: {ids:?}"),
                Step::TimeOut(waiter) => {
                    let refusal = waiter.timed_out(self.now());
                    ended.push(Ended::Left(waiter.project_id.clone()));
                    self.refuse(&waiter, &refusal);
                }
                Step::Refuse(waiter, refusal) => {
                    ended.push(Ended::Left(waiter.project_id.clone()));
                    self.refuse(&waiter, &refusal);
                }
                Step::Forget(id) => self.fleet.line_mut().forget(&id),
                Step::Satisfied(waiter) => {
                    ended.push(Ended::Left(waiter.project_id.clone()));
                    self.left(&waiter, LeaveCause::Satisfied);
                }
                Step::Serve(waiter) => {
                    let served = Served { arrival: waiter.arrival, since: waiter.since };
                    self.ensure_served(&waiter.ensure_request(), Some(served)).expect("there is room");
                    ended.push(Ended::Served(waiter.project_id));
                }
            }
        }
    }

    fn refuse(&mut self, waiter: &Waiter, refusal: &Refusal) {
        let left = Operation::LeftLine(waiter.refused(refusal));
        self.record(Some(waiter.project_id.clone()), None, left);
    }
}
