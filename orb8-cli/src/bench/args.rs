//! The words of `orb8 bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use orb8_util::net::{HostPort, HostPortError};

use crate::args::positive_duration;

/// Examples of `orb8 bench`.
pub const EXAMPLES: &str = "\
Examples:
  sudo orb8 bench                          what does orb8 cost on this host? 2 to 3 minutes of it
  sudo orb8 bench --pairs 1 --duration 1s  a look at how it goes; one round shows no difference
  sudo orb8 bench --pairs 20 -o json       a narrow interval, in ten minutes
  orb8 bench --listen 0.0.0.0:7000         the far end, on another host, and here:
  sudo orb8 bench --target node-b:7000     over the link instead of loopback
  sudo ORB8_INTERFACES=lo orb8 bench --capture tc  what counting at interfaces costs on loopback

It loads the host: run it where that harms nobody, with nothing else to do. It starts an
orb8-agent of its own in each round and stops it again; no other may count here meanwhile: one
that answers at --agent is refused, of other processes of that name bench only tells. The agent
takes its settings from the environment (ORB8_INTERFACES, ...) as it always does; sudo passes
on only what is written behind it, as above.

A difference that is no greater than what two runs without an agent differ by is called undecided.

Exits with 0 also if orb8 makes a difference, with 2 if the agent at --agent counts here or its
own cannot see the load, with 3 if the agent lost something.";

/// `orb8 bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Rounds; each is a run with an agent and two without
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// How long each of the three loads of a run lasts
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    pub duration: Duration,
    /// Where the agent counts [default: the agent's own]
    #[arg(long, value_name = "PLANE")]
    pub capture: Option<Capture>,
    /// Let the agent ask the Kubernetes API as its settings say
    #[arg(long)]
    pub kubernetes: bool,
    /// The agent [default: orb8-agent beside this program, else in PATH]
    #[arg(long, value_name = "FILE")]
    pub agent_binary: Option<PathBuf>,
    /// Send to a far end on another host instead of over loopback; port 7000 unless given
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "listen", value_parser = target)]
    pub target: Option<HostPort>,
    /// Be the far end at this address until Ctrl-C; measures nothing
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
}

/// Where an agent counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Capture {
    /// What suits the node
    Auto,
    /// At sockets
    Socket,
    /// At interfaces; loopback is none unless ORB8_INTERFACES names it
    Tc,
}

impl Capture {
    /// As the agent's settings write it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Socket => "socket",
            Self::Tc => "tc",
        }
    }
}

/// Shorter runs are over before they begin.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(10 * 60);

fn duration(text: &str) -> Result<Duration, String> {
    let duration = positive_duration(text)?;
    if (SHORTEST..=LONGEST).contains(&duration) {
        return Ok(duration);
    }
    Err("it must be from 50ms to 10m".to_owned())
}

/// The port of a far end unless another is given, as in the examples.
const FAR_PORT: u16 = 7000;

fn target(text: &str) -> Result<HostPort, HostPortError> {
    HostPort::parse(text, FAR_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_neither_nothing_nor_endless() {
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("50ms"), Ok(SHORTEST));
        for wrong in ["0s", "49ms", "601s", "x"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
