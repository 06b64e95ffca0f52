//! What a replica knows of itself and of the fleet, for those who watch over it.

use std::collections::BTreeMap;

use super::Allocator;
use crate::domain::{Resources, ServerStatus};

/// What callers see of a ready server with placements.
const IN_USE: &str = "IN_USE";

/// Figures of a replica, as of one moment.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// How many requests wait for a transaction, and how many may.
    pub queue: (usize, usize),
    /// How many servers have each status, by the names of the API.
    pub servers: BTreeMap<&'static str, usize>,
    /// How many servers take nothing because their usage report is too old.
    pub stale: usize,
    /// How many projects are placed.
    pub placements: i64,
    /// How many ports modules hold.
    pub ports_held: usize,
    /// How many ports of one protocol the ranges of the servers that admit work have.
    pub ports_in_range: usize,
    /// What the servers that admit work may give in all.
    pub budget: Resources,
    /// What is reserved on them.
    pub reserved: Resources,
    /// What could still be placed on them; a server that is below zero counts as zero.
    pub free: Resources,
    /// How many projects stand in line.
    pub waiting: usize,
    /// The number of the newest event that is folded.
    pub sequence: i64,
}

impl Allocator {
    /// The figures of this replica: of what it has folded, which housekeeping keeps within seconds of what is committed.
    pub async fn figures(&self) -> Figures {
        let limit = self.queue.max_capacity();
        let mut figures = Figures { queue: (limit - self.queue.capacity(), limit), ..Figures::default() };
        // Those that none has are told too: a figure that is left out stands where it stood.
        figures.servers = ServerStatus::ALL.iter().map(|status| (status.as_str(), 0)).collect();
        figures.servers.insert(IN_USE, 0);
        let replica = self.replica.read().await;
        let fleet = replica.fleet();
        figures.waiting = fleet.line().len();
        figures.sequence = fleet.sequence();
        for state in fleet.iter() {
            let ready = state.server.status == ServerStatus::Ready;
            let status =
                if ready && state.placement_count > 0 { IN_USE } else { state.server.status.as_str() };
            *figures.servers.entry(status).or_default() += 1;
            figures.stale += usize::from(state.usage_stale);
            figures.placements += state.placement_count;
            figures.ports_held += state.ports.held_count();
            if ready && state.server.managed && !state.usage_stale {
                let range = state.server.port_range;
                figures.ports_in_range += usize::from(range.end.get()) + 1 - usize::from(range.start.get());
                figures.budget += state.budget();
                figures.reserved += state.reserved;
                figures.free += state.free().max(Resources::ZERO);
            }
        }
        figures
    }
}
