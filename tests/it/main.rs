//! Every test that touches Postgres, a socket or a process; see `support`.

mod embedded_postgres;
mod ensure;
mod faults;
mod health;
mod support;
mod watch;
