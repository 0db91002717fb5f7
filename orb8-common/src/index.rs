//! How a flow's line is found: a seeded hash of key and owner picks two groups of cells, and a
//! cell holds the number of a line.
//!
//! The index only speeds up the search. A cell lost to a racing store costs its flow a second
//! line, never a count, so nothing here needs a compare-and-swap.
#![allow(clippy::cast_possible_truncation, reason = "the low bits of a hash are what is wanted")]

use crate::network::{FlowKey, flag};

/// Cells in a group: one cache line.
pub const GROUP_CELLS: usize = 16;
/// A cell without a line. Other values are the number of the line plus one.
pub const EMPTY_CELL: u32 = 0;

/// One group of cells.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub [u32; GROUP_CELLS]);

const _: () = assert!(core::mem::size_of::<Group>() == 64);

/// Odd multipliers with well spread bits.
const MULTIPLIERS: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93, 0xa076_1d64_78bd_642f];

/// What nobody outside knows of the hash. The four are made of one secret, ahead of the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Mixed with the source; of IPv4, with both addresses.
    pub src: u64,
    /// Spreads the first half of an IPv6 source; odd.
    pub src_factor: u64,
    /// Mixed with the destination.
    pub dst: u64,
    /// Spreads the first half of an IPv6 destination; odd.
    pub dst_factor: u64,
}

impl Seed {
    /// The seed made of a secret.
    #[must_use]
    pub const fn new(secret: u64) -> Self {
        let dst = secret.rotate_left(21);
        Self {
            src: secret,
            src_factor: secret.rotate_left(11) | 1,
            dst,
            dst_factor: dst.rotate_left(11) | 1,
        }
    }
}

/// Hashes a flow with a secret seed, so that nobody outside can aim flows at one group. The key's
/// tag is no part of it and has to be 0.
#[must_use]
#[inline(always)]
pub fn hash(key: &FlowKey, owner: u64, seed: &Seed) -> u64 {
    let w = key.words();
    let h = if key.flags & flag::IPV6 == 0 {
        // The addresses, one in each half: the other words are zero.
        let h = (w[1] ^ (w[3] >> 32) ^ seed.src).wrapping_mul(MULTIPLIERS[0]);
        let h = h ^ (h >> 32);
        (h ^ w[4]).wrapping_mul(MULTIPLIERS[1])
    } else {
        let src = lane_of_address(w[0], w[1], seed.src, seed.src_factor);
        let dst = lane_of_address(w[2], w[3], seed.dst, seed.dst_factor);
        // A sender chooses ports as freely as addresses.
        let rest = (w[4] ^ seed.src).wrapping_mul(seed.dst_factor);
        src ^ dst.rotate_left(17) ^ rest
    };
    let h = (h ^ (h >> 32) ^ owner).wrapping_mul(MULTIPLIERS[2]);
    h ^ (h >> 29)
}

/// A sender chooses the words of an address freely: with a product alone he could undo in the
/// second what a high bit of the first changes, which a multiplication leaves where it is. So each
/// bit of the first goes in twice, far from where it stands the second time, and by a factor that
/// is secret.
#[inline(always)]
fn lane_of_address(first: u64, second: u64, seed: u64, factor: u64) -> u64 {
    let first = first ^ seed;
    let h = first.wrapping_mul(MULTIPLIERS[0]);
    let h = h.wrapping_add(first.rotate_left(32).wrapping_mul(factor));
    let h = h ^ (h >> 32);
    (h ^ second).wrapping_mul(MULTIPLIERS[1])
}

/// The tag that a published key bears: a function of the hash, never 0.
#[must_use]
#[inline(always)]
pub fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

/// The first group to search. `mask` is the number of groups, a power of two, less one.
#[must_use]
#[inline(always)]
pub fn first_group(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

/// The second group, different from the first where there is more than one.
#[must_use]
#[inline(always)]
pub fn second_group(hash: u64, mask: u32) -> u32 {
    (hash as u32 ^ ((hash >> 24) as u32 | 1)) & mask
}

/// The cell of a group at which the search begins.
#[must_use]
#[inline(always)]
pub fn first_cell(hash: u64) -> u32 {
    (hash >> 44) as u32 % GROUP_CELLS as u32
}

/// How many groups an index for `lines` lines has: two to four cells a line, so that both groups of
/// a flow are hardly ever full.
#[must_use]
pub fn groups(lines: u32) -> u32 {
    let cells = u64::from(lines) * 2;
    let groups = cells.div_ceil(GROUP_CELLS as u64).next_power_of_two().max(2);
    u32::try_from(groups).unwrap_or(1 << 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    /// Half words of a key that are not zero in every flow of IPv4: addresses, ports, the rest.
    const IN_V4: [usize; 4] = [3, 7, 8, 9];

    fn flow(n: u32) -> FlowKey {
        FlowKey {
            src: [0, 0, 0, n.to_be()],
            dst: [0, 0, 0, 0x0100_000a],
            src_port: [0x9c, 0x40],
            dst_port: [0, 80],
            protocol: 6,
            ..FlowKey::EMPTY
        }
    }

    #[test]
    fn a_full_table_finds_a_cell_for_every_flow() {
        const LINES: u32 = 100_000;
        let mask = groups(LINES) - 1;
        for seed in [0, 1, 0x1234_5678_9abc_def0, u64::MAX] {
            let mut fill = vec![0usize; mask as usize + 1];
            let mut without = 0;
            for n in 0..LINES {
                let hash = hash(&flow(n), 2, &Seed::new(seed));
                let (a, b) = (first_group(hash, mask), second_group(hash, mask));
                let free = [a, b].into_iter().find(|g| fill[*g as usize] < GROUP_CELLS);
                match free {
                    Some(group) => fill[group as usize] += 1,
                    None => without += 1,
                }
            }
            assert_eq!(without, 0, "seed {seed:#x}");
        }
    }

    #[test]
    fn groups_are_a_power_of_two_with_two_cells_a_line_at_least() {
        for lines in [1, 2, 7, 8, 1000, 65_536, 100_000, 10_000_000] {
            let groups = groups(lines);
            assert!(groups.is_power_of_two() && groups >= 2);
            assert!(u64::from(groups) * GROUP_CELLS as u64 >= u64::from(lines) * 2);
        }
    }

    /// Addresses whose high bits undo each other in a hash that only multiplies: `first` in byte 7,
    /// `second` in bytes 11 and 15.
    fn aimed(first: u8, second: u8) -> FlowKey {
        let bytes = [0x20, 1, 0xd, 0xb8, 0, 0, 0, first, 0, 0, 0, second, 0, 0, 0, second];
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        FlowKey { src: [word(0), word(4), word(8), word(12)], flags: flag::IPV6, ..flow(1) }
    }

    #[test]
    fn flows_cannot_be_aimed_at_one_group_without_the_seed() {
        for seed in [0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210, 0x0f1e_2d3c_4b5a_6978] {
            let mut hashes: vec::Vec<u64> = (0..=255)
                .map(|n: u8| hash(&aimed(n & 0xf0, n << 4), 2, &Seed::new(seed)))
                .collect();
            hashes.sort_unstable();
            hashes.dedup();
            assert_eq!(hashes.len(), 256, "seed {seed:#x}");
        }
    }

    #[test]
    fn ports_cannot_undo_what_addresses_change_without_the_seed() {
        for seed in [0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210, 0x0f1e_2d3c_4b5a_6978] {
            let mut hashes = vec::Vec::new();
            for (n, m) in (0..32_u8).flat_map(|n| (0..32_u8).map(move |m| (n, m))) {
                let mut key = aimed(0, 0);
                key.dst[3] = u32::from_ne_bytes([0, 0, 0, n << 3]);
                key.dst_port = [m >> 4, m << 4];
                hashes.push(hash(&key, 2, &Seed::new(seed)));
                key.dst_port = [0, 0];
                key.src_port = [m >> 4, m << 4 | 1];
                hashes.push(hash(&key, 2, &Seed::new(seed)));
            }
            let all = hashes.len();
            hashes.sort_unstable();
            hashes.dedup();
            assert_eq!(hashes.len(), all, "seed {seed:#x}");
            let groups = |mask: u64| {
                let mut groups: vec::Vec<u64> = hashes.iter().map(|hash| hash & mask).collect();
                groups.sort_unstable();
                groups.dedup();
                groups.len()
            };
            // As many as chance gives: 2048 balls in 16 384 places.
            assert!(groups(0x3fff) > 1800, "{} groups, seed {seed:#x}", groups(0x3fff));
        }
    }

    proptest! {
        #[test]
        fn the_second_group_is_another_and_the_tag_is_never_zero(n: u32, owner: u64, seed: u64) {
            let hash = hash(&flow(n), owner, &Seed::new(seed));
            prop_assert_ne!(first_group(hash, 0xfff), second_group(hash, 0xfff));
            prop_assert_ne!(tag(hash), 0);
            prop_assert!(first_cell(hash) < GROUP_CELLS as u32);
        }

        #[test]
        fn every_part_of_a_flow_moves_the_hash(
            n: u32, seed: u64, v6: bool, bit in 0usize..304,
        ) {
            let mut key = flow(n);
            if v6 {
                key.flags |= flag::IPV6;
            } else if !IN_V4.contains(&(bit / 32)) {
                return Ok(());
            }
            let mut words = *key.words();
            words[bit / 64] ^= 1 << (bit % 64);
            // SAFETY: any words are a key.
            let other = unsafe { std::mem::transmute::<[u64; 5], FlowKey>(words) };
            let seed = Seed::new(seed);
            prop_assert_ne!(hash(&key, 3, &seed), hash(&other, 3, &seed));
            prop_assert_ne!(hash(&key, 3, &seed), hash(&key, 4, &seed));
        }
    }
}
