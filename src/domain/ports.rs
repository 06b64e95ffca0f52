//! The ports of one server: which are held, which rest, which are never given; and the choice of the lowest free one.

mod before;
mod given_back;

use std::fmt;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, macros::datetime};

pub use self::before::Before;
use self::given_back::GivenBack;
use super::{
    ModuleName,
    port_set::{PortSet, lowest_outside},
    request::ModuleRequest,
    server::{Observation, Server},
};

/// The lowest port that is considered when a request names none.
pub const DEFAULT_START_PORT: Port = Port(8000);

/// When nothing rests any more: the last time that the tables can hold.
pub const FAR_FUTURE: OffsetDateTime = datetime!(9999-01-01 00:00 UTC);

/// A port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Port(u16);

/// The number is not 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 65535")]
pub struct PortError;

impl Port {
    /// The port as a number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for Port {
    type Error = PortError;
    fn try_from(port: u32) -> Result<Self, PortError> {
        u16::try_from(port).ok().filter(|port| *port != 0).map(Self).ok_or(PortError)
    }
}

impl From<Port> for u32 {
    fn from(port: Port) -> Self {
        port.0.into()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A range of ports, both ends inside, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest port.
    pub start: Port,
    /// The highest port, not below `start`.
    pub end: Port,
}

impl PortRange {
    /// The ports that a server gives unless it is registered with others: from the first that no privilege guards (RFC 6335) up
    /// to the last below Linux's default `net.ipv4.ip_local_port_range`, so that no outgoing connection of the host takes one.
    pub const DEFAULT: Self = Self { start: Port(1024), end: Port(32767) };

    /// Whether the port is in the range.
    #[must_use]
    pub fn contains(&self, port: Port) -> bool {
        self.start <= port && port <= self.end
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// A port that a module is to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGrant {
    /// The module.
    pub module: ModuleName,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
    /// Whether the module asked for this port and no other.
    pub pinned: bool,
}

/// Why an explicit port cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenCause {
    /// A project holds it.
    Allocated,
    /// The host reports that something listens on it.
    ListenedOn,
    /// A worker found it in use on the host a while ago.
    SetAside,
    /// It is in one of the server's excluded ranges.
    Excluded,
    /// It is outside the server's range.
    OutOfRange,
}

impl TakenCause {
    /// The cause's name in metadata.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allocated => "ALLOCATED",
            Self::ListenedOn => "LISTENED_ON",
            Self::SetAside => "SET_ASIDE",
            Self::Excluded => "EXCLUDED",
            Self::OutOfRange => "OUT_OF_RANGE",
        }
    }

    /// The cause in words that follow the port.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Allocated => "is allocated to a project",
            Self::ListenedOn => "is listened on by something that is not ours",
            Self::SetAside => "is set aside, for it was found in use on the host",
            Self::Excluded => "is in an excluded range",
            Self::OutOfRange => "is outside the server's port range",
        }
    }
}

/// Why a server does not have the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortShortage {
    /// An explicit port cannot be had.
    Taken {
        /// The module that asked for it.
        module: ModuleName,
        /// The port.
        port: Port,
        /// Its protocol.
        protocol: Protocol,
        /// Why.
        cause: TakenCause,
    },
    /// No free port is left at or above where the request starts.
    Exhausted {
        /// The module that found none.
        module: ModuleName,
        /// Its protocol.
        protocol: Protocol,
        /// The lowest port that was considered.
        start: Port,
        /// The server's range.
        range: PortRange,
    },
}

/// The ports of one server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerPorts {
    tcp: PortSet,
    udp: PortSet,
    /// Ports of either protocol that are never given.
    excluded: PortSet,
    /// Ports of either protocol that something on the host listens on; where we gave the port out, that something is ours.
    listened_on: PortSet,
    /// Given back, and until when they rest: meanwhile taken only where no other is free (L19).
    resting: GivenBack,
    /// Found in use on the host by something that is not ours, until when: meanwhile given to nobody (L18).
    set_aside: GivenBack,
}

impl ServerPorts {
    fn held(&self, protocol: Protocol) -> &PortSet {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    fn held_mut(&mut self, protocol: Protocol) -> &mut PortSet {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }

    /// Takes up what the server and its host say of ports that are not to be given.
    pub fn block(&mut self, server: &Server, observed: Option<&Observation>) {
        // Each port once, also where a thousand ranges overlap: all that is placed waits for this.
        let mut ranges = server.excluded_ports.clone();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut above = 0;
        let excluded = ranges.iter().flat_map(|range| {
            let from = above.max(u32::from(range.start));
            above = above.max(u32::from(range.end) + 1);
            (from..above).filter_map(|port| u16::try_from(port).ok())
        });
        self.excluded = excluded.collect();
        let listened_on = observed.map(|observed| observed.listening_ports.as_slice()).unwrap_or_default();
        self.listened_on = listened_on.iter().map(|port| port.0).collect();
    }

    /// Marks a port as held; it no longer rests.
    pub fn take(&mut self, protocol: Protocol, port: Port) {
        self.held_mut(protocol).insert(port.0);
        self.resting.remove((protocol, port));
        self.set_aside.remove((protocol, port));
    }

    /// Marks a port as given to nobody until then.
    pub fn set_aside(&mut self, protocol: Protocol, port: Port, until: OffsetDateTime, now: OffsetDateTime) {
        self.held_mut(protocol).remove(port.0);
        self.resting.remove((protocol, port));
        self.set_aside.insert((protocol, port), until, now);
    }

    /// Marks a port as given back, to rest until `free_after`.
    pub fn give_back(
        &mut self,
        protocol: Protocol,
        port: Port,
        free_after: OffsetDateTime,
        now: OffsetDateTime,
    ) {
        self.held_mut(protocol).remove(port.0);
        self.resting.insert((protocol, port), free_after, now);
    }

    /// Whether a port that is not held was given back, or set aside, and the tables may still say so.
    #[must_use]
    pub fn was_given_back(&self, protocol: Protocol, port: Port) -> bool {
        let port = (protocol, port);
        self.resting.get(port).or(self.set_aside.get(port)).is_some()
    }

    /// How many ports of either protocol are held.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    fn rests(&self, protocol: Protocol, port: Port, now: OffsetDateTime) -> bool {
        self.resting.is_before_its_time((protocol, port), now)
    }

    fn is_set_aside(&self, protocol: Protocol, port: Port, now: OffsetDateTime) -> bool {
        self.set_aside.is_before_its_time((protocol, port), now)
    }

    /// A port for each module, in their order: explicit ones as asked, the others the lowest free at or above `start`.
    ///
    /// # Errors
    /// [`PortShortage`] for the first module that cannot have one.
    pub fn choose(
        &self,
        server: &Server,
        modules: &[ModuleRequest],
        start: Port,
        now: OffsetDateTime,
    ) -> Result<Vec<PortGrant>, PortShortage> {
        // The common case, one module or two, needs no copy of the bitmaps: what this request already takes is the short list.
        let mut granted: Vec<(Protocol, Port)> = Vec::with_capacity(modules.len());
        for module in modules {
            let Some(port) = module.port else { continue };
            let protocol = module.protocol.unwrap_or(Protocol::Tcp);
            let twice = granted.contains(&(protocol, port)).then_some(TakenCause::Allocated);
            if let Some(cause) = self.why_taken(server, protocol, port, now).or(twice) {
                return Err(PortShortage::Taken { module: module.name.clone(), port, protocol, cause });
            }
            granted.push((protocol, port));
        }
        let mut grants = Vec::with_capacity(modules.len());
        for module in modules {
            let protocol = module.protocol.unwrap_or(Protocol::Tcp);
            let port = if let Some(port) = module.port {
                port
            } else {
                let exhausted = || PortShortage::Exhausted {
                    module: module.name.clone(),
                    protocol,
                    start,
                    range: server.port_range,
                };
                let port = self
                    .lowest_free(server.port_range, protocol, start, &granted, now)
                    .ok_or_else(exhausted)?;
                granted.push((protocol, port));
                port
            };
            grants.push(PortGrant {
                module: module.name.clone(),
                protocol,
                port,
                pinned: module.port.is_some(),
            });
        }
        Ok(grants)
    }

    /// An explicit port may rest: there is no other to take in its place.
    fn why_taken(
        &self,
        server: &Server,
        protocol: Protocol,
        port: Port,
        now: OffsetDateTime,
    ) -> Option<TakenCause> {
        let is_ours = self.tcp.contains(port.0) || self.udp.contains(port.0);
        if !server.port_range.contains(port) {
            Some(TakenCause::OutOfRange)
        } else if self.held(protocol).contains(port.0) {
            Some(TakenCause::Allocated)
        } else if self.listened_on.contains(port.0) && !is_ours {
            Some(TakenCause::ListenedOn)
        } else if self.excluded.contains(port.0) {
            Some(TakenCause::Excluded)
        } else if self.is_set_aside(protocol, port, now) {
            Some(TakenCause::SetAside)
        } else {
            None
        }
    }

    /// A word of the bitmap of ports that cannot be given. A port that is listened on becomes one only once it is given back
    /// and still listened on: before, it is ours who listens (L18).
    fn taken(&self, protocol: Protocol, index: usize) -> u64 {
        let ours = self.tcp.word(index) | self.udp.word(index);
        self.held(protocol).word(index) | self.excluded.word(index) | (self.listened_on.word(index) & !ours)
    }

    fn lowest_free(
        &self,
        range: PortRange,
        protocol: Protocol,
        start: Port,
        granted: &[(Protocol, Port)],
        now: OffsetDateTime,
    ) -> Option<Port> {
        let mut from = start.max(range.start).0;
        let mut lowest_resting = None;
        while let Some(port) =
            lowest_outside(from, range.end.0, |index| self.taken(protocol, index)).map(Port)
        {
            if !granted.contains(&(protocol, port)) && !self.is_set_aside(protocol, port, now) {
                if !self.rests(protocol, port, now) {
                    return Some(port);
                }
                lowest_resting = lowest_resting.or(Some(port));
            }
            let Some(next) = port.0.checked_add(1) else { break };
            from = next;
        }
        lowest_resting
    }
}

#[cfg(test)]
mod tests;
