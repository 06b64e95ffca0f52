//! Leases within a transaction: placements end by themselves, and never because nobody could renew them.
//!
//! The clock of the leases is the database's, and it stands still while nobody can renew: every few seconds, while there are
//! leases, a transaction notes in the pool's row that it could (`leases_served_time`). Where the note is old, nobody could for
//! as long (the database was away, or every replica was), and the first transaction after that moves the ends of the leases by
//! as much.

use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::{
    command::{Job, Request},
    ensure,
    journal::Journal,
};
use crate::{
    domain::{
        Fleet, ProjectId,
        event::ReleaseCause,
        request::{EnsureRequest, ReleaseRequest},
    },
    store::{
        StoreError,
        leases::{self, LeaseState},
        placements,
    },
};

/// How often it is noted that leases can be renewed.
const NOTED: Duration = Duration::seconds(2);
/// How old the note may grow before nobody could renew. Less than the shortest lease.
const OUTAGE: Duration = Duration::seconds(4);
/// What is left of a lease after an outage at least, however little was left before: as long as the outage was, up to this.
const LEFT_AT_LEAST: Duration = Duration::seconds(60);
/// How many leases end in one transaction.
const OVER_STEP: i64 = 256;
/// Who is named in the log where nobody asked.
const BY_CLOCK: &str = "clock";

/// Whether time alone makes something of the leases.
pub fn is_due(leases: &LeaseState, now: OffsetDateTime) -> bool {
    leases.over || leases.any && is_note_old(leases.served_time, now)
}

/// Whether it should be noted anew that leases can be renewed. It is looked every [`NOTED`], a moment before the transaction in which
/// the note is made: a note of the last look is a little younger than that, and to pass it over would make of two rounds an outage.
fn is_note_old(noted: Option<OffsetDateTime>, now: OffsetDateTime) -> bool {
    noted.is_none_or(|noted| (now - noted).abs() >= NOTED / 2)
}

fn concerns_leases(job: &Job) -> bool {
    let has_ttl = |request: &EnsureRequest| request.ttl.is_some();
    match &job.request {
        Request::Ensure(request) => has_ttl(request),
        Request::Wait(asked) => has_ttl(&asked.request),
        Request::Housekeep => true,
        _ => false,
    }
}

/// Has the clock of the leases go on, before anything is read of them. An idle pool without leases is not written.
///
/// # Errors
/// [`StoreError`].
pub async fn keep_time(
    conn: &mut PgConnection,
    batch: &[Job],
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    if !batch.iter().any(concerns_leases) {
        return Ok(());
    }
    let state = leases::find(conn, now).await?;
    let makes_one =
        batch.iter().any(|job| !matches!(job.request, Request::Housekeep) && concerns_leases(job));
    if !state.any && !makes_one {
        return Ok(());
    }
    let away = state.served_time.map_or(Duration::ZERO, |served| now - served);
    if let Some(served) = state.served_time.filter(|_| away > OUTAGE) {
        let moved = leases::update_expire_times(conn, served, away, now + away.min(LEFT_AT_LEAST)).await?;
        if moved > 0 {
            tracing::warn!(
                leases = moved,
                seconds = away.whole_seconds(),
                "nobody could renew leases for a while; they last longer by as much"
            );
        }
    }
    if is_note_old(state.served_time, now) {
        leases::update_served_time(conn, now).await?;
    }
    Ok(())
}

/// Ends the leases that are over, but for those that were renewed a moment ago.
///
/// # Errors
/// [`StoreError`].
pub async fn end(
    conn: &mut PgConnection,
    journal: &mut Journal,
    fleet: &mut Fleet,
    free_after: OffsetDateTime,
) -> Result<(), StoreError> {
    let now = journal.now;
    let over = leases::list_over(conn, now, OVER_STEP).await?;
    if over.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = over.iter().filter_map(|id| ProjectId::parse(id).ok()).collect();
    let unknown: Vec<_> = ids.iter().filter(|id| journal.known(id).is_none()).cloned().collect();
    let names: Vec<_> = unknown.iter().map(ToString::to_string).collect();
    let found = placements::list_projects(conn, &names).await?;
    journal.learn(&unknown, found.into_iter().map(|(id, record)| (id, record.project)));
    for project_id in ids {
        let placement = journal.project(&project_id).placement;
        if placement.and_then(|placement| placement.expire_time).is_some_and(|end| end <= now) {
            let request = ReleaseRequest { project_id, modules: Vec::new() };
            ensure::release(journal, fleet, &request, BY_CLOCK, free_after, ReleaseCause::Expired);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::NOW;

    #[test]
    fn a_note_of_the_last_look_is_made_anew_by_this_one() {
        let is_due = |age_ms| {
            let served_time = Some(NOW - Duration::milliseconds(age_ms));
            is_due(&LeaseState { any: true, over: false, served_time }, NOW)
        };
        assert!(
            is_due(1_999),
            "it was made a moment after it was looked, and it is looked every two seconds"
        );
        assert!(!is_due(10), "another replica has made it");
        assert!(super::is_due(&LeaseState { any: true, over: false, served_time: None }, NOW));
        assert!(!super::is_due(&LeaseState { any: false, over: false, served_time: None }, NOW));
    }
}
