//! Why nothing fits, and what would: the whole funnel over every server. A refused ensure and FindServer tell the same story,
//! for both are told from here.

use std::collections::BTreeMap;

use super::{
    Context,
    facts::{Facts, count_by_stage},
    filter::{Ask, Exclusion, Stage, describe_short, fits},
    modules_or_default,
    score::Score,
};
use crate::domain::{
    Fleet, Reason, Refusal, ServerHandle,
    fleet::ServerState,
    ports::PortShortage,
    refusal::cut,
    request::{DEFAULT_RESOURCES, FindRequest},
};

/// A server that fits, and how good it is.
#[derive(Debug, Clone)]
pub struct FoundServer {
    /// The server as it stands.
    pub state: ServerState,
    /// Where it stands among those that fit.
    pub score: Score,
}

/// What the funnel says of every server.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The servers that fit, best first, as many as were asked for.
    pub candidates: Vec<FoundServer>,
    /// The others, ordered by handle.
    pub rejections: Vec<(ServerHandle, Exclusion)>,
    /// The refusal that an ensure would get; none where a server fits.
    pub refusal: Option<Refusal>,
}

impl Explanation {
    /// How many servers each stage left out.
    #[must_use]
    pub fn rejected_by_stage(&self) -> BTreeMap<Stage, usize> {
        count_by_stage(self.rejections.iter().map(|(_, exclusion)| exclusion))
    }
}

/// Ranks the servers for a project that is not placed, and says why each other is left out.
#[must_use]
pub fn find_servers(fleet: &Fleet, request: &FindRequest, context: &Context) -> Explanation {
    let modules = modules_or_default(&request.modules);
    let resources = request.resources.or(DEFAULT_RESOURCES);
    let ask = Ask {
        resources,
        whole: resources,
        selector: &request.selector,
        modules: &modules,
        start_port: request.start_port,
        leaving: None,
        bound: false,
    };
    let mut found = Vec::new();
    let mut rejections = Vec::new();
    for state in fleet.iter() {
        match fits(state, &ask, context) {
            Ok(_) => found.push((Score::of(state, resources, request.strategy), state)),
            Err(exclusion) => rejections.push((state.server.handle.clone(), exclusion)),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    rejections.sort_by(|(a, _), (b, _)| a.cmp(b));
    let refusal = found.is_empty().then(|| refuse(fleet, &ask, None, context));
    let candidates = found
        .into_iter()
        .take(request.max_candidates)
        .map(|(score, state)| FoundServer { state: state.clone(), score })
        .collect();
    Explanation { candidates, rejections, refusal }
}

/// The refusal of a request that no server fits, or that the one server `pin` does not.
pub(super) fn refuse(fleet: &Fleet, ask: &Ask<'_>, pin: Option<&ServerHandle>, context: &Context) -> Refusal {
    let facts = match pin {
        Some(pin) => Facts::of_each(fleet.get(pin), ask, context),
        None => Facts::of_fleet(fleet, ask, context),
    };
    Story { ask, pin, facts: &facts }.refusal(context)
}

/// What [`refuse`] says of the fleet, from a look at every server.
#[cfg(test)]
pub(super) fn refuse_by_each(fleet: &Fleet, ask: &Ask<'_>, context: &Context) -> Refusal {
    let facts = Facts::of_each(fleet.iter(), ask, context);
    Story { ask, pin: None, facts: &facts }.refusal(context)
}

fn no_other_server() -> Refusal {
    Refusal::new(
        Reason::NoServers,
        "no server is registered beside the one that the project is to leave; register one with `RegisterServer`",
    )
}

/// What a refusal is told from.
struct Story<'a> {
    ask: &'a Ask<'a>,
    pin: Option<&'a ServerHandle>,
    facts: &'a Facts<'a>,
}

impl Story<'_> {
    fn refusal(&self, context: &Context) -> Refusal {
        let Self { ask, pin, facts } = self;
        let Some(furthest) = facts.furthest() else {
            return Refusal::new(
                Reason::NoServers,
                format!(
                    "asked for {}, and no server is registered; register one with `RegisterServer`",
                    ask.resources
                ),
            )
            .with("servers", 0)
            .with_resources("asked", ask.resources, false);
        };
        let mut refusal = match furthest {
            Stage::Left => no_other_server(),
            Stage::Labels => self.no_matching_server(),
            Stage::Unmanaged | Stage::Status => self.no_admissible_server(furthest),
            Stage::Size => self.request_exceeds_fleet(),
            Stage::UsageStale => self.usage_stale(context),
            Stage::Capacity => self.insufficient_capacity(),
            Stage::Ports => self.ports(),
        }
        .with("servers", facts.servers)
        .with_resources(
            "asked",
            if furthest == Stage::Size { ask.whole } else { ask.resources },
            false,
        );
        if let Some(pin) = pin {
            refusal = refusal.with("server_handle", pin);
        }
        for (stage, count) in &facts.counts {
            refusal = refusal.with(format!("rejected.{}", stage.as_str()), count);
        }
        refusal
    }

    /// The servers that the funnel was run over, in words.
    fn fleet(&self) -> String {
        match self.pin {
            Some(pin) => format!("server `{pin}`"),
            None => format!("the fleet of {}", count(self.facts.servers, "server")),
        }
    }

    fn no_matching_server(&self) -> Refusal {
        let labels: Vec<_> = self.ask.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        // 64 labels at their longest are more than an answer can carry.
        let selector = cut(labels.join(","), 300);
        Refusal::new(
            Reason::NoMatchingServer,
            format!(
                "asked for the labels {selector}, and none of {} carries them all; change `server_selector`, or label a server",
                self.fleet()
            ),
        )
        .with("selector", selector)
    }

    fn no_admissible_server(&self, furthest: Stage) -> Refusal {
        let statuses = &self.facts.statuses;
        let found: Vec<_> = statuses.iter().map(|(status, count)| format!("{count} {status}")).collect();
        // Whether the unmanaged ones could hold it was not asked.
        let of = if furthest == Stage::Status { "of those that could hold it, " } else { "" };
        let refusal = Refusal::new(
            Reason::NoAdmissibleServer,
            format!(
                "asked for {}, and nothing in {} admits work: {of}{}; make a server READY and managed, or register one",
                self.ask.resources,
                self.fleet(),
                found.join(", ")
            ),
        );
        statuses
            .iter()
            .fold(refusal, |refusal, (status, count)| refusal.with(format!("status.{status}"), count))
    }

    fn request_exceeds_fleet(&self) -> Refusal {
        let refusal = Refusal::new(
            Reason::RequestExceedsFleet,
            format!(
                "asked for {}, and nothing in {} could hold that even empty, its headroom kept: {}; ask for less, or register a larger server",
                self.ask.whole,
                self.fleet(),
                self.nearest_in_words()
            ),
        );
        self.with_nearest(refusal)
    }

    fn usage_stale(&self, context: &Context) -> Refusal {
        let limit = context.usage_max_age.as_secs();
        Refusal::new(
            Reason::UsageStale,
            format!(
                "asked for {}, and the only servers left in {}, {}, did not report their usage in the last {limit} s; see why their reports stopped",
                self.ask.resources,
                self.fleet(),
                self.handles()
            ),
        )
        .with("usage_max_age_s", limit)
        .with("server_handles", self.handles().replace('`', ""))
    }

    fn insufficient_capacity(&self) -> Refusal {
        let refusal = Refusal::new(
            Reason::InsufficientCapacity,
            format!(
                "asked for {}, and nothing in {} has room for it now: {}; wait for a release, ask for less, or register a server",
                self.ask.resources,
                self.fleet(),
                self.nearest_in_words()
            ),
        );
        self.with_nearest(refusal)
    }

    fn ports(&self) -> Refusal {
        if let Some((state, PortShortage::Taken { module, port, protocol, cause })) = &self.facts.shortage {
            let handle = &state.server.handle;
            return Refusal::new(
                Reason::PortTaken,
                format!(
                    "asked for port {port}/{protocol} for module `{module}`, and no server with room can give it: on `{handle}` it {}; ask for another port, or leave `port` out",
                    cause.describe()
                ),
            )
            .with("server_handle", handle)
            .with("module", module)
            .with("port", port)
            .with("protocol", protocol)
            .with("cause", cause.as_str());
        }
        let refusal = Refusal::new(
            Reason::PortsExhausted,
            format!(
                "asked for {} at or above {}, and none of the servers with room, {}, has enough that are free in its range; widen `port_range`, start lower, or register a server",
                count(self.ask.modules.len(), "port"),
                self.ask.start_port,
                self.handles()
            ),
        )
        .with("start_port", self.ask.start_port)
        .with("ports", self.ask.modules.len())
        .with("server_handles", self.handles().replace('`', ""));
        match &self.facts.shortage {
            Some((state, PortShortage::Exhausted { range, protocol, .. })) => refusal
                .with("server_handle", &state.server.handle)
                .with("port_range", range)
                .with("protocol", protocol),
            _ => refusal,
        }
    }

    fn nearest_in_words(&self) -> String {
        self.facts.nearest.as_ref().map_or_else(String::new, |(state, short)| {
            format!("`{}` is the nearest, short of {}", state.server.handle, describe_short(*short))
        })
    }

    fn with_nearest(&self, refusal: Refusal) -> Refusal {
        let Some((state, short)) = self.facts.nearest else { return refusal };
        refusal
            .with("nearest.server_handle", &state.server.handle)
            .with_resources("nearest.short", short, true)
            .with_resources("nearest.free", state.free(), false)
            .with_resources("nearest.headroom", state.terms.headroom, true)
    }

    /// The handles of the servers that reached the last stage, not more than a reader takes in.
    fn handles(&self) -> String {
        let facts = self.facts;
        let mut told: Vec<_> = facts.first.iter().map(|state| format!("`{}`", state.server.handle)).collect();
        if facts.reached() > told.len() {
            told.push(format!("and {} more", facts.reached() - told.len()));
        }
        told.join(", ")
    }
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
