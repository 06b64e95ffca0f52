//! What is measured: two replicas as processes, over one Postgres.

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
};

use resource_allocator::{
    postgres::{Cluster, Options},
    proto::v1::{
        self, resource_allocator_client::ResourceAllocatorClient,
        server_inventory_client::ServerInventoryClient,
    },
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tempfile::TempDir;
use tonic::transport::Channel;

/// The largest frame of HTTP/2 that watchers take: more than the default of 16 kB, for fewer calls of the kernel.
const FRAME_BYTES: u32 = 1 << 16;
/// Servers with room and ports for whatever is placed.
const SERVERS: usize = 64;

/// A replica, ended with this value.
pub struct Replica {
    child: Child,
    /// Where it listens.
    pub endpoint: String,
}

impl Replica {
    fn start(url: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_resource-allocator"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "text", "--database-url", url])
            .env("RUST_LOG", "warn,ready=info")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the service starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let address = lines
            .find_map(|line| line.split_once("listening on ").map(|(_, address)| address.trim().to_owned()))
            .expect("the service listens");
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let address: String =
            address.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
        Self { child, endpoint: format!("http://{address}") }
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Channel {
        let endpoint = Channel::from_shared(self.endpoint.clone()).expect("an address");
        endpoint.tcp_nodelay(true).connect().await.expect("the service answers")
    }

    /// A connection for watchers, which takes much at once.
    pub async fn connect_watchers(&self) -> Channel {
        let endpoint = Channel::from_shared(self.endpoint.clone()).expect("an address");
        let endpoint = endpoint.tcp_nodelay(true).max_frame_size(FRAME_BYTES);
        endpoint.connect().await.expect("the service answers")
    }

    /// A client over a connection of its own.
    pub async fn client(&self) -> ResourceAllocatorClient<Channel> {
        ResourceAllocatorClient::new(self.connect().await)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        let folder = tempfile::Builder::new().prefix("ra-bench-").tempdir_in("/tmp").expect("a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("a folder of ours");
        let mut options = Options::new(folder.path().to_owned());
        options.bin_dir = std::env::var_os("RESOURCE_ALLOCATOR_POSTGRES_BIN").map(Into::into);
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(options)).await.expect("no panic");
        let cluster = cluster.unwrap_or_else(|refusal| panic!("the figures need a Postgres: {refusal}"));
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
