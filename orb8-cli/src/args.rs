//! The words of the command line that all verbs share, and the verbs.
//!
//! What is particular to a feature is in its own `args.rs`.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::builder::Styles;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{
    Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use orb8_util::duration::{self, DurationError};
use orb8_util::net::{HostPort, HostPortError};

use crate::bench::args::BenchArgs;
use crate::network::args::{FlowsArgs, TraceArgs};
use crate::output::Format;
use crate::verify::args::VerifyArgs;

const EXAMPLES: &str = "\
Examples:
  orb8 status                              what the agent on this host sees and how it is
  orb8 flows --port 443 --last 20          the 20 latest flows to or from port 443
  orb8 trace network --protocol icmp       flows as they start, change and end
  orb8 --agent node-a:9090 --agent node-b:9090 flows -o json

Exit codes: 0 done, 1 failed, 2 usage, 3 partial (a node is missing or something was lost),
4 not reachable.";

const AGENTS: &str = "agents";
const FILE: &str = "file";

/// See what goes over the network on a host or in a cluster
#[derive(Debug, Parser)]
#[command(name = "orb8", bin_name = "orb8", version, after_help = EXAMPLES)]
#[command(styles = Styles::styled(), arg_required_else_help = true, propagate_version = false)]
#[command(max_term_width = 100, disable_help_subcommand = true, disable_help_flag = true)]
pub struct Cli {
    #[command(flatten)]
    agents: AgentArgs,
    /// Options of all verbs.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

impl Cli {
    /// Reads a command line; the first word is the program's name.
    ///
    /// # Errors
    /// What clap has to say: a usage error, the help or the version.
    pub fn read<W>(words: impl IntoIterator<Item = W>) -> Result<Self, clap::Error>
    where
        W: Into<OsString> + Clone,
    {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(words)?;
        let settled = Self::from_arg_matches(&matches).and_then(|mut cli| {
            let from_environment = std::mem::take(&mut cli.agents.given);
            cli.global.settle(from_environment, &matches, &cli.verb)?;
            Ok(cli)
        });
        settled.map_err(|error| error.format(&mut command))
    }
}

/// The whole command line. Verbs that read no file take `--file` too, so that it may be refused with
/// the reason, but do not offer it.
#[must_use]
pub fn command() -> clap::Command {
    let unoffered = || Arg::new(FILE).long(FILE).value_name("FILE").hide(true);
    Cli::command()
        .mut_subcommand("status", |status| status.arg(unoffered()))
        .mut_subcommand("verify", |verify| verify.arg(unoffered()))
        .mut_subcommand("bench", |bench| bench.arg(unoffered()))
        .mut_subcommand("completions", |completions| completions.arg(unoffered()))
        .mut_subcommand("trace", |trace| {
            trace.arg(unoffered()).mut_subcommand("network", |network| network.arg(unoffered()))
        })
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the health of agents, where they are attached, and both ledgers
    #[command(after_help = crate::status::EXAMPLES)]
    Status(AgentArgs),
    /// List flows: who sends how much to whom
    #[command(after_help = crate::network::args::FLOWS_EXAMPLES)]
    Flows(Box<FlowsArgs>),
    /// Watch events as they happen
    #[command(after_help = crate::network::args::TRACE_EXAMPLES)]
    Trace(TraceWord),
    /// Compare what orb8 counts with the kernel's own counters
    #[command(after_help = crate::verify::args::EXAMPLES)]
    Verify(VerifyArgs),
    /// Measure what orb8 costs on this host, with an agent against without
    #[command(after_help = crate::bench::args::EXAMPLES)]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  orb8 completions bash > /etc/bash_completion.d/orb8
  orb8 completions zsh > \"${fpath[1]}/_orb8\"")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `orb8 trace`, which needs one more word.
#[derive(Debug, Args)]
pub struct TraceWord {
    #[command(flatten)]
    agents: AgentArgs,
    /// What to watch.
    #[command(subcommand)]
    pub verb: TraceVerb,
}

/// What can be watched.
#[derive(Debug, Subcommand)]
pub enum TraceVerb {
    /// Watch flows start, change and end
    #[command(after_help = crate::network::args::TRACE_EXAMPLES)]
    Network(Box<TraceArgs>),
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// `--agent`, which may stand before and after a verb. Not one of clap's global words: of those it
/// keeps only the innermost, and agents add up.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct AgentArgs {
    /// Agent to ask; repeat it for several [default: 127.0.0.1:9090]
    #[arg(id = AGENTS, long = "agent", value_name = "HOST:PORT", display_order = 0)]
    #[arg(env = "ORB8_AGENT", hide_env_values = true, value_delimiter = ',')]
    // Kept as they were given: the environment must not break a command that asks no agent.
    #[arg(value_parser = clap::value_parser!(OsString))]
    given: Vec<OsString>,
}

/// Reads one address; `from` is where it was given.
fn agent(given: &OsStr, from: &str) -> Result<HostPort, clap::Error> {
    let text = given.to_string_lossy();
    text.parse().map_err(|error: HostPortError| {
        let text = format!("invalid value '{text}' for '{from}': {error}");
        clap::Error::raw(ErrorKind::ValueValidation, text)
    })
}

/// Options of all verbs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// The agents to ask; none only where the verb asks nobody.
    #[arg(skip)]
    pub agents: Vec<HostPort>,
    /// Read flows saved with -o jsonl instead of asking an agent; - is stdin
    #[arg(long, value_name = "FILE", global = true)]
    pub file: Option<String>,
    /// How long an agent may take to answer
    #[arg(long, value_name = "DURATION", global = true, default_value = "5s")]
    #[arg(value_parser = positive_duration)]
    pub timeout: Duration,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", global = true, default_value = "table")]
    pub output: Format,
    /// Columns of table and csv, keys of json and yaml, such as src_ip,bytes,tcp.state
    #[arg(long, value_name = "FIELD,...", global = true, value_delimiter = ',')]
    pub fields: Vec<String>,
    /// Leave the header line out of table and csv
    #[arg(long, global = true)]
    pub no_headers: bool,
    /// When to colour
    #[arg(long, value_name = "WHEN", global = true, default_value = "auto")]
    pub color: Color,
    /// Exit with 0 also if a node is missing or something was lost
    #[arg(long, global = true)]
    pub allow_partial: bool,
    /// Print help
    // One help for -h and --help: the long form would spread each option over four lines.
    #[arg(short, long, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

impl GlobalArgs {
    /// Applies what needs to know where a value comes from: agents named before and after the verb
    /// add up, and a file named on the command line outweighs agents from the environment, but not
    /// agents on the command line.
    fn settle(
        &mut self,
        from_environment: Vec<OsString>,
        matches: &ArgMatches,
        verb: &Verb,
    ) -> Result<(), clap::Error> {
        let conflict = |text: &str| Err(clap::Error::raw(ErrorKind::ArgumentConflict, text));
        let named = named(matches);
        if named.iter().any(|given| given.is_empty()) {
            return conflict("--agent is empty, give HOST:PORT such as 127.0.0.1:9090");
        }
        if self.file.is_some() {
            if !named.is_empty() {
                return conflict("--file and --agent exclude each other, give one of them");
            }
            match verb {
                Verb::Flows(args) if args.follow => {
                    return conflict("--file cannot be followed, leave --follow out");
                }
                Verb::Flows(_) | Verb::Completions { .. } => {}
                Verb::Verify(_) => {
                    return conflict("verify asks an agent, not a file; leave --file out");
                }
                Verb::Bench(_) => {
                    return conflict(
                        "bench measures this host, it reads no file; leave --file out",
                    );
                }
                Verb::Status(_) => {
                    return conflict("status asks agents, not a file; leave --file out");
                }
                Verb::Trace(_) => {
                    return conflict(
                        "trace watches agents, not a file; read it with `orb8 flows --file`",
                    );
                }
            }
        }
        if self.file.is_some() || matches!(verb, Verb::Completions { .. }) {
            return Ok(());
        }
        self.agents = if named.is_empty() {
            // An empty word of a list names nobody.
            let given = from_environment.iter().filter(|given| !given.is_empty());
            given.map(|given| agent(given, "ORB8_AGENT")).collect::<Result<_, _>>()?
        } else {
            named
                .iter()
                .map(|given| agent(given, "--agent <HOST:PORT>"))
                .collect::<Result<_, _>>()?
        };
        if self.agents.is_empty() {
            self.agents = vec![HostPort { host: "127.0.0.1".to_owned(), port: 9090 }];
        }
        Ok(())
    }
}

/// The agents on the command line, before and after the verb.
fn named(matches: &ArgMatches) -> Vec<OsString> {
    let mut found = Vec::new();
    let mut level = Some(matches);
    while let Some(matches) = level {
        // Not every verb has agents, and clap panics when asked for what a verb does not have.
        let present = matches.try_contains_id(AGENTS).unwrap_or(false);
        if present && matches.value_source(AGENTS) == Some(ValueSource::CommandLine) {
            found.extend(matches.get_many::<OsString>(AGENTS).into_iter().flatten().cloned());
        }
        level = matches.subcommand().map(|(_, matches)| matches);
    }
    found
}

/// Reads a duration that is longer than nothing.
///
/// # Errors
/// The text and the accepted forms.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration::parse(text).map_err(|error: DurationError| error.to_string())?;
    if duration.is_zero() {
        return Err("it must be longer than 0s, such as 5s".to_owned());
    }
    Ok(duration)
}
