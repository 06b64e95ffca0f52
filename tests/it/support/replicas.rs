//! Two replicas on one database.

use resource_allocator::{server::RunningServer, shutdown::Shutdown};

use super::{Client, TestService};

/// A service, and a second replica on its database.
pub struct Replicas {
    /// The first, with its database.
    pub service: TestService,
    other: Client,
    _running: (RunningServer, Shutdown),
}

impl Replicas {
    /// Starts both.
    pub async fn start() -> Self {
        let service = TestService::start().await;
        let (running, other, shutdown) = TestService::builder().start_replica(&service.database).await;
        Self { service, other, _running: (running, shutdown) }
    }

    /// A client of each.
    pub fn clients(&self) -> (Client, Client) {
        (self.service.client.clone(), self.other.clone())
    }
}
