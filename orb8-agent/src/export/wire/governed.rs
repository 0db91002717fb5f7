//! Budgets, what is given up for them, and what became of the packets of the packet view.

use orb8_proto::v1;

use crate::clock;
use crate::datapath::PacketViewCounts;
use crate::governor::State;

/// Budgets, what they are compared with, and what is given up.
pub(super) fn governor(state: &State, unix_offset_ns: i64) -> v1::Governor {
    let share = |time| state.measured.map_or(0.0, |measured| measured.share(time));
    let (user, programs) =
        state.measured.map(|measured| (measured.user, measured.programs)).unwrap_or_default();
    v1::Governor {
        cpu_budget: state.budgets.cpu,
        cpu_agent: share(user),
        cpu_programs: share(programs),
        cpu_programs_by: state.measured.map_or("", |_| state.basis.word()).to_owned(),
        packet_ns: state.packet_ns,
        memory_budget_bytes: state.budgets.memory_bytes,
        memory_bytes: state.memory_bytes,
        ring_threshold: state.budgets.ring,
        event_ring: state.rings.events,
        packet_ring: state.rings.packets,
        level: u32::try_from(state.level).unwrap_or(u32::MAX),
        given_up: state.sentences.clone(),
        cause: state.cause.to_owned(),
        since_ns: match state.since_ns {
            0 => 0,
            since_ns => clock::to_unix(since_ns, unix_offset_ns),
        },
        steps: state.steps,
        drain_interval_ms: u32::try_from(state.drain_interval.as_millis()).unwrap_or(u32::MAX),
        starts_deferred: state.given.fewer_events,
        packet_sampling: state.given.sampling,
        history_seconds: state.history.as_secs(),
    }
}

/// What became of the packets of all packet views.
pub(super) const fn packet_view(counts: &PacketViewCounts) -> v1::PacketView {
    v1::PacketView {
        matched: counts.matched,
        told: counts.told,
        untold: counts.untold,
        rate_limited: counts.rate_limited,
        ring_full: counts.ring_full,
    }
}

/// The most flows that were set, if there is room for fewer.
pub(super) fn lowered(set: u32, max_flows: u32) -> u64 {
    if max_flows < set { set.into() } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::datapath::RingFill;
    use crate::governor::{Basis, Budgets, Given, Measured};

    #[test]
    fn each_figure_is_told_as_what_it_is() {
        let millis = Duration::from_millis;
        let state = State {
            budgets: Budgets { cpu: 0.02, memory_bytes: 1001, ring: 0.7 },
            measured: Some(Measured {
                interval: millis(1000),
                cpus: 4,
                user: millis(40),
                programs: millis(80),
                memory_bytes: 1002,
                exact: true,
                drained: true,
            }),
            memory_bytes: 1003,
            basis: Basis::Calibrated,
            packet_ns: 42.5,
            rings: RingFill { events: 0.25, packets: 0.5 },
            given: Given { intervals: 4, fewer_events: true, sampling: 8, history_part: 2 },
            level: 5,
            sentences: vec!["one".to_owned(), "two".to_owned()],
            cause: "memory",
            since_ns: 1004,
            steps: 6,
            drain_interval: millis(4000),
            history: Duration::from_secs(150),
        };
        let told = v1::Governor {
            cpu_budget: 0.02,
            cpu_agent: 0.01,
            cpu_programs: 0.02,
            cpu_programs_by: "calibrated".to_owned(),
            packet_ns: 42.5,
            memory_budget_bytes: 1001,
            memory_bytes: 1003,
            ring_threshold: 0.7,
            event_ring: 0.25,
            packet_ring: 0.5,
            level: 5,
            given_up: vec!["one".to_owned(), "two".to_owned()],
            cause: "memory".to_owned(),
            since_ns: 1_000_001_004,
            steps: 6,
            drain_interval_ms: 4000,
            starts_deferred: true,
            packet_sampling: 8,
            history_seconds: 150,
        };
        assert_eq!(governor(&state, 1_000_000_000), told);
        let counts =
            PacketViewCounts { matched: 15, told: 1, untold: 2, rate_limited: 4, ring_full: 8 };
        let told =
            v1::PacketView { matched: 15, told: 1, untold: 2, rate_limited: 4, ring_full: 8 };
        assert_eq!(packet_view(&counts), told);
    }
}
