//! Every test that touches Postgres, a socket or a process; see `support`.

mod architecture;
mod embedded_postgres;
mod ensure;
mod hand_edits;
mod inventory;
mod migrations;
mod replicas;
mod schema;
mod support;
mod sync;
