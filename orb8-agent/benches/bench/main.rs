//! `make bench`: what orb8 costs, net of a baseline measured in the same run.
//!
//! Exits 0 also where a goal is missed, which the row says; only what cannot run at all fails.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program that prints figures"
)]

mod datapath;
mod process;
mod report;
mod socket;

fn main() -> anyhow::Result<()> {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    let mut rows = Vec::new();
    report::header();
    if wanted("datapath") {
        datapath::run(&mut rows);
    }
    if wanted("socket") {
        socket::run(&mut rows);
    }
    if wanted("process") {
        process::run(&mut rows);
    }
    let path = report::write(&rows)?;
    println!("written to {}", path.display());
    Ok(())
}
