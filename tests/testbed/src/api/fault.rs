//! Switches that make the server slow, silent, forbidden or failing. Each request looks at them.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This HTTP status, with a Status object.
    Status(u16),
    /// 429 with plain text and `Retry-After` in seconds.
    TooMany(u32),
    /// The connection ends without an answer.
    Hangup,
}

/// What is switched on.
#[derive(Clone, Debug, Default)]
pub struct Switches {
    /// Time before each answer.
    pub delay: Duration,
    /// Nothing is answered and watches tell nothing, while connections stay open.
    pub stalled: bool,
    /// Resources that nobody may list or watch.
    pub forbidden: BTreeSet<&'static str>,
    /// How requests fail, and how many of them still; `None`: until told otherwise.
    pub failing: Option<(Failure, Option<u32>)>,
    /// Only this resource fails; `None`: all.
    pub failing_only: Option<&'static str>,
}

/// The switches of a server.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Switches>);

impl Faults {
    /// Reads or turns switches.
    pub fn switches(&self) -> MutexGuard<'_, Switches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the next request for a resource fails, if it does.
    #[must_use]
    pub fn failure(&self, plural: &str) -> Option<Failure> {
        let mut switches = self.switches();
        if switches.failing_only.is_some_and(|only| only != plural) {
            return None;
        }
        match &mut switches.failing {
            None | Some((_, Some(0))) => None,
            Some((failure, None)) => Some(*failure),
            Some((failure, Some(left))) => {
                *left -= 1;
                Some(*failure)
            }
        }
    }
}
