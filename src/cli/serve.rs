//! `serve`: runs the service, on its own private Postgres unless it is given a database.

use std::{path::Path, str::FromStr as _};

use anyhow::Context as _;
use clap::Args;
use sqlx::postgres::PgConnectOptions;

use crate::{
    allocator::AllocatorOptions,
    config::{DatabaseArgs, EventArgs, LimitArgs, ListenArgs, LogArgs, PlacementArgs, TelemetryArgs},
    events::WatchOptions,
    followed, inventory_file,
    postgres::{self, Cluster},
    proto::v1,
    server::{self, ServerOptions},
    shutdown::Shutdown,
    telemetry::{
        log,
        traces::{TraceOptions, Traces},
    },
};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Leave the schema to `migrate`, run by a role that may change it: start only where nothing of it is missing
    #[arg(long, help_heading = "Database", env = "RESOURCE_ALLOCATOR_NO_MIGRATE", value_name = "BOOL", num_args = 0..=1,
        default_value_t = false, default_missing_value = "true")]
    no_migrate: bool,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    events: EventArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// What stands in its way, in one line.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let inside = runtime.enter();
    let traces = args.telemetry.otlp_endpoint.clone().map(|endpoint| {
        Traces::start(&TraceOptions { endpoint, sample_ratio: args.telemetry.trace_sample_ratio })
    });
    let traces = traces.transpose().context("cannot send traces to --otlp-endpoint")?;
    let log = log::init(args.log.log_format, traces.as_ref().map(Traces::tracer));
    if let Some((log, file)) = log.as_ref().zip(args.telemetry.log_levels.clone()) {
        log.follow(file).context("cannot take the levels of --log-levels")?;
    }
    drop(inside);
    let inventory = args.placement.inventory.as_deref().map(read_inventory).transpose()?.unwrap_or_default();
    // By this thread, which lives as long as the process: Postgres is told of the death of the thread that started it.
    let (cluster, connect) = database(&args.database)?;
    let result = runtime.block_on(async {
        let result = serve(args, connect, inventory).await;
        if let Some(traces) = traces {
            traces.finish().await;
        }
        result
    });
    if let Some(cluster) = cluster {
        cluster.stop()?;
    }
    result
}

fn read_inventory(path: &Path) -> anyhow::Result<Vec<v1::Server>> {
    let told = || format!("cannot read the inventory {}", path.display());
    let bytes = followed::content(path).with_context(told)?;
    inventory_file::parse(&bytes, inventory_file::Format::of(path).with_context(told)?).with_context(told)
}

/// The database that was named, or the private one, started.
pub(super) fn database(args: &DatabaseArgs) -> anyhow::Result<(Option<Cluster>, PgConnectOptions)> {
    if let Some(url) = &args.database_url {
        return Ok((None, url.connect_options()));
    }
    let data_dir = args.data_dir.clone().unwrap_or_else(postgres::default_data_dir);
    let options =
        postgres::Options { bin_dir: args.postgres_bin.clone(), ..postgres::Options::new(data_dir) };
    let cluster = Cluster::start(options)?;
    let url = cluster.url(postgres::DATABASE);
    let connect = PgConnectOptions::from_str(&url).context("the private Postgres has an unusable address")?;
    tracing::info!(
        data_dir = %cluster.data_dir().display(),
        psql = format!("psql '{url}'"),
        "keeping a private Postgres"
    );
    Ok((Some(cluster), connect))
}

async fn serve(args: ServeArgs, connect: PgConnectOptions, inventory: Vec<v1::Server>) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    let options = ServerOptions {
        listen: args.listen.listen,
        listener: args.limits.listener_options()?,
        tls: args.listen.tls_files(),
        no_migrate: args.no_migrate,
        max_call_rate: args.limits.max_call_rate,
        auth_tokens: args.listen.auth_tokens,
        metrics_listen: args.listen.metrics_listen,
        insecure_allow_remote: args.listen.insecure_allow_remote,
        drain_timeout: args.listen.drain_timeout,
        cors_origins: args.listen.cors_origins,
        store: args.database.store_options(connect),
        allocator: AllocatorOptions {
            usage_max_age: args.placement.usage_max_age,
            usage_required: args.placement.usage_required,
            port_rest: args.placement.port_rest,
            port_set_aside: args.placement.port_set_aside,
            event_max_age: args.events.event_max_age,
            event_limit: args.events.event_limit,
            queue_limit: usize::try_from(args.placement.queue_limit)?,
            line_limit: usize::try_from(args.placement.line_limit)?,
            ..AllocatorOptions::default()
        },
        watch: WatchOptions {
            stall_limit: args.listen.watch_stall_limit,
            commit_hints: args.listen.commit_hints,
        },
        strategy: args.placement.strategy.into(),
        policy: args.placement.policy(),
        inventory,
    };
    let running = tokio::select! {
        running = server::start(options, shutdown.clone()) => running?,
        () = shutdown.soft.cancelled() => return Ok(()),
    };
    tracing::info!(target: log::READY, "listening on {}", running.address);
    running.stopped().await?;
    tracing::info!("stopped");
    Ok(())
}
