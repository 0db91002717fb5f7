//! The words of `orb8 verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::args::{AgentArgs, positive_duration};

/// Examples of `orb8 verify`.
pub const EXAMPLES: &str = "\
Examples:
  orb8 verify                              does orb8 count what the kernel counts? 10 seconds of it
  orb8 verify --duration 1m --tolerance 0  exactly, over a minute
  orb8 verify -o json | jq '.rows[] | select(.verdict == \"differs\")'

Run it on the agent's node, in its network namespace, as root (or who may look at all
processes); in a container with the node's process ids (hostPID). DIFFERENCE is what neither the
time between readings, shown as (±n), nor segments of super-packets explain.

Exits with 0 if all that was compared agrees, with 1 if something differs by more than the
tolerance, with 3 if something that should have been compared was not, something was lost, or
the agent's own ledger does not add up.";

/// `orb8 verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// How long to count
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Difference that is allowed, in percent of what the kernel counted
    #[arg(long, value_name = "PERCENT", default_value = "0.1", value_parser = percent)]
    pub tolerance: f64,
    /// Where the node's /proc is
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub proc: PathBuf,
    #[command(flatten)]
    agents: AgentArgs,
}

/// The agent keeps totals for a day at most.
const LONGEST: Duration = Duration::from_secs(23 * 60 * 60);

fn duration(text: &str) -> Result<Duration, String> {
    let duration = positive_duration(text)?;
    if duration > LONGEST {
        return Err("it must not be longer than 23h".to_owned());
    }
    Ok(duration)
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if percent.is_finite() && percent >= 0.0 => Ok(percent),
        _ => Err("it must be a percentage of 0 or more, such as 0.1 or 0.1%".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tolerance_is_a_percentage_with_or_without_its_sign() {
        assert_eq!(percent("0.1"), Ok(0.1));
        assert_eq!(percent("2%"), Ok(2.0));
        assert_eq!(percent("0"), Ok(0.0));
        for wrong in ["", "%", "-1", "nan", "inf", "x"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
