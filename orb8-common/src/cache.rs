//! The cache of flow lines that each CPU has in front of the shared table: sets of four lines, and
//! the one word of each line that holds its counts.
//!
//! A packet changes that word in one step, packets and bytes together, so a reader never sees one
//! without the other, and whoever interrupts a program between its load and its store makes the
//! store fail instead of being overwritten. The generation moves when a line gets another flow, so
//! a store meant for the flow before fails too.

use crate::counter;
use crate::network::FlowKey;

/// Lines in a set.
pub const WAYS: usize = 4;

/// A program is writing the line; its counts stand nowhere else, the line holds none.
pub const BUSY: u64 = 1 << 63;

/// Bits of the byte count.
const BYTE_BITS: u32 = 31;
/// Bits of the packet count.
const PACKET_BITS: u32 = 17;
const COUNT_BITS: u32 = BYTE_BITS + PACKET_BITS;
const COUNTS: u64 = (1 << COUNT_BITS) - 1;
const GENERATION: u64 = !(BUSY | COUNTS);
const ONE_GENERATION: u64 = 1 << COUNT_BITS;

/// Set in a word to which nothing may be added: busy, or a count has come half way to its end.
/// One packet below [`MAX_PACKETS`] and [`MAX_BYTES`] fits into the other half.
pub const NOT_ADDABLE: u64 = BUSY | 1 << (COUNT_BITS - 1) | 1 << (BYTE_BITS - 1);
/// Wire packets of one skb that may be added.
pub const MAX_PACKETS: u32 = 1 << (PACKET_BITS - 1);
/// IP bytes of one skb that may be added.
pub const MAX_BYTES: u64 = 1 << (BYTE_BITS - 1);

/// Ticks of the kernel without a packet after which a line is looked up in the table again before
/// it counts on: 32 ms to 0.32 s. User space takes lines away only after twice as long, so a
/// program that adds without looking never meets that.
pub const FRESH_TICKS: u32 = 32;

/// A flow's line in the cache of one CPU.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CachedLine {
    /// The flow.
    pub key: FlowKey,
    /// As in [`crate::network::FlowLine::owner`].
    pub owner: u64,
    /// See the functions of this module; without packets the line is empty.
    pub word: u64,
    /// Low 32 bits of `jiffies64` at the last packet; wraps.
    pub last_seen: u32,
    /// Number of the flow's line in the shared table, to which the counts are to be added.
    pub slot: u32,
}

/// What each CPU has for itself: its ledger counters, and behind them its sets. The object holds
/// the smallest; the loader makes the sets as many as there is memory for.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuBlock {
    /// See [`crate::counter`].
    pub counters: [u64; counter::COUNT],
    /// [`mask`] of the sets in use, which user space makes more as flows come.
    pub mask: u32,
    /// Up to a page, because what is mapped begins at pages.
    pub reserved: [u32; (HEADER_BYTES - 8 * counter::COUNT) / 4 - 1],
    /// The cache.
    pub sets: [CacheSet; MIN_SETS as usize],
}

/// Bytes before the sets.
pub const HEADER_BYTES: usize = 4096;
/// Sets are at least so many, and a power of two: a page. Nobody has to hold more for a start.
pub const MIN_SETS: u32 = 16;
/// Bytes of a set, as a power of two.
const SET_SHIFT: u32 = 8;
const LINE_BYTES: u32 = 64;

/// What one hash selects.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CacheSet(pub [CachedLine; WAYS]);

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<CachedLine>() == 64 && size_of::<CacheSet>() == 256);
    assert!(offset_of!(CachedLine, owner) == 40 && offset_of!(CachedLine, word) == 48);
    assert!(offset_of!(CachedLine, last_seen) == 56 && offset_of!(CachedLine, slot) == 60);
    assert!(size_of::<CacheSet>() == 1 << SET_SHIFT);
    assert!(offset_of!(CpuBlock, sets) == HEADER_BYTES);
    assert!(size_of::<CpuBlock>() == 8192);
};

/// The counts of one skb, to be added to a word.
#[must_use]
#[inline(always)]
pub const fn counts(packets: u32, bytes: u64) -> u64 {
    (packets as u64) << BYTE_BITS | bytes
}

/// Whether the counts of one skb may be added to a word that is [`NOT_ADDABLE`] in no bit.
#[must_use]
#[inline(always)]
pub const fn fits(packets: u32, bytes: u64) -> bool {
    packets < MAX_PACKETS && bytes < MAX_BYTES
}

/// Wire packets in a word; none: the line is empty.
#[must_use]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "17 bits")]
pub const fn packets(word: u64) -> u32 {
    (word >> BYTE_BITS) as u32 & ((1 << PACKET_BITS) - 1)
}

/// IP bytes in a word.
#[must_use]
#[inline(always)]
pub const fn bytes(word: u64) -> u64 {
    word & ((1 << BYTE_BITS) - 1)
}

/// The word of a line whose counts were taken out and that is being written.
#[must_use]
#[inline(always)]
pub const fn claimed(word: u64) -> u64 {
    word & GENERATION | BUSY
}

/// The word after the one given, with other counts: the next generation.
#[must_use]
#[inline(always)]
pub const fn next(word: u64, counts: u64) -> u64 {
    (word & GENERATION).wrapping_add(ONE_GENERATION) & GENERATION | counts
}

/// The word of a line whose counts were taken out and that is free for any flow: nothing may be added
/// to it, for it still bears the flow it had.
#[must_use]
#[inline(always)]
pub const fn emptied(word: u64) -> u64 {
    next(word, 1 << (BYTE_BITS - 1))
}

/// Whether two words belong to the same life of a line.
#[must_use]
#[inline(always)]
pub const fn is_same_life(a: u64, b: u64) -> bool {
    (a ^ b) & (GENERATION | BUSY) == 0
}

/// The bits of a hash that select a line, where they select it: the offset of the last line of `sets`.
#[must_use]
pub const fn mask(sets: u32) -> u32 {
    (sets << SET_SHIFT) - LINE_BYTES
}

/// The offset in bytes, from the first set, of the line that a flow tries first: most flows are in it,
/// and cost one line of the core's cache. The table's index uses the low bits of a hash.
#[must_use]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the mask keeps fewer bits")]
pub const fn first_line(hash: u64, mask: u32) -> u32 {
    (hash >> 16) as u32 & mask
}

/// The offset of the line that a flow tries as number `way`, in the same set as the first.
#[must_use]
#[inline(always)]
pub const fn line_of_way(first: u32, way: u32) -> u32 {
    first ^ (way * LINE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_flow_tries_each_line_of_one_set_once(hash: u64, shift in 4u32..14) {
            let sets = 1 << shift;
            let first = first_line(hash, mask(sets));
            let mut lines: std::vec::Vec<u32> =
                (0..4).map(|way| line_of_way(first, way)).collect();
            lines.sort_unstable();
            let set = first & !255;
            prop_assert_eq!(lines, [set, set + 64, set + 128, set + 192]);
            prop_assert!(set < sets * 256);
        }

        #[test]
        fn packets_and_bytes_add_up_within_one_generation(
            skbs in prop::collection::vec((1u32..MAX_PACKETS, 20u64..MAX_BYTES), 1..200),
            generation: u64,
        ) {
            let start = generation & GENERATION;
            let (mut word, mut packets_sum, mut bytes_sum) = (start, 0, 0);
            for (packets, bytes) in skbs {
                prop_assert!(fits(packets, bytes));
                if word & NOT_ADDABLE != 0 {
                    break;
                }
                word += counts(packets, bytes);
                packets_sum += packets;
                bytes_sum += bytes;
                prop_assert!(is_same_life(word, start), "a count reached the generation");
            }
            prop_assert_eq!((packets(word), bytes(word)), (packets_sum, bytes_sum));
        }

        #[test]
        fn the_next_generation_is_another_life_with_the_counts_given(word: u64) {
            let free = word & !BUSY;
            let after = next(free, counts(3, 180));
            prop_assert!(!is_same_life(free, after));
            prop_assert_eq!((packets(after), bytes(after), after & BUSY), (3, 180, 0));
        }

        #[test]
        fn a_claimed_word_holds_nothing_and_takes_nothing(word: u64) {
            let claimed = claimed(word);
            prop_assert_eq!((packets(claimed), bytes(claimed)), (0, 0));
            prop_assert_ne!(claimed & NOT_ADDABLE, 0);
        }
    }

    #[test]
    fn an_emptied_line_holds_no_packet_and_takes_none() {
        let word = emptied(counts(3, 180));
        assert_eq!((packets(word), word & BUSY), (0, 0));
        assert_ne!(word & NOT_ADDABLE, 0);
        assert_eq!((packets(next(word, counts(1, 60))), bytes(next(word, counts(1, 60)))), (1, 60));
    }

    #[test]
    fn the_generation_wraps_into_itself() {
        let last = GENERATION;
        assert_eq!(next(last, 0), 0);
    }

    #[test]
    fn what_is_too_much_for_a_word_does_not_fit() {
        assert!(fits(MAX_PACKETS - 1, MAX_BYTES - 1));
        assert!(!fits(MAX_PACKETS, 0));
        assert!(!fits(1, MAX_BYTES));
    }
}
