//! The `resource-allocator` binary: the service and its client in one.

use std::process::ExitCode;

/// Requests are many small allocations on all threads, which the C library's allocator is slower at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    resource_allocator::cli::run()
}
