//! The one reader of the kernel's clocks.
//!
//! Order and durations come from CLOCK_MONOTONIC alone; CLOCK_REALTIME is only the offset that is
//! added when a time is shown. Middle stages get times passed in and never call this.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Reads the time; tests put a manual one in its place.
pub trait Clock: Send + Sync + Debug {
    /// CLOCK_MONOTONIC nanoseconds.
    fn monotonic_ns(&self) -> u64;

    /// CLOCK_REALTIME minus CLOCK_MONOTONIC in nanoseconds, as of this moment.
    fn unix_offset_ns(&self) -> i64;

    /// The same moment as [`Self::monotonic_ns`], for waiting.
    fn instant(&self) -> Instant;
}

/// The kernel's clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl SystemClock {
    /// A shared one.
    #[must_use]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    fn monotonic_ns(&self) -> u64 {
        u64::try_from(nanoseconds(ClockId::Monotonic)).unwrap_or(0)
    }

    fn unix_offset_ns(&self) -> i64 {
        // The two readings are not of one moment: the smallest of three differences is the one
        // that was interrupted least.
        (0..3)
            .map(|_| nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Monotonic))
            .min()
            .unwrap_or(0)
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}

fn nanoseconds(id: ClockId) -> i64 {
    let time = clock_gettime(id);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// Unix nanoseconds of a monotonic time.
#[must_use]
pub fn to_unix(monotonic_ns: u64, unix_offset_ns: i64) -> i64 {
    i64::try_from(monotonic_ns).unwrap_or(i64::MAX).saturating_add(unix_offset_ns)
}

/// The monotonic time of Unix nanoseconds; what lies before the boot is 0.
#[must_use]
pub fn from_unix(unix_ns: i64, unix_offset_ns: i64) -> u64 {
    u64::try_from(unix_ns.saturating_sub(unix_offset_ns)).unwrap_or(0)
}

/// A duration in nanoseconds, at most `u64::MAX`.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_and_monotonic_times_convert_both_ways() {
        for (monotonic, offset) in [(0, 0), (5, 1_000), (1_000_000, -400), (7, i64::MAX - 10)] {
            let unix = to_unix(monotonic, offset);
            assert_eq!(from_unix(unix, offset), monotonic);
        }
        assert_eq!(from_unix(-5, 0), 0);
        assert_eq!(to_unix(u64::MAX, 1), i64::MAX);
    }

    #[test]
    fn monotonic_time_agrees_with_instants() {
        let clock = SystemClock;
        let before = clock.monotonic_ns();
        let start = clock.instant();
        let elapsed = start.elapsed();
        let after = clock.monotonic_ns();
        assert!(nanos(elapsed) <= after - before);
    }
}
