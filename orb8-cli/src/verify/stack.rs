//! The socket plane against the protocol counters of network namespaces: the host's and the pods'.
//!
//! The kernel counts in each namespace what IP takes and what it sends. The socket plane counts what
//! sockets take and send. What the kernel takes without a socket (its own ICMP, refused ports) makes
//! the bounds wider; with programs at interfaces beside it, most of that is counted there.

use std::collections::{BTreeMap, BTreeSet};

use orb8_proto::v1::{Count, Total};

use super::counters::{Between, Bounds};
use super::judge::{
    LEAST_HEADERS, MOST_BYTES, MOST_HEADERS, Pair, Row, Verdict, count, or_more, row, sum,
};
use super::kernel::Home;
use super::window::{self, Grown, SET_BACK, Window};

/// Received segments by what they say of congestion: all of them together.
const SEGMENTS_IN: [&str; 8] = [
    "IpExt.InNoECTPkts",
    "IpExt.InECT1Pkts",
    "IpExt.InECT0Pkts",
    "IpExt.InCEPkts",
    "Ip6InNoECTPkts",
    "Ip6InECT1Pkts",
    "Ip6InECT0Pkts",
    "Ip6InCEPkts",
];
/// Taken without a socket, or not at all.
const WITHOUT_SOCKET_IN: [&str; 17] = [
    "Icmp.InMsgs",
    "Icmp6InMsgs",
    "Udp.NoPorts",
    "Udp6NoPorts",
    "Udp.InCsumErrors",
    "Udp6InCsumErrors",
    "Tcp.OutRsts",
    "Tcp.InErrs",
    "Ip.InHdrErrors",
    "Ip6InHdrErrors",
    "Ip.InAddrErrors",
    "Ip6InAddrErrors",
    "Ip.InUnknownProtos",
    "Ip.InDiscards",
    "Ip6InDiscards",
    "IpExt.InMcastPkts",
    "IpExt.InBcastPkts",
];
/// Sent by the kernel itself, or not after all.
const WITHOUT_SOCKET_OUT: [&str; 7] = [
    "Icmp.OutMsgs",
    "Icmp6OutMsgs",
    "Tcp.OutRsts",
    "Ip.OutDiscards",
    "Ip6OutDiscards",
    "Ip.OutNoRoutes",
    "Ip6OutNoRoutes",
];
const FORWARDED: [&str; 2] = ["Ip.ForwDatagrams", "Ip6OutForwDatagrams"];
const OPENS: [&str; 2] = ["Tcp.ActiveOpens", "Tcp.PassiveOpens"];
/// Packets of a TCP connection in each direction after its socket is gone and the kernel waits alone
/// (TIME_WAIT): the peer's FIN, the last ACK, and one of them again. They are headers and no more.
const CLOSING: u64 = 2;

/// What the kernel counted of one direction.
struct Kernel {
    bounds: Bounds,
    /// What may have had no socket that took or sent it, and more that sockets do not see.
    alone: Count,
    /// It may have counted super-packets as one packet, and does not tell their segments.
    merged: bool,
    segments: u64,
    without_socket: u64,
}

/// What may be a namespace's and is not known to be.
struct Maybe {
    /// Counted where nobody is known, or where it is not known.
    nobodys: Count,
    /// Counted without a socket in a namespace that forwards.
    passing: Count,
    /// Lost on the way to the totals.
    lost: Count,
}

impl Maybe {
    fn all(&self) -> Count {
        let Self { nobodys, passing, lost } = self;
        Count {
            packets: nobodys.packets + passing.packets + lost.packets,
            bytes: nobodys.bytes + passing.bytes + lost.bytes,
        }
    }
}

/// A namespace in which something was counted.
#[derive(Default)]
struct Members<'a> {
    pods: BTreeSet<String>,
    cgroups: BTreeSet<&'a str>,
    counted: Vec<&'a Grown>,
}

/// The rows of all namespaces that are known.
pub(super) fn rows(window: &Window, grown: &[Grown], tolerance: f64) -> Vec<Row> {
    let mut found: BTreeMap<u64, Members<'_>> = BTreeMap::new();
    found.entry(window.own).or_default();
    let mut unknown: Vec<&Grown> = Vec::new();
    let at_sockets = |grown: &&Grown| grown.at.plane == "socket";
    // What is left out because the pod's own link shows it is the supplement's.
    let is_ours = |grown: &&Grown| grown.at.filtered != "root_cgroup";
    for grown in grown.iter().filter(at_sockets).filter(is_ours) {
        match window.homes.get(&grown.at.cgroup_id) {
            Some(Home::In(namespace)) => {
                let members = found.entry(*namespace).or_default();
                if !grown.at.pod.is_empty() {
                    members.pods.insert(format!("{}/{}", grown.at.namespace, grown.at.pod));
                }
                members.cgroups.insert(&grown.at.cgroup);
                members.counted.push(grown);
            }
            Some(Home::Several | Home::Unknown) | None => unknown.push(grown),
        }
    }
    for grown in grown.iter().filter(|grown| grown.at.supplement) {
        match behind(window, &grown.at) {
            Some(namespace) => found.entry(namespace).or_default().counted.push(grown),
            None => unknown.push(grown),
        }
    }
    let mut rows = Vec::new();
    for (namespace, members) in &found {
        rows.extend(namespace_rows(window, *namespace, members, &unknown, tolerance));
    }
    rows.extend(homeless(window, &unknown));
    rows
}

/// The namespace whose packets pass an interface; none if its link's addresses are nobody's.
fn behind(window: &Window, total: &Total) -> Option<u64> {
    if !total.pod_link {
        return Some(window.own);
    }
    let addresses = || total.link_addresses.iter().filter_map(|text| text.parse().ok());
    let has = |held: &BTreeSet<_>| addresses().any(|address| held.contains(&address));
    window.addresses.iter().find(|(_, held)| has(held)).map(|(namespace, _)| *namespace)
}

fn names(window: &Window, namespace: u64, members: &Members<'_>) -> (&'static str, String) {
    if namespace == window.own {
        return ("host", "host".to_owned());
    }
    let pods: Vec<&str> = members.pods.iter().map(String::as_str).collect();
    if !pods.is_empty() {
        return ("pod", pods.join(","));
    }
    let shortest = members.cgroups.iter().min_by_key(|path| path.len());
    match shortest {
        Some(path) if !path.is_empty() => ("cgroup", (*path).to_owned()),
        Some(_) | None => ("cgroup", format!("network namespace {namespace}")),
    }
}

fn namespace_rows(
    window: &Window,
    namespace: u64,
    members: &Members<'_>,
    unknown: &[&Grown],
    tolerance: f64,
) -> Vec<Row> {
    let (kind, scope) = names(window, namespace, members);
    let without = |verdict, reason: String| vec![Row::without(kind, &scope, verdict, reason)];
    if kind == "host" && window.outside {
        let reason = "processes of the host have sockets outside the cgroups that are watched";
        return without(Verdict::NotCompared, reason.to_owned());
    }
    if !window.is_read(namespace) {
        let reason = "its network namespace was not seen at both ends of the window";
        return without(Verdict::Unknown, reason.to_owned());
    }
    let set_back = || without(Verdict::Unknown, SET_BACK.to_owned());
    let Some(forwarded) = total(window, namespace, &FORWARDED) else { return set_back() };
    let forwards = forwarded.high > 0;
    let side = |side: &Side| {
        let kernel = (side.kernel)(window, namespace)?;
        let (counted, maybe) = ours(window, members, unknown, side, forwards);
        let pair = Pair {
            kind,
            scope: &scope,
            direction: side.direction,
            protocol: side.protocol,
            kernel_counter: side.counter.to_owned(),
            ours: or_more(counted, maybe.all()),
            kernel: kernel.bounds,
            alone: kernel.alone,
            faulty: 0,
            merged: kernel.merged,
            segments: kernel.segments,
            reason: explain(kernel.without_socket, &maybe),
        };
        Some(row(pair, tolerance))
    };
    let (mut rows, of_ip) = if forwards {
        let reason = format!(
            "it forwarded {} packets, which the kernel counts among those it took and sent",
            forwarded.high
        );
        (without(Verdict::NotCompared, reason), &[][..])
    } else {
        (Vec::new(), &IP[..])
    };
    let Some(compared) = of_ip.iter().chain(&TCP).map(side).collect::<Option<Vec<Row>>>() else {
        return set_back();
    };
    rows.extend(compared);
    rows
}

/// What was counted for a namespace, and what may be its own too.
fn ours(
    window: &Window,
    members: &Members<'_>,
    unknown: &[&Grown],
    side: &Side,
    forwards: bool,
) -> (Bounds, Maybe) {
    let is_meant = |grown: &&&Grown| {
        let protocol = side.protocol.is_none_or(|protocol| grown.at.protocol == protocol);
        side.direction == grown.at.direction && protocol
    };
    let here = members.counted.iter().filter(is_meant).copied();
    // What no socket took or sent there may have passed it.
    let (passing, counted): (Vec<&Grown>, Vec<&Grown>) =
        here.partition(|grown| forwards && grown.at.supplement);
    let unlisted = window.unlisted();
    let nobodys = count(unknown.iter().filter(is_meant).copied());
    let maybe = Maybe {
        nobodys: Count {
            packets: nobodys.packets + unlisted.packets,
            bytes: nobodys.bytes + unlisted.bytes,
        },
        passing: count(passing),
        lost: window.ledger(window::untold),
    };
    (sum(counted), maybe)
}

/// One way of comparing a namespace.
struct Side {
    direction: &'static str,
    /// Of all that was counted; none: every protocol.
    protocol: Option<&'static str>,
    counter: &'static str,
    kernel: fn(&Window, u64) -> Option<Kernel>,
}

const IP: [Side; 2] = [
    Side { direction: "ingress", protocol: None, counter: "Ip In", kernel: received },
    Side { direction: "egress", protocol: None, counter: "Ip Out", kernel: sent },
];
/// Segments are counted one by one as they are sent; those that arrive are counted merged.
const TCP: [Side; 1] =
    [Side { direction: "egress", protocol: Some("tcp"), counter: "Tcp OutSegs", kernel: tcp_sent }];

fn explain(without_socket: u64, maybe: &Maybe) -> Option<String> {
    let mut parts = Vec::new();
    if without_socket > 0 {
        parts.push(format!("up to {without_socket} packets of the kernel's may have no socket"));
    }
    let mut some = |count: Count, what: &str| {
        if count.packets > 0 {
            parts.push(format!("{} packets {what}", count.packets));
        }
    };
    some(maybe.nobodys, "were counted in cgroups whose processes are not known");
    some(maybe.passing, "without a socket may have been forwarded");
    some(maybe.lost, "were lost, whose is not told");
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn total(window: &Window, namespace: u64, names: &[&str]) -> Option<Between> {
    names
        .iter()
        .try_fold(Between::default(), |sum, name| Some(sum.plus(window.counter(namespace, name)?)))
}

/// TCP connections that may have been closed within the window.
fn closed(window: &Window, namespace: u64) -> Option<u64> {
    let opened = total(window, namespace, &OPENS)?.high;
    let fallen = window.fallen(namespace, "Tcp.CurrEstab")?;
    Some(opened.saturating_add_signed(fallen))
}

/// Packets and bytes without a socket: of any kind, and the last ones of connections.
fn alone(others: u64, closing: u64) -> Count {
    Count {
        packets: others + closing,
        bytes: others.saturating_mul(MOST_BYTES) + closing.saturating_mul(MOST_HEADERS),
    }
}

fn received(window: &Window, namespace: u64) -> Option<Kernel> {
    let all = |names: &[&str]| total(window, namespace, names);
    let taken = all(&["Ip.InReceives", "Ip6InReceives"])?;
    let counted = all(&SEGMENTS_IN)?;
    // Where the kernel does not tell segments, there is no more to say than packets.
    let merged = counted.high < taken.high;
    let packets = if merged { taken } else { counted };
    let segments = packets.high.saturating_sub(taken.high);
    let mut bytes = all(&["IpExt.InOctets", "Ip6InOctets"])?;
    bytes.low = bytes.low.saturating_add(segments.saturating_mul(LEAST_HEADERS));
    bytes.high = bytes.high.saturating_add(segments.saturating_mul(MOST_HEADERS));
    let (fragments, whole) =
        (all(&["Ip.ReasmReqds", "Ip6ReasmReqds"])?, all(&["Ip.ReasmOKs", "Ip6ReasmOKs"])?);
    let joined = fragments.high.saturating_sub(whole.low);
    let without_socket = all(&WITHOUT_SOCKET_IN)?.high;
    let closing = CLOSING * closed(window, namespace)?;
    Some(Kernel {
        bounds: Bounds { packets, bytes: Some(bytes) },
        alone: alone(without_socket + joined, closing),
        merged,
        segments,
        without_socket: without_socket + closing,
    })
}

fn sent(window: &Window, namespace: u64) -> Option<Kernel> {
    let all = |names: &[&str]| total(window, namespace, names);
    let packets = all(&["Ip.OutRequests", "Ip6OutRequests"])?;
    let bytes = all(&["IpExt.OutOctets", "Ip6OutOctets"])?;
    let without_socket = all(&WITHOUT_SOCKET_OUT)?.high;
    let closing = CLOSING * closed(window, namespace)?;
    Some(Kernel {
        bounds: Bounds { packets, bytes: Some(bytes) },
        alone: alone(without_socket, closing),
        merged: true,
        segments: 0,
        without_socket: without_socket + closing,
    })
}

fn tcp_sent(window: &Window, namespace: u64) -> Option<Kernel> {
    let all = |names: &[&str]| total(window, namespace, names);
    // Resets may be the kernel's own. A segment that is sent again is in the one counter or in both.
    let resets = all(&["Tcp.OutRsts"])?.high;
    let packets = all(&["Tcp.OutSegs"])?.or_more(all(&["Tcp.RetransSegs"])?.high);
    let closing = CLOSING * closed(window, namespace)?;
    Some(Kernel {
        bounds: Bounds { packets, bytes: None },
        alone: alone(resets, closing),
        merged: false,
        segments: 0,
        without_socket: resets + closing,
    })
}

/// cgroups that counted and belong to no namespace, so that they are in nobody's row.
fn homeless(window: &Window, unknown: &[&Grown]) -> Vec<Row> {
    let mut found: BTreeMap<u64, &Grown> = BTreeMap::new();
    for grown in unknown.iter().filter(|grown| grown.at.plane == "socket") {
        found.entry(grown.at.cgroup_id).or_insert(grown);
    }
    let row = |(id, grown): (u64, &Grown)| {
        let reason = match window.homes.get(&id) {
            Some(Home::Several) => "its processes are in several network namespaces",
            Some(Home::In(_) | Home::Unknown) | None => {
                "no process of it is seen here any more, so its network namespace is not known"
            }
        };
        let path = &grown.at.cgroup;
        let scope = if path.is_empty() { format!("cgroup {id}") } else { path.clone() };
        Row::without("cgroup", &scope, Verdict::Unknown, reason.to_owned())
    };
    found.into_iter().map(row).collect()
}
