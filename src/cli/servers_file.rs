//! Inventory files, and `servers apply`, which registers the servers of one.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{
    client::{ClientArgs, OutputFormat, Session},
    error::{CliError, EXIT_DONE},
    output,
};
use crate::{
    followed,
    inventory_file::{self, Format},
    proto::v1::{RegisterServerRequest, Server},
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

/// Reads an inventory file.
///
/// # Errors
/// A file that cannot be read, or is no inventory.
pub fn read(path: &Path) -> Result<Vec<Server>, CliError> {
    let name = path.display();
    let format = Format::of(path).map_err(|error| CliError::Usage(format!("{name}: {error}")))?;
    let bytes = followed::content(path).with_context(|| format!("{name}"))?;
    Ok(inventory_file::parse(&bytes, format).with_context(|| format!("{name}"))?)
}
