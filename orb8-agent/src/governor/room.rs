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

const MIB: u64 = 1 << 20;

/// What a budget has to hold besides the caches of the CPUs, for so many flows and a ring of so many
/// bytes.
const fn needed(flows: u32, ring_bytes: u32) -> u64 {
    BASE_BYTES + RING_TIMES * ring_bytes as u64 + FLOW_BYTES * flows as u64
}

const fn besides_caches(budget: u64) -> u64 {
    budget - budget / BUDGET_PART
}

/// Of so many flows, those that a budget of so many bytes has room for besides a ring of so many.
#[must_use]
pub fn flows_within(set: u32, budget: u64, ring_bytes: u32) -> u32 {
    let room = besides_caches(budget).saturating_sub(needed(0, ring_bytes)) / FLOW_BYTES;
    u32::try_from(room).unwrap_or(u32::MAX).clamp(LEAST, set.max(LEAST))
}

/// The least budget in MiB that has room for a ring of so many bytes, if this one has not.
#[must_use]
pub fn too_small(budget: u64, ring_bytes: u32) -> Option<u64> {
    let needed = needed(LEAST, ring_bytes);
    let least = (needed + needed / (BUDGET_PART - 1)).div_ceil(MIB);
    (besides_caches(budget) < needed).then_some(least)
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
        for (mib, flows) in [(32, 5_461), (64, 60_074), (96, 114_688), (1024, 1_698_474)] {
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
    fn a_budget_that_the_ring_alone_is_over_is_too_small() {
        assert_eq!(too_small(96 << 20, 1 << 20), None);
        assert_eq!(too_small(32 << 20, 1 << 20), None);
        for ring_mib in [2, 4, 8, 16, 32] {
            let least = too_small(32 << 20, ring_mib << 20).unwrap();
            assert_eq!(too_small(least << 20, ring_mib << 20), None, "{ring_mib} MiB");
            assert!(too_small((least - 1) << 20, ring_mib << 20).is_some(), "{ring_mib} MiB");
        }
    }
}
