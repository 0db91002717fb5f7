//! Reads packet headers into a flow key, the same code in the kernel and on the host.
//!
//! Two readers of one grammar: [`common_form`] takes what nearly every packet is (Ethernet or no
//! link header, IPv4 without options or IPv6 without extension headers, TCP or UDP, not a
//! fragment) from directly addressable memory, and declines the rest; [`any_form`] reads
//! everything through a [`Read`]. Whatever the first accepts, the second reads alike, which a
//! property test holds.

mod any;
mod common;

pub use any::any_form;
pub use common::{Family, common_family, common_form, common_ipv4, common_ipv6};

use crate::network::FlowKey;

/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherTypes of VLAN tags: IEEE 802.1Q, 802.1ad and the older QinQ value.
pub const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: u32 = 14;

/// IP protocol numbers (IANA) that the parser looks into.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
}

/// VLAN tags that are followed.
pub const MAX_VLAN_TAGS: u32 = 2;
/// IPv6 extension headers that are followed.
pub const MAX_EXTENSION_HEADERS: u32 = 8;

/// Bits of the TCP flags byte (RFC 9293, section 3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset the connection.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 1 << 4;
}

/// Where a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// At an Ethernet header.
    Ethernet,
    /// At the IP header: tun, WireGuard, IPIP and other devices without a link header.
    Raw,
    /// At the IP header, behind a link header of unknown length that the length includes; the
    /// EtherType comes from the skb.
    Other {
        /// EtherType in the CPU's byte order.
        ethertype: u16,
    },
}

/// What is known of a frame before its headers are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where offset 0 is.
    pub link: Link,
    /// Bytes from offset 0 to the end (for [`Link::Other`]: at most these).
    pub length: u32,
    /// Segments that the NIC will make of it, 0 if not known or not a GSO packet.
    pub gso_segs: u32,
    /// Payload bytes of each segment, 0 if it is not a GSO packet.
    pub gso_size: u32,
}

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The flow, without direction, plane and tag.
    pub key: FlowKey,
    /// Bytes of the IP datagram as it stands in the frame.
    pub datagram_bytes: u32,
    /// Bytes of the headers that each GSO segment repeats.
    pub header_bytes: u32,
    /// TCP flags byte, 0 for other protocols.
    pub tcp_flags: u8,
}

impl Parsed {
    /// Nothing read yet.
    pub const EMPTY: Self =
        Self { key: FlowKey::EMPTY, datagram_bytes: 0, header_bytes: 0, tcp_flags: 0 };

    /// Wire packets: GSO segments.
    #[must_use]
    #[inline(always)]
    pub fn packets(&self, frame: &Frame) -> u32 {
        if frame.gso_size == 0 {
            1
        } else if frame.gso_segs != 0 {
            frame.gso_segs
        } else {
            let payload = self.datagram_bytes.saturating_sub(self.header_bytes);
            at_least_one(payload.div_ceil(frame.gso_size))
        }
    }

    /// Header bytes that are on the wire but not in the super-packet.
    #[must_use]
    #[inline(always)]
    pub fn gso_header_bytes(&self, packets: u32) -> u64 {
        (packets as u64 - 1) * self.header_bytes as u64
    }
}

impl Frame {
    /// Bytes that count as seen: without the link header where its length is known.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "no skb has 2 GiB")]
    pub fn bytes(&self) -> u64 {
        match self.link {
            // Signed, because that takes the kernel's programs fewer instructions.
            Link::Ethernet => (self.length as i32 - ETHERNET_HEADER as i32).max(0) as u64,
            Link::Raw | Link::Other { .. } => self.length as u64,
        }
    }

    /// Wire packets as far as can be said before a header is read; exact unless the skb does not
    /// know its own number of segments.
    #[must_use]
    #[inline(always)]
    pub fn packets_estimate(&self) -> u32 {
        if self.gso_size == 0 {
            1
        } else if self.gso_segs != 0 {
            self.gso_segs
        } else {
            at_least_one(self.length.div_ceil(self.gso_size))
        }
    }
}

#[inline(always)]
fn at_least_one(n: u32) -> u32 {
    if n == 0 { 1 } else { n }
}

/// Copies bytes out of a frame, from wherever they are.
pub trait Read {
    /// `N` bytes at `offset`, or `None` if the frame ends before.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

/// Plain bytes on the host.
impl Read for &[u8] {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.get(start..start.checked_add(N)?)?;
        bytes.try_into().ok()
    }
}

/// Reads directly addressable bytes.
///
/// The caller asks [`Self::has`] first; the kernel's verifier then knows that the loads are in
/// range.
pub trait Direct {
    /// Whether the first `length` bytes can be addressed.
    fn has(&self, length: u32) -> bool;
    /// One byte.
    ///
    /// # Safety
    /// [`Self::has`] returned true for at least `offset + 1`.
    unsafe fn byte(&self, offset: u32) -> u8;
    /// Two bytes as they stand.
    ///
    /// # Safety
    /// [`Self::has`] returned true for at least `offset + 2`.
    unsafe fn half(&self, offset: u32) -> [u8; 2];
    /// Eight bytes as they stand, as one double word in the CPU's byte order.
    ///
    /// # Safety
    /// [`Self::has`] returned true for at least `offset + 8`.
    unsafe fn double(&self, offset: u32) -> u64;
    /// Four bytes as they stand, as one word in the CPU's byte order.
    ///
    /// # Safety
    /// [`Self::has`] returned true for at least `offset + 4`.
    unsafe fn word(&self, offset: u32) -> u32;
}

/// Plain bytes on the host.
impl Direct for &[u8] {
    fn has(&self, length: u32) -> bool {
        self.len() as u64 >= u64::from(length)
    }

    unsafe fn byte(&self, offset: u32) -> u8 {
        self[offset as usize]
    }

    unsafe fn half(&self, offset: u32) -> [u8; 2] {
        [self[offset as usize], self[offset as usize + 1]]
    }

    unsafe fn word(&self, offset: u32) -> u32 {
        let o = offset as usize;
        u32::from_ne_bytes([self[o], self[o + 1], self[o + 2], self[o + 3]])
    }

    unsafe fn double(&self, offset: u32) -> u64 {
        let o = offset as usize;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self[o..o + 8]);
        u64::from_ne_bytes(bytes)
    }
}
