//! Whether a project's answers are those of calls that came one after the other, each at a moment between its begin and its end.
//!
//! The search of Wing and Gong, with Lowe's memory of what was tried. A call whose outcome nobody knows may come at any later
//! moment, or never. It is our own for the sake of leases: a state that ends by itself between two calls fits no library's
//! sequential object.

use std::collections::HashSet;

use super::{
    history::{Answer, Micros, Operation},
    model::{self, State},
};

/// So many calls of a project can be searched: one bit each.
pub const MOST: usize = 128;
/// So many states are looked at before the search gives up, which is a failure too.
const PATIENCE: usize = 4_000_000;

/// What a search found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// An order that explains all answers.
    Order,
    /// That there is none.
    NoOrder,
    /// Nothing: there are too many to try.
    TooMany,
}

/// Searches for an order of one project's calls, which are sorted by their begin.
pub fn search(operations: &[Operation]) -> Found {
    let operations: Vec<&Operation> =
        operations.iter().filter(|operation| operation.says_something()).collect();
    assert!(operations.len() <= MOST, "a project of {} calls", operations.len());
    let mut seen: HashSet<(u128, State)> = HashSet::new();
    let mut open = vec![(0_u128, None)];
    while let Some((done, state)) = open.pop() {
        let is_open = |n: &usize| done & (1 << n) == 0;
        let left = || (0..operations.len()).filter(is_open);
        let Some(horizon) = left().filter(|n| operations[*n].is_known()).map(|n| operations[n].ended).min()
        else {
            return Found::Order;
        };
        // The last one that is pushed is tried first: what is known before what is not.
        let mut next: Vec<usize> = left().filter(|n| operations[*n].begun <= horizon).collect();
        next.sort_by_key(|n| (operations[*n].is_known(), std::cmp::Reverse(operations[*n].ended)));
        for n in next {
            for met in model::before(&state, operations[n].effective_until()) {
                let Some(after) = model::after(&met, operations[n]) else { continue };
                // One that may never have come need not come where it changes nothing.
                if !operations[n].is_known() && after == state {
                    continue;
                }
                let reached = (done | (1 << n), after);
                if seen.insert(reached.clone()) {
                    open.push(reached);
                }
            }
        }
        if seen.len() > PATIENCE {
            return Found::TooMany;
        }
    }
    Found::NoOrder
}

/// The shortest beginning of a history that has no order: what was known by the end of one of its calls.
pub fn shortest(operations: &[Operation]) -> Vec<Operation> {
    let mut ends: Vec<Micros> =
        operations.iter().filter(|operation| operation.is_known()).map(|operation| operation.ended).collect();
    ends.sort_unstable();
    for end in ends {
        let known_by_then = as_of(operations, end);
        if search(&known_by_then) != Found::Order {
            return known_by_then;
        }
    }
    operations.to_vec()
}

fn as_of(operations: &[Operation], end: Micros) -> Vec<Operation> {
    let begun = operations.iter().filter(|operation| operation.begun <= end);
    begun
        .map(|operation| {
            let mut operation = operation.clone();
            if operation.ended > end && operation.is_known() {
                operation.answer = Answer::Unknown("not answered by then".to_owned());
            }
            operation
        })
        .collect()
}
