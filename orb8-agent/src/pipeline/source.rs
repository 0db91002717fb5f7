//! Where events come from.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::event::Event;

/// Events that a source gives in one call.
pub const BATCH: usize = 1024;

/// When a source wants to be asked.
#[derive(Debug, Default)]
pub struct Wakeup<'a> {
    /// Readable means that there is something to collect.
    pub fd: Option<BorrowedFd<'a>>,
    /// Collect at this time at the latest.
    pub due: Option<Instant>,
}

/// A source of events: the ring by readiness, the flow lines by a timer, later GPUs and others.
///
/// A source may fail; the runner counts it, tells status and asks again later.
pub trait EventSource: Send {
    /// A stable name for status, logs and metrics.
    fn name(&self) -> &'static str;

    /// When to call [`Self::collect`] next. Asked before every wait.
    fn wakeup(&self) -> Wakeup<'_>;

    /// Somebody needs what there is now: a source on a timer is due at once, and its next time is as
    /// far from that as from any other. Others have told what there is.
    fn hurry(&mut self, _now: Instant) {}

    /// Lets a source on a timer take so much time between two of its times, the one it waits for
    /// included. Others have no such time.
    fn pace(&mut self, _interval: Duration) {}

    /// Whether it takes no more than its set time now, however much [`Self::pace`] lets it take.
    fn keeps_set_pace(&self) -> bool {
        false
    }

    /// Appends what has happened to `out`, without waiting.
    ///
    /// At most about [`BATCH`] events a call: a source that has more says so with a `due` that is
    /// already past, and is called again at once. That bounds memory, and other sources get their
    /// turn in between. A source that paces itself (the ring: drain, wait 2 ms for more, drain
    /// again) says so with `due` too, and with no `fd` meanwhile.
    ///
    /// # Errors
    /// What could not be read, in a sentence with the cause.
    fn collect(&mut self, now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError>;

    /// Called once before the end: the last events, after no more can happen.
    ///
    /// # Errors
    /// As [`Self::collect`].
    fn finish(&mut self, out: &mut Vec<Event>) -> Result<(), SourceError>;
}

/// A source could not be read.
#[derive(Debug, thiserror::Error)]
#[error("source {source_name}: {message}")]
pub struct SourceError {
    /// [`EventSource::name`].
    pub source_name: &'static str,
    /// The cause.
    pub message: String,
}
