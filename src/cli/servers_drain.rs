//! `servers drain`: everything on a server moves elsewhere.

use clap::Args;

use super::{
    client::{ClientArgs, Session},
    error::{CliError, EXIT_REFUSED, EXIT_REFUSED_FOR_NOW},
    output,
    request::StrategyArg,
};
use crate::proto::v1::{Disposition, DrainResult, DrainServerRequest, DrainServerResponse};

/// How many projects one call moves.
const PAGE: i32 = 100;

/// Arguments of `servers drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The server; one that admits work is set to MAINTENANCE first
    handle: String,
    /// Only list what is there and where it would go (up to 1000 projects), and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Which of the servers that fit is chosen; the service's own when left out
    #[arg(long, value_enum)]
    strategy: Option<StrategyArg>,
}

/// Empties a server, page by page, until nothing moves any more.
///
/// # Errors
/// The service's refusal, or that it cannot be reached; an exit code that says what kind of act the projects that stay need.
pub async fn drain(args: DrainArgs, client: &ClientArgs) -> Result<(), CliError> {
    let session = Session::connect(client).await?;
    let mut inventory = session.inventory();
    let mut whole = DrainServerResponse::default();
    loop {
        let request = DrainServerRequest {
            handle: args.handle.clone(),
            strategy: StrategyArg::message(args.strategy).into(),
            page_size: if args.dry_run { 1000 } else { PAGE },
            validate_only: args.dry_run,
        };
        let answer = inventory.drain_server(session.request(request)).await?.into_inner();
        // What stays is looked at by each call, and told once.
        whole.results.retain(|result| result.moved);
        whole.results.extend(answer.results);
        whole.moved_count += answer.moved_count;
        whole.remaining_count = answer.remaining_count;
        let again = !args.dry_run && answer.moved_count > 0 && answer.remaining_count > 0;
        if !again {
            break;
        }
    }
    output::print(session.output, &whole, |answer| drain_text(answer, args.dry_run))?;
    let stays: Vec<&DrainResult> = whole.results.iter().filter(|result| !result.moved).collect();
    if stays.is_empty() {
        return Ok(());
    }
    let waits = stays.iter().all(|result| result.disposition() == Disposition::Wait);
    Err(CliError::Told(if waits { EXIT_REFUSED_FOR_NOW } else { EXIT_REFUSED }))
}

fn drain_text(answer: &DrainServerResponse, dry_run: bool) -> String {
    let rows = answer.results.iter().map(|result| {
        let ports: Vec<_> = result
            .allocations
            .iter()
            .map(|allocation| format!("{} {}", allocation.module, output::port(allocation)))
            .collect();
        let (to, detail) = if result.moved {
            (result.server_handle.clone(), ports.join(", "))
        } else {
            ("stays".to_owned(), format!("{}: {}", result.reason, result.message))
        };
        [result.project_id.clone(), to, detail]
    });
    let table = output::table(["PROJECT", "TO", "DETAIL"], rows);
    let projects = output::count(answer.moved_count as usize, "project");
    let (done, left) =
        if dry_run { ("would move; nothing was written", "there now") } else { ("moved", "left") };
    format!("{table}\n\n{projects} {done}; {} {left}", answer.remaining_count)
}
