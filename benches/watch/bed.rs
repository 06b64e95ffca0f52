//! What is measured: two replicas as processes, over one Postgres.

use resource_allocator::{
    postgres::Cluster,
    proto::v1::{
        self, resource_allocator_client::ResourceAllocatorClient,
        server_inventory_client::ServerInventoryClient,
    },
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{raw, support};

/// Servers with room and ports for whatever is placed.
const SERVERS: usize = 64;

/// A replica, and how it is reached.
pub struct Replica(support::Replica);

impl Replica {
    fn start(url: &str) -> Self {
        Self(support::Replica::start(url, &[]).expect("the service starts"))
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Channel {
        let endpoint = Channel::from_shared(self.0.endpoint.clone()).expect("an address");
        endpoint.tcp_nodelay(true).connect().await.expect("the service answers")
    }

    /// A connection with a watcher for each request.
    pub async fn watch(&self, requests: &[v1::WatchAllocationsRequest]) -> raw::Connection {
        let address = self.0.endpoint.trim_start_matches("http://");
        raw::Connection::open(address, requests).await.expect("the watches open")
    }

    /// A client over a connection of its own.
    pub async fn client(&self) -> ResourceAllocatorClient<Channel> {
        ResourceAllocatorClient::new(self.connect().await)
    }
}

/// The replicas and their database. Fields are dropped in this order.
pub struct Bed {
    /// Both replicas.
    pub replicas: [Replica; 2],
    /// For what is looked at by SQL.
    pub sql: PgPool,
    /// The database, for programs.
    pub url: String,
    _cluster: Cluster,
    _folder: TempDir,
}

impl Bed {
    /// Starts everything, on an empty database with servers.
    pub async fn start() -> Self {
        let started = tokio::task::spawn_blocking(|| support::start_postgres(&[])).await.expect("no panic");
        let (cluster, folder) =
            started.unwrap_or_else(|refusal| panic!("the figures need a Postgres: {refusal}"));
        let url = cluster.url(resource_allocator::postgres::DATABASE);
        let replicas = [Replica::start(&url), Replica::start(&url)];
        let sql = PgPoolOptions::new().max_connections(2).connect(&url).await.expect("the database answers");
        let bed = Self { replicas, sql, url, _cluster: cluster, _folder: folder };
        bed.register().await;
        bed
    }

    async fn register(&self) {
        let mut inventory = ServerInventoryClient::new(self.replicas[0].connect().await);
        for number in 0..SERVERS {
            let capacity = v1::Resources {
                cpu_millis: Some(1_000_000),
                ram_mb: Some(1_000_000_000),
                disk_mb: Some(1_000_000_000),
            };
            let server = v1::Server {
                handle: format!("server-{number:02}"),
                address: "192.0.2.1".to_owned(),
                capacity: Some(capacity),
                ..Default::default()
            };
            let request = v1::RegisterServerRequest { server: Some(server) };
            inventory.register_server(request).await.expect("it is registered");
        }
    }
}
