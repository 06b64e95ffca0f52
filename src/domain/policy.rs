//! The fleet's policy: what holds for every server that does not say otherwise, and what a server's capacity comes to under it.
//!
//! The schema derives the same budgets for its guard (`server_budget`); a test compares the two.

use serde::{Deserialize, Serialize};

use super::{
    Resources, Server,
    resources::{PerResource, Resource},
};

/// The least over-commit, in percent: what there is may be reserved.
pub const MIN_OVERCOMMIT_PERCENT: i64 = 100;
/// The greatest over-commit, in percent.
pub const MAX_OVERCOMMIT_PERCENT: i64 = 10_000;

/// What holds for every server that does not say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetPolicy {
    /// Kept free of placements on a server that names no headroom of its own: at least this much …
    pub headroom: Resources,
    /// … and at least this share of its capacity, in percent, 0 to 100.
    pub headroom_percent: PerResource<i64>,
    /// How much may be reserved for each hundred that there is, 100 to 10,000.
    pub overcommit_percent: PerResource<i64>,
}

impl Default for FleetPolicy {
    fn default() -> Self {
        Self {
            headroom: Resources::ZERO,
            headroom_percent: PerResource::all(0),
            overcommit_percent: PerResource::all(MIN_OVERCOMMIT_PERCENT),
        }
    }
}

/// What a server's capacity comes to under a policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// Its capacity times its over-commit.
    pub size: Resources,
    /// What is kept free of placements.
    pub headroom: Resources,
}

impl Terms {
    /// What placements may take in all; negative where the headroom is more than there is.
    #[must_use]
    pub fn budget(&self) -> Resources {
        self.size - self.headroom
    }
}

impl FleetPolicy {
    /// What a server's capacity comes to. Shares of over-commit are rounded down and those of headroom up, so that nothing is
    /// promised that is not there.
    #[must_use]
    pub fn terms(&self, server: &Server) -> Terms {
        let overcommit = server.overcommit_percent.or(self.overcommit_percent);
        let by_default = of_each(|resource| {
            let share = (server.capacity.get(resource) * self.headroom_percent.get(resource) + 99) / 100;
            share.max(self.headroom.get(resource))
        });
        Terms {
            size: of_each(|resource| server.capacity.get(resource) * overcommit.get(resource) / 100),
            headroom: server.headroom.or(by_default),
        }
    }
}

fn of_each(amount: impl Fn(Resource) -> i64) -> Resources {
    Resources {
        cpu_millis: amount(Resource::Cpu),
        ram_mb: amount(Resource::Ram),
        disk_mb: amount(Resource::Disk),
    }
}

/// The changes that an UpdateFleetPolicy makes: `None` where it leaves a figure as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyPatch {
    /// A new least headroom.
    pub headroom: super::ResourceRequest,
    /// A new share.
    pub headroom_percent: PerResource<Option<i64>>,
    /// A new over-commit.
    pub overcommit_percent: PerResource<Option<i64>>,
}

impl PolicyPatch {
    /// The policy that stands after the change.
    #[must_use]
    pub fn onto(&self, standing: FleetPolicy) -> FleetPolicy {
        FleetPolicy {
            headroom: self.headroom.or(standing.headroom),
            headroom_percent: self.headroom_percent.or(standing.headroom_percent),
            overcommit_percent: self.overcommit_percent.or(standing.overcommit_percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ResourceRequest,
        testing::{a_server, ram},
    };

    fn policy(headroom_mb: i64, headroom_percent: i64, overcommit_percent: i64) -> FleetPolicy {
        FleetPolicy {
            headroom: ram(headroom_mb),
            headroom_percent: PerResource { ram: headroom_percent, ..PerResource::all(0) },
            overcommit_percent: PerResource { ram: overcommit_percent, ..PerResource::all(100) },
        }
    }

    fn budget(policy: &FleetPolicy, server: &Server) -> i64 {
        policy.terms(server).budget().ram_mb
    }

    #[test]
    fn without_a_policy_everything_may_be_reserved_but_the_servers_own_headroom() {
        let server = a_server("a").ram(1000).headroom(ram(100)).server;
        assert_eq!(budget(&FleetPolicy::default(), &server), 900);
    }

    #[test]
    fn the_default_headroom_is_the_greater_of_an_amount_and_a_share_rounded_up() {
        let server = a_server("a").ram(1001).server;
        assert_eq!(budget(&policy(50, 0, 100), &server), 951);
        assert_eq!(budget(&policy(0, 10, 100), &server), 900);
        assert_eq!(budget(&policy(50, 10, 100), &server), 900);
        assert_eq!(budget(&policy(200, 10, 100), &server), 801);
    }

    #[test]
    fn a_servers_own_headroom_counts_in_place_of_the_default_also_where_it_is_less() {
        let mut server = a_server("a").ram(1000).server;
        server.headroom = ResourceRequest { ram_mb: Some(0), ..ResourceRequest::default() };
        assert_eq!(budget(&policy(200, 50, 100), &server), 1000);
    }

    #[test]
    fn over_commit_multiplies_the_capacity_and_is_rounded_down() {
        let mut server = a_server("a").ram(1001).server;
        assert_eq!(budget(&policy(0, 0, 150), &server), 1501);
        assert_eq!(
            budget(&policy(0, 10, 150), &server),
            1400,
            "the headroom is a share of what there really is"
        );
        server.overcommit_percent.ram = Some(100);
        assert_eq!(budget(&policy(0, 0, 150), &server), 1001, "its own counts");
    }

    #[test]
    fn a_headroom_of_more_than_there_is_leaves_a_negative_budget() {
        let server = a_server("a").ram(1000).server;
        assert_eq!(budget(&policy(3000, 0, 100), &server), -2000);
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let patch = PolicyPatch {
            headroom_percent: PerResource { ram: Some(5), ..PerResource::default() },
            ..PolicyPatch::default()
        };
        assert_eq!(patch.onto(policy(50, 0, 150)), policy(50, 5, 150));
    }
}
