//! A view: the servers that carry some labels, and may have some ports, arranged by what is free on them and by how large they
//! are. A choice and a refusal are read off it without looking at every server.

use std::collections::BTreeMap;

use super::{
    ServerState,
    trie::{Cover, Summary, Trie},
};
use crate::domain::{
    Port, Protocol, Resources, ServerStatus, placement::score::Whole, ports::FAR_FUTURE,
    request::ModuleRequest, resources::Resource,
};

/// What admission says of a managed server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It admits work.
    Open,
    /// Its usage report is too old.
    Stale,
    /// Its status admits no work.
    Closed(ServerStatus),
}

impl Standing {
    /// Every standing that there is.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Stale,
        Self::Closed(ServerStatus::Discovered),
        Self::Closed(ServerStatus::Provisioning),
        Self::Closed(ServerStatus::Maintenance),
        Self::Closed(ServerStatus::Error),
        Self::Closed(ServerStatus::Unreachable),
        Self::Closed(ServerStatus::Missing),
        Self::Closed(ServerStatus::Decommissioned),
    ];

    fn place(self) -> usize {
        match self {
            Self::Open | Self::Closed(ServerStatus::Ready) => 0,
            Self::Stale => 1,
            Self::Closed(ServerStatus::Discovered) => 2,
            Self::Closed(ServerStatus::Provisioning) => 3,
            Self::Closed(ServerStatus::Maintenance) => 4,
            Self::Closed(ServerStatus::Error) => 5,
            Self::Closed(ServerStatus::Unreachable) => 6,
            Self::Closed(ServerStatus::Missing) => 7,
            Self::Closed(ServerStatus::Decommissioned) => 8,
        }
    }
}

/// What is known of open servers by what is free on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The least that is free on any of them.
    pub free_min: Resources,
    /// The most that is free on any of them.
    pub free_max: Resources,
    /// The largest amounts that shares are taken of.
    pub whole_max: Whole,
    /// The most that any of them could hold.
    pub budget_max: Resources,
    /// The least rank.
    pub rank: i64,
}

impl Room {
    /// Whether what is asked is free.
    #[must_use]
    pub fn covers(&self, asked: Resources) -> Cover {
        cover(self.free_min, self.free_max, asked)
    }
}

impl Summary for Room {
    type Entry = Member;

    /// Like ones together: first by coarse size, for shares are of that, then by what is free.
    fn place(member: &Member) -> u64 {
        let coarse = |amount: i64| grade(amount) >> 8;
        let size = (coarse(member.whole.cpu_millis) << 8) | coarse(member.whole.ram_mb);
        (size << 48) | interleave(member.free)
    }

    fn slot(member: &Member) -> u32 {
        member.slot
    }

    fn of(member: &Member) -> Self {
        Self {
            free_min: member.free,
            free_max: member.free,
            whole_max: member.whole,
            budget_max: member.budget,
            rank: member.rank,
        }
    }

    fn join(&mut self, other: &Self) {
        self.free_min = self.free_min.zip(other.free_min, i64::min);
        self.free_max = self.free_max.max(other.free_max);
        self.whole_max = self.whole_max.max(other.whole_max);
        self.budget_max = self.budget_max.max(other.budget_max);
        self.rank = self.rank.min(other.rank);
    }
}

/// What is known of managed servers by what they could hold when empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// The least that any of them could hold.
    pub budget_min: Resources,
    /// The most that any of them could hold.
    pub budget_max: Resources,
    /// The least rank.
    pub rank: i64,
    /// The least rank of those whose report is too old.
    pub stale_rank: Option<i64>,
    counts: [u32; Standing::ALL.len()],
}

impl Size {
    /// Whether they could hold what is asked.
    #[must_use]
    pub fn covers(&self, asked: Resources) -> Cover {
        cover(self.budget_min, self.budget_max, asked)
    }
}

impl Summary for Size {
    type Entry = Member;

    fn place(member: &Member) -> u64 {
        interleave(member.budget)
    }

    fn slot(member: &Member) -> u32 {
        member.slot
    }

    fn of(member: &Member) -> Self {
        let Member { budget, rank, standing, .. } = *member;
        let mut counts = [0; Standing::ALL.len()];
        if let Some(standing) = standing {
            counts[standing.place()] = 1;
        }
        let stale_rank = (standing == Some(Standing::Stale)).then_some(rank);
        Self { budget_min: budget, budget_max: budget, rank, stale_rank, counts }
    }

    fn join(&mut self, other: &Self) {
        self.budget_min = self.budget_min.zip(other.budget_min, i64::min);
        self.budget_max = self.budget_max.max(other.budget_max);
        self.rank = self.rank.min(other.rank);
        self.stale_rank = self.stale_rank.into_iter().chain(other.stale_rank).min();
        for (count, other) in self.counts.iter_mut().zip(other.counts) {
            *count += other;
        }
    }
}

fn cover(min: Resources, max: Resources, asked: Resources) -> Cover {
    if !asked.short_of(max).is_zero() {
        Cover::Nothing
    } else if asked.short_of(min).is_zero() {
        Cover::All
    } else {
        Cover::Part
    }
}

/// An amount on a scale of equal ratios, so that small and large ones are told apart alike: six bits for the power of two, ten
/// for what follows.
fn grade(amount: i64) -> u64 {
    let Some(amount) = u64::try_from(amount).ok().filter(|amount| *amount > 0) else { return 0 };
    let power = u64::from(amount.ilog2());
    let fraction = if power >= 10 { amount >> (power - 10) } else { amount << (10 - power) };
    ((power + 1) << 10) | (fraction & 0x3ff)
}

/// The grades of the three amounts, bit by bit in turn: what is near in all three has a long beginning in common.
fn interleave(amounts: Resources) -> u64 {
    // Every bit moves to three times its place.
    let spread = |amount: i64| {
        let mut bits = grade(amount);
        bits = (bits | (bits << 16)) & 0xff00_00ff;
        bits = (bits | (bits << 8)) & 0x00f0_0f00_f00f;
        bits = (bits | (bits << 4)) & 0x0c30_c30c_30c3;
        (bits | (bits << 2)) & 0x2492_4924_9249
    };
    let [ram, disk, cpu] = Resource::ALL.map(|resource| spread(amounts.get(resource)));
    (cpu << 2) | (ram << 1) | disk
}

/// Ports that are asked for: what decides whether a server has them, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortAsk {
    start: Port,
    ports: Vec<(Protocol, Option<Port>)>,
}

impl PortAsk {
    /// What modules ask for.
    pub fn new(modules: &[ModuleRequest], start: Port) -> Self {
        let mut ports: Vec<_> =
            modules.iter().map(|module| (module.protocol.unwrap_or(Protocol::Tcp), module.port)).collect();
        ports.sort_unstable();
        Self { start, ports }
    }
}

/// Which servers a view is of.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Those that carry these labels.
    pub selector: BTreeMap<String, String>,
    /// Those that may have these ports.
    pub ports: Option<(PortAsk, Vec<ModuleRequest>)>,
}

impl Scope {
    fn contains(&self, state: &ServerState) -> bool {
        let labels = &state.server.labels;
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.ports.as_ref().is_none_or(|(ask, modules)| {
                // In the end, for what a port waits for then is over: a server is left out only where it never has them.
                state.ports.choose(&state.server, modules, ask.start, FAR_FUTURE).is_ok()
            })
    }
}

/// A server as a view has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    slot: u32,
    /// None for one that is not managed.
    standing: Option<Standing>,
    budget: Resources,
    whole: Whole,
    free: Resources,
    rank: i64,
}

impl Member {
    fn of(slot: u32, Entry { state, rank, stale }: &Entry<'_>) -> Self {
        let standing = match state.server.status {
            ServerStatus::Ready if *stale => Standing::Stale,
            ServerStatus::Ready => Standing::Open,
            status => Standing::Closed(status),
        };
        Self {
            slot,
            standing: state.server.managed.then_some(standing),
            budget: state.budget(),
            whole: Whole::of(state),
            free: state.free(),
            rank: *rank,
        }
    }
}

/// A server as a view is to have it.
pub struct Entry<'a> {
    /// The server.
    pub state: &'a ServerState,
    /// Its place in the order of handles.
    pub rank: i64,
    /// Whether its usage report is too old.
    pub stale: bool,
}

/// The view.
#[derive(Debug)]
pub struct View {
    scope: Scope,
    members: Vec<Option<Member>>,
    member_count: usize,
    /// The open servers.
    pub rooms: Trie<Room>,
    /// The managed servers.
    pub sizes: Trie<Size>,
}

impl View {
    /// A view of nothing yet.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self { scope, members: Vec::new(), member_count: 0, rooms: Trie::default(), sizes: Trie::default() }
    }

    /// How many servers it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.member_count
    }

    /// How many of them are not ours to place on.
    #[must_use]
    pub fn unmanaged(&self) -> usize {
        self.member_count - self.sizes.count()
    }

    /// How many of the managed ones could hold what is asked, by their standing.
    #[must_use]
    pub fn count_large_enough(&self, asked: Resources) -> [(Standing, usize); Standing::ALL.len()] {
        let mut counts = Standing::ALL.map(|standing| (standing, 0));
        self.sizes.gather(
            |size| size.covers(asked),
            |size, _| {
                for ((_, count), more) in counts.iter_mut().zip(size.counts) {
                    *count += more as usize;
                }
            },
        );
        counts
    }

    /// How many of the open ones have room for what is asked.
    #[must_use]
    pub fn count_with_room(&self, asked: Resources) -> usize {
        let mut count = 0;
        self.rooms.gather(|room| room.covers(asked), |_, more| count += more);
        count
    }

    /// Takes up a server as it is now; none for one that is gone.
    pub fn refresh(&mut self, slot: u32, entry: Option<Entry<'_>>) {
        let after =
            entry.filter(|entry| self.scope.contains(entry.state)).map(|entry| Member::of(slot, &entry));
        let index = slot as usize;
        if self.members.len() <= index {
            self.members.resize(index + 1, None);
        }
        let before = std::mem::replace(&mut self.members[index], after);
        if before == after {
            return;
        }
        let managed = |member: Option<Member>| member.filter(|member| member.standing.is_some());
        let open = |member: Option<Member>| member.filter(|member| member.standing == Some(Standing::Open));
        self.member_count = self.member_count + usize::from(after.is_some()) - usize::from(before.is_some());
        // What is free changes often, and says nothing of a size.
        if managed(before).map(|member| Size::of(&member)) != managed(after).map(|member| Size::of(&member)) {
            move_entry(&mut self.sizes, managed(before), managed(after));
        }
        if open(before) != open(after) {
            move_entry(&mut self.rooms, open(before), open(after));
        }
    }
}

/// Puts a server where it now belongs.
fn move_entry<S: Summary<Entry = Member>>(trie: &mut Trie<S>, before: Option<Member>, after: Option<Member>) {
    match (before, after) {
        (None, None) => {}
        (None, Some(after)) => trie.insert(after),
        (Some(before), None) => trie.remove(&before),
        (Some(before), Some(after)) => trie.replace(&before, after),
    }
}

#[cfg(test)]
mod tests;
