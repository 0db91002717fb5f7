//! Network flows as the kernel keeps them: key, line, meta, lifecycle event.
//!
//! Nothing here parses packets; `parse` does.

/// What makes two packets the same flow, besides the owner.
///
/// Addresses are 16 bytes in network byte order; IPv4 stands as its four bytes in the last word
/// with the first three words zero, and [`flag::IPV6`] tells the families apart (so an IPv6
/// address below `::/96` is never mistaken for IPv4).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    /// Sender, network byte order.
    pub src: [u32; 4],
    /// Receiver, network byte order.
    pub dst: [u32; 4],
    /// Source port in network byte order; for ICMP the type in the first byte and the code in the
    /// second; 0 for fragments and protocols without ports.
    pub src_port: [u8; 2],
    /// Destination port in network byte order; 0 where [`Self::src_port`] is not a port.
    pub dst_port: [u8; 2],
    /// IP protocol number (IANA), after any IPv6 extension headers.
    pub protocol: u8,
    /// [`flag`] bits.
    pub flags: u8,
    /// Never 0 in a published line, a function of the rest: a line that another CPU is still
    /// writing is not mistaken for a different flow, whatever order its stores arrive in.
    pub tag: u16,
}

impl FlowKey {
    /// All zero.
    pub const EMPTY: Self = Self {
        src: [0; 4],
        dst: [0; 4],
        src_port: [0; 2],
        dst_port: [0; 2],
        protocol: 0,
        flags: 0,
        tag: 0,
    };

    /// The key as five words, for comparing and hashing.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> &[u64; 5] {
        // SAFETY: FlowKey is 40 bytes without padding, aligned to 8, and any bytes are a valid u64.
        unsafe { &*core::ptr::from_ref(self).cast::<[u64; 5]>() }
    }
}

/// Bits of [`FlowKey::flags`].
pub mod flag {
    /// The owner sends; without it the owner receives.
    pub const EGRESS: u8 = 1;
    /// The addresses are IPv6.
    pub const IPV6: u8 = 1 << 1;
    /// Later fragments, which carry no ports.
    pub const FRAGMENT: u8 = 1 << 2;
    /// Counted at a socket (`cgroup_skb`); without it at an interface (`tc`).
    pub const SOCKET_PLANE: u8 = 1 << 3;
    /// Counted at an interface where the socket plane counts too: no socket sends or takes it.
    pub const SUPPLEMENT: u8 = 1 << 4;
}

/// The counters of one flow: running totals that user space reads through a mapping of the table.
///
/// Written by any CPU with atomic adds; a slot is taken out of use by user space only.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowLine {
    /// The flow.
    pub key: FlowKey,
    /// ifindex (`tc`) or cgroup id (`socket`).
    pub owner: u64,
    /// IP bytes on the wire since the slot was taken; wraps.
    pub bytes: u64,
    /// Wire packets since the slot was taken; wraps, so user space takes wrapping differences.
    pub packets: u32,
    /// Low 32 bits of `jiffies64` at the last packet; wraps.
    pub last_seen: u32,
}

/// What is known of a flow since its first packet; beside the line so that the line stays small.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowMeta {
    /// CLOCK_MONOTONIC nanoseconds of the first packet.
    pub first_seen_ns: u64,
    /// cgroup2 id of the sending socket, 0 if there is none.
    pub cgroup_id: u64,
    /// Cookie of the local socket, 0 if there is none.
    pub cookie: u64,
    /// One byte a flag, 1 if seen: stores of single bytes need no atomic OR (kernel 5.12).
    /// Indices: [`tcp_seen`]; the byte at [`tcp_seen::SCOPE`] holds a [`scope`] value.
    pub seen: [u8; 8],
}

/// Indices of [`FlowMeta::seen`].
pub mod tcp_seen {
    /// A FIN was seen.
    pub const FIN: usize = 0;
    /// A SYN without ACK was seen.
    pub const SYN: usize = 1;
    /// An RST was seen.
    pub const RST: usize = 2;
    /// A SYN with ACK was seen.
    pub const SYN_ACK: usize = 3;
    /// Holds a [`super::scope`] value, not a flag.
    pub const SCOPE: usize = 7;
}

/// Whether the kernel has a local socket for a flow, asked once at its start.
pub mod scope {
    /// Not asked, or a protocol that cannot be asked for.
    pub const UNKNOWN: u8 = 0;
    /// A local socket sends or receives it.
    pub const SOCKET: u8 = 1;
    /// Asked, and there is none.
    pub const NO_SOCKET: u8 = 2;
    /// The outside of a tunnel: the kernel's own socket takes and sends it for others.
    pub const TUNNEL: u8 = 3;
}

/// Kinds of [`FlowEvent`].
pub mod event_kind {
    /// First packet of a flow (also after its slot was given back).
    pub const START: u8 = 1;
    /// A TCP flag (SYN, SYN+ACK) seen for the first time in this flow after its start.
    pub const TCP_STATE: u8 = 2;
    /// FIN or RST seen for the first time: the flow is about to end.
    pub const END: u8 = 3;
}

/// A lifecycle event, as it stands in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowEvent {
    /// The flow.
    pub key: FlowKey,
    /// ifindex (`tc`) or cgroup id (`socket`).
    pub owner: u64,
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// cgroup2 id of the sending socket, 0 if there is none.
    pub cgroup_id: u64,
    /// Cookie of the local socket, 0 if there is none.
    pub cookie: u64,
    /// Index of the flow's line, [`NO_SLOT`] if the flow table was full.
    pub slot: u32,
    /// An [`event_kind`] value.
    pub kind: u8,
    /// TCP flags byte of the packet (RFC 9293, section 3.1), 0 for other protocols.
    pub tcp_flags: u8,
    /// A [`scope`] value.
    pub scope: u8,
    /// Zero.
    pub reserved: u8,
    /// IP bytes of the packet, as counted.
    pub bytes: u64,
}

/// How many UDP ports of tunnels the programs know.
pub const TUNNEL_PORTS: usize = 4;

/// The slot of a flow that has no line.
pub const NO_SLOT: u32 = u32::MAX;

/// A packet, while somebody watches packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PacketEvent {
    /// The flow.
    pub key: FlowKey,
    /// ifindex.
    pub owner: u64,
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// IP bytes on the wire.
    pub bytes: u64,
    /// As in [`FlowEvent`].
    pub cgroup_id: u64,
    /// Wire packets.
    pub packets: u32,
    /// TCP flags byte.
    pub tcp_flags: u8,
    /// One of [`scope`].
    pub scope: u8,
    /// How many packets of the view it stands for, itself included; see [`crate::sample`].
    pub weight: u16,
}

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<FlowKey>() == 40 && align_of::<FlowKey>() == 8);
    assert!(offset_of!(FlowKey, protocol) == 36 && offset_of!(FlowKey, tag) == 38);
    assert!(size_of::<FlowLine>() == 64 && align_of::<FlowLine>() == 64);
    assert!(offset_of!(FlowLine, owner) == 40 && offset_of!(FlowLine, bytes) == 48);
    assert!(offset_of!(FlowLine, packets) == 56 && offset_of!(FlowLine, last_seen) == 60);
    assert!(size_of::<FlowMeta>() == 32);
    assert!(size_of::<FlowEvent>() == 88 && offset_of!(FlowEvent, bytes) == 80);
    assert!(size_of::<PacketEvent>() == 80);
    assert!(size_of::<PacketFilter>() == 44 && size_of::<Sparing>() == 8);
};

/// `jiffies64` and CLOCK_MONOTONIC, read at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ClockPair {
    /// Kernel ticks.
    pub jiffies: u64,
    /// CLOCK_MONOTONIC nanoseconds.
    pub monotonic_ns: u64,
}

/// The rate of the packet view is held over 64 ticks of the kernel (64 to 640 ms), so that a short
/// burst passes whole.
pub const RATE_WINDOW_SHIFT: u32 = 6;

/// Which packets the packet view wants; zero in a field means any.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PacketFilter {
    /// An address of either end, as in [`FlowKey`].
    pub address: [u32; 4],
    /// Bits of [`Self::address`] that must agree; all zero: any address.
    pub mask: [u32; 4],
    /// A port of either end, network byte order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// [`flag::IPV6`] if [`Self::address`] is IPv6.
    pub flags: u8,
    /// Packets a CPU may pass on in each window of [`RATE_WINDOW_SHIFT`].
    pub per_window: u32,
    /// Number of the view: another whenever what is asked for has changed.
    pub view: u32,
}

/// What programs tell less of while the agent is over one of its budgets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sparing {
    /// One in so many packets of the packet view is told, flows' first ones and those with SYN, FIN or
    /// RST always; 0 as 1.
    pub sampling: u32,
    /// 1: starts of flows that no SYN opens are left to the next drain.
    pub fewer_events: u32,
}

/// Indices of the counters of the packet view.
pub mod packet_counter {
    /// Packets that matched the filter.
    pub const MATCHED: usize = 0;
    /// Not passed on because of the rate limit.
    pub const RATE_LIMITED: usize = 1;
    /// Not passed on because the ring was full.
    pub const RING_FULL: usize = 2;
    /// Working state: the window in which [`WINDOW_COUNT`] counts.
    pub const WINDOW: usize = 3;
    /// Working state: packets passed on in this window.
    pub const WINDOW_COUNT: usize = 4;
    /// What the packets that were told stand for.
    pub const TOLD: usize = 5;
    /// Packets for which none stands yet, or that came last of a view that was closed.
    pub const UNTOLD: usize = 6;
    /// Working state of [`crate::sample`].
    pub const SAMPLE: usize = 7;
}
