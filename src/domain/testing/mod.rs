//! What the domain's tests are made of: builders with defaults that fit, an in-memory [`Ledger`] that commits as the allocator
//! does, and a [naive oracle](oracle) that says what the contract says, server by server.
//!
//! A test names only what it is about: `a_server("web-1").ram(1024)`, `an_ensure("shop").ram(2048)`. To add a builder method,
//! let it set one thing.
//!
//! When not to use this: where a test is about parsing or defaults of requests (that is `api::decode`, which builds these values
//! from what callers send), or where the schema is to refuse something (that takes a real database, in `tests/it`). The
//! [`Ledger`] trusts the domain as Postgres does not, so a test of a guard in the schema proves nothing here.

pub mod arbitrary;
pub mod ledger;
pub mod oracle;
pub mod queue;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::test_runner::{Config, RngSeed};
use time::{OffsetDateTime, macros::datetime};

pub use self::ledger::Ledger;
use super::{
    Fleet, ModuleName, Port, PortRange, Project, ProjectId, Protocol, Refusal, ResourceRequest, Resources,
    Server, ServerHandle, ServerStatus,
    event::{Change, Grant, LogEntry, Operation, ReleaseCause, Released},
    fleet::{PortStanding, ServerRow, ServerState},
    placement::{Context, Decision, decide},
    policy::FleetPolicy,
    ports::{DEFAULT_START_PORT, PortGrant},
    request::{EnsureRequest, ModuleRequest, Strategy},
    resources::PerResource,
    server::{Observation, Observer},
};

/// When tests happen.
pub const NOW: OffsetDateTime = datetime!(2026-03-04 12:00 UTC);

/// How old a usage report may be in tests.
pub const MAX_AGE: Duration = Duration::from_mins(5);

/// [`NOW`], with usage reports of up to [`MAX_AGE`].
pub fn context() -> Context {
    context_at(NOW)
}

/// Another time than [`NOW`].
pub fn context_at(now: OffsetDateTime) -> Context {
    Context { now, usage_max_age: MAX_AGE, usage_required: false }
}

/// A number of property test cases, with the same seed each time so that a run can be repeated. `PROPTEST_CASES` and
/// `PROPTEST_RNG_SEED` take other ones, to search further.
pub fn cases(cases: u32) -> Config {
    const UNLESS_SET: u32 = 256;
    let config = Config::default();
    Config {
        cases: if config.cases == UNLESS_SET { cases } else { config.cases },
        rng_seed: if config.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { config.rng_seed },
        failure_persistence: None,
        ..config
    }
}

/// A server's handle.
pub fn handle(name: &str) -> ServerHandle {
    ServerHandle::parse(name).unwrap()
}

/// A project's id.
pub fn project(name: &str) -> ProjectId {
    ProjectId::parse(name).unwrap()
}

/// The operation by which a project gives back a placement without ports, one event.
pub fn released(first_sequence: i64, project_id: &str, server_handle: &str) -> LogEntry {
    LogEntry {
        first_sequence,
        event_time: NOW,
        project_id: Some(project(project_id)),
        server_handle: Some(handle(server_handle)),
        request_id: String::new(),
        actor: String::new(),
        operation: Operation::Released(Released {
            cause: ReleaseCause::Requested,
            server_address: String::new(),
            allocations: Vec::new(),
            returned: None,
            free_after: NOW,
        }),
    }
}

/// What another replica reads of an operation in the log.
pub fn read_again(entry: &LogEntry) -> Change {
    let grant = Grant::of(entry);
    let grants = matches!(&entry.operation, Operation::Ensured(ensured) if ensured.served.is_none());
    assert_eq!(grant.is_some(), grants, "{entry:?}");
    grant.map_or_else(|| Change::Operation(Box::new(entry.clone())), Change::Grant)
}

/// A module's name.
pub fn module(name: &str) -> ModuleName {
    ModuleName::parse(name).unwrap()
}

/// A port.
pub fn port(number: u32) -> Port {
    Port::try_from(number).unwrap()
}

/// A range of ports, both ends inside.
pub fn range(start: u32, end: u32) -> PortRange {
    PortRange { start: port(start), end: port(end) }
}

/// An amount of RAM and nothing else.
pub fn ram(ram_mb: i64) -> Resources {
    Resources { ram_mb, ..Resources::ZERO }
}

/// A server as a test describes it, in plain values: a [`Fleet`] is made of it, and the [oracle] reads it.
#[derive(Debug, Clone)]
pub struct TestServer {
    /// What operators set.
    pub server: Server,
    /// What stands reserved.
    pub reserved: Resources,
    /// How many projects are placed on it.
    pub placement_count: i64,
    /// Its usage report.
    pub observed: Option<Observation>,
    /// The ports that projects hold.
    pub held: BTreeSet<(Protocol, Port)>,
    /// The ports that rest, and until when.
    pub resting: BTreeMap<(Protocol, Port), OffsetDateTime>,
    /// The ports that are set aside, and until when.
    pub set_aside: BTreeMap<(Protocol, Port), OffsetDateTime>,
}

/// An empty server that is ready, with 16384 MB RAM, 102400 MB disk, 8 CPUs and the default port range, and no usage report.
pub fn a_server(name: &str) -> TestServer {
    TestServer {
        server: Server {
            handle: handle(name),
            address: "10.0.0.1".to_owned(),
            status: ServerStatus::Ready,
            status_before_missing: None,
            managed: true,
            labels: BTreeMap::new(),
            capacity: Resources { cpu_millis: 8000, ram_mb: 16384, disk_mb: 102_400 },
            headroom: ResourceRequest::default(),
            overcommit_percent: PerResource::default(),
            port_range: PortRange::DEFAULT,
            excluded_ports: Vec::new(),
            source: String::new(),
            external_id: None,
        },
        reserved: Resources::ZERO,
        placement_count: 0,
        observed: None,
        held: BTreeSet::new(),
        resting: BTreeMap::new(),
        set_aside: BTreeMap::new(),
    }
}

impl TestServer {
    /// Its RAM, in megabytes.
    pub fn ram(mut self, ram_mb: i64) -> Self {
        self.server.capacity.ram_mb = ram_mb;
        self
    }

    /// Its disk, in megabytes.
    pub fn disk(mut self, disk_mb: i64) -> Self {
        self.server.capacity.disk_mb = disk_mb;
        self
    }

    /// Its CPU, in thousandths of a core.
    pub fn cpu(mut self, cpu_millis: i64) -> Self {
        self.server.capacity.cpu_millis = cpu_millis;
        self
    }

    /// What is kept free of placements.
    pub fn headroom(mut self, headroom: Resources) -> Self {
        self.server.headroom = ResourceRequest::of(headroom);
        self
    }

    /// What it is.
    pub fn status(mut self, status: ServerStatus) -> Self {
        self.server.status = status;
        self
    }

    /// Not ours to place on.
    pub fn unmanaged(mut self) -> Self {
        self.server.managed = false;
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.server.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The ports that may be given.
    pub fn port_range(mut self, start: u32, end: u32) -> Self {
        self.server.port_range = range(start, end);
        self
    }

    /// Adds ports that are never given.
    pub fn excluding(mut self, start: u32, end: u32) -> Self {
        self.server.excluded_ports.push(range(start, end));
        self
    }

    /// Where it is.
    pub fn address(mut self, address: &str) -> Self {
        address.clone_into(&mut self.server.address);
        self
    }

    /// Who listed it, under which name of its own.
    pub fn listed_by(mut self, source: &str, external_id: Option<&str>) -> Self {
        source.clone_into(&mut self.server.source);
        self.server.external_id = external_id.map(str::to_owned);
        self
    }

    /// Reserves for a project that no test asks about.
    pub fn reserved(mut self, reserved: Resources) -> Self {
        self.reserved = reserved;
        self.placement_count = 1;
        self
    }

    /// Lets a project hold a TCP port.
    pub fn holding(mut self, number: u32) -> Self {
        self.held.insert((Protocol::Tcp, port(number)));
        self
    }

    /// Lets a TCP port rest.
    pub fn resting(mut self, number: u32, until: OffsetDateTime) -> Self {
        self.resting.insert((Protocol::Tcp, port(number)), until);
        self
    }

    /// How much may be reserved for each hundred that there is.
    pub fn overcommit(mut self, percent: i64) -> Self {
        self.server.overcommit_percent = PerResource::all(Some(percent));
        self
    }

    /// Its source sees this in use.
    pub fn seeded(mut self, usage: Resources) -> Self {
        self.observed = Some(Observation { observer: Observer::Provider, ..a_report(NOW, usage, &[]) });
        self
    }

    /// Reported its usage so many seconds before [`NOW`].
    pub fn reported(mut self, seconds_ago: i64, usage: Resources, listening_ports: &[u32]) -> Self {
        self.observed = Some(a_report(NOW - time::Duration::seconds(seconds_ago), usage, listening_ports));
        self
    }

    /// The server as a fleet has it, without its ports.
    pub fn state(&self) -> ServerState {
        ServerState {
            reserved: self.reserved,
            placement_count: self.placement_count,
            observed: self.observed.clone(),
            ..ServerState::empty(self.server.clone(), &FleetPolicy::default())
        }
    }
}

/// A usage report.
pub fn a_report(observe_time: OffsetDateTime, usage: Resources, listening_ports: &[u32]) -> Observation {
    Observation {
        observer: Observer::Host,
        cpu_millis: Some(usage.cpu_millis),
        ram_mb: Some(usage.ram_mb),
        disk_mb: Some(usage.disk_mb),
        listening_ports: listening_ports.iter().copied().map(port).collect(),
        observe_time,
    }
}

/// A fleet of servers, in the order in which they are registered, as if read from the tables at [`NOW`].
pub fn a_fleet<'a>(servers: impl IntoIterator<Item = &'a TestServer>) -> Fleet {
    a_fleet_at(NOW, servers)
}

/// A fleet as if read from the tables at another time.
pub fn a_fleet_at<'a>(now: OffsetDateTime, servers: impl IntoIterator<Item = &'a TestServer>) -> Fleet {
    let mut fleet = Fleet::default();
    for server in servers {
        load(&mut fleet, server, now);
    }
    fleet
}

/// Adds a server as if read from the tables.
pub fn load(fleet: &mut Fleet, server: &TestServer, now: OffsetDateTime) {
    fleet.load_row(ServerRow { state: server.state(), revision: 1 });
    let held = server.held.iter().map(|key| (key, PortStanding::Held));
    let resting = server.resting.iter().map(|(key, until)| (key, PortStanding::Resting(*until)));
    let set_aside = server.set_aside.iter().map(|(key, until)| (key, PortStanding::SetAside(*until)));
    for ((protocol, port), standing) in held.chain(resting).chain(set_aside) {
        fleet.load_port(&server.server.handle, *protocol, *port, standing, now);
    }
}

/// A request that names a project and nothing else.
pub fn an_ensure(name: &str) -> EnsureRequest {
    EnsureRequest {
        project_id: project(name),
        modules: Vec::new(),
        resources: ResourceRequest::default(),
        server_handle: None,
        selector: BTreeMap::new(),
        start_port: DEFAULT_START_PORT,
        strategy: Strategy::Spread,
        ttl: None,
    }
}

/// A module by its name.
pub fn a_module(name: &str) -> ModuleRequest {
    ModuleRequest::named(module(name))
}

impl ModuleRequest {
    /// This port or a refusal.
    pub(crate) fn at(mut self, number: u32) -> Self {
        self.port = Some(port(number));
        self
    }

    /// This protocol.
    pub(crate) fn over(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }
}

impl EnsureRequest {
    /// Adds a module.
    pub(crate) fn with(mut self, module: ModuleRequest) -> Self {
        self.modules.push(module);
        self
    }

    /// Adds a module by its name.
    pub(crate) fn module(self, name: &str) -> Self {
        self.with(a_module(name))
    }

    /// The RAM that is needed at least.
    pub(crate) fn ram(mut self, ram_mb: i64) -> Self {
        self.resources.ram_mb = Some(ram_mb);
        self
    }

    /// The disk that is needed at least.
    pub(crate) fn disk(mut self, disk_mb: i64) -> Self {
        self.resources.disk_mb = Some(disk_mb);
        self
    }

    /// The CPU that is needed at least.
    pub(crate) fn cpu(mut self, cpu_millis: i64) -> Self {
        self.resources.cpu_millis = Some(cpu_millis);
        self
    }

    /// Pins the server.
    pub(crate) fn on(mut self, name: &str) -> Self {
        self.server_handle = Some(handle(name));
        self
    }

    /// Asks for a label.
    pub(crate) fn labelled(mut self, key: &str, value: &str) -> Self {
        self.selector.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The lowest port to consider.
    pub(crate) fn start_at(mut self, number: u32) -> Self {
        self.start_port = port(number);
        self
    }

    /// The tightest fit.
    pub(crate) fn binpack(mut self) -> Self {
        self.strategy = Strategy::Binpack;
        self
    }
}

/// What a project that holds nothing is told.
pub fn decide_new(fleet: &Fleet, request: &EnsureRequest) -> Result<Decision, Refusal> {
    decide(fleet, &Project::unplaced(request.project_id.clone()), request, &context())
}

/// The server on which a project that holds nothing is placed.
pub fn chosen(fleet: &Fleet, request: &EnsureRequest) -> String {
    match decide_new(fleet, request) {
        Ok(Decision::Place { server_handle, .. }) => server_handle.to_string(),
        other => panic!("not placed: {other:?}"),
    }
}

/// How the request of a project that holds nothing is refused.
pub fn refused(fleet: &Fleet, request: &EnsureRequest) -> Refusal {
    decide_new(fleet, request).unwrap_err()
}

impl Decision {
    /// The ports that it gives.
    pub(crate) fn ports(&self) -> &[PortGrant] {
        match self {
            Self::Unchanged => &[],
            Self::Place { ports, .. } | Self::Extend { ports, .. } => ports,
        }
    }

    /// The ports that it gives, as numbers, in the order of the request's modules.
    pub(crate) fn port_numbers(&self) -> Vec<u16> {
        self.ports().iter().map(|grant| grant.port.get()).collect()
    }
}

impl Refusal {
    /// A figure, empty where there is none.
    pub(crate) fn figure(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("", String::as_str)
    }
}
