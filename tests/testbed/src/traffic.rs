//! Real sockets between two ports, with exact packet and byte counts.
//!
//! TCP counts itself (`TCP_INFO`); everything else is known before it is sent.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, ipproto};

use crate::flow::{Flow, ICMP, ICMPV6, L4, TCP, Traffic, UDP};
use crate::link::{Family, Port};
use crate::wait::wait_until;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// Datagrams on their way at once, so that no receive buffer overflows.
const WINDOW: usize = 16;
/// Length of an ICMP echo header and of a UDP header.
const SHORT_HEADER: u64 = 8;
/// Length of a TCP header without options.
const TCP_HEADER: u64 = 20;
/// The only option of a SYN once [`plain_tcp`] was asked for: the segment size.
const SYN_OPTIONS: u64 = 4;

/// Sends `count` datagrams of `len` data bytes; each one arrives before this returns.
///
/// # Panics
/// If a datagram is lost or changed.
pub fn udp(from: &Port, to: &Port, family: Family, count: usize, len: usize) -> Traffic {
    let (sender, receiver) = udp_pair(from, to, family);
    let data: Vec<u8> = (0..=255).cycle().take(len).collect();
    let mut buffer = vec![0; len + 1];
    let mut left = count;
    while left > 0 {
        let batch = left.min(WINDOW);
        for _ in 0..batch {
            assert_eq!(sender.send(&data).expect("a datagram leaves"), len);
        }
        for _ in 0..batch {
            let got = receiver.recv(&mut buffer).expect("a datagram arrives");
            assert_eq!(&buffer[..got], data, "a datagram arrives as it was sent");
        }
        left -= batch;
    }
    let bytes = count as u64 * (family.header_len() + SHORT_HEADER + len as u64);
    [(udp_flow(&sender, &receiver), total(count as u64, bytes))].into_iter().collect()
}

/// Sends one buffer of `len` bytes as datagrams of `segment` bytes (`UDP_SEGMENT`), one
/// super-packet to the kernel.
///
/// # Panics
/// If a datagram is lost.
pub fn udp_segments(from: &Port, to: &Port, family: Family, segment: usize, len: usize) -> Traffic {
    let (sender, receiver) = udp_pair(from, to, family);
    let size = libc::c_int::try_from(segment).expect("a segment is small");
    // SAFETY: `size` is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            sender.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
    assert_eq!(sender.send(&vec![7; len]).expect("a super-packet leaves"), len);
    let mut buffer = vec![0; 65_536];
    let mut received = 0;
    let count = len.div_ceil(segment);
    for _ in 0..count {
        received += receiver.recv(&mut buffer).expect("a segment arrives");
    }
    assert_eq!(received, len, "all segments arrive");
    let bytes = count as u64 * (family.header_len() + SHORT_HEADER) + len as u64;
    [(udp_flow(&sender, &receiver), total(count as u64, bytes))].into_iter().collect()
}

/// Sends `count` echo requests with `len` data bytes; each is answered before the next one.
///
/// # Panics
/// If one is not answered.
pub fn echo(from: &Port, to: &Port, family: Family, count: usize, len: usize) -> Traffic {
    let (domain, number, kind) = match family {
        Family::V4 => (AddressFamily::INET, ipproto::ICMP, 8_u8),
        Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket = from
        .netns
        .enter(|| rustix::net::socket(domain, SocketType::RAW, Some(number)))
        .expect("root may open a raw socket");
    // All that is needed of a datagram socket works on a raw one, too.
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
    socket.connect((to.address(family), 0)).expect("a link has a route");
    let (protocol, message) = match family {
        Family::V4 => (ICMP, crate::packet::icmp(8, 0, len)),
        Family::V6 => (ICMPV6, crate::packet::icmpv6(128, 0, len)),
    };
    let (src, dst) = (from.address(family), to.address(family));
    // The kernel fills in the checksum of ICMPv6 only.
    let request = crate::packet::ip(src, dst, &message).bytes.split_off(match family {
        Family::V4 => 20,
        Family::V6 => 40,
    });
    let mut buffer = vec![0; 65_536];
    for _ in 0..count {
        socket.send(&request).expect("an echo request leaves");
        loop {
            let got = socket.recv(&mut buffer).expect("an echo reply arrives");
            // IPv4 raw sockets hand out the IP header, too.
            let answer = if family == Family::V4 { &buffer[20..got] } else { &buffer[..got] };
            if answer[0] == kind - 8 && family == Family::V4
                || answer[0] == kind + 1 && family == Family::V6
            {
                assert_eq!(answer[4..], request[4..], "the reply carries the request's data");
                break;
            }
        }
    }
    let bytes = count as u64 * (family.header_len() + SHORT_HEADER + len as u64);
    let flow = Flow { src, dst, protocol, l4: L4::Icmp { kind, code: 0 } };
    [flow, flow.reply()].into_iter().map(|flow| (flow, total(count as u64, bytes))).collect()
}

/// Sends replies to pings that nobody has sent.
#[derive(Debug)]
pub struct Replies {
    socket: UdpSocket,
    message: Vec<u8>,
}

impl Replies {
    /// From one address to another, in the namespace of the calling thread.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn open(from: IpAddr, to: IpAddr) -> Self {
        let (domain, number, message, header) = match from {
            IpAddr::V4(_) => {
                (AddressFamily::INET, ipproto::ICMP, crate::packet::icmp(0, 0, 100), 20)
            }
            IpAddr::V6(_) => {
                (AddressFamily::INET6, ipproto::ICMPV6, crate::packet::icmpv6(129, 0, 100), 40)
            }
        };
        let socket = rustix::net::socket(domain, SocketType::RAW, Some(number))
            .expect("root may open a raw socket");
        // All that is needed of a datagram socket works on a raw one, too.
        let socket = UdpSocket::from(socket);
        socket.connect((to, 0)).expect("a link has a route");
        let message = crate::packet::ip(from, to, &message).bytes.split_off(header);
        Self { socket, message }
    }

    /// Sends one.
    ///
    /// # Panics
    /// If it does not leave.
    pub fn send(&self) {
        self.socket.send(&self.message).expect("an echo reply leaves");
    }
}

/// What a TCP connection did, as its two sockets counted it.
#[derive(Clone, Debug)]
pub struct TcpReport {
    /// The client's address.
    pub client: SocketAddr,
    /// The server's address.
    pub server: SocketAddr,
    /// Exact traffic of both directions.
    pub traffic: Traffic,
    /// Segments that were sent again.
    pub retransmitted: u64,
}

/// Makes segments as plain as they can be (no timestamps, SACK, scaling or ECN), so that each has
/// a header of 20 bytes and a SYN one of 24.
///
/// # Panics
/// If the kernel refuses.
pub fn plain_tcp(ports: [&Port; 2]) {
    for port in ports {
        for key in ["tcp_timestamps", "tcp_sack", "tcp_window_scaling", "tcp_ecn"] {
            port.netns.sysctl(&format!("ipv4/{key}"), 0);
        }
    }
}

/// Opens a connection, sends `up` bytes to the server and `down` bytes back, and closes it in
/// order. Exact only after [`plain_tcp`].
///
/// # Panics
/// If bytes are lost or the connection does not end.
pub fn tcp(from: &Port, to: &Port, family: Family, up: usize, down: usize) -> TcpReport {
    let address = to.address(family);
    let listener = to
        .netns
        .enter(|| TcpListener::bind((address, 0)))
        .unwrap_or_else(|error| panic!("listening on {address}: {error}"));
    let server_address = listener.local_addr().expect("a bound socket has an address");
    let client = from
        .netns
        .enter(|| TcpStream::connect_timeout(&server_address, DEADLINE))
        .unwrap_or_else(|error| panic!("connecting to {server_address}: {error}"));
    let (server, client_address) = listener.accept().expect("the connection is there");
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&server, down, up));
        exchange(&client, up, down);
    });
    wait_closed(&client);
    wait_closed(&server);
    let (near, far) = (TcpCount::read(&client), TcpCount::read(&server));
    let header = family.header_len() + TCP_HEADER;
    let flow = Flow::ports(
        TCP,
        (client_address.ip(), client_address.port()),
        (server_address.ip(), server_address.port()),
    );
    let mut traffic = Traffic::new();
    traffic.add(flow, near.segments, near.segments * header + near.bytes + SYN_OPTIONS);
    // The accepted socket does not count the SYN+ACK, which was sent before it existed.
    let replies = far.segments + 1;
    traffic.add(flow.reply(), replies, replies * header + far.bytes + SYN_OPTIONS);
    TcpReport {
        client: client_address,
        server: server_address,
        traffic,
        retransmitted: near.retransmitted + far.retransmitted,
    }
}

/// Sends `out` bytes and reads `back` bytes at the same time, up to the other side's end.
pub(crate) fn exchange(socket: &TcpStream, out: usize, back: usize) {
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
    socket.set_write_timeout(Some(DEADLINE)).expect("a timeout is accepted");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = socket;
            writer.write_all(&vec![0x5a; out]).expect("all bytes leave");
            socket.shutdown(Shutdown::Write).expect("an open connection can be shut");
        });
        let mut buffer = vec![0; 1 << 16];
        let mut reader = socket;
        let mut received = 0;
        loop {
            match reader.read(&mut buffer).expect("bytes arrive") {
                0 => break,
                count => received += count,
            }
        }
        assert_eq!(received, back, "all bytes arrive");
    });
}

/// Waits until a socket that is still ours has ended its connection.
pub(crate) fn wait_closed(socket: &TcpStream) {
    wait_until(DEADLINE, "the connection to end", || TcpCount::read(socket).state == CLOSED);
}

const CLOSED: u8 = 7;

/// The fields of `struct tcp_info` that matter here.
pub(crate) struct TcpCount {
    state: u8,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
    retransmitted: u64,
}

impl TcpCount {
    pub(crate) fn read(socket: &TcpStream) -> Self {
        let mut info = [0_u8; 256];
        let mut len = libc::socklen_t::try_from(info.len()).expect("small");
        // SAFETY: `info` has `len` bytes; the kernel writes at most those.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0, "TCP_INFO: {}", std::io::Error::last_os_error());
        assert!(len >= 208, "TCP_INFO has bytes_sent since kernel 4.19");
        let u32_at = |at: usize| {
            u64::from(u32::from_ne_bytes(info[at..at + 4].try_into().expect("four bytes")))
        };
        let bytes_sent = u64::from_ne_bytes(info[200..208].try_into().expect("eight bytes"));
        Self {
            state: info[0],
            segments: u32_at(136),
            bytes: bytes_sent,
            retransmitted: u32_at(100),
        }
    }
}

fn udp_pair(from: &Port, to: &Port, family: Family) -> (UdpSocket, UdpSocket) {
    let bind = |port: &Port| {
        let address: IpAddr = port.address(family);
        port.netns
            .enter(|| UdpSocket::bind((address, 0)))
            .unwrap_or_else(|error| panic!("binding to {address}: {error}"))
    };
    let (sender, receiver) = (bind(from), bind(to));
    let address = receiver.local_addr().expect("a bound socket has an address");
    sender.connect(address).unwrap_or_else(|error| panic!("no route to {address}: {error}"));
    receiver.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
    (sender, receiver)
}

fn udp_flow(sender: &UdpSocket, receiver: &UdpSocket) -> Flow {
    let end = |socket: &UdpSocket| {
        let address = socket.local_addr().expect("a bound socket has an address");
        (address.ip(), address.port())
    };
    Flow::ports(UDP, end(sender), end(receiver))
}

fn total(packets: u64, bytes: u64) -> crate::flow::Total {
    crate::flow::Total { packets, bytes }
}
