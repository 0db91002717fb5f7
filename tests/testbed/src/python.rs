//! The Python environment that `make setup` makes, for opinions that share no code with ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The interpreter of the environment, if it can import all `modules`.
///
/// # Errors
/// A sentence that names what is missing and the next step.
pub fn interpreter(modules: &[&str]) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".tools/venv/bin/python3");
    let modules = modules.join(", ");
    let works = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if works { Ok(python) } else { Err(format!("no {modules} in .tools/venv: run `make setup`")) }
}
