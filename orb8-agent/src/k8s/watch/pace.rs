//! When to ask again: spread over time, so that the agents of a cluster never ask all at once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Times between requests, and the size of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The first request comes within this.
    pub first_within: Duration,
    /// A list that must be repeated is begun within this.
    pub relist_within: Duration,
    /// After the first failure; doubled with each more.
    pub retry: Duration,
    /// The longest wait after a failure, unless the API asks for more.
    pub retry_at_most: Duration,
    /// After a refusal by the access rules.
    pub forbidden: Duration,
    /// The API server ends a watch after between this and 5/4 of it.
    pub watch_for: Duration,
    /// Events that come within this after a cut may be older than their arrival.
    pub catch_up: Duration,
    /// Objects in one page of a list.
    pub page: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_within: Duration::from_secs(1),
            relist_within: Duration::from_secs(10),
            retry: Duration::from_secs(1),
            retry_at_most: Duration::from_secs(30),
            forbidden: Duration::from_secs(60),
            watch_for: Duration::from_secs(240),
            catch_up: Duration::from_secs(1),
            page: 250,
        }
    }
}

/// The wait after failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Between half of the doubled wait and all of it.
    pub(super) fn next(&mut self, pace: &Pace) -> Duration {
        let doubled = pace.retry.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        let wait = doubled.min(pace.retry_at_most);
        wait / 2 + within(wait / 2)
    }
}

/// A random part of `span`.
pub(super) fn within(span: Duration) -> Duration {
    // A hasher's keys are random, which is as much chance as a spread of requests needs.
    let chance = RandomState::new().build_hasher().finish();
    let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(chance.checked_rem(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_spread() {
        let (pace, mut backoff) = (Pace::default(), Backoff::default());
        for doubled in [1, 2, 4, 8, 16, 30, 30, 30] {
            let wait = backoff.next(&pace);
            let most = Duration::from_secs(doubled);
            assert!(wait >= most / 2 && wait <= most, "{wait:?} of {most:?}");
        }
        backoff.reset();
        assert!(backoff.next(&pace) <= Duration::from_secs(1));
    }

    #[test]
    fn the_shipped_pace_spares_an_api_that_comes_back_and_knows_all_within_a_minute() {
        let pace = Pace::default();
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        // The longest wait for the port, for the list, and for a page that is refused once.
        let whole = pace.retry_at_most + pace.relist_within + pace.retry;
        assert!(whole < minute, "{whole:?}");
        // Six lists of each of 100 agents, so many a second.
        let lists = 600 / pace.relist_within.as_secs();
        assert!(lists <= 60 && pace.first_within >= second, "{pace:?}");
        // Refusals and rotations of 100 agents are few a second.
        assert!(pace.forbidden >= minute && pace.watch_for >= 2 * minute, "{pace:?}");
        assert!(pace.watch_for * 5 / 4 <= 10 * minute, "API servers allow for more: {pace:?}");
        assert!((100..=500).contains(&pace.page), "{pace:?}");
    }

    #[test]
    fn a_part_of_a_span_lies_in_it_and_differs() {
        let parts: Vec<_> = (0..20).map(|_| within(Duration::from_secs(10))).collect();
        assert!(parts.iter().all(|part| *part < Duration::from_secs(10)));
        assert!(parts.iter().any(|part| *part != parts[0]));
        assert_eq!(within(Duration::ZERO), Duration::ZERO);
    }
}
