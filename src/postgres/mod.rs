//! The embedded Postgres: a private cluster for a service that was given no `DATABASE_URL`.
//!
//! This module finds the binaries on the machine, initialises a cluster in the data folder, keeps it running
//! while the service lives, and stops it with the service. It knows nothing of our tables: it hands out a
//! URL.
//!
//! What holds at any time:
//! - One service per data folder: a `flock` on `lock` says so, and the kernel lets go of it with the process.
//! - Nothing listens on TCP; the socket lies in a folder that only its owner may enter.
//! - A folder named `postgres` is a complete cluster: it is made beside that name and renamed once it is whole.
//! - A data folder that was left in any state (by `kill -9`, by a power cut, with a Postgres still running on it) is
//!   taken up again; what cannot be taken up is refused with one line that says what to do.
//!
//! The data folder holds `lock`, `postgres/` (the cluster), `postgres.log` with its predecessor
//! `postgres.log.1`, and `socket/` unless the path is too long for a socket. Everything blocks and nothing
//! needs an async runtime, so that `main` can start the cluster first. A new place to look for binaries goes
//! to `binaries`, a new server setting to `settings`, a new failure to [`Error`].

mod binaries;
mod cluster;
mod error;
mod folders;
mod initdb;
mod launcher;
mod log;
mod memory;
mod pidfile;
mod process;
mod server;
mod settings;
mod socket;
mod supervisor;

pub use cluster::{Cluster, Options, default_data_dir, has_cluster, running_url};
pub use error::Error;

/// The database that the service keeps its tables in.
pub const DATABASE: &str = "resource_allocator";

/// The role that owns the cluster; the only one in it.
pub const USER: &str = "resource_allocator";
