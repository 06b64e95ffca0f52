//! `migrate`: brings the database's schema up to date, and nothing else. `serve` does the same when it starts; this is for a
//! role that may change the schema where the service's may not.

use anyhow::Context as _;
use clap::Args;

use super::serve::database;
use crate::{
    config::{DatabaseArgs, LogArgs},
    server::migration_failed,
    store::{self, MIGRATOR, Store},
    telemetry::log,
};

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// Brings the schema up to date.
///
/// # Errors
/// What stands in its way, in one line.
pub fn run(args: &MigrateArgs) -> anyhow::Result<()> {
    let _log = log::init(args.log.log_format, None);
    let (cluster, connect) = database(&args.database)?;
    let place = store::place(&connect);
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let store = Store::new(args.database.store_options(connect));
            let migrated = store.migrate().await.map_err(|error| migration_failed(&error, &place));
            store.close().await;
            migrated
        });
    if let Some(cluster) = cluster {
        cluster.stop()?;
    }
    result?;
    let newest = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default();
    println!("the schema is up to date: migration {newest}");
    Ok(())
}
