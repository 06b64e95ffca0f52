//! Certificates, and what is made of them. They are read again when their files change; connections that stand go on.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    },
};

use crate::followed::{self, FollowError};

/// What is spoken inside, in the order that is liked best.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where certificates are.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The service's certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authorities whose clients may come in, PEM. None: clients show no certificate.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may come in without a certificate although there are such authorities.
    pub client_certificate_optional: bool,
}

/// Why certificates cannot be taken. Nothing of a key is in it.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file has no certificate.
    #[error("there is no certificate in {}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file of certificates is malformed.
    #[error("a certificate in {} is malformed", path.display())]
    MalformedCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file of the key has none that can be read.
    #[error("there is no key in {}, or one that is encrypted", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key cannot be used together.
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The authorities cannot be used.
    #[error("the clients' authorities cannot be used: {0}")]
    Authorities(#[from] VerifierBuilderError),
}

/// The certificates as they are now.
#[derive(Debug, Clone)]
pub struct Certificates(watch::Receiver<Arc<ServerConfig>>);

impl Certificates {
    /// Reads the files, and again when they change.
    ///
    /// # Errors
    /// When they cannot be used as they are.
    pub fn follow(files: TlsFiles) -> Result<Self, FollowError<CertificateError>> {
        let mut paths = vec![files.certificate.clone(), files.key.clone()];
        paths.extend(files.client_ca.clone());
        let read = move |contents: &[Vec<u8>]| config(&files, contents);
        followed::follow("certificates", paths, read).map(Self)
    }

    /// What brings the next connection about.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.0.borrow()).into()
    }
}

fn config(files: &TlsFiles, contents: &[Vec<u8>]) -> Result<ServerConfig, CertificateError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match (&files.client_ca, contents.get(2)) {
        (Some(path), Some(pem)) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path, pem)? {
                roots.add(root)?;
            }
            builder.with_client_cert_verifier(verifier(roots, provider, files.client_certificate_optional)?)
        }
        _ => builder.with_no_client_auth(),
    };
    let chain = certificates(&files.certificate, &contents[0])?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1])
        .map_err(|_| CertificateError::NoKey { path: files.key.clone() })?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    // Connections live long. One that is taken up again would not show its certificate anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn verifier(
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    optional: bool,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, VerifierBuilderError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if optional { builder.allow_unauthenticated().build() } else { builder.build() }
}

fn certificates(
    path: &std::path::Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|_| CertificateError::MalformedCertificate { path: path.to_owned() })?;
    if read.is_empty() {
        return Err(CertificateError::NoCertificate { path: path.to_owned() });
    }
    Ok(read)
}
