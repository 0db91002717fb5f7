//! Turns the kernel's ticks into CLOCK_MONOTONIC nanoseconds.
//!
//! Lines carry the low 32 bits of `jiffies64`, which the kernel starts 300 seconds before they
//! wrap; every difference here wraps with them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use aya::maps::{Array, MapData};
use orb8_common::network::ClockPair;

use super::sys;

/// Tick rates that a kernel can be built with (CONFIG_HZ).
const RATES: [u64; 5] = [100, 250, 300, 1000, 1024];

/// Both clocks as one moment, and how long a tick is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The moment.
    pub pair: ClockPair,
    /// Nanoseconds of a tick.
    pub tick_ns: u64,
}

impl Reference {
    /// The moment as lines are stamped with it.
    #[must_use]
    pub fn stamp(&self) -> u32 {
        u32::try_from(self.pair.jiffies & u64::from(u32::MAX)).unwrap_or(u32::MAX)
    }

    /// Ticks between a line's stamp and this moment; 0 if the stamp is later.
    #[must_use]
    pub fn ticks_since(&self, stamp: u32) -> u32 {
        let ticks = self.stamp().wrapping_sub(stamp);
        if ticks > u32::MAX / 2 { 0 } else { ticks }
    }

    /// CLOCK_MONOTONIC nanoseconds of a line's stamp, to one tick.
    #[must_use]
    pub fn time_of(&self, stamp: u32) -> u64 {
        let age = u64::from(self.ticks_since(stamp)) * self.tick_ns;
        self.pair.monotonic_ns.saturating_sub(age)
    }

    /// Ticks in a duration, at least one.
    #[must_use]
    pub fn ticks_in(&self, duration: Duration) -> u32 {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        u32::try_from(ns / self.tick_ns.max(1)).unwrap_or(u32::MAX / 2).max(1)
    }
}

/// Reads both clocks by running the program `orb8_clock`.
pub struct Clock {
    program: OwnedFd,
    pair: Array<MapData, [u64; 2]>,
    first: ClockPair,
    tick_ns: u64,
}

/// The clocks could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read the kernel's clocks: {0}")]
pub struct ClockError(String);

impl Clock {
    /// Reads the clocks until a few ticks have passed, at most a tenth of a second.
    ///
    /// # Errors
    /// What running the program says.
    pub fn new(program: OwnedFd, pair: Array<MapData, [u64; 2]>) -> Result<Self, ClockError> {
        let mut clock = Self { program, pair, first: ClockPair::default(), tick_ns: 4_000_000 };
        clock.first = clock.read()?;
        loop {
            std::thread::sleep(Duration::from_millis(12));
            let now = clock.read()?;
            if now.jiffies.wrapping_sub(clock.first.jiffies) >= 5 {
                clock.tick_ns = tick_ns(clock.first, now);
                return Ok(clock);
            }
        }
    }

    /// Nanoseconds of a tick.
    #[must_use]
    pub const fn tick_ns(&self) -> u64 {
        self.tick_ns
    }

    fn read(&self) -> Result<ClockPair, ClockError> {
        // The kernel refuses packets shorter than an Ethernet header.
        sys::test_run(self.program.as_fd(), &[0; 64], 1).map_err(|e| ClockError(e.to_string()))?;
        let [jiffies, monotonic_ns] =
            self.pair.get(&0, 0).map_err(|e| ClockError(e.to_string()))?;
        Ok(ClockPair { jiffies, monotonic_ns })
    }

    /// The present moment.
    ///
    /// # Errors
    /// What running the program says.
    pub fn now(&mut self) -> Result<Reference, ClockError> {
        let pair = self.read()?;
        // The longer the distance the surer the rate.
        if pair.jiffies.wrapping_sub(self.first.jiffies) >= 5 {
            self.tick_ns = tick_ns(self.first, pair);
        }
        Ok(Reference { pair, tick_ns: self.tick_ns })
    }
}

/// Nanoseconds of a tick, from two moments, as the nearest rate that kernels are built with.
fn tick_ns(a: ClockPair, b: ClockPair) -> u64 {
    let ns = b.monotonic_ns.saturating_sub(a.monotonic_ns).max(1);
    let ticks = b.jiffies.wrapping_sub(a.jiffies);
    let measured = ticks.saturating_mul(1_000_000_000) / ns;
    let rate = RATES.into_iter().min_by_key(|r| r.abs_diff(measured)).unwrap_or(250);
    1_000_000_000 / rate
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(jiffies: u64, monotonic_ns: u64) -> ClockPair {
        ClockPair { jiffies, monotonic_ns }
    }

    #[test]
    fn the_tick_rate_is_the_nearest_that_a_kernel_can_have() {
        for rate in RATES {
            let early = at(7, SECOND);
            let late = at(7 + rate * 2, 3 * SECOND + 900_000);
            assert_eq!(tick_ns(early, late), SECOND / rate, "CONFIG_HZ={rate}");
        }
    }

    #[test]
    fn stamps_on_both_sides_of_the_32_bit_wrap_are_in_order() {
        // A kernel at HZ=250, 10 ticks after the low half has wrapped.
        let reference = Reference { pair: at((1 << 32) + 10, 400 * SECOND), tick_ns: 4_000_000 };
        assert_eq!(reference.ticks_since(10), 0);
        assert_eq!(reference.ticks_since(9), 1);
        assert_eq!(reference.ticks_since(u32::MAX), 11);
        assert_eq!(reference.time_of(u32::MAX), 400 * SECOND - 11 * 4_000_000);
        assert_eq!(reference.time_of(u32::MAX - 249), 400 * SECOND - 260 * 4_000_000);
    }

    #[test]
    fn a_stamp_from_the_future_counts_as_now() {
        let reference = Reference { pair: at(100, SECOND), tick_ns: 4_000_000 };
        assert_eq!(reference.ticks_since(101), 0);
        assert_eq!(reference.time_of(101), SECOND);
    }

    #[test]
    fn a_boot_time_before_the_first_tick_does_not_underflow() {
        let reference = Reference { pair: at(5, 1000), tick_ns: 4_000_000 };
        assert_eq!(reference.time_of(0), 0);
    }
}
