//! `make demo`: a simulated cluster with real packets, an agent on each node, and what `orb8` says,
//! with names. Checks the answers and ends with 1 if one is wrong.
//!
//! Leaves nothing behind, however it ends: namespaces, pods and agents die with this process, and
//! a reaper removes its cgroups.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo is there to be read")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use orb8_testbed::cluster::NEEDS;
use orb8_testbed::demo;
use orb8_testbed::signals::end_on_signals;

const USAGE: &str = "\
Usage: demo [--bin-dir DIR]

A cluster of two nodes made of network namespaces, pods, a Service, an agent on each node, real
traffic, and what orb8 shows. Needs no Kubernetes and no network.

  --bin-dir DIR  where orb8 and orb8-agent are (default: beside this program)
";

fn main() -> ExitCode {
    let dir = match folder() {
        Ok(Some(dir)) => dir,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            return ExitCode::from(2);
        }
    };
    let missing: Vec<String> = NEEDS.iter().filter_map(|need| need.missing()).collect();
    if !missing.is_empty() {
        eprintln!("The demo puts programs into the kernel, and something for that is missing:");
        for why in missing {
            eprintln!("  - {why}");
        }
        return ExitCode::FAILURE;
    }
    end_on_signals("Stopped. Agents, pods and nodes are gone.");
    match std::panic::catch_unwind(|| demo::run(&programs(&dir)?)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
        Err(_told_by_the_panic_hook) => ExitCode::FAILURE,
    }
}

fn programs(dir: &Path) -> anyhow::Result<demo::Programs> {
    let program = |name: &str| -> anyhow::Result<PathBuf> {
        let file = dir.join(name);
        ensure!(file.is_file(), "{} does not exist: run `make build`", file.display());
        Ok(file)
    };
    Ok(demo::Programs { agent: program("orb8-agent")?, cli: program("orb8")? })
}

/// Where the programs are; `None` if help was asked for.
fn folder() -> anyhow::Result<Option<PathBuf>> {
    let mut dir = None;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(None),
            Some("--bin-dir") => {
                dir = Some(PathBuf::from(arguments.next().context("--bin-dir needs a folder")?));
            }
            _ => bail!("unknown argument {}, see --help", argument.display()),
        }
    }
    dir.map_or_else(default_dir, Ok).map(Some)
}

/// The folder of this program: what is built together shows one state of the source.
fn default_dir() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("the demo's own path")?;
    Ok(exe.parent().context("the demo's own folder")?.to_owned())
}
