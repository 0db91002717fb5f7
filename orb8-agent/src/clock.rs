//! The one reader of the kernel's clocks.
//!
//! Order and durations come from CLOCK_MONOTONIC alone; CLOCK_REALTIME is only the offset that is
//! added when a time is shown. Middle stages get times passed in and never call this.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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

/// Two readings of an unchanged offset differ by less, steps of the clock are larger. Slewing does
/// not count: it changes the pace of both clocks.
const READING_ERROR_NS: u64 = 1_000_000;

/// The kernel's clocks.
#[derive(Debug)]
pub struct SystemClock {
    /// The offset that was read first since the last step of the clock.
    offset_ns: AtomicI64,
}

impl SystemClock {
    /// A shared one.
    #[must_use]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self::new())
    }

    fn new() -> Self {
        Self { offset_ns: AtomicI64::new(read_offset_ns()) }
    }

    /// The held offset, unless a reading shows that the clock was stepped. With a fresh reading each
    /// time, the same flow would have begun at another nanosecond in every answer.
    fn hold(&self, read_ns: i64) -> i64 {
        let held_ns = self.offset_ns.load(Ordering::Relaxed);
        if held_ns.abs_diff(read_ns) < READING_ERROR_NS {
            return held_ns;
        }
        self.offset_ns.store(read_ns, Ordering::Relaxed);
        read_ns
    }
}

impl Clock for SystemClock {
    fn monotonic_ns(&self) -> u64 {
        u64::try_from(nanoseconds(ClockId::Monotonic)).unwrap_or(0)
    }

    fn unix_offset_ns(&self) -> i64 {
        self.hold(read_offset_ns())
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// CPU time that all threads of this process have taken.
#[must_use]
pub fn process_cpu() -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds(ClockId::ProcessCPUTime)).unwrap_or(0))
}

fn read_offset_ns() -> i64 {
    // The two readings are not of one moment: the monotonic one comes second, so an interruption
    // makes the difference smaller, and the largest of three was interrupted least.
    (0..3)
        .map(|_| nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Monotonic))
        .max()
        .unwrap_or(0)
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
    fn offset_stays_the_same_until_the_clock_is_stepped() {
        let clock = SystemClock { offset_ns: AtomicI64::new(5_000_000_000) };
        for (read_ns, told_ns) in [
            (5_000_000_090, 5_000_000_000),
            (4_999_100_000, 5_000_000_000),
            // A step of a second forward, then of two milliseconds back.
            (6_000_000_000, 6_000_000_000),
            (6_000_000_700, 6_000_000_000),
            (5_998_000_000, 5_998_000_000),
            (-7, -7),
        ] {
            assert_eq!(clock.hold(read_ns), told_ns, "{read_ns}");
        }
    }

    #[test]
    fn monotonic_time_agrees_with_instants() {
        let clock = SystemClock::new();
        let before = clock.monotonic_ns();
        let start = clock.instant();
        let elapsed = start.elapsed();
        let after = clock.monotonic_ns();
        assert!(nanos(elapsed) <= after - before);
    }
}
