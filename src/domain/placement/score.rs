//! Which of the servers that fit is best. A score is a struct of integers whose field order is the priority order, least first,
//! the last field the handle, so that a choice never depends on the order of registration (L26). Every field is a preference.

use std::cmp::Reverse;

use crate::domain::{
    Resources, ServerHandle,
    fleet::{Room, ServerState},
    request::Strategy,
};

/// Shares are counted in millionths of a server.
const WHOLE: i64 = 1_000_000;

/// Where a server stands among those that fit; the least is the best.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Score {
    /// SPREAD.
    Spread(SpreadScore),
    /// BINPACK.
    Binpack(BinpackScore),
}

/// The most free RAM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpreadScore {
    /// Free RAM before the placement, in megabytes.
    pub free_ram_mb: Reverse<i64>,
    /// The last tie.
    pub handle: ServerHandle,
}

/// The tightest fit that strands least.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BinpackScore {
    /// What the placement leaves free and stranded, in millionths of the server; 0 for a request of RAM alone.
    pub waste: i64,
    /// Free RAM before the placement, in megabytes.
    pub free_ram_mb: i64,
    /// The last tie.
    pub handle: ServerHandle,
}

impl Score {
    /// The score of a server that fits.
    #[must_use]
    pub fn of(state: &ServerState, asked: Resources, strategy: Strategy) -> Self {
        let free = state.free();
        let handle = state.server.handle.clone();
        match strategy {
            Strategy::Spread => Self::Spread(SpreadScore { free_ram_mb: Reverse(free.ram_mb), handle }),
            Strategy::Binpack => {
                let waste = waste(Whole::of(state), free, asked);
                Self::Binpack(BinpackScore { waste, free_ram_mb: free.ram_mb, handle })
            }
        }
    }

    /// The first measure, higher is better, as callers see it.
    #[must_use]
    pub fn measure(&self) -> i64 {
        match self {
            Self::Spread(score) => score.free_ram_mb.0,
            Self::Binpack(score) => -score.waste,
        }
    }
}

/// What shares of a server are taken of. No share of its disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// Processor time, in thousandths of a core.
    pub cpu_millis: i64,
    /// Memory, in megabytes.
    pub ram_mb: i64,
}

impl Whole {
    /// Of one server.
    #[must_use]
    pub fn of(state: &ServerState) -> Self {
        let Resources { cpu_millis, ram_mb, .. } = state.terms.size;
        Self { cpu_millis, ram_mb }
    }

    /// The greater of the two, resource by resource.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { cpu_millis: self.cpu_millis.max(other.cpu_millis), ram_mb: self.ram_mb.max(other.ram_mb) }
    }
}

/// A score without the handle, for which the rank in the order of handles stands.
pub(super) type Bound = (i64, i64, i64);

/// What no open server of these scores less than, exactly for one alone; none where none of them has room.
///
/// Both fields of a score are the less, the less is free and the larger the server is, and the bound takes the extremes of each.
pub(super) fn bound(room: &Room, asked: Resources, strategy: Strategy) -> Option<Bound> {
    if !asked.short_of(room.free_max).is_zero() {
        return None;
    }
    match strategy {
        Strategy::Spread => Some((-room.free_max.ram_mb, 0, room.rank)),
        Strategy::Binpack => {
            // Less than what is asked is free on none that fits.
            let free = room.free_min.max(asked);
            Some((waste(room.whole_max, free, asked), free.ram_mb, room.rank))
        }
    }
}

/// Best fit over the shares of CPU and RAM left free, with a penalty for leaving one where the other is gone. A request of RAM
/// alone ties everywhere, for nothing of it can be stranded.
fn waste(whole: Whole, free: Resources, asked: Resources) -> i64 {
    if asked.cpu_millis == 0 {
        return 0;
    }
    let left = free - asked;
    let cpu = share(left.cpu_millis, whole.cpu_millis);
    if asked.ram_mb == 0 {
        return cpu;
    }
    let ram = share(left.ram_mb, whole.ram_mb);
    cpu + ram + (cpu - ram).abs()
}

fn share(part: i64, whole: i64) -> i64 {
    match part.checked_mul(WHOLE) {
        _ if whole == 0 => 0,
        Some(product) => product / whole,
        // Over-commit makes of 10^12, the most that a server has, up to 10^14. The share itself fits again.
        None => i64::try_from(i128::from(part) * i128::from(WHOLE) / i128::from(whole)).unwrap_or(i64::MAX),
    }
}
