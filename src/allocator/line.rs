//! The waiting line within a transaction: who joins, who leaves, who is served. Whatever was given back is offered to the line
//! before any request is decided, so that nobody who comes later takes what someone in line could use.

use std::{collections::HashMap, time::Duration};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    command::{Answer, Place},
    ensure,
    journal::Journal,
};
use crate::{
    domain::{
        Fleet, Project, ProjectId, Reason, Refusal,
        event::{Operation, Served},
        line::{LeaveCause, Settling, Step, Waiter, Waiting, WaitingRequest, may_wait, refresh_kept},
        placement::Context,
        request::EnsureRequest,
    },
    store::{StoreError, placements, pools::PoolState, waiters},
};

/// An ensure that waits in line where there is no room now.
#[derive(Debug)]
pub struct WaitRequest {
    /// What is asked for.
    pub request: EnsureRequest,
    /// For how long it waits.
    pub wait: Duration,
    /// The call.
    pub caller: Uuid,
}

/// Decides an ensure, and has it stand in line where that may help.
///
/// # Errors
/// The refusal, which is taken up too.
pub fn wait(
    journal: &mut Journal,
    fleet: &mut Fleet,
    asked: &WaitRequest,
    request_id: &str,
    (pool, context, limit): (&PoolState, &Context, usize),
) -> Result<Answer, Refusal> {
    let request = &asked.request;
    let id = &request.project_id;
    let wanted = WaitingRequest::of(request);
    let standing = fleet.line().get(id).filter(|waiter| waiter.end() > context.now).cloned();
    let same = standing.as_ref().filter(|waiter| waiter.request == wanted);
    let served = same.map(|waiter| Served { arrival: waiter.arrival, since: waiter.since });
    let refusal = match ensure::decide_and_record(journal, fleet, request, request_id, context, served) {
        Ok(answer) => return Ok(Answer::Ensured(answer)),
        Err(refusal) => refusal,
    };
    if !may_wait(&refusal) {
        match same {
            Some(waiter) => refuse(journal, fleet, waiter, &refusal),
            None => ensure::record_refusal(journal, fleet, request, request_id, &refusal),
        }
        return Err(refusal);
    }
    let is_new = standing.as_ref().is_none_or(|waiter| !waiter.is_present());
    if is_new && fleet.line().len() >= limit {
        let refusal = line_full(id, limit);
        ensure::record_refusal(journal, fleet, request, request_id, &refusal);
        return Err(refusal);
    }
    let own_deadline = context.now + asked.wait;
    // Whoever waits for the same already may wait for longer.
    let others = same.filter(|waiter| waiter.is_present()).map(|waiter| waiter.deadline);
    let deadline = others.map_or(own_deadline, |deadline| deadline.max(own_deadline));
    let place = match same {
        Some(_) => fleet.line().place(id),
        None => u32::try_from(fleet.line().len() + usize::from(is_new)).unwrap_or(u32::MAX),
    };
    let waiting = Waiting {
        request: wanted,
        reason: refusal.reason,
        place,
        caller: asked.caller,
        arrival: same.map(|waiter| waiter.arrival),
        since: same.map_or(context.now, |waiter| waiter.since),
        deadline,
    };
    let arrival = waiting.arrival.unwrap_or(fleet.sequence() + 1);
    let sequence =
        journal.record(fleet, Some(id.clone()), None, request_id, Operation::Waiting(Box::new(waiting)));
    Ok(Answer::Waits(Place {
        epoch: pool.epoch,
        sequence,
        arrival,
        reason: refusal.reason,
        own_deadline,
        deadline,
    }))
}

fn line_full(id: &ProjectId, limit: usize) -> Refusal {
    Refusal::new(
        Reason::LineFull,
        format!("{limit} projects stand in line already, which is the most that it takes; try again later"),
    )
    .with("project_id", id)
    .with("line_limit", limit)
}

/// A call that waited hung up. Where a later one took over from it, that one waits on.
pub fn leave(journal: &mut Journal, fleet: &mut Fleet, project_id: &ProjectId, caller: Uuid) {
    let standing = fleet.line().get(project_id);
    let own = standing.filter(|waiter| waiter.is_present() && waiter.caller == caller).cloned();
    if let Some(waiter) = own {
        record(journal, fleet, &waiter, LeaveCause::Cancelled);
    }
}

/// A project that is released does not wait any more.
pub fn release(journal: &mut Journal, fleet: &mut Fleet, project_id: &ProjectId) {
    if let Some(waiter) = fleet.line().get(project_id).cloned() {
        record(journal, fleet, &waiter, LeaveCause::Released);
    }
}

fn record(journal: &mut Journal, fleet: &mut Fleet, waiter: &Waiter, cause: LeaveCause) {
    let left = Operation::LeftLine(waiter.left(cause));
    journal.act_for(waiter.actor.as_str());
    journal.record(fleet, Some(waiter.project_id.clone()), None, &waiter.request_id, left);
}

fn refuse(journal: &mut Journal, fleet: &mut Fleet, waiter: &Waiter, refusal: &Refusal) {
    let left = Operation::LeftLine(waiter.refused(refusal));
    journal.act_for(waiter.actor.as_str());
    journal.record(fleet, Some(waiter.project_id.clone()), None, &waiter.request_id, left);
}

/// Offers what was given back to those in line, in their order, and has those leave whose time is over or whose wish cannot be
/// granted any more.
///
/// # Errors
/// [`StoreError`].
pub async fn settle(
    conn: &mut PgConnection,
    journal: &mut Journal,
    fleet: &mut Fleet,
    context: &Context,
) -> Result<(), StoreError> {
    fleet.end_set_asides(context.now);
    if fleet.line().is_settled(context.now) {
        return Ok(());
    }
    let mut settling = Settling::begin();
    loop {
        match settling.next(fleet, &|id| journal.known(id), context) {
            Step::Settled => return Ok(()),
            Step::Look(ids) => {
                let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
                let found = placements::list_projects(conn, &names).await?;
                journal.learn(&ids, found.into_iter().map(|(id, record)| (id, record.project)));
            }
            Step::TimeOut(waiter) => {
                let refusal = waiter.timed_out(context.now);
                refuse(journal, fleet, &waiter, &refusal);
            }
            Step::Forget(id) => {
                fleet.line_mut().forget(&id);
                journal.note_place(id);
            }
            Step::Satisfied(waiter) => record(journal, fleet, &waiter, LeaveCause::Satisfied),
            Step::Refuse(waiter, refusal) => refuse(journal, fleet, &waiter, &refusal),
            Step::Serve(waiter) => serve(journal, fleet, &waiter, context),
        }
    }
}

fn serve(journal: &mut Journal, fleet: &mut Fleet, waiter: &Waiter, context: &Context) {
    let request = waiter.ensure_request();
    let served = Served { arrival: waiter.arrival, since: waiter.since };
    journal.act_for(waiter.actor.as_str());
    let result =
        ensure::decide_and_record(journal, fleet, &request, &waiter.request_id, context, Some(served));
    match result {
        Err(refusal) if !may_wait(&refusal) => refuse(journal, fleet, waiter, &refusal),
        // One that cannot be placed after all stays where it is.
        _ => {}
    }
}

/// Has a fleet that was caught up keep for the first in line what the next transaction would.
///
/// # Errors
/// [`StoreError`].
pub async fn refresh(
    conn: &mut PgConnection,
    fleet: &mut Fleet,
    context: &Context,
) -> Result<(), StoreError> {
    let mut known = HashMap::new();
    while let Some(id) = refresh_kept(fleet, &|id| known.get(id).cloned(), context) {
        let mut found = placements::list_projects(conn, &[id.to_string()]).await?;
        let project = found.remove(&id).map(|record| record.project);
        known.insert(id.clone(), project.unwrap_or_else(|| Project::unplaced(id)));
    }
    Ok(())
}

/// Writes the places that the transaction's operations took, changed or gave up.
///
/// # Errors
/// [`StoreError`].
pub async fn write(conn: &mut PgConnection, journal: &Journal, fleet: &Fleet) -> Result<(), StoreError> {
    let (mut standing, mut gone) = (Vec::new(), Vec::new());
    for id in journal.places() {
        match fleet.line().get(&id) {
            Some(waiter) => standing.push(waiter),
            None => gone.push(id.to_string()),
        }
    }
    if !gone.is_empty() {
        waiters::delete(conn, &gone).await?;
    }
    if !standing.is_empty() {
        waiters::insert_or_update(conn, &standing).await?;
    }
    Ok(())
}

/// Whether time alone may have made something of the line: a place that ends, or a port that may be given again.
#[must_use]
pub fn is_due(fleet: &Fleet, context: &Context) -> bool {
    let line = fleet.line();
    let is_over = |end: Option<OffsetDateTime>| end.is_some_and(|end| end <= context.now);
    is_over(line.next_end()) || !line.is_empty() && is_over(fleet.next_set_aside_end())
}
