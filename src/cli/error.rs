//! What can end a command, how it is told on standard error, and the exit code that it gives.
//!
//! A refusal of the service keeps all that it carries: message, reason, disposition, metadata and bad fields. The exit
//! code follows the disposition alone, so that a new reason needs no change here.

use std::{collections::BTreeMap, io, time::Duration};

use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{client::OutputFormat, output};
use crate::api::code_name::code_name;

/// Done.
pub const EXIT_DONE: u8 = 0;
/// A failure.
pub const EXIT_FAILURE: u8 = 1;
/// Wrong usage; clap exits with it as well.
pub const EXIT_USAGE: u8 = 2;
/// Refused for now: disposition WAIT.
pub const EXIT_REFUSED_FOR_NOW: u8 = 3;
/// Refused: any other disposition.
pub const EXIT_REFUSED: u8 = 4;
/// The service cannot be reached.
pub const EXIT_UNREACHABLE: u8 = 5;

/// What a command's `--help` says about exit codes.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done
  1  a failure
  2  wrong usage
  3  refused for now (disposition WAIT): the same request may succeed later
  4  refused (disposition OPERATOR, CALLER or TECHNICAL)
  5  the service cannot be reached";

const DOMAIN: &str = "resourceallocator";
const DISPOSITION: &str = "disposition";
const WAIT: &str = "WAIT";
/// What tonic says when a deadline passes, on either side.
const TIMEOUT_EXPIRED: &str = "Timeout expired";

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The flags or arguments do not make sense together.
    #[error("{0}")]
    Usage(String),
    /// The service answered with an error.
    #[error("{}", .0.message())]
    Status(Box<Status>),
    /// No connection came about.
    #[error("cannot reach the service at {endpoint}: {cause}")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What the system said.
        cause: String,
    },
    /// The command has already told on standard error what failed.
    #[error("failed")]
    Told(u8),
    /// The reader of standard output went away, as `head` does: nothing to tell.
    #[error("standard output was closed")]
    OutputClosed,
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Other(anyhow::Error::new(error).context("writing to standard output")),
        }
    }
}

impl CliError {
    /// The code that the process exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Status(status) => status_exit_code(status),
            Self::Unreachable { .. } => EXIT_UNREACHABLE,
            Self::Told(code) => *code,
            Self::OutputClosed => EXIT_DONE,
            Self::Other(_) => EXIT_FAILURE,
        }
    }

    /// Tells the error on standard error.
    pub fn tell(&self, output: OutputFormat) {
        if !matches!(self, Self::Told(_) | Self::OutputClosed) {
            Report::of(self).tell(output);
        }
    }

    /// Tells the error of one server among several.
    pub fn tell_of(&self, server_handle: &str, output: OutputFormat) {
        let mut report = Report::of(self);
        report.server_handle = Some(server_handle.to_owned());
        report.tell(output);
    }
}

fn status_exit_code(status: &Status) -> u8 {
    match disposition(&status.get_error_details()) {
        Some(WAIT) => EXIT_REFUSED_FOR_NOW,
        Some(_) => EXIT_REFUSED,
        None if status.code() == Code::Unavailable => EXIT_UNREACHABLE,
        None => EXIT_FAILURE,
    }
}

/// What the service says is needed; nothing where the error is the transport's or a proxy's.
pub fn disposition(details: &ErrorDetails) -> Option<&str> {
    let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
    info.metadata.get(DISPOSITION).map(String::as_str)
}

/// An error as it is told, in the order of its JSON fields.
#[derive(Serialize)]
struct Report {
    /// The server that the error is about, where a command goes over several.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_handle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disposition: Option<String>,
    message: String,
    metadata: BTreeMap<String, String>,
    field_violations: Vec<Violation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_delay_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_step: Option<String>,
    exit_code: u8,
}

#[derive(Serialize)]
struct Violation {
    field: String,
    description: String,
}

impl Report {
    fn of(error: &CliError) -> Self {
        let mut report = Self {
            server_handle: None,
            code: None,
            reason: None,
            disposition: None,
            message: error.to_string(),
            metadata: BTreeMap::new(),
            field_violations: Vec::new(),
            retry_delay_ms: None,
            next_step: None,
            exit_code: error.exit_code(),
        };
        match error {
            CliError::Status(status) => report.add_status(status),
            CliError::Unreachable { .. } => {
                report.code = Some(code_name(Code::Unavailable));
                report.next_step =
                    Some("start `resource-allocator serve`, or name another --endpoint".to_owned());
            }
            CliError::Usage(_) | CliError::Told(_) | CliError::OutputClosed | CliError::Other(_) => {}
        }
        report
    }

    fn add_status(&mut self, status: &Status) {
        let details = status.get_error_details();
        self.code = Some(code_name(status.code()));
        if status.message().is_empty() {
            self.message = format!("the service answered {}", code_name(status.code()));
        }
        if status.message() == TIMEOUT_EXPIRED {
            "the service did not answer in time".clone_into(&mut self.message);
        }
        self.disposition = disposition(&details).map(str::to_owned);
        let retry_delay = details.retry_info().and_then(|retry| retry.retry_delay);
        self.retry_delay_ms = retry_delay.map(|delay| delay.as_millis());
        if let Some(bad_request) = details.bad_request() {
            self.field_violations = bad_request
                .field_violations
                .iter()
                .map(|bad| Violation { field: bad.field.clone(), description: bad.description.clone() })
                .collect();
        }
        if let Some(info) = details.error_info() {
            self.reason = Some(info.reason.clone());
            self.metadata = info.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        }
        self.next_step = self.next_step(status.code(), retry_delay);
    }

    fn next_step(&self, code: Code, retry_delay: Option<Duration>) -> Option<String> {
        let reason = self.reason.as_deref().unwrap_or_default();
        let step = match (reason, self.disposition.as_deref(), code) {
            _ if retry_delay.is_some() => {
                return retry_delay
                    .map(|delay| format!("try again in {}", humantime::format_duration(delay)));
            }
            ("UNAUTHENTICATED", ..) => "set RESOURCE_ALLOCATOR_TOKEN, or name a --token-file",
            ("FORBIDDEN", ..) => "call as someone whose role is enough",
            ("PROJECT_NOT_FOUND", ..) => "`resource-allocator ensure` gives it a place",
            ("SERVER_NOT_FOUND", ..) => "`resource-allocator servers list` shows which there are",
            ("ETAG_MISMATCH", ..) => "read the server again, and repeat the change with its new etag",
            ("SERVER_IN_USE", ..) => {
                "`resource-allocator servers drain` moves what it holds; `list --server` shows it"
            }
            ("SYNC_REFUSED", ..) => "look at the list; --allow-mass-missing confirms it",
            ("LOG_RESTARTED", ..) => "list anew, and watch from that answer's resume_token",
            ("SEQUENCE_COMPACTED", ..) => match self.metadata.get("oldest_resume_token") {
                Some(token) => {
                    return Some(format!("resume at the oldest token with --resume-token {token}"));
                }
                None => "list anew, and watch from that answer's resume_token",
            },
            (_, Some(WAIT), _) => "try again later; `ensure --wait 5m` stands in line",
            (_, Some("OPERATOR"), _) => {
                "an operator must act on the inventory: `resource-allocator servers list` shows it"
            }
            (_, Some("CALLER"), _) => "change the request",
            (_, Some("TECHNICAL"), _) => {
                "try again later; if it stays, see the service's log for the request_id"
            }
            (_, None, Code::Unavailable) => "see whether the service runs, and that --endpoint names it",
            (_, None, Code::Cancelled | Code::DeadlineExceeded) => {
                "repeat the command, which is harmless, or give it a longer --timeout"
            }
            (_, None, Code::Unimplemented) => {
                "see whether --endpoint names a Resource Allocator of this version"
            }
            _ => return None,
        };
        Some(step.to_owned())
    }

    fn tell(&self, format: OutputFormat) {
        match format {
            OutputFormat::Text => output::tell(&self.to_text()),
            OutputFormat::Json => {
                output::tell(&serde_json::to_string(self).expect("a report has string keys"));
            }
        }
    }

    fn to_text(&self) -> String {
        let subject = self.server_handle.as_ref().map(|handle| format!("{handle}: ")).unwrap_or_default();
        let mut lines = vec![format!("error: {subject}{}", self.message)];
        lines.extend(match (&self.reason, &self.disposition, self.code) {
            (Some(reason), Some(disposition), _) => {
                Some(format!("reason: {reason} (disposition {disposition})"))
            }
            (Some(reason), None, _) => Some(format!("reason: {reason}")),
            (None, _, code) => code.map(|code| format!("code: {code}")),
        });
        lines.extend(self.field_violations.iter().map(|bad| format!("  {}: {}", bad.field, bad.description)));
        lines.extend(self.metadata.get("request_id").map(|request_id| format!("request_id: {request_id}")));
        lines.extend(self.next_step.as_ref().map(|next_step| format!("next: {next_step}")));
        lines.join("\n")
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what the service would send is made by hand here")]
mod tests {
    use super::*;

    fn refusal(code: Code, reason: &str, disposition: &str, mut details: ErrorDetails) -> CliError {
        let metadata = [(DISPOSITION, disposition), ("request_id", "r-1")];
        details.set_error_info(
            reason,
            DOMAIN,
            metadata.map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        CliError::from(Status::with_error_details(code, "no room", details))
    }

    #[test]
    fn the_disposition_decides_the_exit_code() {
        let code = Code::ResourceExhausted;
        for (disposition, exit_code) in [
            ("WAIT", EXIT_REFUSED_FOR_NOW),
            ("OPERATOR", EXIT_REFUSED),
            ("CALLER", EXIT_REFUSED),
            ("NEW", EXIT_REFUSED),
        ] {
            let error = refusal(code, "PORTS_EXHAUSTED", disposition, ErrorDetails::new());
            assert_eq!(error.exit_code(), exit_code, "{disposition}");
        }
        let error = refusal(Code::Unavailable, "DATABASE_UNAVAILABLE", "TECHNICAL", ErrorDetails::new());
        assert_eq!(error.exit_code(), EXIT_REFUSED);
    }

    #[test]
    fn an_error_that_is_not_the_services_own_is_unreachable_or_a_failure() {
        assert_eq!(CliError::from(Status::unavailable("tcp connect error")).exit_code(), EXIT_UNREACHABLE);
        assert_eq!(CliError::from(Status::unimplemented("")).exit_code(), EXIT_FAILURE);
        assert_eq!(CliError::from(Status::cancelled("Timeout expired")).exit_code(), EXIT_FAILURE);
        let mut details = ErrorDetails::new();
        details.set_error_info("X", "elsewhere", [(DISPOSITION.to_owned(), WAIT.to_owned())]);
        let foreign = Status::with_error_details(Code::Unavailable, "proxy", details);
        assert_eq!(CliError::from(foreign).exit_code(), EXIT_UNREACHABLE);
    }

    #[test]
    fn a_closed_output_is_no_failure_and_another_write_error_is() {
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit_code(), EXIT_DONE);
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::StorageFull)).exit_code(), EXIT_FAILURE);
    }

    #[test]
    fn a_refusal_is_told_with_its_reason_and_next_step() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(5)));
        let report = Report::of(&refusal(Code::ResourceExhausted, "INSUFFICIENT_CAPACITY", WAIT, details));
        insta::assert_snapshot!(report.to_text(), @r"
        error: no room
        reason: INSUFFICIENT_CAPACITY (disposition WAIT)
        request_id: r-1
        next: try again in 5s
        ");
    }

    #[test]
    fn bad_fields_are_listed() {
        let details = ErrorDetails::with_bad_request_violation("modules[3].port", "must be 1 to 65535");
        let error = refusal(Code::InvalidArgument, "INVALID_REQUEST", "CALLER", details);
        insta::assert_snapshot!(Report::of(&error).to_text(), @r"
        error: no room
        reason: INVALID_REQUEST (disposition CALLER)
          modules[3].port: must be 1 to 65535
        request_id: r-1
        next: change the request
        ");
        insta::assert_snapshot!(serde_json::to_string_pretty(&Report::of(&error)).unwrap(), @r#"
        {
          "code": "INVALID_ARGUMENT",
          "reason": "INVALID_REQUEST",
          "disposition": "CALLER",
          "message": "no room",
          "metadata": {
            "disposition": "CALLER",
            "request_id": "r-1"
          },
          "field_violations": [
            {
              "field": "modules[3].port",
              "description": "must be 1 to 65535"
            }
          ],
          "next_step": "change the request",
          "exit_code": 4
        }
        "#);
    }

    #[test]
    fn a_compacted_token_comes_with_the_oldest_there_is() {
        let mut details = ErrorDetails::new();
        let metadata = [(DISPOSITION, "CALLER"), ("oldest_resume_token", "t-9")];
        details.set_error_info(
            "SEQUENCE_COMPACTED",
            DOMAIN,
            metadata.map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let error = CliError::from(Status::with_error_details(Code::OutOfRange, "gone", details));
        let next_step = Report::of(&error).next_step.unwrap();
        assert_eq!(next_step, "resume at the oldest token with --resume-token t-9");
    }
}
