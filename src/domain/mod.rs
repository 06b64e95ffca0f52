//! What placement is, with no async, no IO, no clock and no randomness: time and configuration come in as values, so the same
//! input gives the same decision at every replica and in every replay.
//!
//! A request is decided against the [`Fleet`] (`placement`), the decision becomes an [`Operation`](event::Operation), and the
//! fleet folds operations, its own and those that other replicas committed, by the same [`Fleet::apply`].

pub mod allocation;
pub mod event;
pub mod fleet;
pub mod ids;
pub mod inventory;
pub mod line;
pub mod micros;
pub mod placement;
pub mod policy;
pub mod port_set;
pub mod ports;
pub mod refusal;
pub mod replay;
pub mod request;
pub mod resources;
pub mod server;
#[cfg(test)]
pub(crate) mod testing;

pub use allocation::{Allocation, Placement, Project};
pub use fleet::Fleet;
pub use ids::{ModuleName, ProjectId, ServerHandle};
pub use ports::{Port, PortRange, Protocol};
pub use refusal::{Disposition, Reason, Refusal};
pub use resources::{ResourceRequest, Resources};
pub use server::{Server, ServerStatus};
