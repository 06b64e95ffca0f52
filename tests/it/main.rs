//! Every test that touches Postgres, a socket or a process; see `support`.

mod architecture;
mod audit;
mod auth;
mod auth_rules;
mod bad_input;
mod batch;
mod cli;
mod drain;
mod embedded_postgres;
mod ensure;
mod faults;
mod find_server;
mod hand_edits;
mod health;
mod hints;
mod http;
mod inventory;
mod leases;
mod list;
mod metrics;
mod migrations;
// An exporter on another system tells other metrics.
#[cfg(target_os = "linux")]
mod node_exporter;
mod overload;
mod placement;
mod plans;
mod policy;
mod port_in_use;
mod refusals;
mod release;
mod relocation;
mod replicas;
mod restore;
mod retention;
mod schema;
mod soak;
mod startup;
mod strict;
mod support;
mod sync;
mod terminal;
mod tls;
mod waiting;
mod watch;
