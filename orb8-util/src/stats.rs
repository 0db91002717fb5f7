//! What samples say: medians, how sure they are, and whether a difference is more than noise.
//!
//! Pure arithmetic, with a seeded generator, so that the same samples always say the same.

/// Draws of the bootstrap.
const RESAMPLES: usize = 4_000;
/// Any will do, as long as it stays.
const SEED: u64 = 0x6f72_6238;

/// splitmix64: small, and good enough to shuffle and to draw.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; the same seed draws the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    #[allow(clippy::cast_possible_truncation, reason = "the result is below a usize")]
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.draw()) * bound as u128) >> 64) as usize
    }

    /// Brings `items` into any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The middle one, or between the two in the middle; not a number without samples.
#[must_use]
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Where a figure lies with 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The least that it is.
    pub low: f64,
    /// The most that it is.
    pub high: f64,
}

impl Interval {
    /// True if a value lies within it, its ends included.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// 95 % of the median by percentile bootstrap; not numbers without samples.
#[must_use]
pub fn bootstrap(samples: &[f64]) -> Interval {
    let mut random = Random::new(SEED);
    let mut drawn = vec![0.0; samples.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            drawn.iter_mut().for_each(|one| *one = samples[random.below(samples.len())]);
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let cut = RESAMPLES / 40;
    Interval { low: medians[cut], high: medians[RESAMPLES - 1 - cut] }
}

/// How far from 1 a ratio comes by itself: as far as the interval of ratios of equals reaches, and as
/// its inverse does, since which of two equals is divided by the other is by chance. Ratios are above 0.
#[must_use]
pub fn noise_floor(ratios_of_equals: &[f64]) -> Interval {
    let Interval { low, high } = bootstrap(ratios_of_equals);
    Interval { low: low.min(1.0 / high), high: high.max(1.0 / low) }
}

/// What pairs of runs say about a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Of the ratios.
    pub median: f64,
    /// 95 % of the median.
    pub interval: Interval,
    /// What equals differ by.
    pub noise: Interval,
}

impl Comparison {
    /// Compares ratios of pairs with ratios of pairs of equals.
    #[must_use]
    pub fn of(ratios: &[f64], ratios_of_equals: &[f64]) -> Self {
        Self {
            median: median(ratios),
            interval: bootstrap(ratios),
            noise: noise_floor(ratios_of_equals),
        }
    }

    /// The median lies inside the noise: no difference was found.
    #[must_use]
    pub fn is_noise(&self) -> bool {
        self.noise.holds(self.median)
    }
}

/// What pairs of runs say about a ratio that should be at least a goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The figures.
    pub found: Comparison,
    /// The median lies inside the noise: no difference was found.
    pub undecided: bool,
    /// `None` where these runs show neither that the goal is met nor that it is missed.
    pub pass: Option<bool>,
}

/// Judges ratios of pairs by ratios of pairs of equals. The goal is shown to be met if the whole
/// interval meets it and the noise could not have hidden a miss; to be missed if none of the interval
/// meets it and it is more than noise.
#[must_use]
pub fn judge(ratios: &[f64], ratios_of_equals: &[f64], goal: f64) -> Verdict {
    let found = Comparison::of(ratios, ratios_of_equals);
    let undecided = found.is_noise();
    let pass = if found.interval.low >= goal && found.noise.low >= goal {
        Some(true)
    } else if found.interval.high < goal && !undecided {
        Some(false)
    } else {
        None
    };
    Verdict { found, undecided, pass }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `count` ratios around `middle`, at most `spread` away.
    fn around(middle: f64, spread: f64, count: usize, seed: u64) -> Vec<f64> {
        let mut random = Random::new(seed);
        let share = |random: &mut Random| random.below(2_001) as f64 / 1_000.0 - 1.0;
        (0..count).map(|_| middle + spread * share(&mut random)).collect()
    }

    #[test]
    fn the_median_does_not_mind_order_or_one_wild_sample() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-12);
        assert!((median(&[1e9, 1.0, 2.0, 1.5, 1.2]) - 1.5).abs() < 1e-12);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn equal_samples_leave_no_doubt() {
        assert_eq!(bootstrap(&[0.98; 20]), Interval { low: 0.98, high: 0.98 });
    }

    #[test]
    fn the_interval_holds_the_truth_in_about_95_of_100() {
        let held = (0..100).filter(|seed| bootstrap(&around(0.97, 0.1, 20, *seed)).holds(0.97));
        let held = held.count();
        assert!((89..=100).contains(&held), "{held} of 100");
    }

    #[test]
    fn more_samples_narrow_the_interval() {
        let width = |count| {
            let found = bootstrap(&around(1.0, 0.1, count, 7));
            found.high - found.low
        };
        assert!(width(200) < width(20) / 2.0, "{} {}", width(200), width(20));
    }

    #[test]
    fn the_same_samples_say_the_same() {
        let samples = around(1.0, 0.05, 20, 1);
        assert_eq!(bootstrap(&samples), bootstrap(&samples));
    }

    #[test]
    fn a_shuffle_keeps_everything_and_reaches_every_order() {
        let mut random = Random::new(3);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut items = [0, 1, 2];
            random.shuffle(&mut items);
            seen.insert(items);
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }

    #[test]
    fn a_difference_inside_the_noise_is_undecided() {
        let noise = around(1.0, 0.1, 20, 1);
        let verdict = judge(&around(0.995, 0.1, 20, 2), &noise, 0.97);
        assert!(verdict.undecided, "{verdict:?}");
        assert_ne!(verdict.pass, Some(false));
    }

    #[test]
    fn noise_that_reaches_beyond_the_goal_shows_nothing() {
        let noise = [0.8, 1.3, 0.9, 1.2, 0.85, 1.25, 0.7];
        let verdict = judge(&[1.0; 20], &noise, 0.97);
        assert_eq!((verdict.undecided, verdict.pass), (true, None), "{verdict:?}");
    }

    #[test]
    fn a_clear_loss_is_a_miss_and_a_small_one_is_met() {
        let noise = around(1.0, 0.01, 20, 1);
        let lost = judge(&around(0.9, 0.01, 20, 2), &noise, 0.97);
        assert_eq!((lost.undecided, lost.pass), (false, Some(false)), "{lost:?}");
        let met = judge(&around(0.985, 0.005, 20, 2), &noise, 0.97);
        assert_eq!((met.undecided, met.pass), (false, Some(true)), "{met:?}");
    }

    #[test]
    fn an_interval_across_the_goal_decides_nothing() {
        let noise = around(1.0, 0.005, 40, 1);
        let verdict = judge(&around(0.97, 0.05, 20, 2), &noise, 0.97);
        assert_eq!(verdict.pass, None, "{verdict:?}");
    }

    #[test]
    fn nothing_says_nothing_and_one_sample_says_itself() {
        let nothing = Comparison::of(&[], &[]);
        assert!(nothing.median.is_nan() && nothing.interval.low.is_nan() && !nothing.is_noise());
        assert_eq!(bootstrap(&[0.9]), Interval { low: 0.9, high: 0.9 });
    }

    proptest! {
        // Each case draws some hundred thousand numbers.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_interval_lies_among_the_samples_and_repeats(
            samples in prop::collection::vec(0.1_f64..10.0, 1..12),
        ) {
            let found = bootstrap(&samples);
            let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
            let most = samples.iter().copied().fold(0.0, f64::max);
            prop_assert!(least <= found.low && found.low <= found.high && found.high <= most);
            prop_assert_eq!(bootstrap(&samples), found);
            let middle = median(&samples);
            prop_assert!(least <= middle && middle <= most);
        }

        /// Which of two equals is divided by the other does not matter, and equals are never told
        /// apart.
        #[test]
        fn noise_reaches_to_both_sides_of_1_and_hides_the_equals(
            samples in prop::collection::vec(0.5_f64..2.0, 1..12),
        ) {
            let noise = noise_floor(&samples);
            let inverse: Vec<f64> = samples.iter().map(|ratio| 1.0 / ratio).collect();
            // With an even number the median of the inverse is not the inverse of the median.
            if samples.len() % 2 == 1 {
                let other = noise_floor(&inverse);
                prop_assert!((noise.low - other.low).abs() < 1e-9, "{noise:?} {other:?}");
            }
            prop_assert!((noise.low * noise.high - 1.0).abs() < 1e-9);
            prop_assert!(noise.holds(1.0));
            prop_assert!(Comparison::of(&samples, &samples).is_noise());
        }

        #[test]
        fn draws_stay_below_their_bound(seed: u64, bound in 1_usize..) {
            prop_assert!(Random::new(seed).below(bound) < bound);
        }
    }
}
