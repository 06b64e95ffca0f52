//! The choice of the best server that fits, read off the fleet's indexes: the same that a look at every server would find, at a
//! cost that hardly grows with the fleet.

use super::{
    Context,
    filter::{Ask, Exclusion, fits},
    score::{Score, bound},
};
use crate::domain::{
    Fleet,
    fleet::{Among, ServerState, Verdict, View},
    ports::PortGrant,
    request::Strategy,
};

/// How many servers with room may turn out to lack the ports before those that have them are looked up.
const PORT_MISSES: usize = if cfg!(test) { 2 } else { 128 };

type Choice<'a> = Option<(&'a ServerState, Vec<PortGrant>)>;

/// The best server that fits, with the ports that it would give.
pub(super) fn choose<'a>(
    fleet: &'a Fleet,
    ask: &Ask<'_>,
    strategy: Strategy,
    context: &Context,
) -> Choice<'a> {
    let ports = (ask.modules, ask.start_port);
    let names_ports = ask.modules.iter().any(|module| module.port.is_some());
    // Where most lacked these ports before, they are not looked at again.
    if !(names_ports && fleet.keeps_index(ask.selector, ports)) {
        match fleet.read_index(ask.selector, None, context, |view| {
            search(fleet, view, ask, strategy, context, PORT_MISSES)
        }) {
            Among::Few(slots) => return choose_of_few(fleet, &slots, ask, strategy, context),
            Among::View(Some(choice)) => return choice,
            Among::View(None) => {}
        }
    }
    match fleet.read_index(ask.selector, Some(ports), context, |view| {
        search(fleet, view, ask, strategy, context, usize::MAX)
    }) {
        Among::View(choice) => choice.flatten(),
        Among::Few(slots) => choose_of_few(fleet, &slots, ask, strategy, context),
    }
}

/// None where more servers than `misses` lack the ports.
fn search<'a>(
    fleet: &'a Fleet,
    view: &View,
    ask: &Ask<'_>,
    strategy: Strategy,
    context: &Context,
    mut misses: usize,
) -> Option<Choice<'a>> {
    let ask = &ask.of_carriers();
    let mut best = None;
    view.rooms.least(
        1,
        |room| bound(room, ask.resources, strategy),
        |slot| {
            let Some(state) = fleet.at(slot) else { return Verdict::Leave };
            match fits(state, ask, context) {
                // What is looked at is better than what was taken before.
                Ok(ports) => {
                    best = Some((state, ports));
                    Verdict::Take
                }
                Err(Exclusion::Ports(_)) => {
                    let Some(left) = misses.checked_sub(1) else { return Verdict::GiveUp };
                    misses = left;
                    Verdict::Leave
                }
                Err(_) => Verdict::Leave,
            }
        },
    )?;
    Some(best)
}

fn choose_of_few<'a>(
    fleet: &'a Fleet,
    slots: &[u32],
    ask: &Ask<'_>,
    strategy: Strategy,
    context: &Context,
) -> Choice<'a> {
    let ask = &ask.of_carriers();
    slots
        .iter()
        .filter_map(|slot| fleet.at(*slot))
        .filter_map(|state| {
            let ports = fits(state, ask, context).ok()?;
            Some((Score::of(state, ask.resources, strategy), state, ports))
        })
        .min_by(|(a, ..), (b, ..)| a.cmp(b))
        .map(|(_, state, ports)| (state, ports))
}
