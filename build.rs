//! Compiles the contracts in `proto/` into `OUT_DIR`: messages, clients, servers, their JSON mapping and the descriptor
//! set. protox compiles them, so that no `protoc` is needed.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;

const PROTO_ROOT: &str = "proto";
/// What the package takes from googleapis.
const STATUS: &str = "google/rpc/status.proto";
const PACKAGE_DIR: &str = "proto/resourceallocator/v1";

fn main() -> Result<(), Box<dyn Error>> {
    // tonic-prost-build prints no `rerun-if-changed` of its own.
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    println!("cargo:rerun-if-changed=migrations");

    let mut files = fs::read_dir(PACKAGE_DIR)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();

    let descriptors = protox::compile(&files, [PROTO_ROOT])?;
    let encoded = descriptors.encode_to_vec();
    fs::write(Path::new(&env::var("OUT_DIR")?).join("descriptors.bin"), &encoded)?;

    let configure = || {
        tonic_prost_build::configure()
            .compile_well_known_types(true)
            .extern_path(".google.protobuf", "::pbjson_types")
            .btree_map(".")
            .codec_path("crate::codec::BoundedCodec")
    };
    // By itself: messages of a package that is said to be elsewhere are not generated.
    configure().compile_fds(protox::compile([STATUS], [PROTO_ROOT])?)?;
    configure().extern_path(".google.rpc", "crate::proto::rpc").compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .emit_fields()
        .btree_map(["."])
        .build(&[".resourceallocator.v1", ".google.rpc"])?;
    Ok(())
}
