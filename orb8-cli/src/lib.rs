//! The `orb8` command line: arguments in, an answer on stdout, everything else on stderr, and an
//! exit code that says whether the answer is whole.
//!
//! A thin layer over orb8-query: it asks nothing of the kernel and builds wherever Rust does.
#![forbid(unsafe_code)]

pub mod args;
pub mod bench;
pub mod error;
pub mod network;
pub mod output;
pub mod status;
pub mod terminal;
pub mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

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
    let cli = match Cli::read(args) {
        Ok(cli) => cli,
        Err(error) => return terminal.usage(&error),
    };
    terminal.set_color(cli.global.color);
    let done = match &cli.verb {
        Verb::Status(_) => status::run(&cli.global, terminal).await,
        Verb::Flows(args) => network::flows::run(&cli.global, args, terminal).await,
        Verb::Trace(word) => match &word.verb {
            TraceVerb::Network(args) => network::trace::run(&cli.global, args, terminal).await,
        },
        Verb::Verify(args) => verify::run(&cli.global, args, terminal).await,
        Verb::Bench(args) => bench::run(&cli.global, args, terminal).await,
        Verb::Completions { shell } => completions(*shell, terminal),
    };
    done.and_then(|exit| {
        terminal.out.flush()?;
        Ok(exit)
    })
    .unwrap_or_else(|error| terminal.fail(&error))
}

fn completions(shell: clap_complete::Shell, terminal: &mut Terminal<'_>) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "orb8", &mut script);
    terminal.out.write_all(&script)?;
    Ok(Exit::Done)
}
