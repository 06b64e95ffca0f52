//! An attempt: what a transaction that is not yet committed did to the fleet, to be taken back where it comes to nothing. That is
//! cheap, where to read the tables anew is not; so a replica may plan before it knows that nobody else has committed meanwhile.
//!
//! What can be taken back is what a batch of ensures does: placements, ports and refusals.

use time::OffsetDateTime;

use super::{Fleet, refusals::Told};
use crate::domain::{
    ProjectId, Resources, ServerHandle,
    event::{LogEntry, Operation},
    ports::Before,
};

/// What was done since the attempt began.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    /// The fleet's number before it.
    sequence: i64,
    /// How far its time had come.
    time: Option<OffsetDateTime>,
    steps: Vec<Step>,
    /// Something was applied that cannot be taken back.
    is_final: bool,
}

/// What one operation did.
#[derive(Debug, Clone)]
struct Step {
    placed: Option<Placed>,
    project: ProjectId,
    /// The project's refusals that were told.
    refusals: Told,
}

#[derive(Debug, Clone)]
struct Placed {
    handle: ServerHandle,
    grown: Resources,
    placements: i64,
    ports: Vec<Before>,
}

impl Fleet {
    /// Begins an attempt: what is applied from now on can be taken back until it is kept.
    pub fn attempt(&mut self) {
        self.attempt = Some(Attempt { sequence: self.sequence, time: self.time, ..Attempt::default() });
    }

    /// Whether there is an attempt: what the fleet then says may come to nothing.
    #[must_use]
    pub fn is_attempting(&self) -> bool {
        self.attempt.is_some()
    }

    /// Keeps what the attempt did: it is committed.
    pub fn keep_attempt(&mut self) {
        self.attempt = None;
    }

    /// Takes back what the attempt did; tells whether that could be done. Where it could not, the fleet is of no use any more.
    #[must_use]
    pub fn take_back_attempt(&mut self) -> bool {
        let Some(attempt) = self.attempt.take() else { return true };
        for step in attempt.steps.into_iter().rev() {
            self.take_back(step);
        }
        self.sequence = attempt.sequence;
        self.time = attempt.time;
        !attempt.is_final
    }

    /// Notes what an operation is about to change, where there is an attempt.
    pub(super) fn note_step(&mut self, entry: &LogEntry) {
        let Some(mut attempt) = self.attempt.take() else { return };
        match self.step(entry) {
            Some(step) => attempt.steps.push(step),
            None => attempt.is_final = true,
        }
        self.attempt = Some(attempt);
    }

    /// What is needed to take an operation back; none where it cannot be.
    fn step(&self, entry: &LogEntry) -> Option<Step> {
        let project = entry.project_id.as_ref()?;
        let placed = match (&entry.operation, &entry.server_handle) {
            (Operation::Ensured(ensured), Some(handle))
                if ensured.served.is_none() && self.line.get(project).is_none() =>
            {
                let ports = &self.get(handle)?.ports;
                let before = ensured.allocations.iter().map(|held| ports.standing(held.protocol, held.port));
                Some(Placed {
                    handle: handle.clone(),
                    grown: ensured.grown,
                    placements: i64::from(ensured.selected.is_some()),
                    ports: before.collect(),
                })
            }
            (Operation::Refused(_), _) => None,
            _ => return None,
        };
        Some(Step { placed, project: project.clone(), refusals: self.refusals.of(project) })
    }

    fn take_back(&mut self, step: Step) {
        if let Some(Placed { handle, grown, placements, ports }) = step.placed {
            self.change_quietly(&handle, |state| {
                state.reserved -= grown;
                state.placement_count -= placements;
                for before in ports.iter().rev() {
                    state.ports.restore(before);
                }
            });
        }
        self.refusals.set(step.project, step.refusals);
    }
}
