//! What callers asked and were told, and when: the history that is checked. It outlives the run as a file, one call a line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
};

use resource_allocator::proto::v1::{self, EnsureOutcome};

/// A time of the run, in microseconds from its beginning, by the harness' own steady clock.
pub type Micros = u64;

/// A port as a caller was told it. Its id is never used again, so two of an id are the same allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Slot {
    /// The allocation's id.
    pub id: String,
    /// The port.
    pub port: u32,
}

/// Ports by their module.
pub type Slots = BTreeMap<String, Slot>;

/// A placement as a caller was told it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct View {
    /// The server.
    pub server: String,
    /// When the project was placed, which tells this placement from a later one.
    pub create_time: String,
    /// The RAM that is reserved.
    pub ram_mb: u64,
    /// The ports.
    pub slots: Slots,
}

/// What a caller asked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum Call {
    /// EnsureAllocation.
    Ensure {
        /// The modules that were named.
        modules: BTreeSet<String>,
        /// The RAM that was named.
        ram_mb: Option<u64>,
        /// The lease that was named, in seconds; 0 for "stays".
        ttl_s: Option<u32>,
    },
    /// ReleaseAllocation of these modules; of all where there are none.
    Release {
        /// The modules that were named.
        modules: BTreeSet<String>,
    },
    /// GetPlacement.
    Get,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum Answer {
    /// The project is placed like this.
    Ensured(String, View),
    /// These were given back, from the server; whether the placement went.
    Released(Slots, Option<String>, bool),
    /// The project was found like this.
    Found(View),
    /// The project was not found.
    Absent,
    /// There was no room.
    Refused(String),
    /// Nobody knows: it was done, once, or it was not. The words say what the caller met.
    Unknown(String),
    /// Nobody was told, and the log does not have it: it changed nothing but, perhaps, a lease. The words are the same.
    Unlogged(String),
}

/// A call with its answer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Operation {
    /// Its number in the run; the request id is made of it.
    pub number: usize,
    /// The caller.
    pub caller: usize,
    /// The replica that was called.
    pub replica: usize,
    /// The project.
    pub project: String,
    /// What was asked.
    pub call: Call,
    /// When it was asked.
    pub begun: Micros,
    /// When the answer was there, or the caller gave up.
    pub ended: Micros,
    /// The answer.
    pub answer: Answer,
}

impl Operation {
    /// Until when it may have taken effect: one whose outcome nobody knows, for ever.
    pub fn effective_until(&self) -> Micros {
        if self.is_known() { self.ended } else { Micros::MAX }
    }

    /// Whether its outcome is known.
    pub fn is_known(&self) -> bool {
        !matches!(self.answer, Answer::Unknown(_) | Answer::Unlogged(_))
    }

    /// Whether it may have changed anything, or an answer tells something.
    pub fn says_something(&self) -> bool {
        match (&self.call, &self.answer) {
            (Call::Get, answer) => !matches!(answer, Answer::Unknown(_) | Answer::Unlogged(_)),
            (Call::Ensure { ttl_s: None, .. } | Call::Release { .. }, Answer::Unlogged(_)) => false,
            _ => true,
        }
    }

    /// The placement that the answer showed, if it did.
    pub fn view(&self) -> Option<&View> {
        match &self.answer {
            Answer::Ensured(_, view) | Answer::Found(view) => Some(view),
            _ => None,
        }
    }
}

/// The ports of an answer.
pub fn slots(allocations: &[v1::Allocation]) -> Slots {
    let slot = |held: &v1::Allocation| Slot { id: held.id.clone(), port: held.port };
    allocations.iter().map(|held| (held.module.clone(), slot(held))).collect()
}

/// A placement of an answer.
pub fn view(placement: &v1::Placement, allocations: &[v1::Allocation]) -> View {
    let time = placement.create_time.as_ref().expect("a placement says when it was made");
    View {
        server: placement.server_handle.clone(),
        create_time: format!("{}.{:09}", time.seconds, time.nanos),
        ram_mb: placement.reserved.and_then(|reserved| reserved.ram_mb).expect("a placement says its RAM"),
        slots: slots(allocations),
    }
}

/// An outcome as the history has it.
pub fn outcome(outcome: EnsureOutcome) -> String {
    outcome.as_str_name().trim_start_matches("ENSURE_OUTCOME_").to_owned()
}

/// The operations of each project, in the order in which they were begun.
pub fn by_project(operations: &[Operation]) -> BTreeMap<&str, Vec<Operation>> {
    let mut projects: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        projects.entry(&operation.project).or_default().push(operation.clone());
    }
    for operations in projects.values_mut() {
        operations.sort_by_key(|operation| (operation.begun, operation.number));
    }
    projects
}

/// Keeps a history, and the faults that were made under it, where it can be looked at after the run.
pub fn keep(name: &str, faults: &[String], operations: &[Operation]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.jsonl"));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for fault in faults {
        writeln!(file, "{}", serde_json::json!({ "fault": fault })).unwrap();
    }
    for operation in operations {
        writeln!(file, "{}", serde_json::to_string(operation).unwrap()).unwrap();
    }
    file.flush().unwrap();
    path
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let seconds = |micros: Micros| micros as f64 / 1e6;
        let Self { number, caller, replica, project, .. } = self;
        let (begun, ended) = (seconds(self.begun), seconds(self.ended));
        write!(f, "#{number} {begun:.3}..{ended:.3} s caller {caller} at replica {replica}: {project} ")?;
        match &self.call {
            Call::Ensure { modules, ram_mb, ttl_s } => {
                write!(f, "ensure {modules:?} ram {ram_mb:?} ttl {ttl_s:?}")?;
            }
            Call::Release { modules } => write!(f, "release {modules:?}")?,
            Call::Get => write!(f, "get")?,
        }
        match &self.answer {
            Answer::Ensured(outcome, view) => write!(f, " -> {outcome} {}", short(view)),
            Answer::Released(slots, _, removed) => {
                write!(f, " -> released {:?}, placement removed: {removed}", short_slots(slots))
            }
            Answer::Found(view) => write!(f, " -> {}", short(view)),
            Answer::Absent => write!(f, " -> not placed"),
            Answer::Refused(reason) => write!(f, " -> {reason}"),
            Answer::Unknown(what) => write!(f, " -> unknown ({what})"),
            Answer::Unlogged(what) => write!(f, " -> unknown, and not in the log ({what})"),
        }
    }
}

fn short(view: &View) -> String {
    format!("on {} ram {} {:?}", view.server, view.ram_mb, short_slots(&view.slots))
}

fn short_slots(slots: &Slots) -> Vec<String> {
    slots.iter().map(|(module, slot)| format!("{module}:{}", slot.port)).collect()
}
