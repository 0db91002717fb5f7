//! How long many things took, in memory that does not grow with their number.
//!
//! Exact to one part in 1024, which is finer than any difference that is told.

/// Steps between a power of two and the next.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 10;
/// Steps below [`STEPS`] once, and for each higher bit of the number once more.
const SLOTS: usize = (65 - STEP_BITS as usize) << STEP_BITS;

/// Counts of numbers by their size.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; SLOTS], total: 0 }
    }
}

impl Histogram {
    /// Counts a number.
    pub fn record(&mut self, value: u64) {
        self.counts[slot(value)] += 1;
        self.total += 1;
    }

    /// How many numbers were counted.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.total
    }

    /// True if no number was counted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The number below or at which so many of a thousand lie; `None` without numbers.
    #[must_use]
    pub fn per_mille(&self, share: u64) -> Option<u64> {
        // The rank, at least the first.
        let rank = (u128::from(self.total) * u128::from(share)).div_ceil(1000).max(1);
        let mut below = 0_u128;
        let found = self.counts.iter().position(|count| {
            below += u128::from(*count);
            below >= rank
        });
        found.map(middle)
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a slot is below SLOTS")]
const fn slot(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - STEP_BITS;
    // The highest bit is in what is left after the shift.
    (((shift as u64) << STEP_BITS) + (value >> shift)) as usize
}

/// The middle of the numbers of a slot.
fn middle(slot: usize) -> u64 {
    let slot = slot as u64;
    if slot < 2 * STEPS {
        return slot;
    }
    let shift = slot / STEPS - 1;
    let least = (slot - shift * STEPS) << shift;
    least + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_middle_and_one_number_is_itself() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.per_mille(500), histogram.is_empty()), (None, true));
        histogram.record(1500);
        assert_eq!([0, 500, 990, 1000].map(|share| histogram.per_mille(share)), [Some(1500); 4]);
    }

    #[test]
    fn ranks_are_those_of_a_sorted_list() {
        let mut histogram = Histogram::default();
        (1..=1000).rev().for_each(|value| histogram.record(value));
        assert_eq!(histogram.len(), 1000);
        let found = [1, 500, 990, 1000].map(|share| histogram.per_mille(share));
        assert_eq!(found, [1, 500, 990, 1000].map(Some));
    }

    proptest! {
        #[test]
        fn a_number_is_kept_to_a_thousandth(value: u64, shift in 0_u32..64) {
            let value = value >> shift;
            let found = middle(slot(value));
            prop_assert!(found.abs_diff(value) <= value / 1024, "{value} became {found}");
        }

        #[test]
        fn greater_numbers_are_in_no_lower_slot(one: u64, other: u64) {
            let (less, more) = (one.min(other), one.max(other));
            prop_assert!(slot(less) <= slot(more));
            prop_assert!(slot(more) < SLOTS);
        }
    }
}
