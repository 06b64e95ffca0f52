//! Refusals: a typed reason, what kind of act it calls for, and the figures (`error_reason.proto`). Every value that a message
//! tells is in the metadata too. What they are to gRPC is decided at the edge (`api::status`).

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Resources, resources::Resource};

/// A text of at most `limit` bytes, which says where something was cut off.
#[must_use]
pub fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}

/// What kind of act a refusal calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Disposition {
    /// It may fit later by itself.
    Wait,
    /// Someone must add or repair a server.
    Operator,
    /// The request must be changed.
    Caller,
    /// The service or its database cannot tell now.
    Technical,
}

impl Disposition {
    /// The disposition's name in metadata.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "WAIT",
            Self::Operator => "OPERATOR",
            Self::Caller => "CALLER",
            Self::Technical => "TECHNICAL",
        }
    }
}

/// Why a well-formed request is refused. The names are those of `error_reason.proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// A server of that handle does not exist.
    ServerNotFound,
    /// The project has no placement.
    ProjectNotFound,
    /// The project has no module of that name.
    ModuleNotFound,
    /// The inventory is empty.
    NoServers,
    /// Servers exist, none admits work.
    NoAdmissibleServer,
    /// No managed server with the labels could hold it even empty.
    RequestExceedsFleet,
    /// No server carries the selector's labels.
    NoMatchingServer,
    /// A pin disagrees with what the project holds.
    PlacedElsewhere,
    /// New modules or growth on a server that no longer admits work.
    BoundServerNotAdmissible,
    /// Admissible servers exist, none has room now.
    InsufficientCapacity,
    /// Room, but no free port in range.
    PortsExhausted,
    /// An explicit port cannot be had.
    PortTaken,
    /// The only servers left were left out for stale usage reports.
    UsageStale,
    /// The server changed since its etag was read.
    EtagMismatch,
    /// The server holds placements.
    ServerInUse,
    /// The list is empty or would mark too many of its source's servers missing.
    SyncRefused,
    /// Another server carries this external id of this source.
    ExternalIdTaken,
    /// The time to wait in line ran out.
    WaitTimedOut,
    /// The line takes no more.
    LineFull,
    /// A later call of the project waits for something else in its place.
    WaitSuperseded,
    /// The project was released while it stood in line.
    WaitReleased,
}

impl Reason {
    /// The reason's name in ErrorInfo.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerNotFound => "SERVER_NOT_FOUND",
            Self::ProjectNotFound => "PROJECT_NOT_FOUND",
            Self::ModuleNotFound => "MODULE_NOT_FOUND",
            Self::NoServers => "NO_SERVERS",
            Self::NoAdmissibleServer => "NO_ADMISSIBLE_SERVER",
            Self::RequestExceedsFleet => "REQUEST_EXCEEDS_FLEET",
            Self::NoMatchingServer => "NO_MATCHING_SERVER",
            Self::PlacedElsewhere => "PLACED_ELSEWHERE",
            Self::BoundServerNotAdmissible => "BOUND_SERVER_NOT_ADMISSIBLE",
            Self::InsufficientCapacity => "INSUFFICIENT_CAPACITY",
            Self::PortsExhausted => "PORTS_EXHAUSTED",
            Self::PortTaken => "PORT_TAKEN",
            Self::UsageStale => "USAGE_STALE",
            Self::EtagMismatch => "ETAG_MISMATCH",
            Self::ServerInUse => "SERVER_IN_USE",
            Self::SyncRefused => "SYNC_REFUSED",
            Self::ExternalIdTaken => "EXTERNAL_ID_TAKEN",
            Self::WaitTimedOut => "WAIT_TIMED_OUT",
            Self::LineFull => "LINE_FULL",
            Self::WaitSuperseded => "WAIT_SUPERSEDED",
            Self::WaitReleased => "WAIT_RELEASED",
        }
    }

    /// What kind of act it calls for.
    #[must_use]
    pub fn disposition(self) -> Disposition {
        match self {
            Self::InsufficientCapacity | Self::WaitTimedOut | Self::LineFull => Disposition::Wait,
            Self::NoServers
            | Self::NoAdmissibleServer
            | Self::RequestExceedsFleet
            | Self::BoundServerNotAdmissible
            | Self::PortsExhausted
            | Self::SyncRefused => Disposition::Operator,
            Self::UsageStale => Disposition::Technical,
            Self::ServerNotFound
            | Self::ProjectNotFound
            | Self::ModuleNotFound
            | Self::NoMatchingServer
            | Self::PlacedElsewhere
            | Self::PortTaken
            | Self::EtagMismatch
            | Self::ServerInUse
            | Self::ExternalIdTaken
            | Self::WaitSuperseded
            | Self::WaitReleased => Disposition::Caller,
        }
    }

    /// When the same request may do better, where that is a matter of time.
    #[must_use]
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::InsufficientCapacity | Self::LineFull => Some(Duration::from_secs(10)),
            Self::UsageStale => Some(Duration::from_secs(5)),
            _ => None,
        }
    }
}

/// A refusal, ready to be told: what was asked, what was found, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The same in words.
    pub message: String,
    /// The figures.
    pub metadata: BTreeMap<String, String>,
}

impl Refusal {
    /// A refusal without figures.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new() }
    }

    /// Adds a figure.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "numbers and names are given alike")]
    pub fn with(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        self.metadata.insert(key.into(), value.to_string());
        self
    }

    /// Adds an amount of each resource under `prefix`, such as `asked.ram_mb`; what is 0 is left out where `nonzero` says so.
    #[must_use]
    pub fn with_resources(mut self, prefix: &str, amounts: Resources, nonzero: bool) -> Self {
        for resource in Resource::ALL {
            let amount = amounts.get(resource);
            if !nonzero || amount != 0 {
                self = self.with(format!("{prefix}.{}", resource.field()), amount);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `error_reason.proto` lists of them.
    const CONTRACT: [(Reason, &str, Disposition); 21] = [
        (Reason::ServerNotFound, "SERVER_NOT_FOUND", Disposition::Caller),
        (Reason::ProjectNotFound, "PROJECT_NOT_FOUND", Disposition::Caller),
        (Reason::ModuleNotFound, "MODULE_NOT_FOUND", Disposition::Caller),
        (Reason::NoServers, "NO_SERVERS", Disposition::Operator),
        (Reason::NoAdmissibleServer, "NO_ADMISSIBLE_SERVER", Disposition::Operator),
        (Reason::RequestExceedsFleet, "REQUEST_EXCEEDS_FLEET", Disposition::Operator),
        (Reason::NoMatchingServer, "NO_MATCHING_SERVER", Disposition::Caller),
        (Reason::PlacedElsewhere, "PLACED_ELSEWHERE", Disposition::Caller),
        (Reason::BoundServerNotAdmissible, "BOUND_SERVER_NOT_ADMISSIBLE", Disposition::Operator),
        (Reason::InsufficientCapacity, "INSUFFICIENT_CAPACITY", Disposition::Wait),
        (Reason::PortsExhausted, "PORTS_EXHAUSTED", Disposition::Operator),
        (Reason::PortTaken, "PORT_TAKEN", Disposition::Caller),
        (Reason::UsageStale, "USAGE_STALE", Disposition::Technical),
        (Reason::EtagMismatch, "ETAG_MISMATCH", Disposition::Caller),
        (Reason::ServerInUse, "SERVER_IN_USE", Disposition::Caller),
        (Reason::SyncRefused, "SYNC_REFUSED", Disposition::Operator),
        (Reason::ExternalIdTaken, "EXTERNAL_ID_TAKEN", Disposition::Caller),
        (Reason::WaitTimedOut, "WAIT_TIMED_OUT", Disposition::Wait),
        (Reason::LineFull, "LINE_FULL", Disposition::Wait),
        (Reason::WaitSuperseded, "WAIT_SUPERSEDED", Disposition::Caller),
        (Reason::WaitReleased, "WAIT_RELEASED", Disposition::Caller),
    ];

    /// What `error_reason.proto` says of each reason: its name, and the line that begins with its code.
    fn documented() -> BTreeMap<&'static str, &'static str> {
        let proto = include_str!("../../proto/resourceallocator/v1/error_reason.proto");
        let mut documented = BTreeMap::new();
        let mut line_of_code = "";
        for line in proto.lines().map(str::trim) {
            if let Some(value) = line.strip_prefix("ERROR_REASON_") {
                documented.insert(value.split(' ').next().unwrap(), std::mem::take(&mut line_of_code));
            } else if line.starts_with("//") && line_of_code.is_empty() {
                line_of_code = line.trim_start_matches(['/', ' ']);
            }
        }
        documented
    }

    #[test]
    fn every_reason_has_the_name_and_the_disposition_that_callers_were_promised_l10() {
        let documented = documented();
        for (reason, name, disposition) in CONTRACT {
            assert_eq!((reason.as_str(), reason.disposition()), (name, disposition));
            assert!(documented.contains_key(name), "{name} is not in the proto");
            let says = documented[name].split('.').next().unwrap();
            let second = says.split(", ").nth(1);
            assert_eq!(second, Some(disposition.as_str()), "{name}: {says}");
        }
    }

    #[test]
    fn a_reason_is_stored_under_its_name() {
        for (reason, name, disposition) in CONTRACT {
            assert_eq!(serde_json::to_value(reason).unwrap(), name);
            assert_eq!(serde_json::from_value::<Reason>(name.into()).unwrap(), reason);
            assert_eq!(serde_json::to_value(disposition).unwrap(), disposition.as_str());
        }
    }

    #[test]
    fn a_retry_is_advised_where_the_contract_says_so_and_never_where_someone_must_act() {
        let documented = documented();
        for (reason, name, disposition) in CONTRACT {
            if documented[name].contains("with RetryInfo") {
                assert!(reason.retry_after().is_some(), "{name}");
            }
            if matches!(disposition, Disposition::Caller | Disposition::Operator) {
                assert_eq!(reason.retry_after(), None, "{name}");
            }
        }
    }

    #[test]
    fn figures_are_told_under_their_prefix() {
        let short = Resources { cpu_millis: 0, ram_mb: 7, disk_mb: -1 };
        let refusal = Refusal::new(Reason::NoServers, "none")
            .with_resources("all", short, false)
            .with_resources("some", short, true);
        let figures: Vec<_> = refusal.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected =
            ["all.cpu_millis=0", "all.disk_mb=-1", "all.ram_mb=7", "some.disk_mb=-1", "some.ram_mb=7"];
        assert_eq!(figures, expected);
        assert_eq!(refusal.to_string(), "none");
    }
    #[test]
    fn how_long_to_wait_is_the_contracts() {
        let seconds = |reason: Reason| reason.retry_after().map(|after| after.as_secs());
        assert_eq!(seconds(Reason::InsufficientCapacity), Some(10));
        assert_eq!(seconds(Reason::LineFull), Some(10));
        assert_eq!(seconds(Reason::UsageStale), Some(5));
        assert_eq!(seconds(Reason::WaitTimedOut), None);
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters_and_says_so() {
        for text in ["", "twelve bytes"] {
            assert_eq!(cut(text.to_owned(), 12), text);
        }
        assert_eq!(cut("thirteen byte".to_owned(), 12), "thirteen …");
        assert_eq!(cut("проект".to_owned(), 11), "прое…");
        assert_eq!(cut("проект".to_owned(), 10), "про…");
        assert_eq!(cut("any".to_owned(), 0), "…");
    }
}
