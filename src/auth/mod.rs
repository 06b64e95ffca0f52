//! Who calls, and what they may do.
//!
//! `credentials` is the file of tokens and certificates, `gate` finds a caller by what a request shows, `rules` is the one table of
//! which call takes which role, `caller` what a call may do from then on. A new RPC is a line in `rules`.

mod caller;
mod credentials;
mod denied;
mod gate;
mod peer;
mod rate;
mod role;
pub mod rules;
mod token;

pub use self::{
    caller::{About, AboutProjects, Caller},
    credentials::{Credentials, CredentialsError, Identity},
    denied::Denied,
    gate::Gate,
    peer::{Peer, PeerCertificate},
    rate::{CallRate, CallerKey},
    role::{Role, UnknownRole},
    token::Token,
};

/// The time since 1970, by which credentials expire.
#[expect(
    clippy::disallowed_methods,
    reason = "whether a credential has expired is a matter of the day, not of a decision"
)]
fn now() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
