//! When the counters are read, drain or not: what was seen at sockets stands in one word, which
//! wraps if nobody looks for too long. Knows no clock and reads nothing.

use std::time::{Duration, Instant};

use crate::event::{Notice, Severity};

/// Between two looks, at most; see [`orb8_common::counter::apart`].
pub(super) const INTERVAL: Duration = Duration::from_secs(4);
/// A look so much too late may have missed that the word has wrapped.
const LATE: Duration = Duration::from_secs(10);

/// When the next look is due.
pub(super) struct Looks {
    due: Instant,
}

impl Looks {
    /// The first one is due after so much time.
    pub(super) fn after(now: Instant, time: Duration) -> Self {
        Self { due: now + time }
    }

    /// When somebody has to look.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// Whether to look now: by how much that is too late.
    pub(super) fn look(&self, now: Instant) -> Option<Duration> {
        now.checked_duration_since(self.due)
    }

    /// Somebody has looked; the next look is due then.
    pub(super) const fn put_off(&mut self, due: Instant) {
        self.due = due;
    }
}

/// What is to be told of a look that came too late by so much.
pub(super) fn notice(late: Duration) -> Option<Notice> {
    (late > LATE).then(|| Notice {
        severity: Severity::Warning,
        code: "counters_read_late",
        message: format!(
            "the agent stood still for {} s: if a CPU had more than 67 million packets at sockets \
             meanwhile, fewer are told as seen",
            late.as_secs()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_look_is_due_until_somebody_has_looked_and_says_how_late_it_is() {
        let start = Instant::now();
        let mut looks = Looks::after(start, INTERVAL);
        assert_eq!(looks.due(), start + 4000 * MS);
        assert_eq!(looks.look(start + 3999 * MS), None);
        assert_eq!(looks.look(start + 4000 * MS), Some(Duration::ZERO));
        assert_eq!(looks.look(start + 20_000 * MS), Some(16_000 * MS));
        looks.put_off(start + 24_000 * MS);
        assert_eq!(looks.look(start + 23_999 * MS), None);
        assert_eq!(looks.due(), start + 24_000 * MS);
    }

    #[test]
    fn a_look_is_told_when_it_is_more_than_ten_seconds_late() {
        assert_eq!(notice(Duration::ZERO), None);
        assert_eq!(notice(10_000 * MS), None);
        let told = notice(12_345 * MS).expect("too late");
        assert_eq!((told.severity, told.code), (Severity::Warning, "counters_read_late"));
        assert!(told.message.starts_with("the agent stood still for 12 s"), "{}", told.message);
    }
}
