//! `servers sync`: the whole list of one source, from a file or from the hosts' own exporters.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{
    client::{ClientArgs, Session},
    error::{CliError, EXIT_FAILURE},
    output,
    servers_file::read,
    servers_observe::{self, ObserveArgs},
};
use crate::proto::v1::{Server, SyncServersRequest, SyncServersResponse};

// A paragraph is one line: it is wrapped to the terminal. The table's lines fit most.
const FROM_HELP: &str = "\
From node_exporters:
Each URL is one server, and all of them together are the whole list of the source. A server is known by where its \
exporter is, which is its external id, else by its host's name, which is its handle. What the list gives it:

  address  the URL's host; an address that an operator set stays; --address sets one
  RAM      node_memory_MemTotal_bytes
           in use: what is not in MemAvailable, so that the page cache is not counted
  disk     node_filesystem_size_bytes of --disk-mountpoint
           in use: what is not in avail, so that blocks kept for root are counted
  CPU      1000 for each `cpu` of node_cpu_seconds_total
           in use: the mean since the scrape before, of all modes but idle and iowait

A MB is 1048576 bytes. Labels, headroom, port range, excluded ports, status and managed stay as they are. If one exporter \
does not answer, the list is not whole, and nothing is written.

After the sync each server's usage is reported, once, or every --interval. A report counts for the service's --usage-max-age, \
5m by default; after that the server takes nothing new until the next one, so choose a shorter interval. An exporter does not \
know which ports are listened on, and each report replaces the one before: ports that another reporter told are forgotten, \
and may be given to projects, unless they are in excluded_ports.

With --interval, a list that is not whole at the start waits for the exporters that do not answer; servers that are known \
already are reported meanwhile. One that stops answering later stays in the list, and its last report grows old. A server \
that was deleted comes back while it is listed.

With --output json, the answer to the sync is printed, as with a file; with --interval, a line for each answer to a sync or a \
report.

Examples:
  servers sync servers.toml --source by-hand
  servers sync --source rack-1 --from node-exporter http://web-1:9100 --interval 15s";

/// Arguments of `servers sync`.
#[derive(Debug, Args)]
#[command(after_long_help = FROM_HELP)]
pub struct SyncArgs {
    /// A .toml or .json file with every server of the source, whose shape examples/servers.toml shows; with --from
    /// node-exporter the URL of every server's exporter
    #[arg(value_name = "FILE|URL", required = true)]
    inputs: Vec<PathBuf>,
    /// Who lists
    #[arg(long, value_name = "NAME")]
    source: String,
    /// Read the servers from what runs on them, instead of from a file
    #[arg(long, value_name = "KIND", value_enum)]
    from: Option<Origin>,
    /// Answer what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Confirm an empty list, or one that marks more than half of the source's servers missing
    #[arg(long)]
    allow_mass_missing: bool,
    #[command(flatten)]
    observe: ObserveArgs,
}

/// What a list is read from, where that is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Origin {
    /// A Prometheus node_exporter on each server
    NodeExporter,
}

/// Takes the whole list of one source.
///
/// # Errors
/// A file or an exporter that cannot be read, the service's refusal, or exit code 1 when it rejected some of the servers.
pub async fn sync(args: SyncArgs, client: &ClientArgs) -> Result<(), CliError> {
    let options = SyncOptions {
        source: args.source,
        dry_run: args.dry_run,
        allow_mass_missing: args.allow_mass_missing,
    };
    match (args.from, args.inputs.as_slice()) {
        (Some(Origin::NodeExporter), urls) => {
            servers_observe::sync_and_observe(options, urls, args.observe, client).await
        }
        (None, [file]) => {
            let servers = read(file)?;
            let session = Session::connect(client).await?;
            let answer = options.send(&session, servers).await?;
            output::print(session.output, &answer, |answer| options.text(answer))?;
            if answer.rejected == 0 { Ok(()) } else { Err(CliError::Told(EXIT_FAILURE)) }
        }
        (None, _) => {
            Err(CliError::Usage("a source's list is one file; for URLs, say --from node-exporter".to_owned()))
        }
    }
}

/// What a sync says beside its list.
pub struct SyncOptions {
    /// Who lists.
    pub source: String,
    /// Whether nothing is to be written.
    pub dry_run: bool,
    /// Whether a list that marks many servers missing is meant.
    pub allow_mass_missing: bool,
}

impl SyncOptions {
    /// Sends a list.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn send(
        &self,
        session: &Session,
        servers: Vec<Server>,
    ) -> Result<SyncServersResponse, CliError> {
        let request = session.request(SyncServersRequest {
            source: self.source.clone(),
            servers,
            validate_only: self.dry_run,
            allow_mass_missing: self.allow_mass_missing,
        });
        Ok(session.inventory().sync_servers(request).await?.into_inner())
    }

    /// An answer as people read it.
    #[must_use]
    pub fn text(&self, answer: &SyncServersResponse) -> String {
        let results = output::table(
            ["HANDLE", "ACTION", "DETAIL"],
            answer.results.iter().map(|result| {
                let action = output::short_name(result.action().as_str_name(), "ACTION_");
                [result.handle.clone(), action.to_owned(), result.detail.clone()]
            }),
        );
        let SyncServersResponse { created, updated, unchanged, marked_missing, rejected, .. } = answer;
        let written = if self.dry_run { "; nothing was written" } else { "" };
        format!(
            "{results}\n\n{created} created, {updated} updated, {unchanged} unchanged, {marked_missing} marked missing, \
             {rejected} rejected{written}"
        )
    }
}
