//! This replica's copy of the pool: the fleet, and up to where it has folded what others committed. It is a cache: whatever goes
//! wrong, it is thrown away and read from the tables again.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{load, placed::Placed};
use crate::{
    domain::{
        Fleet,
        event::{Change, Operation, ServerChange, ServerChanged},
        policy::FleetPolicy,
    },
    store::{StoreError, batches::Expected, events, pools::PoolState, servers, waiters},
};

/// How many operations are read at once when the fleet is behind.
const FOLD_PAGE: i64 = 5_000;

/// The fleet, and where it stands.
#[derive(Debug)]
pub struct Replica {
    fleet: Fleet,
    placed: Placed,
    /// Which history the fleet is of; none before it was first read, and after it was thrown away.
    epoch: Option<Uuid>,
    inventory_revision: i64,
    edit_count: i64,
    /// Changes of servers that were made by hand, past the log; the next transaction tells the log.
    unlogged: Vec<ServerChanged>,
    /// The same of the policy.
    unlogged_policy: Option<FleetPolicy>,
    /// Whether something was followed that may change what is kept for the first in line.
    kept_is_old: bool,
}

/// Where a pool stands, by what counts the changes that are made through the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    last_sequence: i64,
    inventory_revision: i64,
}

impl From<&PoolState> for Position {
    fn from(pool: &PoolState) -> Self {
        Self { last_sequence: pool.last_sequence, inventory_revision: pool.inventory_revision }
    }
}

impl Replica {
    /// A replica of nothing, which tells in `placed` which projects are placed.
    #[must_use]
    pub fn new(placed: Placed) -> Self {
        Self {
            fleet: Fleet::default(),
            placed,
            epoch: None,
            inventory_revision: 0,
            edit_count: 0,
            unlogged: Vec::new(),
            unlogged_policy: None,
            kept_is_old: false,
        }
    }

    /// Which projects are placed.
    #[must_use]
    pub fn placed(&self) -> &Placed {
        &self.placed
    }

    /// The fleet.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The fleet, to fold what this replica is about to commit.
    pub fn fleet_mut(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    /// Throws the fleet away; the next [`Self::catch_up`] reads the tables.
    pub fn forget(&mut self) {
        self.epoch = None;
    }

    /// Where the pool stands as far as this replica knows.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { last_sequence: self.fleet.sequence(), inventory_revision: self.inventory_revision }
    }

    /// Whether the fleet includes all that `pool` does, and what is kept for the first in line; it may include more.
    #[must_use]
    pub fn includes(&self, pool: &PoolState) -> bool {
        self.epoch == Some(pool.epoch)
            && !self.kept_is_old
            && !self.fleet.is_attempting()
            && self.edit_count == pool.edit_count
            && self.fleet.sequence() >= pool.last_sequence
            && self.inventory_revision >= pool.inventory_revision
    }

    /// Where the pool stands as far as this replica knows, where it has nothing to tell the log: what is planned on the fleet as
    /// it is may be written if that is still so. None where the fleet must be caught up first.
    #[must_use]
    pub fn expected(&self, now: OffsetDateTime) -> Option<Expected> {
        let epoch = self.epoch.filter(|_| !self.has_to_tell())?;
        Some(Expected {
            epoch,
            last_sequence: self.fleet.sequence(),
            inventory_revision: self.inventory_revision,
            edit_count: self.edit_count,
            now,
        })
    }

    /// Whether there are changes by hand that the log does not know of.
    fn has_to_tell(&self) -> bool {
        !self.unlogged.is_empty() || self.unlogged_policy.is_some()
    }

    /// The changes by hand that the log does not know of.
    pub fn take_unlogged(&mut self) -> Vec<ServerChanged> {
        std::mem::take(&mut self.unlogged)
    }

    /// The same of the policy.
    pub fn take_unlogged_policy(&mut self) -> Option<FleetPolicy> {
        self.unlogged_policy.take()
    }

    /// Takes up the policy as the pool's row has it, which the log should have told.
    fn take_policy(&mut self, pool: &PoolState) {
        self.unlogged_policy =
            self.fleet.set_policy(pool.policy).then_some(pool.policy).or(self.unlogged_policy);
    }

    /// Whether a transaction has something to do here, other than to fold the log: the tables were changed by hand, or there is
    /// something to tell of it.
    #[must_use]
    pub fn wants_row(&self, pool: &PoolState) -> bool {
        self.has_to_tell() || self.must_reload(pool) || self.inventory_revision != pool.inventory_revision
    }

    /// Whether the tables must be read anew.
    #[must_use]
    pub fn must_reload(&self, pool: &PoolState) -> bool {
        !self.can_fold(pool) || self.edit_count != pool.edit_count
    }

    /// Whether the log leads from the fleet to where `pool` stands.
    fn can_fold(&self, pool: &PoolState) -> bool {
        self.epoch == Some(pool.epoch)
            && !self.fleet.is_attempting()
            && (pool.compacted_sequence..=pool.last_sequence).contains(&self.fleet.sequence())
    }

    /// Brings the fleet to where `pool` stands. `conn` must see that state: either it holds the pool's row, or its
    /// transaction's reads are all of one snapshot, `pool` among them.
    ///
    /// # Errors
    /// [`StoreError`]; the fleet then stands somewhere between, and a later call goes on from there.
    pub async fn catch_up(&mut self, conn: &mut PgConnection, pool: &PoolState) -> Result<(), StoreError> {
        if self.must_reload(pool) {
            return self.reload(conn, pool).await;
        }
        if !self.fold(conn, pool).await? {
            return self.reload(conn, pool).await;
        }
        self.take_policy(pool);
        self.read_changed_servers(conn, pool.inventory_revision).await?;
        // The newest change may have been of a server that is gone by now.
        self.inventory_revision = self.inventory_revision.max(pool.inventory_revision);
        Ok(())
    }

    /// Folds the log up to where `pool` stands. Where this release cannot read what it tells, the fleet is thrown away, for the tables
    /// are the truth, and with it what was to be told of edits by hand, which a replica that can read on tells; tells whether it was
    /// folded.
    async fn fold(&mut self, conn: &mut PgConnection, pool: &PoolState) -> Result<bool, StoreError> {
        while self.fleet.sequence() < pool.last_sequence {
            match self.fold_page(conn, pool).await {
                Err(error @ StoreError::Inconsistent { .. }) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the log cannot be folded");
                    self.forget();
                    return Ok(false);
                }
                folded => folded?,
            }
        }
        Ok(true)
    }

    async fn fold_page(&mut self, conn: &mut PgConnection, pool: &PoolState) -> Result<(), StoreError> {
        let changes = events::list_changes_after(conn, self.fleet.sequence(), FOLD_PAGE).await?;
        if changes.is_empty() {
            return Err(StoreError::Inconsistent {
                table: "allocation_events",
                row: (self.fleet.sequence() + 1).to_string(),
                problem: format!("the log ends before {}", pool.last_sequence),
            });
        }
        self.take(&changes);
        Ok(())
    }

    /// Up to which event the fleet is folded; none where it must be read anew.
    #[must_use]
    pub fn folded(&self) -> Option<i64> {
        self.epoch.filter(|_| !self.fleet.is_attempting()).map(|_| self.fleet.sequence())
    }

    /// Folds operations that were read without the pool's row, as far as they follow what is folded: whatever the fleet is brought to
    /// so need not be read while others wait for the row. Tells whether there were any.
    pub fn follow(&mut self, mut changes: Vec<Change>) -> bool {
        changes.retain(|change| change.first_sequence() > self.fleet.sequence());
        let next = self.folded().map(|folded| folded + 1);
        if next.is_none() || changes.first().map(Change::first_sequence) != next {
            return false;
        }
        let somebody_waited = !self.fleet.line().is_empty();
        self.take(&changes);
        self.kept_is_old |= somebody_waited || !self.fleet.line().is_empty();
        true
    }

    /// Takes up that what is kept for the first in line was worked out on the fleet as it is.
    pub fn note_kept(&mut self) {
        self.kept_is_old = false;
    }

    fn take(&mut self, changes: &[Change]) {
        self.placed.apply(changes.iter().filter_map(Change::placement));
        for change in changes {
            self.fleet.follow(change);
            let Change::Operation(entry) = change else { continue };
            match &entry.operation {
                Operation::ServerChanged(told) => {
                    self.unlogged.retain(|changed| changed.server.handle != told.server.handle);
                }
                Operation::PolicyChanged(_) => self.unlogged_policy = None,
                _ => {}
            }
        }
    }

    /// Reads the servers that changed, and takes them up; returns them as they are now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read_changed_servers(
        &mut self,
        conn: &mut PgConnection,
        up_to_revision: i64,
    ) -> Result<Vec<servers::ServerRecord>, StoreError> {
        if up_to_revision <= self.inventory_revision {
            return Ok(Vec::new());
        }
        let records = servers::list_changed(conn, self.fleet.policy(), self.inventory_revision).await?;
        for record in &records {
            self.inventory_revision = self.inventory_revision.max(record.row.revision);
            let changed = self.fleet.take_row(record.row.clone());
            self.note_unlogged(changed);
        }
        Ok(records)
    }

    fn note_unlogged(&mut self, changed: impl IntoIterator<Item = ServerChanged>) {
        for changed in changed {
            let handle = &changed.server.handle;
            if !is_removal(&changed) {
                // The server is back. To tell of its removal now would take what it holds by now out of every fleet.
                self.unlogged.retain(|earlier| earlier.server.handle != *handle || !is_removal(earlier));
            }
            self.unlogged.push(changed);
        }
    }

    async fn reload(&mut self, conn: &mut PgConnection, pool: &PoolState) -> Result<(), StoreError> {
        // What the tables hold beyond what the log leads to was changed by hand, and the log does not know.
        let known = self.can_fold(pool) && self.fold(conn, pool).await?;
        if !known {
            self.unlogged.clear();
            self.unlogged_policy = None;
        }
        let mut fleet = Fleet::default();
        fleet.set_policy(pool.policy);
        if known {
            self.take_policy(pool);
        }
        load::fleet(&mut fleet, conn, pool).await?;
        load::placed(&self.placed, &fleet, conn).await?;
        for waiter in waiters::list_all(conn).await? {
            fleet.line_mut().load(waiter);
        }
        fleet.set_sequence(pool.last_sequence);
        tracing::info!(
            servers = fleet.len(),
            sequence = pool.last_sequence,
            "read the fleet from the tables"
        );
        let before = std::mem::replace(&mut self.fleet, fleet);
        if known {
            self.note_unlogged(server_changes(&before, &self.fleet));
            self.fleet.take_refusals_of(before);
        }
        self.inventory_revision = pool.inventory_revision;
        self.edit_count = pool.edit_count;
        self.epoch = Some(pool.epoch);
        Ok(())
    }
}

fn is_removal(changed: &ServerChanged) -> bool {
    changed.changes.contains(&ServerChange::Removed)
}

/// What changed of the servers from one fleet to the next, ordered by handle.
fn server_changes(before: &Fleet, after: &Fleet) -> Vec<ServerChanged> {
    let removed = before.iter().filter(|state| after.get(&state.server.handle).is_none());
    let mut changes: Vec<_> = removed
        .map(|state| ServerChanged { changes: vec![ServerChange::Removed], server: state.server.clone() })
        .collect();
    changes.extend(after.iter().filter_map(|state| {
        let before = before.get(&state.server.handle).map(|state| &state.server);
        ServerChanged::between(before, &state.server)
    }));
    changes.sort_by(|a, b| a.server.handle.cmp(&b.server.handle));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing;

    fn released(sequences: impl IntoIterator<Item = i64>) -> Vec<Change> {
        let released = |sequence| Change::Operation(Box::new(testing::released(sequence, "shop", "web-1")));
        sequences.into_iter().map(released).collect()
    }

    #[test]
    fn what_follows_is_folded_once_and_what_does_not_is_left() {
        let mut replica = Replica::new(Placed::default());
        assert!(!replica.follow(released([1, 2])), "of a fleet that was never read nothing follows");
        replica.epoch = Some(Uuid::nil());
        assert_eq!(testing::released(1, "shop", "web-1").last_sequence(), 1);
        assert!(replica.follow(released([1, 2])));
        assert!(!replica.follow(released([1, 2])));
        assert!(replica.follow(released([2, 3])));
        assert!(!replica.follow(released([5])), "between them is one that was not read");
        assert_eq!(replica.folded(), Some(3));
        replica.fleet_mut().attempt();
        assert_eq!(replica.folded(), None);
        assert!(!replica.follow(released([4])), "what is attempted is taken back");
    }
}
