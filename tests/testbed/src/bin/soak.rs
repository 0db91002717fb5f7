//! `make soak`: an agent under overload, and whether it keeps its promises. Ends with 1 if it breaks
//! one.
//!
//! Leaves nothing behind, however it ends: namespaces, agents and what loads them die with this
//! process.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is there to be read")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use orb8_testbed::need::{KERNEL, Need};
use orb8_testbed::signals::end_on_signals;
use orb8_testbed::soak::{self, Options};

const USAGE: &str = "\
Usage: soak [--minutes N | --quick] [--only NAME]... [--release | --agent FILE] [--json FILE]
       soak --list

Runs an agent under one overload after the other and ends with 1 if it breaks a promise: every packet
accounted for, memory within its budget, answers within a second, normal again by itself.

  --minutes N   how long in all (default: 10); a load of less than 10 s, its share of that less some
                8 s, is not checked for growth and for what programs cost
  --quick       a few seconds each, with the same checks but for these two
  --only NAME   scenarios whose names hold this
  --release     the agent that `make build` makes, which users have, instead of that of this build
  --agent FILE  another one; it is held to what users have
  --json FILE   where the figures go (default: target/soak.json)
  --list        what there is
";

/// What a person asked for.
enum Asked {
    Help,
    List,
    Run(Options),
}

fn main() -> ExitCode {
    let options = match asked(std::env::args_os().skip(1)) {
        Ok(Asked::Run(options)) => options,
        Ok(Asked::Help) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Asked::List) => {
            soak::scenarios().for_each(|(name, what)| println!("{name:<20} {what}"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("soak: {error:#}");
            return ExitCode::from(2);
        }
    };
    let missing: Vec<String> =
        KERNEL.iter().chain(&[Need::Tcx]).filter_map(|need| need.missing()).collect();
    if !missing.is_empty() {
        eprintln!("An agent puts programs into the kernel, and something for that is missing:");
        missing.iter().for_each(|why| eprintln!("  - {why}"));
        return ExitCode::FAILURE;
    }
    end_on_signals("Stopped. Agents and what loaded them are gone.");
    match soak::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("\nThe agent broke a promise: see WRONG above.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn asked(arguments: impl Iterator<Item = std::ffi::OsString>) -> anyhow::Result<Asked> {
    let target = target()?;
    let own = own_folder()?;
    let mut options = Options {
        agent: own.join("orb8-agent"),
        release: !cfg!(debug_assertions),
        time: Duration::from_mins(10),
        quick: false,
        only: Vec::new(),
        json: target.join("soak.json"),
    };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let name = argument.to_str().unwrap_or_default().to_owned();
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(Asked::Help),
            "--list" => return Ok(Asked::List),
            "--quick" => options.quick = true,
            "--minutes" => options.time = minutes(&value()?.to_string_lossy())?,
            "--only" => options.only.push(scenario(value()?.to_string_lossy().into_owned())?),
            "--json" => options.json = PathBuf::from(value()?),
            "--agent" => (options.agent, options.release) = (PathBuf::from(value()?), true),
            "--release" => {
                (options.agent, options.release) = (target.join("release/orb8-agent"), true);
            }
            _ => bail!("unknown argument {}, see --help", argument.display()),
        }
    }
    ensure!(
        options.agent.is_file(),
        "{} does not exist: run `make build`",
        options.agent.display()
    );
    Ok(Asked::Run(options))
}

/// A part of a scenario's name.
fn scenario(part: String) -> anyhow::Result<String> {
    ensure!(
        soak::scenarios().any(|(name, _)| name.contains(&part)),
        "--only {part}: no scenario is called so, see --list"
    );
    Ok(part)
}

fn minutes(text: &str) -> anyhow::Result<Duration> {
    let minutes: f64 = text.parse().with_context(|| format!("--minutes {text}"))?;
    ensure!((0.1..=10_000.0).contains(&minutes), "--minutes {text}: give 0.1 to 10000");
    Ok(Duration::from_secs_f64(minutes * 60.0))
}

/// The folder of this program: what is built together is run together.
fn own_folder() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("the program's own path")?;
    Ok(exe.parent().context("the program's own folder")?.to_owned())
}

fn target() -> anyhow::Result<PathBuf> {
    let folder = own_folder()?;
    folder.parent().map(Path::to_owned).context("the folder of builds")
}
