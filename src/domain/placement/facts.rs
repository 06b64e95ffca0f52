//! What a refusal is told from: how many servers each stage of the funnel left out, and some of those that reached the last one.
//! Read off the fleet's indexes where it is about the fleet, and server by server where it is about a few; both say the same.

use std::collections::BTreeMap;

use super::{
    Context,
    filter::{Ask, Exclusion, Stage, fits},
};
use crate::domain::{
    Fleet, Resources,
    fleet::{Among, Cover, ServerState, Standing, Verdict, View},
    ports::PortShortage,
    resources::Resource,
};

/// How many servers are told by name: not more than a reader takes in.
const TOLD: usize = 3;

/// What the funnel says of a request that no server fits.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts<'a> {
    /// How many servers the funnel was run over.
    pub servers: usize,
    /// How many servers each stage left out.
    pub counts: BTreeMap<Stage, usize>,
    /// Where the last stage is about admission, how many of those that reached it were in which status.
    pub statuses: BTreeMap<&'static str, usize>,
    /// Where the last stage is about resources, the server that is short of the least, and of what.
    pub nearest: Option<(&'a ServerState, Resources)>,
    /// The first of those that reached the last stage, by handle.
    pub first: Vec<&'a ServerState>,
    /// Where the last stage is about ports, the shortage to tell. Where one server has a port and another not, that is the one
    /// that the caller can mend.
    pub shortage: Option<(&'a ServerState, PortShortage)>,
}

impl<'a> Facts<'a> {
    /// The stage that leaves no server: the last that any server reached.
    pub(super) fn furthest(&self) -> Option<Stage> {
        self.counts.keys().next_back().copied()
    }

    /// How many servers reached the last stage.
    pub(super) fn reached(&self) -> usize {
        self.counts.values().next_back().copied().unwrap_or(0)
    }

    /// What the funnel says of these servers, looked at one by one.
    pub(super) fn of_each(
        servers: impl IntoIterator<Item = &'a ServerState>,
        ask: &Ask<'_>,
        context: &Context,
    ) -> Self {
        let mut excluded: Vec<(&ServerState, Exclusion)> = servers
            .into_iter()
            .filter_map(|state| fits(state, ask, context).err().map(|exclusion| (state, exclusion)))
            .collect();
        excluded.sort_by(|(a, _), (b, _)| a.server.handle.cmp(&b.server.handle));
        let counts = count_by_stage(excluded.iter().map(|(_, exclusion)| exclusion));
        let furthest = counts.keys().next_back().copied();
        let mut facts = Self { servers: excluded.len(), counts, ..Self::default() };
        let mut least = None;
        for (state, exclusion) in
            excluded.into_iter().filter(|(_, exclusion)| Some(exclusion.stage()) == furthest)
        {
            if facts.first.len() < TOLD {
                facts.first.push(state);
            }
            match exclusion {
                Exclusion::Unmanaged => *facts.statuses.entry(UNMANAGED).or_default() += 1,
                Exclusion::Status(status) => *facts.statuses.entry(status.as_str()).or_default() += 1,
                Exclusion::Size { short } | Exclusion::Capacity { short } => {
                    let share = share(short, ask);
                    if least.is_none_or(|least| share < least) {
                        least = Some(share);
                        facts.nearest = Some((state, short));
                    }
                }
                Exclusion::Ports(shortage) => {
                    let mends = |shortage: &PortShortage| matches!(shortage, PortShortage::Taken { .. });
                    if facts.shortage.as_ref().is_none_or(|(_, told)| mends(&shortage) && !mends(told)) {
                        facts.shortage = Some((state, shortage));
                    }
                }
                Exclusion::Left | Exclusion::Labels { .. } | Exclusion::UsageStale { .. } => {}
            }
        }
        facts
    }

    /// What the funnel says of the whole fleet.
    pub(super) fn of_fleet(fleet: &'a Fleet, ask: &Ask<'_>, context: &Context) -> Self {
        if ask.leaving.is_some() {
            // The indexes know nothing of a server that is left, and moves are few.
            return Self::of_each(fleet.iter(), ask, context);
        }
        match fleet.read_index(ask.selector, None, context, |view| Self::of_view(fleet, view, ask, context)) {
            Among::View(facts) => facts,
            Among::Few(slots) => {
                let few = slots.iter().filter_map(|slot| fleet.at(*slot));
                let mut facts = Self::of_each(few, &ask.of_carriers(), context);
                let others = fleet.len() - facts.servers;
                facts.servers = fleet.len();
                if others > 0 {
                    *facts.counts.entry(Stage::Labels).or_default() += others;
                }
                facts
            }
        }
    }

    /// A project that is not placed asks for one and the same of an empty server and of one as it stands, so that the servers
    /// with room are all among the large enough.
    fn of_view(fleet: &'a Fleet, view: &View, ask: &Ask<'_>, context: &Context) -> Self {
        let large_enough = view.count_large_enough(ask.whole);
        let closed: usize = large_enough
            .iter()
            .filter_map(|(standing, count)| matches!(standing, Standing::Closed(_)).then_some(count))
            .sum();
        let count_of = |wanted| -> usize {
            large_enough.iter().filter_map(|(standing, count)| (*standing == wanted).then_some(count)).sum()
        };
        let (open, stale) = (count_of(Standing::Open), count_of(Standing::Stale));
        let with_room = view.count_with_room(ask.resources);
        let counts = [
            (Stage::Labels, fleet.len() - view.count()),
            (Stage::Unmanaged, view.unmanaged()),
            (Stage::Size, view.count() - view.unmanaged() - closed - stale - open),
            (Stage::Status, closed),
            (Stage::UsageStale, stale),
            (Stage::Capacity, open - with_room),
            (Stage::Ports, with_room),
        ];
        let counts: BTreeMap<_, _> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        let mut facts = Self { servers: fleet.len(), counts, ..Self::default() };
        match facts.furthest() {
            Some(Stage::Unmanaged) => {
                facts.statuses.insert(UNMANAGED, view.unmanaged());
            }
            Some(Stage::Status) => {
                facts.statuses = large_enough
                    .iter()
                    .filter_map(|(standing, count)| match standing {
                        Standing::Closed(status) if *count > 0 => Some((status.as_str(), *count)),
                        _ => None,
                    })
                    .collect();
            }
            Some(Stage::Size) => facts.nearest = nearest_in_size(fleet, view, ask),
            Some(Stage::UsageStale) => facts.first = first_stale(fleet, view, ask),
            Some(Stage::Capacity) => facts.nearest = nearest_with_room(fleet, view, ask),
            Some(Stage::Ports) => {
                facts.first = first_with_room(fleet, view, ask);
                facts.shortage = shortage(fleet, view, ask, context);
            }
            Some(Stage::Left | Stage::Labels) | None => {}
        }
        facts
    }
}

/// How unmanaged servers are counted among the statuses.
const UNMANAGED: &str = "UNMANAGED";

pub(super) fn count_by_stage<'a>(exclusions: impl Iterator<Item = &'a Exclusion>) -> BTreeMap<Stage, usize> {
    let mut counts = BTreeMap::new();
    for exclusion in exclusions {
        *counts.entry(exclusion.stage()).or_default() += 1;
    }
    counts
}

/// How much is missing, measured in shares of what is asked.
fn share(short: Resources, ask: &Ask<'_>) -> i128 {
    Resource::ALL
        .into_iter()
        .map(|r| i128::from(short.get(r)) * 1_000_000 / i128::from(ask.whole.get(r).max(1)))
        .sum()
}

fn states(fleet: &Fleet, found: Option<Vec<(impl Ord, u32)>>) -> impl Iterator<Item = &ServerState> {
    found.unwrap_or_default().into_iter().filter_map(|(_, slot)| fleet.at(slot))
}

/// Of the servers that are too small, the one that is short of the least; ties by handle.
fn nearest_in_size<'a>(fleet: &'a Fleet, view: &View, ask: &Ask<'_>) -> Option<(&'a ServerState, Resources)> {
    let found = view.sizes.least(
        1,
        |size| Some((share(ask.whole.short_of(size.budget_max), ask), size.rank)),
        |_| Verdict::Take,
    );
    states(fleet, found).next().map(|state| (state, ask.whole.short_of(state.budget())))
}

/// Of the servers that are large enough and too full, the one that is short of the least; ties by handle.
fn nearest_with_room<'a>(
    fleet: &'a Fleet,
    view: &View,
    ask: &Ask<'_>,
) -> Option<(&'a ServerState, Resources)> {
    let found = view.rooms.least(
        1,
        |room| {
            let large_enough = ask.whole.short_of(room.budget_max).is_zero();
            large_enough.then(|| (share(ask.resources.short_of(room.free_max), ask), room.rank))
        },
        |_| Verdict::Take,
    );
    states(fleet, found).next().map(|state| (state, ask.resources.short_of(state.free())))
}

fn first_stale<'a>(fleet: &'a Fleet, view: &View, ask: &Ask<'_>) -> Vec<&'a ServerState> {
    let found = view.sizes.least(
        TOLD,
        |size| size.stale_rank.filter(|_| size.covers(ask.whole) != Cover::Nothing),
        |_| Verdict::Take,
    );
    states(fleet, found).collect()
}

fn first_with_room<'a>(fleet: &'a Fleet, view: &View, ask: &Ask<'_>) -> Vec<&'a ServerState> {
    let found = view.rooms.least(
        TOLD,
        |room| (room.covers(ask.resources) != Cover::Nothing).then_some(room.rank),
        |_| Verdict::Take,
    );
    states(fleet, found).collect()
}

/// Of the servers with room, the first that lacks a port that was named, else the first.
fn shortage<'a>(
    fleet: &'a Fleet,
    view: &View,
    ask: &Ask<'_>,
    context: &Context,
) -> Option<(&'a ServerState, PortShortage)> {
    let shortage_of = |state: &'a ServerState| match fits(state, ask, context) {
        Err(Exclusion::Ports(shortage)) => Some((state, shortage)),
        _ => None,
    };
    let taken = ask.modules.iter().any(|module| module.port.is_some()).then(|| {
        view.rooms.least(
            1,
            |room| (room.covers(ask.resources) != Cover::Nothing).then_some(room.rank),
            |slot| match fleet.at(slot).and_then(shortage_of) {
                Some((_, PortShortage::Taken { .. })) => Verdict::Take,
                _ => Verdict::Leave,
            },
        )
    });
    let taken = taken.and_then(|found| states(fleet, found).next());
    taken.or_else(|| first_with_room(fleet, view, ask).first().copied()).and_then(shortage_of)
}
