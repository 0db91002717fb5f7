//! How many flows a memory budget has room for.

use crate::ebpf::cpus::BUDGET_PART;

/// Bytes of an agent that holds no flow, besides the caches of the CPUs and the ring of lifecycle
/// events.
pub const BASE_BYTES: u64 = 21 << 20;

/// Bytes that a flow takes at most, in the kernel's maps and in the agent together.
pub const FLOW_BYTES: u64 = 512;

/// A ring is in memory once, and told three times: as a map, and as resident pages twice, because it
/// is mapped twice in a row so that no record has a gap.
const RING_TIMES: u64 = 3;

/// The fewest flows that can be set.
const LEAST: u32 = 16;

const fn besides_caches(budget: u64) -> u64 {
    budget - budget / BUDGET_PART
}

/// Of so many flows, those that a budget of so many bytes has room for besides a ring of so many. A
/// ring that is too large for the budget leaves flows half of the room all the same: the agent is then
/// over its budget, and says so.
#[must_use]
pub fn flows_within(set: u32, budget: u64, ring_bytes: u32) -> u32 {
    let room = besides_caches(budget).saturating_sub(BASE_BYTES);
    let flows = room.saturating_sub(ring_within(budget, ring_bytes)) / FLOW_BYTES;
    u32::try_from(flows).unwrap_or(u32::MAX).clamp(LEAST, set.max(LEAST))
}

/// Whether a ring of so many bytes takes more than half of the room of a budget.
#[must_use]
pub fn is_large(budget: u64, ring_bytes: u32) -> bool {
    ring_within(budget, ring_bytes) < RING_TIMES * u64::from(ring_bytes)
}

/// Whether a budget of so many bytes has room for so many flows and the whole of a ring.
#[must_use]
pub fn has_room(flows: u32, budget: u64, ring_bytes: u32) -> bool {
    let room = besides_caches(budget).saturating_sub(BASE_BYTES);
    u64::from(flows) * FLOW_BYTES + RING_TIMES * u64::from(ring_bytes) <= room
}

/// What a ring takes of the room of a budget.
fn ring_within(budget: u64, ring_bytes: u32) -> u64 {
    let room = besides_caches(budget).saturating_sub(BASE_BYTES);
    (RING_TIMES * u64::from(ring_bytes)).min(room / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_each_other() {
        assert_eq!(flows_within(100_000, 96 << 20, 1 << 20), 100_000);
    }

    #[test]
    fn what_a_budget_has_no_room_for_is_not_held() {
        for (mib, flows) in [(32, 5_802), (64, 60_074), (96, 114_688), (1024, 1_698_474)] {
            assert_eq!(flows_within(4_000_000, mib << 20, 1 << 20), flows, "{mib} MiB");
        }
        assert_eq!(flows_within(4_000_000, 0, 1 << 20), LEAST);
        assert_eq!(flows_within(LEAST, 4 << 30, 1 << 20), LEAST);
    }

    #[test]
    fn a_ring_takes_its_room_from_the_flows() {
        let flows = |ring_bytes| flows_within(4_000_000, 96 << 20, ring_bytes);
        assert_eq!(flows(64 << 10), 114_688 + 3 * ((1 << 20) - (64 << 10)) / 512);
        assert_eq!(flows(8 << 20), 114_688 - 3 * (7 << 20) / 512);
    }

    #[test]
    fn a_ring_that_is_too_large_leaves_flows_half_of_the_room() {
        let room = (96 - 16 - 21) << 20;
        assert_eq!(u64::from(flows_within(4_000_000, 96 << 20, 32 << 20)), room / 2 / FLOW_BYTES);
        assert!(is_large(96 << 20, 32 << 20) && !is_large(96 << 20, 8 << 20));
        assert!(is_large(32 << 20, 1 << 20) && !is_large(32 << 20, 512 << 10));
        assert!(!has_room(16, 96 << 20, 32 << 20));
    }

    #[test]
    fn there_is_room_for_the_flows_that_are_held_beside_a_ring_that_is_not_large() {
        for (mib, ring_bytes) in [(96, 64 << 10), (96, 8 << 20), (32, 512 << 10), (1024, 32 << 20)]
        {
            let flows = flows_within(4_000_000, mib << 20, ring_bytes);
            assert!(has_room(flows, mib << 20, ring_bytes), "{mib} MiB");
            assert!(!has_room(flows + 1, mib << 20, ring_bytes), "{mib} MiB");
        }
    }
}
