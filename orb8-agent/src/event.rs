//! The closed set of things that sources tell the pipeline, already decoded.
//!
//! Sources make events, the runner moves them through filter, enricher and processor, exporters
//! receive them. A new feature adds a variant here; the compiler then lists what it must touch.

use orb8_common::network::{FlowKey, PacketEvent};

/// Identifies a flow inside one agent: what the kernel keys it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// Addresses, ports, protocol, direction, plane. `tag` is zero here.
    pub key: FlowKey,
    /// ifindex in the `tc` plane.
    pub owner: u64,
}

/// Everything a source may tell.
#[derive(Clone, Debug)]
pub enum Event {
    /// A flow's first packet, a TCP state change or its end, from the ring.
    Flow(FlowSignal),
    /// What was counted on a flow since the last drain, from the flow lines.
    Count(FlowCount),
    /// A kernel line of the flow was taken out of use; nothing more will be counted on that line.
    Released(FlowId),
    /// One drain of all lines is complete; carries the kernel's ledger counters of that moment.
    Drained(DrainReport),
    /// A packet, while somebody watches packets.
    Packet(PacketEvent),
    /// Something a person should know (an interface attached, a displacement, ...).
    Notice(Notice),
}

/// A lifecycle signal.
#[derive(Clone, Copy, Debug)]
pub struct FlowSignal {
    /// The flow.
    pub id: FlowId,
    /// What happened.
    pub kind: SignalKind,
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// TCP flags byte of the packet.
    pub tcp_flags: u8,
    /// Facts told once per flow.
    pub facts: FlowFacts,
}

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalKind {
    /// First packet.
    Start,
    /// SYN or SYN+ACK seen for the first time after the start.
    TcpState,
    /// FIN or RST seen for the first time.
    End,
}

/// What the kernel tells about a flow besides its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowFacts {
    /// cgroup2 id of the local sender, 0 if not known.
    pub cgroup_id: u64,
    /// Cookie of the local socket, 0 if not known.
    pub cookie: u64,
    /// A `orb8_common::network::scope` value.
    pub scope: u8,
    /// TCP flags seen in any packet, as bits: FIN 1, SYN 2, RST 4, SYN+ACK 8.
    pub tcp_seen: u8,
}

/// Packets and bytes counted on a flow since the last drain.
#[derive(Clone, Copy, Debug)]
pub struct FlowCount {
    /// The flow.
    pub id: FlowId,
    /// True for the first count from a kernel line: the flow then holds one more line, and gives
    /// it back with one [`Event::Released`]. A flow may hold several lines.
    pub new_line: bool,
    /// Wire packets since the last drain.
    pub packets: u64,
    /// IP bytes since the last drain.
    pub bytes: u64,
    /// CLOCK_MONOTONIC nanoseconds of the first packet, as the kernel noted it.
    pub first_seen_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds of the last packet, to one kernel tick.
    pub last_seen_ns: u64,
    /// Facts told once per flow.
    pub facts: FlowFacts,
}

/// The end of one drain.
#[derive(Clone, Debug, Default)]
pub struct DrainReport {
    /// CLOCK_MONOTONIC nanoseconds at the end of the drain.
    pub time_ns: u64,
    /// Kernel counters summed over all CPUs, read before the lines were read.
    /// Indices: `orb8_common::counter`.
    pub before: Counters,
    /// The same, read after the lines were read.
    pub after: Counters,
    /// Packets that passed interfaces before they were attached, and their link-layer bytes.
    pub unattached_packets: u64,
    /// Link-layer bytes of the same.
    pub unattached_bytes: u64,
    /// Ring records that could not be decoded.
    pub undecodable: u64,
    /// Flow lines in use.
    pub lines_in_use: u64,
}

/// The kernel's counters, summed over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters(pub [u64; orb8_common::counter::COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; orb8_common::counter::COUNT])
    }
}

/// A line for the person who reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How serious.
    pub severity: Severity,
    /// A stable word for programs.
    pub code: &'static str,
    /// The sentence.
    pub message: String,
}

/// How serious a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Normal operation.
    Info,
    /// Something is less than it should be.
    Warning,
    /// Something does not work.
    Error,
}
