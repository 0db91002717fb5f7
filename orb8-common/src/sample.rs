//! One of so many: which packets are told while packets are sampled, and how many each stands for.
//!
//! Programs and tests run the same code. What packets that were told stand for and what has passed
//! since the last one is exactly what was offered.

/// The most packets that one may stand for.
pub const MAX_ONE_IN: u32 = 1024;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How many packets it stands for, itself included; 0: it is not told.
    pub weight: u16,
    /// To be remembered until the next packet.
    pub memory: u64,
}

/// Judges a packet. `memory` is what was remembered of the one before it, 0 at first; `view` is the
/// number of the packet view that is open, since nothing stands for packets of an earlier one.
/// Critical packets are always told, and stand for themselves alone.
#[must_use]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "two halves of a word; at most MAX_ONE_IN")]
pub const fn sample(memory: u64, view: u32, critical: bool, one_in: u32) -> Verdict {
    if critical {
        return Verdict { weight: 1, memory };
    }
    let of_this_view = (memory >> 32) as u32 == view;
    let stands_for = if of_this_view { memory as u32 + 1 } else { 1 };
    let view = (view as u64) << 32;
    if stands_for >= one_in || stands_for >= MAX_ONE_IN {
        Verdict { weight: stands_for as u16, memory: view }
    } else {
        Verdict { weight: 0, memory: view | stands_for as u64 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_sampling_every_packet_stands_for_itself() {
        for one_in in [0, 1] {
            assert_eq!(sample(0, 7, false, one_in), Verdict { weight: 1, memory: 7 << 32 });
        }
    }

    #[test]
    fn nothing_stands_for_packets_of_an_earlier_view() {
        let Verdict { weight, memory } = sample(0, 1, false, 4);
        assert_eq!(weight, 0);
        assert_eq!(sample(memory, 2, false, 1).weight, 1);
        assert_eq!(sample(memory, 1, false, 1).weight, 2);
    }

    proptest! {
        /// However the sampling changes meanwhile, nothing is counted twice or forgotten.
        #[test]
        fn what_packets_stand_for_adds_up(
            offered in prop::collection::vec((any::<bool>(), 0_u32..4000), 0..3000),
        ) {
            let (mut memory, mut told) = (0, 0);
            for (critical, one_in) in &offered {
                let verdict = sample(memory, 3, *critical, *one_in);
                prop_assert!(!critical || verdict.weight == 1);
                prop_assert!(u32::from(verdict.weight) <= MAX_ONE_IN);
                memory = verdict.memory;
                told += u64::from(verdict.weight);
            }
            prop_assert_eq!(told + (memory & 0xffff_ffff), offered.len() as u64);
        }
    }
}
