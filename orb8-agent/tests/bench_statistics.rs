//! The arithmetic of the benchmark, whose own program has no tests.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "as the benchmark does"
)]

#[path = "../benches/bench/stats.rs"]
mod stats;

use stats::{Interval, Random, bootstrap, judge, median};

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
