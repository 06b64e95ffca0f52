//! Tokens that callers hold and hand back: opaque, and signed with a key that every replica reads from the database, so that a
//! forged one is told from ours.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// The length of an HMAC-SHA-256.
const TAG_BYTES: usize = 32;
/// No token of ours is longer.
const MAX_LENGTH: usize = 2048;

/// The token is not one that this service gave for this purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a token that this service gave for this")]
pub struct ForgedToken;

/// What a token is for; one is never taken for another.
pub trait Purpose: Serialize + DeserializeOwned {
    /// Its name, part of what is signed.
    const NAME: &'static str;
}

/// Where a watch resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeToken {
    /// The history of the log.
    #[serde(rename = "e")]
    pub epoch: Uuid,
    /// The number of the last event that was seen.
    #[serde(rename = "s")]
    pub sequence: i64,
}

impl Purpose for ResumeToken {
    const NAME: &'static str = "resume";
}

/// Where the next page of a list starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageToken {
    /// The [`filter_key`] of the list, whose filters a later page must repeat.
    #[serde(rename = "f")]
    pub filter: String,
    /// The key of the last item.
    #[serde(rename = "a")]
    pub after: Vec<String>,
    /// The number of the newest event that the first page included.
    #[serde(rename = "s")]
    pub sequence: i64,
}

impl Purpose for PageToken {
    const NAME: &'static str = "page";
}

/// Stands for a list and its filters in a token; the filters themselves may be longer than a token.
#[must_use]
pub fn filter_key(filters: &impl fmt::Debug) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, format!("{filters:?}").as_bytes()))
}

/// Makes and reads tokens.
pub struct Tokens {
    key: hmac::Key,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// Tokens signed with `key`.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    fn signed<P: Purpose>(payload: &[u8]) -> Vec<u8> {
        [P::NAME.as_bytes(), &[0], payload].concat()
    }

    /// Makes a token.
    #[must_use]
    pub fn seal<P: Purpose>(&self, content: &P) -> String {
        // Serialising plain strings and numbers into memory cannot fail; an empty token would be refused when it comes back.
        let mut token = serde_json::to_vec(content).unwrap_or_default();
        let tag = hmac::sign(&self.key, &Self::signed::<P>(&token));
        token.extend_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`ForgedToken`] when it is not one of ours for this purpose.
    pub fn open<P: Purpose>(&self, token: &str) -> Result<P, ForgedToken> {
        if token.len() > MAX_LENGTH {
            return Err(ForgedToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| ForgedToken)?;
        let (payload, tag) =
            bytes.len().checked_sub(TAG_BYTES).map(|at| bytes.split_at(at)).ok_or(ForgedToken)?;
        hmac::verify(&self.key, &Self::signed::<P>(payload), tag).map_err(|_| ForgedToken)?;
        serde_json::from_slice(payload).map_err(|_| ForgedToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> ResumeToken {
        ResumeToken { epoch: Uuid::from_u128(7), sequence: 42 }
    }

    #[test]
    fn a_token_comes_back_as_it_was_given() {
        let tokens = Tokens::new(&[1; 32]);
        assert_eq!(tokens.open(&tokens.seal(&token())), Ok(token()));
    }

    #[test]
    fn a_token_that_was_touched_or_is_for_something_else_is_refused() {
        let tokens = Tokens::new(&[1; 32]);
        let sealed = tokens.seal(&token());
        for position in 0..sealed.len() {
            let mut forged = sealed.clone().into_bytes();
            forged[position] = if forged[position] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(tokens.open::<ResumeToken>(&forged), Err(ForgedToken), "{forged}");
        }
        assert_eq!(Tokens::new(&[2; 32]).open::<ResumeToken>(&sealed), Err(ForgedToken));
        let page = tokens.seal(&PageToken { filter: String::new(), after: vec![], sequence: 1 });
        assert_eq!(tokens.open::<ResumeToken>(&page), Err(ForgedToken));
        for garbage in ["", "x", "🙂", "AAAA", &"A".repeat(5000)] {
            assert_eq!(tokens.open::<ResumeToken>(garbage), Err(ForgedToken));
        }
    }
}
