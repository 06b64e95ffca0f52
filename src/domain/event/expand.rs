//! What an operation expands to: the events that watchers see of it, each with a number of its own.

use super::{
    Ensured, Operation, PolicyChanged, PortReplaced, Refused, Released, Relocated, Requested, Selected,
    ServerChanged,
};
use crate::domain::{
    Allocation,
    line::{LeaveCause, LeftLine, Waiting},
};

/// An event, as watchers see it; a view into the operation that it is of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// An ensure was asked for.
    Requested(&'a Requested),
    /// A server was chosen.
    ServerSelected(&'a Ensured, Selected),
    /// A module was given its port.
    PortAllocated {
        /// The server's address.
        server_address: &'a str,
        /// The port.
        allocation: &'a Allocation,
    },
    /// The ensure was committed.
    Completed(&'a Ensured),
    /// The ensure was refused.
    Failed(&'a Refused),
    /// Ports were given back.
    Released(&'a Released),
    /// The project was moved.
    Relocated(&'a Relocated),
    /// A port was set aside.
    PortSetAside(&'a PortReplaced),
    /// The inventory changed.
    ServerChanged(&'a ServerChanged),
    /// The project stands in line.
    Waiting(&'a Waiting),
    /// The project left the line.
    LeftLine(&'a LeftLine),
    /// The fleet's policy changed.
    PolicyChanged(&'a PolicyChanged),
}

impl Operation {
    /// The events, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event<'_>> {
        match self {
            Self::Ensured(ensured) => {
                // Of one that stood in line it was told when it joined.
                let requested = ensured.served.is_none().then_some(&ensured.requested);
                let mut events: Vec<_> = requested.map(Event::Requested).into_iter().collect();
                events.extend(ensured.selected.map(|selected| Event::ServerSelected(ensured, selected)));
                events.extend(given(&ensured.server_address, &ensured.allocations));
                events.push(Event::Completed(ensured));
                events
            }
            Self::Refused(refused) => vec![Event::Requested(&refused.requested), Event::Failed(refused)],
            Self::Released(released) => vec![Event::Released(released)],
            Self::Relocated(relocated) => {
                let mut events = vec![Event::Relocated(relocated)];
                events.extend(given(&relocated.server_address, &relocated.allocations));
                events
            }
            Self::PortReplaced(replaced) => vec![
                Event::PortSetAside(replaced),
                Event::PortAllocated {
                    server_address: &replaced.server_address,
                    allocation: &replaced.allocation,
                },
            ],
            Self::ServerChanged(changed) => vec![Event::ServerChanged(changed)],
            Self::Waiting(waiting) => {
                let requested = waiting.arrival.is_none().then_some(&waiting.request.requested);
                let mut events: Vec<_> = requested.map(Event::Requested).into_iter().collect();
                events.push(Event::Waiting(waiting));
                events
            }
            Self::LeftLine(LeftLine { cause: LeaveCause::Refused(refused), .. }) => {
                vec![Event::Failed(refused)]
            }
            Self::LeftLine(left) => vec![Event::LeftLine(left)],
            Self::PolicyChanged(changed) => vec![Event::PolicyChanged(changed)],
        }
    }

    /// How many events there are: the width of the operation's span of numbers.
    #[must_use]
    pub fn event_count(&self) -> i64 {
        let count = |allocations: &[Allocation]| i64::try_from(allocations.len()).unwrap_or(i64::MAX);
        match self {
            Self::Ensured(ensured) => {
                let requested = i64::from(ensured.served.is_none());
                1 + requested + i64::from(ensured.selected.is_some()) + count(&ensured.allocations)
            }
            Self::Waiting(waiting) => 1 + i64::from(waiting.arrival.is_none()),
            Self::Relocated(relocated) => 1 + count(&relocated.allocations),
            Self::Refused(_) | Self::PortReplaced(_) => 2,
            Self::Released(_) | Self::ServerChanged(_) | Self::LeftLine(_) | Self::PolicyChanged(_) => 1,
        }
    }
}

fn given<'a>(server_address: &'a str, allocations: &'a [Allocation]) -> impl Iterator<Item = Event<'a>> {
    allocations.iter().map(move |allocation| Event::PortAllocated { server_address, allocation })
}
