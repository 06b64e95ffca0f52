//! Certificates for a test: an authority, and what it signs for services and for clients.

use std::{fs, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use resource_allocator::listener::TlsFiles;
use tempfile::TempDir;

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

impl Authority {
    /// An authority of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Pair {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// A service on loopback.
    pub fn service(&self) -> Pair {
        let params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client of this common name, and of a URI where one is given.
    pub fn client(&self, name: &str, uri: Option<&str>) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.subject_alt_names = uri.map(|uri| SanType::URI(uri.try_into().unwrap())).into_iter().collect();
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }
}

/// The files of a service's certificates.
pub struct CertificateFolder(TempDir);

impl CertificateFolder {
    /// Files with this certificate.
    pub fn of(pair: &Pair) -> Self {
        let folder = Self(super::process::folder());
        folder.write("service.pem", &pair.certificate);
        folder.write("service.key", &pair.key);
        folder
    }

    /// Writes a file, and says where it is.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The files as a service takes them, with the clients' authority where there is one.
    pub fn files(&self, client_ca: Option<&Authority>) -> TlsFiles {
        TlsFiles {
            certificate: self.path("service.pem"),
            key: self.path("service.key"),
            client_ca: client_ca.map(|authority| self.write("clients.pem", &authority.pem)),
            client_certificate_optional: false,
        }
    }
}
