//! Why someone in line waits: what its request meets now, where the event of its arrival tells what it met then.
//!
//! It is what the request meets on its own. What is kept for the first in line looks like a server that is full, and would hide
//! that the server lacks the ports; so a server is told as it is without that. Where there would be all that is asked for, but for
//! what is kept, those ahead are the reason: there is no room now, as whoever asks without waiting is told too.

use super::{Waiter, WaitingAsk, may_wait};
use crate::domain::{
    Fleet, Project, Reason,
    fleet::ServerState,
    placement::{
        Context, decide,
        filter::{Exclusion, fits},
    },
    ports::PortShortage,
};

/// Tells reasons, of as many as are asked about, by one state of the fleet.
#[derive(Debug)]
pub struct Reasons<'a> {
    fleet: &'a Fleet,
    context: &'a Context,
    /// The server on which something is kept, as it is without that.
    unkept: Option<ServerState>,
}

impl<'a> Reasons<'a> {
    /// By a fleet.
    #[must_use]
    pub fn of(fleet: &'a Fleet, context: &'a Context) -> Self {
        let kept = fleet.line().kept.as_ref().and_then(|kept| fleet.get(&kept.server_handle));
        let unkept = kept.map(|state| ServerState { kept: None, ..state.clone() });
        Self { fleet, context, unkept }
    }

    /// Why a project waits that holds this. One that waits for nothing, because its turn has come or it can never be placed, has
    /// the reason that it came with until the line is settled.
    #[must_use]
    pub fn find(&self, project: &Project, waiter: &Waiter) -> Reason {
        let request = waiter.ensure_request();
        let refusal = decide(self.fleet, project, &request, self.context).err();
        let met = refusal.filter(may_wait).map(|refusal| refusal.reason);
        match met {
            Some(Reason::InsufficientCapacity)
                if self.lacks_ports_alone(&WaitingAsk::of(project, &request)) =>
            {
                Reason::PortsExhausted
            }
            Some(reason) => reason,
            None => waiter.reason,
        }
    }

    /// Whether the server on which something is kept has the room, and not the ports.
    fn lacks_ports_alone(&self, ask: &WaitingAsk) -> bool {
        self.unkept.as_ref().filter(|state| ask.concerns(state)).is_some_and(|state| {
            let exclusion = fits(state, &ask.as_ask(), self.context).err();
            matches!(exclusion, Some(Exclusion::Ports(PortShortage::Exhausted { .. })))
        })
    }
}
