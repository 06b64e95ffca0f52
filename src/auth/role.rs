//! Roles: each may do what those before it may, and more.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// What a caller is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Role {
    /// Reads: allocations, servers, the line, the events.
    Viewer,
    /// Places projects, moves them and gives them back; of some projects only, where the credential says so.
    Worker,
    /// Keeps the inventory: registers, reports, syncs, drains.
    Operator,
    /// Deletes servers, and sets what holds for the whole fleet.
    Admin,
}

/// A text that is no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are the roles viewer, worker, operator and admin")]
pub struct UnknownRole;

impl Role {
    /// All of them, each before those that may do more.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Worker, Self::Operator, Self::Admin];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

impl TryFrom<String> for Role {
    type Error = UnknownRole;

    fn try_from(text: String) -> Result<Self, UnknownRole> {
        text.parse()
    }
}
