//! How a flow's line is found: a seeded hash of key and owner picks two groups of cells, and a
//! cell holds the number of a line.
//!
//! The index only speeds up the search. A cell lost to a racing store costs its flow a second
//! line, never a count, so nothing here needs a compare-and-swap.

use crate::network::FlowKey;

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

/// Hashes a flow with a secret seed, so that nobody outside can aim flows at one group.
///
/// Three independent lanes keep the multiplications from waiting for each other.
#[must_use]
#[inline(always)]
pub fn hash(key: &FlowKey, owner: u64, seed: u64) -> u64 {
    let w = key.words();
    let a = lane(w[0], w[1], seed);
    let b = lane(w[2], w[3], seed.rotate_left(21));
    let c = lane(w[4], owner, seed.rotate_left(42));
    let h = a ^ b.rotate_left(17) ^ c.rotate_left(39);
    let h = (h ^ (h >> 32)).wrapping_mul(MULTIPLIERS[2]);
    h ^ (h >> 29)
}

#[inline(always)]
fn lane(first: u64, second: u64, seed: u64) -> u64 {
    let h = (first ^ seed).wrapping_mul(MULTIPLIERS[0]);
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

/// How many groups an index for `lines` lines has: about 2.6 cells a line or more, so that both
/// groups of a flow are full for less than one in ten million at full load.
#[must_use]
pub fn groups(lines: u32) -> u32 {
    let cells = u64::from(lines) * 2;
    let groups = cells.div_ceil(GROUP_CELLS as u64).next_power_of_two().max(2);
    u32::try_from(groups).unwrap_or(1 << 31)
}
