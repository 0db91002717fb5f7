//! The columns that flows have: their paths, their headings, and which of them stand in which format.

use crate::output::table::Heading;

/// The paths of all single values of a flow, in the order of csv.
pub const LEAVES: [&str; 98] = [
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
    "source.service",
    "source.container",
    "source.workload",
    "source.workload_kind",
    "source.node",
    "source.zone",
    "source.attribution",
    "source.reason",
    "source.process.pid",
    "source.process.comm",
    "source.unit",
    "source.cgroup_id",
    "source.cgroup",
    "source.container_id",
    "source.runtime",
    "source.pod_uid",
    "source.labels",
    "destination.kind",
    "destination.namespace",
    "destination.pod",
    "destination.service",
    "destination.container",
    "destination.workload",
    "destination.workload_kind",
    "destination.node",
    "destination.zone",
    "destination.attribution",
    "destination.reason",
    "destination.process.pid",
    "destination.process.comm",
    "destination.unit",
    "destination.cgroup_id",
    "destination.cgroup",
    "destination.container_id",
    "destination.runtime",
    "destination.pod_uid",
    "destination.labels",
    "socket_cookie",
    "supplement",
    "service.namespace",
    "service.name",
    "service.ip",
    "service.port",
    "service.port_name",
    "service.kind",
    "service.verdict",
    "service.backend_ip",
    "service.backend_port",
    "service.backend.kind",
    "service.backend.namespace",
    "service.backend.pod",
    "service.backend.service",
    "service.backend.container",
    "service.backend.workload",
    "service.backend.workload_kind",
    "service.backend.node",
    "service.backend.zone",
    "service.backend.attribution",
    "service.backend.reason",
    "service.backend.process.pid",
    "service.backend.process.comm",
    "service.backend.unit",
    "service.backend.cgroup_id",
    "service.backend.cgroup",
    "service.backend.container_id",
    "service.backend.runtime",
    "service.backend.pod_uid",
    "service.backend.labels",
];

/// Columns that exist in tables only.
pub const COMPOSED: [&str; 19] = [
    "src",
    "dst",
    "src_addr",
    "dst_addr",
    "proto",
    "rate",
    "packet_rate",
    "age",
    "last",
    "duration",
    "attribution",
    "workload",
    "node",
    "zone",
    "container",
    "service",
    "backend",
    "process",
    "cgroup",
];

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
pub const WIDE: [&str; 20] = [
    "src_addr",
    "dst_addr",
    "attribution",
    "workload",
    "node",
    "zone",
    "container",
    "service",
    "backend",
    "service.verdict",
    "plane",
    "scope",
    "packet_rate",
    "duration",
    "first_seen_ns",
    "last_seen_ns",
    "tcp.state",
    "tcp.flags",
    "process",
    "cgroup",
];

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
            "src_addr" => "SOURCE_ADDR",
            "dst_addr" => "DESTINATION_ADDR",
            "node_name" => "NODE",
            "node" => "NODES",
            "service.verdict" => "VERDICT",
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

/// Most rows fit these, so that the columns of a stream seldom move.
#[must_use]
pub fn usual_width(column: &str) -> usize {
    match column {
        "time" => 12,
        "event" => 6,
        "src" | "dst" => 24,
        "src_addr" | "dst_addr" => 21,
        "attribution" => 18,
        "workload" | "service" | "backend" => 20,
        "node" => 13,
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
