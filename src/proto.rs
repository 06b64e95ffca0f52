//! The generated messages, clients and servers of `proto/`, and nothing else.

#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::allow_attributes, reason = "generated code")]

/// The package `resourceallocator.v1`.
pub mod v1 {
    tonic::include_proto!("resourceallocator.v1");
    include!(concat!(env!("OUT_DIR"), "/resourceallocator.v1.serde.rs"));
}

/// What is used of the package `google.rpc`.
pub mod rpc {
    tonic::include_proto!("google.rpc");
    include!(concat!(env!("OUT_DIR"), "/google.rpc.serde.rs"));
}

/// The descriptors of every message and service, as reflection serves them.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
