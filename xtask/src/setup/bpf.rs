//! What builds the kernel programs: a compiler with `core` for BPF, LLVM, bpf-linker.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::apt::{self, Package};
use super::{Need, State, output};
use crate::probes::build::{self, Compiler, LLVM_VERSIONS, OLDEST_RUST};

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

const COMPILER_WHY: &str = "compiles the kernel programs (rustup ships no `core` for BPF)";
const STRIP_WHY: &str = "strips the debug information from the kernel programs";
const LINKER_WHY: &str = "links the kernel programs and writes their BTF";

/// Packages of a compiler and of its `core` for BPF: Debian 12's browser toolchain, which is
/// newer than its own, then the names of Debian 13 and Ubuntu.
const PAIRS: [[&str; 2]; 2] =
    [["rustc-web", "libstd-rust-web-dev-bpf"], ["rustc", "libstd-rust-dev-bpf"]];

/// Whether there is a compiler, and which packages bring one.
pub(super) fn survey_compiler(found: Option<&Compiler>) -> Need {
    let state = match found {
        Some(Compiler::Distribution { rustc, llvm }) => {
            State::Ready(format!("{} (LLVM {llvm}) has core for BPF", rustc.display()))
        }
        Some(Compiler::Nightly { llvm }) => {
            State::Ready(format!("rustup's nightly (LLVM {llvm}) builds core for BPF"))
        }
        None => State::Missing {
            what: "no compiler has core for BPF".to_owned(),
            packages: distribution_pair()
                .into_iter()
                .flatten()
                .map(|name| Package::new(name, COMPILER_WHY))
                .collect(),
        },
    };
    Need { name: "BPF compiler", why: COMPILER_WHY, state }
}

/// The pair of packages that this machine's apt offers in a version that is new enough.
fn distribution_pair() -> Option<[&'static str; 2]> {
    PAIRS.into_iter().find(|[compiler, core]| {
        apt::candidate(compiler).is_some_and(|version| is_new_enough(&version))
            && apt::candidate(core).is_some()
    })
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST_RUST,
        _ => false,
    }
}

/// Whether there is a linker for the compiler's LLVM and an llvm-strip, and the packages that
/// they need. Before there is a compiler, for the LLVM of the one that will be installed.
pub(super) fn survey_linker(root: &Path, found: Option<&Compiler>) -> Need {
    let llvm = found
        .map(Compiler::llvm)
        .or_else(|| distribution_pair().and_then(|[compiler, _]| apt::llvm_behind(compiler)));
    let state = match llvm {
        None => State::Missing { what: "waits for the BPF compiler".to_owned(), packages: vec![] },
        Some(llvm) => linker_state(root, llvm),
    };
    Need { name: LINKER, why: LINKER_WHY, state }
}

fn linker_state(root: &Path, llvm: u32) -> State {
    let mut packages = vec![];
    if build::strip_tool(llvm).is_err() {
        packages.push(Package::new(format!("llvm-{llvm}"), STRIP_WHY));
    }
    let linker = linker_is_ready(root, llvm);
    if !linker {
        let libraries = [
            format!("llvm-{llvm}-dev"),
            format!("libpolly-{llvm}-dev"),
            "libzstd-dev".to_owned(),
            "zlib1g-dev".to_owned(),
        ];
        packages.extend(libraries.map(|name| Package::new(name, "bpf-linker is built with it")));
    }
    match (linker, packages.is_empty()) {
        (true, true) => {
            State::Ready(format!("{LINKER} {LINKER_VERSION} and llvm-strip, LLVM {llvm}"))
        }
        (true, false) => State::Missing { what: "llvm-strip".to_owned(), packages },
        (false, _) => State::Missing {
            what: format!("{LINKER} {LINKER_VERSION} for LLVM {llvm}"),
            packages: apt::missing(packages),
        },
    }
}

/// Whether the folder of tools has the pinned linker, for this LLVM, and it starts.
fn linker_is_ready(root: &Path, llvm: u32) -> bool {
    let installed = std::fs::read_to_string(root.join(".tools/.crates2.json"))
        .is_ok_and(|record| record_has_linker(&record, llvm));
    installed && output(Command::new(build::linker(root)).arg("--version")).is_some()
}

/// Looks the linker up in what cargo notes of the programs that it installed.
fn record_has_linker(record: &str, llvm: u32) -> bool {
    let record: serde_json::Value = serde_json::from_str(record).unwrap_or_default();
    let wanted = format!("{LINKER} {LINKER_VERSION} ");
    record["installs"].as_object().into_iter().flatten().any(|(program, how)| {
        program.starts_with(&wanted)
            && how["features"] == serde_json::json!([format!("llvm-{llvm}")])
    })
}

/// Gets rustup's nightly, where the distribution has no fitting compiler.
pub(super) fn install_nightly() -> anyhow::Result<Compiler> {
    if super::on_path("rustup") {
        println!("install  rustup's nightly with rust-src: {COMPILER_WHY}");
        let status = Command::new("rustup")
            .args(["toolchain", "install", "nightly", "--profile", "minimal"])
            .args(["--component", "rust-src", "--no-self-update"])
            .status()
            .context("start rustup")?;
        if !status.success() {
            println!("failed   rustup toolchain install nightly: {status}");
        }
    }
    Ok(build::compiler()?)
}

/// Builds the linker into the folder of tools.
pub(super) fn install_linker(root: &Path, llvm: u32) -> anyhow::Result<()> {
    if !LLVM_VERSIONS.contains(&llvm) {
        bail!("{LINKER} {LINKER_VERSION} cannot be built for LLVM {llvm}");
    }
    if linker_is_ready(root, llvm) {
        return Ok(());
    }
    println!("install  {LINKER} {LINKER_VERSION} for LLVM {llvm} into .tools: {LINKER_WHY}");
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "install",
            LINKER,
            "--version",
            &format!("={LINKER_VERSION}"),
            "--locked",
            "--quiet",
        ])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--force", "--root"])
        .arg(root.join(".tools"))
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("cargo install {LINKER}: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, expected) in [
            ("1.96.0+dfsg1-1~deb12u2", true),
            ("1.95.0", true),
            ("1.94.1", false),
            ("2.0", true),
            ("1.85.0+dfsg3-1", false),
            ("1.9", false),
            ("", false),
            ("unknown", false),
        ] {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }

    #[test]
    fn the_oldest_rust_is_the_one_that_the_workspace_asks_for() {
        let (major, minor) = OLDEST_RUST;
        let read = |path: &str| std::fs::read_to_string(crate::root().join(path)).expect(path);
        let version = format!("rust-version = \"{major}.{minor}\"");
        assert!(read("Cargo.toml").contains(&version), "Cargo.toml lacks {version}");
        let shared = read("orb8-common/Cargo.toml");
        assert!(shared.contains("rust-version.workspace = true"), "{shared}");
    }

    #[test]
    fn a_linker_for_another_llvm_or_version_is_not_the_linker() {
        let record = |version: &str, feature: &str| {
            format!(
                r#"{{"installs":{{"bpf-linker {version} (registry+x)":{{"features":["{feature}"]}}}}}}"#
            )
        };
        assert!(record_has_linker(&record("0.13.0", "llvm-22"), 22));
        assert!(!record_has_linker(&record("0.13.0", "llvm-21"), 22));
        assert!(!record_has_linker(&record("0.13.1", "llvm-22"), 22));
        assert!(!record_has_linker("not json", 22));
    }
}
