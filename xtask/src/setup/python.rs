//! The Python environment of the tests, in `.tools/venv`: a packet maker and a gRPC client that
//! share no code with ours.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::apt::Package;
use super::{Need, State, output};

const WHY: &str = "makes odd packets and asks the agent, sharing no code with ours";

/// The distribution's interpreter: its version and its packages fit each other.
const PYTHON: &str = "/usr/bin/python3";

/// What the tests import, and what the generated code of the .proto files needs, in one set that
/// was seen to fit together.
const PINS: [(&str, &str); 6] = [
    ("grpcio", "1.85.1"),
    ("grpcio-reflection", "1.85.1"),
    ("grpcio-tools", "1.85.1"),
    ("protobuf", "7.36.2"),
    ("scapy", "2.8.0"),
    ("typing-extensions", "4.16.0"),
];

/// Whether the environment has every pinned package.
pub(super) fn survey(root: &Path) -> Need {
    let absent = absent(root);
    let state = if absent.is_empty() {
        let pins: Vec<String> = PINS.iter().map(|(name, version)| pin(name, version)).collect();
        State::Ready(format!(".tools/venv with {}", pins.join(" ")))
    } else {
        let can_make =
            output(Command::new(PYTHON).args(["-c", "import ensurepip, venv"])).is_some();
        let packages = if can_make { vec![] } else { vec![Package::new("python3-venv", WHY)] };
        State::Missing { what: absent.join(" "), packages }
    };
    Need { name: "Python", why: WHY, state }
}

fn pin(name: &str, version: &str) -> String {
    format!("{name}=={version}")
}

/// Pinned packages that the environment lacks, as pip wants them.
fn absent(root: &Path) -> Vec<String> {
    let lib = root.join(".tools/venv/lib");
    let installed: BTreeSet<String> = std::fs::read_dir(lib)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|python| std::fs::read_dir(python.path().join("site-packages")).ok())
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    PINS.iter()
        .filter(|(name, version)| {
            !installed.contains(&format!("{}-{version}.dist-info", name.replace('-', "_")))
        })
        .map(|(name, version)| pin(name, version))
        .collect()
}

/// Makes the environment, or brings it to the pinned versions.
pub(super) fn install(root: &Path) -> anyhow::Result<()> {
    let wanted = absent(root);
    println!("install  {} into .tools/venv: {WHY}", wanted.join(" "));
    let venv = root.join(".tools/venv");
    let python = venv.join("bin/python3");
    if output(Command::new(&python).args(["-m", "pip", "--version"])).is_none() {
        // Absent, or of an interpreter that is gone: nothing in it is worth keeping.
        run(Command::new(PYTHON).args(["-m", "venv", "--clear"]).arg(&venv))?;
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
    // A package without a wheel for this interpreter would be compiled for half an hour.
    pip.args(["--only-binary", ":all:"]).args(PINS.map(|(name, version)| pin(name, version)));
    run(&mut pip)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_absent_without_an_environment() {
        assert_eq!(absent(Path::new("/nonexistent")).len(), PINS.len());
    }
}
