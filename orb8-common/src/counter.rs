//! Indices of the per-CPU counters that the probes keep: one array of `u64` a CPU.
//!
//! Reasons come in pairs: packets at the index, bytes at the index + 1.

/// Packets seen, counted before anything else.
pub const SEEN_PACKETS: usize = 0;
/// Bytes of the skb without its link header, counted before anything else.
pub const SEEN_BYTES: usize = 1;
/// Header bytes that GSO super-packets will repeat in each segment: on the wire, not in the skb.
pub const GSO_HEADER_BYTES: usize = 2;
/// Bytes of the skb outside the IP datagram: link-layer padding, VLAN tags in the frame, link
/// headers of unknown length. In the skb, not counted.
pub const PADDING_BYTES: usize = 3;
/// Packets whose headers were read on the slow path.
pub const COLD_PATH_PACKETS: usize = 4;
/// Lifecycle events that the programs tried to put into the ring.
pub const EVENTS_PRODUCED: usize = 5;
/// Lifecycle events that did not fit into the ring.
pub const EVENTS_LOST: usize = 6;
/// Segments by which [`SEEN_PACKETS`] was estimated too high before the headers were read, for
/// skbs that do not know their number of segments (virtio, tap). Wraps below zero.
pub const SEGMENT_EXCESS: usize = 7;
/// First packet-and-bytes pair of the reasons for rejection; see [`Reject`].
pub const REJECTED: usize = 8;
/// First packet-and-bytes pair of the reasons for loss; see [`Lost`].
pub const LOST: usize = 32;
/// First packet-and-bytes pair of what is left out in the kernel; see [`Filtered`].
pub const FILTERED: usize = 40;
/// Packets and bytes seen where something else may count in between, in one word: see [`together`].
/// They belong to [`SEEN_PACKETS`] and [`SEEN_BYTES`], to which user space adds them. Super-packets
/// are not among them: they may have hundreds of segments.
pub const SEEN_TOGETHER: usize = 44;
/// Lifecycle events that were left to the next drain, which finds their flows: not produced, and not
/// lost.
pub const EVENTS_DEFERRED: usize = 47;
/// Number of counters.
pub const COUNT: usize = 48;

/// Bits of the bytes in [`SEEN_TOGETHER`].
const BYTE_BITS: u32 = 38;

/// A packet in [`SEEN_TOGETHER`]: one atomic add in place of two. The word runs on and wraps.
#[must_use]
#[inline(always)]
pub const fn together(packets: u64, bytes: u64) -> u64 {
    packets << BYTE_BITS | bytes
}

/// Packets and bytes by which [`SEEN_TOGETHER`] has grown: below 67 million packets and 274 GB. In the
/// four seconds between two readings that is 17 million skbs a second on one CPU, several times what
/// the kernel's own work for each of them allows.
#[must_use]
pub const fn apart(grown: u64) -> (u64, u64) {
    (grown >> BYTE_BITS, grown & ((1 << BYTE_BITS) - 1))
}

/// Why a packet was not parsed into a flow.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The frame carries neither IPv4 nor IPv6 (ARP, LLDP, ...).
    NotIp = 0,
    /// A header or the datagram ends before its own length says so.
    Truncated = 1,
    /// The version nibble does not agree with the EtherType, or a length is below its minimum.
    BadHeader = 2,
    /// More IPv6 extension headers or VLAN tags than are followed.
    TooManyHeaders = 3,
}

impl Reject {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 4] =
        [Self::NotIp, Self::Truncated, Self::BadHeader, Self::TooManyHeaders];

    /// The name that status, JSON and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::BadHeader => "bad_header",
            Self::TooManyHeaders => "too_many_headers",
        }
    }
}

/// Why a parsed packet was not counted on a flow.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Every line of the flow table is taken.
    FlowTableFull = 0,
    /// No free place in the two index groups of the key.
    IndexFull = 1,
    /// The list of free lines could not be locked (possible where programs nest).
    FreeListBusy = 2,
}

impl Lost {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 3] = [Self::FlowTableFull, Self::IndexFull, Self::FreeListBusy];

    /// The name that status, JSON and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowTableFull => "flow_table_full",
            Self::IndexFull => "index_full",
            Self::FreeListBusy => "free_list_busy",
        }
    }
}

/// Why a parsed packet was left out on purpose.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// At an interface: the socket plane counts it.
    CountedAtSocket = 0,
    /// At an interface: a later fragment that arrives. It has no ports to look a socket up by; if
    /// one takes the datagram, the socket plane counts it whole.
    LaterFragment = 1,
}

impl Filtered {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 2] = [Self::CountedAtSocket, Self::LaterFragment];

    /// The name that status, JSON and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CountedAtSocket => "counted_at_socket",
            Self::LaterFragment => "later_fragment",
        }
    }
}

const _: () = {
    assert!(REJECTED + 2 * Reject::ALL.len() <= LOST);
    assert!(LOST + 2 * Lost::ALL.len() <= FILTERED);
    assert!(FILTERED + 2 * Filtered::ALL.len() <= SEEN_TOGETHER);
    assert!(SEEN_TOGETHER < EVENTS_DEFERRED && EVENTS_DEFERRED < COUNT);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_seen_together_comes_apart_again_also_where_the_word_wraps(
            start: u64,
            skbs in prop::collection::vec((1u64..1 << 16, 1u64..1 << 31), 0..100),
        ) {
            let (mut word, mut sum) = (start, (0, 0));
            for (packets, bytes) in skbs {
                word = word.wrapping_add(together(packets, bytes));
                sum = (sum.0 + packets, sum.1 + bytes);
            }
            prop_assert_eq!(apart(word.wrapping_sub(start)), sum);
        }
    }
}
