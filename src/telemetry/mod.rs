//! What the service tells of itself to those who run it: log lines, figures for Prometheus, and traces.

pub mod log;
pub mod metrics;
pub mod traces;
