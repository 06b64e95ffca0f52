//! Why a caller may not.

use super::Role;

/// Why a caller may not. What a credential is, is in none of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nothing says who calls.
    #[error("the call shows no credentials: send the header `authorization: Bearer TOKEN`")]
    NoCredentials,
    /// The header is of another kind, or there is more than one.
    #[error("the header `authorization` must be there once, and say `Bearer TOKEN`")]
    MalformedAuthorization,
    /// The token is not in the file, or not any more.
    #[error("the token is not known, or not any more")]
    UnknownToken,
    /// The certificate's names are not in the file, or not any more.
    #[error(
        "the client's certificate is of an authority that is believed, and none of its names is known: {0}"
    )]
    UnknownCertificate(String),
    /// The credential is over.
    #[error("the credential of `{0}` has expired")]
    Expired(String),
    /// The caller is known, and its role is not enough.
    #[error("this takes the role {takes}, and `{name}` has the role {role}")]
    Role {
        /// The caller's name.
        name: String,
        /// Its role.
        role: Role,
        /// The role that the call takes.
        takes: Role,
    },
    /// The caller is for other projects.
    #[error("`{name}` may work on projects that begin with {projects} alone, not on `{project_id}`")]
    OtherProject {
        /// The caller's name.
        name: String,
        /// What its projects begin with.
        projects: String,
        /// The project that it named.
        project_id: String,
    },
    /// The caller is for some projects, and did not say which one it means.
    #[error("`{name}` may see projects that begin with {projects} alone: name one of them in `project_id`")]
    EveryProject {
        /// The caller's name.
        name: String,
        /// What its projects begin with.
        projects: String,
    },
}

impl Denied {
    /// Whether it is who calls that is not known, rather than what they may do.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::NoCredentials
            | Self::MalformedAuthorization
            | Self::UnknownToken
            | Self::UnknownCertificate(_)
            | Self::Expired(_) => true,
            Self::Role { .. } | Self::OtherProject { .. } | Self::EveryProject { .. } => false,
        }
    }

    /// The figures of the message, by name.
    #[must_use]
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NoCredentials | Self::MalformedAuthorization | Self::UnknownToken => Vec::new(),
            Self::UnknownCertificate(names) => vec![("certificate", names.clone())],
            Self::Expired(name) => vec![("caller", name.clone())],
            Self::Role { name, role, takes } => {
                vec![("caller", name.clone()), ("role", role.to_string()), ("takes", takes.to_string())]
            }
            Self::OtherProject { name, projects, project_id } => vec![
                ("caller", name.clone()),
                ("projects", projects.clone()),
                ("project_id", project_id.clone()),
            ],
            Self::EveryProject { name, projects } => {
                vec![("caller", name.clone()), ("projects", projects.clone())]
            }
        }
    }
}
