//! Packet sockets: frames go out exactly as they are written, past the IP layer, through the
//! hooks.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::flow::Traffic;
use crate::link::Port;
use crate::packet::Packet;

/// Frames a system call takes at most.
const BATCH: usize = 256;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    from: [u8; 6],
    to: [u8; 6],
}

/// What a super-packet or a packet with a short linear part is made of (`struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// Which protocol cuts it into segments.
    pub kind: Segments,
    /// Bytes at the front, link header included, that are to be linear.
    pub linear: u16,
    /// Data bytes of each segment; 0 without segmentation.
    pub size: u16,
    /// Where, link header included, the transport header starts.
    pub transport_at: u16,
    /// Where in the transport header its checksum is.
    pub checksum_at: u16,
}

/// Which protocol cuts a super-packet into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Segments {
    /// It is an ordinary packet.
    None = 0,
    /// TCP over IPv4.
    TcpV4 = 1,
    /// TCP over IPv6.
    TcpV6 = 4,
    /// UDP, each segment a datagram.
    Udp = 5,
}

impl RawSocket {
    /// A socket that sends on `port`, by default to the other end of its link.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn open(port: &Port, to: [u8; 6]) -> Self {
        let fd = sender(port);
        Self { fd, from: port.mac, to }
    }

    /// The same, with [`Offload`] headers in front of the frames.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn open_offload(port: &Port, to: [u8; 6]) -> Self {
        let socket = Self::open(port, to);
        set_option(&socket.fd, libc::PACKET_VNET_HDR, &1_i32)
            .unwrap_or_else(|error| panic!("PACKET_VNET_HDR: {error}"));
        socket
    }

    /// Sends frames as they are.
    ///
    /// # Panics
    /// If one is refused.
    pub fn send_frames<F: AsRef<[u8]>>(&self, frames: &[F]) {
        for batch in frames.chunks(BATCH) {
            let mut rest = batch;
            while !rest.is_empty() {
                let sent = send_batch(&self.fd, rest)
                    .unwrap_or_else(|error| panic!("sending a frame: {error}"));
                rest = &rest[sent..];
            }
        }
    }

    /// Sends packets in untagged frames and returns what was sent.
    ///
    /// # Panics
    /// If one is refused.
    pub fn send(&self, packets: &[Packet]) -> Traffic {
        self.send_tagged(packets, &[])
    }

    /// Sends packets in frames with VLAN tags and returns what was sent.
    ///
    /// # Panics
    /// If one is refused.
    pub fn send_tagged(&self, packets: &[Packet], tags: &[(u16, u16)]) -> Traffic {
        let frames: Vec<_> =
            packets.iter().map(|packet| packet.frame(self.from, self.to, tags)).collect();
        self.send_frames(&frames);
        count(packets)
    }

    /// Sends one frame with an [`Offload`] header; only on sockets of [`Self::open_offload`].
    ///
    /// # Panics
    /// If it is refused.
    pub fn send_offload(&self, offload: Offload, frame: &[u8]) {
        let Offload { kind, linear, size, transport_at, checksum_at } = offload;
        let needs_checksum = u8::from(size > 0);
        let mut message = vec![needs_checksum, kind as u8];
        let start = if size > 0 { transport_at } else { 0 };
        let offset = if size > 0 { checksum_at } else { 0 };
        for word in [linear, size, start, offset] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(frame);
        self.send_frames(&[message]);
    }
}

/// What packets come to, per flow.
#[must_use]
pub fn count(packets: &[Packet]) -> Traffic {
    let mut traffic = Traffic::new();
    for packet in packets {
        traffic.add(packet.flow, 1, packet.len());
    }
    traffic
}

/// Everything that arrives on an interface, as it arrives.
#[derive(Debug)]
pub struct Capture {
    socket: std::net::UdpSocket,
}

impl Capture {
    /// Starts to listen on `port`.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn open(port: &Port) -> Self {
        let all = u16::try_from(libc::ETH_P_ALL).expect("an EtherType");
        let fd = port
            .netns
            .enter(|| open(port.ifindex, all))
            .unwrap_or_else(|error| panic!("capturing on {}: {error}", port.ifname));
        // All that is needed of a datagram socket works on a packet socket, too.
        let socket = std::net::UdpSocket::from(fd);
        let deadline = std::time::Duration::from_secs(5);
        socket.set_read_timeout(Some(deadline)).expect("a timeout is accepted");
        Self { socket }
    }

    /// The next frame, waiting for it.
    ///
    /// # Panics
    /// If none comes.
    #[must_use]
    pub fn next_frame(&self) -> Vec<u8> {
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame).unwrap_or_else(|error| panic!("frame: {error}"));
        frame.truncate(len);
        frame
    }
}

/// A packet socket that sends on `port`, and receives nothing.
///
/// # Panics
/// If the kernel refuses.
pub(crate) fn sender(port: &Port) -> OwnedFd {
    port.netns
        .enter(|| open(port.ifindex, 0))
        .unwrap_or_else(|error| panic!("packet socket on {}: {error}", port.ifname))
}

/// `protocol` 0: it sends, and receives nothing.
pub(crate) fn open(ifindex: u32, protocol: u16) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(ifindex).expect("interface numbers are positive ints");
    // SAFETY: the address has the size that is told and outlives the call.
    let result = unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_u32::<libc::sockaddr_ll>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

pub(crate) fn set_option<T>(fd: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` has the size that is told; the caller gives the option's own type.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option, value, size_of_u32::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn send_batch<F: AsRef<[u8]>>(fd: &OwnedFd, frames: &[F]) -> io::Result<usize> {
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| {
            let frame = frame.as_ref();
            libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() }
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all zeroes is a valid message header.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = u32::try_from(messages.len()).expect("a batch is small");
    // SAFETY: `count` message headers, whose parts and frames outlive the call.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("small")
}
