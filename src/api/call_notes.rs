//! What the log tells of a call: one line when it is answered, with what was noted on the way. The notes travel with the task that
//! serves the call.

use std::{cell::RefCell, time::Duration};

use tonic::{body::Body, codegen::http::Response};

use super::code_name::{code_of, is_ok};
use crate::domain::Disposition;

tokio::task_local! {
    static NOTES: RefCell<CallNotes>;
}

/// What was noted of a call.
#[derive(Debug, Default)]
pub struct CallNotes {
    request_id: String,
    project_id: Option<String>,
    outcome: Option<&'static str>,
    reason: Option<&'static str>,
    told: Option<String>,
}

/// Serves a call that notes may be made of.
pub fn noting<T>(request_id: String, work: impl Future<Output = T>) -> impl Future<Output = T> {
    NOTES.scope(RefCell::new(CallNotes { request_id, ..CallNotes::default() }), work)
}

/// The id of the call at hand; empty where there is none.
#[must_use]
pub fn request_id() -> String {
    NOTES.try_with(|notes| notes.borrow().request_id.clone()).unwrap_or_default()
}

/// Notes the project that the call is about, as far as it makes sense to repeat it.
pub fn note_project(project_id: &str) {
    let _ = NOTES.try_with(|notes| notes.borrow_mut().project_id = Some(super::told(project_id)));
}

/// Notes what came of it, in a word.
pub fn note_outcome(outcome: &'static str) {
    let _ = NOTES.try_with(|notes| notes.borrow_mut().outcome = Some(outcome));
}

/// Notes why it is refused. Where no call is at hand, such as behind a stream's headers, it is told at once.
pub fn note_refusal(code: &'static str, reason: &'static str, disposition: Disposition, told: &str) {
    let noted = NOTES.try_with(|notes| {
        let mut notes = notes.borrow_mut();
        notes.outcome = Some(if disposition == Disposition::Technical { "failed" } else { "refused" });
        notes.reason = Some(reason);
        notes.told = Some(told.to_owned());
    });
    if noted.is_err() {
        tracing::info!(code, reason, told, "refused");
    }
}

/// Writes the line of a call that is answered. What is no call of ours, such as a probe, is told to those who ask for it.
pub fn write(response: &Response<Body>, duration: Duration, is_ours: bool) {
    let CallNotes { project_id, outcome, reason, told, .. } =
        NOTES.try_with(RefCell::take).unwrap_or_default();
    let code = code_of(response);
    let http_status = response.status().as_u16();
    let outcome = outcome.unwrap_or(if is_ok(response) { "ok" } else { "failed" });
    let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if is_ours {
        tracing::info!(code, http_status, project_id, outcome, reason, told, duration_us, "answered");
    } else {
        tracing::debug!(code, http_status, outcome, reason, told, duration_us, "answered");
    }
}
