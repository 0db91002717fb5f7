//! The form that nearly every packet has, read from directly addressable memory. Declines whatever
//! it is not sure of; never rejects.

use super::{
    Direct, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, Link, Parsed, protocol,
};
use crate::network::{FlowKey, flag};

/// Reads the form that nearly every packet has; `None` means: ask [`super::any_form`].
#[inline(always)]
pub fn common_form<D: Direct>(bytes: &D, frame: &Frame) -> Option<Parsed> {
    match common_family(bytes, frame)? {
        Family::V4 => common_ipv4(bytes, frame),
        Family::V6 => common_ipv6(bytes, frame),
    }
}

/// The version of IP of a packet that may have the common form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// To be read by [`common_ipv4`].
    V4,
    /// To be read by [`common_ipv6`].
    V6,
}

/// The first step of [`common_form`], for who treats the families apart.
#[inline(always)]
pub fn common_family<D: Direct>(bytes: &D, frame: &Frame) -> Option<Family> {
    let ip = common_offset(frame)?;
    // The shortest packet that is read here: IPv4 with UDP.
    if !bytes.has(ip + 28) {
        return None;
    }
    // SAFETY: the first `ip + 28` bytes can be addressed.
    let first = unsafe { bytes.byte(ip) };
    let ethertype = match frame.link {
        // SAFETY: as above, `ip` is 14.
        Link::Ethernet => u16::from_be_bytes(unsafe { bytes.half(12) }),
        _ if first >> 4 == 4 => ETHERTYPE_IPV4,
        _ => ETHERTYPE_IPV6,
    };
    if ethertype == ETHERTYPE_IPV4 && first == 0x45 {
        Some(Family::V4)
    } else if ethertype == ETHERTYPE_IPV6 && first >> 4 == 6 {
        Some(Family::V6)
    } else {
        None
    }
}

/// Where the IP header stands, if the link header has one length.
#[inline(always)]
fn common_offset(frame: &Frame) -> Option<u32> {
    match frame.link {
        Link::Ethernet => Some(ETHERNET_HEADER),
        Link::Raw => Some(0),
        Link::Other { .. } => None,
    }
}

/// Reads a packet of which [`common_family`] has said [`Family::V4`].
#[inline(always)]
pub fn common_ipv4<D: Direct>(bytes: &D, frame: &Frame) -> Option<Parsed> {
    let ip = common_offset(frame)?;
    if !bytes.has(ip + 28) {
        return None;
    }
    // SAFETY: all offsets are below `ip + 28`.
    let (total, fragment, protocol, src, dst) = unsafe {
        (
            u32::from(u16::from_be_bytes(bytes.half(ip + 2))),
            u16::from_be_bytes(bytes.half(ip + 6)),
            bytes.byte(ip + 9),
            bytes.word(ip + 12),
            bytes.word(ip + 16),
        )
    };
    // More-fragments flag or an offset.
    if fragment & 0x3fff != 0 {
        return None;
    }
    let datagram = datagram_bytes(total, frame, ip)?;
    let key = FlowKey { src: [0, 0, 0, src], dst: [0, 0, 0, dst], protocol, ..FlowKey::EMPTY };
    common_transport(bytes, ip, 20, datagram, key)
}

/// Reads a packet of which [`common_family`] has said [`Family::V6`].
#[inline(always)]
pub fn common_ipv6<D: Direct>(bytes: &D, frame: &Frame) -> Option<Parsed> {
    let ip = common_offset(frame)?;
    if !bytes.has(ip + 48) {
        return None;
    }
    // SAFETY: all offsets are below `ip + 48`.
    let (payload, protocol, src, dst) = unsafe {
        (
            u32::from(u16::from_be_bytes(bytes.half(ip + 4))),
            bytes.byte(ip + 6),
            address(bytes.double(ip + 8), bytes.double(ip + 16)),
            address(bytes.double(ip + 24), bytes.double(ip + 32)),
        )
    };
    let total = if payload == 0 { 0 } else { payload + 40 };
    let datagram = datagram_bytes(total, frame, ip)?;
    let key = FlowKey { src, dst, protocol, flags: flag::IPV6, ..FlowKey::EMPTY };
    common_transport(bytes, ip, 40, datagram, key)
}

/// An address from its two halves, which stand in memory one behind the other.
#[inline(always)]
const fn address(first: u64, second: u64) -> [u32; 4] {
    // SAFETY: 16 bytes either way, and any bytes are words.
    unsafe { core::mem::transmute::<[u64; 2], [u32; 4]>([first, second]) }
}

/// Ports and flags behind an IP header of `header` bytes; 8 bytes behind it can be addressed.
#[inline(always)]
fn common_transport<D: Direct>(
    bytes: &D,
    ip: u32,
    header: u32,
    datagram: u32,
    mut key: FlowKey,
) -> Option<Parsed> {
    let l4 = ip + header;
    let (length, tcp_flags) = match key.protocol {
        protocol::TCP => {
            if !bytes.has(l4 + 20) {
                return None;
            }
            // SAFETY: `l4 + 20` bytes can be addressed.
            let length = u32::from(unsafe { bytes.byte(l4 + 12) } >> 4) * 4;
            if length < 20 {
                return None;
            }
            // SAFETY: as above.
            (length, unsafe { bytes.byte(l4 + 13) })
        }
        protocol::UDP => (8, 0),
        _ => return None,
    };
    let header_bytes = header + length;
    // Leaves malformed lengths to the slow path, which names them.
    if datagram < header_bytes {
        return None;
    }
    // SAFETY: the callers have seen 8 bytes behind the IP header.
    unsafe {
        key.src_port = bytes.half(l4);
        key.dst_port = bytes.half(l4 + 2);
    }
    Some(Parsed { key, datagram_bytes: datagram, header_bytes, tcp_flags })
}

/// The length of the datagram in the frame, `None` if it is not to be trusted on the fast path.
#[inline(always)]
fn datagram_bytes(total: u32, frame: &Frame, ip: u32) -> Option<u32> {
    let available = frame.length.wrapping_sub(ip);
    if frame.gso_size != 0 {
        // The length field of a super-packet above 64 KiB is 0 (BIG TCP).
        Some(available)
    } else if total != 0 && total <= available {
        Some(total)
    } else {
        None
    }
}
