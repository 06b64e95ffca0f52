//! `servers policy`: what holds for every server that does not say otherwise.

use clap::Args;

use super::{
    client::{ClientArgs, Session},
    error::CliError,
    output,
};
use crate::{
    domain::{policy::PolicyPatch, resources::PerResource},
    policy_figure::{PolicyFigure, headroom, overcommit},
    proto::v1::{FleetPolicy, GetFleetPolicyRequest, Percentages, Resources, UpdateFleetPolicyRequest},
};

/// Arguments of `servers policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Keep this free on servers that name no headroom of their own: ram=512 and disk=2048 in MB, cpu=500 in thousandths of
    /// a core, or a share such as ram=5%
    #[arg(long, value_name = "RESOURCE=AMOUNT", value_delimiter = ',', value_parser = headroom)]
    headroom: Vec<PolicyFigure>,
    /// Let this much be reserved of what there is, such as cpu=4,ram=1.2
    #[arg(long, value_name = "RESOURCE=RATIO", value_delimiter = ',', value_parser = overcommit)]
    overcommit: Vec<PolicyFigure>,
}

/// Shows the policy, after changing what is named.
///
/// # Errors
/// The service's refusal, or that it cannot be reached.
pub async fn policy(args: PolicyArgs, client: &ClientArgs) -> Result<(), CliError> {
    let session = Session::connect(client).await?;
    let mut inventory = session.inventory();
    let mut patch = PolicyPatch::default();
    for figure in args.headroom.iter().chain(&args.overcommit) {
        figure.apply(&mut patch);
    }
    if patch == PolicyPatch::default() {
        let answer =
            inventory.get_fleet_policy(session.request(GetFleetPolicyRequest {})).await?.into_inner();
        return output::print(session.output, &answer, |answer| policy_text(answer.policy));
    }
    let request = UpdateFleetPolicyRequest { policy: Some(message(&patch)) };
    let answer = inventory.update_fleet_policy(session.request(request)).await?.into_inner();
    output::print(session.output, &answer, |answer| policy_text(answer.policy))
}

fn policy_text(policy: Option<FleetPolicy>) -> String {
    output::policy(&policy.unwrap_or_default()).replace("; ", "\n")
}

fn message(patch: &PolicyPatch) -> FleetPolicy {
    let percentages = |figures: PerResource<Option<i64>>| {
        let figure = |figure: Option<i64>| figure.and_then(|figure| u32::try_from(figure).ok());
        Percentages { cpu: figure(figures.cpu), ram: figure(figures.ram), disk: figure(figures.disk) }
    };
    FleetPolicy {
        default_headroom: Some(Resources {
            cpu_millis: patch.headroom.cpu_millis.and_then(|amount| u32::try_from(amount).ok()),
            ram_mb: patch.headroom.ram_mb.and_then(|amount| u64::try_from(amount).ok()),
            disk_mb: patch.headroom.disk_mb.and_then(|amount| u64::try_from(amount).ok()),
        }),
        default_headroom_percent: Some(percentages(patch.headroom_percent)),
        overcommit_percent: Some(percentages(patch.overcommit_percent)),
    }
}
