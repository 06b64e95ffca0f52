//! `find`: which server an ensure would choose now, and why each other was refused.

use clap::Args;

use super::{
    client::{ClientArgs, Session},
    error::CliError,
    output,
    request::RequestArgs,
};
use crate::proto::v1::{FindServerRequest, FindServerResponse};

/// Arguments of `find`.
#[derive(Debug, Args)]
pub struct FindArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// Show at most this many servers, best first
    #[arg(long, value_name = "N", default_value_t = 1)]
    max: i32,
    /// Also say why each other server was refused; finding none is then an answer, not a refusal
    #[arg(long)]
    explain: bool,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Shows the servers that fit.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn find(args: FindArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let request = FindServerRequest {
        resources: args.request.resources(),
        server_selector: args.request.selector(),
        start_port: args.request.start_port.map(u32::from),
        strategy: args.request.strategy().into(),
        modules: args.request.modules,
        max_candidates: args.max,
        explain: args.explain,
    };
    let answer = session.allocator().find_server(session.request(request)).await?.into_inner();
    output::print(session.output, &answer, find_text)
}

fn find_text(answer: &FindServerResponse) -> String {
    let mut parts = Vec::new();
    if answer.candidates.is_empty() {
        parts.push("no server fits".to_owned());
    } else {
        parts.push(candidates_table(answer));
    }
    if !answer.rejections.is_empty() {
        parts.push(output::table(
            ["REFUSED", "REASON", "DETAIL"],
            answer.rejections.iter().map(|rejection| {
                [rejection.server_handle.clone(), rejection.reason.clone(), rejection.detail.clone()]
            }),
        ));
    }
    if !answer.rejected_by_reason.is_empty() {
        let counts: Vec<_> =
            answer.rejected_by_reason.iter().map(|(reason, number)| format!("{reason} {number}")).collect();
        parts.push(format!("refused by reason: {}", counts.join(", ")));
    }
    parts.join("\n\n")
}

fn candidates_table(answer: &FindServerResponse) -> String {
    output::table(
        ["FITS", "ADDRESS", "STATUS", ">FREE RAM MB", ">FREE DISK MB", ">FREE CPU m", ">SCORE", "LABELS"],
        answer.candidates.iter().map(|candidate| {
            let server = candidate.server.clone().unwrap_or_default();
            let free = candidate.free.unwrap_or_default();
            [
                server.handle.clone(),
                server.address.clone(),
                output::server_state(&server),
                free.ram_mb.to_string(),
                free.disk_mb.to_string(),
                free.cpu_millis.to_string(),
                candidate.score.to_string(),
                output::labels(&server),
            ]
        }),
    )
}
