//! `cargo xtask`: builds, generates and checks what cargo alone cannot.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the person who started it"
)]

mod check;
mod needs;
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
    /// Format every file
    Fmt,
    /// Fuzz the header parser for a minute
    Fuzz,
    /// Generate the Rust types of orb8-proto from its .proto files
    GenProto,
    /// Check formatting, clippy, documentation, licences and advisories
    Lint,
    /// Install what a build and the tests need, and say what and why
    Setup,
    /// Probes, traffic and command line on this kernel
    SmokeTest,
    /// Run every test, after saying which ones this machine cannot run
    Test,
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
        Task::Fmt => check::fmt(&root),
        Task::Fuzz => check::fuzz(&root),
        Task::GenProto => proto::write(),
        Task::Lint => check::lint(&root),
        Task::Setup => setup::install(&root),
        Task::SmokeTest => check::smoke_test(&root),
        Task::Test => check::test(&root),
        Task::VerifySetup => setup::verify(&root),
    }
}
