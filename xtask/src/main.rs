//! `cargo xtask`: builds, generates and checks what cargo alone cannot.

mod proto;

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
    /// Generate the Rust types of orb8-proto from its .proto files
    GenProto,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::GenProto => proto::write(),
    }
}
