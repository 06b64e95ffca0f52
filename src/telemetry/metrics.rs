//! Figures for Prometheus: what there is, and in which units. Those who count use the facade's macros where they count; `http` serves
//! what was counted.

use std::sync::OnceLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds: from a repeat that is read from memory to a call that nearly ran into its deadline.
const SECONDS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0,
];
/// Requests of a batch, up to the largest.
const REQUESTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Begins to count. What is counted before is lost, and a second call returns what the first one began.
///
/// # Errors
/// [`BuildError`] when the facade has another recorder.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = INSTALLED.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Full("allocator_batch_requests".to_owned()), REQUESTS)?
        .install_recorder()?;
    describe();
    metrics::gauge!("allocator_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(INSTALLED.get_or_init(|| handle).clone())
}

fn describe() {
    describe_gauge!("allocator_build_info", "1, with the release as its label");
    describe_counter!("allocator_rpc_requests_total", "Answered calls by service, method and status code");
    describe_histogram!(
        "allocator_rpc_duration_seconds",
        Unit::Seconds,
        "Time to an answer by service and method; of a stream, to its first headers"
    );
    describe_counter!("allocator_refusals_total", "Refusals and errors by reason and disposition");
    describe_counter!("allocator_batches_total", "Transactions of the combiner by outcome");
    describe_histogram!(
        "allocator_batch_requests",
        Unit::Count,
        "Requests that one transaction of the combiner took"
    );
    describe_histogram!(
        "allocator_queue_wait_duration_seconds",
        Unit::Seconds,
        "Time that requests waited for their transaction to begin"
    );
    describe_histogram!(
        "allocator_transaction_duration_seconds",
        Unit::Seconds,
        "Time that transactions of the combiner took, from BEGIN to COMMIT's answer"
    );
    describe_counter!(
        "allocator_project_reads_total",
        "Projects that were read by themselves, by source: memory, where nothing had changed, or tables"
    );
    describe_gauge!("allocator_queue_requests", Unit::Count, "Requests that wait for a transaction");
    describe_gauge!(
        "allocator_queue_limit_requests",
        Unit::Count,
        "How many requests may wait before others are shed"
    );
    describe_gauge!("allocator_servers", Unit::Count, "Servers of the inventory by status");
    describe_gauge!(
        "allocator_servers_stale",
        Unit::Count,
        "Servers whose usage report is too old to place anything"
    );
    describe_gauge!("allocator_placements", Unit::Count, "Projects that are placed");
    describe_gauge!("allocator_ports_held", Unit::Count, "Ports that modules hold");
    describe_gauge!(
        "allocator_ports_in_range",
        Unit::Count,
        "Ports of one protocol in the ranges of the servers that admit work"
    );
    describe_gauge!(
        "allocator_fleet_cpu_millis",
        "CPU of the servers that admit work by state: budget, reserved, free (never below zero for a server)"
    );
    describe_gauge!("allocator_fleet_ram_bytes", Unit::Bytes, "RAM of the servers that admit work by state");
    describe_gauge!(
        "allocator_fleet_disk_bytes",
        Unit::Bytes,
        "Disk of the servers that admit work by state"
    );
    describe_gauge!("allocator_waiting_projects", Unit::Count, "Projects that stand in line for capacity");
    describe_gauge!("allocator_watchers", Unit::Count, "Streams of this replica that follow the log");
    describe_gauge!("allocator_log_sequence", "The number of the newest event that this replica has folded");
    describe_gauge!(
        "allocator_log_lag_events",
        Unit::Count,
        "Events that are folded and not yet handed to watchers"
    );
    describe_counter!(
        "allocator_log_lines_dropped_total",
        Unit::Count,
        "Lines for standard error that were dropped because nobody read those before them"
    );
    describe_gauge!("allocator_database_up", "Whether the database answers and takes writes: 1 or 0");
    describe_gauge!(
        "allocator_database_connections",
        Unit::Count,
        "Connections to the database by use and state"
    );
}
