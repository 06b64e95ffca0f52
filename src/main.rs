//! The `resource-allocator` binary: the service and its client in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    resource_allocator::cli::run()
}
