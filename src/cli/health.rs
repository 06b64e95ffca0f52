//! `health`: whether the service serves, by the gRPC health protocol. Containers and scripts ask by exit code.

use clap::Args;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    client::{ClientArgs, Session},
    error::{CliError, EXIT_FAILURE},
    output,
};

/// Arguments of `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Ask for one service, such as resourceallocator.v1.ResourceAllocator; the whole server when left out
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Prints the serving status.
///
/// # Errors
/// Exit code 1 for any status but SERVING; that the service cannot be reached.
pub async fn health(args: HealthArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let request = session.request(HealthCheckRequest { service: args.service });
    let answer = HealthClient::new(session.channel.clone()).check(request).await?.into_inner();
    let status = answer.status();
    let message = serde_json::json!({ "status": status.as_str_name() });
    output::print(session.output, &message, |_| status.as_str_name().to_owned())?;
    match status {
        ServingStatus::Serving => Ok(()),
        _ => Err(CliError::Told(EXIT_FAILURE)),
    }
}
