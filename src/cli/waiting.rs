//! `waiting`: the line of those who wait for capacity.

use clap::Args;

use super::{
    allocations::PageArgs,
    client::{ClientArgs, Session},
    error::CliError,
    output,
    watch_text::asked_text,
};
use crate::proto::v1::{ListWaitingRequest, ListWaitingResponse, Waiter};

/// Arguments of `waiting`.
#[derive(Debug, Args)]
pub struct WaitingArgs {
    /// Only this project's place
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    #[command(flatten)]
    pages: PageArgs,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Lists who stands in line.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn waiting(args: WaitingArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let mut client = session.allocator();
    let mut request = ListWaitingRequest { project_id: args.project, ..ListWaitingRequest::default() };
    let mut answer = ListWaitingResponse::default();
    while let Some(page_size) = args.pages.next_page_size(answer.waiters.len()) {
        request.page_size = page_size;
        let page = client.list_waiting(session.request(request.clone())).await?.into_inner();
        answer.waiters.extend(page.waiters);
        answer.resume_token = page.resume_token;
        answer.next_page_token.clone_from(&page.next_page_token);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    PageArgs::note_rest(&answer.next_page_token);
    output::print(session.output, &answer, |answer| table(&answer.waiters))
}

fn table(waiters: &[Waiter]) -> String {
    if waiters.is_empty() {
        return "nobody stands in line".to_owned();
    }
    output::table(
        [">PLACE", "PROJECT", "REASON", "SINCE", "UNTIL", "ASKS FOR", "ROOM KEPT ON"],
        waiters.iter().map(|waiter| {
            [
                waiter.place.to_string(),
                waiter.project_id.clone(),
                waiter.reason.clone(),
                output::timestamp(waiter.join_time.as_ref()),
                output::timestamp(waiter.deadline.as_ref()),
                asked_text(&waiter.modules, waiter.resources),
                waiter.kept_server_handle.clone(),
            ]
        }),
    )
}
