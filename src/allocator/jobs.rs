//! What is done with the requests of a batch as they are.

use tokio::time::Instant;
use tracing::Span;

use super::{
    Error,
    command::{Answer, Job, Request},
};
use crate::domain::ProjectId;

/// Those whose callers still wait: nobody else need cost a transaction.
pub(super) fn wanted(jobs: impl IntoIterator<Item = Job>) -> Vec<Job> {
    let now = Instant::now();
    let (given_up, wanted): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.is_given_up(now));
    fail(given_up, &Error::DeadlinePassed);
    wanted
}

/// Answers all with an error.
pub(super) fn fail(jobs: impl IntoIterator<Item = Job>, error: &Error) {
    for job in jobs {
        // A caller that hung up has no use for the answer.
        let _ = job.reply.send(Err(error.clone()));
    }
}

/// Answers each.
pub(super) fn answer(batch: Vec<Job>, answers: Vec<Result<Answer, Error>>) {
    for (job, answer) in batch.into_iter().zip(answers) {
        // A caller that hung up repeats the call and gets what was committed.
        let _ = job.reply.send(answer);
    }
}

/// The projects that a batch is about, each once.
pub(super) fn project_ids(batch: &[Job]) -> Vec<&ProjectId> {
    let mut ids: Vec<_> = batch
        .iter()
        .filter_map(|job| match &job.request {
            Request::Ensure(request) => Some(&request.project_id),
            Request::Wait(asked) => Some(&asked.request.project_id),
            Request::Release(request) => Some(&request.project_id),
            Request::Relocate(request) => Some(&request.project_id),
            Request::ReportPortInUse(report) => Some(&report.project_id),
            Request::Leave { .. }
            | Request::RegisterServer { .. }
            | Request::UpdateServer { .. }
            | Request::DeleteServer { .. }
            | Request::SyncServers(_)
            | Request::ReportUsage { .. }
            | Request::UpdatePolicy(_)
            | Request::Housekeep => None,
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The calls' spans in their traces.
pub(super) fn spans(batch: &[Job]) -> impl ExactSizeIterator<Item = &Span> {
    batch.iter().map(|job| &job.call.trace)
}

/// Counts what a transaction took out of the queue.
pub(super) fn count(batch: &[Job], taken: Instant) {
    let waited = metrics::histogram!("allocator_queue_wait_duration_seconds");
    for job in batch {
        waited.record(taken.duration_since(job.since));
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a batch is far smaller than what a float counts exactly"
    )]
    metrics::histogram!("allocator_batch_requests").record(batch.len() as f64);
}
