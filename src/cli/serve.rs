//! `serve`: runs the service.

use clap::Args;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {}

/// Runs the service.
///
/// # Errors
/// Always, as of now.
pub fn run(_args: ServeArgs) -> anyhow::Result<()> {
    anyhow::bail!("not merged yet")
}
