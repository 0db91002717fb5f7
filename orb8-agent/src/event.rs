//! The closed set of things that sources tell the pipeline, already decoded.
//!
//! Sources make events, the runner moves them through filter, enricher and processor, exporters
//! receive them. A new feature adds a variant here; the compiler then lists what it must touch.

use std::sync::Arc;

use orb8_common::network::{FlowKey, PacketEvent};

use crate::cgroup::Membership;
use crate::conntrack::Translation;
use crate::host::InterfaceName;

mod ends;

pub use ends::{Asked, Attribution, End, Ends, How, Reason};

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
    /// Boxed: its counters would make every event eight times as large.
    Drained(Box<DrainReport>),
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
    /// Number of the kernel line. The same line most often counts for the same flow again, which
    /// nobody may rely on.
    pub line: u32,
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
    /// CLOCK_MONOTONIC nanoseconds when the drain began, and `before` was read.
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

/// What left the processors: what exporters may tell to people and programs.
#[derive(Clone, Debug)]
pub enum Told {
    /// A flow began. Told once per flow; carries what is counted so far, often nothing yet.
    FlowStart(FlowRecord),
    /// A flow ended, with its final totals.
    FlowEnd(FlowRecord),
    /// A packet, while somebody watches packets.
    Packet(Box<PacketRecord>),
    /// Something a person should know.
    Notice(Notice),
    /// What this agent lost since the last drain.
    Loss(LossRecord),
    /// A drain is complete: counters and rates of all flows are those of its time.
    Drained(DrainMark),
}

/// The end of one drain, as exporters see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainMark {
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// Number of the drain, from 1; what was counted in it carries this number.
    pub epoch: u32,
    /// Flow lines in use in the kernel.
    pub lines_in_use: u64,
}

/// A flow as the flow table knows it.
///
/// In this order in memory: a query goes over all rows, and what it ranks and leaves out by shares a
/// cache line or two.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct FlowRecord {
    /// Stable for the life of the flow on this agent, never used twice.
    pub flow_id: u64,
    /// Wire packets in total.
    pub packets: u64,
    /// IP bytes in total.
    pub bytes: u64,
    /// CLOCK_MONOTONIC nanoseconds of the first packet.
    pub first_seen_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds of the last packet.
    pub last_seen_ns: u64,
    /// The last drain that counted something on it.
    pub changed_epoch: u32,
    /// Bytes a second over the last drain.
    pub byte_rate: f32,
    /// Packets a second over the last drain.
    pub packet_rate: f32,
    /// TCP flags seen, as [`FlowFacts::tcp_seen`], and [`tcp_bit::OPENS`].
    pub tcp_seen: u8,
    /// Both sides of the TCP connection were seen to answer.
    pub established: bool,
    /// Whose traffic it is.
    pub scope: Scope,
    /// Active, or why it ended.
    pub state: FlowState,
    /// What the kernel keys it by.
    pub id: FlowId,
    /// Cookie of the local socket, 0 if not known.
    pub cookie: u64,
    /// The cgroup of the local sender, if the kernel told it.
    pub membership: Option<Arc<Membership>>,
    /// The interface it was counted at, if its name is known.
    pub interface: Option<Arc<InterfaceName>>,
    /// Who talks to whom; shared by the flows of the table for which all of it is the same.
    pub ends: Arc<Ends>,
    /// What the kernel's connection tracking made of the addresses.
    pub translation: Option<Arc<Translation>>,
}

/// Bits of [`FlowFacts::tcp_seen`] and [`FlowRecord::tcp_seen`].
pub mod tcp_bit {
    /// A FIN was seen.
    pub const FIN: u8 = 1;
    /// A SYN without ACK was seen.
    pub const SYN: u8 = 2;
    /// An RST was seen.
    pub const RST: u8 = 4;
    /// A SYN with ACK was seen.
    pub const SYN_ACK: u8 = 8;
    /// The first packet was one of these two: it opened its direction of the connection.
    pub const OPENS: u8 = 16;
}

/// Whose traffic a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scope {
    /// The kernel could not be asked.
    #[default]
    Unknown,
    /// The kernel has a socket for it.
    Local,
    /// A local address without a socket: kernel replies, refused ports, translated traffic.
    Unclaimed,
    /// Neither sent nor received by this host.
    Forwarded,
    /// An encapsulation between hosts.
    Tunnel,
}

/// Whether a flow still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FlowState {
    /// It may still be counted on.
    #[default]
    Active,
    /// It ended.
    Ended(EndReason),
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Nothing was seen for the idle timeout.
    Idle,
    /// A FIN was seen, then nothing more.
    Fin,
    /// An RST was seen.
    Rst,
    /// The flow table needed its place.
    Evicted,
    /// The agent stopped.
    Shutdown,
    /// Somebody else has the address of an end by now; what follows is another flow.
    PeerChanged,
}

/// A packet with what is known of its flow.
#[derive(Clone, Debug)]
pub struct PacketRecord {
    /// The packet.
    pub packet: PacketEvent,
    /// Its flow; without a row in the table, its identity alone.
    pub flow: FlowRecord,
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Volume {
    /// Wire packets.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
}

impl Volume {
    /// Adds another volume.
    pub fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// What this volume has more than another, never below zero.
    #[must_use]
    pub fn beyond(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(other.packets),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A part that did not reach the answer: where, why, how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossRecord {
    /// Where: `hook`, `flow_table`, `ring`, `subscriber`, `unattached`, `packet_view`.
    pub stage: &'static str,
    /// Why, a stable word.
    pub reason: &'static str,
    /// Packets and bytes lost.
    pub volume: Volume,
    /// Lifecycle events lost.
    pub events: u64,
}
