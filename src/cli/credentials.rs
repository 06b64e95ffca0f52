//! What a client shows of itself, and whom it believes: certificates and a token. A token is never a flag: any user of the machine
//! can read those of a process.

use std::{env, net::IpAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Identity, Uri},
};

use super::error::CliError;

/// The variable that holds a token.
const TOKEN: &str = "RESOURCE_ALLOCATOR_TOKEN";

/// The flags about TLS and tokens.
#[derive(Debug, Clone, Args)]
pub struct CredentialArgs {
    /// The authorities to believe for an https:// endpoint (PEM) [default: those that browsers believe]
    #[arg(long, global = true, value_name = "FILE", env = "RESOURCE_ALLOCATOR_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// The client's own certificate (PEM), for a service that asks for one
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "RESOURCE_ALLOCATOR_CLIENT_CERTIFICATE",
        requires = "tls_key"
    )]
    pub tls_certificate: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "RESOURCE_ALLOCATOR_CLIENT_KEY",
        requires = "tls_certificate"
    )]
    pub tls_key: Option<PathBuf>,
    /// A file that holds the token to call with; the variable `RESOURCE_ALLOCATOR_TOKEN` holds one itself
    #[arg(long, global = true, value_name = "FILE", env = "RESOURCE_ALLOCATOR_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

impl CredentialArgs {
    /// How TLS is spoken with an endpoint; none where it is not.
    ///
    /// # Errors
    /// When a file cannot be read, or a flag is for TLS and the endpoint is not.
    pub fn tls(&self, endpoint: &Uri) -> Result<Option<ClientTlsConfig>, CliError> {
        if !is_https(endpoint) {
            let given = [
                ("--tls-ca or RESOURCE_ALLOCATOR_TLS_CA", &self.tls_ca),
                ("--tls-certificate or RESOURCE_ALLOCATOR_CLIENT_CERTIFICATE", &self.tls_certificate),
            ];
            // Whoever names one of them takes it that TLS is spoken.
            return match given.into_iter().find(|(_, file)| file.is_some()) {
                Some((flag, _)) => Err(CliError::Usage(format!(
                    "{flag} is given, and {} speaks no TLS: name an https:// endpoint, or leave that out",
                    shown(endpoint)
                ))),
                None => Ok(None),
            };
        }
        let mut config = ClientTlsConfig::new();
        config = match &self.tls_ca {
            Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
            None => config.with_webpki_roots(),
        };
        if let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(Some(config))
    }

    /// What the header `authorization` says to an endpoint; none without a token.
    ///
    /// # Errors
    /// When the file cannot be read, the token is none, or others could read it on its way.
    pub fn authorization(&self, endpoint: &Uri) -> Result<Option<MetadataValue<Ascii>>, CliError> {
        let token = match &self.token_file {
            Some(path) => {
                let text = String::from_utf8(read(path)?);
                let text = text.map_err(|_| CliError::Usage(format!("{} holds no token", path.display())))?;
                SecretString::from(text)
            }
            None => match env::var(TOKEN) {
                Ok(text) if !text.is_empty() => SecretString::from(text),
                Ok(_) | Err(env::VarError::NotPresent) => return Ok(None),
                Err(env::VarError::NotUnicode(_)) => {
                    return Err(CliError::Usage(format!("{TOKEN} is not UTF-8")));
                }
            },
        };
        if !is_https(endpoint) && !is_loopback(endpoint) {
            return Err(CliError::Usage(format!(
                "the token would go to {} in clear text, for anyone on the way to read: name an https:// endpoint, or call without a token",
                shown(endpoint)
            )));
        }
        let value = format!("Bearer {}", token.expose_secret().trim());
        // What the parser says could repeat the token.
        let mut value: MetadataValue<Ascii> = value
            .parse()
            .map_err(|_| CliError::Usage("the token has characters that no token has".to_owned()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn is_https(endpoint: &Uri) -> bool {
    endpoint.scheme_str() == Some("https")
}

/// Whether what is sent there stays on this machine.
fn is_loopback(endpoint: &Uri) -> bool {
    let host = endpoint.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An endpoint as people write it.
pub fn shown(endpoint: &Uri) -> String {
    endpoint.to_string().trim_end_matches('/').to_owned()
}

fn read(path: &PathBuf) -> Result<Vec<u8>, CliError> {
    Ok(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_what_no_other_machine_can_be() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:50051", true),
            ("http://127.8.9.1", true),
            ("http://[::1]:50051/", true),
            ("http://localhost:50051", true),
            ("http://LOCALHOST", true),
            ("http://0.0.0.0:50051", false),
            ("http://10.0.0.1:50051", false),
            ("http://[::ffff:10.0.0.1]", false),
            ("http://allocator:50051", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("http://localhost@allocator", false),
        ] {
            assert_eq!(is_loopback(&endpoint.parse().unwrap()), expected, "{endpoint}");
        }
    }
}
