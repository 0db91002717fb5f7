//! The JSON form of what a status says of budgets and of the packet view. Converts and nothing else.

use orb8_proto::v1::{Governor, PacketView};
use serde::Serialize;

use super::known as text;

/// `Governor`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Governor in orb8.v1")]
pub struct GovernorRecord {
    pub cpu_budget: f64,
    pub cpu_agent: Option<f64>,
    pub cpu_programs: Option<f64>,
    pub cpu_programs_by: Option<String>,
    pub packet_ns: f64,
    pub memory_budget_bytes: u64,
    pub memory_bytes: u64,
    pub ring_threshold: f64,
    pub event_ring: f64,
    pub packet_ring: f64,
    pub level: u32,
    pub given_up: Vec<String>,
    pub cause: Option<String>,
    pub since_ns: Option<i64>,
    pub steps: u64,
    pub drain_interval_ms: u32,
    pub starts_deferred: bool,
    pub packet_sampling: u32,
    pub history_seconds: u64,
}

/// `PacketView`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of PacketView in orb8.v1")]
pub struct PacketViewRecord {
    pub matched: u64,
    pub told: u64,
    pub untold: u64,
    pub rate_limited: u64,
    pub ring_full: u64,
}

impl From<&Governor> for GovernorRecord {
    fn from(governor: &Governor) -> Self {
        let measured = !governor.cpu_programs_by.is_empty();
        Self {
            cpu_budget: governor.cpu_budget,
            cpu_agent: measured.then_some(governor.cpu_agent),
            cpu_programs: measured.then_some(governor.cpu_programs),
            cpu_programs_by: text(&governor.cpu_programs_by),
            packet_ns: governor.packet_ns,
            memory_budget_bytes: governor.memory_budget_bytes,
            memory_bytes: governor.memory_bytes,
            ring_threshold: governor.ring_threshold,
            event_ring: governor.event_ring,
            packet_ring: governor.packet_ring,
            level: governor.level,
            given_up: governor.given_up.clone(),
            cause: text(&governor.cause),
            since_ns: (governor.since_ns != 0).then_some(governor.since_ns),
            steps: governor.steps,
            drain_interval_ms: governor.drain_interval_ms,
            starts_deferred: governor.starts_deferred,
            packet_sampling: governor.packet_sampling,
            history_seconds: governor.history_seconds,
        }
    }
}

impl From<&PacketView> for PacketViewRecord {
    fn from(view: &PacketView) -> Self {
        let PacketView { matched, told, untold, rate_limited, ring_full } = *view;
        Self { matched, told, untold, rate_limited, ring_full }
    }
}
