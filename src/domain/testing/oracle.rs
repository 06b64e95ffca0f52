//! The contract's rules of `EnsureAllocation`, said once more in the most obvious way: every server is looked at, every port is
//! tried, nothing is indexed or cut short. It shares no code with `placement` and `ports`, so that a fault would have to be
//! made twice. It may be slow; it may not be clever.

use std::cmp::Ordering;

use super::TestServer;
use crate::domain::{
    ModuleName, Port, PortRange, Project, Protocol, Reason, ResourceRequest, Resources, ServerHandle,
    ServerStatus,
    placement::{Context, Decision},
    request::{EnsureRequest, ModuleRequest, PortInUseReport, RelocateRequest, Strategy},
    server::{Observation, Observer},
};

/// The port of each module.
pub type Ports = Vec<(ModuleName, Protocol, Port)>;

/// What an ensure comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is to be done.
    Unchanged,
    /// The project gets this, on this server.
    Given {
        /// The server.
        server_handle: ServerHandle,
        /// What is reserved in addition.
        added: Resources,
        /// The ports.
        ports: Ports,
    },
    /// It is refused.
    Refused(Reason),
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        let ports =
            decision.ports().iter().map(|grant| (grant.module.clone(), grant.protocol, grant.port)).collect();
        match decision {
            Decision::Unchanged => Self::Unchanged,
            Decision::Place { server_handle, reserve: added, .. }
            | Decision::Extend { server_handle, grow: added, .. } => {
                Self::Given { server_handle, added, ports }
            }
        }
    }
}

/// How far a server gets in the funnel: the stage that stops it, or its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It lacks a label.
    Labels,
    /// It is not ours.
    Unmanaged,
    /// It is too small.
    TooSmall,
    /// Its status does not admit.
    Status,
    /// Its report is too old.
    Stale,
    /// It is too full.
    Full,
    /// It has no port; `PORT_TAKEN` or `PORTS_EXHAUSTED`.
    NoPort(Reason),
}

impl Stop {
    fn place(&self) -> usize {
        match self {
            Self::Labels => 1,
            Self::Unmanaged => 2,
            Self::TooSmall => 3,
            Self::Status => 4,
            Self::Stale => 5,
            Self::Full => 6,
            Self::NoPort(_) => 7,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Labels => Reason::NoMatchingServer,
            Self::Unmanaged | Self::Status => Reason::NoAdmissibleServer,
            Self::TooSmall => Reason::RequestExceedsFleet,
            Self::Stale => Reason::UsageStale,
            Self::Full => Reason::InsufficientCapacity,
            Self::NoPort(reason) => *reason,
        }
    }

    /// The stage's name in metadata.
    pub fn name(&self) -> &'static str {
        ["", "LABELS", "UNMANAGED", "SIZE", "STATUS", "USAGE_STALE", "CAPACITY", "PORTS"][self.place()]
    }
}

/// What an ensure comes to.
pub fn verdict(
    servers: &[TestServer],
    project: &Project,
    request: &EnsureRequest,
    context: &Context,
) -> Verdict {
    match ensure(servers, project, request, context) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Refused(reason),
    }
}

fn ensure(
    servers: &[TestServer],
    project: &Project,
    request: &EnsureRequest,
    context: &Context,
) -> Result<Verdict, Reason> {
    let find = |handle: &ServerHandle| servers.iter().find(|server| server.server.handle == *handle);
    let Some(placement) = &project.placement else {
        if let Some(pin) = &request.server_handle {
            find(pin).ok_or(Reason::ServerNotFound)?;
        }
        return place(servers, request, context);
    };

    let bound = &placement.server_handle;
    let elsewhere = request.server_handle.as_ref().is_some_and(|pin| pin != bound);
    let mut new_modules = Vec::new();
    let mut disagrees = false;
    for module in &request.modules {
        match project.allocations.iter().find(|held| held.module == module.name) {
            Some(held) => {
                disagrees |= module.port.is_some_and(|port| port != held.port);
                disagrees |= module.protocol.is_some_and(|protocol| protocol != held.protocol);
            }
            None => new_modules.push(module.clone()),
        }
    }
    let grow = |asked: Option<i64>, reserved: i64| {
        if asked > Some(reserved) { asked.unwrap() - reserved } else { 0 }
    };
    let added = Resources {
        cpu_millis: grow(request.resources.cpu_millis, placement.reserved.cpu_millis),
        ram_mb: grow(request.resources.ram_mb, placement.reserved.ram_mb),
        disk_mb: grow(request.resources.disk_mb, placement.reserved.disk_mb),
    };
    if let Some(pin) = &request.server_handle {
        find(pin).ok_or(Reason::ServerNotFound)?;
    }
    if elsewhere || disagrees {
        return Err(Reason::PlacedElsewhere);
    }
    if new_modules.is_empty() && added == Resources::ZERO {
        return Ok(Verdict::Unchanged);
    }
    let server = find(bound).expect("a server with placements is not removed");
    match extension(server, placement.reserved, added, &new_modules, request, context) {
        Ok(ports) => Ok(Verdict::Given { server_handle: bound.clone(), added, ports }),
        Err(Stop::Unmanaged | Stop::Status | Stop::Stale) => Err(Reason::BoundServerNotAdmissible),
        Err(stop) => Err(stop.reason()),
    }
}

/// What a relocation comes to: what a new project would be told that asks for all that this one holds, were there only the
/// other servers.
pub fn relocation(
    servers: &[TestServer],
    project: &Project,
    request: &RelocateRequest,
    context: &Context,
) -> Verdict {
    let Some(placement) = &project.placement else { return Verdict::Refused(Reason::ProjectNotFound) };
    let bound = &placement.server_handle;
    let known = |handle: &ServerHandle| servers.iter().any(|server| server.server.handle == *handle);
    if request.server_handle.as_ref() == Some(bound)
        || request.from_server_handle.as_ref().is_some_and(|from| from != bound)
    {
        return Verdict::Unchanged;
    }
    if request.server_handle.as_ref().is_some_and(|handle| !known(handle)) {
        return Verdict::Refused(Reason::ServerNotFound);
    }
    let others: Vec<_> = servers.iter().filter(|server| server.server.handle != *bound).cloned().collect();
    let modules = project.allocations.iter().map(|held| ModuleRequest {
        name: held.module.clone(),
        port: if held.pinned { Some(held.port) } else { None },
        protocol: Some(held.protocol),
    });
    let as_new = EnsureRequest {
        project_id: project.id.clone(),
        modules: modules.collect(),
        resources: ResourceRequest::of(placement.reserved),
        server_handle: request.server_handle.clone(),
        selector: placement.selector.clone(),
        start_port: placement.start_port,
        strategy: request.strategy,
        ttl: None,
    };
    place(&others, &as_new, context).unwrap_or_else(Verdict::Refused)
}

/// What a report of a port in use comes to; none where the module holds another port, or there is no such module.
pub fn replacement(
    servers: &[TestServer],
    project: &Project,
    report: &PortInUseReport,
    context: &Context,
) -> Option<Result<(Protocol, Port), Reason>> {
    let placement = project.placement.as_ref()?;
    let held = project.allocations.iter().find(|held| held.module == report.module)?;
    if held.port != report.port {
        return None;
    }
    let server = servers.iter().find(|server| server.server.handle == placement.server_handle)?;
    let module = ModuleRequest { name: held.module.clone(), port: None, protocol: Some(held.protocol) };
    let request = EnsureRequest { start_port: report.start_port, ..super::an_ensure(project.id.as_str()) };
    let nothing = Resources::ZERO;
    Some(match extension(server, placement.reserved, nothing, &[module], &request, context) {
        Ok(ports) => Ok((ports[0].1, ports[0].2)),
        Err(Stop::Unmanaged | Stop::Status | Stop::Stale) => Err(Reason::BoundServerNotAdmissible),
        Err(stop) => Err(stop.reason()),
    })
}

fn place(servers: &[TestServer], request: &EnsureRequest, context: &Context) -> Result<Verdict, Reason> {
    let asked = asked(request);
    let stops = stops(servers, request, context);
    let mut fitting: Vec<_> = servers
        .iter()
        .zip(&stops)
        .filter_map(|(server, stop)| stop.as_ref()?.as_ref().ok().map(|ports| (server, ports.clone())))
        .collect();
    fitting.sort_by(|(a, _), (b, _)| better(a, b, asked, request.strategy));
    if let Some((server, ports)) = fitting.into_iter().next() {
        return Ok(Verdict::Given { server_handle: server.server.handle.clone(), added: asked, ports });
    }
    let stops: Vec<_> = stops.into_iter().flatten().filter_map(Result::err).collect();
    let furthest = stops.iter().map(Stop::place).max().ok_or(Reason::NoServers)?;
    let mut reasons = stops.iter().filter(|stop| stop.place() == furthest).map(Stop::reason);
    // An explicit port that one server cannot give is told before the exhausted range of another.
    Err(if reasons.clone().any(|reason| reason == Reason::PortTaken) {
        Reason::PortTaken
    } else {
        reasons.next().unwrap()
    })
}

/// For each server that the request may go to, how far it gets; none for those that a pin leaves aside.
pub fn stops(
    servers: &[TestServer],
    request: &EnsureRequest,
    context: &Context,
) -> Vec<Option<Result<Ports, Stop>>> {
    servers
        .iter()
        .map(|server| {
            let aside = request.server_handle.as_ref().is_some_and(|pin| *pin != server.server.handle);
            (!aside).then(|| placement(server, request, context))
        })
        .collect()
}

fn asked(request: &EnsureRequest) -> Resources {
    Resources {
        cpu_millis: request.resources.cpu_millis.unwrap_or(0),
        ram_mb: request.resources.ram_mb.unwrap_or(512),
        disk_mb: request.resources.disk_mb.unwrap_or(1024),
    }
}

fn placement(server: &TestServer, request: &EnsureRequest, context: &Context) -> Result<Ports, Stop> {
    let asked = asked(request);
    let modules = if request.modules.is_empty() {
        vec![ModuleRequest { name: ModuleName::backend(), port: None, protocol: None }]
    } else {
        request.modules.clone()
    };
    for (key, value) in &request.selector {
        if server.server.labels.get(key) != Some(value) {
            return Err(Stop::Labels);
        }
    }
    if !server.server.managed {
        return Err(Stop::Unmanaged);
    }
    for (capacity, headroom, _, _, asked) in amounts(server, asked) {
        if capacity - headroom < asked {
            return Err(Stop::TooSmall);
        }
    }
    admission(server, context)?;
    for (capacity, headroom, reserved, observed, asked) in amounts(server, asked) {
        if capacity - headroom - reserved.max(observed) < asked {
            return Err(Stop::Full);
        }
    }
    ports(server, &modules, request, context).map_err(Stop::NoPort)
}

fn extension(
    server: &TestServer,
    held: Resources,
    added: Resources,
    modules: &[ModuleRequest],
    request: &EnsureRequest,
    context: &Context,
) -> Result<Ports, Stop> {
    if !server.server.managed {
        return Err(Stop::Unmanaged);
    }
    let whole = amounts(server, held);
    for ((capacity, headroom, _, _, held), (.., added)) in whole.into_iter().zip(amounts(server, added)) {
        if added > 0 && capacity - headroom < held + added {
            return Err(Stop::TooSmall);
        }
    }
    admission(server, context)?;
    for (capacity, headroom, reserved, observed, added) in amounts(server, added) {
        if added > 0 && capacity - headroom - reserved.max(observed) < added {
            return Err(Stop::Full);
        }
    }
    ports(server, modules, request, context).map_err(Stop::NoPort)
}

/// Capacity with over-commit, headroom, reserved, observed and asked, for each resource.
fn amounts(server: &TestServer, asked: Resources) -> [(i64, i64, i64, i64, i64); 3] {
    let TestServer { server, reserved, observed, .. } = server;
    let percent = server.overcommit_percent;
    let capacity = Resources {
        cpu_millis: server.capacity.cpu_millis * percent.cpu.unwrap_or(100) / 100,
        ram_mb: server.capacity.ram_mb * percent.ram.unwrap_or(100) / 100,
        disk_mb: server.capacity.disk_mb * percent.disk.unwrap_or(100) / 100,
    };
    let headroom = Resources {
        cpu_millis: server.headroom.cpu_millis.unwrap_or(0),
        ram_mb: server.headroom.ram_mb.unwrap_or(0),
        disk_mb: server.headroom.disk_mb.unwrap_or(0),
    };
    let observed = observed.as_ref();
    [
        (
            capacity.cpu_millis,
            headroom.cpu_millis,
            reserved.cpu_millis,
            observed.and_then(|observed| observed.cpu_millis).unwrap_or(0),
            asked.cpu_millis,
        ),
        (
            capacity.ram_mb,
            headroom.ram_mb,
            reserved.ram_mb,
            observed.and_then(|observed| observed.ram_mb).unwrap_or(0),
            asked.ram_mb,
        ),
        (
            capacity.disk_mb,
            headroom.disk_mb,
            reserved.disk_mb,
            observed.and_then(|observed| observed.disk_mb).unwrap_or(0),
            asked.disk_mb,
        ),
    ]
}

fn admission(server: &TestServer, context: &Context) -> Result<(), Stop> {
    if server.server.status != ServerStatus::Ready {
        return Err(Stop::Status);
    }
    match &server.observed {
        Some(Observation { observer: Observer::Host, observe_time, .. }) => {
            if *observe_time + context.usage_max_age < context.now {
                return Err(Stop::Stale);
            }
        }
        // A source's figure is no report of the host.
        Some(Observation { observer: Observer::Provider, .. }) | None => {
            if context.usage_required {
                return Err(Stop::Stale);
            }
        }
    }
    Ok(())
}

fn ports(
    server: &TestServer,
    modules: &[ModuleRequest],
    request: &EnsureRequest,
    context: &Context,
) -> Result<Ports, Reason> {
    let in_range = |range: &PortRange, port: Port| range.start <= port && port <= range.end;
    let may_be_given = |port: Port| {
        let ours =
            [Protocol::Tcp, Protocol::Udp].iter().any(|protocol| server.held.contains(&(*protocol, port)));
        let listened_on =
            !ours && server.observed.iter().any(|observed| observed.listening_ports.contains(&port));
        let excluded = server.server.excluded_ports.iter().any(|range| in_range(range, port));
        in_range(&server.server.port_range, port) && !excluded && !listened_on
    };
    let is_set_aside = |protocol: Protocol, port: Port| {
        server.set_aside.get(&(protocol, port)).is_some_and(|until| *until > context.now)
    };
    let mut taken = server.held.clone();
    for module in modules {
        if let Some(port) = module.port {
            let claim = (module.protocol.unwrap_or(Protocol::Tcp), port);
            if !may_be_given(port) || is_set_aside(claim.0, port) || !taken.insert(claim) {
                return Err(Reason::PortTaken);
            }
        }
    }
    let mut given = Vec::new();
    for module in modules {
        let protocol = module.protocol.unwrap_or(Protocol::Tcp);
        if let Some(port) = module.port {
            given.push((module.name.clone(), protocol, port));
            continue;
        }
        let range = server.server.port_range;
        let free: Vec<Port> = (range.start.get()..=range.end.get())
            .map(|number| Port::try_from(u32::from(number)).unwrap())
            .filter(|port| {
                *port >= request.start_port
                    && may_be_given(*port)
                    && !is_set_aside(protocol, *port)
                    && !taken.contains(&(protocol, *port))
            })
            .collect();
        let rested = free
            .iter()
            .find(|port| server.resting.get(&(protocol, **port)).is_none_or(|until| *until <= context.now));
        let port = *rested.or(free.first()).ok_or(Reason::PortsExhausted)?;
        taken.insert((protocol, port));
        given.push((module.name.clone(), protocol, port));
    }
    Ok(given)
}

/// Which of two servers that fit comes first.
fn better(a: &TestServer, b: &TestServer, asked: Resources, strategy: Strategy) -> Ordering {
    let free = |server: &TestServer| {
        amounts(server, asked)
            .map(|(capacity, headroom, reserved, observed, _)| capacity - headroom - reserved.max(observed))
    };
    let ([cpu_a, ram_a, _], [cpu_b, ram_b, _]) = (free(a), free(b));
    let by_handle = a.server.handle.as_str().cmp(b.server.handle.as_str());
    match strategy {
        Strategy::Spread => ram_b.cmp(&ram_a).then(by_handle),
        Strategy::Binpack => {
            let waste = |server: &TestServer, cpu: i64, ram: i64| {
                let millionths = |left: i64, of: i64| {
                    if of == 0 { 0 } else { i128::from(left) * 1_000_000 / i128::from(of) }
                };
                let [(cpu_size, ..), (ram_size, ..), _] = amounts(server, asked);
                let cpu_left = millionths(cpu - asked.cpu_millis, cpu_size);
                let ram_left = millionths(ram - asked.ram_mb, ram_size);
                match (asked.cpu_millis, asked.ram_mb) {
                    (0, _) => 0,
                    (_, 0) => cpu_left,
                    _ => cpu_left + ram_left + (cpu_left - ram_left).abs(),
                }
            };
            waste(a, cpu_a, ram_a).cmp(&waste(b, cpu_b, ram_b)).then(ram_a.cmp(&ram_b)).then(by_handle)
        }
    }
}
