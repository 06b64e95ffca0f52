//! Every test that touches Postgres, a socket or a process; see `support`.

mod architecture;
mod bad_input;
mod embedded_postgres;
mod ensure;
mod find_server;
mod hand_edits;
mod inventory;
mod list;
mod migrations;
mod placement;
mod refusals;
mod release;
mod replicas;
mod schema;
mod support;
mod sync;
