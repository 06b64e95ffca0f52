//! What one transaction is going to commit: the operations, folded into the fleet as they are decided, and what they make of the
//! projects at hand. Requests of one batch are decided in arrival order, each on what the ones before it left.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    domain::{
        Allocation, Fleet, Port, Project, ProjectId, Protocol, ServerHandle,
        event::{LogEntry, Operation},
    },
    store::{
        StoreError,
        batches::{self, Batch},
        events::EventColumns,
        placements::{self, PlacementColumns},
        ports::{self, GivenBackColumns, PortColumns},
    },
};

/// The operations of one transaction, and the projects that they are about.
#[derive(Debug)]
pub struct Journal {
    /// The transaction's time, by the database's clock.
    pub now: OffsetDateTime,
    /// Who asked for what is decided now.
    actor: Arc<str>,
    entries: Vec<LogEntry>,
    /// Whether a port that was given may have a row, for it was given back before.
    may_take_over: bool,
    /// Places in line that are gone without an operation.
    places: BTreeSet<ProjectId>,
    /// Leases that were renewed without an operation.
    renewed: BTreeSet<ProjectId>,
    committed: HashMap<ProjectId, Project>,
    projects: HashMap<ProjectId, Project>,
}

impl Journal {
    /// A journal of nothing, over what is committed for the projects at hand.
    #[must_use]
    pub fn new(now: OffsetDateTime, committed: HashMap<ProjectId, Project>) -> Self {
        let places = BTreeSet::new();
        let renewed = BTreeSet::new();
        Self {
            now,
            actor: Arc::default(),
            entries: Vec::new(),
            may_take_over: false,
            places,
            renewed,
            projects: committed.clone(),
            committed,
        }
    }

    /// From now on, what is recorded was asked for by this caller; an empty name is for what nobody asked for.
    pub fn act_for(&mut self, actor: impl Into<Arc<str>>) {
        self.actor = actor.into();
    }

    /// A project as the operations so far leave it.
    #[must_use]
    pub fn project(&self, id: &ProjectId) -> Project {
        self.projects.get(id).cloned().unwrap_or_else(|| Project::unplaced(id.clone()))
    }

    /// The same, where it was looked at.
    #[must_use]
    pub fn known(&self, id: &ProjectId) -> Option<Project> {
        self.projects.get(id).cloned()
    }

    /// Takes up what is committed for further projects: for those that are not found, nothing.
    pub fn learn(&mut self, ids: &[ProjectId], found: impl IntoIterator<Item = (ProjectId, Project)>) {
        let found: HashMap<_, _> = found.into_iter().collect();
        for id in ids {
            if self.projects.contains_key(id) {
                continue;
            }
            if let Some(project) = found.get(id) {
                self.committed.insert(id.clone(), project.clone());
            }
            let project = found.get(id).cloned().unwrap_or_else(|| Project::unplaced(id.clone()));
            self.projects.insert(id.clone(), project);
        }
    }

    /// The operations so far.
    #[must_use]
    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// The operations, for whoever has no other use for the journal.
    #[must_use]
    pub fn into_entries(self) -> Vec<LogEntry> {
        self.entries
    }

    /// Takes up a placement whose lease alone changed.
    pub fn note_renewal(&mut self, id: ProjectId) {
        self.renewed.insert(id);
    }

    /// Takes up a place in line that changed without an operation.
    pub fn note_place(&mut self, id: ProjectId) {
        self.places.insert(id);
    }

    /// The projects whose place in line may have changed.
    #[must_use]
    pub fn places(&self) -> BTreeSet<ProjectId> {
        let changes_a_place = |entry: &&LogEntry| match &entry.operation {
            Operation::Waiting(_) | Operation::LeftLine(_) => true,
            Operation::Ensured(ensured) => ensured.served.is_some(),
            _ => false,
        };
        let changed = self.entries.iter().filter(changes_a_place);
        changed.filter_map(|entry| entry.project_id.clone()).chain(self.places.iter().cloned()).collect()
    }

    /// Takes up a project as an operation leaves it.
    pub fn set_project(&mut self, project: Project) {
        self.projects.insert(project.id.clone(), project);
    }

    /// Takes up an operation and folds it into the fleet; returns the number of its last event.
    pub fn record(
        &mut self,
        fleet: &mut Fleet,
        project_id: Option<ProjectId>,
        server_handle: Option<ServerHandle>,
        request_id: &str,
        operation: Operation,
    ) -> i64 {
        let entry = LogEntry {
            first_sequence: fleet.sequence() + 1,
            event_time: self.now,
            project_id,
            server_handle,
            request_id: request_id.to_owned(),
            actor: self.actor.to_string(),
            operation,
        };
        self.may_take_over |= takes_over(fleet, &entry);
        fleet.apply(&entry);
        self.entries.push(entry);
        fleet.sequence()
    }

    /// Writes everything as statements over arrays. What is given back goes first, so that the sums never pass through a state
    /// that no order of the requests has.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the transaction may then be committed.
    pub async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        let changes = self.changes();
        if !changes.given_back.is_empty() {
            ports::update_given_back(conn, &changes.given_back).await?;
        }
        if !changes.deleted.is_empty() {
            placements::delete(conn, &changes.deleted).await?;
        }
        if !changes.updated.is_empty() {
            placements::update(conn, &changes.updated).await?;
        }
        if !self.entries.is_empty() {
            // Whatever changes a row is an operation.
            let written = batches::insert(conn, &self.batch(changes)?, None).await?;
            written.ok_or_else(StoreError::silent)?;
        }
        Ok(())
    }

    /// Everything, where one statement says it all; none where nothing is to be written, or not only rows are added.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn as_one_batch(&self) -> Result<Option<Batch>, StoreError> {
        let changes = self.changes();
        let adds_only =
            changes.given_back.is_empty() && changes.deleted.is_empty() && changes.updated.is_empty();
        if self.entries.is_empty() || !adds_only || !self.places().is_empty() {
            return Ok(None);
        }
        self.batch(changes).map(Some)
    }

    fn batch(&self, changes: Changes) -> Result<Batch, StoreError> {
        let events = EventColumns::of(&self.entries)?;
        let may_take_over = self.may_take_over;
        Ok(Batch { placements: changes.inserted, ports: changes.given, may_take_over, events })
    }

    /// What differs between what is committed and what the operations leave.
    fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        // In one fixed order, as every set of rows is written (L46).
        let touched: BTreeSet<_> =
            self.entries.iter().filter_map(|entry| entry.project_id.as_ref()).chain(&self.renewed).collect();
        let mut held = BTreeSet::new();
        for id in touched {
            let (before, after) = (self.committed.get(id), self.projects.get(id));
            let known: BTreeSet<_> = before
                .iter()
                .flat_map(|project| project.allocations.iter().map(|allocation| allocation.id))
                .collect();
            let placement = |project: Option<&Project>| project.and_then(|project| project.placement.clone());
            match (placement(before), placement(after)) {
                (None, Some(placement)) => changes.inserted.push(id, &placement),
                (Some(before), Some(after)) if before != after => changes.updated.push(id, &after),
                (Some(_), None) => changes.deleted.push(id.to_string()),
                _ => {}
            }
            let Some((after, placement)) = after.and_then(|after| Some((after, after.placement.as_ref()?)))
            else {
                continue;
            };
            for allocation in &after.allocations {
                held.insert((placement.server_handle.clone(), allocation.protocol, allocation.port));
                if !known.contains(&allocation.id) {
                    changes.given.push(id, &placement.server_handle, allocation);
                }
            }
        }
        let committed: BTreeSet<_> = self
            .committed
            .values()
            .filter_map(|project| Some((project, &project.placement.as_ref()?.server_handle)))
            .flat_map(|(project, handle)| {
                project.allocations.iter().map(move |a| (handle, a.protocol, a.port))
            })
            .collect();
        for GivenBack { handle, allocation, free_after, set_aside } in self.given_back().into_values() {
            let port = (handle.clone(), allocation.protocol, allocation.port);
            // Given back and given again within the batch, it need not rest in between, but where its row is a committed one:
            // the schema lets a port change hands by way of rest alone.
            if committed.contains(&(handle, allocation.protocol, allocation.port)) || !held.contains(&port) {
                changes.given_back.push(handle, allocation, free_after, set_aside);
            }
        }
        changes
    }

    /// The ports that were given back at some point, each once, as the last to give it back left it.
    fn given_back(&self) -> BTreeMap<(&ServerHandle, Protocol, Port), GivenBack<'_>> {
        let mut given_back = BTreeMap::new();
        for entry in &self.entries {
            let (handle, allocations, free_after, set_aside) = match &entry.operation {
                Operation::Released(released) => {
                    (entry.server_handle.as_ref(), &released.allocations[..], released.free_after, None)
                }
                Operation::Relocated(relocated) => {
                    (Some(&relocated.from_server_handle), &relocated.released[..], relocated.free_after, None)
                }
                Operation::PortReplaced(replaced) => (
                    entry.server_handle.as_ref(),
                    std::slice::from_ref(&replaced.set_aside),
                    replaced.until,
                    Some(replaced.detail.as_str()),
                ),
                Operation::Ensured(_)
                | Operation::Refused(_)
                | Operation::Waiting(_)
                | Operation::LeftLine(_)
                | Operation::ServerChanged(_)
                | Operation::PolicyChanged(_) => continue,
            };
            let Some(handle) = handle else { continue };
            for allocation in allocations {
                given_back.insert(
                    (handle, allocation.protocol, allocation.port),
                    GivenBack { handle, allocation, free_after, set_aside },
                );
            }
        }
        given_back
    }
}

/// Whether an operation gives a port that was given back before, as far as the fleet knows before the operation is folded into it.
fn takes_over(fleet: &Fleet, entry: &LogEntry) -> bool {
    match &entry.operation {
        Operation::Ensured(ensured) => {
            let state = entry.server_handle.as_ref().and_then(|handle| fleet.get(handle));
            let was_given_back = |held: &Allocation| {
                state.is_none_or(|state| state.ports.was_given_back(held.protocol, held.port))
            };
            ensured.allocations.iter().any(was_given_back)
        }
        // These are rare, so it is not looked at.
        Operation::Relocated(_) | Operation::PortReplaced(_) => true,
        _ => false,
    }
}

/// A port that was given back.
struct GivenBack<'a> {
    handle: &'a ServerHandle,
    allocation: &'a Allocation,
    free_after: OffsetDateTime,
    /// Why it is set aside, where it is.
    set_aside: Option<&'a str>,
}

#[derive(Debug, Default)]
struct Changes {
    given_back: GivenBackColumns,
    deleted: Vec<String>,
    updated: PlacementColumns,
    inserted: PlacementColumns,
    given: PortColumns,
}
