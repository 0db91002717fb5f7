//! What the memory budget reckons with is what flows take.

use std::time::Duration;

use orb8_agent::governor::{FLOW_BYTES, flows_within};
use orb8_agent::network::table::{FlowTable, Limits};
use orb8_common::index::{self, Group};
use orb8_common::network::{FlowLine, FlowMeta};

#[test]
fn a_flow_takes_no_more_than_the_memory_budget_reckons_with() {
    for flows in [16, 1000, 100_000, flows_within(4_000_000, 4 << 30, 1 << 20)] {
        let limits = Limits {
            max_flows: flows,
            history: Duration::from_secs(300),
            idle: Duration::from_secs(33),
            drain_interval: Duration::from_secs(1),
        };
        let table = FlowTable::new(limits, 0).reserved_bytes();
        let lines =
            flows as usize * (size_of::<FlowLine>() + size_of::<FlowMeta>() + size_of::<u32>());
        let index = index::groups(flows) as usize * size_of::<Group>();
        let each = (table + lines + index) / flows as usize;
        // The rest is for what a drain notes of each line, and for names that rows share.
        assert!(each as u64 <= FLOW_BYTES * 7 / 8, "{flows} flows take {each} bytes each");
    }
}
