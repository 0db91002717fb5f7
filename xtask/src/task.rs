//! The tasks by name, and what each calls.

use std::path::Path;

use clap::{Parser, Subcommand};

use crate::{check, probes, proto, setup, vm};

/// Tasks of the repository; `make` calls them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) task: Task,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Build the kernel programs into target/bpf/
    BuildProbes,
    /// The simulated cluster: pods, Services and an API server, an agent on every node
    E2eTest,
    /// Format every file
    Fmt,
    /// Fuzz the header parser for a minute
    Fuzz,
    /// Generate the Rust types of orb8-proto from its .proto files
    GenProto,
    /// Write every generated file anew
    Generate,
    /// Check formatting, clippy and documentation; run cargo-deny where it is installed
    Lint,
    /// Print what the programs may weigh that run for each packet, as they are now
    ProbesBudget {
        /// Write it to its file instead
        #[arg(long)]
        write: bool,
    },
    /// Install what a build and the tests need, and say what and why
    Setup,
    /// Probes, traffic and command line on this kernel
    SmokeTest,
    /// Run every test, after saying which ones this machine cannot run
    Test,
    /// Only say what a build and the tests need and whether it is there
    VerifySetup,
    /// Boot older and newer kernels in QEMU and run the kernel tests there
    VmTest(vm::Options),
}

impl Task {
    /// Does it, in the repository at `root`.
    pub(crate) fn run(&self, root: &Path) -> anyhow::Result<()> {
        match self {
            Task::BuildProbes => probes::build_and_say(root),
            Task::E2eTest => check::e2e_test(root),
            Task::Fmt => check::fmt(root),
            Task::Fuzz => check::fuzz(root),
            Task::GenProto => proto::write(),
            Task::Generate => proto::write().and_then(|()| check::write_references(root)),
            Task::Lint => check::lint(root),
            Task::ProbesBudget { write } => probes::budget::print_or_write(root, *write),
            Task::Setup => setup::install(root),
            Task::SmokeTest => check::smoke_test(root),
            Task::Test => check::test(root),
            Task::VerifySetup => setup::verify(root),
            Task::VmTest(options) => vm::run(root, options),
        }
    }
}
