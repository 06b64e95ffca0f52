//! What the reader remembers of the projects that it read not long ago. None of it is answered before it is held against the
//! database: one row tells up to where the pool has come, and which projects and servers changed on the way there. So a repeat is
//! answered as of a moment after the call, as if its project had been read again.
//!
//! Placements that end by themselves are not remembered: their end moves without a word in the log.

use std::collections::HashMap;

use quick_cache::{Weighter, unsync::Cache};

use crate::{
    domain::{Project, ProjectId, ServerHandle},
    store::{
        changes::{Changed, Changes, Mark},
        placements::{HostRecord, ProjectRecord},
    },
};

/// How much is remembered: ports and labels of a selector, and one for each project. That is some 40 MB.
const CAPACITY: u64 = 262_144;

/// The projects, and where the pool stood when they were last held against it.
#[derive(Debug)]
pub struct Remembered {
    /// None where nothing is remembered.
    mark: Option<Mark>,
    projects: Cache<ProjectId, Project, Size>,
    /// Those that projects were on when they were read.
    servers: HashMap<ServerHandle, HostRecord>,
}

/// See [`CAPACITY`].
#[derive(Debug, Clone)]
struct Size;

impl Weighter<ProjectId, Project> for Size {
    fn weight(&self, _: &ProjectId, project: &Project) -> u64 {
        let labels = project.placement.as_ref().map_or(0, |placement| placement.selector.len());
        (1 + labels + project.allocations.len()) as u64
    }
}

impl Default for Remembered {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Remembered {
    fn with_capacity(capacity: u64) -> Self {
        // Most projects have a few ports.
        let projects = usize::try_from(capacity / 4).unwrap_or(usize::MAX);
        Self { mark: None, projects: Cache::with_weighter(projects, capacity, Size), servers: HashMap::new() }
    }

    /// Since when the changes must be known before any of these projects can be answered for; none where too few of them are
    /// remembered for that to be worth a look.
    pub fn mark_for(&self, ids: &[ProjectId]) -> Option<Mark> {
        let known = ids.iter().filter(|id| self.projects.contains_key(*id)).count();
        self.mark.filter(|_| known > 0 && known * 2 >= ids.len())
    }

    /// Forgets what changed since the mark.
    pub fn take(&mut self, changes: &Changes) {
        let Some(Changed { projects, servers }) = &changes.changed else {
            self.clear();
            return;
        };
        for id in projects.iter().filter_map(|id| ProjectId::parse(id).ok()) {
            self.projects.remove(&id);
        }
        for handle in servers.iter().filter_map(|handle| ServerHandle::parse(handle).ok()) {
            self.servers.remove(&handle);
        }
        self.mark = Some(changes.mark);
    }

    /// A project as it stands after these changes, which were taken; none where it has to be read.
    pub fn find(&self, id: &ProjectId, changes: &Changes) -> Option<ProjectRecord> {
        let project = self.projects.get(id)?.clone();
        let server = self.servers.get(&project.placement.as_ref()?.server_handle)?.clone();
        Some(ProjectRecord { project, server, mark: changes.mark, now: changes.now })
    }

    /// Remembers a project that was read after the mark was made.
    pub fn keep(&mut self, ProjectRecord { project, server, mark, .. }: &ProjectRecord) {
        let Some(placement) = &project.placement else { return };
        if placement.expire_time.is_some() {
            self.projects.remove(&project.id);
            return;
        }
        if self.servers.len() as u64 >= self.projects.capacity() {
            self.clear();
        }
        // What is newer than the mark is looked for again in what changed since then, and forgotten once more than need be.
        self.mark.get_or_insert(*mark);
        self.servers.insert(placement.server_handle.clone(), server.clone());
        self.projects.insert(project.id.clone(), project.clone());
    }

    fn clear(&mut self) {
        self.mark = None;
        self.projects.clear();
        self.servers.clear();
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Placement, Resources, ServerStatus, ports::DEFAULT_START_PORT};

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn mark(last_sequence: i64) -> Mark {
        Mark { epoch: Uuid::nil(), last_sequence, inventory_revision: 0, edit_count: 0, lease_count: 0 }
    }

    fn id(number: u64) -> ProjectId {
        ProjectId::parse(&format!("project-{number}")).unwrap()
    }

    fn on(handle: &str) -> ServerHandle {
        ServerHandle::parse(handle).unwrap()
    }

    /// A project on a server of its own number.
    fn record(number: u64, last_sequence: i64) -> ProjectRecord {
        let placement = Placement {
            server_handle: on(&format!("web-{number}")),
            reserved: Resources::ZERO,
            selector: [("zone".to_owned(), "b".to_owned())].into(),
            start_port: DEFAULT_START_PORT,
            revision: 1,
            create_time: NOW,
            update_time: NOW,
            expire_time: None,
        };
        ProjectRecord {
            project: Project { id: id(number), placement: Some(placement), allocations: Vec::new() },
            server: HostRecord {
                address: "192.0.2.1".to_owned(),
                managed: true,
                status: ServerStatus::Ready,
                report_time: None,
            },
            mark: mark(last_sequence),
            now: NOW,
        }
    }

    fn with(numbers: std::ops::Range<u64>) -> Remembered {
        let mut remembered = Remembered::with_capacity(100);
        numbers.for_each(|number| remembered.keep(&record(number, 7)));
        remembered
    }

    fn changes(projects: &[u64], servers: &[&str]) -> Changes {
        let projects = projects.iter().map(|number| id(*number).to_string()).chain([String::new()]).collect();
        let servers = servers.iter().map(|handle| (*handle).to_owned()).collect();
        Changes { mark: mark(9), changed: Some(Changed { projects, servers }), now: NOW }
    }

    /// Which of three projects can be answered for after these changes.
    fn known(remembered: &Remembered, changes: &Changes) -> Vec<u64> {
        (0..3).filter(|number| remembered.find(&id(*number), changes).is_some()).collect()
    }

    #[test]
    fn what_changed_is_read_anew_and_so_is_what_is_on_a_server_that_did() {
        let mut remembered = with(0..3);
        let none = changes(&[], &[]);
        remembered.take(&none);
        assert_eq!(known(&remembered, &none), [0, 1, 2]);
        assert_eq!(remembered.find(&id(0), &none).unwrap().mark, mark(9));
        assert_eq!(remembered.mark_for(&[id(0)]), Some(mark(9)));
        remembered.take(&changes(&[1], &["web-2"]));
        assert_eq!(known(&remembered, &none), [0]);
        remembered.keep(&record(2, 9));
        assert_eq!(known(&remembered, &none), [0, 2]);
    }

    #[test]
    fn where_all_may_have_changed_nothing_is_remembered() {
        let mut remembered = with(0..3);
        let all = Changes { changed: None, ..changes(&[], &[]) };
        remembered.take(&all);
        assert!(known(&remembered, &all).is_empty());
        assert_eq!(remembered.mark_for(&[id(0)]), None);
        remembered.keep(&record(0, 12));
        assert_eq!(remembered.mark_for(&[id(0)]), Some(mark(12)));
    }

    #[test]
    fn a_look_is_for_the_half_of_those_that_are_asked_for() {
        let remembered = with(0..2);
        assert_eq!(remembered.mark_for(&[id(0), id(1), id(2), id(3)]), Some(mark(7)));
        assert_eq!(remembered.mark_for(&[id(0), id(2), id(3)]), None);
        assert_eq!(remembered.mark_for(&[]), None);
        assert_eq!(Remembered::default().mark_for(&[id(0)]), None);
    }

    #[test]
    fn a_placement_that_ends_by_itself_is_not_remembered() {
        let mut remembered = with(0..2);
        let mut leased = record(1, 9);
        leased.project.placement.as_mut().unwrap().expire_time = Some(NOW);
        remembered.keep(&leased);
        assert_eq!(known(&remembered, &changes(&[], &[])), [0]);
        remembered.keep(&ProjectRecord { project: Project::unplaced(id(2)), ..record(2, 9) });
        assert_eq!(known(&remembered, &changes(&[], &[])), [0]);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        // A project and its label are two of a hundred.
        for (numbers, at_least) in [(90, 25), (1000, 0)] {
            let remembered = with(0..numbers);
            let count = (0..numbers).filter(|number| remembered.projects.contains_key(&id(*number))).count();
            assert!((at_least..=50).contains(&count), "{count} of {numbers}");
            assert!(remembered.servers.len() <= 100, "{} of {numbers}", remembered.servers.len());
        }
    }
}
