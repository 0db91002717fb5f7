//! Why an agent did not answer, in words for a person and in kinds for a program.
//!
//! Turns the transport's error chains into one cause; nothing else looks into them.

use std::error::Error;
use std::io;
use std::time::Duration;

use orb8_util::duration;
use orb8_util::net::HostPort;
use tonic::{Code, Status};

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection could be made.
    Unreachable,
    /// The connection broke before or during the answer.
    Broken,
    /// No answer came in time.
    Timeout,
    /// Something answers there, but not in gRPC or not as orb8.
    NotOrb8,
    /// The agent says that the request is wrong.
    BadRequest,
    /// The agent answered with an error.
    Failed,
    /// The agent ended a stream that should have gone on.
    Ended,
    /// The connection broke while a stream was open.
    Lost,
}

/// One agent did not answer, or not to the end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct AgentError {
    /// Where the agent was asked.
    pub address: HostPort,
    /// The kind of failure.
    pub kind: ErrorKind,
    /// The cause, without the address.
    pub cause: String,
}

impl AgentError {
    /// The state of this node in an answer: `unreachable`, `timeout` or `error`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.kind {
            ErrorKind::Unreachable | ErrorKind::Broken | ErrorKind::Lost => "unreachable",
            ErrorKind::Timeout => "timeout",
            ErrorKind::NotOrb8 | ErrorKind::BadRequest | ErrorKind::Failed | ErrorKind::Ended => {
                "error"
            }
        }
    }

    fn sentence(&self) -> String {
        let Self { address, kind, cause } = self;
        match kind {
            ErrorKind::Unreachable => format!("cannot reach the agent at {address}: {cause}"),
            ErrorKind::Broken | ErrorKind::Lost => {
                format!("the connection to the agent at {address} broke: {cause}")
            }
            ErrorKind::Timeout => format!("the agent at {address} did not answer {cause}"),
            ErrorKind::NotOrb8 => {
                format!("what listens at {address} does not answer as an orb8 agent: {cause}")
            }
            ErrorKind::BadRequest => format!("the agent at {address} refuses the request: {cause}"),
            ErrorKind::Failed => format!("the agent at {address} failed: {cause}"),
            ErrorKind::Ended => format!("the agent at {address} ended the stream: {cause}"),
        }
    }

    pub(crate) fn timeout(address: &HostPort, after: Duration) -> Self {
        Self {
            address: address.clone(),
            kind: ErrorKind::Timeout,
            cause: format!("within {}", duration::exact(after)),
        }
    }

    pub(crate) fn ended(address: &HostPort) -> Self {
        Self {
            address: address.clone(),
            kind: ErrorKind::Ended,
            cause: "it closed the connection, it may be stopping".to_owned(),
        }
    }

    /// A stream that was open came to its end with a status other than ok.
    pub(crate) fn stream_status(address: &HostPort, timeout: Duration, status: &Status) -> Self {
        // An agent that is stopping says so with a status of its own.
        let told = status.source().is_none() && !status.message().is_empty();
        match status.code() {
            Code::Unavailable | Code::Cancelled if told => Self {
                address: address.clone(),
                kind: ErrorKind::Ended,
                cause: status.message().to_owned(),
            },
            _ => {
                let mut error = Self::status(address, timeout, status);
                // It has spoken gRPC as an orb8 agent until then.
                if matches!(error.kind, ErrorKind::Broken | ErrorKind::NotOrb8) {
                    error.kind = ErrorKind::Lost;
                }
                error
            }
        }
    }

    /// No connection could be made within `timeout`.
    pub(crate) fn connect(
        address: &HostPort,
        timeout: Duration,
        error: &tonic::transport::Error,
    ) -> Self {
        if io_cause(error).is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) {
            return Self::timeout(address, timeout);
        }
        Self { address: address.clone(), kind: ErrorKind::Unreachable, cause: root_cause(error) }
    }

    /// The call came back with a status other than ok.
    pub(crate) fn status(address: &HostPort, timeout: Duration, status: &Status) -> Self {
        let (kind, cause) = match status.code() {
            Code::InvalidArgument => (ErrorKind::BadRequest, status.message().to_owned()),
            Code::DeadlineExceeded => return Self::timeout(address, timeout),
            Code::Unimplemented => {
                (ErrorKind::NotOrb8, "it does not serve orb8.v1.OrbitAgentService".to_owned())
            }
            // A status with a source was made on this side: the connection broke or never spoke gRPC.
            _ => match status.source() {
                Some(source) if speaks_otherwise(source) => {
                    (ErrorKind::NotOrb8, format!("it does not speak gRPC ({})", root_cause(source)))
                }
                Some(source) => (ErrorKind::Broken, root_cause(source)),
                None if status.code() == Code::Unavailable => {
                    (ErrorKind::Unreachable, described(status))
                }
                None => (ErrorKind::Failed, described(status)),
            },
        };
        Self { address: address.clone(), kind, cause }
    }
}

/// True if the other side does not speak HTTP/2: the connection is well, its contents are not.
fn speaks_otherwise(error: &(dyn Error + 'static)) -> bool {
    let protocol = chain(error).filter_map(|error| error.downcast_ref::<h2::Error>());
    protocol.into_iter().any(|error| {
        error.reason().is_some_and(|reason| {
            matches!(reason, h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR)
        })
    })
}

fn described(status: &Status) -> String {
    if status.message().is_empty() {
        format!("{:?} without a message", status.code())
    } else {
        status.message().to_owned()
    }
}

fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + 'a {
    std::iter::successors(Some(error), |&error| error.source())
}

fn io_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    chain(error).find_map(|error| error.downcast_ref::<io::Error>())
}

/// The innermost cause says what happened; the layers above it only say where.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    if let Some(io) = io_cause(error) {
        return io_text(io);
    }
    chain(error).last().map_or_else(|| error.to_string(), ToString::to_string)
}

fn io_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to the host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "the network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}
