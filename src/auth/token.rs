//! Bearer tokens.
//!
//! A token is 256 random bits, so a plain SHA-256 keeps it: there is no dictionary to try, as there is for a password, and a slow
//! hash would be paid by every call. It is looked up by its hash; how long the look takes tells of the hash at most, and nobody can
//! make tokens for a hash.

use std::fmt::{self, Write as _};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use secrecy::{ExposeSecret as _, SecretString};

/// What every token begins with, so that tools which search for secrets know one.
const PREFIX: &str = "ra_";

/// What is kept of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenHash([u8; digest::SHA256_OUTPUT_LEN]);

impl TokenHash {
    pub(super) fn of(token: &[u8]) -> Self {
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        Self(hash)
    }

    /// Reads 64 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        if digits.len() != 2 * hash.len() {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A new token. It is shown once, and nothing keeps it.
#[derive(Debug)]
pub struct Token(SecretString);

impl Token {
    /// Makes one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Self, ring::error::Unspecified> {
        let mut bits = [0; 32];
        SystemRandom::new().fill(&mut bits)?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bits)).into()))
    }

    /// The token itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What is written down of it.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hash = String::new();
        // Writing to a text cannot fail.
        let _ = write!(hash, "{}", TokenHash::of(self.expose().as_bytes()));
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_sha256sum_and_is_read_as_it_is_written() {
        let hash = TokenHash::of(b"abc");
        let told = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash.to_string(), told);
        assert_eq!(TokenHash::parse(told), Some(hash));
        assert_eq!(TokenHash::parse(&told.to_uppercase()), Some(hash));
        for text in ["", "1234", &told[1..], &format!("{told}0"), &told.replace('b', "g"), &"é".repeat(32)] {
            assert_eq!(TokenHash::parse(text), None, "{text}");
        }
    }

    #[test]
    fn tokens_differ_and_show_nothing_of_themselves() {
        let (one, other) = (Token::new().unwrap(), Token::new().unwrap());
        assert_ne!(one.expose(), other.expose());
        assert!(one.expose().starts_with(PREFIX) && one.expose().len() == 46);
        assert!(!format!("{one:?}").contains(&one.expose()[3..]));
        assert_eq!(one.hash(), TokenHash::of(one.expose().as_bytes()).to_string());
    }
}
