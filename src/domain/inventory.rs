//! Decisions about the inventory: what a write makes of a server, and what a sync makes of a source's list.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Fleet, Reason, Refusal, ResourceRequest, Resources, Server, ServerHandle, ServerStatus,
    fleet::ServerState,
    ports::PortRange,
    resources::{PerResource, Resource},
    server::{Observation, Observer},
};

/// A server as a request describes it: `None` where the request leaves a field to what stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSpec {
    /// Its identity.
    pub handle: ServerHandle,
    /// An IP address or a DNS name.
    pub address: String,
    /// What it is; ready for a new one.
    pub status: Option<ServerStatus>,
    /// Whether projects may be placed on it; true for a new one.
    pub managed: Option<bool>,
    /// What requests select by.
    pub labels: BTreeMap<String, String>,
    /// What it has.
    pub capacity: Resources,
    /// What is kept free of placements; `None`: the fleet's default.
    pub headroom: ResourceRequest,
    /// How much may be reserved for each hundred that there is; `None`: the fleet's.
    pub overcommit_percent: PerResource<Option<i64>>,
    /// The ports that may be given.
    pub port_range: PortRange,
    /// Ports that are never given.
    pub excluded_ports: Vec<PortRange>,
    /// Who listed it.
    pub source: String,
    /// The source's own name for it.
    pub external_id: Option<String>,
    /// What the source sees in use, which stands in until the host itself reports (L22).
    pub seed: Option<Observation>,
    /// What must still stand, in a source's list (L37).
    pub etag: Option<String>,
}

impl ServerSpec {
    /// The server that stands after the write.
    #[must_use]
    pub fn onto(self, standing: Option<&Server>) -> Server {
        Server {
            status: self.status.or(standing.map(|server| server.status)).unwrap_or(ServerStatus::Ready),
            // A status that is left to what stands keeps what it is to return to.
            status_before_missing: match self.status {
                None => standing.and_then(|server| server.status_before_missing),
                Some(_) => None,
            },
            managed: self.managed.or(standing.map(|server| server.managed)).unwrap_or(true),
            handle: self.handle,
            address: self.address,
            labels: self.labels,
            capacity: self.capacity,
            headroom: self.headroom,
            overcommit_percent: self.overcommit_percent,
            port_range: self.port_range,
            excluded_ports: self.excluded_ports,
            source: self.source,
            external_id: self.external_id,
        }
    }
}

/// The changes that an UpdateServer makes: `None` where its mask leaves a field out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerPatch {
    /// A new address.
    pub address: Option<String>,
    /// A new status.
    pub status: Option<ServerStatus>,
    /// Whether projects may be placed on it.
    pub managed: Option<bool>,
    /// New labels, all of them.
    pub labels: Option<BTreeMap<String, String>>,
    /// A new capacity, resource by resource.
    pub capacity: ResourceRequest,
    /// A new headroom of these resources, or the fleet's default for them.
    pub headroom: Vec<(Resource, Option<i64>)>,
    /// A new over-commit of these resources, or the fleet's.
    pub overcommit_percent: Vec<(Resource, Option<i64>)>,
    /// A new port range.
    pub port_range: Option<PortRange>,
    /// New excluded ranges, all of them.
    pub excluded_ports: Option<Vec<PortRange>>,
    /// A new source.
    pub source: Option<String>,
    /// A new external id, or none.
    pub external_id: Option<Option<String>>,
}

impl ServerPatch {
    /// The server that stands after the write.
    #[must_use]
    pub fn onto(self, standing: &Server) -> Server {
        let mut server = standing.clone();
        set(&mut server.address, self.address);
        if let Some(status) = self.status {
            server.status = status;
            server.status_before_missing = None;
        }
        set(&mut server.managed, self.managed);
        set(&mut server.labels, self.labels);
        server.capacity = self.capacity.or(server.capacity);
        for (resource, amount) in self.headroom {
            *server.headroom.get_mut(resource) = amount;
        }
        for (resource, percent) in self.overcommit_percent {
            *server.overcommit_percent.get_mut(resource) = percent;
        }
        set(&mut server.port_range, self.port_range);
        set(&mut server.excluded_ports, self.excluded_ports);
        set(&mut server.source, self.source);
        set(&mut server.external_id, self.external_id);
        server
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Refuses a write that was made from an older state of the server (L37).
///
/// # Errors
/// `ETAG_MISMATCH`.
pub fn check_etag(
    etag: Option<&str>,
    standing: Option<&ServerState>,
    handle: &ServerHandle,
) -> Result<(), Refusal> {
    let Some(etag) = etag else { return Ok(()) };
    if standing.is_some_and(|state| self::etag(state) == etag) {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::EtagMismatch,
        format!("server `{handle}` changed since its etag was read; read it again and repeat the change"),
    )
    .with("server_handle", handle))
}

/// The etag of a server.
#[must_use]
pub fn etag(state: &ServerState) -> String {
    format!("g{}", state.generation)
}

/// Refuses a source's own name for a server that another server carries.
///
/// # Errors
/// `EXTERNAL_ID_TAKEN`.
pub fn check_external_id(fleet: &Fleet, server: &Server) -> Result<(), Refusal> {
    let Some(external_id) = &server.external_id else { return Ok(()) };
    let other = fleet.iter().find(|state| {
        state.server.handle != server.handle
            && state.server.source == server.source
            && state.server.external_id.as_ref() == Some(external_id)
    });
    let Some(other) = other else { return Ok(()) };
    Err(Refusal::new(
        Reason::ExternalIdTaken,
        format!(
            "server `{}` already carries the external id `{external_id}` of source `{}`; an external id is one server's",
            other.server.handle, server.source
        ),
    )
    .with("server_handle", &other.server.handle)
    .with("source", &server.source)
    .with("external_id", external_id))
}

/// Refuses to remove a server that holds placements.
///
/// # Errors
/// `SERVER_IN_USE`.
pub fn check_removable(state: &ServerState) -> Result<(), Refusal> {
    if state.placement_count == 0 {
        return Ok(());
    }
    let (handle, placements) = (&state.server.handle, state.placement_count);
    Err(Refusal::new(
        Reason::ServerInUse,
        format!(
            "server `{handle}` holds {placements} placements; move them with DrainServer, or release them, and then delete it"
        ),
    )
    .with("server_handle", handle)
    .with("placements", placements))
}

/// The whole list of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRequest {
    /// Who lists.
    pub source: String,
    /// The list, each handle and each external id once.
    pub servers: Vec<ServerSpec>,
    /// Whether an empty list, or one that marks more than half missing, is meant.
    pub allow_mass_missing: bool,
}

/// What a sync makes of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncAction {
    /// The server is new.
    Created(Server),
    /// These fields changed.
    Updated(Server, Vec<&'static str>),
    /// It is already as listed.
    Unchanged,
    /// The source no longer lists it.
    MarkedMissing(Server),
    /// It cannot be taken, and why.
    Rejected(String),
}

/// What a sync makes of every server that is listed or was known, by handle.
pub type SyncPlan = BTreeMap<ServerHandle, SyncAction>;

/// Decides a sync. Identity is the source's own id, else the handle; an address may change (L34). What is no longer listed is
/// marked, never removed (L36).
///
/// # Errors
/// `SYNC_REFUSED` for a list that is empty, or that would mark more than half of the source's servers missing, unless it says
/// that it means it: unfinished is not empty (L35).
pub fn plan_sync(fleet: &Fleet, request: &SyncRequest) -> Result<SyncPlan, Refusal> {
    let known: BTreeMap<&ServerHandle, &Server> = fleet
        .iter()
        .filter(|state| state.server.source == request.source)
        .map(|state| (&state.server.handle, &state.server))
        .collect();
    let by_external_id: BTreeMap<&str, &Server> = known
        .values()
        .filter_map(|server| server.external_id.as_deref().map(|external_id| (external_id, *server)))
        .collect();

    let mut plan = SyncPlan::new();
    let mut listed = BTreeSet::new();
    for spec in &request.servers {
        let standing = spec
            .external_id
            .as_deref()
            .and_then(|external_id| by_external_id.get(external_id).copied())
            .or_else(|| fleet.get(&spec.handle).map(|state| &state.server));
        // The handle that stands is the server's for ever, also where the source calls it otherwise by now.
        let handle = standing.map_or_else(|| spec.handle.clone(), |server| server.handle.clone());
        listed.insert(handle.clone());
        let action = match standing {
            None => SyncAction::Created(spec.clone().onto(None)),
            Some(server) if server.source != request.source => SyncAction::Rejected(format!(
                "the handle is that of a server of {}, not of source `{}`",
                if server.source.is_empty() {
                    "no source".to_owned()
                } else {
                    format!("source `{}`", server.source)
                },
                request.source
            )),
            Some(server) if is_outdated(fleet, server, spec) => SyncAction::Rejected(
                "the server changed since its etag was read; read it again and repeat the sync".to_owned(),
            ),
            Some(server) => update(server, spec.clone()),
        };
        if plan.insert(handle.clone(), action).is_some() {
            plan.insert(
                handle,
                SyncAction::Rejected("two entries of the list are this one server".to_owned()),
            );
        }
    }

    // Those that are missing already do not count: a list cut shorter each time would mark them all, half by half.
    let gone =
        |server: &Server| matches!(server.status, ServerStatus::Missing | ServerStatus::Decommissioned);
    let present = known.values().filter(|server| !gone(server)).count();
    let mut newly_missing = 0;
    for (handle, server) in &known {
        if listed.contains(*handle) {
            continue;
        }
        let action = match server.status {
            ServerStatus::Missing | ServerStatus::Decommissioned => SyncAction::Unchanged,
            status => {
                newly_missing += 1;
                SyncAction::MarkedMissing(Server {
                    status: ServerStatus::Missing,
                    status_before_missing: Some(status),
                    ..(*server).clone()
                })
            }
        };
        plan.insert((*handle).clone(), action);
    }
    let empty = request.servers.is_empty();
    if (empty || newly_missing * 2 > present) && !request.allow_mass_missing {
        return Err(sync_refused(request, newly_missing, present));
    }
    Ok(plan)
}

/// What a source's list says of usage, for the servers whose hosts never reported: `fleet` is as the plan, carried out, has left
/// it. An entry that was rejected says nothing.
#[must_use]
pub fn sync_seeds(
    fleet: &Fleet,
    request: &SyncRequest,
    plan: &SyncPlan,
) -> BTreeMap<ServerHandle, Observation> {
    let seeded: Vec<_> =
        request.servers.iter().filter_map(|spec| Some((spec, spec.seed.as_ref()?))).collect();
    if seeded.is_empty() {
        return BTreeMap::new();
    }
    let own: Vec<&ServerState> = fleet.iter().filter(|state| state.server.source == request.source).collect();
    let by_external_id: BTreeMap<&str, &ServerState> =
        own.iter().filter_map(|state| state.server.external_id.as_deref().map(|id| (id, *state))).collect();
    let by_handle: BTreeMap<&ServerHandle, &ServerState> =
        own.iter().map(|state| (&state.server.handle, *state)).collect();
    let server_of = |spec: &ServerSpec| {
        let by_id = spec.external_id.as_deref().and_then(|id| by_external_id.get(id));
        by_id.or_else(|| by_handle.get(&spec.handle)).copied()
    };
    let unreported = |state: &&ServerState| {
        let rejected = matches!(plan.get(&state.server.handle), Some(SyncAction::Rejected(_)));
        !rejected && state.observed.as_ref().is_none_or(|observed| observed.observer == Observer::Provider)
    };
    seeded
        .into_iter()
        .filter_map(|(spec, seed)| {
            server_of(spec).filter(unreported).map(|state| (state.server.handle.clone(), seed.clone()))
        })
        .collect()
}

/// Whether the entry was made from an older state of the server.
fn is_outdated(fleet: &Fleet, server: &Server, spec: &ServerSpec) -> bool {
    let standing = fleet.get(&server.handle);
    spec.etag.as_ref().is_some_and(|read| standing.is_none_or(|state| etag(state) != *read))
}

fn update(standing: &Server, spec: ServerSpec) -> SyncAction {
    let status = spec.status;
    let mut server = Server { handle: standing.handle.clone(), ..spec.onto(Some(standing)) };
    // Listed again: back to what it was before it went missing, unless the source itself says what it is.
    if standing.status == ServerStatus::Missing && status.is_none() {
        server.status = standing.status_before_missing.unwrap_or(ServerStatus::Discovered);
        server.status_before_missing = None;
    }
    match standing.changed_fields(&server) {
        fields if fields.is_empty() => SyncAction::Unchanged,
        fields => SyncAction::Updated(server, fields),
    }
}

fn sync_refused(request: &SyncRequest, missing: usize, known: usize) -> Refusal {
    let listed = request.servers.len();
    Refusal::new(
        Reason::SyncRefused,
        format!(
            "source `{}` lists {listed} servers, which would mark {missing} of its {known} as missing; see whether its list is whole, or set `allow_mass_missing` if it is",
            request.source
        ),
    )
    .with("source", &request.source)
    .with("listed", listed)
    .with("would_be_missing", missing)
    .with("known", known)
}

#[cfg(test)]
mod tests;
