//! Obtains the object with the kernel programs and leaves it at `$OUT_DIR/orb8-probes.o`; beside it
//! the programs of the nesting test, or an empty file where nothing is built.
//!
//! In this order: the file that `ORB8_PROBES_OBJECT` names; a build of `../orb8-probes`, in a
//! checkout; `prebuilt/orb8-probes.o`, in a published package, which needs no BPF toolchain.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "cargo talks to build scripts through the environment and the standard streams"
)]

#[path = "build/probes.rs"]
mod probes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a change of the object can come from, beside the repository's root.
const SOURCES: [&str; 7] = [
    "orb8-probes/Cargo.toml",
    "orb8-probes/Cargo.lock",
    "orb8-probes/src",
    "orb8-common/Cargo.toml",
    "orb8-common/src",
    "target/bpf/orb8-probes.o",
    "target/bpf/nest-probes.o",
];

fn main() -> ExitCode {
    match objects().and_then(|(probes, nest)| embed(&probes, nest.as_deref())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orb8-agent needs the kernel programs: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Finds or builds the object, and builds that of the nesting test where it can.
fn objects() -> Result<(PathBuf, Option<PathBuf>), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/probes.rs");
    println!("cargo::rerun-if-env-changed=ORB8_PROBES_OBJECT");
    if let Some(given) = std::env::var_os("ORB8_PROBES_OBJECT") {
        return Ok((given.into(), None));
    }
    let package = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let root = package.join("..");
    if root.join("orb8-probes/Cargo.toml").exists() {
        let objects = probes::build(&root)?;
        for source in SOURCES {
            println!("cargo::rerun-if-changed={}", root.join(source).display());
        }
        let nest = objects.iter().find(|object| object.ends_with("nest-probes.o")).cloned();
        return Ok((objects.into_iter().next().ok_or("the build made no object")?, nest));
    }
    Ok((package.join("prebuilt/orb8-probes.o"), None))
}

fn embed(probes: &Path, nest: Option<&Path>) -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={}", probes.display());
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let copy = |object: &Path, name: &str| {
        let to = out.join(name);
        std::fs::copy(object, &to)
            .map_err(|error| format!("copy {} to {}: {error}", object.display(), to.display()))
    };
    copy(probes, "orb8-probes.o")?;
    match nest {
        Some(nest) => copy(nest, "nest-probes.o").map(drop)?,
        None => std::fs::write(out.join("nest-probes.o"), [])?,
    }
    Ok(())
}
