//! A file of credentials for a test, and the tokens that it is of.

use std::{fmt::Write as _, fs, path::PathBuf};

use resource_allocator::auth::Token;
use tempfile::TempDir;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use resource_allocator::proto::v1::{
    resource_allocator_client::ResourceAllocatorClient, server_inventory_client::ServerInventoryClient,
};

/// A file of credentials.
pub struct CredentialFile {
    folder: TempDir,
    text: String,
}

impl CredentialFile {
    /// One that lets nobody in.
    pub fn new() -> Self {
        let file = Self { folder: super::process::folder(), text: String::new() };
        file.write();
        file
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("credentials.toml")
    }

    fn write(&self) {
        // As a whole or not at all, as whoever turns tokens over does it.
        let new = self.folder.path().join("new");
        fs::write(&new, &self.text).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// Adds a token, with further lines for its entry.
    pub fn token(&mut self, name: &str, role: &str, more: &str) -> String {
        let token = Token::new().unwrap();
        let hash = token.hash();
        writeln!(self.text, "[[tokens]]\nname = '{name}'\nsha256 = '{hash}'\nrole = '{role}'\n{more}")
            .unwrap();
        self.write();
        token.expose().to_owned()
    }

    /// Adds a name of certificates.
    pub fn certificate(&mut self, name: &str, role: &str, subject: &str) {
        let entry = format!("[[certificates]]\nname = '{name}'\nsubject = '{subject}'\nrole = '{role}'\n");
        self.text.push_str(&entry);
        self.write();
    }

    /// Gives the entry of this name an end.
    pub fn expire(&mut self, name: &str, at: &str) {
        let line = format!("name = '{name}'\n");
        assert!(self.text.contains(&line), "there is no {name}");
        self.text = self.text.replace(&line, &format!("{line}expires = {at}\n"));
        self.write();
    }

    /// Takes away all that is there.
    pub fn clear(&mut self) {
        self.text.clear();
        self.write();
    }
}

/// Shows a token with each call.
#[derive(Clone)]
pub struct Bearer(pub String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.0).parse().unwrap());
        Ok(request)
    }
}

/// Clients that show a token.
pub struct TokenClient {
    pub allocator: ResourceAllocatorClient<InterceptedService<Channel, Bearer>>,
    pub inventory: ServerInventoryClient<InterceptedService<Channel, Bearer>>,
}

impl TokenClient {
    /// Over this connection, with this token.
    pub fn new(channel: &Channel, token: &str) -> Self {
        let bearer = Bearer(token.to_owned());
        Self {
            allocator: ResourceAllocatorClient::with_interceptor(channel.clone(), bearer.clone()),
            inventory: ServerInventoryClient::with_interceptor(channel.clone(), bearer),
        }
    }
}
