//! `cargo xtask`: builds, generates and checks what cargo alone cannot.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a task talks to the person who started it, and looks at that person's machine"
)]

mod check;
mod needs;
mod probes;
mod proto;
mod setup;
mod task;
#[cfg(test)]
mod tidy;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;

/// The repository's root folder.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

fn main() -> ExitCode {
    match task::Cli::parse().task.run(&root()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes, and no backtrace: what failed is a command or a file, named.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
