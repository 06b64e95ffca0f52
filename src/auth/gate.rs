//! The gate: finds a caller by what its request shows, and lets it in where its role is enough.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::{
    Caller, Credentials, CredentialsError, Denied, Peer,
    credentials::Shown,
    rules::{self, Access},
    token::TokenHash,
};
use crate::followed::{self, FollowError};

/// Lets callers in.
#[derive(Debug, Clone)]
pub struct Gate(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// Nobody needs credentials.
    Open,
    /// Whoever shows a certificate of the authorities that are believed may do everything.
    Certificates,
    /// The file says who may what.
    File(watch::Receiver<Arc<Credentials>>),
}

impl Gate {
    /// The gate of a service. `file` says who may what; without one, whoever shows a certificate may do everything where clients
    /// must show one, and otherwise everyone.
    ///
    /// # Errors
    /// When the file cannot be taken.
    pub fn new(file: Option<PathBuf>, certificates: bool) -> Result<Self, FollowError<CredentialsError>> {
        let kind = match file {
            Some(file) => Kind::File(followed::follow("credentials", vec![file], |contents| {
                Credentials::parse(&contents[0])
            })?),
            None if certificates => Kind::Certificates,
            None => Kind::Open,
        };
        Ok(Self(kind))
    }

    /// Finds who calls, and whether they may call this path. None is who calls what is open to all. `authorization` are the headers
    /// of that name.
    ///
    /// # Errors
    /// Why they may not.
    pub fn admit<'a>(
        &self,
        path: &str,
        authorization: impl IntoIterator<Item = &'a [u8]>,
        peer: Option<&Peer>,
    ) -> Result<Option<Caller>, Denied> {
        let access = rules::access(path);
        if access == Access::Open {
            return Ok(None);
        }
        let caller = self.caller(authorization.into_iter(), peer)?;
        caller.may(access)?;
        Ok(Some(caller))
    }

    fn caller<'a>(
        &self,
        mut authorization: impl Iterator<Item = &'a [u8]>,
        peer: Option<&Peer>,
    ) -> Result<Caller, Denied> {
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        let credentials = match &self.0 {
            Kind::Open => return Ok(Caller::anyone()),
            Kind::Certificates => {
                let certificate = certificate.ok_or(Denied::NoCredentials)?;
                let name = certificate.names.first().cloned().unwrap_or_default();
                return Ok(Caller::trusted(name, Some(certificate.not_after)));
            }
            Kind::File(credentials) => credentials,
        };
        // A token is what the caller means to be; the certificate may be of the machine that it runs on.
        if let Some(header) = authorization.next() {
            let token = bearer(header).filter(|_| authorization.next().is_none());
            let shown = Shown::Token(TokenHash::of(token.ok_or(Denied::MalformedAuthorization)?));
            return Caller::by(shown, None, credentials).ok_or(Denied::UnknownToken);
        }
        let certificate = certificate.ok_or(Denied::NoCredentials)?;
        let mut names = certificate.names.iter();
        names
            .find_map(|name| {
                Caller::by(Shown::Certificate(name.clone()), Some(certificate.not_after), credentials)
            })
            .ok_or_else(|| Denied::UnknownCertificate(certificate.names.join(", ")))
    }
}

/// The token of a header `authorization`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    let is_one = scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty();
    is_one.then_some(token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_rfc_6750_has_it() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        for header in [&b""[..], b"Bearer", b"Bearer ", b"Basic abc", b"abc"] {
            assert_eq!(bearer(header), None);
        }
    }
}
