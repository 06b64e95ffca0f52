//! The file of credentials: who may call, by which token or certificate, as what.
//!
//! An error names the line or the entry, and repeats nothing of what stands there: somebody may have written a token itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Role, token::TokenHash};
use crate::domain::ids::check_name;

/// How long a caller's name and the start of a project's may be.
const MAX_NAME: usize = 128;

/// Why a file of credentials cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// It is no text.
    #[error("it is not UTF-8")]
    NotText,
    /// It is no TOML, or has something that is not known.
    #[error("line {line}: {problem}")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// An entry makes no sense.
    #[error("{kind} {position}: {problem}")]
    Entry {
        /// `tokens` or `certificates`.
        kind: &'static str,
        /// Its place among its kind, from 1.
        position: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Who calls by a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name that the events and the log have.
    pub name: String,
    /// What the caller is there for.
    pub role: Role,
    /// What the caller's projects begin with; none where any project will do.
    pub projects: Option<Arc<[String]>>,
    /// Until when it counts, as the time since 1970; none where it counts for good.
    pub expires: Option<Duration>,
}

/// What a request may show.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Shown {
    Token(TokenHash),
    /// A name of a certificate, such as `URI:spiffe://example.com/worker`.
    Certificate(String),
}

/// All credentials.
#[derive(Debug, Default)]
pub struct Credentials(HashMap<Shown, Arc<Identity>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tokens: Vec<TokenEntry>,
    #[serde(default)]
    certificates: Vec<CertificateEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    name: String,
    sha256: String,
    role: Role,
    projects: Option<Vec<String>>,
    expires: Option<toml::value::Datetime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateEntry {
    name: String,
    subject: String,
    role: Role,
    projects: Option<Vec<String>>,
    expires: Option<toml::value::Datetime>,
}

impl Credentials {
    /// Reads the file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, CredentialsError> {
        let text = str::from_utf8(bytes).map_err(|_| CredentialsError::NotText)?;
        let file: File = toml::from_str(text).map_err(|error| malformed(text, &error))?;
        let mut all = HashMap::new();
        let tokens = (1..).zip(file.tokens).map(|(position, entry)| {
            let problem = |problem: String| CredentialsError::Entry { kind: "tokens", position, problem };
            let hash = TokenHash::parse(&entry.sha256).ok_or_else(|| {
                problem("`sha256` must be the 64 hexadecimal digits of a token's hash".to_owned())
            })?;
            let identity = identity(entry.name, entry.role, entry.projects, entry.expires);
            Ok((Shown::Token(hash), identity.map_err(problem)?, ("tokens", position)))
        });
        let certificates = (1..).zip(file.certificates).map(|(position, entry)| {
            let problem =
                |problem: String| CredentialsError::Entry { kind: "certificates", position, problem };
            if !["URI:", "DNS:", "CN="].iter().any(|kind| entry.subject.starts_with(kind)) {
                return Err(problem("`subject` must be URI:…, DNS:… or CN=…".to_owned()));
            }
            let identity = identity(entry.name, entry.role, entry.projects, entry.expires);
            Ok((Shown::Certificate(entry.subject), identity.map_err(problem)?, ("certificates", position)))
        });
        for read in tokens.chain(certificates) {
            let (shown, identity, (kind, position)) = read?;
            if all.insert(shown, Arc::new(identity)).is_some() {
                let problem = "is there already: each token and each subject is of one entry".to_owned();
                return Err(CredentialsError::Entry { kind, position, problem });
            }
        }
        Ok(Self(all))
    }

    pub(super) fn find(&self, shown: &Shown) -> Option<&Arc<Identity>> {
        self.0.get(shown)
    }
}

fn identity(
    name: String,
    role: Role,
    projects: Option<Vec<String>>,
    expires: Option<toml::value::Datetime>,
) -> Result<Identity, String> {
    check_name(&name, MAX_NAME, "._:/@-").map_err(|error| format!("`name` {error}"))?;
    if let Some(projects) = &projects {
        if role != Role::Worker {
            return Err(format!("`projects` limits workers, and the role is {role}"));
        }
        if projects.is_empty() {
            return Err("`projects` is empty: leave it out for all projects".to_owned());
        }
        for start in projects {
            check_name(start, MAX_NAME, "._:/-").map_err(|error| format!("`projects` {error}"))?;
        }
    }
    let expires = expires.map(|moment| {
        let moment = OffsetDateTime::parse(&moment.to_string(), &Rfc3339);
        let since = moment.map(|moment| moment - OffsetDateTime::UNIX_EPOCH);
        since
            .ok()
            .and_then(|since| since.try_into().ok())
            .ok_or("`expires` must be such as 2027-01-31T00:00:00Z")
    });
    Ok(Identity { name, role, projects: projects.map(Into::into), expires: expires.transpose()? })
}

/// The parser's own message shows the line, which may hold a secret. What it says of the fields' names shows none.
fn malformed(text: &str, error: &toml::de::Error) -> CredentialsError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let told = ["unknown field", "missing field", "there are the roles"];
    let message = error.message();
    let problem = if told.iter().any(|start| message.starts_with(start)) {
        message.to_owned()
    } else {
        "this is not what belongs there".to_owned()
    };
    CredentialsError::Malformed { line, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_token_and_a_certificate_are_found_by_what_a_request_shows() {
        let file = format!(
            "[[tokens]]\nname = 'deploy'\nsha256 = '{HASH}'\nrole = 'worker'\nprojects = ['shop-', 'blog/']\n\
             expires = 2027-01-31T00:00:00Z\n\
             [[certificates]]\nname = 'console'\nsubject = 'CN=console'\nrole = 'viewer'\n"
        );
        let credentials = Credentials::parse(file.as_bytes()).unwrap();
        let deploy = credentials.find(&Shown::Token(TokenHash::of(b"abc"))).unwrap();
        assert_eq!((deploy.name.as_str(), deploy.role), ("deploy", Role::Worker));
        assert_eq!(deploy.projects.as_deref().unwrap(), ["shop-", "blog/"]);
        assert_eq!(deploy.expires, Some(Duration::from_hours(500_376)));
        let console = credentials.find(&Shown::Certificate("CN=console".to_owned())).unwrap();
        assert_eq!((console.name.as_str(), console.role, console.expires), ("console", Role::Viewer, None));
        assert!(credentials.find(&Shown::Token(TokenHash::of(b"abcd"))).is_none());
    }

    #[test]
    fn what_makes_no_sense_is_told_by_its_place_and_not_repeated() {
        let entry =
            |rest: &str| format!("[[tokens]]\nname = 'a'\nsha256 = '{HASH}'\nrole = 'worker'\n{rest}");
        for (file, told) in [
            ("[[tokens]\n".to_owned(), "line 1: this is not what belongs there"),
            ("[[tokens]]\nname = 'a'\ntoken = 'ra_hunter2'\n".to_owned(), "unknown field `token`"),
            (format!("[[tokens]]\nname = 'a'\nsha256 = '{HASH}'\n"), "missing field `role`"),
            (entry("projects = 'ra_hunter2'\n"), "line 5: this is not what belongs there"),
            (entry("expires = 2027-01-31\n"), "tokens 1: `expires` must be such as"),
            (entry("projects = []\n"), "tokens 1: `projects` is empty"),
            (entry("projects = ['/']\n"), "tokens 1: `projects` must be of letters"),
            (entry("").replace("worker", "root"), "there are the roles"),
            (entry("").replace("'a'", "'ra_hunter2 x'"), "tokens 1: `name` must be of letters"),
            (entry("").replace(HASH, "ra_hunter2"), "tokens 1: `sha256` must be the 64"),
            (entry("projects = ['a']").replace("worker", "viewer"), "tokens 1: `projects` limits workers"),
            (entry("") + &entry(""), "tokens 2: is there already"),
            (
                "[[certificates]]\nname = 'a'\nsubject = 'hunter2'\nrole = 'admin'\n".to_owned(),
                "certificates 1: `subject` must be URI:…, DNS:… or CN=…",
            ),
        ] {
            let error = Credentials::parse(file.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(told), "{file}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
