//! `cargo xtask`: builds, generates and checks what cargo alone cannot.
#![allow(clippy::print_stdout, reason = "a task talks to the person who started it")]

mod probes;
mod proto;

use std::path::{Path, PathBuf};

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
}

/// The repository's root folder.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::BuildProbes => probes::build_and_say(&root()),
        Task::GenProto => proto::write(),
    }
}
