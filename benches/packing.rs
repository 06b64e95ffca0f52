//! How full each strategy packs a fleet: tasks of a trace arrive one by one, drawn with replacement, until 130 % of the fleet's
//! CPU has arrived. Printed for each strategy: the share of the fleet's CPU that is allocated when the first task is refused,
//! the share at the end, and the share of tasks refused; medians and means over the seeds.
//!
//! Ours go through the service's own decision. Beside them, from the same run: first fit, random, best fit, and the score that
//! Nomad packs by (`ScoreFitBinPack`: 20 − 10^(free CPU share) − 10^(free RAM share)).
//!
//! ```sh
//! cargo bench --bench packing -- FOLDER [SEEDS]
//! ```
//!
//! FOLDER holds the trace: a CSV of nodes (`cpu_milli`, `memory_mib`) and one of tasks (the same columns), as
//! `openb_node_list_all_node.csv` and `openb_pod_list_default.csv`. SEEDS is how many of the seeds from 42 on, default 10.

use std::{collections::BTreeMap, env, error::Error, path::Path, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use resource_allocator::domain::{
    Fleet, PortRange, Project, ProjectId, ResourceRequest, Resources, Server, ServerHandle, ServerStatus,
    event::{Ensured, LogEntry, Operation, Requested},
    placement::{Context, Decision, decide},
    ports::DEFAULT_START_PORT,
    request::{EnsureRequest, Strategy},
    resources::PerResource,
};
use serde::Deserialize;
use time::OffsetDateTime;

const NODES: &str = "openb_node_list_all_node.csv";
const TASKS: &str = "openb_pod_list_default.csv";
/// How much of the fleet's CPU arrives in all, in percent.
const ARRIVAL_PERCENT: i64 = 130;

#[derive(Debug, Clone, Copy, Deserialize)]
struct Shape {
    #[serde(rename = "cpu_milli")]
    cpu_millis: i64,
    #[serde(rename = "memory_mib")]
    ram_mb: i64,
}

impl Shape {
    fn resources(self) -> Resources {
        Resources { cpu_millis: self.cpu_millis, ram_mb: self.ram_mb, disk_mb: 0 }
    }
}

fn read(path: &Path) -> Result<Vec<Shape>, Box<dyn Error>> {
    let mut reader =
        csv::Reader::from_path(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(reader.deserialize().collect::<Result<_, _>>()?)
}

/// Places tasks one by one; tells whether the task was taken.
trait Packer {
    fn place(&mut self, task: Resources, number: usize) -> bool;
}

/// The service's own decision.
struct Ours {
    fleet: Fleet,
    strategy: Strategy,
}

impl Ours {
    fn new(nodes: &[Shape], strategy: Strategy) -> Self {
        let mut fleet = Fleet::default();
        for (number, node) in nodes.iter().enumerate() {
            fleet.upsert(Server {
                handle: ServerHandle::parse(&format!("node-{number:05}")).expect("a well-formed handle"),
                address: "192.0.2.1".to_owned(),
                status: ServerStatus::Ready,
                status_before_missing: None,
                managed: true,
                labels: BTreeMap::new(),
                capacity: node.resources(),
                headroom: ResourceRequest::default(),
                overcommit_percent: PerResource::default(),
                port_range: PortRange::DEFAULT,
                excluded_ports: Vec::new(),
                source: String::new(),
                external_id: None,
            });
        }
        Self { fleet, strategy }
    }
}

impl Packer for Ours {
    fn place(&mut self, task: Resources, number: usize) -> bool {
        let project_id = ProjectId::parse(&format!("task-{number}")).expect("a well-formed id");
        let request = EnsureRequest {
            project_id: project_id.clone(),
            modules: Vec::new(),
            resources: ResourceRequest {
                cpu_millis: Some(task.cpu_millis),
                ram_mb: Some(task.ram_mb),
                disk_mb: Some(0),
            },
            server_handle: None,
            selector: BTreeMap::new(),
            start_port: DEFAULT_START_PORT,
            strategy: self.strategy,
            ttl: None,
        };
        let context = Context {
            now: OffsetDateTime::UNIX_EPOCH,
            usage_max_age: Duration::from_mins(5),
            usage_required: false,
        };
        let decision = decide(&self.fleet, &Project::unplaced(project_id.clone()), &request, &context);
        let Ok(Decision::Place { server_handle, selected, reserve, .. }) = decision else { return false };
        let ensured = Ensured {
            usage_counted: false,
            requested: Requested::of(&request),
            selected: Some(selected),
            server_address: String::new(),
            grown: reserve,
            // Ports are not what is measured here.
            allocations: Vec::new(),
            allocation_count: 0,
            expire_time: None,
            served: None,
        };
        self.fleet.apply(&LogEntry {
            first_sequence: self.fleet.sequence() + 1,
            event_time: context.now,
            project_id: Some(project_id),
            server_handle: Some(server_handle),
            request_id: String::new(),
            actor: String::new(),
            operation: Operation::Ensured(ensured),
        });
        true
    }
}

/// A scan of every node by a score, the least first, ties by the order of the nodes.
struct Scan<F> {
    capacity: Vec<Resources>,
    free: Vec<Resources>,
    score: F,
}

impl<F: FnMut(Resources, Resources) -> f64> Scan<F> {
    /// `score` sees the capacity of a node and what the task leaves free on it.
    fn new(nodes: &[Shape], score: F) -> Self {
        let capacity: Vec<_> = nodes.iter().map(|node| node.resources()).collect();
        Self { free: capacity.clone(), capacity, score }
    }
}

impl<F: FnMut(Resources, Resources) -> f64> Packer for Scan<F> {
    fn place(&mut self, task: Resources, _number: usize) -> bool {
        let mut best: Option<(f64, usize)> = None;
        for (node, free) in self.free.iter().enumerate() {
            if !task.short_of(*free).is_zero() {
                continue;
            }
            let score = (self.score)(self.capacity[node], *free - task);
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, node));
            }
        }
        let Some((_, node)) = best else { return false };
        self.free[node] -= task;
        true
    }
}

#[expect(clippy::cast_precision_loss, reason = "amounts are far below 2^52")]
fn share(part: i64, whole: i64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[derive(Debug, Clone, Copy)]
struct Figures {
    at_first_refusal: f64,
    at_end: f64,
    refused: f64,
}

fn run(packer: &mut dyn Packer, nodes: &[Shape], tasks: &[Shape], seed: u64) -> Figures {
    let mut draw = StdRng::seed_from_u64(seed);
    let fleet_cpu: i64 = nodes.iter().map(|node| node.cpu_millis).sum();
    let (mut arrived, mut allocated, mut count, mut refused) = (0, 0, 0_usize, 0_usize);
    let mut at_first_refusal = None;
    while arrived * 100 < fleet_cpu * ARRIVAL_PERCENT {
        let task = tasks[draw.random_range(0..tasks.len())].resources();
        arrived += task.cpu_millis;
        count += 1;
        if packer.place(task, count) {
            allocated += task.cpu_millis;
        } else {
            refused += 1;
            at_first_refusal.get_or_insert(allocated);
        }
    }
    Figures {
        at_first_refusal: 100.0 * share(at_first_refusal.unwrap_or(allocated), fleet_cpu),
        at_end: 100.0 * share(allocated, fleet_cpu),
        refused: 100.0 * share(i64::try_from(refused).unwrap_or(0), i64::try_from(count).unwrap_or(1)),
    }
}

fn mean(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let count = u32::try_from(figures.len()).unwrap_or(1);
    figures.iter().map(of).sum::<f64>() / f64::from(count)
}

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut sorted: Vec<f64> = figures.iter().map(of).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Makes a packer for a seed.
type MakePacker<'a> = Box<dyn Fn(u64) -> Box<dyn Packer + 'a> + 'a>;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds a flag of its own.
    let mut arguments = env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let Some(folder) = arguments.next() else {
        eprintln!(
            "packing: no folder of a trace was given, so there is nothing to measure; see the head of benches/packing.rs"
        );
        return Ok(());
    };
    let seeds: u64 = arguments.next().map_or(Ok(10), |count| count.parse())?;
    let nodes = read(&Path::new(&folder).join(NODES))?;
    let tasks = read(&Path::new(&folder).join(TASKS))?;
    println!("{} nodes, {} kinds of task, seeds 42 to {}", nodes.len(), tasks.len(), 41 + seeds);
    println!(
        "{:<34} {:>18} {:>9} {:>9} {:>9}",
        "CPU allocated, %", "at first refusal", "(median)", "at end", "refused"
    );

    let strategies: [(&str, MakePacker<'_>); 6] = [
        ("ours, BINPACK", Box::new(|_| Box::new(Ours::new(&nodes, Strategy::Binpack)))),
        ("ours, SPREAD", Box::new(|_| Box::new(Ours::new(&nodes, Strategy::Spread)))),
        ("first fit", Box::new(|_| Box::new(Scan::new(&nodes, |_, _| 0.0)))),
        (
            "random",
            Box::new(|seed| {
                let mut draw = StdRng::seed_from_u64(seed ^ 0x5eed);
                Box::new(Scan::new(&nodes, move |_, _| draw.random::<f64>()))
            }),
        ),
        (
            "best fit",
            Box::new(|_| {
                Box::new(Scan::new(&nodes, |capacity, left| {
                    share(left.cpu_millis, capacity.cpu_millis) + share(left.ram_mb, capacity.ram_mb)
                }))
            }),
        ),
        (
            "Nomad's bin-pack score",
            Box::new(|_| {
                Box::new(Scan::new(&nodes, |capacity, left| {
                    10_f64.powf(share(left.cpu_millis, capacity.cpu_millis))
                        + 10_f64.powf(share(left.ram_mb, capacity.ram_mb))
                }))
            }),
        ),
    ];
    for (name, packer) in &strategies {
        let figures: Vec<_> =
            (42..42 + seeds).map(|seed| run(&mut *packer(seed), &nodes, &tasks, seed)).collect();
        println!(
            "{name:<34} {:>18.2} {:>9.2} {:>9.2} {:>9.2}",
            mean(&figures, |f| f.at_first_refusal),
            median(&figures, |f| f.at_first_refusal),
            mean(&figures, |f| f.at_end),
            mean(&figures, |f| f.refused)
        );
    }
    Ok(())
}
