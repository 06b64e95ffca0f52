//! The other end of a connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// What the name of a subject begins with, as certificates are told to people.
const COMMON_NAME: &str = "CN=";

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// The certificate that it has proved to be its own, where it showed one.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// How many connections there may be, where this is one more.
    pub beyond: Option<usize>,
}

/// What a client's certificate says of it. Its authority was checked in the handshake.
#[derive(Debug)]
pub struct PeerCertificate {
    /// Whom it is of, the most telling name first: `URI:…`, `DNS:…`, `CN=…`.
    pub names: Vec<String>,
    /// Until when it counts, as the time since 1970.
    pub not_after: Duration,
}

impl Peer {
    /// The other end, by the certificate that it showed (DER). One that cannot be read tells nothing, and so names nobody.
    #[must_use]
    pub fn new(address: SocketAddr, certificate: Option<&[u8]>) -> Self {
        let read = certificate.and_then(PeerCertificate::read);
        Self { address, certificate: read.map(Arc::new), beyond: None }
    }
}

impl PeerCertificate {
    fn read(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let subject = certificate.tbs_certificate();
        let alternatives = match subject.get_extension::<SubjectAltName>() {
            Ok(Some((_, alternatives))) => alternatives.0,
            Ok(None) => Vec::new(),
            Err(_) => return None,
        };
        let uris = alternatives.iter().filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(format!("URI:{}", uri.as_str())),
            _ => None,
        });
        let hosts = alternatives.iter().filter_map(|name| match name {
            GeneralName::DnsName(host) => Some(format!("DNS:{}", host.as_str())),
            _ => None,
        });
        let common = subject.subject().iter().map(ToString::to_string);
        let common = common.filter(|name| name.starts_with(COMMON_NAME));
        Some(Self {
            names: uris.chain(hosts).chain(common).collect(),
            not_after: subject.validity().not_after.to_unix_duration(),
        })
    }
}
