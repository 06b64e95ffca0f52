//! What the service tells of itself to those who run it: log lines, and figures for Prometheus.

pub mod log;
pub mod metrics;
