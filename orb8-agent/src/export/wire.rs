//! From the agent's own types to the shared messages of `orb8.v1`: loss, notices, status.

use orb8_proto::v1;

use crate::clock;
use crate::datapath::{AttachRoute, AttachState, ChosenBy, CountMode, InterfaceStatus, LinkKind};
use crate::event::{LossRecord, Notice, Severity, Volume};
use crate::export::hub::SubscriberSummary;
use crate::pipeline::ledger::{Balance, EventSummary, PacketSummary};
use crate::pipeline::losses;
use crate::preflight::{Check, Verdict};
use crate::status::Report;

mod governed;
mod known;

/// A loss.
#[must_use]
pub fn loss(loss: &LossRecord) -> v1::Loss {
    v1::Loss {
        stage: loss.stage.to_owned(),
        reason: loss.reason.to_owned(),
        packets: loss.volume.packets,
        bytes: loss.volume.bytes,
        events: loss.events,
    }
}

/// A notice.
#[must_use]
pub fn notice(notice: &Notice) -> v1::Notice {
    let severity = match notice.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    v1::Notice {
        severity: severity.to_owned(),
        code: notice.code.to_owned(),
        message: notice.message.clone(),
    }
}

/// The whole status.
#[must_use]
pub fn status(report: &Report) -> v1::AgentStatus {
    let subscribers_lost = report.subscribers_lost;
    let events = &report.events;
    let dropped = [events.ring_lost, events.rejected, subscribers_lost];
    v1::AgentStatus {
        node_name: report.identity.node_name.to_string(),
        version: report.version.to_owned(),
        healthy: report.health_message.is_empty(),
        health_message: report.health_message.clone(),
        events_processed: events.processed,
        events_dropped: dropped.into_iter().fold(0, u64::saturating_add),
        pods_tracked: report.kubernetes.pods as u64,
        active_flows: report.flows.active.into(),
        uptime_seconds: report.uptime_seconds,
        checks: report.checks.iter().map(check).collect(),
        interfaces: report.interfaces.iter().map(interface).collect(),
        packet_ledger: Some(packet_ledger(&report.packets)),
        event_ledger: Some(event_ledger(events, subscribers_lost)),
        ended_flows: report.flows.ended.into(),
        max_flows: report.identity.max_flows.into(),
        subscribers: report.subscribers.iter().map(subscriber).collect(),
        kernel_release: report.identity.kernel_release.clone(),
        capture: report.identity.capture.to_owned(),
        capture_reason: report.identity.capture_reason.clone(),
        started_at_ns: clock::to_unix(report.identity.started_ns, report.unix_offset_ns),
        notices: report.notices.iter().map(notice).collect(),
        memory: Some(v1::Memory {
            resident_bytes: report.resident_bytes,
            map_bytes: report.map_bytes,
        }),
        kubernetes: Some(known::kubernetes(&report.kubernetes, report.unix_offset_ns)),
        attribution_shares: report.shares.clone(),
        cgroups: Some(known::cgroups(&report.cgroups, &report.kubernetes)),
        pod_planes: known::pod_planes(report),
        connection_tracking: Some(known::tracking(&report.tracking)),
        governor: Some(governed::governor(&report.governor, report.unix_offset_ns)),
        packet_view: Some(governed::packet_view(&report.packet_view)),
        max_flows_set: governed::lowered(report.identity.max_flows_set, report.identity.max_flows),
    }
}

fn check(check: &Check) -> v1::Check {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "failed",
    };
    v1::Check {
        name: check.name.to_owned(),
        verdict: verdict.to_owned(),
        reason: check.reason.clone(),
        remedy: check.remedy.clone(),
    }
}

/// The word for whether programs run somewhere.
#[must_use]
pub const fn attach_state(state: AttachState) -> &'static str {
    match state {
        AttachState::Attached => "attached",
        AttachState::Attaching => "attaching",
        AttachState::Failed => "failed",
    }
}

/// An interface.
pub(crate) fn interface(status: &InterfaceStatus) -> v1::Interface {
    let state = attach_state(status.state);
    let attach = match status.route {
        Some(AttachRoute::Tcx) => "tcx",
        Some(AttachRoute::Clsact) => "clsact",
        None => "",
    };
    let link = match status.link {
        LinkKind::Ethernet => "ethernet",
        LinkKind::Raw => "raw",
        LinkKind::Other => "other",
    };
    let chosen_by = match status.chosen_by {
        ChosenBy::DefaultRoute => "default_route",
        ChosenBy::GlobalAddress => "global_address",
        ChosenBy::Configured => "configured",
        ChosenBy::PodLink => "pod_link",
    };
    let mode = match status.mode {
        CountMode::Full => "full",
        CountMode::Supplement => "supplement",
    };
    v1::Interface {
        name: status.name.clone(),
        ifindex: status.ifindex,
        state: state.to_owned(),
        attach: attach.to_owned(),
        reason: status.reason.clone(),
        before: status.before.clone(),
        after: status.after.clone(),
        link: link.to_owned(),
        chosen_by: chosen_by.to_owned(),
        mode: mode.to_owned(),
    }
}

fn subscriber(summary: &SubscriberSummary) -> v1::Subscriber {
    v1::Subscriber {
        id: summary.id,
        peer: summary.peer.clone(),
        offered: summary.offered,
        delivered: summary.delivered,
        filtered: summary.filtered,
        lost: summary.lost,
        queued: summary.queued,
    }
}

/// Packets and bytes.
pub(crate) const fn count(volume: Volume) -> v1::Count {
    v1::Count { packets: volume.packets, bytes: volume.bytes }
}

fn reasons(list: &[(&'static str, Volume)]) -> Vec<v1::ReasonCount> {
    list.iter()
        .map(|(reason, volume)| v1::ReasonCount {
            reason: (*reason).to_owned(),
            packets: volume.packets,
            bytes: volume.bytes,
        })
        .collect()
}

const fn balance(balance: Balance) -> (&'static str, i64, i64) {
    match balance {
        Balance::Balanced => ("balanced", 0, 0),
        Balance::Unbalanced { count, bytes } => ("unbalanced", count, bytes),
    }
}

/// The packet ledger.
pub(crate) fn packet_ledger(packets: &PacketSummary) -> v1::PacketLedger {
    let (state, unexplained_packets, unexplained_bytes) = balance(packets.balance);
    v1::PacketLedger {
        seen: Some(count(packets.seen)),
        reported: Some(count(packets.reported)),
        filtered: reasons(&packets.filtered),
        rejected: reasons(&packets.rejected),
        lost: packets.lost.iter().map(loss).collect(),
        in_flight: Some(count(packets.in_flight)),
        state: state.to_owned(),
        unexplained_packets,
        unexplained_bytes,
        cold_path_packets: packets.cold_path_packets,
    }
}

fn event_ledger(events: &EventSummary, subscribers_lost: u64) -> v1::EventLedger {
    let (state, unexplained_events, _) = balance(events.balance);
    let mut lost = Vec::new();
    losses::add(&mut lost, losses::of_events("ring", "ring_full", events.ring_lost));
    losses::add(&mut lost, losses::of_events("subscriber", "queue_full", subscribers_lost));
    v1::EventLedger {
        produced: events.produced,
        processed: events.processed,
        rejected: events.rejected,
        lost: lost.iter().map(loss).collect(),
        state: state.to_owned(),
        unexplained_events,
        deferred: events.deferred,
    }
}
