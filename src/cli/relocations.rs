//! `relocate` and `port-in-use`: changes of what a placed project holds.

use clap::Args;

use super::{
    allocations::placement_text,
    client::{ClientArgs, Session},
    error::CliError,
    output,
    request::StrategyArg,
};
use crate::proto::v1::{
    RelocateProjectRequest, RelocateProjectResponse, ReportPortInUseRequest, ReportPortInUseResponse,
};

/// Arguments of `relocate`.
#[derive(Debug, Args)]
pub struct RelocateArgs {
    /// The project
    project: String,
    /// This server or a refusal; the best of the others when left out
    #[arg(long, value_name = "HANDLE")]
    to: Option<String>,
    /// Move it only while it is on this server, so that a repeat does not move it again
    #[arg(long, value_name = "HANDLE")]
    from: Option<String>,
    /// Which of the servers that fit is chosen; the service's own when left out
    #[arg(long, value_enum)]
    strategy: Option<StrategyArg>,
    /// Answer where it would go, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Moves a project.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn relocate(args: RelocateArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let request = RelocateProjectRequest {
        project_id: args.project,
        server_handle: args.to,
        from_server_handle: args.from,
        strategy: StrategyArg::message(args.strategy).into(),
        validate_only: args.dry_run,
    };
    let answer = session.allocator().relocate_project(session.request(request)).await?.into_inner();
    output::print(session.output, &answer, |answer| relocate_text(answer, args.dry_run))
}

fn relocate_text(answer: &RelocateProjectResponse, dry_run: bool) -> String {
    let headline = match (answer.moved, dry_run) {
        (true, false) => format!("moved from {}", answer.from_server_handle),
        (true, true) => format!("would move from {}, nothing was written", answer.from_server_handle),
        (false, _) => "is there already".to_owned(),
    };
    placement_text(&headline, answer.placement.as_ref(), &answer.allocations)
}

/// Arguments of `port-in-use`.
#[derive(Debug, Args)]
pub struct PortInUseArgs {
    /// The project
    project: String,
    /// Its module
    module: String,
    /// The port that was found in use
    port: u16,
    /// What was seen, such as the process that listens there
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    detail: String,
    /// The lowest port to consider for another one; 8000 when left out
    #[arg(long, value_name = "PORT")]
    start_port: Option<u16>,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Reports a port that something else uses, and shows the one that the module gets.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn port_in_use(args: PortInUseArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let request = ReportPortInUseRequest {
        project_id: args.project,
        module: args.module,
        port: args.port.into(),
        detail: args.detail,
        start_port: args.start_port.map(u32::from),
    };
    let answer = session.allocator().report_port_in_use(session.request(request)).await?.into_inner();
    output::print(session.output, &answer, |answer| replaced_text(answer, args.port))
}

fn replaced_text(answer: &ReportPortInUseResponse, reported: u16) -> String {
    let held = answer.allocation.clone().unwrap_or_default();
    let module = &held.module;
    let port = output::port(&held);
    let on = format!("{} at {}", held.server_handle, held.server_address);
    if answer.replaced {
        let until = output::timestamp(answer.set_aside_until.as_ref());
        format!("{module}: now {port} on {on}; {reported} is set aside until {until}")
    } else {
        format!("{module}: holds {port} on {on}; {reported} is not its port, and nothing was changed")
    }
}
