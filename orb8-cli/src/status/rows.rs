//! The JSON form of `AgentStatus`. Keys are the field names of `orb8.v1`; what is not known is null.
//!
//! The only place that converts a status.

use orb8_proto::v1::{
    AgentStatus, Cgroups, Check, ConnectionTracking, Count, EventLedger, Governor, Interface,
    Kubernetes, Memory, PacketLedger, PacketView, ReasonCount, Subscriber,
};
use orb8_query::rows::{LossRecord, NoticeRecord};
use serde::Serialize;
use serde_json::Value;

use crate::output::fields;

mod governor;
mod identity;

pub use governor::{GovernorRecord, PacketViewRecord};
pub use identity::{
    CgroupsRecord, KubernetesRecord, PodPlaneRecord, ResourceRecord, ShareRecord, TrackingRecord,
};

/// The single values of a status, in the order of csv.
pub const LEAVES: [&str; 42] = [
    "node_name",
    "version",
    "healthy",
    "health_message",
    "events_processed",
    "events_dropped",
    "pods_tracked",
    "active_flows",
    "uptime_seconds",
    "ended_flows",
    "max_flows",
    "kernel_release",
    "capture",
    "capture_reason",
    "started_at_ns",
    "memory.resident_bytes",
    "memory.map_bytes",
    "packet_ledger.state",
    "packet_ledger.seen.packets",
    "packet_ledger.seen.bytes",
    "packet_ledger.reported.packets",
    "packet_ledger.reported.bytes",
    "packet_ledger.unexplained_packets",
    "event_ledger.state",
    "event_ledger.unexplained_events",
    "kubernetes.state",
    "kubernetes.reason",
    "kubernetes.pods_local",
    "kubernetes.pods",
    "kubernetes.rejected",
    "cgroups.mode",
    "cgroups.driver",
    "cgroups.runtimes",
    "cgroups.known",
    "connection_tracking.state",
    "connection_tracking.entries",
    "governor.level",
    "governor.cause",
    "governor.cpu_agent",
    "governor.cpu_programs",
    "governor.memory_bytes",
    "event_ledger.deferred",
];

/// The paths of all values and lists of a status, in the order of json. Drawn from a record that has
/// every object, so that no field can be missing here.
#[must_use]
pub fn paths() -> Vec<String> {
    let whole = AgentStatus {
        memory: Some(Memory::default()),
        packet_ledger: Some(PacketLedger::default()),
        event_ledger: Some(EventLedger::default()),
        kubernetes: Some(Kubernetes::default()),
        cgroups: Some(Cgroups::default()),
        connection_tracking: Some(ConnectionTracking::default()),
        governor: Some(Governor::default()),
        packet_view: Some(PacketView::default()),
        ..AgentStatus::default()
    };
    let value = serde_json::to_value(StatusRecord::from(&whole)).unwrap_or(Value::Null);
    fields::paths(&value)
}

/// `AgentStatus`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of AgentStatus in orb8.v1")]
pub struct StatusRecord {
    pub node_name: String,
    pub version: String,
    pub healthy: bool,
    pub health_message: String,
    pub events_processed: u64,
    pub events_dropped: u64,
    pub pods_tracked: u64,
    pub active_flows: u64,
    pub uptime_seconds: u64,
    pub ended_flows: u64,
    pub max_flows: u64,
    pub max_flows_set: Option<u64>,
    pub kernel_release: Option<String>,
    pub capture: Option<String>,
    pub capture_reason: Option<String>,
    pub started_at_ns: Option<i64>,
    pub memory: Option<MemoryRecord>,
    pub governor: Option<GovernorRecord>,
    pub kubernetes: Option<KubernetesRecord>,
    pub cgroups: Option<CgroupsRecord>,
    pub connection_tracking: Option<TrackingRecord>,
    pub attribution_shares: Vec<ShareRecord>,
    pub pod_planes: Vec<PodPlaneRecord>,
    pub checks: Vec<CheckRecord>,
    pub interfaces: Vec<InterfaceRecord>,
    pub packet_ledger: Option<PacketLedgerRecord>,
    pub event_ledger: Option<EventLedgerRecord>,
    pub packet_view: Option<PacketViewRecord>,
    pub subscribers: Vec<SubscriberRecord>,
    pub notices: Vec<NoticeRecord>,
}

/// `Memory`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Memory in orb8.v1")]
pub struct MemoryRecord {
    pub resident_bytes: u64,
    pub map_bytes: u64,
}

/// `Check`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Check in orb8.v1")]
pub struct CheckRecord {
    pub name: String,
    pub verdict: String,
    pub reason: Option<String>,
    pub remedy: Option<String>,
}

/// `Interface`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Interface in orb8.v1")]
pub struct InterfaceRecord {
    pub name: String,
    pub ifindex: u32,
    pub state: String,
    pub attach: Option<String>,
    pub reason: Option<String>,
    pub before: Vec<String>,
    pub after: Vec<String>,
    pub link: Option<String>,
    pub chosen_by: Option<String>,
    pub mode: Option<String>,
}

/// `PacketLedger`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of PacketLedger in orb8.v1")]
pub struct PacketLedgerRecord {
    pub state: String,
    pub seen: CountRecord,
    pub reported: CountRecord,
    pub filtered: Vec<ReasonRecord>,
    pub rejected: Vec<ReasonRecord>,
    pub lost: Vec<LossRecord>,
    pub in_flight: CountRecord,
    pub unexplained_packets: i64,
    pub unexplained_bytes: i64,
    pub cold_path_packets: u64,
}

/// `Count`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Count in orb8.v1")]
pub struct CountRecord {
    pub packets: u64,
    pub bytes: u64,
}

/// `ReasonCount`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of ReasonCount in orb8.v1")]
pub struct ReasonRecord {
    pub reason: String,
    pub packets: u64,
    pub bytes: u64,
}

/// `EventLedger`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of EventLedger in orb8.v1")]
pub struct EventLedgerRecord {
    pub state: String,
    pub produced: u64,
    pub processed: u64,
    pub rejected: u64,
    pub lost: Vec<LossRecord>,
    pub unexplained_events: i64,
    pub deferred: u64,
}

/// `Subscriber`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Subscriber in orb8.v1")]
pub struct SubscriberRecord {
    pub id: u64,
    pub peer: Option<String>,
    pub offered: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub lost: u64,
    pub queued: u64,
}

fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn list<'a, T, R: From<&'a T>>(items: &'a [T]) -> Vec<R> {
    items.iter().map(R::from).collect()
}

impl From<&AgentStatus> for StatusRecord {
    fn from(status: &AgentStatus) -> Self {
        Self {
            node_name: status.node_name.clone(),
            version: status.version.clone(),
            healthy: status.healthy,
            health_message: status.health_message.clone(),
            events_processed: status.events_processed,
            events_dropped: status.events_dropped,
            pods_tracked: status.pods_tracked,
            active_flows: status.active_flows,
            uptime_seconds: status.uptime_seconds,
            ended_flows: status.ended_flows,
            max_flows: status.max_flows,
            max_flows_set: (status.max_flows_set != 0).then_some(status.max_flows_set),
            kernel_release: known(&status.kernel_release),
            capture: known(&status.capture),
            capture_reason: known(&status.capture_reason),
            started_at_ns: (status.started_at_ns != 0).then_some(status.started_at_ns),
            memory: status.memory.as_ref().map(MemoryRecord::from),
            governor: status.governor.as_ref().map(GovernorRecord::from),
            kubernetes: status.kubernetes.as_ref().map(KubernetesRecord::from),
            cgroups: status.cgroups.as_ref().map(CgroupsRecord::from),
            connection_tracking: status.connection_tracking.as_ref().map(TrackingRecord::from),
            attribution_shares: list(&status.attribution_shares),
            pod_planes: list(&status.pod_planes),
            checks: list(&status.checks),
            interfaces: list(&status.interfaces),
            packet_ledger: status.packet_ledger.as_ref().map(PacketLedgerRecord::from),
            event_ledger: status.event_ledger.as_ref().map(EventLedgerRecord::from),
            packet_view: status.packet_view.as_ref().map(PacketViewRecord::from),
            subscribers: list(&status.subscribers),
            notices: list(&status.notices),
        }
    }
}

impl From<&Memory> for MemoryRecord {
    fn from(memory: &Memory) -> Self {
        Self { resident_bytes: memory.resident_bytes, map_bytes: memory.map_bytes }
    }
}

impl From<&Check> for CheckRecord {
    fn from(check: &Check) -> Self {
        Self {
            name: check.name.clone(),
            verdict: check.verdict.clone(),
            reason: known(&check.reason),
            remedy: known(&check.remedy),
        }
    }
}

impl From<&Interface> for InterfaceRecord {
    fn from(interface: &Interface) -> Self {
        Self {
            name: interface.name.clone(),
            ifindex: interface.ifindex,
            state: interface.state.clone(),
            attach: known(&interface.attach),
            reason: known(&interface.reason),
            before: interface.before.clone(),
            after: interface.after.clone(),
            link: known(&interface.link),
            chosen_by: known(&interface.chosen_by),
            mode: known(&interface.mode),
        }
    }
}

impl From<&PacketLedger> for PacketLedgerRecord {
    fn from(ledger: &PacketLedger) -> Self {
        Self {
            state: ledger.state.clone(),
            seen: count(ledger.seen),
            reported: count(ledger.reported),
            filtered: list(&ledger.filtered),
            rejected: list(&ledger.rejected),
            lost: list(&ledger.lost),
            in_flight: count(ledger.in_flight),
            unexplained_packets: ledger.unexplained_packets,
            unexplained_bytes: ledger.unexplained_bytes,
            cold_path_packets: ledger.cold_path_packets,
        }
    }
}

fn count(count: Option<Count>) -> CountRecord {
    let Count { packets, bytes } = count.unwrap_or_default();
    CountRecord { packets, bytes }
}

impl From<&ReasonCount> for ReasonRecord {
    fn from(count: &ReasonCount) -> Self {
        Self { reason: count.reason.clone(), packets: count.packets, bytes: count.bytes }
    }
}

impl From<&EventLedger> for EventLedgerRecord {
    fn from(ledger: &EventLedger) -> Self {
        Self {
            state: ledger.state.clone(),
            produced: ledger.produced,
            processed: ledger.processed,
            rejected: ledger.rejected,
            lost: list(&ledger.lost),
            unexplained_events: ledger.unexplained_events,
            deferred: ledger.deferred,
        }
    }
}

impl From<&Subscriber> for SubscriberRecord {
    fn from(subscriber: &Subscriber) -> Self {
        Self {
            id: subscriber.id,
            peer: known(&subscriber.peer),
            offered: subscriber.offered,
            delivered: subscriber.delivered,
            filtered: subscriber.filtered,
            lost: subscriber.lost,
            queued: subscriber.queued,
        }
    }
}
