//! Folds the records of a conversation into one: both directions, both ends, all nodes that saw it.
//!
//! Pure, and free of order: the same records in any order give the same conversations. No byte is
//! counted twice: each direction is taken from one observer alone, the sender's own record if there
//! is one, else the receiver's, and what only passed a node last of all. Supplement is told beside
//! the totals, never in them.
//!
//! Records belong together if they name the same two addresses and ports, the backend in place of the
//! Service where the record tells it. Loopback addresses mean something only within one pod, container
//! or host, and two pods that held one address after another are two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orb8_proto::v1::sort::Field;
use orb8_proto::v1::{Endpoint, NetworkFlow, ServiceUse, Sort};

use super::canonical;
use super::filter::has_ports;
use super::sort as order;

/// One conversation, with who asked as `a` where that is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Who began it: as the Service, the TCP handshake or the ping tells, else the higher port.
    pub a: Party,
    /// The other one.
    pub b: Party,
    /// As `NetworkFlow.protocol`.
    pub protocol: String,
    /// True for the later fragments of datagrams, which carry no ports.
    pub fragment: bool,
    /// The Service that `a` asked for.
    pub service: Option<ServiceUse>,
    /// What `a` sent.
    pub a_to_b: Amount,
    /// What `b` sent.
    pub b_to_a: Amount,
    /// Both directions of what the socket plane could not see.
    pub supplement: Amount,
    /// Records that were folded.
    pub records: u64,
    /// The nodes that saw it, sorted.
    pub nodes: Vec<String>,
    /// The first packet in Unix nanoseconds, 0 if not known.
    pub first_seen_ns: i64,
    /// The last packet in Unix nanoseconds, 0 if not known.
    pub last_seen_ns: i64,
    /// True if a record of it is active.
    pub active: bool,
}

/// One of the two.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Party {
    /// Its address, of a Service that of the backend where it is known.
    pub ip: String,
    /// Its port, if the protocol has ports.
    pub port: Option<u32>,
    /// Who it is, as whoever knew best has it.
    pub end: Option<Endpoint>,
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    /// Wire packets.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
    /// The latest rate.
    pub bytes_per_second: f64,
    /// The latest rate.
    pub packets_per_second: f64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.bytes_per_second += other.bytes_per_second;
        self.packets_per_second += other.packets_per_second;
    }

    fn and(mut self, other: Self) -> Self {
        self.add(other);
        self
    }
}

/// Folds records, in the order of their addresses.
#[must_use]
pub fn fold(flows: &[NetworkFlow]) -> Vec<Conversation> {
    let mut groups: BTreeMap<Key<'_>, Vec<Sighting<'_>>> = BTreeMap::new();
    let mut flows: Vec<&NetworkFlow> = flows.iter().collect();
    // Sums of rates depend on the order of what is added.
    flows.sort_by(|a, b| order::compare(a, b, Sort::default()));
    for flow in flows {
        let (key, sighting) = sighting(flow);
        groups.entry(key).or_default().push(sighting);
    }
    groups.into_values().flat_map(by_identity).map(|sightings| conversation(&sightings)).collect()
}

/// Sorts as asked, both directions together; ties by address, so that the order is total.
pub fn sort(conversations: &mut [Conversation], sort: Sort) {
    conversations.sort_by(|one, other| {
        let [a, b] = [one, other].map(|talk| (talk, talk.a_to_b.and(talk.b_to_a)));
        let ascending = match sort.field() {
            Field::Bytes => a.1.bytes.cmp(&b.1.bytes),
            Field::Packets => a.1.packets.cmp(&b.1.packets),
            Field::BytesPerSecond => a.1.bytes_per_second.total_cmp(&b.1.bytes_per_second),
            Field::PacketsPerSecond => a.1.packets_per_second.total_cmp(&b.1.packets_per_second),
            Field::FirstSeen => a.0.first_seen_ns.cmp(&b.0.first_seen_ns),
            Field::LastSeen => a.0.last_seen_ns.cmp(&b.0.last_seen_ns),
            Field::Duration => a.0.duration_ns().cmp(&b.0.duration_ns()),
        };
        let wanted = if sort.ascending { ascending } else { ascending.reverse() };
        wanted.then_with(|| one.address().cmp(&other.address()))
    });
}

impl Conversation {
    /// Nanoseconds from the first to the last packet.
    #[must_use]
    pub fn duration_ns(&self) -> i64 {
        self.last_seen_ns.saturating_sub(self.first_seen_ns)
    }

    fn address(&self) -> (&str, Option<u32>, &str, Option<u32>, &str, bool, &[String]) {
        let Self { a, b, protocol, fragment, nodes, .. } = self;
        (&a.ip, a.port, &b.ip, b.port, protocol, *fragment, nodes)
    }
}

/// Where an end is: address and port, 0 without one.
type Place<'a> = (&'a str, u32);

/// The lower place, the higher place, protocol, fragment, and the bounds of loopback addresses.
type Key<'a> = (Place<'a>, Place<'a>, &'a str, bool, Within<'a>);

/// Within what an address means something: node and owner; nothing for addresses that all share.
type Within<'a> = Option<[&'a str; 4]>;

/// A record, from the lower place to the higher one or back.
struct Sighting<'a> {
    flow: &'a NetworkFlow,
    /// Which of `ends` sent it.
    sender: usize,
    /// At the lower and at the higher place.
    ends: [(Place<'a>, Option<&'a Endpoint>); 2],
    /// Which of `ends` is the Service, if the record tells.
    service: Option<usize>,
}

fn sighting(flow: &NetworkFlow) -> (Key<'_>, Sighting<'_>) {
    let ports = has_ports(flow);
    let place = |ip, port| (ip, if ports { port } else { 0 });
    let mut ends = [
        (place(flow.src_ip.as_str(), flow.src_port), flow.source.as_ref()),
        (place(flow.dst_ip.as_str(), flow.dst_port), flow.destination.as_ref()),
    ];
    let mut served = None;
    if let Some(service) = &flow.service {
        let asked = place(service.ip.as_str(), service.port);
        let answered = place(service.backend_ip.as_str(), service.backend_port);
        // The one that asked may be a backend of the same Service, so its own place decides first.
        served = [asked, answered]
            .into_iter()
            .filter(|place| !place.0.is_empty())
            .find_map(|place| ends.iter().rposition(|(at, _)| *at == place));
        if let Some(at) = served.filter(|at| ends[*at].0 == asked && !answered.0.is_empty()) {
            ends[at] = (answered, service.backend.as_ref());
        }
    }
    let swapped = ends[1].0 < ends[0].0;
    if swapped {
        ends.swap(0, 1);
    }
    let turned = |index: usize| if swapped { 1 - index } else { index };
    let key = (ends[0].0, ends[1].0, flow.protocol.as_str(), flow.fragment, within(flow));
    (key, Sighting { flow, sender: turned(0), ends, service: served.map(turned) })
}

fn within(flow: &NetworkFlow) -> Within<'_> {
    let loops = |ip: &str| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !loops(&flow.src_ip) && !loops(&flow.dst_ip) {
        return None;
    }
    let owner = if flow.direction == "egress" { &flow.source } else { &flow.destination };
    let owner = owner.as_ref();
    // Containers of a pod share its loopback; others have one of their own.
    let container = match owner.map(|end| end.pod_uid.as_str()) {
        Some("") | None => owner.map_or("", |end| &end.container_id),
        Some(uid) => uid,
    };
    Some([&flow.node_name, &flow.namespace, &flow.pod_name, container])
}

/// Takes records apart whose places were held by several pods.
fn by_identity(sightings: Vec<Sighting<'_>>) -> Vec<Vec<Sighting<'_>>> {
    let uids = [0, 1].map(|at| uids(&sightings, at));
    let mut parts: BTreeMap<[String; 2], Vec<Sighting<'_>>> = BTreeMap::new();
    for sighting in sightings {
        let holder = [0, 1].map(|at| match uids[at].holders.len() {
            0 | 1 => String::new(),
            _ => uids[at].holder(sighting.ends[at].1),
        });
        parts.entry(holder).or_default().push(sighting);
    }
    parts.into_values().collect()
}

/// The pods that are named at one place.
#[derive(Default)]
struct Uids {
    by_name: BTreeMap<(String, String), BTreeSet<String>>,
    holders: BTreeSet<String>,
}

impl Uids {
    /// The uid; where a record has none, that of the one pod of its name, else the name. Empty if the
    /// end is no pod that is known.
    fn holder(&self, end: Option<&Endpoint>) -> String {
        let Some(end) = end.filter(|end| end.kind == "pod") else { return String::new() };
        if !end.pod_uid.is_empty() {
            return end.pod_uid.clone();
        }
        let name = (end.namespace.clone(), end.pod.clone());
        match self.by_name.get(&name).map(|uids| (uids.len(), uids.first())) {
            Some((1, Some(uid))) => uid.clone(),
            _ if end.pod.is_empty() => String::new(),
            _ => format!("{}/{}", name.0, name.1),
        }
    }
}

fn uids(sightings: &[Sighting<'_>], at: usize) -> Uids {
    let ends = || sightings.iter().filter_map(|sighting| sighting.ends[at].1);
    let mut uids = Uids::default();
    for end in ends().filter(|end| end.kind == "pod" && !end.pod_uid.is_empty()) {
        let name = (end.namespace.clone(), end.pod.clone());
        uids.by_name.entry(name).or_default().insert(end.pod_uid.clone());
    }
    uids.holders = ends().map(|end| uids.holder(Some(end))).filter(|uid| !uid.is_empty()).collect();
    uids
}

fn conversation(sightings: &[Sighting<'_>]) -> Conversation {
    let a = usize::from(asked_by(sightings) == 1);
    let b = 1 - a;
    let flows = || sightings.iter().map(|sighting| sighting.flow);
    let sent = |sender: usize, supplement: bool| {
        sightings
            .iter()
            .filter(move |sighting| {
                sighting.sender == sender && sighting.flow.supplement == supplement
            })
            .map(|sighting| sighting.flow)
    };
    let known = |times: &mut dyn Iterator<Item = i64>| times.filter(|time| *time != 0).min();
    let nodes: BTreeSet<&String> =
        flows().map(|flow| &flow.node_name).filter(|name| !name.is_empty()).collect();
    let (protocol, fragment) = flows()
        .next()
        .map_or((String::new(), false), |flow| (flow.protocol.clone(), flow.fragment));
    Conversation {
        a: party(sightings, a),
        b: party(sightings, b),
        protocol,
        fragment,
        service: service(sightings),
        a_to_b: amount(sent(a, false)),
        b_to_a: amount(sent(b, false)),
        supplement: amount(sent(a, true)).and(amount(sent(b, true))),
        records: u64::try_from(sightings.len()).unwrap_or(u64::MAX),
        nodes: nodes.into_iter().cloned().collect(),
        first_seen_ns: known(&mut flows().map(|flow| flow.first_seen_ns)).unwrap_or(0),
        last_seen_ns: flows().map(|flow| flow.last_seen_ns).max().unwrap_or(0),
        active: flows().any(|flow| flow.state == "active"),
    }
}

fn party(sightings: &[Sighting<'_>], at: usize) -> Party {
    let (ip, port) = sightings.first().map_or(("", 0), |sighting| sighting.ends[at].0);
    let has_port = sightings.first().is_some_and(|sighting| has_ports(sighting.flow));
    let ends = sightings.iter().filter_map(|sighting| sighting.ends[at].1);
    let best = ends.min_by_key(|end| (doubt(end), canonical::endpoint(end)));
    Party { ip: ip.to_owned(), port: has_port.then_some(port), end: best.cloned() }
}

/// How sure it is who an end is; less is better.
fn doubt(end: &Endpoint) -> (bool, bool, usize) {
    let known = ["cgroup", "interface", "address", "address_reused", "masqueraded"];
    let place = known.iter().position(|word| *word == end.attribution).unwrap_or(known.len());
    // By an agent that did not hear the API then, while another may have.
    let is_old = end.reason == "api_not_synced";
    (matches!(end.kind.as_str(), "unknown" | ""), is_old, place)
}

/// The Service as whoever knew most of it tells.
fn service(sightings: &[Sighting<'_>]) -> Option<ServiceUse> {
    let told = sightings.iter().filter_map(|sighting| sighting.flow.service.as_ref());
    told.min_by_key(|service| {
        (service.backend_ip.is_empty(), service.backend.is_none(), canonical::service(service))
    })
    .cloned()
}

/// At which place it began.
fn asked_by(sightings: &[Sighting<'_>]) -> usize {
    let tells: [fn(&Sighting<'_>) -> Option<usize>; 2] = [
        |sighting| sighting.service.map(|at| 1 - at),
        |sighting| match opens(sighting.flow) {
            Some(true) => Some(sighting.sender),
            Some(false) => Some(1 - sighting.sender),
            None => None,
        },
    ];
    for tell in tells {
        let told: BTreeSet<usize> = sightings.iter().filter_map(tell).collect();
        // Who contradict each other tell nothing.
        if let (1, Some(at)) = (told.len(), told.first()) {
            return *at;
        }
    }
    let ports =
        sightings.first().map_or([0, 0], |sighting| sighting.ends.map(|((_, port), _)| port));
    usize::from(ports[0] < ports[1])
}

/// True if the record is of who began, false of who answered.
fn opens(flow: &NetworkFlow) -> Option<bool> {
    let flagged =
        |word: &str| flow.tcp.as_ref().is_some_and(|tcp| tcp.flags.iter().any(|flag| flag == word));
    match (flagged("syn"), flagged("syn_ack")) {
        (true, false) => return Some(true),
        (false, true) => return Some(false),
        _ => {}
    }
    // Echo requests and replies of ICMP and ICMPv6.
    match flow.icmp.as_ref().map(|icmp| icmp.r#type) {
        Some(8 | 128) => Some(true),
        Some(0 | 129) => Some(false),
        _ => None,
    }
}

/// Whose word counts first: what is somebody's own before what passes a node, the sender's before
/// the receiver's, and its sockets' before its interface's.
fn rank(flow: &NetworkFlow) -> (bool, bool, bool) {
    let passing = matches!(flow.scope.as_str(), "forwarded" | "tunnel");
    (passing, flow.direction != "egress", flow.plane != "socket")
}

/// Who counted: a node's sockets all together, or one of its interfaces.
fn observer(flow: &NetworkFlow) -> (&str, u32) {
    (&flow.node_name, if flow.plane == "socket" { 0 } else { flow.ifindex })
}

/// What went one way, by the word of the first in rank that counted anything. Several of one rank saw
/// the same packets: the one that saw most counts.
fn amount<'a>(flows: impl Iterator<Item = &'a NetworkFlow>) -> Amount {
    let mut ranks: BTreeMap<_, BTreeMap<(&str, u32), Amount>> = BTreeMap::new();
    for flow in flows {
        ranks.entry(rank(flow)).or_default().entry(observer(flow)).or_default().add(Amount {
            packets: flow.packets,
            bytes: flow.bytes,
            bytes_per_second: flow.bytes_per_second,
            packets_per_second: flow.packets_per_second,
        });
    }
    let most = |observers: BTreeMap<_, Amount>| {
        observers.into_values().max_by_key(|amount| (amount.packets, amount.bytes))
    };
    ranks.into_values().filter_map(most).find(|amount| amount.packets > 0).unwrap_or_default()
}
