//! The JSON form of what agents tell: the keys that `-o json` prints and `--file` reads.
//!
//! The only place that converts between messages and their JSON form. Keys are the field names of
//! `orb8.v1`; every field is present; 64-bit integers are numbers; what is not known is null. Only
//! `namespace` and `pod_name` are empty where a flow's owner has none. Reading back what was
//! written gives the same message, except that a rate that is no number becomes 0.

use orb8_proto::v1::{
    Endpoint, Event, IcmpInfo, Loss, NetworkFlow, NodeStatus, Notice, PacketEvent, ServiceUse,
    TcpInfo, event, flow_event,
};
use serde::{Deserialize, Serialize};

mod conversation;
mod endpoint;

pub use conversation::{AmountRecord, ConversationRecord, PartyRecord};
pub use endpoint::{EndpointRecord, ProcessRecord, ServiceRecord};

/// `NetworkFlow`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of NetworkFlow in orb8.v1")]
pub struct FlowRecord {
    pub node_name: Option<String>,
    pub namespace: String,
    pub pod_name: String,
    pub src_ip: Option<String>,
    pub dst_ip: Option<String>,
    pub src_port: u32,
    pub dst_port: u32,
    pub protocol: Option<String>,
    pub direction: Option<String>,
    pub bytes: u64,
    pub packets: u64,
    pub bytes_per_second: Option<f64>,
    pub packets_per_second: Option<f64>,
    pub first_seen_ns: Option<i64>,
    pub last_seen_ns: Option<i64>,
    pub state: Option<String>,
    pub end_reason: Option<String>,
    pub flow_id: Option<u64>,
    pub plane: Option<String>,
    pub interface: Option<String>,
    pub ifindex: Option<u32>,
    pub scope: Option<String>,
    pub fragment: bool,
    pub tcp: Option<TcpRecord>,
    pub icmp: Option<IcmpRecord>,
    pub source: Option<EndpointRecord>,
    pub destination: Option<EndpointRecord>,
    pub socket_cookie: Option<u64>,
    pub supplement: bool,
    pub service: Option<ServiceRecord>,
}

/// `TcpInfo`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of TcpInfo in orb8.v1")]
pub struct TcpRecord {
    pub state: Option<String>,
    pub flags: Vec<String>,
}

/// `IcmpInfo`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of IcmpInfo in orb8.v1")]
pub struct IcmpRecord {
    #[serde(rename = "type")]
    pub kind: u32,
    pub code: u32,
}

/// `NodeStatus`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of NodeStatus in orb8.v1")]
pub struct NodeRecord {
    pub node_name: String,
    pub state: String,
    pub complete: bool,
    pub message: Option<String>,
}

/// `Loss`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of Loss in orb8.v1")]
pub struct LossRecord {
    pub stage: String,
    pub reason: String,
    pub packets: u64,
    pub bytes: u64,
    pub events: u64,
}

/// `Notice`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Notice in orb8.v1")]
pub struct NoticeRecord {
    pub severity: String,
    pub code: Option<String>,
    pub message: String,
}

/// `PacketEvent`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of PacketEvent in orb8.v1")]
pub struct PacketRecord {
    pub src_ip: Option<String>,
    pub dst_ip: Option<String>,
    pub src_port: u32,
    pub dst_port: u32,
    pub protocol: Option<String>,
    pub direction: Option<String>,
    pub packets: u32,
    pub bytes: u32,
    pub interface: Option<String>,
    pub ifindex: Option<u32>,
    pub tcp_flags: Vec<String>,
    pub icmp: Option<IcmpRecord>,
    pub sample_weight: Option<u32>,
}

/// One line of a stream: `type`, the node, the time, and the keys of its payload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventRecord {
    /// `flow_start`, `flow_update`, `flow_end`, `packet`, `loss` or `notice`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// When the agent told it, in Unix nanoseconds.
    pub time_ns: Option<i64>,
    /// The payload's keys.
    #[serde(flatten)]
    pub payload: PayloadRecord,
}

/// What an event carries besides type and time.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PayloadRecord {
    /// A flow, which names its node itself.
    Flow(Box<FlowRecord>),
    /// Anything else, with the node that told it.
    Other {
        /// The node that told it.
        node_name: Option<String>,
        /// The rest.
        #[serde(flatten)]
        body: BodyRecord,
    },
}

/// The payloads that do not name their node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum BodyRecord {
    /// What did not arrive.
    Loss(LossRecord),
    /// A line for a person.
    Notice(NoticeRecord),
    /// One packet.
    Packet(Box<PacketRecord>),
}

impl EventRecord {
    /// The JSON form of an event; `None` for a payload that this version does not know.
    #[must_use]
    pub fn new(event: &Event) -> Option<Self> {
        let other = |body| PayloadRecord::Other { node_name: known(&event.node_name), body };
        let (kind, payload) = match event.payload.as_ref()? {
            event::Payload::Flow(told) => {
                let kind = flow_kind(told.r#type())?;
                let mut flow = FlowRecord::from(told.flow.as_ref()?);
                flow.node_name = flow.node_name.or_else(|| known(&event.node_name));
                (kind, PayloadRecord::Flow(Box::new(flow)))
            }
            event::Payload::Loss(loss) => ("loss", other(BodyRecord::Loss(loss.into()))),
            event::Payload::Notice(notice) => ("notice", other(BodyRecord::Notice(notice.into()))),
            event::Payload::Packet(packet) => {
                ("packet", other(BodyRecord::Packet(Box::new(packet.into()))))
            }
        };
        Some(Self { kind, time_ns: time(event.time_ns), payload })
    }
}

/// The word for what happened to a flow; `None` for what this version does not know.
#[must_use]
pub fn flow_kind(kind: flow_event::Type) -> Option<&'static str> {
    match kind {
        flow_event::Type::Start => Some("flow_start"),
        flow_event::Type::Update => Some("flow_update"),
        flow_event::Type::End => Some("flow_end"),
        flow_event::Type::Unspecified => None,
    }
}

fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn time(time_ns: i64) -> Option<i64> {
    (time_ns != 0).then_some(time_ns)
}

fn nonzero<T: Default + PartialEq>(number: T) -> Option<T> {
    (number != T::default()).then_some(number)
}

fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

impl From<&NetworkFlow> for FlowRecord {
    fn from(flow: &NetworkFlow) -> Self {
        Self {
            node_name: known(&flow.node_name),
            namespace: flow.namespace.clone(),
            pod_name: flow.pod_name.clone(),
            src_ip: known(&flow.src_ip),
            dst_ip: known(&flow.dst_ip),
            src_port: flow.src_port,
            dst_port: flow.dst_port,
            protocol: known(&flow.protocol),
            direction: known(&flow.direction),
            bytes: flow.bytes,
            packets: flow.packets,
            bytes_per_second: finite(flow.bytes_per_second),
            packets_per_second: finite(flow.packets_per_second),
            first_seen_ns: time(flow.first_seen_ns),
            last_seen_ns: time(flow.last_seen_ns),
            state: known(&flow.state),
            end_reason: known(&flow.end_reason),
            flow_id: nonzero(flow.flow_id),
            plane: known(&flow.plane),
            interface: known(&flow.interface),
            ifindex: nonzero(flow.ifindex),
            scope: known(&flow.scope),
            fragment: flow.fragment,
            tcp: flow
                .tcp
                .as_ref()
                .map(|tcp| TcpRecord { state: known(&tcp.state), flags: tcp.flags.clone() }),
            icmp: flow.icmp.as_ref().map(IcmpRecord::from),
            source: flow.source.as_ref().map(EndpointRecord::from),
            destination: flow.destination.as_ref().map(EndpointRecord::from),
            socket_cookie: nonzero(flow.socket_cookie),
            service: flow.service.as_ref().map(ServiceRecord::from),
            supplement: flow.supplement,
        }
    }
}

impl From<FlowRecord> for NetworkFlow {
    fn from(record: FlowRecord) -> Self {
        Self {
            namespace: record.namespace,
            pod_name: record.pod_name,
            src_ip: record.src_ip.unwrap_or_default(),
            dst_ip: record.dst_ip.unwrap_or_default(),
            src_port: record.src_port,
            dst_port: record.dst_port,
            protocol: record.protocol.unwrap_or_default(),
            direction: record.direction.unwrap_or_default(),
            bytes: record.bytes,
            packets: record.packets,
            first_seen_ns: record.first_seen_ns.unwrap_or_default(),
            last_seen_ns: record.last_seen_ns.unwrap_or_default(),
            flow_id: record.flow_id.unwrap_or_default(),
            plane: record.plane.unwrap_or_default(),
            interface: record.interface.unwrap_or_default(),
            ifindex: record.ifindex.unwrap_or_default(),
            scope: record.scope.unwrap_or_default(),
            source: record.source.map(Endpoint::from),
            destination: record.destination.map(Endpoint::from),
            bytes_per_second: record.bytes_per_second.unwrap_or_default(),
            packets_per_second: record.packets_per_second.unwrap_or_default(),
            state: record.state.unwrap_or_default(),
            end_reason: record.end_reason.unwrap_or_default(),
            tcp: record
                .tcp
                .map(|tcp| TcpInfo { flags: tcp.flags, state: tcp.state.unwrap_or_default() }),
            icmp: record.icmp.map(|icmp| IcmpInfo { r#type: icmp.kind, code: icmp.code }),
            fragment: record.fragment,
            node_name: record.node_name.unwrap_or_default(),
            socket_cookie: record.socket_cookie.unwrap_or_default(),
            service: record.service.map(ServiceUse::from),
            supplement: record.supplement,
        }
    }
}

impl From<&IcmpInfo> for IcmpRecord {
    fn from(icmp: &IcmpInfo) -> Self {
        Self { kind: icmp.r#type, code: icmp.code }
    }
}

impl From<&NodeStatus> for NodeRecord {
    fn from(node: &NodeStatus) -> Self {
        Self {
            node_name: node.node_name.clone(),
            state: node.state.clone(),
            complete: node.complete,
            message: known(&node.message),
        }
    }
}

impl From<NodeRecord> for NodeStatus {
    fn from(record: NodeRecord) -> Self {
        Self {
            node_name: record.node_name,
            state: record.state,
            complete: record.complete,
            message: record.message.unwrap_or_default(),
        }
    }
}

impl From<&Loss> for LossRecord {
    fn from(loss: &Loss) -> Self {
        Self {
            stage: loss.stage.clone(),
            reason: loss.reason.clone(),
            packets: loss.packets,
            bytes: loss.bytes,
            events: loss.events,
        }
    }
}

impl From<LossRecord> for Loss {
    fn from(record: LossRecord) -> Self {
        let LossRecord { stage, reason, packets, bytes, events } = record;
        Self { stage, reason, packets, bytes, events }
    }
}

impl From<&Notice> for NoticeRecord {
    fn from(notice: &Notice) -> Self {
        Self {
            severity: notice.severity.clone(),
            code: known(&notice.code),
            message: notice.message.clone(),
        }
    }
}

impl From<&PacketEvent> for PacketRecord {
    fn from(packet: &PacketEvent) -> Self {
        Self {
            src_ip: known(&packet.src_ip),
            dst_ip: known(&packet.dst_ip),
            src_port: packet.src_port,
            dst_port: packet.dst_port,
            protocol: known(&packet.protocol),
            direction: known(&packet.direction),
            packets: packet.packets,
            bytes: packet.bytes,
            interface: known(&packet.interface),
            ifindex: nonzero(packet.ifindex),
            tcp_flags: packet.tcp_flags.clone(),
            icmp: packet.icmp.as_ref().map(IcmpRecord::from),
            sample_weight: nonzero(packet.sample_weight),
        }
    }
}
