//! The log against the answers and the tables: every allocation is told once, is told as it was answered, and is in the tables
//! while it is not given back; a call whose outcome was unknown was done once or not at all.

use std::collections::{BTreeMap, BTreeSet};

use resource_allocator::proto::v1::{self, allocation_event::Detail};
use sqlx::PgConnection;

use super::{
    callers::Callers,
    history::{self, Answer, Call, Operation},
};

/// A port that is held: whose it is, and where.
type Held = (String, String, String, u32);

/// What the tables hold, and up to where the log had told it.
pub struct Tables {
    /// The number of the newest event.
    pub sequence: i64,
    held: BTreeMap<String, Held>,
}

/// The newest event's number, and a port that is held, where there is one.
type Row = (i64, Option<String>, Option<String>, Option<String>, Option<String>, Option<i32>);

/// Reads the tables, in one statement and so as of one moment.
pub async fn read_tables(conn: &mut PgConnection) -> Tables {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT pools.last_sequence, held.id::text, held.project_id::text, held.module::text, \
             held.server_handle::text, held.port FROM pools \
             LEFT JOIN port_allocations held ON held.project_id IS NOT NULL",
    )
    .fetch_all(conn)
    .await
    .unwrap();
    let sequence = rows[0].0;
    let held = rows.into_iter().filter_map(|(_, id, project, module, server, port)| {
        Some((id?, (project?, module?, server?, u32::try_from(port?).unwrap())))
    });
    Tables { sequence, held: held.collect() }
}

fn held(allocation: &v1::Allocation) -> Held {
    let v1::Allocation { project_id, module, server_handle, port, .. } = allocation.clone();
    (project_id, module, server_handle, port)
}

/// What the log tells of a request.
#[derive(Default)]
struct Done {
    outcomes: Vec<String>,
    released: Vec<history::Slots>,
}

/// Compares the log, up to where the tables were read, with the tables and with what callers were told.
pub fn check(
    events: &[v1::AllocationEvent],
    tables: &Tables,
    callers: &Callers,
    operations: &[Operation],
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut live: BTreeMap<String, Held> = BTreeMap::new();
    let mut taken: BTreeMap<(String, u32), String> = BTreeMap::new();
    let mut ever: BTreeMap<String, Held> = BTreeMap::new();
    let mut done: BTreeMap<String, Done> = BTreeMap::new();
    for event in events.iter().filter(|event| event.sequence <= tables.sequence) {
        match event.detail.as_ref().unwrap() {
            Detail::PortAllocated(told) => {
                let allocation = told.allocation.as_ref().unwrap();
                let (id, held) = (allocation.id.clone(), held(allocation));
                let place = (held.2.clone(), held.3);
                if let Some(other) = taken.insert(place.clone(), id.clone()) {
                    wrong
                        .push(format!("event {}: {place:?} is given while {other} holds it", event.sequence));
                }
                if ever.insert(id.clone(), held.clone()).is_some() {
                    wrong.push(format!("event {}: {id} is given twice", event.sequence));
                }
                live.insert(id, held);
            }
            Detail::Released(told) => {
                for allocation in &told.allocations {
                    if live.remove(&allocation.id) != Some(held(allocation)) {
                        wrong.push(format!("event {}: {} was not held", event.sequence, allocation.id));
                    }
                    taken.remove(&(allocation.server_handle.clone(), allocation.port));
                }
                let slots = history::slots(&told.allocations);
                done.entry(event.request_id.clone()).or_default().released.push(slots);
            }
            Detail::Completed(told) => {
                let outcome = history::outcome(told.outcome());
                done.entry(event.request_id.clone()).or_default().outcomes.push(outcome);
            }
            _ => {}
        }
    }
    if live != tables.held {
        let named = |one: &BTreeMap<String, Held>, other: &BTreeMap<String, Held>| -> Vec<String> {
            let differs = one.iter().filter(|(id, held)| other.get(*id) != Some(held));
            differs.map(|(id, held)| format!("{id} {held:?}")).take(5).collect()
        };
        wrong.push(format!(
            "the tables are not what the log says: it alone has {:?}, they alone have {:?}",
            named(&live, &tables.held),
            named(&tables.held, &live)
        ));
    }
    wrong.extend(operations.iter().filter_map(|operation| was_shown(operation, &ever)));
    let nothing = Done::default();
    wrong.extend(operations.iter().filter_map(|operation| {
        let done = done.get(&callers.request_id(operation.number)).unwrap_or(&nothing);
        let is_done_as_told = was_done(operation, done);
        (!is_done_as_told).then(|| {
            format!(
                "the log has outcomes {:?} and releases {:?} of {operation}",
                done.outcomes, done.released
            )
        })
    }));
    wrong
}

/// The same operations with what the log says of those whose outcome nobody was told. Few of the many that a fault leaves so were
/// done, and what was not done need not be searched for an order. Whoever takes the log's word for it is not led astray: a log
/// without what was done, or with what was not, then leaves no order.
pub fn resolve(
    events: &[v1::AllocationEvent],
    callers: &Callers,
    operations: &[Operation],
) -> Vec<Operation> {
    let is_end = |event: &&v1::AllocationEvent| {
        matches!(event.detail, Some(Detail::Completed(_) | Detail::Released(_)))
    };
    let done: BTreeSet<&str> = events.iter().filter(is_end).map(|event| event.request_id.as_str()).collect();
    let mut operations = operations.to_vec();
    for operation in &mut operations {
        if let Answer::Unknown(what) = &operation.answer
            && !done.contains(callers.request_id(operation.number).as_str())
        {
            operation.answer = Answer::Unlogged(what.clone());
        }
    }
    operations
}

/// What an answer showed that was never given, or otherwise.
fn was_shown(operation: &Operation, ever: &BTreeMap<String, Held>) -> Option<String> {
    let (slots, server) = match (&operation.answer, operation.view()) {
        (_, Some(view)) => (&view.slots, &view.server),
        (Answer::Released(slots, Some(server), _), _) => (slots, server),
        _ => return None,
    };
    let is_told = |module: &String, slot: &history::Slot| {
        let shown = (operation.project.clone(), module.clone(), server.clone(), slot.port);
        ever.get(&slot.id) == Some(&shown)
    };
    let missing: BTreeSet<_> =
        slots.iter().filter(|(module, slot)| !is_told(module, slot)).map(|(module, _)| module).collect();
    (!missing.is_empty()).then(|| format!("the log does not have {missing:?} of {operation}"))
}

/// Whether the log has of a call what its answer says: once where it changed something, and at most once where nobody was told.
fn was_done(operation: &Operation, done: &Done) -> bool {
    let outcomes: Vec<&str> = done.outcomes.iter().map(String::as_str).collect();
    match (&operation.call, &operation.answer) {
        (Call::Ensure { .. }, Answer::Ensured(told, _)) if told == "UNCHANGED" => outcomes.is_empty(),
        (Call::Ensure { .. }, Answer::Ensured(told, _)) => outcomes == [told.as_str()],
        (Call::Ensure { .. }, Answer::Unknown(_)) => outcomes.len() <= 1,
        (Call::Release { .. }, Answer::Released(slots, _, _)) if slots.is_empty() => done.released.is_empty(),
        (Call::Release { .. }, Answer::Released(slots, _, _)) => done.released == [slots.clone()],
        (Call::Release { .. }, Answer::Unknown(_)) => done.released.len() <= 1,
        _ => outcomes.is_empty() && done.released.is_empty(),
    }
}
