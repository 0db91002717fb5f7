//! Reads packet headers into a flow key, the same code in the kernel and on the host.
//!
//! Two readers of one grammar: [`common_form`] takes what nearly every packet is (Ethernet or no
//! link header, IPv4 without options or IPv6 without extension headers, TCP or UDP, not a
//! fragment) from directly addressable memory, and declines the rest; [`any_form`] reads
//! everything through a [`Read`]. Whatever the first accepts, the second reads alike, which a
//! property test holds.

mod frame;

pub use frame::{Direct, Frame, Link, Parsed, Read};

use crate::counter::Reject;
use crate::network::{FlowKey, flag};

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

/// IPv6 next-header values that are extension headers (RFC 8200, RFC 4302, RFC 6275, RFC 7401,
/// RFC 5533).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HIP: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
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

/// Reads the form that nearly every packet has; `None` means: ask [`any_form`].
#[inline(always)]
pub fn common_form<D: Direct>(bytes: &D, frame: &Frame) -> Option<Parsed> {
    let ip = match frame.link {
        Link::Ethernet => ETHERNET_HEADER,
        Link::Raw => 0,
        Link::Other { .. } => return None,
    };
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
        common_ipv4(bytes, ip, frame)
    } else if ethertype == ETHERTYPE_IPV6 && first >> 4 == 6 {
        common_ipv6(bytes, ip, frame)
    } else {
        None
    }
}

/// The caller has seen that `ip + 28` bytes can be addressed.
#[inline(always)]
fn common_ipv4<D: Direct>(bytes: &D, ip: u32, frame: &Frame) -> Option<Parsed> {
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

#[inline(always)]
fn common_ipv6<D: Direct>(bytes: &D, ip: u32, frame: &Frame) -> Option<Parsed> {
    if !bytes.has(ip + 48) {
        return None;
    }
    // SAFETY: all offsets are below `ip + 48`.
    let (payload, protocol, src, dst) = unsafe {
        (
            u32::from(u16::from_be_bytes(bytes.half(ip + 4))),
            bytes.byte(ip + 6),
            [bytes.word(ip + 8), bytes.word(ip + 12), bytes.word(ip + 16), bytes.word(ip + 20)],
            [bytes.word(ip + 24), bytes.word(ip + 28), bytes.word(ip + 32), bytes.word(ip + 36)],
        )
    };
    let total = if payload == 0 { 0 } else { payload + 40 };
    let datagram = datagram_bytes(total, frame, ip)?;
    let key = FlowKey { src, dst, protocol, flags: flag::IPV6, ..FlowKey::EMPTY };
    common_transport(bytes, ip, 40, datagram, key)
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

/// Reads a packet of any form into `out`, which begins as [`Parsed::EMPTY`].
///
/// Written in place, because a kernel program has 512 bytes of stack for all its calls.
///
/// # Errors
/// Why the packet is not a datagram that can be counted; `out` is then not to be used.
#[inline(always)]
pub fn any_form<R: Read>(bytes: &R, frame: &Frame, out: &mut Parsed) -> Result<(), Reject> {
    let (ethertype, ip) = match frame.link {
        Link::Ethernet => behind_vlan_tags(bytes, ETHERNET_HEADER - 2)?,
        Link::Other { ethertype } if is_vlan(ethertype) => behind_vlan_tags(bytes, 2)?,
        Link::Other { ethertype } => (ethertype, 0),
        Link::Raw => match bytes.read::<1>(0).ok_or(Reject::Truncated)?[0] >> 4 {
            4 => (ETHERTYPE_IPV4, 0),
            6 => (ETHERTYPE_IPV6, 0),
            _ => return Err(Reject::NotIp),
        },
    };
    match ethertype {
        ETHERTYPE_IPV4 => any_ipv4(bytes, ip, frame, out)?,
        ETHERTYPE_IPV6 => any_ipv6(bytes, ip, frame, out)?,
        _ => return Err(Reject::NotIp),
    }
    any_transport(bytes, ip, out)
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPES_VLAN[0]
        || ethertype == ETHERTYPES_VLAN[1]
        || ethertype == ETHERTYPES_VLAN[2]
}

/// The EtherType and the offset of what follows it, `at` being the first EtherType.
#[inline(always)]
fn behind_vlan_tags<R: Read>(bytes: &R, mut at: u32) -> Result<(u16, u32), Reject> {
    let mut tags = 0;
    loop {
        let ethertype = u16::from_be_bytes(bytes.read::<2>(at).ok_or(Reject::Truncated)?);
        if !is_vlan(ethertype) {
            return Ok((ethertype, at + 2));
        }
        if tags == MAX_VLAN_TAGS {
            return Err(Reject::TooManyHeaders);
        }
        tags += 1;
        at += 4;
    }
}

#[inline(always)]
fn any_ipv4<R: Read>(bytes: &R, ip: u32, frame: &Frame, out: &mut Parsed) -> Result<(), Reject> {
    let h = bytes.read::<20>(ip).ok_or(Reject::Truncated)?;
    let header = u32::from(h[0] & 0xf) * 4;
    if h[0] >> 4 != 4 || header < 20 {
        return Err(Reject::BadHeader);
    }
    let total = u32::from(u16::from_be_bytes([h[2], h[3]]));
    out.datagram_bytes = checked_length(total, header, frame, ip)?;
    out.header_bytes = header;
    out.key.src[3] = u32::from_ne_bytes([h[12], h[13], h[14], h[15]]);
    out.key.dst[3] = u32::from_ne_bytes([h[16], h[17], h[18], h[19]]);
    out.key.protocol = h[9];
    if u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
        out.key.flags = flag::FRAGMENT;
    }
    Ok(())
}

#[inline(always)]
fn any_ipv6<R: Read>(bytes: &R, ip: u32, frame: &Frame, out: &mut Parsed) -> Result<(), Reject> {
    let h = bytes.read::<8>(ip).ok_or(Reject::Truncated)?;
    if h[0] >> 4 != 6 {
        return Err(Reject::BadHeader);
    }
    let payload = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let jumbo = payload == 0 && h[6] == extension::HOP_BY_HOP;
    let total = if jumbo { 0 } else { payload + 40 };
    out.datagram_bytes = checked_length(total, 40, frame, ip)?;
    out.key.protocol = h[6];
    out.key.flags = flag::IPV6;
    out.key.src = words(bytes.read::<16>(ip + 8).ok_or(Reject::Truncated)?);
    out.key.dst = words(bytes.read::<16>(ip + 24).ok_or(Reject::Truncated)?);
    out.header_bytes = 40;
    behind_extensions(bytes, ip, out)
}

#[inline(always)]
fn words(b: [u8; 16]) -> [u32; 4] {
    let word = |o: usize| u32::from_ne_bytes([b[o], b[o + 1], b[o + 2], b[o + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// Follows IPv6 extension headers to the transport protocol.
#[inline(always)]
fn behind_extensions<R: Read>(bytes: &R, ip: u32, out: &mut Parsed) -> Result<(), Reject> {
    for followed in 0..=MAX_EXTENSION_HEADERS {
        let Some(kind) = Extension::of(out.key.protocol) else { return Ok(()) };
        if followed == MAX_EXTENSION_HEADERS {
            break;
        }
        if out.header_bytes + 8 > out.datagram_bytes {
            return Err(Reject::Truncated);
        }
        let e = bytes.read::<4>(ip + out.header_bytes).ok_or(Reject::Truncated)?;
        out.key.protocol = e[0];
        out.header_bytes += kind.length(e[1]);
        if out.header_bytes > out.datagram_bytes {
            return Err(Reject::Truncated);
        }
        if matches!(kind, Extension::Fragment) && u16::from_be_bytes([e[2], e[3]]) & 0xfff8 != 0 {
            // What follows a later fragment's header is payload, whatever its first bytes say.
            out.key.flags |= flag::FRAGMENT;
            return Ok(());
        }
    }
    Err(Reject::TooManyHeaders)
}

/// How the length of an extension header is told.
#[derive(Clone, Copy)]
enum Extension {
    /// In units of 8 bytes, the first not counted (RFC 8200, section 4).
    Units8,
    /// In units of 4 bytes, the first two not counted (RFC 4302, section 2.2).
    Authentication,
    /// Always 8 bytes (RFC 8200, section 4.5).
    Fragment,
}

impl Extension {
    #[inline(always)]
    fn of(next_header: u8) -> Option<Self> {
        match next_header {
            extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::DESTINATION
            | extension::MOBILITY
            | extension::HIP
            | extension::SHIM6 => Some(Self::Units8),
            extension::AUTHENTICATION => Some(Self::Authentication),
            extension::FRAGMENT => Some(Self::Fragment),
            _ => None,
        }
    }

    #[inline(always)]
    fn length(self, field: u8) -> u32 {
        match self {
            Self::Units8 => (u32::from(field) + 1) * 8,
            Self::Authentication => (u32::from(field) + 2) * 4,
            Self::Fragment => 8,
        }
    }
}

/// The datagram's length in the frame, checked against the header and the frame.
#[inline(always)]
fn checked_length(total: u32, header: u32, frame: &Frame, ip: u32) -> Result<u32, Reject> {
    let available = frame.length.checked_sub(ip).ok_or(Reject::Truncated)?;
    let length = match frame.link {
        // Behind a link header of unknown length only the datagram knows where it ends.
        Link::Other { .. } if total != 0 => total,
        _ if frame.gso_size != 0 || total == 0 => available,
        _ => total,
    };
    if length > available {
        return Err(Reject::Truncated);
    }
    if total == 0 && frame.gso_size == 0 && header == 20 {
        return Err(Reject::BadHeader);
    }
    if length < header {
        return Err(Reject::BadHeader);
    }
    Ok(length)
}

/// Ports, ICMP type and code, TCP flags; and how long the headers are that GSO repeats.
#[inline(always)]
fn any_transport<R: Read>(bytes: &R, ip: u32, out: &mut Parsed) -> Result<(), Reject> {
    if out.key.flags & flag::FRAGMENT != 0 {
        return Ok(());
    }
    let l4 = ip + out.header_bytes;
    let payload = out.datagram_bytes - out.header_bytes;
    match out.key.protocol {
        protocol::TCP => any_tcp(bytes, l4, payload, out),
        protocol::UDP | protocol::UDP_LITE => ports(bytes, l4, payload, 8, out),
        protocol::SCTP => ports(bytes, l4, payload, 12, out),
        protocol::ICMP | protocol::ICMPV6 => {
            if payload < 4 {
                return Err(Reject::Truncated);
            }
            out.key.src_port = bytes.read::<2>(l4).ok_or(Reject::Truncated)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

#[inline(always)]
fn any_tcp<R: Read>(bytes: &R, l4: u32, payload: u32, out: &mut Parsed) -> Result<(), Reject> {
    ports(bytes, l4, payload, 20, out)?;
    let t = bytes.read::<2>(l4 + 12).ok_or(Reject::Truncated)?;
    let length = u32::from(t[0] >> 4) * 4;
    if length < 20 {
        return Err(Reject::BadHeader);
    }
    if length > payload {
        return Err(Reject::Truncated);
    }
    out.header_bytes += length - 20;
    out.tcp_flags = t[1];
    Ok(())
}

/// Both ports of a transport header that has at least `header` bytes.
#[inline(always)]
fn ports<R: Read>(
    bytes: &R,
    l4: u32,
    payload: u32,
    header: u32,
    out: &mut Parsed,
) -> Result<(), Reject> {
    if payload < header {
        return Err(Reject::Truncated);
    }
    let t = bytes.read::<4>(l4).ok_or(Reject::Truncated)?;
    out.key.src_port = [t[0], t[1]];
    out.key.dst_port = [t[2], t[3]];
    out.header_bytes += header;
    Ok(())
}
