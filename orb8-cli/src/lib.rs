//! The `orb8` command line: arguments in, an answer on stdout, everything else on stderr, and an
//! exit code that says whether the answer is whole.
//!
//! A thin layer over orb8-query: it asks nothing of the kernel and builds wherever Rust does.
#![forbid(unsafe_code)]

pub mod args;
pub mod error;
pub mod network;
pub mod output;
pub mod status;
pub mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, TraceVerb, Verb};
use error::{CliError, Exit};
use terminal::Terminal;

/// Runs the process: reads its arguments, prints, and gives its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Terminal::process().fail(&CliError::Runtime(error)).into(),
    };
    runtime.block_on(async { run(std::env::args_os(), &mut Terminal::process()).await }).into()
}

/// Runs one command line (the first argument is the program's name) on the given terminal.
pub async fn run<A>(args: impl IntoIterator<Item = A>, terminal: &mut Terminal<'_>) -> Exit
where
    A: Into<OsString> + Clone,
{
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => return terminal.usage(&error),
    };
    terminal.set_color(cli.global.color);
    let done = match &cli.verb {
        Verb::Status => status::run(&cli.global, terminal).await,
        Verb::Flows(args) => network::flows::run(&cli.global, args, terminal).await,
        Verb::Trace(TraceVerb::Network(args)) => {
            network::trace::run(&cli.global, args, terminal).await
        }
        Verb::Completions { shell } => completions(*shell, terminal),
    };
    done.and_then(|exit| {
        terminal.out.flush()?;
        Ok(exit)
    })
    .unwrap_or_else(|error| terminal.fail(&error))
}

fn parse<A>(args: impl IntoIterator<Item = A>) -> Result<Cli, clap::Error>
where
    A: Into<OsString> + Clone,
{
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(args)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    cli.global.settle(&matches, &cli.verb).map_err(|error| error.format(&mut command))?;
    Ok(cli)
}

fn completions(shell: clap_complete::Shell, terminal: &mut Terminal<'_>) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "orb8", &mut script);
    terminal.out.write_all(&script)?;
    Ok(Exit::Done)
}
