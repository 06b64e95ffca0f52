//! A service in the test's own process, on a port of its own, with generated clients.

use std::{collections::HashMap, num::NonZeroU32, path::PathBuf, time::Duration};

use resource_allocator::{
    allocator::AllocatorOptions,
    domain::{policy::PolicyPatch, request::Strategy},
    events::WatchOptions,
    http::Origin,
    listener::{ListenerOptions, TlsFiles},
    proto::v1::{
        self, resource_allocator_client::ResourceAllocatorClient,
        server_inventory_client::ServerInventoryClient,
    },
    server::{self, RunningServer, ServerOptions},
    shutdown::Shutdown,
    store::StoreOptions,
};
use sqlx::postgres::PgConnectOptions;
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::TestDatabase;

/// What a test may set of its service.
pub struct TestServiceBuilder {
    /// The allocator.
    pub allocator: AllocatorOptions,
    /// How watchers are treated.
    pub watch: WatchOptions,
    /// Which server is chosen where a request does not say.
    pub strategy: Strategy,
    /// How long a stop may take.
    pub drain_timeout: Duration,
    /// The origins whose pages may call.
    pub cors_origins: Vec<Origin>,
    /// What the listener takes.
    pub listener: ListenerOptions,
    /// The certificates, where TLS is spoken.
    pub tls: Option<TlsFiles>,
    /// The file of credentials, where callers need some.
    pub auth_tokens: Option<PathBuf>,
    /// How many calls a second a caller may make.
    pub max_call_rate: Option<NonZeroU32>,
}

impl TestServiceBuilder {
    /// Starts the service on a database of its own.
    pub async fn start(self) -> TestService {
        self.start_on(TestDatabase::create().await).await
    }

    /// Starts the service on this database.
    pub async fn start_on(self, database: TestDatabase) -> TestService {
        let (running, client, shutdown) = self.start_replica(&database).await;
        TestService { client, running, shutdown, database }
    }

    /// Starts a replica on a database that others may use too.
    pub async fn start_replica(self, database: &TestDatabase) -> (RunningServer, Client, Shutdown) {
        self.start_at(database.connect_options()).await
    }

    /// Starts a service on a database that is somewhere else.
    pub async fn start_at(self, connect: PgConnectOptions) -> (RunningServer, Client, Shutdown) {
        let (running, shutdown) = self.serve(connect).await;
        let client = Client::connect(&format!("http://{}", running.address)).await;
        (running, client, shutdown)
    }

    /// Starts a service without a client: for tests about who may connect.
    pub async fn serve(self, connect: PgConnectOptions) -> (RunningServer, Shutdown) {
        let shutdown = Shutdown::default();
        let options = ServerOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            listener: self.listener,
            tls: self.tls,
            auth_tokens: self.auth_tokens,
            metrics_listen: None,
            no_migrate: false,
            max_call_rate: self.max_call_rate,
            insecure_allow_remote: false,
            drain_timeout: self.drain_timeout,
            cors_origins: self.cors_origins,
            store: StoreOptions { connect, max_connections: 16, acquire_timeout: Duration::from_secs(5) },
            allocator: self.allocator,
            watch: self.watch,
            strategy: self.strategy,
            policy: PolicyPatch::default(),
            inventory: Vec::new(),
        };
        let running = server::start(options, shutdown.clone()).await.unwrap();
        (running, shutdown)
    }
}

/// A running service, its database and a client of it.
pub struct TestService {
    /// The clients.
    pub client: Client,
    /// The service.
    pub running: RunningServer,
    /// Tells it to stop.
    pub shutdown: Shutdown,
    /// Its database; last, so that it is dropped last.
    pub database: TestDatabase,
}

impl TestService {
    /// A service as users start it.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A service with something set otherwise.
    pub fn builder() -> TestServiceBuilder {
        TestServiceBuilder {
            allocator: AllocatorOptions::default(),
            watch: WatchOptions::default(),
            strategy: Strategy::Spread,
            drain_timeout: Duration::from_secs(5),
            cors_origins: Vec::new(),
            listener: ListenerOptions::default(),
            tls: None,
            auth_tokens: None,
            max_call_rate: None,
        }
    }
}

/// Generated clients of both services over one connection.
#[derive(Clone)]
pub struct Client {
    /// The connection.
    pub channel: Channel,
    /// Placement.
    pub allocator: ResourceAllocatorClient<Channel>,
    /// Inventory.
    pub inventory: ServerInventoryClient<Channel>,
}

impl Client {
    /// Connects.
    pub async fn connect(endpoint: &str) -> Self {
        Self::over(Channel::from_shared(endpoint.to_owned()).unwrap().connect().await.unwrap())
    }

    /// Calls over this connection.
    pub fn over(channel: Channel) -> Self {
        Self {
            allocator: ResourceAllocatorClient::new(channel.clone()),
            inventory: ServerInventoryClient::new(channel.clone()),
            channel,
        }
    }

    /// Registers a server, which must work.
    pub async fn register(&mut self, server: v1::Server) -> v1::Server {
        let request = v1::RegisterServerRequest { server: Some(server) };
        self.inventory.register_server(request).await.unwrap().into_inner().server.unwrap()
    }

    /// Ensures a project with these modules and otherwise defaults.
    pub async fn ensure(
        &mut self,
        project_id: &str,
        modules: &[&str],
    ) -> Result<v1::EnsureAllocationResponse, Status> {
        let modules = modules
            .iter()
            .map(|name| v1::ModuleSpec { name: (*name).to_owned(), ..v1::ModuleSpec::default() })
            .collect();
        let request =
            v1::EnsureAllocationRequest { project_id: project_id.to_owned(), modules, ..Default::default() };
        self.allocator.ensure_allocation(request).await.map(tonic::Response::into_inner)
    }
}

/// A server with room for a few projects: 8192 MB RAM, 100,000 MB disk, 4 cores. Not for tests about sizes: those say theirs.
pub fn server(handle: &str) -> v1::Server {
    v1::Server {
        handle: handle.to_owned(),
        address: "192.0.2.1".to_owned(),
        capacity: Some(v1::Resources { cpu_millis: Some(4000), ram_mb: Some(8192), disk_mb: Some(100_000) }),
        ..v1::Server::default()
    }
}

/// The reason and the metadata of a refusal, which every one has.
pub fn error_info(status: &Status) -> (String, HashMap<String, String>) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "resourceallocator", "{status:?}");
    assert!(info.metadata.contains_key("disposition"), "{status:?}");
    (info.reason, info.metadata)
}

/// The paths of the bad fields of a refusal.
pub fn violations(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request();
    details
        .into_iter()
        .flat_map(|details| details.field_violations)
        .map(|violation| violation.field)
        .collect()
}
