//! Exit codes, and errors with the next step for a person.
//!
//! The only place that decides which failure gives which code.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use orb8_query::file::FileError;
use orb8_query::{AgentError, ErrorKind};

/// The exit codes of `orb8`, a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The answer is whole.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line or a value in it is wrong.
    Usage = 2,
    /// The answer lacks a node, or something was lost within its scope.
    Partial = 3,
    /// No agent could be reached.
    Unreachable = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why there is no answer at all.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The values do not fit together.
    #[error("{0}")]
    Usage(String),
    /// No agent answered.
    #[error("{}", no_answer(.0))]
    NoAgent(Vec<AgentError>),
    /// The saved file cannot be read.
    #[error("file {path}: {cause}")]
    File {
        /// As given.
        path: String,
        /// Why.
        #[source]
        cause: FileError,
    },
    /// The answer cannot be printed. A closed pipe is the reader's choice, not a failure.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The answer cannot be put into the output format.
    #[error("cannot write the output as {format}: {cause}")]
    Encode {
        /// The format.
        format: &'static str,
        /// Why.
        cause: String,
    },
    /// A measurement broke off.
    #[error("{0}")]
    Measure(String),
    /// The process lacks what it needs to run at all.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

impl CliError {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::NoAgent(errors) => {
                let all = |kinds: &[ErrorKind]| errors.iter().all(|e| kinds.contains(&e.kind));
                if all(&[ErrorKind::BadRequest]) {
                    Exit::Usage
                } else if all(&[
                    ErrorKind::Unreachable,
                    ErrorKind::Broken,
                    ErrorKind::Lost,
                    ErrorKind::Timeout,
                    ErrorKind::NotOrb8,
                ]) {
                    Exit::Unreachable
                } else {
                    Exit::Failed
                }
            }
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::File { cause: FileError::Filter(_), .. } => Exit::Usage,
            Self::File { .. }
            | Self::Output(_)
            | Self::Encode { .. }
            | Self::Measure(_)
            | Self::Runtime(_) => Exit::Failed,
        }
    }

    /// True if there is nothing to say: the reader has closed the pipe.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What to do about one agent that did not answer.
#[must_use]
pub fn next_step(error: &AgentError) -> &'static str {
    match error.kind {
        ErrorKind::Unreachable => {
            "is orb8-agent running there? Name another with --agent HOST:PORT"
        }
        ErrorKind::Broken => "is that the agent's gRPC port, 9090 by default? See the agent's log",
        ErrorKind::Timeout => "allow it more time with --timeout",
        ErrorKind::NotOrb8 => "give the agent's gRPC port, 9090 by default, with --agent HOST:PORT",
        ErrorKind::BadRequest => "change the request",
        ErrorKind::Failed => "see the agent's log and `orb8 status`",
        ErrorKind::Ended => "see the agent's log",
        ErrorKind::Lost => "is the agent still running? See its log, then watch again",
    }
}

fn no_answer(errors: &[AgentError]) -> String {
    let mut text = String::new();
    for (index, error) in errors.iter().enumerate() {
        let separator = if index == 0 { "" } else { "\nerror: " };
        write!(text, "{separator}{error}; {}", next_step(error))
            .expect("writing to a String cannot fail");
    }
    text
}
