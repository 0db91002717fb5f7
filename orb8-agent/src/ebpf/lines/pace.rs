//! How much time passes between two drains: as much as is asked for, and no more than is set while
//! lines get scarce.
//!
//! A line that an ended flow holds takes each of its steps out of use in a drain, so with more time
//! between drains the same traffic holds more lines. Nothing here reads a clock or the kernel.

use std::time::Duration;

use orb8_common::counter::{EVENTS_DEFERRED, EVENTS_PRODUCED};

use super::looks;
use crate::event::Counters;

/// Judges how much time may pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    set: Duration,
    asked: Duration,
    /// Lines that there are.
    lines: u64,
    /// Lines in use when they were counted last.
    in_use: u64,
    /// Lifecycle events by then.
    events: u64,
    /// Lifecycle events since. Each flow that takes a line makes one, so these are no fewer.
    since: u64,
}

impl Pace {
    /// The set time between drains, of so many lines none in use.
    pub(super) fn new(set: Duration, lines: u32) -> Self {
        Self { set, asked: set, lines: lines.into(), in_use: 0, events: 0, since: 0 }
    }

    /// Lets so much time pass, unless lines are scarce.
    pub(super) const fn ask(&mut self, interval: Duration) {
        self.asked = interval;
    }

    /// So many lines are in use; the counters are those of before they were counted.
    pub(super) fn count(&mut self, in_use: u32, before: &Counters) {
        (self.in_use, self.events, self.since) = (in_use.into(), events(before), 0);
    }

    /// Sees from the counters how many more lines may be in use by now.
    pub(super) fn look(&mut self, counters: &Counters) {
        self.since = events(counters).wrapping_sub(self.events);
    }

    /// The time between two drains.
    pub(super) fn interval(&self) -> Duration {
        if self.is_scarce() { self.asked.min(self.set) } else { self.asked }
    }

    /// The time until the counters are looked at, drain or not.
    pub(super) fn until_look(&self) -> Duration {
        if self.asked > self.set { self.set.min(looks::INTERVAL) } else { looks::INTERVAL }
    }

    /// More than half of the lines may be in use: no more time passes than is set.
    pub(super) const fn is_scarce(&self) -> bool {
        self.in_use.saturating_add(self.since) > self.lines / 2
    }
}

/// What was told of flows, or left to a drain.
const fn events(counters: &Counters) -> u64 {
    counters.0[EVENTS_PRODUCED].wrapping_add(counters.0[EVENTS_DEFERRED])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: Duration = Duration::from_secs(1);
    const STRETCHED: Duration = Duration::from_secs(4);

    fn counters(produced: u64, deferred: u64) -> Counters {
        let mut counters = Counters::default();
        (counters.0[EVENTS_PRODUCED], counters.0[EVENTS_DEFERRED]) = (produced, deferred);
        counters
    }

    #[test]
    fn drains_are_stretched_only_while_half_of_the_lines_are_free() {
        let mut pace = Pace::new(SET, 100);
        assert_eq!(pace.interval(), SET);
        pace.ask(STRETCHED);
        for (in_use, interval) in [(0, STRETCHED), (50, STRETCHED), (51, SET), (50, STRETCHED)] {
            pace.count(in_use, &counters(0, 0));
            assert_eq!(pace.interval(), interval, "{in_use} of 100 in use");
            assert_eq!(pace.is_scarce(), interval == SET);
        }
    }

    #[test]
    fn flows_that_began_since_the_last_drain_are_seen_before_the_next() {
        let mut pace = Pace::new(SET, 100);
        assert_eq!(pace.until_look(), looks::INTERVAL, "drains look often enough");
        pace.ask(STRETCHED);
        assert_eq!(pace.until_look(), SET);
        pace.count(20, &counters(1000, 500));
        pace.look(&counters(1010, 520));
        assert_eq!(pace.interval(), STRETCHED);
        pace.look(&counters(1010, 521));
        assert_eq!(pace.interval(), SET);
        pace.count(40, &counters(1010, 521));
        assert_eq!(pace.interval(), STRETCHED);
    }

    /// A line is held for three seconds and then five drains, as of 10 000 connections a second that
    /// end at once.
    #[test]
    fn the_lines_that_ended_flows_hold_are_never_all_because_the_agent_spares() {
        let held_by = |interval: u32| 3 + 5 * interval;
        let (lines, a_second) = (100, 12);
        let mut pace = Pace::new(SET, lines);
        pace.ask(STRETCHED);
        let (mut begun, mut ended, mut since) = (0_u32, std::collections::VecDeque::new(), 0);
        for second in 0_u32..300 {
            begun += a_second;
            since += 1;
            pace.look(&counters(begun.into(), 0));
            let interval = u32::try_from(pace.interval().as_secs()).unwrap();
            ended.push_back(second);
            if since < interval {
                continue;
            }
            since = 0;
            while ended.front().is_some_and(|&began| second - began >= held_by(interval)) {
                ended.pop_front();
            }
            let in_use = a_second * u32::try_from(ended.len()).unwrap();
            assert!(in_use <= lines, "{in_use} of {lines} lines at {second} s");
            pace.count(in_use, &counters(begun.into(), 0));
        }
        assert!(a_second * held_by(4) > lines, "stretched, they would be");
    }
}
