//! What goes into the parser and what comes out: frames, ways to read their bytes, what a packet
//! says of itself. Reads no header.

use crate::network::FlowKey;

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
}
