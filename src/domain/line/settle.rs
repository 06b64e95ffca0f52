//! Settling: who of those in line is served now, who is refused, and what is kept for the first. It is done in every transaction
//! before requests are decided, so that whatever was given back is offered to the line first, and again at its end.
//!
//! It is a machine that names one [`Step`] after the other, for what a project holds may have to be read, and each step is
//! committed and folded before the next one is named.

use super::{Changed, Kept, Line, Member, Waiter, WaitingAsk, may_wait};
use crate::domain::{
    Fleet, Project, ProjectId, Reason, Refusal, ServerHandle,
    fleet::ServerState,
    placement::{Context, Decision, decide},
    request::EnsureRequest,
};

/// How many projects are looked up at once.
const LOOK: usize = 256;

/// What is to be done next.
#[derive(Debug)]
pub enum Step {
    /// Tell what these projects hold, and ask again.
    Look(Vec<ProjectId>),
    /// Its time is over: it leaves the line with a refusal.
    TimeOut(Waiter),
    /// Its place was kept for long enough: [`Line::forget`] it.
    Forget(ProjectId),
    /// It holds all that it waits for: it leaves the line.
    Satisfied(Waiter),
    /// It can never be placed any more: it leaves the line with this refusal.
    Refuse(Waiter, Refusal),
    /// There is room: ensure it.
    Serve(Waiter),
    /// Nobody in line can be served.
    Settled,
}

/// What a project holds, where it is known.
pub type Known<'a> = &'a dyn Fn(&ProjectId) -> Option<Project>;

/// One settling of the line.
#[derive(Debug, Default)]
pub struct Settling {
    /// Up to whom it was looked at whether they can ever be placed.
    rechecked: i64,
    /// Who was the first in line and could not be served.
    first: Option<i64>,
    /// Up to whom it was looked at whether they can be served.
    tried: i64,
}

impl Settling {
    /// Begins.
    #[must_use]
    pub fn begin() -> Self {
        Self::default()
    }

    /// What is to be done next. What the last step named is done and folded by now.
    pub fn next(&mut self, fleet: &mut Fleet, known: Known<'_>, context: &Context) -> Step {
        let step = ended(fleet.line(), context)
            .or_else(|| learn(fleet, known, context))
            .or_else(|| self.serve_first(fleet, known, context))
            .or_else(|| self.recheck(fleet, known, context))
            .or_else(|| self.serve_others(fleet, known, context));
        step.unwrap_or_else(|| {
            let line = fleet.line_mut();
            line.changed = Changed::default();
            line.shrunk = false;
            for member in line.members.values_mut() {
                member.look_everywhere = false;
            }
            Step::Settled
        })
    }

    /// Who can never be placed any more.
    fn recheck(&mut self, fleet: &Fleet, known: Known<'_>, context: &Context) -> Option<Step> {
        if !fleet.line().shrunk {
            return None;
        }
        for (arrival, member) in fleet.line().members.range(self.rechecked + 1..) {
            if member.waiter.is_present()
                && let Some(step) = give_up(fleet, member, known, context)
            {
                return Some(step);
            }
            self.rechecked = *arrival;
        }
        None
    }

    fn serve_first(&mut self, fleet: &mut Fleet, known: Known<'_>, context: &Context) -> Option<Step> {
        let first = fleet.line().first().map(|(arrival, _)| arrival);
        if fleet.line().keeps_for != first {
            let_go(fleet);
        }
        let first = first?;
        if self.first == Some(first) {
            return None;
        }
        let retried = self.tried >= first;
        // What is kept is kept for it.
        if let Some(kept) = fleet.line().kept.clone() {
            fleet.keep(&kept.server_handle, None);
        }
        if !retried && would_fit(fleet, &fleet.line().members[&first], context) {
            let waiter = fleet.line().members[&first].waiter.clone();
            if known(&waiter.project_id).is_none() {
                return Some(Step::Look(vec![waiter.project_id]));
            }
            self.tried = first;
            return Some(Step::Serve(waiter));
        }
        keep_for_first(fleet, first, context);
        if fleet.line().kept.is_none() {
            // Of whoever comes later, what is kept for the first may hide that its port cannot be had.
            let step = give_up(fleet, &fleet.line().members[&first], known, context);
            if step.is_some() {
                return step;
            }
        }
        self.first = Some(first);
        self.tried = self.tried.max(first);
        None
    }

    fn serve_others(&mut self, fleet: &Fleet, known: Known<'_>, context: &Context) -> Option<Step> {
        let changed = changed_servers(fleet);
        for (arrival, member) in fleet.line().members.range(self.tried + 1..) {
            if member.waiter.is_present() && would_fit_among(fleet, member, changed.as_deref(), context) {
                let waiter = member.waiter.clone();
                if known(&waiter.project_id).is_none() {
                    return Some(Step::Look(vec![waiter.project_id]));
                }
                self.tried = *arrival;
                return Some(Step::Serve(waiter));
            }
            self.tried = *arrival;
        }
        None
    }
}

/// Whose time is over.
fn ended(line: &Line, context: &Context) -> Option<Step> {
    let (end, arrival) = line.ends.first()?;
    if *end > context.now {
        return None;
    }
    let waiter = &line.members[arrival].waiter;
    Some(if waiter.is_present() {
        Step::TimeOut(waiter.clone())
    } else {
        Step::Forget(waiter.project_id.clone())
    })
}

/// The refusal of someone in line who can never be placed any more.
fn give_up(fleet: &Fleet, member: &Member, known: Known<'_>, context: &Context) -> Option<Step> {
    if member.ask.as_ref()?.may_ever_fit(fleet, context) {
        return None;
    }
    let waiter = &member.waiter;
    let Some(project) = known(&waiter.project_id) else {
        return Some(Step::Look(vec![waiter.project_id.clone()]));
    };
    let refusal = decide(fleet, &project, &waiter.ensure_request(), context).err()?;
    (!may_wait(&refusal)).then(|| Step::Refuse(waiter.clone(), refusal))
}

/// Works out what those ask for of whom it is not known.
fn learn(fleet: &mut Fleet, known: Known<'_>, context: &Context) -> Option<Step> {
    let unknown = |line: &Line| -> Vec<Waiter> {
        let members = line.members.values().filter(|member| member.ask.is_none());
        members.map(|member| member.waiter.clone()).filter(Waiter::is_present).take(LOOK).collect()
    };
    loop {
        let waiters = unknown(fleet.line());
        if waiters.is_empty() {
            return None;
        }
        let missing: Vec<_> = waiters
            .iter()
            .map(|waiter| &waiter.project_id)
            .filter(|id| known(id).is_none())
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Some(Step::Look(missing));
        }
        for waiter in waiters {
            let Some(project) = known(&waiter.project_id) else { continue };
            let request = waiter.ensure_request();
            match decide(fleet, &project, &request, context) {
                Ok(Decision::Unchanged) => return Some(Step::Satisfied(waiter)),
                // A port that is taken on one server may be free on the next that has room.
                Err(refusal) if !may_wait(&refusal) && refusal.reason != Reason::PortTaken => {
                    return Some(Step::Refuse(waiter, refusal));
                }
                _ => {}
            }
            if let Some(member) = fleet.line_mut().members.get_mut(&waiter.arrival) {
                member.ask = Some(WaitingAsk::of(&project, &request));
                member.look_everywhere = true;
            }
        }
    }
}

/// The servers that may have got room; none where that may be any.
fn changed_servers(fleet: &Fleet) -> Option<Vec<&ServerState>> {
    match &fleet.line().changed {
        Changed::Any => None,
        Changed::These(handles) => Some(handles.iter().filter_map(|handle| fleet.get(handle)).collect()),
    }
}

fn would_fit(fleet: &Fleet, member: &Member, context: &Context) -> bool {
    would_fit_among(fleet, member, changed_servers(fleet).as_deref(), context)
}

fn would_fit_among(
    fleet: &Fleet,
    member: &Member,
    changed: Option<&[&ServerState]>,
    context: &Context,
) -> bool {
    let Some(ask) = &member.ask else { return false };
    match changed {
        Some(changed) if !member.look_everywhere => ask.fits_one_of(changed.iter().copied(), context),
        _ => ask.fits_anywhere(fleet, context),
    }
}

/// Keeps nothing any more. What was kept may be given to others now.
fn let_go(fleet: &mut Fleet) {
    let line = fleet.line_mut();
    line.keeps_for = None;
    if let Some(kept) = line.kept.take() {
        fleet.keep(&kept.server_handle, None);
        fleet.line_mut().touch(&kept.server_handle);
    }
}

/// Keeps for the first in line what it could use on the server that is nearest to having room for it. What was kept before is
/// given free already.
fn keep_for_first(fleet: &mut Fleet, first: i64, context: &Context) {
    let line = fleet.line();
    let before = line.kept.clone();
    let member = &line.members[&first];
    let Some(ask) = &member.ask else { return };
    let nearest = match (changed_servers(fleet), &before) {
        // The others only got further away since.
        (Some(changed), Some(kept)) if !line.shrunk && !member.look_everywhere => {
            let standing = fleet.get(&kept.server_handle);
            let nearest = ask.nearest(changed.into_iter().chain(standing), context);
            // Unless it was the nearest that did.
            match nearest {
                Some((distance, _)) if distance <= kept.distance => nearest,
                _ => ask.nearest_of_all(fleet, context),
            }
        }
        _ => ask.nearest_of_all(fleet, context),
    };
    let kept = nearest.map(|(distance, state)| {
        let server_handle = state.server.handle.clone();
        (Kept { server_handle, arrival: first, distance }, ask.to_keep(state, context))
    });
    if let Some(left) = before
        .filter(|before| kept.as_ref().is_none_or(|(kept, _)| kept.server_handle != before.server_handle))
    {
        fleet.line_mut().touch(&left.server_handle);
    }
    if let Some((kept, amounts)) = &kept {
        fleet.keep(&kept.server_handle, Some(*amounts));
    }
    let line = fleet.line_mut();
    line.kept = kept.map(|(kept, _)| kept);
    line.keeps_for = Some(first);
}

/// Decides an ensure. What is kept for the first in line is kept for it: not from it.
///
/// # Errors
/// The [`Refusal`] of the decision.
pub fn decide_in_line(
    fleet: &mut Fleet,
    project: &Project,
    request: &EnsureRequest,
    context: &Context,
) -> Result<Decision, Refusal> {
    let own = fleet.line().kept_for().filter(|(first, _)| **first == project.id);
    let Some(handle) = own.map(|(_, handle)| handle.clone()) else {
        return decide(fleet, project, request, context);
    };
    let kept = fleet.get(&handle).and_then(|state| state.kept);
    fleet.keep(&handle, None);
    let decision = decide(fleet, project, request, context);
    fleet.keep(&handle, kept);
    decision
}

/// Has a fleet that only folds what others commit keep what they keep, so that whoever asks it is told the same. Names a project
/// that must be known for that.
pub fn refresh_kept(fleet: &mut Fleet, known: Known<'_>, context: &Context) -> Option<ProjectId> {
    let line = fleet.line();
    let Some((first, member)) = line.first() else {
        let_go(fleet);
        return None;
    };
    let is_known = member.ask.is_some();
    if line.keeps_for == Some(first) && is_known && !line.shrunk && line.changed == Changed::default() {
        return None;
    }
    if !is_known {
        let waiter = member.waiter.clone();
        let Some(project) = known(&waiter.project_id) else { return Some(waiter.project_id) };
        let ask = WaitingAsk::of(&project, &waiter.ensure_request());
        if let Some(member) = fleet.line_mut().members.get_mut(&first) {
            member.ask = Some(ask);
        }
    }
    let_go(fleet);
    keep_for_first(fleet, first, context);
    None
}

impl Line {
    /// For whom something is kept, and on which server.
    #[must_use]
    pub fn kept_for(&self) -> Option<(&ProjectId, &ServerHandle)> {
        let kept = self.kept.as_ref()?;
        Some((&self.members.get(&kept.arrival)?.waiter.project_id, &kept.server_handle))
    }
}
