//! Raw frames, written header by header. What is built knows its own flow and IP length, so that
//! a test's expectation never comes from a parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::flow::{Flow, ICMP, ICMPV6, L4, SCTP, TCP, UDP};

/// TCP flag bits.
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Ends it at once.
    pub const RST: u8 = 4;
    /// Hand the data on.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// IPv6 extension header numbers.
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 51;
    /// Nothing follows.
    pub const NO_NEXT: u8 = 59;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
    /// Mobility.
    pub const MOBILITY: u8 = 135;
}

/// EtherType of a customer VLAN tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (QinQ).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// What IP carries: a protocol's header and data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// IP protocol number.
    pub protocol: u8,
    /// What tells its flow.
    pub l4: L4,
    /// Header and data.
    pub bytes: Vec<u8>,
    /// Where in `bytes` the checksum goes.
    checksum_at: Option<usize>,
}

/// A UDP datagram of `len` data bytes.
///
/// # Panics
/// If it does not fit into 65 535 bytes.
#[must_use]
pub fn udp(src: u16, dst: u16, len: usize) -> Payload {
    let total = u16::try_from(8 + len).expect("a UDP datagram has at most 65 535 bytes");
    let mut bytes = [src, dst, total, 0].map(u16::to_be_bytes).concat();
    bytes.extend(filler(len));
    Payload { protocol: UDP, l4: L4::Ports { src, dst }, bytes, checksum_at: Some(6) }
}

/// A TCP segment with `flags`, `options` bytes of options (a multiple of 4, all no-operations) and
/// `len` data bytes.
///
/// # Panics
/// If there are more options than a header holds.
#[must_use]
pub fn tcp(src: u16, dst: u16, flags: u8, options: usize, len: usize) -> Payload {
    let words = u8::try_from(5 + options / 4).expect("at most 15");
    assert!(
        words <= 15 && options.is_multiple_of(4),
        "TCP has up to 40 bytes of options, in words"
    );
    let mut bytes = [src, dst].map(u16::to_be_bytes).concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(std::iter::repeat_n(1, options));
    bytes.extend(filler(len));
    Payload { protocol: TCP, l4: L4::Ports { src, dst }, bytes, checksum_at: Some(16) }
}

/// An ICMP message with 4 bytes of rest-of-header and `len` data bytes.
#[must_use]
pub fn icmp(kind: u8, code: u8, len: usize) -> Payload {
    Payload { protocol: ICMP, ..icmp_message(kind, code, len) }
}

/// An ICMPv6 message with 4 bytes of rest-of-header and `len` data bytes.
#[must_use]
pub fn icmpv6(kind: u8, code: u8, len: usize) -> Payload {
    Payload { protocol: ICMPV6, ..icmp_message(kind, code, len) }
}

fn icmp_message(kind: u8, code: u8, len: usize) -> Payload {
    let mut bytes = vec![kind, code, 0, 0, 0x12, 0x34, 0, 1];
    bytes.extend(filler(len));
    Payload { protocol: ICMP, l4: L4::Icmp { kind, code }, bytes, checksum_at: Some(2) }
}

/// An SCTP packet with one DATA chunk of `len` bytes. Its CRC is left zero.
///
/// # Panics
/// If the chunk does not fit.
#[must_use]
pub fn sctp(src: u16, dst: u16, len: usize) -> Payload {
    let chunk = u16::try_from(16 + len).expect("a chunk has at most 65 535 bytes");
    let mut bytes = [src, dst].map(u16::to_be_bytes).concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 3]);
    bytes.extend(chunk.to_be_bytes());
    bytes.extend([0; 12]);
    bytes.extend(filler(len));
    Payload { protocol: SCTP, l4: L4::Ports { src, dst }, bytes, checksum_at: None }
}

/// `len` bytes of a protocol without ports.
#[must_use]
pub fn other(protocol: u8, len: usize) -> Payload {
    Payload { protocol, l4: L4::Plain, bytes: filler(len).collect(), checksum_at: None }
}

fn filler(len: usize) -> impl Iterator<Item = u8> {
    (0_u8..=255).cycle().take(len)
}

/// An IP packet with its flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Whose it is.
    pub flow: Flow,
    /// From the IP header on.
    pub bytes: Vec<u8>,
    /// Length of the IP header with options or extension headers.
    pub header_len: usize,
}

/// An IP packet without options or extension headers.
///
/// # Panics
/// If the addresses are of different families, or if it does not fit into 65 535 bytes.
#[must_use]
pub fn ip(src: IpAddr, dst: IpAddr, payload: &Payload) -> Packet {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(src, dst, 0, payload),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6(src, dst, &[], payload),
        _ => panic!("{src} and {dst} are of different families"),
    }
}

/// An IPv4 packet with `options` bytes of options (a multiple of 4, all no-operations).
///
/// # Panics
/// If there are more options than a header holds, or if it does not fit into 65 535 bytes.
#[must_use]
pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, options: usize, payload: &Payload) -> Packet {
    assert!(
        options <= 40 && options.is_multiple_of(4),
        "IPv4 has up to 40 bytes of options, in words"
    );
    let header_len = 20 + options;
    let total = u16::try_from(header_len + payload.bytes.len()).expect("at most 65 535 bytes");
    let words = u8::try_from(header_len / 4).expect("at most 15");
    let mut bytes = vec![0x40 | words, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 7, 0x40, 0, 64, payload.protocol, 0, 0]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(std::iter::repeat_n(1, options));
    bytes.extend(payload.checksummed(src.into(), dst.into()));
    let mut packet = Packet::new(src.into(), dst.into(), header_len, payload, bytes);
    packet.fix_ipv4_checksum();
    packet
}

/// An IPv6 packet with extension headers: each its number and length in bytes (a multiple of 8;
/// of 4 for authentication).
///
/// # Panics
/// If a length is not possible, or if it does not fit into 65 535 bytes.
#[must_use]
pub fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, extensions: &[(u8, usize)], payload: &Payload) -> Packet {
    let next = |i: usize| extensions.get(i).map_or(payload.protocol, |&(number, _)| number);
    let mut chain = Vec::new();
    for (i, &(number, len)) in extensions.iter().enumerate() {
        chain.extend(extension_header(number, next(i + 1), len));
    }
    let len = u16::try_from(chain.len() + payload.bytes.len()).expect("at most 65 535 bytes");
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(len.to_be_bytes());
    bytes.extend([next(0), 64]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    let header_len = 40 + chain.len();
    bytes.extend(chain);
    bytes.extend(payload.checksummed(src.into(), dst.into()));
    Packet::new(src.into(), dst.into(), header_len, payload, bytes)
}

fn extension_header(number: u8, next: u8, len: usize) -> Vec<u8> {
    let mut header = vec![0; len];
    header[0] = next;
    let units = match number {
        extension::AUTHENTICATION => len / 4 - 2,
        extension::FRAGMENT => 0,
        _ => len / 8 - 1,
    };
    header[1] = u8::try_from(units).expect("an extension header has at most 2 048 bytes");
    if matches!(number, extension::HOP_BY_HOP | extension::DESTINATION) {
        // One experimental option (RFC 4727) over the rest, which receivers skip; Linux drops
        // packets with more than 7 bytes of padding.
        header[2] = 0x1e;
        header[3] = u8::try_from(len - 4).expect("one option is enough");
    }
    header
}

impl Packet {
    fn new(src: IpAddr, dst: IpAddr, header_len: usize, payload: &Payload, bytes: Vec<u8>) -> Self {
        let flow = Flow { src, dst, protocol: payload.protocol, l4: payload.l4 };
        Self { flow, bytes, header_len }
    }

    /// IP bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// True if there are no bytes, which no constructor makes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The same packet in fragments that carry at most `room` bytes (a multiple of 8) each. The
    /// first keeps the flow, the rest are [`L4::Fragment`].
    ///
    /// # Panics
    /// If `room` is not a multiple of 8, or if an IPv6 packet has extension headers.
    #[must_use]
    pub fn fragments(&self, room: usize) -> Vec<Self> {
        assert!(room > 0 && room.is_multiple_of(8), "fragments are counted in units of 8 bytes");
        let (header, data) = self.bytes.split_at(self.header_len);
        let count = data.len().div_ceil(room);
        data.chunks(room)
            .enumerate()
            .map(|(i, chunk)| {
                let offset = u16::try_from(i * room).expect("within the datagram");
                let more = u16::from(i + 1 < count);
                let bytes = match self.flow.src {
                    IpAddr::V4(_) => fragment_v4(header, offset, more, chunk),
                    IpAddr::V6(_) => fragment_v6(header, self.flow.protocol, offset, more, chunk),
                };
                let l4 = if i == 0 { self.flow.l4 } else { L4::Fragment };
                let flow = Flow { l4, ..self.flow };
                let header_len = bytes.len() - chunk.len();
                let mut packet = Self { flow, bytes, header_len };
                if flow.src.is_ipv4() {
                    packet.fix_ipv4_checksum();
                }
                packet
            })
            .collect()
    }

    /// The frame that carries it: Ethernet, VLAN tags (EtherType and number, outermost first), IP.
    #[must_use]
    pub fn frame(&self, from: [u8; 6], to: [u8; 6], tags: &[(u16, u16)]) -> Vec<u8> {
        let ethertype = if self.flow.src.is_ipv4() { 0x0800 } else { 0x86dd };
        frame(from, to, tags, ethertype, &self.bytes)
    }

    fn fix_ipv4_checksum(&mut self) {
        let header = usize::from(self.bytes[0] & 15) * 4;
        self.bytes[10..12].fill(0);
        let sum = checksum(&[&self.bytes[..header]]);
        self.bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

fn fragment_v4(header: &[u8], offset: u16, more: u16, chunk: &[u8]) -> Vec<u8> {
    let total = u16::try_from(header.len() + chunk.len()).expect("not longer than the whole");
    let mut bytes = [header, chunk].concat();
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes[6..8].copy_from_slice(&((more << 13) | (offset / 8)).to_be_bytes());
    bytes
}

fn fragment_v6(header: &[u8], protocol: u8, offset: u16, more: u16, chunk: &[u8]) -> Vec<u8> {
    assert_eq!(header.len(), 40, "extension headers stay in front of the fragment header");
    let mut bytes = header.to_vec();
    let len = u16::try_from(8 + chunk.len()).expect("not longer than the whole");
    bytes[4..6].copy_from_slice(&len.to_be_bytes());
    bytes[6] = extension::FRAGMENT;
    bytes.extend([protocol, 0]);
    bytes.extend((offset | more).to_be_bytes());
    bytes.extend([0, 0, 0, 7]);
    bytes.extend(chunk);
    bytes
}

/// An Ethernet frame around any bytes.
#[must_use]
pub fn frame(
    from: [u8; 6],
    to: [u8; 6],
    tags: &[(u16, u16)],
    ethertype: u16,
    bytes: &[u8],
) -> Vec<u8> {
    let mut frame = [to, from].concat();
    for (tpid, number) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(number.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(bytes);
    frame
}

impl Payload {
    /// Header and data with the checksum that this pair of addresses gives.
    fn checksummed(&self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let Some(at) = self.checksum_at else { return bytes };
        let len = u32::try_from(bytes.len()).expect("at most 65 535 bytes").to_be_bytes();
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let pseudo = if self.protocol == ICMP {
            Vec::new()
        } else {
            let tail = [len.as_slice(), &[0, 0, 0, self.protocol]].concat();
            [address(src), address(dst), tail].concat()
        };
        let sum = match checksum(&[&pseudo, &bytes]) {
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The Internet checksum (RFC 1071) over parts of even length, the last of any length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 =
        words.map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
