//! `audit`: whether a database is what its own log says, read in one snapshot and changed in nothing.

use anyhow::{Context as _, bail};
use clap::Args;
use sqlx::postgres::PgConnectOptions;

use super::{
    client::OutputFormat,
    error::{CliError, EXIT_FAILURE},
    output,
    serve::database,
};
use crate::{
    allocator::{
        AllocatorOptions,
        audit::{self, Difference, Report},
    },
    config::{DatabaseArgs, LogArgs},
    postgres::{self, Cluster},
    store::{self, MIGRATOR, Store, pools},
    telemetry::log,
};

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// How to print what was found
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    #[command(flatten)]
    log: LogArgs,
}

/// Audits a database, that of a running service too.
///
/// # Errors
/// What stands in its way, or exit code 1 when something is not as it should be.
pub fn run(args: &AuditArgs) -> Result<(), CliError> {
    let _log = log::init(args.log.log_format, None);
    let (cluster, connect) = reach(&args.database)?;
    let store = args.database.store_options(connect);
    let place = store::place(&store.connect);
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let store = Store::new(store);
            let report = read(&store).await.with_context(|| format!("cannot audit the database {place}"));
            store.close().await;
            report
        });
    if let Some(cluster) = cluster {
        cluster.stop().context("cannot stop the private Postgres")?;
    }
    let report = result?;
    output::print(args.output, &report, report_text)?;
    if report.differences.is_empty() { Ok(()) } else { Err(CliError::Told(EXIT_FAILURE)) }
}

/// The database that was named, else the private one: that of a service that runs, or started for as long as this takes.
fn reach(args: &DatabaseArgs) -> anyhow::Result<(Option<Cluster>, PgConnectOptions)> {
    if args.database_url.is_some() {
        return database(args);
    }
    let data_dir = args.data_dir.clone().unwrap_or_else(postgres::default_data_dir);
    if let Some(url) = postgres::running_url(&data_dir, postgres::DATABASE) {
        return Ok((None, url.parse().context("the private Postgres has an unusable address")?));
    }
    if !postgres::has_cluster(&data_dir) {
        bail!("there is no database in {}; name one with --data-dir or --database-url", data_dir.display());
    }
    database(args)
}

async fn read(store: &Store) -> anyhow::Result<Report> {
    let ours = MIGRATOR.iter().map(|migration| migration.version).max();
    let applied = store.newest_migration().await?;
    if applied != ours {
        let told =
            |version: Option<i64>| version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        bail!(
            "its newest migration is {}, and this release reads {}; `migrate` brings an older one up to date",
            told(applied),
            told(ours)
        );
    }
    let mut conn = store.acquire().await?;
    let now = pools::find(&mut conn).await?.now;
    drop(conn);
    Ok(audit::audit(store, &AllocatorOptions::default().context(now)).await?)
}

fn report_text(report: &Report) -> String {
    let tell = |difference: &Difference| {
        let Difference { subject, what, expected, found } = difference;
        format!("{subject}: {what}: expected {expected}, found {found}")
    };
    let mut lines: Vec<String> = report.differences.iter().map(tell).collect();
    let Report { servers, placements, ports, sequence, decisions_same, decisions_open, .. } = report;
    lines.push(format!(
        "looked at {}, {}, {}, and the log up to event {sequence}",
        output::count(*servers, "server"),
        output::count(*placements, "placement"),
        output::count(*ports, "port"),
    ));
    lines.push(match report.operations {
        Some(operations) => format!(
            "folded {operations} operations; of their decisions {decisions_same} came out the same again, \
             {decisions_open} depended on usage reports or on the line"
        ),
        None => "retention has dropped the log's beginning, so it was not folded".to_owned(),
    });
    lines.push(match report.differences.len() {
        0 => "everything is as it should be".to_owned(),
        number => output::count(number, "difference"),
    });
    lines.join("\n")
}
