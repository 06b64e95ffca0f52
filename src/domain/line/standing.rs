//! What someone in line asks of a server, worked out once: the same `Ask` that a decision would make, by the same predicate (L13).

use crate::domain::{
    Fleet, Port, Project, Resources, ServerHandle,
    fleet::ServerState,
    placement::{
        Context,
        filter::{Ask, Exclusion, fits},
        modules_or_default,
    },
    ports::PortShortage,
    request::{DEFAULT_RESOURCES, EnsureRequest, ModuleRequest},
    resources::Resource,
};

/// What is asked of a server.
#[derive(Debug, Clone)]
pub(super) struct WaitingAsk {
    resources: Resources,
    whole: Resources,
    selector: std::collections::BTreeMap<String, String>,
    modules: Vec<ModuleRequest>,
    start_port: Port,
    bound: bool,
    /// The only server that will do.
    server: Option<ServerHandle>,
}

impl WaitingAsk {
    /// What a request asks for, given what its project holds.
    pub(super) fn of(project: &Project, request: &EnsureRequest) -> Self {
        match &project.placement {
            None => {
                let reserve = request.resources.or(DEFAULT_RESOURCES);
                Self {
                    resources: reserve,
                    whole: reserve,
                    selector: request.selector.clone(),
                    modules: modules_or_default(&request.modules),
                    start_port: request.start_port,
                    bound: false,
                    server: request.server_handle.clone(),
                }
            }
            Some(placement) => {
                let grow = request.resources.or(placement.reserved).short_of(placement.reserved);
                let is_new = |module: &&ModuleRequest| project.allocation(&module.name).is_none();
                Self {
                    resources: grow,
                    whole: placement.reserved + grow,
                    selector: std::collections::BTreeMap::new(),
                    modules: request.modules.iter().filter(is_new).cloned().collect(),
                    start_port: request.start_port,
                    bound: true,
                    server: Some(placement.server_handle.clone()),
                }
            }
        }
    }

    /// The same as the funnel asks it.
    pub(super) fn as_ask(&self) -> Ask<'_> {
        Ask {
            resources: self.resources,
            whole: self.whole,
            selector: &self.selector,
            modules: &self.modules,
            start_port: self.start_port,
            leaving: None,
            bound: self.bound,
        }
    }

    /// The servers that may do at all.
    fn servers<'a>(&self, fleet: &'a Fleet) -> Box<dyn Iterator<Item = &'a ServerState> + 'a> {
        match &self.server {
            Some(handle) => Box::new(fleet.get(handle).into_iter()),
            None => Box::new(fleet.iter()),
        }
    }

    /// Whether the server is one that may do at all.
    pub(super) fn concerns(&self, state: &ServerState) -> bool {
        self.server.as_ref().is_none_or(|handle| *handle == state.server.handle)
    }

    /// Whether one of these servers has room for it now.
    pub(super) fn fits_one_of<'a>(
        &self,
        states: impl IntoIterator<Item = &'a ServerState>,
        context: &Context,
    ) -> bool {
        let ask = self.as_ask();
        states
            .into_iter()
            // Of most servers the room alone tells.
            .filter(|state| self.bound || self.resources.short_of(state.free()).is_zero())
            .any(|state| self.concerns(state) && fits(state, &ask, context).is_ok())
    }

    /// Whether any server has room for it now.
    pub(super) fn fits_anywhere(&self, fleet: &Fleet, context: &Context) -> bool {
        self.fits_one_of(self.servers(fleet), context)
    }

    /// Whether there is a server that may have room for it later.
    pub(super) fn may_ever_fit(&self, fleet: &Fleet, context: &Context) -> bool {
        let ask = self.as_ask();
        self.servers(fleet).any(|state| match fits(state, &ask, context) {
            Ok(_) => true,
            Err(exclusion) => matches!(
                exclusion,
                Exclusion::UsageStale { .. }
                    | Exclusion::Capacity { .. }
                    | Exclusion::Ports(PortShortage::Exhausted { .. })
            ),
        })
    }

    /// How far a server is from having room for it: in millionths of what is asked, summed over the resources. None for one that
    /// time alone does not make fit, such as one that cannot give an explicit port.
    fn distance(&self, state: &ServerState, context: &Context) -> Option<i128> {
        match fits(state, &self.as_ask(), context) {
            Err(Exclusion::Capacity { short }) if !self.lacks_a_port(state, context) => Some(
                Resource::ALL
                    .into_iter()
                    .map(|r| i128::from(short.get(r)) * 1_000_000 / i128::from(self.whole.get(r).max(1)))
                    .sum::<i128>(),
            ),
            Err(Exclusion::Ports(PortShortage::Exhausted { .. })) => Some(0),
            _ => None,
        }
    }

    fn ports(&self, state: &ServerState, context: &Context) -> Result<(), PortShortage> {
        state.ports.choose(&state.server, &self.modules, self.start_port, context.now).map(|_| ())
    }

    fn lacks_a_port(&self, state: &ServerState, context: &Context) -> bool {
        matches!(self.ports(state, context), Err(PortShortage::Taken { .. }))
    }

    /// The nearest of these servers, ties by handle, and how far it is.
    pub(super) fn nearest<'a>(
        &self,
        states: impl IntoIterator<Item = &'a ServerState>,
        context: &Context,
    ) -> Option<(i128, &'a ServerState)> {
        states
            .into_iter()
            .filter(|state| self.concerns(state))
            .filter_map(|state| Some((self.distance(state, context)?, state)))
            .min_by(|(a, here), (b, there)| a.cmp(b).then(here.server.handle.cmp(&there.server.handle)))
    }

    /// The nearest of all servers.
    pub(super) fn nearest_of_all<'a>(
        &self,
        fleet: &'a Fleet,
        context: &Context,
    ) -> Option<(i128, &'a ServerState)> {
        self.nearest(self.servers(fleet), context)
    }

    /// What is kept for it on a server.
    pub(super) fn to_keep(&self, state: &ServerState, context: &Context) -> Resources {
        // Where ports are missing too, nobody else may take them: the server takes no new project.
        const EVERYTHING: i64 = i64::MAX / 4;
        if self.ports(state, context).is_err() {
            Resources { cpu_millis: EVERYTHING, ram_mb: EVERYTHING, disk_mb: EVERYTHING }
        } else {
            self.resources
        }
    }
}
