//! Puts the built probe object where the agent embeds it from.
use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let object = root.join("orb8-probes/target/bpfel-unknown-none/release/orb8-probes");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed={}", object.display());
    std::fs::copy(&object, Path::new(&out).join("orb8-probes.o")).expect("probe object");
}
