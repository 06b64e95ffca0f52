//! Every test that touches Postgres, a socket or a process; see `support`.

mod cli;
mod embedded_postgres;
mod ensure;
mod faults;
mod health;
mod startup;
mod support;
mod watch;
