//! What one project does when its calls come one after the other: the specification that histories are compared with.
//!
//! Which server and which ports a placement gets is not said here: that depends on other projects. What an answer tells of them
//! must hold in every later one. Of a placement whose answer was lost nobody knows them until an answer tells.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Answer, Call, Micros, Operation, Slot, Slots, View};

/// What is reserved where a request does not say.
const DEFAULT_RAM_MB: u64 = 512;
/// The module that a project gets which names none.
const DEFAULT_MODULE: &str = "backend";
/// How far the harness' clock and the database's may run apart within a lease.
const CLOCKS: Micros = 20_000;

/// A project that is placed. What is `None` was told to nobody yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Placed {
    server: Option<String>,
    create_time: Option<String>,
    ram_mb: u64,
    slots: BTreeMap<String, Option<Slot>>,
    /// Before this time its lease is not over. None: it stays.
    ends: Option<Micros>,
}

/// What a project is: not placed, or placed.
pub type State = Option<Placed>;

/// The states that a call may meet: the one before it, and, where the lease may be over by then, none.
pub fn before(state: &State, until: Micros) -> Vec<State> {
    let may_be_over = state.as_ref().and_then(|placed| placed.ends).is_some_and(|ends| ends <= until);
    if may_be_over { vec![state.clone(), None] } else { vec![state.clone()] }
}

/// The state after a call that met this one; none where it could not have been answered as it was.
pub fn after(state: &State, operation: &Operation) -> Option<State> {
    match &operation.call {
        Call::Ensure { modules, ram_mb, ttl_s } => {
            let (outcome, mut placed) = ensure(state, modules, *ram_mb);
            if let Some(ttl_s) = ttl_s {
                placed.ends = lease(operation.begun, *ttl_s);
            }
            match &operation.answer {
                Answer::Ensured(told, view) => {
                    (told == outcome && learn(&mut placed, view)).then_some(Some(placed))
                }
                // Whoever asks for nothing new is never refused.
                Answer::Refused(_) => (outcome != "UNCHANGED").then(|| state.clone()),
                Answer::Unknown(_) => Some(Some(placed)),
                // What a new lease alone is is no event.
                Answer::Unlogged(_) => (outcome == "UNCHANGED").then_some(Some(placed)),
                _ => None,
            }
        }
        Call::Release { modules } => {
            let (mut released, after) = release(state, modules);
            match &operation.answer {
                Answer::Released(told, server, removed) => {
                    let from = state.as_ref().and_then(|placed| placed.server.as_ref());
                    let is_there = server.is_none() || from.is_none() || server.as_ref() == from;
                    let is_removed = state.is_some() && after.is_none();
                    (is_there && *removed == is_removed && learn_slots(&mut released, told)).then_some(after)
                }
                Answer::Unknown(_) => Some(after),
                _ => None,
            }
        }
        Call::Get => match (&operation.answer, state) {
            (Answer::Found(view), Some(placed)) => {
                let mut placed = placed.clone();
                learn(&mut placed, view).then_some(Some(placed))
            }
            (Answer::Absent, None) => Some(None),
            (Answer::Unknown(_), _) => Some(state.clone()),
            _ => None,
        },
    }
}

/// When a lease may be over at the earliest. None: never.
fn lease(begun: Micros, ttl_s: u32) -> Option<Micros> {
    (ttl_s > 0).then(|| begun + u64::from(ttl_s) * 1_000_000 - CLOCKS)
}

/// What an ensure comes to, its lease aside.
fn ensure(state: &State, modules: &BTreeSet<String>, ram_mb: Option<u64>) -> (&'static str, Placed) {
    let Some(placed) = state else {
        let mut modules = modules.clone();
        if modules.is_empty() {
            modules.insert(DEFAULT_MODULE.to_owned());
        }
        let placed = Placed {
            server: None,
            create_time: None,
            ram_mb: ram_mb.unwrap_or(DEFAULT_RAM_MB),
            slots: modules.into_iter().map(|module| (module, None)).collect(),
            ends: None,
        };
        return ("CREATED", placed);
    };
    let mut next = placed.clone();
    for module in modules {
        next.slots.entry(module.clone()).or_insert(None);
    }
    next.ram_mb = next.ram_mb.max(ram_mb.unwrap_or(0));
    let grows = next.slots.len() > placed.slots.len() || next.ram_mb > placed.ram_mb;
    (if grows { "EXTENDED" } else { "UNCHANGED" }, next)
}

/// What a release gives back, and what is left.
fn release(state: &State, modules: &BTreeSet<String>) -> (BTreeMap<String, Option<Slot>>, State) {
    let Some(placed) = state else { return (BTreeMap::new(), None) };
    let mut next = placed.clone();
    let goes = |module: &String| modules.is_empty() || modules.contains(module);
    next.slots.retain(|module, _| !goes(module));
    let released = placed.slots.iter().filter(|(module, _)| goes(module));
    let released = released.map(|(module, slot)| (module.clone(), slot.clone())).collect();
    (released, (!next.slots.is_empty()).then_some(next))
}

/// Takes note of what an answer tells; false where it contradicts what was told before.
fn learn(placed: &mut Placed, view: &View) -> bool {
    is_or_becomes(&mut placed.server, &view.server)
        && is_or_becomes(&mut placed.create_time, &view.create_time)
        && placed.ram_mb == view.ram_mb
        && learn_slots(&mut placed.slots, &view.slots)
}

fn learn_slots(slots: &mut BTreeMap<String, Option<Slot>>, told: &Slots) -> bool {
    slots.len() == told.len()
        && told
            .iter()
            .all(|(module, slot)| slots.get_mut(module).is_some_and(|known| is_or_becomes(known, slot)))
}

fn is_or_becomes<T: Clone + PartialEq>(known: &mut Option<T>, told: &T) -> bool {
    known.get_or_insert_with(|| told.clone()) == told
}
