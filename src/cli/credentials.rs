//! What a client shows of itself, and whom it believes: certificates and a token. A token is never a flag: any user of the machine
//! can read those of a process.

use std::{env, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Identity},
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
    pub fn tls(&self, scheme: Option<&str>) -> Result<Option<ClientTlsConfig>, CliError> {
        if scheme != Some("https") {
            // From the environment they may be for other endpoints; a key that is not used does no harm.
            return Ok(None);
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

    /// What the header `authorization` says; none without a token.
    ///
    /// # Errors
    /// When the file cannot be read, or the token is none.
    pub fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, CliError> {
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
        let value = format!("Bearer {}", token.expose_secret().trim());
        // What the parser says could repeat the token.
        let mut value: MetadataValue<Ascii> = value
            .parse()
            .map_err(|_| CliError::Usage("the token has characters that no token has".to_owned()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, CliError> {
    Ok(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
}
