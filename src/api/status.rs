//! Errors, from the use cases to gRPC: the one place that names status codes. Each status carries an ErrorInfo with its reason
//! and disposition (AIP-193); what goes wrong inside is in the log, never in the answer.

use std::{collections::HashMap, time::Duration};

use prost::Message as _;
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderMap, Response},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    call_notes,
    code_name::code_name,
    decode::{FieldViolation, MAX_VIOLATIONS, told},
    token::{ResumeToken, Tokens},
};
use crate::{
    allocator::Error,
    auth::Denied,
    domain::{Disposition, Reason, refusal::cut},
    events::WatchError,
    proto::rpc,
    store::StoreError,
};

pub use super::error::ApiError;

/// The domain of every ErrorInfo.
pub const DOMAIN: &str = "resourceallocator";

/// An error travels in headers, of which some clients take no more than 8 KB and drop the answer otherwise: what is told is cut
/// to fit. Text that is not ASCII takes three bytes for each of its own.
const MAX_MESSAGE_BYTES: usize = 800;
const MAX_VALUE_BYTES: usize = 400;
const MAX_VIOLATION_BYTES: usize = 2_500;
/// How many bad fields the message tells of; the details tell of the others too.
const MAX_TOLD_VIOLATIONS: usize = 5;

/// When a request that the service could not take now may be repeated.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The code of a refusal.
#[must_use]
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::ServerNotFound | Reason::ProjectNotFound | Reason::ModuleNotFound => Code::NotFound,
        Reason::NoServers
        | Reason::NoAdmissibleServer
        | Reason::RequestExceedsFleet
        | Reason::NoMatchingServer
        | Reason::PlacedElsewhere
        | Reason::BoundServerNotAdmissible
        | Reason::PortTaken
        | Reason::ServerInUse
        | Reason::SyncRefused => Code::FailedPrecondition,
        Reason::InsufficientCapacity | Reason::PortsExhausted | Reason::LineFull => Code::ResourceExhausted,
        Reason::UsageStale => Code::Unavailable,
        Reason::EtagMismatch | Reason::WaitSuperseded | Reason::WaitReleased => Code::Aborted,
        Reason::WaitTimedOut => Code::DeadlineExceeded,
        Reason::ExternalIdTaken => Code::AlreadyExists,
    }
}

/// What a status says, before it is one.
struct Answer {
    code: Code,
    reason: &'static str,
    disposition: Disposition,
    message: String,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
    violations: Vec<FieldViolation>,
}

impl Answer {
    fn new(code: Code, reason: &'static str, disposition: Disposition, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            disposition,
            message: message.into(),
            metadata: HashMap::new(),
            retry_after: None,
            violations: Vec::new(),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "numbers and names are given alike")]
    fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where a status is made")]
    fn into_status(self, request_id: &str) -> Status {
        let message = cut(self.message, MAX_MESSAGE_BYTES);
        let disposition = self.disposition.as_str();
        metrics::counter!("allocator_refusals_total", "reason" => self.reason, "disposition" => disposition)
            .increment(1);
        call_notes::note_refusal(code_name(self.code), self.reason, self.disposition, &message);
        let mut metadata: HashMap<_, _> =
            self.metadata.into_iter().map(|(key, value)| (key, cut(value, MAX_VALUE_BYTES))).collect();
        metadata.insert("disposition".to_owned(), disposition.to_owned());
        metadata.insert("request_id".to_owned(), request_id.to_owned());
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, metadata);
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        for violation in self.violations {
            details.add_bad_request_violation(violation.field, violation.description);
        }
        Status::with_error_details(self.code, message, details)
    }
}

/// What an error says where it is told beside others, in an answer that is no error itself.
#[must_use]
pub fn told_beside(error: &Error) -> (&'static str, Disposition, String) {
    let answer = allocator(error);
    (answer.reason, answer.disposition, cut(answer.message, MAX_MESSAGE_BYTES))
}

/// The status of an error. Tokens that it carries are sealed with `tokens`; `epoch` is the history that they are of.
#[must_use]
pub fn to_status(error: &ApiError, request_id: &str, tokens: &Tokens, epoch: Option<uuid::Uuid>) -> Status {
    let answer = match error {
        ApiError::Invalid(violations) => invalid(violations),
        ApiError::Allocator(error) => allocator(error),
        ApiError::Watch(error) => watch(error, tokens, epoch),
        ApiError::UnknownService => Answer::new(
            Code::Unimplemented,
            "NOT_IMPLEMENTED",
            Disposition::Caller,
            "there is no such service here; reflection lists those that there are",
        ),
        ApiError::PathNotFound { path } => Answer::new(
            Code::NotFound,
            "PATH_NOT_FOUND",
            Disposition::Caller,
            format!("nothing is at {}; there are /api/allocations/, /healthz and /readyz", told(path)),
        )
        .with("path", told(path)),
        ApiError::MethodNotAllowed { method } => Answer::new(
            Code::Unimplemented,
            "NOT_IMPLEMENTED",
            Disposition::Caller,
            format!("the path does not take {}; the header `allow` lists what it takes", told(method)),
        )
        .with("method", told(method)),
        ApiError::OriginNotAllowed { origin } => Answer::new(
            Code::PermissionDenied,
            "ORIGIN_NOT_ALLOWED",
            Disposition::Operator,
            format!("pages of {} may not call; --cors-origin names those that may", told(origin)),
        )
        .with("origin", told(origin)),
        ApiError::Denied(denied) => self::denied(denied),
        ApiError::RateLimited { limit, retry_after } => Answer::new(
            Code::ResourceExhausted,
            "RATE_LIMITED",
            Disposition::Technical,
            format!("the caller makes more than {limit} calls a second; try again"),
        )
        .with("limit", limit)
        .retry_after(*retry_after),
        ApiError::TooManyConnections { limit } => Answer::new(
            Code::ResourceExhausted,
            "OVERLOADED",
            Disposition::Technical,
            format!("there are {limit} connections already, which is the most that this replica takes; connect anew and try again"),
        )
        .with("connection_limit", limit)
        .retry_after(RETRY_SOON),
        ApiError::DatabaseUnavailable => database_unavailable(),
    };
    answer.into_status(request_id)
}

/// A status as a message, which its details are.
#[must_use]
pub fn to_message(status: &Status) -> rpc::Status {
    rpc::Status::decode(status.details()).unwrap_or_else(|_| rpc::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// The answer to a call whose deadline passed.
#[must_use]
pub fn deadline_passed(request_id: &str) -> Response<Body> {
    let answer = Answer::new(
        Code::DeadlineExceeded,
        "DEADLINE_PASSED",
        Disposition::Technical,
        "the deadline passed before there was an answer, so whether something was committed is not known; repeating it is safe",
    );
    answer.into_status(request_id).into_http()
}

/// The status of what the transport refused without a reason, by the headers of its answer; none for an answer that is no error,
/// has details, or is not the transport's.
#[must_use]
pub fn of_transport(headers: &HeaderMap, request_id: &str) -> Option<Status> {
    let refused = Status::from_header_map(headers)?;
    if !refused.details().is_empty() {
        return None;
    }
    let (code, reason, disposition) = match refused.code() {
        Code::Unimplemented => (Code::Unimplemented, "NOT_IMPLEMENTED", Disposition::Caller),
        Code::OutOfRange | Code::ResourceExhausted => {
            (refused.code(), "INVALID_REQUEST", Disposition::Caller)
        }
        // No handler of ours answers without details: this is a message that could not be read.
        Code::Internal | Code::Unknown | Code::InvalidArgument => {
            (Code::InvalidArgument, "INVALID_REQUEST", Disposition::Caller)
        }
        Code::Cancelled | Code::DeadlineExceeded => {
            (refused.code(), "DEADLINE_PASSED", Disposition::Technical)
        }
        _ => return None,
    };
    let message = match refused.message() {
        "" => "the service does not offer this method; reflection lists those that it does",
        message => message,
    };
    Some(Answer::new(code, reason, disposition, message).into_status(request_id))
}

fn invalid(violations: &[FieldViolation]) -> Answer {
    let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
    let mut told: Vec<_> = violations
        .iter()
        .take(MAX_TOLD_VIOLATIONS)
        .map(|violation| format!("{} {}", violation.field, violation.description))
        .collect();
    if violations.len() > MAX_TOLD_VIOLATIONS {
        let more = violations.len() - MAX_TOLD_VIOLATIONS;
        // Beyond so many they were not counted.
        let at_least = if violations.len() < MAX_VIOLATIONS { "" } else { "at least " };
        told.push(format!("and {at_least}{more} fields more"));
    }
    let mut answer = Answer::new(
        Code::InvalidArgument,
        "INVALID_REQUEST",
        Disposition::Caller,
        format!("the request is malformed: {}", told.join("; ")),
    )
    .with("fields", fields.join(", "));
    let mut room = MAX_VIOLATION_BYTES;
    answer.violations = violations
        .iter()
        .take_while(|violation| {
            let length = violation.field.len() + violation.description.len();
            room.checked_sub(length).inspect(|left| room = *left).is_some()
        })
        .cloned()
        .collect();
    answer
}

fn denied(denied: &Denied) -> Answer {
    let (code, reason) = if denied.is_unknown() {
        (Code::Unauthenticated, "UNAUTHENTICATED")
    } else {
        (Code::PermissionDenied, "FORBIDDEN")
    };
    let answer = Answer::new(code, reason, Disposition::Caller, denied.to_string());
    denied.metadata().into_iter().fold(answer, |answer, (name, value)| answer.with(name, value))
}

fn allocator(error: &Error) -> Answer {
    match error {
        Error::Refused(refusal) => {
            let reason = refusal.reason;
            let mut answer =
                Answer::new(code(reason), reason.as_str(), reason.disposition(), refusal.message.clone());
            answer.metadata.extend(refusal.metadata.clone());
            answer.retry_after = reason.retry_after();
            answer
        }
        Error::Store(error) => store(error),
        Error::Overloaded { limit } => Answer::new(
            Code::ResourceExhausted,
            "OVERLOADED",
            Disposition::Technical,
            format!(
                "{limit} requests are waiting already, which is the most that this replica takes; try again"
            ),
        )
        .with("queue_limit", limit)
        .retry_after(RETRY_SOON),
        Error::DeadlinePassed => Answer::new(
            Code::DeadlineExceeded,
            "DEADLINE_PASSED",
            Disposition::Technical,
            "the deadline passed while the request waited, and nothing was done; repeating it is safe",
        ),
        Error::ShuttingDown => shutting_down(),
    }
}

fn store(error: &StoreError) -> Answer {
    match error {
        StoreError::Unavailable(_) | StoreError::Busy(_) => database_unavailable(),
        StoreError::Overloaded { limit } => Answer::new(
            Code::ResourceExhausted,
            "OVERLOADED",
            Disposition::Technical,
            format!("all {limit} connections to the database that reads share are in use, and nothing was done; try again"),
        )
        .with("database_connection_limit", limit)
        .retry_after(RETRY_SOON),
        StoreError::Constraint { .. } | StoreError::Inconsistent { .. } | StoreError::Driver(_) => {
            Answer::new(
                Code::Internal,
                "INTERNAL",
                Disposition::Technical,
                "the service met a fault of its own; its log tells more under the request's id",
            )
        }
    }
}

fn database_unavailable() -> Answer {
    Answer::new(
        Code::Unavailable,
        "DATABASE_UNAVAILABLE",
        Disposition::Technical,
        "the database cannot be reached now, so whether the request was committed is not known; repeating it is safe",
    )
    .retry_after(RETRY_SOON)
}

fn shutting_down() -> Answer {
    Answer::new(
        Code::Unavailable,
        "SHUTTING_DOWN",
        Disposition::Technical,
        "this replica is shutting down; another one answers",
    )
    .retry_after(RETRY_SOON)
}

fn watch(error: &WatchError, tokens: &Tokens, epoch: Option<uuid::Uuid>) -> Answer {
    let token = |sequence: i64| match epoch {
        Some(epoch) => tokens.seal(&ResumeToken { epoch, sequence }),
        None => String::new(),
    };
    match error {
        WatchError::Compacted { oldest, .. } => Answer::new(
            Code::OutOfRange,
            "SEQUENCE_COMPACTED",
            Disposition::Caller,
            "the events after the token were dropped by retention; list anew, or resume after the oldest token",
        )
        .with("oldest_resume_token", token(*oldest)),
        WatchError::Restarted => Answer::new(
            Code::FailedPrecondition,
            "LOG_RESTARTED",
            Disposition::Caller,
            "the token is of another history: the database was restored or made anew; list anew, then watch",
        ),
        WatchError::TooSlow { last } => Answer::new(
            Code::ResourceExhausted,
            "WATCHER_TOO_SLOW",
            Disposition::Technical,
            "the watcher did not keep up; resume after its last token",
        )
        .with("resume_token", token(*last)),
        WatchError::ShuttingDown => shutting_down(),
        WatchError::Store(error) => store(error),
    }
}
