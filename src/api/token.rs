//! Tokens that callers hold and hand back: opaque, and signed with a key that every replica reads from the database, so that a
//! forged one is told from ours.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

/// The length of the signature: of an HMAC-SHA-256 its first half, for every event that is told has a token.
const TAG_BYTES: usize = 16;
/// No token of ours is longer.
const MAX_LENGTH: usize = 2048;

/// The token is not one that this service gave for this purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a token that this service gave for this")]
pub struct ForgedToken;

/// What a token is for; one is never taken for another.
pub trait Purpose: Sized {
    /// Its name, part of what is signed.
    const NAME: &'static str;

    /// What is signed.
    fn to_bytes(&self) -> Vec<u8>;

    /// The same again; none where that is no such content.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

/// Where a watch resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumeToken {
    /// The history of the log.
    pub epoch: Uuid,
    /// The number of the last event that was seen.
    pub sequence: i64,
}

impl Purpose for ResumeToken {
    const NAME: &'static str = "resume";

    fn to_bytes(&self) -> Vec<u8> {
        [self.epoch.as_bytes().as_slice(), &self.sequence.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (epoch, sequence) = bytes.split_first_chunk()?;
        let sequence = i64::from_be_bytes(sequence.try_into().ok()?);
        Some(Self { epoch: Uuid::from_bytes(*epoch), sequence })
    }
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
    /// The history of the log that the first page was of; nil in a token of a replica that knew of none, and no log is of that.
    #[serde(rename = "e", default)]
    pub epoch: Uuid,
    /// The number of the newest event that the first page included.
    #[serde(rename = "s")]
    pub sequence: i64,
}

impl Purpose for PageToken {
    const NAME: &'static str = "page";

    fn to_bytes(&self) -> Vec<u8> {
        // Serialising plain strings and numbers into memory cannot fail; an empty token would be refused when it comes back.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
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

    /// The signature of what is for a purpose.
    fn sign<P: Purpose>(&self, content: &[u8]) -> [u8; TAG_BYTES] {
        let mut signing = hmac::Context::with_key(&self.key);
        signing.update(P::NAME.as_bytes());
        signing.update(&[0]);
        signing.update(content);
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&signing.sign().as_ref()[..TAG_BYTES]);
        tag
    }

    /// Makes a token.
    #[must_use]
    pub fn seal<P: Purpose>(&self, content: &P) -> String {
        let mut token = content.to_bytes();
        let tag = self.sign::<P>(&token);
        token.extend_from_slice(&tag);
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
        let (content, tag) = bytes.split_last_chunk::<TAG_BYTES>().ok_or(ForgedToken)?;
        // In constant time: how long it takes tells nothing of where they differ.
        if !bool::from(self.sign::<P>(content).ct_eq(tag)) {
            return Err(ForgedToken);
        }
        P::from_bytes(content).ok_or(ForgedToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_without_a_history_goes_on_and_is_of_none() {
        let page = PageToken::from_bytes(br#"{"f":"x","a":["shop","web"],"s":7}"#).unwrap();
        let after = vec!["shop".to_owned(), "web".to_owned()];
        assert_eq!(page, PageToken { filter: "x".to_owned(), after, epoch: Uuid::nil(), sequence: 7 });
        assert_eq!(PageToken::from_bytes(&page.to_bytes()), Some(page));
    }

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
        let page =
            tokens.seal(&PageToken { filter: String::new(), after: vec![], epoch: Uuid::nil(), sequence: 1 });
        assert_eq!(tokens.open::<ResumeToken>(&page), Err(ForgedToken));
        for garbage in ["", "x", "🙂", "AAAA", &"A".repeat(5000)] {
            assert_eq!(tokens.open::<ResumeToken>(garbage), Err(ForgedToken));
        }
    }
}
