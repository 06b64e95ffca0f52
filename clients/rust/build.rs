//! Generates the messages and the clients from `proto/`, and keeps their descriptors. protox compiles them, so that no `protoc` is
//! needed.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;

const PROTO_ROOT: &str = "../../proto";
const FILES: [&str; 3] = [
    "resourceallocator/v1/error_reason.proto",
    "resourceallocator/v1/resource_allocator.proto",
    "resourceallocator/v1/server_inventory.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let descriptors = protox::compile(FILES, [PROTO_ROOT])?;
    let folder = env::var("OUT_DIR")?;
    fs::write(Path::new(&folder).join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(descriptors)?;
    Ok(())
}
