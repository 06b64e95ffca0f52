//! Which refusals were told a short while ago: while a caller retries, the log is not filled with the same one.

use std::collections::HashMap;

use time::{Duration, OffsetDateTime};

use crate::domain::{ProjectId, Reason};

/// For how long the same refusal of the same project is not told again (`AllocationEvent.requested`).
pub const REFUSAL_QUIET: Duration = Duration::seconds(10);

/// A project's refusals that were told, each by its reason, and when.
pub(super) type Told = Vec<(Reason, OffsetDateTime)>;

/// The refusals that were told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ToldRefusals(HashMap<ProjectId, Told>);

impl ToldRefusals {
    /// Whether it was told so short a while ago that it is not told again.
    pub(super) fn was_just_told(&self, project: &ProjectId, reason: Reason, now: OffsetDateTime) -> bool {
        let told = self.0.get(project).into_iter().flatten();
        told.into_iter().any(|(other, at)| *other == reason && is_recent(*at, now))
    }

    /// Notes that it was told. Those that may be told again are forgotten now and then.
    pub(super) fn note(&mut self, project: ProjectId, reason: Reason, at: OffsetDateTime) {
        if self.0.len().is_power_of_two() {
            self.0.retain(|_, told| told.iter().any(|(_, told)| is_recent(*told, at)));
        }
        let told = self.0.entry(project).or_default();
        told.retain(|(other, told)| *other != reason && is_recent(*told, at));
        told.push((reason, at));
    }

    /// What was told of a project.
    pub(super) fn of(&self, project: &ProjectId) -> Told {
        self.0.get(project).cloned().unwrap_or_default()
    }

    /// Forgets what was told of a project: it was placed.
    pub(super) fn forget(&mut self, project: &ProjectId) {
        self.0.remove(project);
    }

    /// Has it be this that was told of a project.
    pub(super) fn set(&mut self, project: ProjectId, told: Told) {
        if told.is_empty() {
            self.forget(&project);
        } else {
            self.0.insert(project, told);
        }
    }

    /// Of which projects anything is known.
    #[cfg(test)]
    pub(super) fn projects(&self) -> Vec<&str> {
        let mut projects: Vec<_> = self.0.keys().map(ProjectId::as_str).collect();
        projects.sort_unstable();
        projects
    }
}

fn is_recent(told: OffsetDateTime, now: OffsetDateTime) -> bool {
    now - told < REFUSAL_QUIET
}
