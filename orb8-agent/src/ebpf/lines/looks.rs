//! When the counters are read, drain or not: what was seen at sockets stands in one word, which
//! wraps if nobody looks for too long. Knows no clock and reads nothing.

use std::time::{Duration, Instant};

use crate::event::{Notice, Severity};

/// Between two looks, at most; see [`orb8_common::counter::apart`].
const INTERVAL: Duration = Duration::from_secs(4);
/// A look so much too late may have missed that the word has wrapped.
const LATE: Duration = Duration::from_secs(10);

/// When the next look is due.
pub(super) struct Looks {
    due: Instant,
}

impl Looks {
    /// The first one is due an interval from now.
    pub(super) fn after(now: Instant) -> Self {
        Self { due: now + INTERVAL }
    }

    /// When somebody has to look.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// Says whether to look now: by how much that is too late. The next look is an interval away.
    pub(super) fn look(&mut self, now: Instant) -> Option<Duration> {
        let late = now.checked_duration_since(self.due)?;
        self.due = now + INTERVAL;
        Some(late)
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
    fn a_look_is_due_four_seconds_after_the_one_before_however_late_that_was() {
        let start = Instant::now();
        let mut looks = Looks::after(start);
        assert_eq!(looks.due(), start + 4000 * MS);
        assert_eq!(looks.look(start + 3999 * MS), None);
        assert_eq!(looks.look(start + 4000 * MS), Some(Duration::ZERO));
        assert_eq!(looks.look(start + 4000 * MS), None, "once");
        assert_eq!(looks.due(), start + 8000 * MS);
        assert_eq!(looks.look(start + 20_000 * MS), Some(12_000 * MS));
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
