//! The fleet's indexes. They are told which servers changed and work nothing out before they are asked: a view takes up what
//! changed since it was last looked at. So a fleet that is loaded, or that folds another replica's commits, pays once for each
//! server.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use smol_str::SmolStr;
use time::OffsetDateTime;

use super::{
    ServerState,
    view::{Entry, PortAsk, Scope, View},
};
use crate::domain::{Server, ServerHandle, placement::Context, request::ModuleRequest};

// Small in tests, whose fleets are.
/// How many views are kept; the one that was not looked at for longest goes first.
const MOST_VIEWS: usize = if cfg!(test) { 4 } else { 32 };
/// A label that so few servers carry needs no view.
const FEW: usize = if cfg!(test) { 1 } else { 256 };
/// How far apart ranks are given, so that there is room between them.
const STEP: i64 = 1 << 40;

/// The servers that carry some labels.
#[derive(Debug)]
pub enum Among<T> {
    /// These few, which carry them.
    Few(Vec<u32>),
    /// Those of a view, off which this was read.
    View(T),
}

/// A label as the index has it: most are short enough to lie in the map itself.
type Label = (SmolStr, SmolStr);

/// The indexes.
#[derive(Debug, Default)]
pub struct Index {
    slots: BTreeMap<ServerHandle, u32>,
    /// Of each slot's server.
    known: Vec<Known>,
    by_label: HashMap<Label, BTreeSet<u32>>,
    by_report: BTreeSet<(i128, u32)>,
    views: Mutex<Views>,
}

/// What is known of a server, side by side, for both are looked at when it changed.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Where it is in the order of handles.
    rank: i64,
    /// When its host last reported its usage, in nanoseconds of the epoch.
    report: Option<i128>,
}

#[derive(Debug, Default)]
struct Views {
    kept: Vec<Kept>,
    /// Reports from before are too old, as of the last look.
    cutoff: i128,
    /// Whether those that never reported count as such too.
    required: bool,
    looks: u64,
}

#[derive(Debug)]
struct Kept {
    selector: BTreeMap<String, String>,
    ports: Option<PortAsk>,
    view: View,
    /// Whose servers changed since the last look.
    changed: Vec<u32>,
    looked_at: u64,
}

impl Kept {
    fn is_of(&self, selector: &BTreeMap<String, String>, ports: Option<&PortAsk>) -> bool {
        self.selector == *selector && self.ports.as_ref() == ports
    }
}

/// A copy makes its own views.
impl Clone for Index {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            known: self.known.clone(),
            by_label: self.by_label.clone(),
            by_report: self.by_report.clone(),
            views: Mutex::default(),
        }
    }
}

impl Index {
    /// Takes up a server that is new.
    pub fn add(&mut self, slot: u32, server: &Server) {
        let rank_of = |(_, slot): (&ServerHandle, &u32)| self.known[*slot as usize].rank;
        let before = self.slots.range(..&server.handle).next_back().map(rank_of);
        let after = self.slots.range(&server.handle..).next().map(rank_of);
        let rank = match (before, after) {
            (None, None) => Some(0),
            (Some(before), None) => before.checked_add(STEP),
            (None, Some(after)) => after.checked_sub(STEP),
            (Some(before), Some(after)) => {
                Some(i64::midpoint(before, after)).filter(|rank| before < *rank && *rank < after)
            }
        };
        let index = slot as usize;
        if self.known.len() <= index {
            self.known.resize(index + 1, Known::default());
        }
        self.slots.insert(server.handle.clone(), slot);
        match rank {
            Some(rank) => self.known[index].rank = rank,
            None => self.rank_anew(),
        }
        self.label(slot, server);
    }

    /// Ranks all anew, where there was no room between two.
    fn rank_anew(&mut self) {
        let mut rank = 0;
        for slot in self.slots.values() {
            self.known[*slot as usize].rank = rank;
            rank += STEP;
        }
        self.forget_views();
    }

    /// Takes up that a server is gone.
    pub fn remove(&mut self, slot: u32, server: &Server) {
        self.slots.remove(&server.handle);
        self.unlabel(slot, server);
        self.changed(slot, None);
    }

    /// Takes up a server's labels.
    pub fn label(&mut self, slot: u32, server: &Server) {
        for (key, value) in &server.labels {
            self.by_label.entry(label(key, value)).or_default().insert(slot);
        }
    }

    /// Takes up that a server no longer has the labels that it had.
    pub fn unlabel(&mut self, slot: u32, server: &Server) {
        for (key, value) in &server.labels {
            let label = label(key, value);
            if let Some(slots) = self.by_label.get_mut(&label) {
                slots.remove(&slot);
                if slots.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
    }

    /// Takes up that a server changed in any way.
    pub fn changed(&mut self, slot: u32, state: Option<&ServerState>) {
        let report = state.and_then(ServerState::host_report_time).map(OffsetDateTime::unix_timestamp_nanos);
        let before = std::mem::replace(&mut self.known[slot as usize].report, report);
        if before != report {
            if let Some(before) = before {
                self.by_report.remove(&(before, slot));
            }
            if let Some(report) = report {
                self.by_report.insert((report, slot));
            }
        }
        // Of every slot that there ever was: each may be noted, also where few servers are left.
        let most = 2 * self.known.len() + 1024;
        for kept in &mut self.views.get_mut().unwrap_or_else(PoisonError::into_inner).kept {
            if kept.changed.len() >= most {
                kept.changed.sort_unstable();
                kept.changed.dedup();
            }
            if kept.changed.last() != Some(&slot) {
                kept.changed.push(slot);
            }
        }
    }

    fn forget_views(&mut self) {
        self.views.get_mut().unwrap_or_else(PoisonError::into_inner).kept.clear();
    }

    /// Whether there is a view already of the servers that carry the labels and may have the ports.
    pub fn keeps(
        &self,
        selector: &BTreeMap<String, String>,
        (modules, start): (&[ModuleRequest], crate::domain::Port),
    ) -> bool {
        let asked = PortAsk::new(modules, start);
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.kept.iter().any(|kept| kept.is_of(selector, Some(&asked)))
    }

    /// Reads off the view of the servers that carry the labels and, where `ports` says what is asked for from where on, may
    /// have the ports.
    pub fn read<T>(
        &self,
        servers: &[Option<ServerState>],
        selector: &BTreeMap<String, String>,
        ports: Option<(&[ModuleRequest], crate::domain::Port)>,
        context: &Context,
        read: impl FnOnce(&View) -> T,
    ) -> Among<T> {
        let labelled: Option<Vec<&BTreeSet<u32>>> =
            selector.iter().map(|(key, value)| self.by_label.get(&label(key, value))).collect();
        let Some(labelled) = labelled else { return Among::Few(Vec::new()) };
        let narrowest = labelled.iter().copied().min_by_key(|slots| slots.len());
        if let Some(slots) = narrowest.filter(|slots| slots.len() <= FEW) {
            let carries_all = |slot: &u32| {
                labelled.iter().all(|others| std::ptr::eq(*others, slots) || others.contains(slot))
            };
            return Among::Few(slots.iter().copied().filter(carries_all).collect());
        }
        // Whoever failed while it held this left a view half done.
        let mut views = self.views.lock().unwrap_or_else(|poisoned| {
            let mut views = poisoned.into_inner();
            views.kept.clear();
            views
        });
        self.views.clear_poison();
        if views.required != context.usage_required {
            views.required = context.usage_required;
            views.kept.clear();
        }
        self.move_cutoff(&mut views, cutoff(context));
        views.looks += 1;
        let (looks, cutoff) = (views.looks, views.cutoff);
        let port_ask = ports.map(|(modules, start)| PortAsk::new(modules, start));
        let known = views.kept.iter().position(|kept| kept.is_of(selector, port_ask.as_ref()));
        let place = known.unwrap_or_else(|| {
            if views.kept.len() >= MOST_VIEWS
                && let Some((oldest, _)) =
                    views.kept.iter().enumerate().min_by_key(|(_, kept)| kept.looked_at)
            {
                views.kept.swap_remove(oldest);
            }
            let scope = Scope {
                selector: selector.clone(),
                ports: port_ask
                    .clone()
                    .map(|ask| (ask, ports.map(|(modules, _)| modules.to_vec()).unwrap_or_default())),
            };
            let changed = match narrowest {
                Some(slots) => slots.iter().copied().collect(),
                None => self.slots.values().copied().collect(),
            };
            views.kept.push(Kept {
                selector: selector.clone(),
                ports: port_ask,
                view: View::new(scope),
                changed,
                looked_at: looks,
            });
            views.kept.len() - 1
        });
        let kept = &mut views.kept[place];
        kept.looked_at = looks;
        for slot in kept.changed.drain(..) {
            let index = slot as usize;
            let Known { rank, report } = self.known[index];
            let stale = report.map_or(context.usage_required, |report| report < cutoff);
            let server = servers.get(index).and_then(Option::as_ref);
            let entry = server.map(|state| Entry { state, rank, stale });
            kept.view.refresh(slot, entry);
        }
        Among::View(read(&kept.view))
    }

    /// Has every view look again at the servers whose reports grew too old since, or are young enough again.
    fn move_cutoff(&self, views: &mut Views, cutoff: i128) {
        let before = std::mem::replace(&mut views.cutoff, cutoff);
        if before == cutoff {
            return;
        }
        for (_, slot) in self.by_report.range((before.min(cutoff), 0)..(before.max(cutoff), 0)) {
            for kept in &mut views.kept {
                kept.changed.push(*slot);
            }
        }
    }
}

fn label(key: &str, value: &str) -> Label {
    (key.into(), value.into())
}

/// Reports from before are too old.
fn cutoff(context: &Context) -> i128 {
    let age = i128::try_from(context.usage_max_age.as_nanos()).unwrap_or(i128::MAX);
    context.now.unix_timestamp_nanos().saturating_sub(age)
}

#[cfg(test)]
mod tests;
