//! One of so many: which packets are told while packets are sampled, and how many each stands for.
//!
//! Programs and tests run the same code. What packets that were told stand for and what has passed
//! since the last one is exactly what was offered. A flow's first packet is never passed over:
//! [`Told`] knows which flows a view has met.

use crate::index::{self, Seed};
use crate::network::FlowKey;

/// The most packets that one may stand for.
pub const MAX_ONE_IN: u32 = 1024;

/// Flows that are remembered of the packet view, on each CPU: 8 KiB.
pub const PLACES: usize = 1024;

/// What is remembered on a CPU: the last flow that was met at each place. 0: none yet.
///
/// A flow that another one has driven from its place is met anew, so a packet more is told; that
/// one is told too few takes another flow whose mark is the same, in all of its 64 bits.
pub type Told = [u64; PLACES];

/// The mark of a flow in a view: of no other view, for the same flow at the same interface.
#[must_use]
#[inline(always)]
pub fn mark(key: &FlowKey, ifindex: u32, view: u32, seed: &Seed) -> u64 {
    index::hash(key, (view as u64) << 32 | ifindex as u64, seed)
}

/// Whether a flow is met for the first time, as far as is remembered; from then on it is.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
pub const fn meet(told: &mut Told, mark: u64) -> bool {
    let place = &mut told[mark as usize % PLACES];
    let is_first = *place != mark;
    *place = mark;
    is_first
}

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
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::network::flag;

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

    const SEED: Seed = Seed::new(0x1234_5678_9abc_def0);

    fn flow(number: u32) -> FlowKey {
        let flags = if number.is_multiple_of(2) { 0 } else { flag::IPV6 };
        FlowKey { src: [0, 0, 0, number], protocol: 17, flags, ..FlowKey::EMPTY }
    }

    #[test]
    fn a_flow_is_met_once_in_each_view_and_at_each_interface() {
        let mut told = [0; PLACES];
        for (ifindex, view) in [(1, 1), (2, 1), (1, 2), (2, 2), (2, u32::MAX)] {
            let mark = mark(&flow(7), ifindex, view, &SEED);
            assert!(meet(&mut told, mark), "interface {ifindex}, view {view}");
            assert!(!meet(&mut told, mark));
        }
    }

    #[test]
    fn a_few_hundred_flows_hardly_drive_each_other_out() {
        let mut told = [0; PLACES];
        let marks: std::vec::Vec<_> =
            (0..200).map(|number| mark(&flow(number), 2, 1, &SEED)).collect();
        for _ in 0..2 {
            for mark in &marks {
                meet(&mut told, *mark);
            }
        }
        let again = marks.iter().filter(|mark| meet(&mut told, **mark)).count();
        assert!(again < 60, "{again} of 200 flows");
    }

    proptest! {
        /// However many flows there are, and whichever view is open: what a view is told of a flow
        /// begins with its first packet, and what it is told stands for all packets.
        #[test]
        fn no_flow_is_passed_over(
            packets in prop::collection::vec((0_u32..3000, 0_u32..200), 0..800),
            one_in in 2_u32..2000,
        ) {
            let (mut told, mut memory, mut view) = ([0; PLACES], 0, 1);
            let mut met = HashSet::new();
            let mut stands: HashMap<u32, u64> = HashMap::new();
            let mut offered: HashMap<u32, u64> = HashMap::new();
            for (number, more) in packets {
                if more == 0 {
                    view += 1;
                    met.clear();
                }
                let is_first = meet(&mut told, mark(&flow(number), 3, view, &SEED));
                let verdict = sample(memory, view, is_first, one_in);
                prop_assert!(!met.insert(number) || verdict.weight == 1);
                *offered.entry(view).or_default() += 1;
                *stands.entry(view).or_default() += u64::from(verdict.weight);
                let untold = offered[&view] - stands[&view];
                let of_this_view = (verdict.memory >> 32) as u32 == view;
                prop_assert_eq!(untold, if of_this_view { verdict.memory & 0xffff_ffff } else { 0 });
                memory = verdict.memory;
            }
        }

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
