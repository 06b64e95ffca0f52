//! The names that callers give to things. A value of these types is always well-formed: parsing is the only way to make one.
//!
//! Copies are cheap: a name of up to 23 bytes, as most are, lies in the value itself, and a longer one is shared.

use std::fmt;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// Why a name is malformed, in words that follow "must".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// The name is longer than its limit.
    #[error("must be at most {limit} characters")]
    TooLong {
        /// The most characters that the name may have.
        limit: usize,
    },
    /// A character is not one of those allowed.
    #[error("must be of letters A-Z a-z, digits and `{punctuation}`, first a letter or digit")]
    Character {
        /// The characters that are allowed beside letters and digits.
        punctuation: &'static str,
    },
}

/// Whether a name is 1 to `limit` ASCII letters, digits and `punctuation`, first a letter or digit.
///
/// # Errors
/// [`NameError`] says which rule is broken.
pub fn check_name(name: &str, limit: usize, punctuation: &'static str) -> Result<(), NameError> {
    let Some(first) = name.chars().next() else { return Err(NameError::Empty) };
    let allowed = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
    if !first.is_ascii_alphanumeric() || !name.chars().all(allowed) {
        return Err(NameError::Character { punctuation });
    }
    if name.len() > limit {
        return Err(NameError::TooLong { limit });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $limit:literal, $punctuation:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(SmolStr);

        impl $name {
            /// Reads a name.
            ///
            /// # Errors
            /// [`NameError`] when it is not of the allowed form.
            pub fn parse(name: &str) -> Result<Self, NameError> {
                check_name(name, $limit, $punctuation)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::parse(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    };
}

name!(
    /// A project: 1 to 128 of letters, digits and `. _ : / -`, first a letter or digit.
    ProjectId,
    128,
    "._:/-"
);
name!(
    /// A server's identity: of the same form as a project's.
    ServerHandle,
    128,
    "._:/-"
);
name!(
    /// A module of a project: 1 to 63 of letters, digits and `. _ -`, first a letter or digit.
    ModuleName,
    63,
    "._-"
);

impl ModuleName {
    /// The module that a project is taken to have when its first request names none.
    #[must_use]
    pub fn backend() -> Self {
        Self("backend".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_allowed_form_are_taken() {
        for name in ["a", "0", "hello-world-bot", "team/app:1.2_x", &"x".repeat(128)] {
            assert_eq!(ProjectId::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_of_another_form_are_refused_with_the_rule_they_break() {
        let character = NameError::Character { punctuation: "._:/-" };
        assert_eq!(ProjectId::parse(""), Err(NameError::Empty));
        assert_eq!(ProjectId::parse(&"x".repeat(129)), Err(NameError::TooLong { limit: 128 }));
        for name in ["-a", ".", "a b", "a\n", "проект", "a'; DROP TABLE servers; --", "a\0", "é"] {
            assert_eq!(ProjectId::parse(name), Err(character), "{name:?}");
        }
    }
}
