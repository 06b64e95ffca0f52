//! What a replica keeps that folds what others commit, from one refresh to the next.

use super::*;
use crate::domain::testing::ram;

/// Another replica, which has read so much of the log.
struct Replica {
    fleet: Fleet,
    read: usize,
}

impl Replica {
    /// One that has caught up.
    fn of(ledger: &Ledger) -> Self {
        let mut replica = Self { fleet: Fleet::default(), read: 0 };
        replica.catch_up(ledger);
        replica
    }

    /// Reads on, and keeps what the other keeps.
    fn catch_up(&mut self, ledger: &Ledger) {
        for committed in &ledger.log[self.read..] {
            match committed {
                Committed::Entry(entry) => self.fleet.follow(&read_again(entry)),
                Committed::Usage(handle, observation) => self.fleet.observe(handle, observation.clone()),
            }
        }
        self.read = ledger.log.len();
        let known = |id: &ProjectId| Some(ledger.project(id));
        assert_eq!(refresh_kept(&mut self.fleet, &known, &ledger.context()), None);
    }

    /// What it keeps, and on which servers.
    fn kept(&self) -> Vec<(&str, Resources)> {
        let kept = self.fleet.iter().filter_map(|state| Some((state.server.handle.as_str(), state.kept?)));
        kept.collect()
    }
}

#[test]
fn a_replica_keeps_the_same_where_nothing_changed_and_nothing_where_nobody_waits() {
    let mut ledger = full();
    let mut replica = Replica::of(&ledger);
    assert_eq!(replica.kept(), []);
    stand(&mut ledger, "large", 4096);
    for _ in 0..2 {
        replica.catch_up(&ledger);
        assert_eq!(replica.kept(), [("a", ram(4096))]);
    }
    ledger.leave(&project("large"));
    replica.catch_up(&ledger);
    assert_eq!(replica.kept(), []);
}

#[test]
fn a_replica_keeps_it_elsewhere_where_another_server_came_nearer() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    let mut replica = Replica::of(&ledger);
    ledger.release("b-0", &[]);
    replica.catch_up(&ledger);
    assert_eq!(replica.kept(), [("b", ram(4096))]);
}

#[test]
fn a_replica_keeps_it_elsewhere_where_the_server_went() {
    let mut ledger = full();
    // Nearest to having room, though nothing is placed there.
    ledger.put(&a_server("c").ram(4096).reported(0, ram(1000), &[]));
    stand(&mut ledger, "large", 4096);
    let mut replica = Replica::of(&ledger);
    assert_eq!(replica.kept(), [("c", ram(4096))]);
    ledger.remove(&handle("c")).unwrap();
    replica.catch_up(&ledger);
    assert_eq!(replica.kept(), [("a", ram(4096))]);
}

#[test]
fn a_replica_keeps_it_for_who_is_the_first_now() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    stand(&mut ledger, "small", 1024);
    let mut replica = Replica::of(&ledger);
    assert_eq!(replica.kept(), [("a", ram(4096))]);
    ledger.leave(&project("large"));
    replica.catch_up(&ledger);
    assert_eq!(replica.kept(), [("a", ram(1024))]);
    assert_eq!(replica.fleet.line().kept_for(), Some((&project("small"), &handle("a"))));
}

#[test]
fn a_replica_keeps_less_where_the_first_got_a_part_of_it_by_another_call() {
    let mut ledger = Ledger::of(&[a_server("a").ram(4096)]);
    ledger.ensure(&an_ensure("large").ram(1024).disk(0)).unwrap();
    ledger.ensure(&an_ensure("other").ram(2048).disk(0)).unwrap();
    stand(&mut ledger, "large", 4096);
    let mut replica = Replica::of(&ledger);
    assert_eq!(replica.kept(), [("a", ram(3072))]);
    ledger.ensure(&an_ensure("large").ram(1536).disk(0)).unwrap();
    replica.catch_up(&ledger);
    assert_eq!(replica.kept(), [("a", ram(2560))]);
}

#[test]
fn a_replica_that_does_not_know_what_the_first_holds_asks_for_it() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    let mut fleet = replayed(&ledger.log);
    let unknown = refresh_kept(&mut fleet, &|_| None, &ledger.context());
    assert_eq!(unknown, Some(project("large")));
    assert_eq!(fleet.line().kept_for(), None);
}
