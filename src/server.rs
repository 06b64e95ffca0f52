//! The service: its parts wired together, its listener, its health and its end.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use sqlx::migrate::MigrateError;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{
    service::{LayerExt as _, Routes},
    transport::Server,
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::util::MapResponseLayer;

use crate::{
    allocator::{Allocator, AllocatorOptions},
    api::{Api, prepared::with_prepared_body, request_id::RequestIdLayer, transport_errors::with_reason},
    auth::Gate,
    domain::{policy::PolicyPatch, request::Strategy},
    events::{Hub, WatchOptions},
    http::{self, Origin, Readiness, metrics::Scraped},
    listener::{self, Certificates, ConnectionLimits, ListenerOptions, TlsFiles},
    proto::{
        FILE_DESCRIPTOR_SET,
        v1::{
            self,
            resource_allocator_server::{ResourceAllocatorServer, SERVICE_NAME as ALLOCATOR},
            server_inventory_server::{SERVICE_NAME as INVENTORY, ServerInventoryServer},
        },
    },
    shutdown::Shutdown,
    store::{self, Store, StoreError, StoreOptions, pools},
    telemetry,
};

/// How often health looks at the database, and how long the database may take to answer.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// How large a question of a probe may be.
const MAX_PROBE_BYTES: usize = 1 << 10;
/// How long the last transaction may take once every connection is closed, or had its time.
const LAST_COMMIT: Duration = Duration::from_secs(3);

/// What a service is made of.
#[derive(Debug)]
pub struct ServerOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What the listener takes.
    pub listener: ListenerOptions,
    /// The certificates, where TLS is spoken.
    pub tls: Option<TlsFiles>,
    /// Whether the schema is another role's to migrate, and must be up to date.
    pub no_migrate: bool,
    /// How many calls a second a caller may make; none where any number.
    pub max_call_rate: Option<NonZeroU32>,
    /// The file of credentials, where callers need some.
    pub auth_tokens: Option<PathBuf>,
    /// Where to serve figures for Prometheus; nowhere without it.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether to listen beyond loopback although TLS or authentication is missing.
    pub insecure_allow_remote: bool,
    /// How long requests under way may take once the service is told to stop.
    pub drain_timeout: Duration,
    /// The origins whose pages may call from a browser.
    pub cors_origins: Vec<Origin>,
    /// The database.
    pub store: StoreOptions,
    /// The allocator.
    pub allocator: AllocatorOptions,
    /// How watchers are treated.
    pub watch: WatchOptions,
    /// Which server is chosen where a request does not say.
    pub strategy: Strategy,
    /// What is changed of the fleet's policy at start.
    pub policy: PolicyPatch,
    /// Servers to register at start.
    pub inventory: Vec<v1::Server>,
}

/// A service that serves.
#[derive(Debug)]
pub struct RunningServer {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<anyhow::Result<()>>,
}

impl RunningServer {
    /// Waits until the service has stopped, as `shutdown` told it.
    ///
    /// # Errors
    /// When it stopped for another reason.
    pub async fn stopped(self) -> anyhow::Result<()> {
        self.task.await.context("the service's task ended early")?
    }
}

/// Starts a service: binds, migrates, registers the inventory, and serves until `shutdown`.
///
/// # Errors
/// What stands in its way, in one line.
pub async fn start(options: ServerOptions, shutdown: Shutdown) -> anyhow::Result<RunningServer> {
    let clients_show_certificates = options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    refuse_exposure(&options, clients_show_certificates)?;
    let gate = Gate::new(options.auth_tokens, clients_show_certificates);
    let gate = gate.context("cannot take the credentials of --auth-tokens")?;
    let certificates = options.tls.map(Certificates::follow).transpose().context("cannot speak TLS")?;
    let metrics = match options.metrics_listen {
        Some(address) => Some((bind(address).await?, telemetry::metrics::install()?)),
        None => None,
    };
    let listener = bind(options.listen).await?;
    let address = listener.local_addr()?;

    let place = store::place(&options.store.connect);
    let store = Store::new(options.store);
    prepare_schema(&store, &place, options.no_migrate).await?;
    let (pool, token_key) = first_look(&store).await.context("cannot read the database")?;

    let (allocator, mut allocating) = Allocator::start(store.clone(), options.allocator);
    if options.policy != PolicyPatch::default() {
        let changed = allocator.update_policy(options.policy, "flags-at-start".to_owned()).await;
        changed.context("cannot set the fleet's policy")?;
    }
    let hub = Hub::start(store.clone(), options.watch, allocator.announced(), shutdown.soft.clone());
    let api = Api::new(allocator.clone(), hub.clone(), &token_key, pool.epoch, options.strategy);
    for server in options.inventory {
        let handle = server.handle.clone();
        api.register_at_start(server).await.with_context(|| format!("cannot register server `{handle}`"))?;
    }

    let (reporter, health_service) = tonic_health::server::health_reporter();
    let (readiness, readable) = watch::channel(Readiness::Ready);
    let health = Health { reporter, readiness };
    health.set(Readiness::Ready).await;
    let watch_health = tokio::spawn(watch_health(store.clone(), health.clone()));

    let limits = options.listener.connection;
    if let Some((listener, recorder)) = metrics {
        let scheme = if certificates.is_some() { "https" } else { "http" };
        tracing::info!("figures for Prometheus at {scheme}://{}/metrics", listener.local_addr()?);
        let (store, readiness) = (store.clone(), readable.clone());
        tokio::spawn(http::metrics::keep_up(recorder.clone(), shutdown.soft.clone()));
        let scraped = Scraped {
            allocator,
            hub,
            store,
            readiness,
            recorder,
            dropped_lines: telemetry::log::dropped_lines,
        };
        let routes = http::metrics::routes(scraped, api.clone(), gate.clone());
        let incoming = listener::incoming(listener, certificates.clone(), options.listener);
        // It ends first on a stop: who scrapes keeps a connection, and with it the allocator.
        let serving = limited(&limits).layer(RequestIdLayer).add_routes(routes);
        tokio::spawn(serving.serve_with_incoming_shutdown(incoming, shutdown.soft.clone().cancelled_owned()));
    }

    let allocations =
        ResourceAllocatorServer::new(api.clone()).max_decoding_message_size(limits.max_message_bytes);
    // Anyone may ask it, and what it is asked is the name of a service.
    let routes = Routes::new(health_service.max_decoding_message_size(MAX_PROBE_BYTES))
        .add_service(MapResponseLayer::new(with_prepared_body).named_layer(allocations))
        .add_service(
            ServerInventoryServer::new(api.clone()).max_decoding_message_size(limits.max_message_bytes),
        )
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let routes = http::routes(routes, api, readable, options.cors_origins, gate, options.max_call_rate);
    let incoming = listener::incoming(listener, certificates, options.listener);
    let serving =
        limited(&limits).layer(RequestIdLayer).layer(MapResponseLayer::new(with_reason)).add_routes(routes);
    let soft = shutdown.soft.clone();
    let task = tokio::spawn(async move {
        let stop = {
            let health = health.clone();
            async move {
                soft.cancelled().await;
                // Balancers see this first, and send no more.
                watch_health.abort();
                health.set(Readiness::ShuttingDown).await;
            }
        };
        let serve = serving.serve_with_incoming_shutdown(incoming, stop);
        tokio::select! {
            served = drain(serve, &shutdown, options.drain_timeout) => served?,
            // A replica that cannot allocate any more is better started anew than left to say so to every caller.
            Some(_) = allocating.join_next() => bail!("the allocator failed; its message is above"),
        }
        // The last handle of the allocator went with the server; what waited in its queue is committed.
        tokio::select! {
            () = async { while allocating.join_next().await.is_some() {} } => {}
            () = shutdown.hard.cancelled() => {}
            () = tokio::time::sleep(LAST_COMMIT) => {
                tracing::warn!("requests were still waiting when the time to stop was over");
            }
        }
        let _ = tokio::time::timeout(HEALTH_TIMEOUT, store.close()).await;
        Ok(())
    });
    Ok(RunningServer { address, task })
}

/// Brings the schema up to date, or looks that another role did.
async fn prepare_schema(store: &Store, place: &str, no_migrate: bool) -> anyhow::Result<()> {
    let failed = |error| migration_failed(&error, place);
    if !no_migrate {
        return store.migrate().await.map_err(failed);
    }
    let missing = store.missing_migrations().await.map_err(failed)?;
    let (Some(first), Some(last)) = (missing.first(), missing.last()) else { return Ok(()) };
    bail!(
        "migrations are missing, {first} to {last}; run `resource-allocator migrate` as a role that may change the schema"
    )
}

/// What each connection may cost.
fn limited(limits: &ConnectionLimits) -> Server {
    let server = Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(limits.max_streams)
        .http2_max_header_list_size(limits.max_header_bytes)
        .http2_keepalive_interval(Some(limits.keepalive_interval))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        .http2_max_pending_accept_reset_streams(Some(limits.max_pending_resets));
    // With a grace, tonic would tell the client nothing, and end the connection with it: the listener does that.
    match limits.max_age {
        Some(age) => server.max_connection_age(age),
        None => server,
    }
}

/// Whoever reaches a port that is not loopback's must show who they are, and must not be overheard (L38).
fn refuse_exposure(options: &ServerOptions, clients_show_certificates: bool) -> anyhow::Result<()> {
    let mut listens = [Some(options.listen), options.metrics_listen].into_iter().flatten();
    let Some(exposed) = listens.find(|address| !address.ip().is_loopback()) else {
        return Ok(());
    };
    let authenticates = options.auth_tokens.is_some() || clients_show_certificates;
    let missing = match (options.tls.is_some(), authenticates) {
        _ if options.insecure_allow_remote => return Ok(()),
        (true, true) => return Ok(()),
        (true, false) => "there is no authentication (--auth-tokens or --tls-client-ca)",
        (false, true) => "there is no TLS (--tls-certificate and --tls-key)",
        (false, false) => {
            "there is neither TLS (--tls-certificate and --tls-key) nor authentication (--auth-tokens)"
        }
    };
    bail!(
        "{exposed} is not a loopback address, and {missing}; give it that, listen on 127.0.0.1, or say --insecure-allow-remote if the network itself keeps strangers out"
    )
}

/// Serves until told to stop, then as long as the drain may take: a client that does not answer cannot hold it up (L43).
async fn drain(
    serve: impl Future<Output = Result<(), tonic::transport::Error>>,
    shutdown: &Shutdown,
    limit: Duration,
) -> anyhow::Result<()> {
    let over = async {
        shutdown.soft.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(limit) => tracing::warn!(?limit, "connections were still open when the time to stop was over"),
            () = shutdown.hard.cancelled() => tracing::warn!("stopping at once"),
        }
    };
    tokio::select! {
        served = serve => served.context("the listener failed"),
        () = over => Ok(()),
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn first_look(store: &Store) -> Result<(pools::PoolState, Vec<u8>), StoreError> {
    let mut conn = store.acquire().await?;
    if pools::settle_home(&mut conn).await? {
        tracing::warn!(
            "this database was restored or copied: its log is another history now, and watchers are told so"
        );
    }
    Ok((pools::find(&mut conn).await?, pools::find_token_key(&mut conn).await?))
}

/// One line for what an operator can meet when a database is migrated.
#[must_use]
pub fn migration_failed(error: &MigrateError, place: &str) -> anyhow::Error {
    match error {
        MigrateError::VersionMissing(version) => anyhow!(
            "the database was migrated by a newer release (migration {version} is not one of ours); run that release"
        ),
        MigrateError::VersionMismatch(version) => anyhow!(
            "migration {version} in the database differs from ours; this is a database of another build of the service"
        ),
        MigrateError::Dirty(version) => {
            anyhow!("migration {version} was left half done; repair the database by hand")
        }
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => match source {
            sqlx::Error::Database(refused) if refused.code().as_deref() == Some("25006") => {
                anyhow!("the database is read-only; name the primary in --database-url")
            }
            sqlx::Error::Database(refused) => anyhow!("the database refuses: {}", refused.message()),
            source => anyhow!("cannot reach the database {place}: {source}"),
        },
        other => anyhow!("cannot migrate the database: {other}"),
    }
}

/// What the service says of itself to those that ask, by gRPC and by HTTP.
#[derive(Debug, Clone)]
struct Health {
    reporter: HealthReporter,
    readiness: watch::Sender<Readiness>,
}

impl Health {
    async fn set(&self, readiness: Readiness) {
        let status = match readiness {
            Readiness::Ready => ServingStatus::Serving,
            Readiness::DatabaseUnavailable | Readiness::ShuttingDown => ServingStatus::NotServing,
        };
        self.readiness.send_replace(readiness);
        for service in ["", ALLOCATOR, INVENTORY] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// SERVING only while the database answers and takes writes.
async fn watch_health(store: Store, health: Health) {
    let mut was = Readiness::Ready;
    loop {
        tokio::time::sleep(HEALTH_INTERVAL).await;
        let answers = matches!(tokio::time::timeout(HEALTH_TIMEOUT, store.ping()).await, Ok(Ok(())));
        let is = if answers { Readiness::Ready } else { Readiness::DatabaseUnavailable };
        if is != was {
            tracing::warn!(readiness = ?is, "the health of the service changed with its database");
            health.set(is).await;
            was = is;
        }
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        // Without it, grpcurl cannot show the details of an error.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
