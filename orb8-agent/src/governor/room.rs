//! How many flows a memory budget has room for.

/// Bytes of an agent that holds no flow, besides the caches of the CPUs.
pub const BASE_BYTES: u64 = 24 << 20;

/// Bytes that a flow takes at most, in the kernel's maps and in the agent together.
pub const FLOW_BYTES: u64 = 512;

/// The caches of the CPUs take at most one part in so many of the budget.
const CACHES: u64 = 6;

/// The fewest flows that can be set.
const LEAST: u32 = 16;

/// Of so many flows, those that a budget of so many bytes has room for.
#[must_use]
pub fn flows_within(set: u32, budget: u64) -> u32 {
    let room = budget.saturating_sub(budget / CACHES).saturating_sub(BASE_BYTES) / FLOW_BYTES;
    u32::try_from(room).unwrap_or(u32::MAX).clamp(LEAST, set.max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_each_other() {
        assert_eq!(flows_within(100_000, 96 << 20), 100_000);
    }

    #[test]
    fn what_a_budget_has_no_room_for_is_not_held() {
        for (mib, flows) in [(32, 5_461), (64, 60_074), (96, 114_688), (1024, 1_698_474)] {
            assert_eq!(flows_within(4_000_000, mib << 20), flows, "{mib} MiB");
        }
        assert_eq!(flows_within(4_000_000, 0), LEAST);
        assert_eq!(flows_within(LEAST, 4 << 30), LEAST);
    }
}
