//! `servers apply` and `servers sync`: the inventory from a file.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{
    client::{ClientArgs, OutputFormat, Session},
    error::{CliError, EXIT_DONE, EXIT_FAILURE},
    output,
};
use crate::{
    inventory_file::{self, Format},
    proto::v1::{RegisterServerRequest, Server, SyncServersRequest, SyncServersResponse},
};

/// Arguments of `servers apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A .toml or .json file; examples/servers.toml shows its shape
    file: PathBuf,
}

/// Registers every server of a file, a line for each. One that fails does not keep the others from being tried.
///
/// # Errors
/// A file that cannot be read, or the highest exit code of the servers that failed.
pub async fn apply(args: ApplyArgs, client: &ClientArgs) -> Result<(), CliError> {
    let servers = read(&args.file)?;
    let session = Session::connect(client).await?;
    let mut inventory = session.inventory();
    let mut worst = EXIT_DONE;
    for server in servers {
        let handle = server.handle.clone();
        let request = session.request(RegisterServerRequest { server: Some(server) });
        match inventory.register_server(request).await {
            Ok(answer) => output::print_line(session.output, &answer.into_inner(), |answer| {
                let server = answer.server.clone().unwrap_or_default();
                format!("{handle}: {} at {}", output::server_state(&server), server.address)
            })?,
            Err(status) => {
                let error = CliError::from(status);
                worst = worst.max(error.exit_code());
                if session.output == OutputFormat::Text {
                    output::print_text(&format!("{handle}: failed"))?;
                }
                error.tell_of(&handle, session.output);
            }
        }
    }
    if worst == EXIT_DONE { Ok(()) } else { Err(CliError::Told(worst)) }
}

/// Arguments of `servers sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// A .toml or .json file with every server of the source; examples/servers.toml shows its shape
    file: PathBuf,
    /// Who lists
    #[arg(long, value_name = "NAME")]
    source: String,
    /// Answer what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Confirm an empty list, or one that marks more than half of the source's servers missing
    #[arg(long)]
    allow_mass_missing: bool,
}

/// Takes the whole list of one source.
///
/// # Errors
/// A file that cannot be read, the service's refusal, or exit code 1 when it rejected some of the servers.
pub async fn sync(args: SyncArgs, client: &ClientArgs) -> Result<(), CliError> {
    let servers = read(&args.file)?;
    let session = Session::connect(client).await?;
    let request = session.request(SyncServersRequest {
        source: args.source,
        servers,
        validate_only: args.dry_run,
        allow_mass_missing: args.allow_mass_missing,
    });
    let answer = session.inventory().sync_servers(request).await?.into_inner();
    output::print(session.output, &answer, |answer| sync_text(answer, args.dry_run))?;
    if answer.rejected == 0 { Ok(()) } else { Err(CliError::Told(EXIT_FAILURE)) }
}

fn sync_text(answer: &SyncServersResponse, dry_run: bool) -> String {
    let results = output::table(
        ["HANDLE", "ACTION", "DETAIL"],
        answer.results.iter().map(|result| {
            let action = output::short_name(result.action().as_str_name(), "ACTION_");
            [result.handle.clone(), action.to_owned(), result.detail.clone()]
        }),
    );
    let SyncServersResponse { created, updated, unchanged, marked_missing, rejected, .. } = answer;
    let written = if dry_run { "; nothing was written" } else { "" };
    format!(
        "{results}\n\n{created} created, {updated} updated, {unchanged} unchanged, {marked_missing} marked missing, \
         {rejected} rejected{written}"
    )
}

fn read(path: &PathBuf) -> Result<Vec<Server>, CliError> {
    let name = path.display();
    let format = Format::of(path).map_err(|error| CliError::Usage(format!("{name}: {error}")))?;
    let bytes = fs::read(path).with_context(|| format!("{name}"))?;
    Ok(inventory_file::parse(&bytes, format).with_context(|| format!("{name}"))?)
}
