//! The generated messages and clients of `proto/`.

/// The package `resourceallocator.v1`.
#[allow(clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("resourceallocator.v1");
}

/// The descriptors of every message and service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
