//! Generates the Rust types of `proto/*.proto`, with a protobuf compiler in Rust: no `protoc` is needed.

use std::error::Error;

/// `waypoint.proto` brings the files that it imports.
const FILES: [&str; 6] = ["workload.proto", "security.proto", "discovery.proto", "citadel.proto", "zds.proto", "waypoint.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // Maps in order, so that equal messages have equal bytes and a content hash of them is a version.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
