//! Which events go on.
//!
//! A filter is pure: no I/O, no clock, no error.

use crate::event::Event;

/// Decides whether an event goes on.
pub trait EventFilter: Send {
    /// Keeps the event, or drops it for a reason that the ledger counts.
    fn filter(&mut self, event: &Event) -> Verdict;
}

/// What a filter decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// It ends here; the reason is a stable word for status and metrics.
    Drop(&'static str),
}
