//! `cargo xtask`: builds, generates and checks what cargo alone cannot.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the person who started it"
)]

mod probes;
mod proto;
mod setup;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the repository; `make` calls them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the kernel programs into target/bpf/
    BuildProbes,
    /// Generate the Rust types of orb8-proto from its .proto files
    GenProto,
    /// Install what a build and the tests need, and say what and why
    Setup,
    /// Only say what a build and the tests need and whether it is there
    VerifySetup,
}

/// The repository's root folder.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

fn main() -> ExitCode {
    match run(&Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes, and no backtrace: what failed is a command or a file, named.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> anyhow::Result<()> {
    let root = root();
    match task {
        Task::BuildProbes => probes::build_and_say(&root),
        Task::GenProto => proto::write(),
        Task::Setup => setup::install(&root),
        Task::VerifySetup => setup::verify(&root),
    }
}
