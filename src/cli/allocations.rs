//! `ensure`, `release`, `list` and `get`: the placement service's unary calls.

use std::time::Duration;

use clap::Args;

use super::{
    client::{ClientArgs, Session},
    duration::at_most_a_day,
    error::CliError,
    output::{self, allocations_table},
    request::RequestArgs,
    wait,
};
use crate::proto::v1::{
    Allocation, EnsureAllocationRequest, EnsureAllocationResponse, GetPlacementRequest, GetPlacementResponse,
    ListAllocationsRequest, ListAllocationsResponse, Placement, ReleaseAllocationRequest,
    ReleaseAllocationResponse,
};

const MAX_PAGE_SIZE: usize = 1000;

/// Arguments of `ensure`.
#[derive(Debug, Args)]
pub struct EnsureArgs {
    /// The project that needs a place
    project: String,
    #[command(flatten)]
    request: RequestArgs,
    /// Pin: this server or a refusal
    #[arg(long, value_name = "HANDLE")]
    server: Option<String>,
    /// Answer what would happen, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Instead of a capacity refusal, wait this long in line for capacity, such as 5m, at most 24h
    #[arg(long, value_name = "DURATION", value_parser = at_most_a_day)]
    wait: Option<Duration>,
    /// A lease: the placement ends by itself after this time, such as 2h, unless it is ensured again; 0s has it stay for good
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Places a project.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn ensure(args: EnsureArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let request = EnsureAllocationRequest {
        resources: args.request.resources(),
        server_selector: args.request.selector(),
        start_port: args.request.start_port.map(u32::from),
        strategy: args.request.strategy().into(),
        project_id: args.project,
        modules: args.request.modules,
        server_handle: args.server,
        validate_only: args.dry_run,
        wait_for_capacity: args.wait.map(|wait| duration(wait, "--wait")).transpose()?,
        ttl: args.ttl.map(|ttl| duration(ttl, "--ttl")).transpose()?,
    };
    let answer = match args.wait {
        Some(wait) if !args.dry_run => wait::ensure(&session, request, wait).await?,
        _ => session.allocator().ensure_allocation(session.request(request)).await?.into_inner(),
    };
    warn_if_closed(answer.placement.as_ref());
    output::print(session.output, &answer, |answer| ensure_text(answer, args.dry_run))
}

fn duration(of: Duration, flag: &str) -> Result<pbjson_types::Duration, CliError> {
    let too_long = |_| CliError::Usage(format!("{flag} is too long"));
    let seconds = i64::try_from(of.as_secs()).map_err(too_long)?;
    let nanos = i32::try_from(of.subsec_nanos()).map_err(too_long)?;
    Ok(pbjson_types::Duration { seconds, nanos })
}

fn ensure_text(answer: &EnsureAllocationResponse, dry_run: bool) -> String {
    let outcome = output::short_name(answer.outcome().as_str_name(), "ENSURE_OUTCOME_");
    let headline =
        if dry_run { format!("would be {outcome}, nothing was written") } else { outcome.to_owned() };
    placement_text(&headline, answer.placement.as_ref(), &answer.allocations)
}

/// A placement and its ports.
pub fn placement_text(headline: &str, placement: Option<&Placement>, allocations: &[Allocation]) -> String {
    let placement = placement.cloned().unwrap_or_default();
    let ends = placement.expire_time.as_ref().map(|end| format!("\nends: {}", output::timestamp(Some(end))));
    format!(
        "{}: {headline}\nserver: {} at {}\nreserved: {}{}\n\n{}",
        placement.project_id,
        placement.server_handle,
        placement.server_address,
        output::resources(&placement.reserved.unwrap_or_default()),
        ends.unwrap_or_default(),
        allocations_table(allocations),
    )
}

fn warn_if_closed(placement: Option<&Placement>) {
    if let Some(placement) = placement.filter(|placement| !placement.server_admissible) {
        let handle = &placement.server_handle;
        output::note(&format!("server {handle} takes nothing new now; what the project holds there stands"));
    }
}

/// Arguments of `release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The project
    project: String,
    /// The modules whose ports are given back; none means all
    #[arg(value_name = "MODULE")]
    modules: Vec<String>,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Gives back a project's ports.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn release(args: ReleaseArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let request = ReleaseAllocationRequest { project_id: args.project, modules: args.modules };
    let answer = session.allocator().release_allocation(session.request(request)).await?.into_inner();
    output::print(session.output, &answer, release_text)
}

fn release_text(answer: &ReleaseAllocationResponse) -> String {
    if answer.released.is_empty() {
        return "nothing to release".to_owned();
    }
    let left = if answer.placement_removed { "no place any more" } else { "its place, with other modules" };
    let ports = output::count(answer.released.len(), "port");
    format!("released {ports}; the project has {left}\n\n{}", allocations_table(&answer.released))
}

/// How much of a long list is read.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// Read at most this many
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "all_pages")]
    limit: usize,
    /// Read to the end, however long the list is
    #[arg(long)]
    all_pages: bool,
}

impl PageArgs {
    /// How many to ask for next, when so many were read; `None` when that is enough.
    pub fn next_page_size(&self, read: usize) -> Option<i32> {
        let wanted = if self.all_pages { MAX_PAGE_SIZE } else { self.limit.saturating_sub(read) };
        i32::try_from(wanted.min(MAX_PAGE_SIZE)).ok().filter(|size| *size > 0)
    }

    /// Says on standard error that the list goes on.
    pub fn note_rest(next_page_token: &str) {
        if !next_page_token.is_empty() {
            output::note("the list goes on; --limit N or --all-pages reads more of it");
        }
    }
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this project's
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// Only this server's
    #[arg(long, value_name = "HANDLE")]
    server: Option<String>,
    /// Only modules of this name
    #[arg(long, value_name = "MODULE")]
    module: Option<String>,
    #[command(flatten)]
    pages: PageArgs,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Lists allocations.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn list(args: ListArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let mut client = session.allocator();
    let mut request = ListAllocationsRequest {
        project_id: args.project,
        server_handle: args.server,
        module: args.module,
        ..ListAllocationsRequest::default()
    };
    let mut answer = ListAllocationsResponse::default();
    while let Some(page_size) = args.pages.next_page_size(answer.allocations.len()) {
        request.page_size = page_size;
        let page = client.list_allocations(session.request(request.clone())).await?.into_inner();
        answer.allocations.extend(page.allocations);
        answer.resume_token = page.resume_token;
        answer.next_page_token.clone_from(&page.next_page_token);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    PageArgs::note_rest(&answer.next_page_token);
    output::print(session.output, &answer, |answer| allocations_table(&answer.allocations))
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The project
    project: String,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Shows one project's placement.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn get(args: GetArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let request = session.request(GetPlacementRequest { project_id: args.project });
    let answer = session.allocator().get_placement(request).await?.into_inner();
    warn_if_closed(answer.placement.as_ref());
    output::print(session.output, &answer, get_text)
}

fn get_text(answer: &GetPlacementResponse) -> String {
    let placed = answer.placement.as_ref().and_then(|placement| placement.create_time.as_ref());
    let headline = format!("placed {}", output::timestamp(placed));
    placement_text(&headline, answer.placement.as_ref(), &answer.allocations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_as_large_as_what_is_still_wanted() {
        let limited = PageArgs { limit: 1500, all_pages: false };
        assert_eq!(limited.next_page_size(0), Some(1000));
        assert_eq!(limited.next_page_size(1000), Some(500));
        assert_eq!(limited.next_page_size(1500), None);
        let all = PageArgs { limit: 1000, all_pages: true };
        assert_eq!(all.next_page_size(5_000_000), Some(1000));
    }
}
