//! `make bench`: what orb8 costs, net of a baseline measured in the same run.
//!
//! `cargo bench -p orb8-agent --bench bench -- [--quick] [part of a row's name]...`; the rows are described
//! in `docs/benchmark.md`. Exits 0 also where a goal is missed or not shown, which the row says.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program that prints figures"
)]

mod bed;
#[allow(dead_code, unreachable_pub, reason = "that of the kernel tests, of which a part is used")]
#[path = "../../tests/support/cgroup.rs"]
mod cgroup;
mod counted;
mod iperf;
mod live;
mod packets;
mod process;
mod programs;
mod report;
mod testrun;
mod veth;

use orb8_testbed::need::{Need, met};

/// How long cgroups may take to be empty.
const DEADLINE: std::time::Duration = bed::DEADLINE;

fn main() -> anyhow::Result<()> {
    anyhow::ensure!(
        met("bench", &[Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2]),
        "nothing can be measured here"
    );
    let mut report = report::Report::new(std::env::args().skip(1))?;
    testrun::at_interfaces(&mut report);
    testrun::at_sockets(&mut report);
    testrun::contended(&mut report);
    veth::run(&mut report);
    live::run(&mut report);
    process::run(&mut report);
    iperf::run(&mut report);
    println!("written to {}", report.finish()?.display());
    Ok(())
}
