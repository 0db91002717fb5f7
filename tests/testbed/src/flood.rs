//! As many small frames as a core can send, each of another flow if wanted, from addresses that
//! nobody has.
//!
//! Frames are rewritten in place and handed over in batches: nothing is allocated for a packet.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::flow::Total;
use crate::link::Port;
use crate::packet::{self, tcp_flag};
use crate::raw;

/// Frames in a batch, which is one system call.
pub const BATCH: usize = 256;
/// The smallest frame of Ethernet, without its check sequence.
const FRAME: usize = 60;
const LINK_HEADER: usize = 14;
/// Data bytes with which a datagram fills that frame.
const DATA: usize = FRAME - LINK_HEADER - 28;

/// The one packet of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Small {
    /// Who it says that it is from.
    pub src: Ipv4Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// A TCP SYN instead of a UDP datagram.
    pub syn: bool,
}

impl Small {
    /// One of 2^32 flows, no two of which are alike: UDP and SYN in turns, from 131 072 addresses
    /// of the range for benchmarks (RFC 2544).
    #[must_use]
    pub fn unique(number: u32) -> Self {
        let (host, rest) = (number >> 1 & 0x1_ffff, number >> 18);
        Self {
            src: Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + host),
            sport: 1_024 + u16::try_from(rest).unwrap_or(u16::MAX),
            dport: 53,
            syn: number & 1 == 1,
        }
    }
}

/// A frame that is rewritten for each packet.
#[derive(Clone, Debug)]
struct Template {
    bytes: Vec<u8>,
    /// Sum of the IPv4 header without checksum and source address.
    sum: u32,
}

impl Template {
    fn new(from: [u8; 6], to: [u8; 6], dst: Ipv4Addr, payload: &packet::Payload) -> Self {
        let packet = packet::ip(Ipv4Addr::UNSPECIFIED.into(), dst.into(), payload);
        let bytes = packet.frame(from, to, &[]);
        let header = &bytes[LINK_HEADER..LINK_HEADER + 20];
        let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        let words = header.chunks_exact(2).enumerate();
        let sum = words.filter(|(at, _)| *at != 5).map(|(_, pair)| word(pair)).sum();
        Self { bytes, sum }
    }
}

/// A packet socket with room for one batch.
#[derive(Debug)]
pub struct Flood {
    fd: OwnedFd,
    datagram: Template,
    syn: Template,
    frames: Vec<[u8; FRAME]>,
    parts: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
}

impl Flood {
    /// Sends on `port` to the machine at the other end of its link, at an address of that link's.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn open(port: &Port, to: &Port) -> Self {
        let fd = raw::sender(port);
        let template = |payload| Template::new(port.mac, to.mac, to.v4, &payload);
        let mut frames = vec![[0; FRAME]; BATCH];
        let mut parts: Vec<libc::iovec> = frames
            .iter_mut()
            .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: 0 })
            .collect();
        let messages = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all zeroes is a valid message header.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        Self {
            fd,
            datagram: template(packet::udp(0, 0, DATA)),
            syn: template(packet::tcp(0, 0, tcp_flag::SYN, 0, 0)),
            frames,
            parts,
            messages,
        }
    }

    /// Sends up to [`BATCH`] packets; what the link did not take is not in the sum.
    ///
    /// # Panics
    /// If the kernel refuses for another reason than that it has no room.
    pub fn send(&mut self, packets: impl IntoIterator<Item = Small>) -> Total {
        let mut count = 0;
        for (at, small) in packets.into_iter().take(BATCH).enumerate() {
            self.write(at, small);
            count = at + 1;
        }
        let (mut sent, mut at) = (Total::default(), 0);
        while at < count {
            let taken = self.hand_over(at, count);
            for part in &self.parts[at..at + taken] {
                sent.add(1, (part.iov_len - LINK_HEADER) as u64);
            }
            // The one that was not taken is left out.
            at += taken.max(1);
        }
        sent
    }

    fn write(&mut self, at: usize, small: Small) {
        let template = if small.syn { &self.syn } else { &self.datagram };
        let frame = &mut self.frames[at][..template.bytes.len()];
        frame.copy_from_slice(&template.bytes);
        let src = small.src.octets();
        frame[26..30].copy_from_slice(&src);
        let sum = template.sum
            + u32::from(u16::from_be_bytes([src[0], src[1]]))
            + u32::from(u16::from_be_bytes([src[2], src[3]]));
        let sum = (sum & 0xffff) + (sum >> 16);
        let [_, _, high, low] = (!((sum & 0xffff) + (sum >> 16))).to_be_bytes();
        frame[24..26].copy_from_slice(&[high, low]);
        frame[34..36].copy_from_slice(&small.sport.to_be_bytes());
        frame[36..38].copy_from_slice(&small.dport.to_be_bytes());
        // A datagram may do without a checksum, and nobody reads that of a SYN: no host has the
        // address that it is for.
        let checksum = if small.syn { 50..52 } else { 40..42 };
        frame[checksum].fill(0);
        self.parts[at].iov_len = frame.len();
    }

    /// Hands over messages up to `end`; how many were taken.
    fn hand_over(&mut self, at: usize, end: usize) -> usize {
        let messages = &mut self.messages[at..end];
        let count = u32::try_from(messages.len()).expect("a batch is small");
        // SAFETY: `count` message headers; what they point to is ours, was not moved since, and
        // nobody else writes it meanwhile.
        let taken = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        if let Ok(taken) = usize::try_from(taken) {
            return taken;
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOBUFS | libc::EINTR) => 0,
            _ => panic!("sending frames: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Veth, VethOptions};
    use crate::need;
    use crate::need::Need;
    use crate::raw::Capture;

    #[test]
    fn no_two_numbers_are_one_flow() {
        let all: std::collections::HashSet<_> = (0..300_000)
            .map(Small::unique)
            .map(|flow| (flow.src, flow.sport, flow.dport, flow.syn))
            .collect();
        assert_eq!(all.len(), 300_000);
        assert_eq!(Small::unique(u32::MAX).src, Ipv4Addr::new(198, 19, 255, 255));
    }

    #[test]
    fn frames_arrive_as_packets_of_their_flows_with_a_good_header() {
        need!(Need::Root, Need::Tool("ip"));
        let link = Veth::quiet(VethOptions::default());
        let capture = Capture::open(&link.near);
        let wanted = [Small::unique(6), Small::unique(0x9_0007), Small::unique(1)];
        let sent = Flood::open(&link.far, &link.near).send(wanted);
        assert_eq!(sent, Total { packets: 3, bytes: 46 + 40 + 40 });
        for small in wanted {
            let frame = capture.next_frame();
            let payload = if small.syn {
                packet::tcp(small.sport, small.dport, tcp_flag::SYN, 0, 0)
            } else {
                packet::udp(small.sport, small.dport, DATA)
            };
            let packet = packet::ip(small.src.into(), link.near.v4.into(), &payload);
            let mut whole = packet.frame(link.far.mac, link.near.mac, &[]);
            let checksum = if small.syn { 50..52 } else { 40..42 };
            whole[checksum].fill(0);
            assert_eq!(frame, whole);
            let header = &frame[LINK_HEADER..LINK_HEADER + 20];
            let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
            let sum: u32 = words.sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the header's checksum");
        }
    }
}
