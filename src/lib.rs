//! Resource Allocator gives software projects a place to run: a server, its capacity, and one port for each module, reserved at
//! once in Postgres, and answered the same on every repeat.
//!
//! ```text
//! poller ──JSON──▶ http
//!                   ▼
//! worker ──gRPC──▶ api ──▶ allocator ──▶ domain        (pure: filter, score, ports, refusals)
//!                              │  ▲
//!                              ▼  │ fold
//!                            store ──SQL──▶ Postgres   (tables are the truth, constraints are the guard)
//!                              ▲
//! watcher ◀─stream─ api ◀── events ◀── the event log   (commit order, gap-free, resumable)
//! ```
//!
//! Imports point one way: `cli → server → http → api → allocator → events → store → domain`. `postgres` keeps the embedded
//! cluster and knows nothing of the rest; `ARCHITECTURE.md` says more.

#[cfg(all(feature = "without-guards", not(debug_assertions)))]
compile_error!("`without-guards` takes a guard out, for tests: no release build may have it");

pub mod allocator;
pub mod api;
pub mod auth;
pub mod cli;
pub mod codec;
pub mod config;
pub mod domain;
pub mod events;
pub mod followed;
pub mod http;
pub mod inventory_file;
pub mod listener;
pub mod policy_figure;
pub mod postgres;
pub mod proto;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod traced;
