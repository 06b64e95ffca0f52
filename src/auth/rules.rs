//! Which call takes which role: the one table. `docs/security.md` has it too; tests compare the two, call every cell, and fail on an
//! RPC without a row.

use super::Role;

/// What a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No credentials: probes have none.
    Open,
    /// This role, or one that may do more.
    From(Role),
}

use Access::{From, Open};
use Role::{Admin, Operator, Viewer, Worker};

/// The paths of a service, or of HTTP, and what each takes.
pub const RULES: &[(&str, &[(&str, Access)])] = &[
    (
        "/resourceallocator.v1.ResourceAllocator/",
        &[
            ("EnsureAllocation", From(Worker)),
            ("BatchEnsureAllocations", From(Worker)),
            ("ReleaseAllocation", From(Worker)),
            ("ListAllocations", From(Viewer)),
            ("GetPlacement", From(Viewer)),
            ("FindServer", From(Viewer)),
            ("ListWaiting", From(Viewer)),
            ("RelocateProject", From(Worker)),
            ("ReportPortInUse", From(Worker)),
            ("WatchAllocations", From(Viewer)),
        ],
    ),
    (
        "/resourceallocator.v1.ServerInventory/",
        &[
            ("RegisterServer", From(Operator)),
            ("GetServer", From(Viewer)),
            ("ListServers", From(Viewer)),
            ("UpdateServer", From(Operator)),
            ("DeleteServer", From(Admin)),
            ("ReportUsage", From(Operator)),
            ("SyncServers", From(Operator)),
            ("DrainServer", From(Operator)),
            ("GetFleetPolicy", From(Viewer)),
            ("UpdateFleetPolicy", From(Admin)),
        ],
    ),
    ("/grpc.health.v1.Health/", &[("Check", Open), ("Watch", Open)]),
    ("/grpc.reflection.v1.ServerReflection/", &[("ServerReflectionInfo", From(Viewer))]),
    ("/grpc.reflection.v1alpha.ServerReflection/", &[("ServerReflectionInfo", From(Viewer))]),
    (
        "/",
        &[
            ("api/allocations/", From(Viewer)),
            ("api/allocations", From(Viewer)),
            ("healthz", Open),
            ("readyz", Open),
        ],
    ),
];

/// What a path takes. One that is nowhere takes a caller that is known: what there is, is told to those alone.
#[must_use]
pub fn access(path: &str) -> Access {
    RULES
        .iter()
        .filter_map(|(prefix, rules)| Some((path.strip_prefix(prefix)?, *rules)))
        .find_map(|(name, rules)| rules.iter().find(|(known, _)| *known == name))
        .map_or(From(Viewer), |(_, access)| *access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_takes_what_its_row_says_and_any_other_a_caller_that_is_known() {
        for (path, takes) in [
            ("/resourceallocator.v1.ResourceAllocator/EnsureAllocation", From(Worker)),
            ("/resourceallocator.v1.ServerInventory/UpdateFleetPolicy", From(Admin)),
            ("/grpc.health.v1.Health/Check", Open),
            ("/readyz", Open),
            ("/readyz/", From(Viewer)),
            ("/resourceallocator.v1.ResourceAllocator/", From(Viewer)),
            ("/resourceallocator.v1.ResourceAllocator/healthz", From(Viewer)),
            ("healthz", From(Viewer)),
            ("", From(Viewer)),
        ] {
            assert_eq!(access(path), takes, "{path}");
        }
    }
}
