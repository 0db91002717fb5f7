//! From flow records to `orb8.v1`: the one place where network types become messages.
//!
//! Times become Unix nanoseconds here, with the offset of the moment of conversion; order and
//! durations were settled before.

use std::sync::Arc;

use orb8_common::network::flag;
use orb8_proto::v1::event::Payload;
use orb8_proto::v1::flow_event::Type;
use orb8_proto::v1::{self, Endpoint, FlowEvent, IcmpInfo, NetworkFlow, PacketEvent, TcpInfo};
use orb8_util::protocol;

use crate::clock;
use crate::event::{EndReason, FlowRecord, FlowState, PacketRecord, Scope, tcp_bit};
use crate::network::keys;

/// Bits of the TCP flags byte and their names, as packets show them.
const PACKET_FLAGS: [(u8, &str); 8] = [
    (1, "fin"),
    (2, "syn"),
    (4, "rst"),
    (8, "psh"),
    (16, "ack"),
    (32, "urg"),
    (64, "ece"),
    (128, "cwr"),
];

/// What every conversion needs besides the record.
#[derive(Clone, Debug)]
pub struct Shown {
    /// This node.
    pub node_name: Arc<str>,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    pub unix_offset_ns: i64,
}

impl Shown {
    /// A flow.
    #[must_use]
    pub fn flow(&self, flow: &FlowRecord) -> NetworkFlow {
        let key = &flow.id.key;
        let (source, destination) = (keys::source(key), keys::destination(key));
        let (src_port, dst_port) = keys::ports(key).unwrap_or((0, 0));
        let egress = keys::is_egress(key);
        let (state, end_reason) = state(flow.state);
        NetworkFlow {
            namespace: String::new(),
            pod_name: String::new(),
            src_ip: source.to_string(),
            dst_ip: destination.to_string(),
            src_port: src_port.into(),
            dst_port: dst_port.into(),
            protocol: protocol::name(key.protocol),
            direction: direction(egress).to_owned(),
            bytes: flow.bytes,
            packets: flow.packets,
            first_seen_ns: clock::to_unix(flow.first_seen_ns, self.unix_offset_ns),
            last_seen_ns: clock::to_unix(flow.last_seen_ns, self.unix_offset_ns),
            flow_id: flow.flow_id,
            plane: plane(key.flags).to_owned(),
            interface: interface(flow),
            ifindex: keys::ifindex(&flow.id).unwrap_or(0),
            scope: scope(flow.scope).to_owned(),
            source: Some(endpoint(egress.then_some(flow))),
            destination: Some(endpoint((!egress).then_some(flow))),
            bytes_per_second: f64::from(flow.byte_rate),
            packets_per_second: f64::from(flow.packet_rate),
            state: state.to_owned(),
            end_reason: end_reason.to_owned(),
            tcp: (key.protocol == keys::TCP).then(|| tcp(flow)),
            icmp: icmp(flow),
            fragment: key.flags & flag::FRAGMENT != 0,
            node_name: self.node_name.to_string(),
            socket_cookie: flow.cookie,
            ..NetworkFlow::default()
        }
    }

    /// A flow's start, update or end at a time (CLOCK_MONOTONIC).
    #[must_use]
    pub fn flow_event(&self, kind: Type, flow: &FlowRecord, time_ns: u64) -> v1::Event {
        let flow = FlowEvent { r#type: kind.into(), flow: Some(self.flow(flow)) };
        self.event(time_ns, Payload::Flow(flow))
    }

    /// A packet.
    #[must_use]
    pub fn packet(&self, record: &PacketRecord) -> v1::Event {
        let (packet, key) = (&record.packet, &record.packet.key);
        let (src_port, dst_port) = keys::ports(key).unwrap_or((0, 0));
        let flags = if key.protocol == keys::TCP { packet.tcp_flags } else { 0 };
        let named = PACKET_FLAGS.iter().filter(|(bit, _)| flags & bit != 0);
        let payload = PacketEvent {
            src_ip: keys::source(key).to_string(),
            dst_ip: keys::destination(key).to_string(),
            src_port: src_port.into(),
            dst_port: dst_port.into(),
            protocol: protocol::name(key.protocol),
            direction: direction(keys::is_egress(key)).to_owned(),
            packets: packet.packets,
            // A super-packet is at most a few hundred KiB long (BIG TCP).
            bytes: u32::try_from(packet.bytes).unwrap_or(u32::MAX),
            interface: interface(&record.flow),
            ifindex: keys::ifindex(&record.flow.id).unwrap_or(0),
            tcp_flags: named.map(|(_, name)| (*name).to_owned()).collect(),
            icmp: icmp(&record.flow),
        };
        self.event(packet.time_ns, Payload::Packet(payload))
    }

    /// An event of this node at a time (CLOCK_MONOTONIC).
    #[must_use]
    pub fn event(&self, time_ns: u64, payload: Payload) -> v1::Event {
        v1::Event {
            node_name: self.node_name.to_string(),
            time_ns: clock::to_unix(time_ns, self.unix_offset_ns),
            payload: Some(payload),
        }
    }
}

const fn direction(egress: bool) -> &'static str {
    if egress { "egress" } else { "ingress" }
}

const fn plane(flags: u8) -> &'static str {
    if flags & flag::SOCKET_PLANE == 0 { "tc" } else { "socket" }
}

/// The word for a scope; what is not known is empty.
const fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Unknown => "",
        Scope::Local => "local",
        Scope::Unclaimed => "unclaimed",
        Scope::Forwarded => "forwarded",
        Scope::Tunnel => "tunnel",
    }
}

const fn state(state: FlowState) -> (&'static str, &'static str) {
    match state {
        FlowState::Active => ("active", ""),
        FlowState::Ended(EndReason::Idle) => ("ended", "idle"),
        FlowState::Ended(EndReason::Fin) => ("ended", "fin"),
        FlowState::Ended(EndReason::Rst) => ("ended", "rst"),
        FlowState::Ended(EndReason::Evicted) => ("ended", "evicted"),
        FlowState::Ended(EndReason::Shutdown) => ("ended", "shutdown"),
        FlowState::Ended(EndReason::PeerChanged) => ("ended", "peer_changed"),
    }
}

fn interface(flow: &FlowRecord) -> String {
    flow.interface.as_ref().map_or_else(String::new, |interface| interface.name.to_string())
}

fn icmp(flow: &FlowRecord) -> Option<IcmpInfo> {
    keys::icmp(&flow.id.key).map(|(kind, code)| IcmpInfo { r#type: kind.into(), code: code.into() })
}

fn tcp(flow: &FlowRecord) -> TcpInfo {
    let named = [
        (tcp_bit::SYN, "syn"),
        (tcp_bit::SYN_ACK, "syn_ack"),
        (tcp_bit::FIN, "fin"),
        (tcp_bit::RST, "rst"),
    ];
    let seen = |bits: u8| flow.tcp_seen & bits != 0;
    let state = if seen(tcp_bit::RST) {
        "reset"
    } else if seen(tcp_bit::FIN) {
        "closing"
    } else if seen(tcp_bit::SYN | tcp_bit::SYN_ACK) && !flow.established {
        "opening"
    } else {
        "open"
    };
    let flags = named.iter().filter(|(bit, _)| seen(*bit));
    TcpInfo { flags: flags.map(|(_, name)| (*name).to_owned()).collect(), state: state.to_owned() }
}

/// One end; `owned` is the flow if this end is its owner's.
fn endpoint(owned: Option<&FlowRecord>) -> Endpoint {
    let mut end = Endpoint {
        kind: "unknown".to_owned(),
        attribution: "none".to_owned(),
        ..Endpoint::default()
    };
    let Some((flow, membership)) =
        owned.and_then(|flow| flow.membership.as_ref().map(|found| (flow, found)))
    else {
        return end;
    };
    end.kind = "process".to_owned();
    end.attribution = "cgroup".to_owned();
    end.cgroup_id = membership.id;
    end.cgroup = membership.path().unwrap_or_default().to_owned();
    end.process = membership
        .process_at(flow.first_seen_ns)
        .map(|process| v1::Process { pid: process.pid, comm: process.comm.to_string() });
    end
}

#[cfg(test)]
mod tests;
