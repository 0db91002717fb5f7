//! What samples say: medians, how sure they are, and whether a difference is more than noise.
//!
//! Pure arithmetic, with a seeded generator, so that the same samples always say the same. Its tests
//! run with the crate's (`tests/bench_statistics.rs`).

/// Draws of the bootstrap.
const RESAMPLES: usize = 4_000;
/// Any will do, as long as it stays.
const SEED: u64 = 0x6f72_6238;

/// splitmix64: small, and good enough to shuffle and to draw.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.draw()) * bound as u128) >> 64) as usize
    }

    /// Brings `items` into any order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The middle one, or between the two in the middle; not a number without samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
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
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Interval {
    pub(crate) fn holds(self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// 95 % of the median by percentile bootstrap.
pub(crate) fn bootstrap(samples: &[f64]) -> Interval {
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

/// How far from 1 a ratio comes by itself: as far as the interval of ratios of equals reaches, to
/// both sides, since which of two equals is divided by the other is by chance.
pub(crate) fn noise_floor(ratios_of_equals: &[f64]) -> Interval {
    let found = bootstrap(ratios_of_equals);
    let reach = (1.0 - found.low).abs().max((found.high - 1.0).abs());
    Interval { low: 1.0 - reach, high: 1.0 + reach }
}

/// What pairs of runs say about a ratio that should be at least `goal`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) median: f64,
    pub(crate) interval: Interval,
    pub(crate) noise: Interval,
    /// The median lies inside the noise: no difference was found.
    pub(crate) undecided: bool,
    /// `None` where these runs show neither that the goal is met nor that it is missed.
    pub(crate) pass: Option<bool>,
}

/// Judges ratios of pairs by ratios of pairs of equals. The goal is shown to be met if the whole
/// interval meets it and the noise could not have hidden a miss; to be missed if none of the interval
/// meets it and it is more than noise.
pub(crate) fn judge(ratios: &[f64], ratios_of_equals: &[f64], goal: f64) -> Verdict {
    let (median, interval) = (median(ratios), bootstrap(ratios));
    let noise = noise_floor(ratios_of_equals);
    let undecided = noise.holds(median);
    let pass = if interval.low >= goal && noise.low >= goal {
        Some(true)
    } else if interval.high < goal && !undecided {
        Some(false)
    } else {
        None
    };
    Verdict { median, interval, noise, undecided, pass }
}
