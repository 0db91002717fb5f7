//! Flows as rows: which columns there are, what stands in their cells, and the keys of JSON.
//!
//! The only place of this crate that reads the fields of a flow.

use std::cell::OnceCell;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use orb8_proto::v1::{
    Endpoint, Event, FlowEvent, NetworkFlow, PacketEvent, TcpInfo, event, flow_event,
};
use orb8_query::network::filter::has_ports;
use orb8_query::network::sort::duration_ns;
use orb8_query::rows::{EventRecord, FlowRecord};
use orb8_util::{duration, format, icmp, net, time};
use serde_json::Value;

use crate::output::csv::plain;
use crate::output::fields;
use crate::output::table::{Cell, Heading};

/// The paths of all single values of a flow, in the order of csv.
pub const LEAVES: [&str; 52] = [
    "node_name",
    "namespace",
    "pod_name",
    "src_ip",
    "dst_ip",
    "src_port",
    "dst_port",
    "protocol",
    "direction",
    "bytes",
    "packets",
    "bytes_per_second",
    "packets_per_second",
    "first_seen_ns",
    "last_seen_ns",
    "state",
    "end_reason",
    "flow_id",
    "plane",
    "interface",
    "ifindex",
    "scope",
    "fragment",
    "tcp.state",
    "tcp.flags",
    "icmp.type",
    "icmp.code",
    "source.kind",
    "source.namespace",
    "source.pod",
    "source.container",
    "source.workload",
    "source.node",
    "source.zone",
    "source.process.pid",
    "source.process.comm",
    "source.cgroup_id",
    "source.cgroup",
    "source.attribution",
    "destination.kind",
    "destination.namespace",
    "destination.pod",
    "destination.container",
    "destination.workload",
    "destination.node",
    "destination.zone",
    "destination.process.pid",
    "destination.process.comm",
    "destination.cgroup_id",
    "destination.cgroup",
    "destination.attribution",
    "socket_cookie",
];

/// Columns that exist in tables only.
pub const COMPOSED: [&str; 10] =
    ["src", "dst", "proto", "rate", "packet_rate", "age", "last", "duration", "process", "cgroup"];

/// Columns of `-o table`.
pub const TABLE: [&str; 11] = [
    "src",
    "dst",
    "proto",
    "direction",
    "interface",
    "packets",
    "bytes",
    "rate",
    "age",
    "last",
    "state",
];

/// Columns that `-o wide` adds.
pub const WIDE: [&str; 10] = [
    "packet_rate",
    "duration",
    "first_seen_ns",
    "last_seen_ns",
    "plane",
    "scope",
    "tcp.state",
    "tcp.flags",
    "process",
    "cgroup",
];

/// What cells are made with.
#[derive(Clone, Debug)]
pub struct Look {
    /// The present in Unix nanoseconds.
    pub now_ns: i64,
    /// The zone of shown times.
    pub zone: TimeZone,
}

/// A flow or an event about one, to be shown in a row.
#[derive(Debug)]
pub struct Line<'a> {
    flow: &'a NetworkFlow,
    event: Option<&'a EventRecord>,
    json: OnceCell<Value>,
}

impl<'a> Line<'a> {
    /// A flow.
    #[must_use]
    pub fn flow(flow: &'a NetworkFlow) -> Self {
        Self { flow, event: None, json: OnceCell::new() }
    }

    /// What happened to a flow, or a packet in the shape of one.
    #[must_use]
    pub fn event(flow: &'a NetworkFlow, event: &'a EventRecord) -> Self {
        Self { flow, event: Some(event), json: OnceCell::new() }
    }

    /// The record as JSON.
    pub fn json(&self) -> &Value {
        self.json.get_or_init(|| {
            let value = match self.event {
                Some(event) => serde_json::to_value(event),
                None => serde_json::to_value(FlowRecord::from(self.flow)),
            };
            value.unwrap_or(Value::Null)
        })
    }

    /// The cells of the given columns.
    #[must_use]
    pub fn cells(&self, columns: &[&str], look: &Look) -> Vec<Cell> {
        columns.iter().map(|column| self.cell(column, look)).collect()
    }

    fn cell(&self, column: &str, look: &Look) -> Cell {
        let flow = self.flow;
        let packet = self.event.is_some_and(|event| event.kind == "packet");
        // A start may be told before anything was counted.
        let uncounted = flow.packets == 0 && self.event.is_some();
        match column {
            "packets" | "bytes" | "rate" | "packet_rate" if uncounted => Cell::new(""),
            // One packet has neither a rate nor a life.
            "rate" | "packet_rate" | "duration" | "age" | "last" if packet => Cell::new(""),
            "state" if packet => {
                let flags = flow.tcp.as_ref().map(|tcp| tcp.flags.join(","));
                Cell::new(flags.unwrap_or_default())
            }
            "time" => {
                let time_ns = self.event.and_then(|event| event.time_ns);
                Cell::new(time_ns.map(|ns| time::clock(ns, &look.zone)).unwrap_or_default())
            }
            "event" => self.event.map_or_else(|| Cell::new(""), |event| event_cell(event.kind)),
            "src" => Cell::new(net::endpoint(&flow.src_ip, port(flow, flow.src_port))),
            "dst" => Cell::new(net::endpoint(&flow.dst_ip, port(flow, flow.dst_port))),
            "proto" => Cell::new(protocol(flow)),
            "direction" => direction_cell(&flow.direction),
            "rate" => Cell::new(format::byte_rate(flow.bytes_per_second)),
            "packet_rate" => Cell::new(format::packet_rate(flow.packets_per_second)),
            "age" => Cell::new(since(flow.first_seen_ns, look.now_ns)),
            "last" => Cell::new(since(flow.last_seen_ns, look.now_ns)),
            "duration" => Cell::new(duration::short(nanos(duration_ns(flow)))),
            "process" => Cell::new(both_ends(flow, process)),
            "cgroup" => Cell::new(both_ends(flow, |end| end.cgroup.clone())),
            "bytes" => Cell::new(format::bytes(flow.bytes)),
            "packets" => Cell::new(format::count(flow.packets)),
            "bytes_per_second" => Cell::new(format::byte_rate(flow.bytes_per_second)),
            "packets_per_second" => Cell::new(format::packet_rate(flow.packets_per_second)),
            "first_seen_ns" => Cell::new(shown(flow.first_seen_ns, look)),
            "last_seen_ns" => Cell::new(shown(flow.last_seen_ns, look)),
            "state" => state_cell(flow),
            path => Cell::new(plain(fields::at(self.json(), path))),
        }
    }
}

/// The headings of the given columns.
#[must_use]
pub fn headings(columns: &[&str]) -> Vec<Heading> {
    let heading = |column: &&str| {
        let title = match *column {
            "src" => "SOURCE",
            "dst" => "DESTINATION",
            "direction" => "DIR",
            "interface" => "IFACE",
            "packet_rate" => "PPS",
            "first_seen_ns" => "FIRST_SEEN",
            "last_seen_ns" => "LAST_SEEN",
            "node_name" => "NODE",
            "tcp.state" => "TCP",
            "tcp.flags" => "FLAGS",
            other => other,
        };
        let right = matches!(
            *column,
            "packets"
                | "bytes"
                | "rate"
                | "packet_rate"
                | "age"
                | "last"
                | "duration"
                | "bytes_per_second"
                | "packets_per_second"
                | "src_port"
                | "dst_port"
                | "ifindex"
                | "flow_id"
                | "socket_cookie"
        );
        Heading { title: title.to_uppercase(), right }
    };
    columns.iter().map(heading).collect()
}

/// A flow that was held already, in the shape of an event: its end, or else an update.
#[must_use]
pub fn held(flow: NetworkFlow) -> Event {
    let ended = flow.state == "ended";
    let kind = if ended { flow_event::Type::End } else { flow_event::Type::Update };
    Event {
        node_name: flow.node_name.clone(),
        time_ns: flow.last_seen_ns,
        payload: Some(event::Payload::Flow(FlowEvent { r#type: kind.into(), flow: Some(flow) })),
    }
}

/// Whether the flows come from more than one node.
#[must_use]
pub fn of_several_nodes(flows: &[NetworkFlow]) -> bool {
    flows.windows(2).any(|pair| pair[0].node_name != pair[1].node_name)
}

/// A packet in the shape of a flow, so that it fits the same columns.
#[must_use]
pub fn packet(packet: &PacketEvent) -> NetworkFlow {
    NetworkFlow {
        src_ip: packet.src_ip.clone(),
        dst_ip: packet.dst_ip.clone(),
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        protocol: packet.protocol.clone(),
        direction: packet.direction.clone(),
        packets: packet.packets.into(),
        bytes: packet.bytes.into(),
        interface: packet.interface.clone(),
        ifindex: packet.ifindex,
        tcp: (!packet.tcp_flags.is_empty())
            .then(|| TcpInfo { flags: packet.tcp_flags.clone(), state: String::new() }),
        icmp: packet.icmp,
        ..NetworkFlow::default()
    }
}

fn port(flow: &NetworkFlow, port: u32) -> Option<u32> {
    has_ports(flow).then_some(port)
}

/// One word: `tcp`, `icmp/echo-request`, `udp/fragment`.
fn protocol(flow: &NetworkFlow) -> String {
    let v6 = flow.protocol == "icmpv6";
    match &flow.icmp {
        _ if flow.fragment => format!("{}/fragment", flow.protocol),
        Some(info) => {
            format!("{}/{}", flow.protocol, icmp::describe(v6, info.r#type, info.code))
        }
        None => flow.protocol.clone(),
    }
}

fn direction_cell(direction: &str) -> Cell {
    let color = match direction {
        "egress" => AnsiColor::Blue,
        "ingress" => AnsiColor::Magenta,
        _ => return Cell::new(direction),
    };
    Cell::new(direction).style(Style::new().fg_color(Some(color.into())))
}

fn event_cell(kind: &str) -> Cell {
    let style = match kind {
        "flow_start" => Style::new().fg_color(Some(AnsiColor::Green.into())),
        "flow_end" => Style::new().dimmed(),
        _ => Style::new(),
    };
    Cell::new(kind.strip_prefix("flow_").unwrap_or(kind)).style(style)
}

/// `active`, or `ended:` and why.
fn state_cell(flow: &NetworkFlow) -> Cell {
    match (flow.state.as_str(), flow.end_reason.as_str()) {
        ("active", _) => {
            Cell::new("active").style(Style::new().fg_color(Some(AnsiColor::Green.into())))
        }
        (state, "") => Cell::new(state).style(Style::new().dimmed()),
        (state, reason) => Cell::new(format!("{state}:{reason}")).style(Style::new().dimmed()),
    }
}

fn both_ends(flow: &NetworkFlow, text: impl Fn(&Endpoint) -> String) -> String {
    let ends = [&flow.source, &flow.destination].map(|end| end.as_ref().map(&text));
    let [source, destination] = ends.map(Option::unwrap_or_default);
    match (source.is_empty(), destination.is_empty()) {
        (false, false) => format!("{source}>{destination}"),
        _ => source + &destination,
    }
}

fn process(end: &Endpoint) -> String {
    match &end.process {
        Some(process) if process.comm.is_empty() => format!("({})", process.pid),
        Some(process) => format!("{}({})", process.comm, process.pid),
        None => String::new(),
    }
}

/// How long ago; a clock that is behind the agent's reads as just now.
fn since(time_ns: i64, now_ns: i64) -> String {
    if time_ns == 0 {
        return String::new();
    }
    let ago = nanos(now_ns.saturating_sub(time_ns));
    // Nobody waits for the milliseconds of an age.
    duration::short(Duration::from_secs(ago.as_secs()))
}

fn nanos(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

fn shown(time_ns: i64, look: &Look) -> String {
    if time_ns == 0 { String::new() } else { time::rfc3339(time_ns, &look.zone) }
}

/// Most rows fit these, so that the columns of a stream seldom move.
#[must_use]
pub fn usual_width(column: &str) -> usize {
    match column {
        "time" => 12,
        "event" => 6,
        "src" | "dst" => 21,
        "proto" => 17,
        "direction" => 7,
        "interface" => 8,
        "bytes" | "scope" => 9,
        "rate" => 11,
        "state" => 10,
        "packet_rate" | "duration" => 8,
        "first_seen_ns" | "last_seen_ns" => 24,
        "tcp.state" => 7,
        "tcp.flags" => 15,
        "process" => 16,
        _ => 0,
    }
}
