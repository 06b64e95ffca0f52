//! Whether anything was held twice at one time, by what callers were told alone.
//!
//! An allocation that was shown in an answer was held at some moment of that call. It is one uninterrupted holding, for ids are
//! never used again. So it was held from the end of the first call that showed it to the begin of the last one. The same goes
//! for a placement, by its project and the time it was made.

use std::collections::BTreeMap;

use super::history::{Answer, Micros, Operation};

/// Something that was held, as far as answers tell.
#[derive(Debug, Clone)]
struct Holding {
    /// The end of the first call that showed it.
    from: Micros,
    /// The begin of the last one.
    until: Micros,
    /// Whose it was, as words.
    whose: String,
    /// How much of it was reserved at the least.
    ram_mb: u64,
}

impl Holding {
    fn new(whose: String) -> Self {
        Self { from: Micros::MAX, until: 0, whose, ram_mb: u64::MAX }
    }

    fn seen(&mut self, operation: &Operation) {
        self.from = self.from.min(operation.ended);
        self.until = self.until.max(operation.begun);
    }
}

/// Holdings, each under the name of its own, by what it is that they hold.
type Holdings = BTreeMap<String, BTreeMap<String, Holding>>;

/// What was held twice: ports, placements of a project, and capacity beyond `ram_mb` of each server.
pub fn check(operations: &[Operation], ram_mb: u64) -> Vec<String> {
    let mut ports = Holdings::new();
    let mut placements = Holdings::new();
    let mut capacity = Holdings::new();
    for operation in operations {
        let project = &operation.project;
        let (slots, server) = match (&operation.answer, operation.view()) {
            (_, Some(view)) => {
                let name = format!("{project} of {}", view.create_time);
                for (holdings, what) in [(&mut placements, project), (&mut capacity, &view.server)] {
                    let holding = note(holdings, what, &name, &name);
                    holding.seen(operation);
                    holding.ram_mb = holding.ram_mb.min(view.ram_mb);
                }
                (&view.slots, &view.server)
            }
            (Answer::Released(slots, Some(server), _), _) => (slots, server),
            _ => continue,
        };
        for (module, slot) in slots {
            let whose = format!("{module} of {project} ({})", slot.id);
            note(&mut ports, &format!("port {} of {server}", slot.port), &slot.id, &whose).seen(operation);
        }
    }
    let mut wrong = twice("", &ports);
    wrong.extend(twice("placement of ", &placements));
    wrong.extend(one_place_each(&ports));
    for (server, holdings) in &capacity {
        wrong.extend(beyond(server, holdings.values(), ram_mb));
    }
    wrong
}

fn note<'a>(holdings: &'a mut Holdings, what: &str, name: &str, whose: &str) -> &'a mut Holding {
    let of_it = holdings.entry(what.to_owned()).or_default();
    of_it.entry(name.to_owned()).or_insert_with(|| Holding::new(whose.to_owned()))
}

/// What two hold at one time.
fn twice(kind: &str, holdings: &Holdings) -> Vec<String> {
    let mut wrong = Vec::new();
    for (what, held) in holdings {
        // One that was shown by a single call was held at a moment that nobody can name.
        let mut held: Vec<_> = held.values().filter(|holding| holding.from <= holding.until).collect();
        held.sort_by_key(|holding| holding.from);
        let mut last: Option<&Holding> = None;
        for holding in held {
            if let Some(last) = last
                && last.until >= holding.from
            {
                wrong.push(format!(
                    "{kind}{what} was held twice at {} us: by {} until {} us, by {} from {} us",
                    holding.from, last.whose, last.until, holding.whose, holding.from
                ));
            }
            if last.is_none_or(|last| last.until < holding.until) {
                last = Some(holding);
            }
        }
    }
    wrong
}

/// Ids that were shown in two places, or for two.
fn one_place_each(ports: &Holdings) -> Vec<String> {
    let mut places: BTreeMap<&String, (&String, &String)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (what, held) in ports {
        for (id, holding) in held {
            let (at, _) = *places.entry(id).or_insert((what, &holding.whose));
            if at != what {
                wrong.push(format!("the allocation {id} was shown as {at} and as {what}"));
            }
        }
    }
    wrong
}

/// When more was held of a server than there is.
fn beyond<'a>(server: &str, held: impl Iterator<Item = &'a Holding>, ram_mb: u64) -> Option<String> {
    let mut changes: Vec<(Micros, bool, u64)> = Vec::new();
    for holding in held.filter(|holding| holding.from <= holding.until) {
        changes.push((holding.from, true, holding.ram_mb));
        // At its last moment it is held.
        changes.push((holding.until + 1, false, holding.ram_mb));
    }
    changes.sort_unstable();
    let mut sum = 0;
    for (time, is_taken, amount) in changes {
        sum = if is_taken { sum + amount } else { sum - amount };
        if sum > ram_mb {
            return Some(format!("{sum} MB of {server} were held at {time} us, of {ram_mb} MB"));
        }
    }
    None
}
