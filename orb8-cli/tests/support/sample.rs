//! What a fake agent of the golden tests holds: one of each kind of flow, event and status.

use orb8_proto::v1::{
    AgentStatus, AnswerContext, Check, Count, Endpoint, Event, EventLedger, FlowEvent, Governor,
    IcmpInfo, Interface, Loss, Memory, NetworkFlow, NodeStatus, Notice, PacketEvent, PacketLedger,
    PacketView, Process, QueryFlowsResponse, ReasonCount, Subscriber, TcpInfo, Unmatched, event,
    flow_event,
};

pub(crate) const SECOND: i64 = 1_000_000_000;
pub(crate) const HOUR: i64 = 3600 * SECOND;

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn local(comm: &str, pid: u32) -> Option<Endpoint> {
    Some(Endpoint {
        kind: "process".to_owned(),
        node: "node-a".to_owned(),
        process: Some(Process { pid, comm: comm.to_owned() }),
        cgroup_id: 4711,
        cgroup: "/user.slice/session-1.scope".to_owned(),
        attribution: "cgroup".to_owned(),
        ..Endpoint::default()
    })
}

/// What the flows have in common. Times keep clear of the borders at which an age would read
/// differently a little later.
fn base(id: u64, now_ns: i64) -> NetworkFlow {
    NetworkFlow {
        flow_id: id,
        node_name: "node-a".to_owned(),
        plane: "tc".to_owned(),
        interface: "eth0".to_owned(),
        ifindex: 2,
        scope: "local".to_owned(),
        state: "active".to_owned(),
        first_seen_ns: now_ns - 2 * HOUR - 30 * 60 * SECOND - 30 * SECOND,
        last_seen_ns: now_ns - HOUR - 30 * SECOND,
        src_ip: "10.0.0.1".to_owned(),
        dst_ip: "10.0.0.9".to_owned(),
        direction: "egress".to_owned(),
        ..NetworkFlow::default()
    }
}

fn tcp(now_ns: i64) -> NetworkFlow {
    NetworkFlow {
        dst_ip: "10.0.0.2".to_owned(),
        src_port: 40000,
        dst_port: 443,
        protocol: "tcp".to_owned(),
        bytes: 1_572_864,
        packets: 12_345,
        bytes_per_second: 2048.5,
        packets_per_second: 16.25,
        tcp: Some(TcpInfo { flags: owned(&["syn", "fin"]), state: "closing".to_owned() }),
        source: local("curl", 1234),
        socket_cookie: 77,
        ..base(1, now_ns)
    }
}

/// As large as numbers get, and with a process that chose its name badly.
fn udp(now_ns: i64) -> NetworkFlow {
    NetworkFlow {
        src_ip: "fd00::2".to_owned(),
        dst_ip: "fd00::1".to_owned(),
        src_port: 53,
        dst_port: 5353,
        protocol: "udp".to_owned(),
        direction: "ingress".to_owned(),
        bytes: 18_446_744_073_709_551_615,
        packets: 18_446_744_073_709_551_615,
        state: "ended".to_owned(),
        end_reason: "idle".to_owned(),
        destination: local("evil\u{1b}[2J\"name\", \n", 9),
        ..base(2, now_ns)
    }
}

/// A flow of which little is known.
fn gre(now_ns: i64) -> NetworkFlow {
    NetworkFlow {
        src_ip: "192.168.0.1".to_owned(),
        dst_ip: "192.168.0.2".to_owned(),
        protocol: "47".to_owned(),
        direction: "ingress".to_owned(),
        bytes: 100,
        packets: 1,
        interface: String::new(),
        ifindex: 0,
        first_seen_ns: 0,
        last_seen_ns: 0,
        flow_id: 0,
        scope: "tunnel".to_owned(),
        ..base(5, now_ns)
    }
}

/// One flow of each kind, seen before `now_ns`.
pub(crate) fn flows(now_ns: i64) -> Vec<NetworkFlow> {
    let ping = NetworkFlow {
        protocol: "icmp".to_owned(),
        bytes: 840,
        packets: 10,
        icmp: Some(IcmpInfo { r#type: 8, code: 0 }),
        scope: "unclaimed".to_owned(),
        ..base(3, now_ns)
    };
    let fragments = NetworkFlow {
        protocol: "udp".to_owned(),
        bytes: 2960,
        packets: 2,
        fragment: true,
        ..base(4, now_ns)
    };
    vec![tcp(now_ns), udp(now_ns), ping, fragments, gre(now_ns)]
}

pub(crate) fn node(name: &str) -> NodeStatus {
    NodeStatus {
        node_name: name.to_owned(),
        state: "ok".to_owned(),
        complete: true,
        message: String::new(),
    }
}

pub(crate) fn context(now_ns: i64) -> AnswerContext {
    AnswerContext {
        flows_held: 5,
        packets_seen: 12_361,
        interfaces_attached: 1,
        held_since_ns: now_ns - HOUR,
        health_message: String::new(),
        ..AnswerContext::default()
    }
}

/// Of an agent whose Kubernetes API is in this state, and that knows no object of these filters and
/// values.
pub(crate) fn knowing(now_ns: i64, kubernetes: &str, unmatched: &[(&str, &str)]) -> AnswerContext {
    let unmatched = unmatched.iter().map(|(field, value)| Unmatched {
        field: (*field).to_owned(),
        value: (*value).to_owned(),
        suggestions: Vec::new(),
    });
    AnswerContext {
        kubernetes: kubernetes.to_owned(),
        unmatched: unmatched.collect(),
        ..context(now_ns)
    }
}

/// The whole answer of a well agent.
pub(crate) fn response(now_ns: i64) -> QueryFlowsResponse {
    let flows = flows(now_ns);
    QueryFlowsResponse {
        matched: flows.len() as u64,
        flows,
        nodes: vec![node("node-a")],
        loss: Vec::new(),
        context: Some(context(now_ns)),
    }
}

pub(crate) fn loss() -> Loss {
    Loss {
        stage: "flow_table".to_owned(),
        reason: "flow_table_full".to_owned(),
        packets: 12,
        bytes: 1536,
        events: 0,
    }
}

fn interface() -> Interface {
    Interface {
        name: "eth0".to_owned(),
        ifindex: 2,
        state: "attached".to_owned(),
        attach: "tcx".to_owned(),
        reason: String::new(),
        before: Vec::new(),
        after: owned(&["cil_from_netdev", "shaper"]),
        link: "ethernet".to_owned(),
        chosen_by: "default_route".to_owned(),
        mode: "full".to_owned(),
    }
}

fn packet_ledger() -> PacketLedger {
    let count = |packets, bytes| Some(Count { packets, bytes });
    let reason = |reason: &str, packets, bytes| {
        vec![ReasonCount { reason: reason.to_owned(), packets, bytes }]
    };
    PacketLedger {
        seen: count(1000, 500_000),
        reported: count(980, 498_000),
        filtered: reason("self_traffic", 15, 1500),
        rejected: reason("not_ip", 5, 500),
        lost: Vec::new(),
        in_flight: count(0, 0),
        state: "balanced".to_owned(),
        unexplained_packets: 0,
        unexplained_bytes: 0,
        cold_path_packets: 1,
    }
}

/// A well agent.
pub(crate) fn status(now_ns: i64) -> AgentStatus {
    AgentStatus {
        node_name: "node-a".to_owned(),
        version: "0.1.0".to_owned(),
        healthy: true,
        health_message: String::new(),
        events_processed: 40,
        events_dropped: 0,
        pods_tracked: 0,
        active_flows: 3,
        uptime_seconds: 9030,
        checks: vec![Check {
            name: "btf".to_owned(),
            verdict: "ok".to_owned(),
            reason: "/sys/kernel/btf/vmlinux".to_owned(),
            remedy: String::new(),
        }],
        interfaces: vec![interface()],
        packet_ledger: Some(packet_ledger()),
        event_ledger: Some(EventLedger {
            produced: 40,
            processed: 40,
            state: "balanced".to_owned(),
            ..EventLedger::default()
        }),
        ended_flows: 2,
        max_flows: 100_000,
        subscribers: vec![Subscriber {
            id: 1,
            peer: "127.0.0.1:50000".to_owned(),
            offered: 40,
            delivered: 38,
            filtered: 1,
            lost: 0,
            queued: 1,
        }],
        kernel_release: "6.12.0".to_owned(),
        capture: "tc".to_owned(),
        capture_reason: "cgroup2 is not mounted, so sockets have no cgroup".to_owned(),
        started_at_ns: now_ns - 9030 * SECOND,
        notices: vec![notice("info", "interface_attached", "eth0 is attached by tcx")],
        memory: Some(Memory { resident_bytes: 18 << 20, map_bytes: 9 << 20 }),
        governor: Some(governor()),
        packet_view: Some(PacketView::default()),
        ..AgentStatus::default()
    }
}

/// Within its budgets.
fn governor() -> Governor {
    Governor {
        cpu_budget: 0.01,
        cpu_agent: 0.0012,
        cpu_programs: 0.0004,
        cpu_programs_by: "calibrated".to_owned(),
        packet_ns: 31.5,
        memory_budget_bytes: 96 << 20,
        memory_bytes: 27 << 20,
        ring_threshold: 0.8,
        event_ring: 0.25,
        drain_interval_ms: 1000,
        packet_sampling: 1,
        history_seconds: 300,
        ..Governor::default()
    }
}

/// Over two of its budgets.
fn pressed(now_ns: i64) -> Governor {
    Governor {
        cpu_agent: 0.021,
        packet_ring: 0.9375,
        level: 3,
        given_up: owned(&[
            "counters are read every 4 s instead of every 1 s",
            "one in 2 packets of the packet view is told and stands for the others",
        ]),
        cause: "packet_ring".to_owned(),
        since_ns: now_ns - 60 * SECOND,
        steps: 5,
        drain_interval_ms: 4000,
        packet_sampling: 2,
        ..governor()
    }
}

/// An agent that sees nothing and whose books do not balance.
pub(crate) fn unwell(now_ns: i64) -> AgentStatus {
    let well = status(now_ns);
    AgentStatus {
        healthy: false,
        health_message: "CAP_BPF is missing".to_owned(),
        events_dropped: 7,
        checks: vec![
            Check {
                name: "capabilities".to_owned(),
                verdict: "failed".to_owned(),
                reason: "CAP_BPF is missing".to_owned(),
                remedy: "run as root or grant CAP_BPF".to_owned(),
            },
            well.checks[0].clone(),
        ],
        interfaces: Vec::new(),
        packet_ledger: Some(PacketLedger {
            lost: vec![loss()],
            state: "unbalanced".to_owned(),
            unexplained_packets: -3,
            unexplained_bytes: 180,
            ..well.packet_ledger.clone().unwrap_or_default()
        }),
        event_ledger: Some(EventLedger {
            produced: 47,
            deferred: 12,
            lost: vec![Loss {
                stage: "ring".to_owned(),
                reason: "ring_full".to_owned(),
                events: 7,
                ..Loss::default()
            }],
            ..well.event_ledger.clone().unwrap_or_default()
        }),
        max_flows: 60_074,
        max_flows_set: 100_000,
        governor: Some(pressed(now_ns)),
        packet_view: Some(PacketView {
            matched: 1000,
            told: 900,
            untold: 1,
            rate_limited: 60,
            ring_full: 39,
        }),
        subscribers: Vec::new(),
        notices: vec![notice("error", "displaced", "another program ends the chain on eth0")],
        ..well
    }
}

pub(crate) fn notice(severity: &str, code: &str, message: &str) -> Notice {
    Notice { severity: severity.to_owned(), code: code.to_owned(), message: message.to_owned() }
}

/// An event of node-a.
pub(crate) fn event(time_ns: i64, payload: event::Payload) -> Event {
    Event { node_name: "node-a".to_owned(), time_ns, payload: Some(payload) }
}

/// A flow that starts, changes and ends; a notice and a packet between.
pub(crate) fn events(now_ns: i64) -> Vec<Event> {
    let flow = |kind: flow_event::Type, change: fn(&mut NetworkFlow)| {
        let mut flow = flows(now_ns).remove(0);
        change(&mut flow);
        event::Payload::Flow(FlowEvent { r#type: kind.into(), flow: Some(flow) })
    };
    let packet = PacketEvent {
        src_ip: "10.0.0.1".to_owned(),
        dst_ip: "10.0.0.2".to_owned(),
        src_port: 40000,
        dst_port: 443,
        protocol: "tcp".to_owned(),
        direction: "egress".to_owned(),
        packets: 1,
        bytes: 60,
        interface: "eth0".to_owned(),
        ifindex: 2,
        tcp_flags: owned(&["syn", "ack"]),
        icmp: None,
        sample_weight: 1,
    };
    let sampled = PacketEvent { tcp_flags: owned(&["ack"]), sample_weight: 8, ..packet.clone() };
    vec![
        event(
            now_ns,
            flow(flow_event::Type::Start, |flow| {
                flow.packets = 1;
                flow.bytes = 60;
                flow.bytes_per_second = 0.0;
                flow.packets_per_second = 0.0;
            }),
        ),
        event(
            now_ns + SECOND / 4,
            event::Payload::Notice(notice("warning", "displaced", "no longer first on eth0")),
        ),
        event(now_ns + SECOND / 2, event::Payload::Packet(packet)),
        event(now_ns + SECOND / 2, event::Payload::Packet(sampled)),
        event(now_ns + SECOND, flow(flow_event::Type::Update, |_| {})),
        event(
            now_ns + 2 * SECOND,
            flow(flow_event::Type::End, |flow| {
                flow.state = "ended".to_owned();
                flow.end_reason = "fin".to_owned();
            }),
        ),
    ]
}
