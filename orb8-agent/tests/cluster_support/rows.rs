//! Rows of answers as lines of text, and the lines that a scenario expects.

use std::net::IpAddr;

use orb8_proto::v1::{Endpoint, NetworkFlow, ServiceUse};
use orb8_testbed::cluster::plan::Cni;
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::Talk;
use orb8_testbed::flow::{self, Flow, L4, Total};

use super::Capture;

/// The flow of an answered row, in the testbed's own words.
pub fn key(row: &NetworkFlow) -> Flow {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let protocol = match row.protocol.as_str() {
        "tcp" => flow::TCP,
        "udp" => flow::UDP,
        "icmp" => flow::ICMP,
        "icmpv6" => flow::ICMPV6,
        "sctp" => flow::SCTP,
        number => number.parse().expect("a protocol number"),
    };
    let port = |port: u32| u16::try_from(port).expect("a port");
    let byte = |byte: u32| u8::try_from(byte).expect("a byte");
    let l4 = if row.fragment {
        L4::Fragment
    } else if let Some(icmp) = &row.icmp {
        L4::Icmp { kind: byte(icmp.r#type), code: byte(icmp.code) }
    } else {
        L4::Ports { src: port(row.src_port), dst: port(row.dst_port) }
    };
    Flow { src: address(&row.src_ip), dst: address(&row.dst_ip), protocol, l4 }
}

/// Whether a row belongs to a pod or the node, not to somebody's traffic that passes through.
pub fn is_owned(row: &NetworkFlow) -> bool {
    !matches!(row.scope.as_str(), "forwarded" | "tunnel")
}

/// The owner's end and the other one.
pub fn ends(row: &NetworkFlow) -> (Endpoint, Endpoint) {
    let source = row.source.clone().unwrap_or_default();
    let destination = row.destination.clone().unwrap_or_default();
    if row.direction == "egress" { (source, destination) } else { (destination, source) }
}

/// An end as a person would name it.
pub fn who(end: &Endpoint) -> String {
    let name = match end.kind.as_str() {
        "pod" if end.pod.is_empty() => format!("uid {}", end.pod_uid),
        "pod" if end.container.is_empty() => format!("{}/{}", end.namespace, end.pod),
        "pod" => format!("{}/{}:{}", end.namespace, end.pod, end.container),
        "node" => end.node.clone(),
        "service" => format!("{}/{}", end.namespace, end.service),
        "process" if end.unit.is_empty() => end.cgroup.clone(),
        "process" => end.unit.clone(),
        _ => end.reason.clone(),
    };
    let known = !matches!(end.kind.as_str(), "external" | "unknown");
    // The best there is, though not all is known: the reason says what is missing.
    let doubt =
        if known && !end.reason.is_empty() { format!("({})", end.reason) } else { String::new() };
    let words = [end.kind.as_str(), &name, &end.attribution, &doubt];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The owner of a row as a person would name it. A bridge does not tell the node which address is
/// behind which port, so there it is a matter of what the node happens to know whether the link or
/// the address tells the owner at an interface; a route leaves no choice.
pub fn owner(row: &NetworkFlow, cni: Cni) -> String {
    let mut owner = ends(row).0;
    if cni == Cni::Bridge && at_link(&row.plane, &owner.kind) && owner.attribution == "interface" {
        owner.attribution = "address".to_owned();
    }
    who(&owner)
}

fn at_link(plane: &str, kind: &str) -> bool {
    plane == "tc" && kind == "pod"
}

/// A Service as a person would name it.
fn asked(service: Option<&ServiceUse>) -> String {
    service.map_or_else(String::new, |service| {
        let backend = if service.backend_ip.is_empty() {
            String::new()
        } else {
            format!(" at {}:{}", service.backend_ip, service.backend_port)
        };
        format!(
            " for {} {}/{} {}:{} {}{backend}",
            service.kind,
            service.namespace,
            service.name,
            service.ip,
            service.port,
            service.verdict
        )
    })
}

/// A row as one line.
pub fn line(row: &NetworkFlow, cni: Cni) -> String {
    let (owner, peer) = ends(row);
    if owner.kind == "pod" {
        assert_eq!((&row.namespace, &row.pod_name), (&owner.namespace, &owner.pod), "{row:?}");
    }
    let total = Total { packets: row.packets, bytes: row.bytes };
    let supplement = if row.supplement { " supplement" } else { "" };
    let (plane, way) = (&row.plane, &row.direction);
    let (flow, service) = (key(row), asked(row.service.as_ref()));
    let owner = self::owner(row, cni);
    format!("{plane}{supplement} {way} {flow} {total} | {owner} | {}{service}", who(&peer))
}

/// A row that is expected.
#[derive(Clone, Debug)]
pub struct Row {
    pub node: u8,
    pub plane: &'static str,
    pub supplement: bool,
    pub egress: bool,
    pub flow: Flow,
    pub total: Total,
    pub owner: String,
    pub peer: String,
    pub service: String,
}

impl Row {
    /// Its owner on nodes that join their pods like this.
    pub fn owner(&self, cni: Cni) -> String {
        let kind = self.owner.split(' ').next().unwrap_or_default();
        match self.owner.strip_suffix(" address") {
            Some(pod) if cni == Cni::Routed && at_link(self.plane, kind) => {
                format!("{pod} interface")
            }
            _ => self.owner.clone(),
        }
    }

    pub fn line(&self, cni: Cni) -> String {
        let Self { plane, flow, total, peer, service, .. } = self;
        let owner = self.owner(cni);
        let supplement = if self.supplement { " supplement" } else { "" };
        let way = if self.egress { "egress" } else { "ingress" };
        let service = if service.is_empty() { String::new() } else { format!(" for {service}") };
        format!("{plane}{supplement} {way} {flow} {total} | {owner} | {peer}{service}")
    }
}

/// One end of a talk, as its own node's agent is to tell it.
#[derive(Clone, Debug)]
pub struct End {
    node: u8,
    /// The owner where it sends, and where it receives.
    owner: [String; 2],
    /// What it is to say of the other end.
    peer: String,
    service: String,
}

impl End {
    /// A pod's first container.
    pub fn pod(pod: &Pod, capture: Capture, peer: &str) -> Self {
        let (namespace, name) = pod.key();
        let container = &pod.object.containers[0].name;
        let exact = format!("pod {namespace}/{name}:{container} cgroup");
        let received = match capture {
            Capture::Auto | Capture::Socket => exact.clone(),
            // A packet that arrives does not tell which container takes it.
            Capture::Tc => format!("pod {namespace}/{name} address"),
        };
        Self::named(pod.node, &exact, &received, peer)
    }

    /// Any owner, named where it sends and where it receives.
    pub fn named(node: u8, sends: &str, receives: &str, peer: &str) -> Self {
        let owner = [sends.to_owned(), receives.to_owned()];
        Self { node, owner, peer: peer.to_owned(), service: String::new() }
    }

    /// The Service that its records name.
    pub fn service(mut self, service: &str) -> Self {
        service.clone_into(&mut self.service);
        self
    }

    fn row(&self, plane: &'static str, egress: bool, flow: Flow, total: Total) -> Row {
        let owner = self.owner[usize::from(!egress)].clone();
        Row {
            node: self.node,
            plane,
            supplement: false,
            egress,
            flow,
            total,
            owner,
            peer: self.peer.clone(),
            service: self.service.clone(),
        }
    }
}

/// The rows of a talk: both directions at the client, and at the server if that is watched.
pub fn said(capture: Capture, talk: &Talk, client: &End, server: Option<&End>) -> Vec<Row> {
    let plane = capture.plane();
    let mut rows = vec![
        client.row(plane, true, talk.client, talk.there),
        client.row(plane, false, talk.client.reply(), talk.back),
    ];
    if let Some(server) = server {
        rows.push(server.row(plane, false, talk.server, talk.there));
        rows.push(server.row(plane, true, talk.server.reply(), talk.back));
    }
    rows
}

/// Only the server's rows: the client is nobody that an agent watches.
pub fn heard(capture: Capture, talk: &Talk, server: &End) -> Vec<Row> {
    let plane = capture.plane();
    vec![
        server.row(plane, false, talk.server, talk.there),
        server.row(plane, true, talk.server.reply(), talk.back),
    ]
}

/// `pod shop/a address`
pub fn by_address(pod: &Pod) -> String {
    let (namespace, name) = pod.key();
    format!("pod {namespace}/{name} address")
}
