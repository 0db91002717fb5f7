//! Flows as rows: what stands in their cells, and the keys of JSON.
//!
//! The only place of this crate that reads the fields of a flow.

use std::cell::OnceCell;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use orb8_proto::v1::{
    Endpoint, Event, FlowEvent, NetworkFlow, PacketEvent, ServiceUse, TcpInfo, event, flow_event,
};
use orb8_query::network::filter::has_ports;
use orb8_query::network::sort::duration_ns;
use orb8_query::rows::{EventRecord, FlowRecord};
use orb8_util::{duration, format, icmp, net, time};
use serde_json::Value;

use crate::output::csv::plain;
use crate::output::fields;
use crate::output::table::Cell;

use super::ends::{self, Mark};

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

    /// The marks in the cells of the given columns.
    pub fn marks(&self, columns: &[&str]) -> impl Iterator<Item = Mark> {
        let has = |column: &str| columns.contains(&column);
        let flow = self.flow;
        [
            mark(flow.source.as_ref()).filter(|_| has("src")),
            mark(flow.destination.as_ref()).filter(|_| has("dst")),
            flow.supplement.then_some(Mark::Supplement).filter(|_| has("direction")),
        ]
        .into_iter()
        .flatten()
    }

    fn cell(&self, column: &str, look: &Look) -> Cell {
        let flow = self.flow;
        let packet = self.event.is_some_and(|event| event.kind == "packet");
        // A start may be told before anything was counted.
        let ends = |text: fn(&Endpoint) -> String| {
            Cell::new(pair(flow.source.as_ref(), flow.destination.as_ref(), text))
        };
        let uncounted = flow.packets == 0 && self.event.is_some();
        match column {
            "packets" | "bytes" | "rate" | "packet_rate" if uncounted => Cell::new(""),
            // One packet has neither a rate nor a life.
            "rate" | "packet_rate" | "duration" | "age" | "last" if packet => Cell::new(""),
            "state" if packet => {
                let flags = flow.tcp.as_ref().map(|tcp| tcp.flags.join(","));
                // For how many it stands, if it is one of several.
                let words = [flags.unwrap_or_default(), flow.state.clone()];
                Cell::new(words.join(" ").trim())
            }
            "time" => {
                let time_ns = self.event.and_then(|event| event.time_ns);
                Cell::new(time_ns.map(|ns| time::clock(ns, &look.zone)).unwrap_or_default())
            }
            "event" => self.event.map_or_else(|| Cell::new(""), |event| event_cell(event.kind)),
            "src" => marked(source_name(flow), mark(flow.source.as_ref())),
            "dst" => marked(destination_name(flow), mark(flow.destination.as_ref())),
            "src_addr" => Cell::new(net::endpoint(&flow.src_ip, port(flow, flow.src_port))),
            "dst_addr" => Cell::new(net::endpoint(&flow.dst_ip, port(flow, flow.dst_port))),
            "attribution" => ends(ends::attribution),
            "workload" => ends(ends::workload),
            "node" => ends(|end| end.node.clone()),
            "zone" => ends(|end| end.zone.clone()),
            "container" => ends(ends::container),
            "service" => Cell::new(flow.service.as_ref().map(service_name).unwrap_or_default()),
            "backend" => Cell::new(backend(flow)),
            "proto" => Cell::new(protocol(flow)),
            "direction" => direction_cell(flow),
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
        state: match packet.sample_weight {
            0 | 1 => String::new(),
            weight => format!("1 of {weight}"),
        },
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

fn source_name(flow: &NetworkFlow) -> String {
    ends::name(flow.source.as_ref(), &flow.src_ip, port(flow, flow.src_port))
}

fn destination_name(flow: &NetworkFlow) -> String {
    ends::name(flow.destination.as_ref(), &flow.dst_ip, port(flow, flow.dst_port))
}

fn mark(end: Option<&Endpoint>) -> Option<Mark> {
    end.and_then(ends::mark)
}

fn marked(mut text: String, mark: Option<Mark>) -> Cell {
    text.extend(mark.map(Mark::sign));
    Cell::new(text)
}

/// The Service that was asked for: `shop/cart:http`, by port where the port has no name.
pub(super) fn service_name(service: &ServiceUse) -> String {
    let port = match service.port_name.as_str() {
        "" => service.port.to_string(),
        name => name.to_owned(),
    };
    format!("{}/{}:{port}", service.namespace, service.name)
}

/// Who answered for the Service.
fn backend(flow: &NetworkFlow) -> String {
    match &flow.service {
        Some(service) if !service.backend_ip.is_empty() => ends::name(
            service.backend.as_ref(),
            &service.backend_ip,
            has_ports(flow).then_some(service.backend_port),
        ),
        _ => String::new(),
    }
}

fn direction_cell(flow: &NetworkFlow) -> Cell {
    let cell = marked(flow.direction.clone(), flow.supplement.then_some(Mark::Supplement));
    let color = match flow.direction.as_str() {
        "egress" => AnsiColor::Blue,
        "ingress" => AnsiColor::Magenta,
        _ => return cell,
    };
    cell.style(Style::new().fg_color(Some(color.into())))
}

fn event_cell(kind: &str) -> Cell {
    let style = match kind {
        "flow_start" => Style::new().fg_color(Some(AnsiColor::Green.into())),
        "flow_end" => Style::new().dimmed(),
        _ => Style::new(),
    };
    Cell::new(kind.strip_prefix("flow_").unwrap_or(kind)).style(style)
}

/// `active`, or `ended:` and why; before all that nobody is behind the Service that was asked for.
fn state_cell(flow: &NetworkFlow) -> Cell {
    if flow.service.as_ref().is_some_and(|service| service.verdict == "no_endpoints") {
        return Cell::new("no_endpoints").style(Style::new().fg_color(Some(AnsiColor::Red.into())));
    }
    match (flow.state.as_str(), flow.end_reason.as_str()) {
        ("active", _) => {
            Cell::new("active").style(Style::new().fg_color(Some(AnsiColor::Green.into())))
        }
        (state, "") => Cell::new(state).style(Style::new().dimmed()),
        (state, reason) => Cell::new(format!("{state}:{reason}")).style(Style::new().dimmed()),
    }
}

/// What is known of either end, in the order of the flow: `cgroup>address`, `-` for nothing.
pub(super) fn pair(
    source: Option<&Endpoint>,
    destination: Option<&Endpoint>,
    text: impl Fn(&Endpoint) -> String,
) -> String {
    let [source, destination] = [source, destination].map(|end| end.map(&text).unwrap_or_default());
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    match (source.is_empty(), destination.is_empty()) {
        (true, true) => String::new(),
        _ => format!("{}>{}", or_dash(source), or_dash(destination)),
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
pub(super) fn since(time_ns: i64, now_ns: i64) -> String {
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
