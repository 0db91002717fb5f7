//! CPU time of another process, from what the kernel says of its threads
//! (`/proc/PID/task/TID/schedstat`), to the nanosecond.
//!
//! Pure: who reads the files hands in their text.

use std::collections::BTreeMap;

/// The threads that a process has at a moment, each with its nanoseconds on a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Threads(BTreeMap<u32, u64>);

impl Threads {
    /// From the numbers of threads and their `schedstat`; what is none is left out. `None` if nothing was on
    /// a CPU: kernels without scheduler statistics tell zeros.
    #[must_use]
    pub fn read<T: AsRef<str>>(told: impl IntoIterator<Item = (u32, T)>) -> Option<Self> {
        let nanoseconds = |text: &str| text.split(' ').next()?.trim().parse().ok();
        let threads = told.into_iter();
        let threads =
            threads.filter_map(|(thread, text)| Some((thread, nanoseconds(text.as_ref())?)));
        let threads: BTreeMap<u32, u64> = threads.collect();
        threads.values().any(|nanoseconds| *nanoseconds > 0).then_some(Self(threads))
    }

    /// Seconds on a CPU since an earlier moment. Of a thread that has ended since then nothing more is known
    /// and nothing is taken away: what it had done before is on neither side.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> f64 {
        let grown = |(thread, now): (&u32, &u64)| match earlier.0.get(thread) {
            // Less than before: another thread has the number now.
            Some(then) if then <= now => now - then,
            Some(_) | None => *now,
        };
        self.0.iter().map(grown).sum::<u64>() as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(told: &[(u32, &str)]) -> Threads {
        Threads::read(told.iter().copied()).expect("somebody worked")
    }

    #[test]
    fn threads_that_end_take_nothing_away_and_new_ones_count_whole() {
        let before = threads(&[(1, "5000000000 7 9\n"), (2, "90000000000 1 1"), (3, "800 1 1")]);
        let after = threads(&[(1, "6000000000 8 9\n"), (3, "500000000 1 1"), (4, "250000000 1 1")]);
        // The second has ended; the third is still the same.
        assert!((after.since(&before) - (1.0 + 0.499_999_2 + 0.25)).abs() < 1e-12);
        // Another thread has the number of one that has ended.
        let reused = threads(&[(1, "6000000000 8 9"), (2, "1000000000 1 1")]);
        assert!((reused.since(&before) - 2.0).abs() < 1e-12);
        assert!(before.since(&before).abs() < 1e-12);
    }

    #[test]
    fn zeros_and_no_numbers_say_nothing() {
        assert_eq!(Threads::read([(1, "0 0 0"), (2, "")]), None);
        assert_eq!(Threads::read([(1, "x 1 1")]), None);
        assert_eq!(threads(&[(1, "x 1 1"), (2, "7")]), threads(&[(2, "7 3 3")]));
    }
}
