//! `cargo xtask build-probes`: builds the kernel programs into `target/bpf/`; `probes-budget` weighs
//! them.
//!
//! The build itself is the agent's, taken by path, so that both make the same object.

#[path = "../../orb8-agent/build/probes.rs"]
pub(crate) mod build;

pub(crate) mod budget;
mod code;
mod measure;

use std::path::Path;

/// Builds every program of the repository at `root` and says where the objects are.
pub(crate) fn build_and_say(root: &Path) -> anyhow::Result<()> {
    for object in build::build(root)? {
        let bytes = std::fs::metadata(&object)?.len();
        let shown = object.strip_prefix(root).unwrap_or(&object);
        println!("{} ({} KiB)", shown.display(), bytes.div_ceil(1024));
    }
    Ok(())
}
