//! Decisions against fleets of 1,000, 10,000 and 100,000 servers: the same decision that the service takes, with the upkeep of the
//! fleet's indexes that it brings. Between any two decisions the fleet changes, as it does in a service.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use resource_allocator::domain::{
    Allocation, Fleet, PortRange, Project, ProjectId, ResourceRequest, Resources, Server, ServerHandle,
    ServerStatus,
    event::{Ensured, LogEntry, Operation, ReleaseCause, Released, Requested},
    placement::{Context, Decision, decide},
    ports::DEFAULT_START_PORT,
    request::{EnsureRequest, ModuleRequest, Strategy},
    resources::PerResource,
    server::{Observation, Observer},
};
use time::OffsetDateTime;
use uuid::Uuid;

/// The service's, on which it depends how far apart what is allocated lies. It is that of whichever bench has this module.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often each figure is taken; the median is told.
pub const ROUNDS: usize = 3;

/// How large the fleets are.
pub const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

/// How many decisions one round takes.
const DECISIONS: usize = 20_000;

/// How many decisions for each server go before the first round, so that a fleet of any size is by then what such requests make of it.
const WARM_UP: usize = 3;

/// The time of one kind of decision.
#[derive(Debug, Clone)]
pub struct Row {
    /// What is decided.
    pub name: String,
    /// For each of the sizes.
    pub microseconds: [f64; SIZES.len()],
}

const SHAPES: [(i64, i64); 5] = [(16, 64), (32, 128), (64, 256), (96, 384), (128, 1024)];
const TASKS: [(i64, i64); 6] =
    [(2000, 8192), (4000, 8192), (8000, 32_768), (8000, 65_536), (12_000, 16_384), (16_000, 65_536)];

/// What is measured of a fleet.
#[derive(Clone)]
struct Bench {
    fleet: Fleet,
    draw: StdRng,
    placed: Vec<LogEntry>,
    count: usize,
    cpu: i64,
    cpu_taken: i64,
}

fn context() -> Context {
    Context { now: OffsetDateTime::UNIX_EPOCH, usage_max_age: Duration::from_mins(5), usage_required: false }
}

fn server(number: usize) -> Server {
    let (cores, ram_gb) = SHAPES[number % SHAPES.len()];
    Server {
        handle: ServerHandle::parse(&format!("node-{number:06}")).expect("a well-formed handle"),
        address: "192.0.2.1".to_owned(),
        status: ServerStatus::Ready,
        status_before_missing: None,
        managed: true,
        labels: BTreeMap::from([
            ("zone".to_owned(), format!("z{}", number % 3)),
            ("host".to_owned(), format!("h{number}")),
        ]),
        capacity: Resources { cpu_millis: cores * 1000, ram_mb: ram_gb * 1024, disk_mb: 4_000_000 },
        headroom: ResourceRequest { ram_mb: Some(2048), ..ResourceRequest::default() },
        overcommit_percent: PerResource::default(),
        port_range: PortRange::DEFAULT,
        excluded_ports: Vec::new(),
        source: String::new(),
        external_id: None,
    }
}

fn request(cpu_millis: i64, ram_mb: i64, strategy: Strategy) -> EnsureRequest {
    EnsureRequest {
        project_id: ProjectId::parse("project").expect("a well-formed id"),
        modules: ["backend", "frontend"].map(|name| ModuleRequest::named(name.parse_module())).to_vec(),
        resources: ResourceRequest {
            cpu_millis: Some(cpu_millis),
            ram_mb: Some(ram_mb),
            disk_mb: Some(1024),
        },
        server_handle: None,
        selector: BTreeMap::new(),
        start_port: DEFAULT_START_PORT,
        strategy,
        ttl: None,
    }
}

trait ParseModule {
    fn parse_module(&self) -> resource_allocator::domain::ModuleName;
}

impl ParseModule for &str {
    fn parse_module(&self) -> resource_allocator::domain::ModuleName {
        resource_allocator::domain::ModuleName::parse(self).expect("a well-formed name")
    }
}

impl Bench {
    fn new(size: usize) -> Self {
        let mut fleet = Fleet::default();
        let mut cpu = 0;
        for number in 0..size {
            let server = server(number);
            cpu += server.capacity.cpu_millis;
            fleet.upsert(server);
        }
        Self { fleet, draw: StdRng::seed_from_u64(7), placed: Vec::new(), count: 0, cpu, cpu_taken: 0 }
    }

    fn task(&mut self, strategy: Strategy) -> EnsureRequest {
        let (cpu, ram) = TASKS[self.draw.random_range(0..TASKS.len())];
        request(cpu, ram, strategy)
    }

    fn decide(&self, request: &EnsureRequest) -> Option<Decision> {
        decide(&self.fleet, &Project::unplaced(request.project_id.clone()), request, &context()).ok()
    }

    /// Commits what was decided, as the service would.
    fn commit(&mut self, request: &EnsureRequest, decision: Decision) {
        let Decision::Place { server_handle, selected, reserve, ports } = decision else { return };
        self.count += 1;
        self.cpu_taken += reserve.cpu_millis;
        let now = context().now;
        let allocations = ports
            .into_iter()
            .map(|grant| Allocation {
                id: Uuid::nil(),
                module: grant.module,
                protocol: grant.protocol,
                port: grant.port,
                pinned: grant.pinned,
                create_time: now,
            })
            .collect();
        let entry = LogEntry {
            first_sequence: self.fleet.sequence() + 1,
            event_time: now,
            project_id: ProjectId::parse(&format!("p{}", self.count)).ok(),
            server_handle: Some(server_handle),
            request_id: String::new(),
            actor: String::new(),
            operation: Operation::Ensured(Ensured {
                requested: Requested::of(request),
                selected: Some(selected),
                server_address: String::new(),
                grown: reserve,
                allocations,
                allocation_count: 2,
                expire_time: None,
                served: None,
                usage_counted: false,
            }),
        };
        self.fleet.apply(&entry);
        self.placed.push(entry);
    }

    /// Gives back a placement drawn at random.
    fn release(&mut self) {
        if self.placed.is_empty() {
            return;
        }
        let drawn = self.draw.random_range(0..self.placed.len());
        let mut entry = self.placed.swap_remove(drawn);
        let Operation::Ensured(ensured) = entry.operation else { return };
        self.cpu_taken -= ensured.grown.cpu_millis;
        entry.first_sequence = self.fleet.sequence() + 1;
        entry.operation = Operation::Released(Released {
            cause: ReleaseCause::Requested,
            server_address: String::new(),
            allocations: ensured.allocations,
            returned: Some(ensured.grown),
            // No port rests: that is about ports, not about servers.
            free_after: entry.event_time,
        });
        self.fleet.apply(&entry);
    }

    /// Places tasks until that share of the fleet's CPU is taken.
    fn fill(&mut self, strategy: Strategy, percent: i64) {
        let mut refused = 0;
        while self.cpu_taken * 100 < self.cpu * percent && refused < 1000 {
            let request = self.task(strategy);
            match self.decide(&request) {
                Some(decision) => self.commit(&request, decision),
                None => refused += 1,
            }
        }
    }

    /// The time of one decision, in microseconds.
    fn measure(&self, mut next: impl FnMut(&mut Self) -> EnsureRequest) -> f64 {
        let mut bench = self.clone();
        bench.decide_often(WARM_UP * bench.fleet.len(), &mut next);
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let spent = bench.decide_often(DECISIONS, &mut next);
                spent.as_secs_f64() * 1e6 / f64::from(u32::try_from(DECISIONS).unwrap_or(1))
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        rounds[ROUNDS / 2]
    }

    /// The time of so many decisions; what is placed is given back, so that the fleet stays as full as it is.
    fn decide_often(&mut self, count: usize, next: &mut impl FnMut(&mut Self) -> EnsureRequest) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..count {
            let request = next(self);
            let start = Instant::now();
            let decision = self.decide(&request);
            spent += start.elapsed();
            if let Some(decision) = decision {
                self.commit(&request, decision);
                self.release();
            } else {
                self.touch();
            }
        }
        spent
    }

    /// A usage report, so that no two refusals are of the same fleet.
    fn touch(&mut self) {
        let number = self.draw.random_range(0..self.fleet.len());
        let ram_mb = self.draw.random_range(0..1000);
        self.observe(number, Duration::ZERO, ram_mb);
    }

    fn observe(&mut self, number: usize, age: Duration, ram_mb: i64) {
        let handle = server(number).handle;
        let observation = Observation {
            observer: Observer::Host,
            cpu_millis: None,
            ram_mb: Some(ram_mb),
            disk_mb: None,
            listening_ports: Vec::new(),
            observe_time: context().now - age,
        };
        self.fleet.observe(&handle, observation);
    }
}

/// Every figure. The fleets of a row differ in nothing but their size.
pub fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (column, size) in SIZES.into_iter().enumerate() {
        let mut add = |name: String, microseconds: f64| {
            if column == 0 {
                rows.push(Row { name, microseconds: [0.0; SIZES.len()] });
                if let Some(row) = rows.last_mut() {
                    row.microseconds[0] = microseconds;
                }
            } else if let Some(row) = rows.iter_mut().find(|row| row.name == name) {
                row.microseconds[column] = microseconds;
            }
        };
        for strategy in [Strategy::Spread, Strategy::Binpack] {
            let named = |what: &str| {
                format!("{}, {what}", if strategy == Strategy::Spread { "SPREAD" } else { "BINPACK" })
            };
            let mut bench = Bench::new(size);
            add(named("empty"), bench.measure(|bench| bench.task(strategy)));
            bench.fill(strategy, 50);
            add(named("half full"), bench.measure(|bench| bench.task(strategy)));
            let in_zone = |bench: &mut Bench| {
                let mut request = bench.task(strategy);
                request.selector.insert("zone".to_owned(), "z1".to_owned());
                request
            };
            add(named("half full, a third carries the label"), bench.measure(in_zone));
            let on_host = |bench: &mut Bench| {
                let mut request = bench.task(strategy);
                let number = bench.draw.random_range(0..bench.fleet.len());
                request.selector.insert("host".to_owned(), format!("h{number}"));
                request
            };
            add(named("half full, one carries the label"), bench.measure(on_host));
            let pinned = |bench: &mut Bench| {
                let mut request = bench.task(strategy);
                let number = bench.draw.random_range(0..bench.fleet.len());
                request.server_handle = Some(server(number).handle);
                request
            };
            add(named("half full, pinned"), bench.measure(pinned));
            bench.fill(strategy, 95);
            add(named("nearly full: 95 % of CPU"), bench.measure(|bench| bench.task(strategy)));
            bench.fill(strategy, 100);
            add(named("full: as much as fits"), bench.measure(|bench| bench.task(strategy)));
            let too_much = |_: &mut Bench| request(120_000, 900_000, strategy);
            add(named("full, refused for want of capacity"), bench.measure(too_much));
            let too_large = |_: &mut Bench| request(500_000, 2_000_000, strategy);
            add(named("full, refused for its size"), bench.measure(too_large));
            let mut bench = Bench::new(size);
            bench.fill(strategy, 50);
            for number in 0..size {
                let age = if number % 2 == 0 { Duration::from_mins(10) } else { Duration::ZERO };
                bench.observe(number, age, 0);
            }
            add(named("half full, half of the reports too old"), bench.measure(|bench| bench.task(strategy)));
            let port_taken = |bench: &mut Bench| {
                let mut request = bench.task(strategy);
                request.modules[0].port = Some(DEFAULT_START_PORT);
                request
            };
            add(named("half full, a port that most have given"), bench.measure(port_taken));
        }
    }
    rows
}
