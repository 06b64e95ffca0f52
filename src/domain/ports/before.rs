//! What a port was before it was taken, for a transaction that comes to nothing.

use time::OffsetDateTime;

use super::{Port, Protocol, ServerPorts};

/// How one port stood.
#[derive(Debug, Clone)]
pub struct Before {
    protocol: Protocol,
    port: Port,
    held: bool,
    resting: Option<OffsetDateTime>,
    set_aside: Option<OffsetDateTime>,
}

impl ServerPorts {
    /// How a port stands.
    #[must_use]
    pub fn standing(&self, protocol: Protocol, port: Port) -> Before {
        Before {
            protocol,
            port,
            held: self.held(protocol).contains(port.0),
            resting: self.resting.get((protocol, port)),
            set_aside: self.set_aside.get((protocol, port)),
        }
    }

    /// Has a port stand as it did.
    pub fn restore(&mut self, before: &Before) {
        let Before { protocol, port, held, resting, set_aside } = *before;
        if held {
            self.held_mut(protocol).insert(port.0);
        } else {
            self.held_mut(protocol).remove(port.0);
        }
        self.resting.restore((protocol, port), resting);
        self.set_aside.restore((protocol, port), set_aside);
    }
}
