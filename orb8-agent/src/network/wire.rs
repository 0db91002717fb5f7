//! From flow records to `orb8.v1`: the one place where network types become messages.
//!
//! Times become Unix nanoseconds here, with the offset of the moment of conversion; order and
//! durations were settled before.

use std::sync::Arc;

use orb8_common::network::flag;
use orb8_proto::v1::event::Payload;
use orb8_proto::v1::flow_event::Type;
use orb8_proto::v1::{self, FlowEvent, IcmpInfo, NetworkFlow, PacketEvent, TcpInfo};
use orb8_util::protocol;

use crate::clock;
use crate::event::{FlowRecord, PacketRecord, tcp_bit};
use crate::k8s::identity::Knowledge;
use crate::k8s::model::Node;
use crate::network::keys;
use crate::network::table::Share;
use crate::network::view::{Seen, direction, owner, plane, scope, state};

mod ends;

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
    pub node: Arc<Node>,
    /// Who a Service's backend is.
    pub known: Knowledge,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    pub unix_offset_ns: i64,
    /// Also the labels of pods.
    pub labels: bool,
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
        let (namespace, pod_name) = owner(flow);
        let seen = Seen { flow, node: &self.node };
        NetworkFlow {
            namespace: namespace.to_owned(),
            pod_name: pod_name.to_owned(),
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
            source: Some(self.endpoint(seen.at(orb8_filter::End::Source))),
            destination: Some(self.endpoint(seen.at(orb8_filter::End::Destination))),
            bytes_per_second: f64::from(flow.byte_rate),
            packets_per_second: f64::from(flow.packet_rate),
            state: state.to_owned(),
            end_reason: end_reason.to_owned(),
            tcp: (key.protocol == keys::TCP).then(|| tcp(flow)),
            icmp: icmp(flow),
            fragment: key.flags & flag::FRAGMENT != 0,
            node_name: self.node.name.to_string(),
            socket_cookie: flow.cookie,
            service: self.service(flow),
            supplement: key.flags & flag::SUPPLEMENT != 0,
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
            sample_weight: packet.weight.max(1).into(),
        };
        self.event(packet.time_ns, Payload::Packet(payload))
    }

    /// An event of this node at a time (CLOCK_MONOTONIC).
    #[must_use]
    pub fn event(&self, time_ns: u64, payload: Payload) -> v1::Event {
        v1::Event {
            node_name: self.node.name.to_string(),
            time_ns: clock::to_unix(time_ns, self.unix_offset_ns),
            payload: Some(payload),
        }
    }
}

/// What was counted for one way of identifying owners.
#[must_use]
pub fn share(share: Share) -> v1::AttributionShare {
    let flags = if share.socket_plane { flag::SOCKET_PLANE } else { 0 };
    v1::AttributionShare {
        plane: plane(flags).to_owned(),
        attribution: share.how.attribution.as_str().to_owned(),
        reason: share.how.reason.as_str().to_owned(),
        supplement: share.supplement,
        scope: scope(share.scope).to_owned(),
        packets: share.volume.packets,
        bytes: share.volume.bytes,
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

#[cfg(test)]
mod tests;
