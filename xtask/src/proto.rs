//! Generates orb8-proto's Rust types and its descriptor set, without protoc.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

const FILES: [&str; 3] = ["orb8/v1/common.proto", "orb8/v1/network.proto", "orb8/v1/agent.proto"];

fn crate_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../orb8-proto")
}

/// Writes `src/generated/` of orb8-proto.
pub(crate) fn write() -> anyhow::Result<()> {
    generate(&crate_dir().join("src/generated"))
}

/// Writes the generated files into `out`, so that a test can compare them with the checked-in ones.
pub(crate) fn generate(out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out)?;
    let descriptors =
        protox::compile(FILES, [crate_dir().join("proto")]).context("compile the .proto files")?;
    std::fs::write(out.join("orb8.v1.bin"), prost_encode(&descriptors))?;
    tonic_prost_build::configure()
        .out_dir(out)
        .build_transport(false)
        .compile_fds(descriptors)
        .context("generate Rust from the descriptors")
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
