//! `watch`: the progress events, one line each, for as long as the reader likes.
//!
//! A stream that breaks is resumed after the last token that was seen, so that no event is lost or shown twice. What the
//! service refuses for the request's own sake, such as a forged token, ends the command.

use std::{cmp, io, time::Duration};

use clap::{Args, ColorChoice};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{
    client::{ClientArgs, OutputFormat, Session},
    error::{self, CliError},
    output,
    watch_text::event_line,
};
use crate::proto::v1::{
    WatchAllocationsRequest, WatchAllocationsResponse, watch_allocations_response::Payload,
};

const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const LAST_BACK_OFF: Duration = Duration::from_secs(30);

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only events of this project
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// Only events of this server
    #[arg(long, value_name = "HANDLE")]
    server: Option<String>,
    /// Start with the oldest event that is kept, instead of from now
    #[arg(long, conflicts_with = "resume_token")]
    from_beginning: bool,
    /// Start after the point that an earlier answer's resume token names
    // One token in 64 begins with a hyphen.
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    resume_token: String,
    /// Whether lines are coloured; auto: on a terminal, unless `NO_COLOR` is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

fn is_painted(choice: ColorChoice) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never,
    }
}

/// Prints events until the reader ends it.
///
/// # Errors
/// The service's refusal, or that it cannot be reached at the start.
pub async fn watch(args: WatchArgs) -> Result<(), CliError> {
    let session = Session::connect(&args.client).await?;
    let mut watcher = Watcher {
        request: WatchAllocationsRequest {
            project_id: args.project,
            server_handle: args.server,
            resume_token: args.resume_token,
            from_beginning: args.from_beginning,
        },
        session,
        back_off: FIRST_BACK_OFF,
        opened: false,
        painted: is_painted(args.color),
    };
    tokio::select! {
        result = watcher.run() => result,
        _ = tokio::signal::ctrl_c() => {
            let token = &watcher.request.resume_token;
            if !token.is_empty() {
                output::note(&format!("stopped; --resume-token {token} goes on from here"));
            }
            Ok(())
        }
    }
}

struct Watcher {
    session: Session,
    /// What opens the next stream: its start moves on with every message.
    request: WatchAllocationsRequest,
    back_off: Duration,
    opened: bool,
    painted: bool,
}

impl Watcher {
    async fn run(&mut self) -> Result<(), CliError> {
        loop {
            let ended = match self.stream().await {
                Ok(()) => None,
                Err(CliError::Status(status)) if self.opened && may_resume(&status) => Some(status),
                Err(error) => return Err(error),
            };
            let cause = ended.as_deref().map_or("the service ended the stream", Status::message);
            let asked = ended.as_deref().and_then(retry_delay).unwrap_or_default();
            let pause = cmp::max(self.back_off, asked);
            output::note(&format!("{cause}; reconnecting in {}", humantime::format_duration(pause)));
            tokio::time::sleep(pause).await;
            self.back_off = cmp::min(self.back_off * 2, LAST_BACK_OFF);
        }
    }

    /// Prints one stream to its end.
    async fn stream(&mut self) -> Result<(), CliError> {
        // No deadline: the stream lasts; the channel's keep-alive notices a dead peer.
        let request = self.session.request_without_end(self.request.clone());
        let mut stream = self.session.allocator().watch_allocations(request).await?.into_inner();
        if self.opened {
            output::note("connected again");
        }
        self.opened = true;
        while let Some(message) = stream.message().await? {
            self.back_off = FIRST_BACK_OFF;
            self.print(&message)?;
            self.request.resume_token = message.resume_token;
            self.request.from_beginning = false;
        }
        Ok(())
    }

    fn print(&self, message: &WatchAllocationsResponse) -> Result<(), CliError> {
        let is_text = self.session.output == OutputFormat::Text;
        match &message.payload {
            Some(Payload::Event(event)) => {
                output::print_line(self.session.output, message, |_| event_line(event, self.painted))
            }
            // A bookmark says nothing to a person; a program keeps its token.
            _ if is_text => Ok(()),
            _ => output::print_line(self.session.output, message, |_| String::new()),
        }
    }
}

/// Whether the same request may be answered later, at this replica or another.
pub fn may_resume(status: &Status) -> bool {
    match error::disposition(&status.get_error_details()) {
        Some(disposition) => matches!(disposition, "WAIT" | "TECHNICAL"),
        // The transport's own: a connection that broke shows as one of these, by where it broke.
        None => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Internal
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
        ),
    }
}

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info()?.retry_delay
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what the service would send is made by hand here")]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn refusal(code: Code, reason: &str, disposition: &str) -> Status {
        let metadata = [("disposition".to_owned(), disposition.to_owned())];
        let details = ErrorDetails::with_error_info(reason, "resourceallocator", metadata);
        Status::with_error_details(code, "", details)
    }

    #[test]
    fn a_broken_stream_is_resumed_and_a_refusal_is_not() {
        assert!(may_resume(&Status::unavailable("connection reset")));
        assert!(may_resume(&Status::internal("h2 protocol error")));
        assert!(may_resume(&refusal(Code::Unavailable, "SHUTTING_DOWN", "TECHNICAL")));
        assert!(may_resume(&refusal(Code::ResourceExhausted, "WATCHER_TOO_SLOW", "TECHNICAL")));
        assert!(!may_resume(&refusal(Code::InvalidArgument, "INVALID_REQUEST", "CALLER")));
        assert!(!may_resume(&refusal(Code::OutOfRange, "SEQUENCE_COMPACTED", "CALLER")));
        assert!(!may_resume(&refusal(Code::FailedPrecondition, "LOG_RESTARTED", "CALLER")));
        assert!(!may_resume(&Status::unauthenticated("")));
        assert!(!may_resume(&Status::unimplemented("")));
    }
}
