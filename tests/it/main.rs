//! Every test that touches Postgres, a socket or a process; see `support`.

mod bad_input;
mod embedded_postgres;
mod ensure;
mod find_server;
mod list;
mod placement;
mod refusals;
mod release;
mod support;
