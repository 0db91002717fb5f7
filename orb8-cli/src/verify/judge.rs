//! Compares: what both sides say of one scope, whether they can be equal, and why not.
//!
//! Pure arithmetic over bounds. A difference is what neither the time between readings nor what one
//! side is known not to see can explain; nothing else is called one.

use orb8_proto::v1::{Count, Interface, Total};
use serde::Serialize;

use super::counters::{Between, Bounds};
use super::stack;
use super::window::{self, Grown, Window};

/// Bytes of an Ethernet header.
const ETHERNET: u64 = 14;
/// Bytes of the headers that a segment of a super-packet repeats: IPv4 and UDP.
pub(super) const LEAST_HEADERS: u64 = 28;
/// IP and TCP with all options that are common.
pub(super) const MOST_HEADERS: u64 = 120;
/// Bytes of the largest packet.
pub(super) const MOST_BYTES: u64 = 65_536;
/// Bytes of a packet as links carry it. What one side alone has is taken for no larger where headers are
/// looked for: one that may have 64 KiB would pass for the headers of hundreds of segments.
const ORDINARY_BYTES: u64 = 1500;

/// Whether two counts agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Within the tolerance.
    Ok,
    /// Not within it.
    Differs,
    /// They count different things, by what they are; `reason` says which.
    NotCompared,
    /// They should be comparable and were not; `reason` says why.
    Unknown,
}

/// One comparison. Names are those of the JSON output.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "docs/features/verify.md names each")]
pub struct Row {
    /// interface, interfaces, host, pod or cgroup.
    pub kind: &'static str,
    /// Which one.
    pub scope: String,
    /// As orb8 says it: at a pod's link the pod's.
    pub direction: &'static str,
    /// Of this protocol alone; none: of all.
    pub protocol: Option<&'static str>,
    /// What the kernel's figures are.
    pub kernel_counter: String,
    pub orb8_packets: Option<u64>,
    pub kernel_packets: Option<u64>,
    /// What is not known of the difference, to both sides.
    pub uncertain_packets: Option<u64>,
    pub difference_packets: Option<i64>,
    pub orb8_bytes: Option<u64>,
    pub kernel_bytes: Option<u64>,
    pub uncertain_bytes: Option<u64>,
    pub difference_bytes: Option<i64>,
    /// The greater one of packets and bytes.
    pub difference_percent: Option<f64>,
    /// Segments that the kernel counted as parts of super-packets.
    pub super_packet_segments: u64,
    pub verdict: Verdict,
    pub reason: Option<String>,
}

impl Row {
    pub(super) fn without(
        kind: &'static str,
        scope: &str,
        verdict: Verdict,
        reason: String,
    ) -> Self {
        Self {
            kind,
            scope: scope.to_owned(),
            direction: "both",
            protocol: None,
            kernel_counter: String::new(),
            orb8_packets: None,
            kernel_packets: None,
            uncertain_packets: None,
            difference_packets: None,
            orb8_bytes: None,
            kernel_bytes: None,
            uncertain_bytes: None,
            difference_bytes: None,
            difference_percent: None,
            super_packet_segments: 0,
            verdict,
            reason: Some(reason),
        }
    }
}

/// What is compared with what.
pub(super) struct Pair<'a> {
    pub(super) kind: &'static str,
    pub(super) scope: &'a str,
    pub(super) direction: &'static str,
    pub(super) protocol: Option<&'static str>,
    pub(super) kernel_counter: String,
    pub(super) ours: Bounds,
    pub(super) kernel: Bounds,
    /// What may be on the kernel's side alone, by what it is.
    pub(super) alone: Count,
    /// Packets that the kernel may have counted or not.
    pub(super) faulty: u64,
    /// Whether the kernel may have counted super-packets as one packet.
    pub(super) merged: bool,
    /// Segments that are in super-packets according to the kernel itself.
    pub(super) segments: u64,
    pub(super) reason: Option<String>,
}

/// Compares one pair; `tolerance` is in percent of what the kernel counted.
pub(super) fn row(pair: Pair<'_>, tolerance: f64) -> Row {
    let (ours, kernel) = (pair.ours, with_faults(pair.kernel, pair.faulty, MOST_BYTES));
    // As if it had been counted, for the comparison.
    let whole = or_more(ours, pair.alone);
    let packets = whole.packets.beyond(kernel.packets);
    let both = ours.bytes.zip(kernel.bytes);
    let bytes = whole.bytes.zip(kernel.bytes).map(|(ours, kernel)| ours.beyond(kernel));
    let differs = packets != 0 || bytes.is_some_and(|bytes| bytes != 0);
    let segments = if differs && pair.merged { super_packets(&pair) } else { 0 };
    let (packets, bytes) = if segments > 0 { (0, bytes.map(|_| 0)) } else { (packets, bytes) };
    let percent = [
        Some(share(packets, kernel.packets)),
        both.zip(bytes).map(|((_, kernel), bytes)| share(bytes, kernel)),
    ];
    let percent = percent.into_iter().flatten().fold(0.0, f64::max);
    let half = |a: Between, b: Between, alone: u64| (a.width() + b.width() + alone).div_ceil(2);
    Row {
        kind: pair.kind,
        scope: pair.scope.to_owned(),
        direction: pair.direction,
        protocol: pair.protocol,
        kernel_counter: pair.kernel_counter,
        orb8_packets: Some(ours.packets.middle()),
        kernel_packets: Some(kernel.packets.middle()),
        uncertain_packets: Some(half(ours.packets, kernel.packets, pair.alone.packets)),
        difference_packets: Some(packets),
        orb8_bytes: both.map(|(ours, _)| ours.middle()),
        kernel_bytes: both.map(|(_, kernel)| kernel.middle()),
        uncertain_bytes: both.map(|(ours, kernel)| half(ours, kernel, pair.alone.bytes)),
        difference_bytes: bytes,
        difference_percent: percent.is_finite().then_some(percent),
        super_packet_segments: pair.segments + segments,
        verdict: if percent <= tolerance { Verdict::Ok } else { Verdict::Differs },
        reason: pair.reason,
    }
}

/// A difference in percent of the kernel's count; infinite where the kernel counted nothing.
fn share(difference: i64, kernel: Between) -> f64 {
    match (difference, kernel.middle()) {
        (0, _) => 0.0,
        (_, 0) => f64::INFINITY,
        (difference, kernel) => difference.unsigned_abs() as f64 * 100.0 / kernel as f64,
    }
}

/// Segments that we have more, if what we have more can be their headers: the kernel counted
/// super-packets as one packet with one header. 0 if it cannot.
fn super_packets(pair: &Pair<'_>) -> u64 {
    let Count { packets, bytes } = pair.alone;
    let alone = Count { packets, bytes: bytes.min(packets.saturating_mul(ORDINARY_BYTES)) };
    let ours = or_more(pair.ours, alone);
    let kernel = with_faults(pair.kernel, pair.faulty, ORDINARY_BYTES);
    let Some((our_bytes, kernel_bytes)) = ours.bytes.zip(kernel.bytes) else { return 0 };
    // The least and the most that we can have more.
    let more = |ours: Between, kernel: Between| {
        Some((ours.low.saturating_sub(kernel.high), ours.high.checked_sub(kernel.low)?))
    };
    let Some((packets, bytes)) =
        more(ours.packets, kernel.packets).zip(more(our_bytes, kernel_bytes))
    else {
        return 0;
    };
    let least = packets.0.max(bytes.0.div_ceil(MOST_HEADERS)).max(1);
    let most = packets.1.min(bytes.1 / LEAST_HEADERS);
    if least <= most { Between { low: least, high: most }.middle() } else { 0 }
}

/// Sums what was counted.
pub(super) fn count<'a>(grown: impl IntoIterator<Item = &'a Grown>) -> Count {
    let mut sum = Count::default();
    for grown in grown {
        sum.packets += grown.packets;
        sum.bytes += grown.bytes;
    }
    sum
}

/// The same, as it is known exactly.
pub(super) fn sum<'a>(grown: impl IntoIterator<Item = &'a Grown>) -> Bounds {
    let Count { packets, bytes } = count(grown);
    Bounds { packets: Between::exactly(packets), bytes: Some(Between::exactly(bytes)) }
}

/// It may be more by so much.
pub(super) fn or_more(bounds: Bounds, by: Count) -> Bounds {
    Bounds {
        packets: bounds.packets.or_more(by.packets),
        bytes: bounds.bytes.map(|bytes| bytes.or_more(by.bytes)),
    }
}

/// All comparisons that the window allows.
#[must_use]
pub fn rows(window: &Window, tolerance: f64) -> Vec<Row> {
    let grown = window.grown();
    let mut rows = interfaces(window, &grown, tolerance);
    match window.lacks_sockets() {
        _ if window.end.totals.capture == "tc" => {}
        None => rows.extend(stack::rows(window, &grown, tolerance)),
        Some(why) => {
            let reason =
                format!("the programs at sockets were not attached over the whole window ({why})");
            rows.push(Row::without("host", "host", Verdict::Unknown, reason));
        }
    }
    rows
}

/// What the agent itself says that totals of interfaces lack.
fn untold(window: &Window) -> Count {
    let (rejected, lost) = (window.ledger(window::rejected), window.ledger(window::untold));
    let unlisted = window.unlisted();
    Count {
        packets: rejected.packets + lost.packets + unlisted.packets,
        bytes: rejected.bytes + lost.bytes + unlisted.bytes,
    }
}

fn interfaces(window: &Window, grown: &[Grown], tolerance: f64) -> Vec<Row> {
    let (attached, others) = window.interfaces();
    let gone = window.gone();
    let (beside, full): (Vec<&Interface>, Vec<&Interface>) =
        attached.into_iter().partition(|interface| is_beside(interface));
    let mut rows = Vec::new();
    for interface in full {
        rows.extend(interface_rows(window, interface, grown, tolerance));
    }
    let mut unknown = |interface: &Interface, reason| {
        rows.push(Row::without("interface", &interface.name, Verdict::Unknown, reason));
    };
    for interface in &others {
        let state = &interface.state;
        unknown(interface, format!("it was not attached over the whole window ({state})"));
    }
    for interface in &gone {
        unknown(interface, "it went away within the window, and its counters with it".to_owned());
    }
    let lacks_one = others.iter().chain(&gone).any(|interface| is_beside(interface));
    if !beside.is_empty() && !lacks_one {
        rows.push(all_interfaces(window, &beside, grown, tolerance));
    }
    rows
}

/// Whether what sockets see is left out there.
fn is_beside(interface: &Interface) -> bool {
    interface.mode == "supplement"
}

/// A place at none of these interfaces: one that came and went within the window.
fn elsewhere<'a>(interfaces: &[&Interface], grown: &'a [Grown]) -> Option<&'a Grown> {
    let is_here = |grown: &Grown| interfaces.iter().any(|found| found.ifindex == grown.at.ifindex);
    grown.iter().find(|grown| grown.at.plane == "tc" && !is_here(grown))
}

fn header_of(interface: &Interface) -> Option<u64> {
    match &*interface.link {
        "ethernet" => Some(ETHERNET),
        "raw" => Some(0),
        _ => None,
    }
}

/// Drivers may or may not count faulty packets, of so many bytes at most, among the others.
fn with_faults(bounds: Bounds, faulty: u64, most_bytes: u64) -> Bounds {
    let of = |value: Between, by: u64| value.or_more(by).or_less(by);
    Bounds {
        packets: of(bounds.packets, faulty),
        bytes: bounds.bytes.map(|bytes| of(bytes, faulty.saturating_mul(most_bytes))),
    }
}

fn interface_rows(
    window: &Window,
    interface: &Interface,
    grown: &[Grown],
    tolerance: f64,
) -> Vec<Row> {
    let here = |total: &Total| total.plane == "tc" && total.ifindex == interface.ifindex;
    let leads_to_pod = interface.chosen_by == "pod_link"
        || window.end.totals.totals.iter().any(|total| here(total) && total.pod_link);
    let side = |rx: bool| {
        let direction = if rx == leads_to_pod { "egress" } else { "ingress" };
        let counter = format!("{} {}", interface.name, if rx { "rx" } else { "tx" });
        let (kernel, faulty) = match window.device(&interface.name, rx, header_of(interface)) {
            Ok(found) => found,
            Err(reason) => {
                return Row::without("interface", &interface.name, Verdict::Unknown, reason);
            }
        };
        let ours =
            sum(grown.iter().filter(|grown| here(&grown.at) && grown.at.direction == direction));
        let untold = untold(window);
        let pair = Pair {
            kind: "interface",
            scope: &interface.name,
            direction,
            protocol: None,
            kernel_counter: counter,
            ours: or_more(ours, untold),
            kernel,
            alone: Count::default(),
            faulty,
            merged: true,
            segments: 0,
            reason: explain(untold.packets, faulty, header_of(interface).is_none()),
        };
        row(pair, tolerance)
    };
    let rows = [side(true), side(false)];
    // Said once. A driver that starts over does so in both directions, and one that has counted past its
    // reading since then only seems to have grown, by too little: what the kernel has more is certain.
    match rows.iter().find(|row| row.verdict == Verdict::Unknown) {
        Some(unknown) => {
            let certain = rows.iter().filter(|row| has_less(row, tolerance));
            certain.chain([unknown]).cloned().collect()
        }
        None => rows.into(),
    }
}

/// Whether orb8 has less than the kernel, beyond the tolerance.
fn has_less(row: &Row, tolerance: f64) -> bool {
    let packets = row.difference_packets.zip(row.kernel_packets);
    let bytes = row.difference_bytes.zip(row.kernel_bytes);
    [packets, bytes].into_iter().flatten().any(|(difference, kernel)| {
        difference < 0 && share(difference, Between::exactly(kernel)) > tolerance
    })
}

fn explain(untold: u64, faulty: u64, lacks_bytes: bool) -> Option<String> {
    let mut parts = Vec::new();
    if untold > 0 {
        parts.push(format!(
            "{untold} packets were rejected or lost, at which interface is not told"
        ));
    }
    if faulty > 0 {
        parts.push(format!("{faulty} faulty packets may be counted or not"));
    }
    if lacks_bytes {
        parts.push("bytes are not compared: the length of the link header is not known".to_owned());
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Where sockets are counted, programs at interfaces leave most to that plane, and how much is known
/// of all interfaces together.
fn all_interfaces(
    window: &Window,
    interfaces: &[&Interface],
    grown: &[Grown],
    tolerance: f64,
) -> Row {
    let scope = interfaces.iter().map(|found| &*found.name).collect::<Vec<_>>().join(",");
    if let Some(grown) = elsewhere(interfaces, grown) {
        let Total { interface, ifindex, .. } = &grown.at;
        let reason = format!(
            "{interface} (ifindex {ifindex}) came and went within the window, and its counters with it"
        );
        return Row::without("interfaces", &scope, Verdict::Unknown, reason);
    }
    let mut kernel = Bounds { bytes: Some(Between::default()), ..Bounds::default() };
    let mut faults = 0;
    for interface in interfaces {
        for rx in [true, false] {
            let header = header_of(interface);
            let (side, faulty) = match window.device(&interface.name, rx, header) {
                Ok(found) => found,
                Err(why) => {
                    let reason = format!("{}: {why}", interface.name);
                    return Row::without("interfaces", &scope, Verdict::Unknown, reason);
                }
            };
            kernel.packets = kernel.packets.plus(side.packets);
            kernel.bytes = kernel.bytes.zip(side.bytes).map(|(sum, more)| sum.plus(more));
            faults += faulty;
        }
    }
    let left = window.ledger(window::left_to_sockets);
    let beside = sum(grown.iter().filter(|grown| grown.at.plane == "tc"));
    let more = |value: Between, by: u64| value.plus(Between::exactly(by));
    let ours = Bounds {
        packets: more(beside.packets, left.packets),
        bytes: beside.bytes.map(|bytes| more(bytes, left.bytes)),
    };
    let untold = untold(window);
    let pair = Pair {
        kind: "interfaces",
        scope: &scope,
        direction: "both",
        protocol: None,
        kernel_counter: "rx and tx of all".to_owned(),
        ours: or_more(ours, untold),
        kernel,
        alone: Count::default(),
        faulty: faults,
        merged: true,
        segments: 0,
        reason: explain(untold.packets, faults, kernel.bytes.is_none()),
    };
    row(pair, tolerance)
}
