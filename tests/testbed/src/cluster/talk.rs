//! Traffic between actors, each packet and byte of it known, as each end has it: behind a Service
//! or a masquerade the two ends do not see the same addresses.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::actor::{Actor, DEADLINE};
use crate::flow::{Flow, ICMP, ICMPV6, L4, TCP, Total, UDP};
use crate::link::Family;
use crate::traffic::{TcpCount, exchange, wait_closed};
use crate::wait::wait_for;

/// Length of an IPv4 and an IPv6 header.
fn ip_header(address: IpAddr) -> u64 {
    family(address).header_len()
}

/// Length of an ICMP echo header and of a UDP header.
const SHORT_HEADER: u64 = 8;
/// Length of a TCP header without options.
const TCP_HEADER: u64 = 20;
/// The only option of a SYN.
const SYN_OPTIONS: u64 = 4;

/// The family of an address.
#[must_use]
pub fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// What two ends said to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Talk {
    /// From the client, with the addresses that the client's socket has.
    pub client: Flow,
    /// From the client, with the addresses that the server's socket has.
    pub server: Flow,
    /// What the client sent.
    pub there: Total,
    /// What the server sent.
    pub back: Total,
}

impl Talk {
    /// What was said since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |total: Total, before: Total| Total {
            packets: total.packets - before.packets,
            bytes: total.bytes - before.bytes,
        };
        let there = less(self.there, earlier.there);
        Self { there, back: less(self.back, earlier.back), ..*self }
    }
}

/// Two UDP sockets that talk through whatever lies between them.
#[derive(Debug)]
pub struct UdpTalk {
    client: UdpSocket,
    server: UdpSocket,
    seen: SocketAddr,
    talk: Talk,
}

impl UdpTalk {
    /// A client that dials an address, and the one of `servers` that gets it, each of which is
    /// bound to `port` of its own address. Says one datagram of no data there and back.
    ///
    /// # Panics
    /// If nobody is reached.
    #[must_use]
    pub fn open(client: &Actor, servers: &[&Actor], dial: SocketAddr, port: u16) -> (usize, Self) {
        let socket = client.udp(SocketAddr::new(client.address(family(dial.ip())), 0));
        Self::open_with(socket, servers, dial, port)
    }

    /// As [`Self::open`], with a socket that is bound already.
    ///
    /// # Panics
    /// If nobody is reached.
    #[must_use]
    pub fn open_with(
        socket: UdpSocket,
        servers: &[&Actor],
        dial: SocketAddr,
        port: u16,
    ) -> (usize, Self) {
        let bound: Vec<UdpSocket> = servers
            .iter()
            .map(|server| server.udp(SocketAddr::new(server.address(family(dial.ip())), port)))
            .collect();
        socket.connect(dial).unwrap_or_else(|error| panic!("no route to {dial}: {error}"));
        assert_eq!(socket.send(&[]).expect("a datagram leaves"), 0);
        for server in &bound {
            server.set_nonblocking(true).expect("a socket can be non-blocking");
        }
        let (number, seen) = wait_for(DEADLINE, &format!("a datagram to {dial} to arrive"), || {
            bound.iter().enumerate().find_map(|(number, server)| {
                server.recv_from(&mut [0; 1]).ok().map(|(_, from)| (number, from))
            })
        });
        let server = bound.into_iter().nth(number).expect("one of them");
        server.set_nonblocking(false).expect("a socket can block");
        server.send_to(&[], seen).expect("a datagram leaves");
        assert_eq!(socket.recv(&mut [0; 1]).expect("an answer arrives"), 0);
        let local = socket.local_addr().expect("a bound socket has an address");
        let at = server.local_addr().expect("a bound socket has an address");
        let empty = ip_header(dial.ip()) + SHORT_HEADER;
        let talk = Talk {
            client: Flow::ports(UDP, end(local), end(dial)),
            server: Flow::ports(UDP, end(seen), end(at)),
            there: Total { packets: 1, bytes: empty },
            back: Total { packets: 1, bytes: empty },
        };
        (number, Self { client: socket, server, seen, talk })
    }

    /// Sends `count` datagrams of `len` data bytes, each of which is sent back.
    ///
    /// # Panics
    /// If one is lost.
    pub fn say(&mut self, count: u64, len: usize) {
        let data: Vec<u8> = (0..=255).cycle().take(len).collect();
        let mut buffer = vec![0; len + 1];
        for _ in 0..count {
            assert_eq!(self.client.send(&data).expect("a datagram leaves"), len);
            let (got, from) = self.server.recv_from(&mut buffer).expect("a datagram arrives");
            assert_eq!((got, from), (len, self.seen), "it arrives as it was sent");
            self.server.send_to(&data, self.seen).expect("a datagram leaves");
            assert_eq!(self.client.recv(&mut buffer).expect("an answer arrives"), len);
        }
        let bytes = count * (ip_header(self.talk.client.dst) + SHORT_HEADER + len as u64);
        self.talk.there.add(count, bytes);
        self.talk.back.add(count, bytes);
    }

    /// What was said so far.
    #[must_use]
    pub fn talk(&self) -> Talk {
        self.talk
    }
}

/// Sends `count` datagrams of `len` data bytes and an empty one before them; each is answered by
/// the same.
///
/// # Panics
/// If one is lost.
#[must_use]
pub fn udp(client: &Actor, server: &Actor, dial: SocketAddr, count: u64, len: usize) -> Talk {
    let (_, mut talk) = UdpTalk::open(client, &[server], dial, dial.port());
    talk.say(count, len);
    talk.talk()
}

/// Opens a connection, sends `up` bytes there and `down` bytes back, and closes it in order.
///
/// # Panics
/// If bytes are lost or the connection does not end.
#[must_use]
pub fn tcp(client: &Actor, server: &Actor, dial: SocketAddr, up: usize, down: usize) -> Talk {
    tcp_any(client, &[server], dial, dial.port(), up, down).1
}

/// As [`tcp`], to whichever of `servers` gets the connection, each of which listens at `port` of
/// its own address.
///
/// # Panics
/// If bytes are lost or the connection does not end.
#[must_use]
pub fn tcp_any(
    client: &Actor,
    servers: &[&Actor],
    dial: SocketAddr,
    port: u16,
    up: usize,
    down: usize,
) -> (usize, Talk) {
    let (number, connection) = Connection::open(client, servers, dial, port);
    (number, connection.finish(up, down))
}

/// A connection that is open.
#[derive(Debug)]
pub struct Connection {
    client: TcpStream,
    server: TcpStream,
    flows: [Flow; 2],
}

impl Connection {
    /// Opens one to whichever of `servers` gets it.
    ///
    /// # Panics
    /// If nobody gets it.
    #[must_use]
    pub fn open(client: &Actor, servers: &[&Actor], dial: SocketAddr, port: u16) -> (usize, Self) {
        let listeners = listen(servers, dial, port);
        let stream =
            client.connect(dial).unwrap_or_else(|error| panic!("connecting to {dial}: {error}"));
        Self::accept(stream, &listeners, dial)
    }

    fn accept(client: TcpStream, listeners: &[TcpListener], dial: SocketAddr) -> (usize, Self) {
        let accepted = wait_for(DEADLINE, &format!("a connection to {dial} to arrive"), || {
            listeners.iter().enumerate().find_map(|(number, listener)| {
                listener.accept().ok().map(|(stream, from)| (number, stream, from))
            })
        });
        let (number, server, seen) = accepted;
        server.set_nonblocking(false).expect("a socket can block");
        let local = client.local_addr().expect("a connected socket has an address");
        let at = server.local_addr().expect("a connected socket has an address");
        let flows = [Flow::ports(TCP, end(local), end(dial)), Flow::ports(TCP, end(seen), end(at))];
        (number, Self { client, server, flows })
    }

    /// From the client, as each end has it.
    #[must_use]
    pub fn flows(&self) -> [Flow; 2] {
        self.flows
    }

    /// What was said so far, which is all there is as long as nothing is under way.
    #[must_use]
    pub fn talk(&self) -> Talk {
        let (near, far) = (TcpCount::read(&self.client), TcpCount::read(&self.server));
        let header = ip_header(self.flows[0].dst) + TCP_HEADER;
        // The accepted socket does not count the SYN+ACK, which was sent before it existed.
        let replies = far.segments + 1;
        Talk {
            client: self.flows[0],
            server: self.flows[1],
            there: Total {
                packets: near.segments,
                bytes: near.segments * header + near.bytes + SYN_OPTIONS,
            },
            back: Total { packets: replies, bytes: replies * header + far.bytes + SYN_OPTIONS },
        }
    }

    /// Sends `up` bytes there and `down` bytes back and closes in order; all that was said.
    ///
    /// # Panics
    /// If bytes are lost or the connection does not end.
    #[must_use]
    pub fn finish(self, up: usize, down: usize) -> Talk {
        std::thread::scope(|scope| {
            scope.spawn(|| exchange(&self.server, down, up));
            exchange(&self.client, up, down);
        });
        // Both sockets stay open until both have ended, so that every packet has a socket.
        wait_closed(&self.client);
        wait_closed(&self.server);
        self.talk()
    }
}

fn listen(servers: &[&Actor], dial: SocketAddr, port: u16) -> Vec<TcpListener> {
    servers
        .iter()
        .map(|server| {
            let address = SocketAddr::new(server.address(family(dial.ip())), port);
            let listener = server.listen(address);
            listener.set_nonblocking(true).expect("a socket can be non-blocking");
            listener
        })
        .collect()
}

/// Sends `count` echo requests with `len` data bytes; each is answered before the next one.
///
/// # Panics
/// If one is not answered.
#[must_use]
pub fn ping(client: &Actor, to: IpAddr, count: u64, len: usize) -> Talk {
    let v4 = to.is_ipv4();
    let socket = client.icmp(to);
    let (protocol, kind, reply) = if v4 { (ICMP, 8, 0) } else { (ICMPV6, 128, 129) };
    let message =
        if v4 { crate::packet::icmp(8, 0, len) } else { crate::packet::icmpv6(128, 0, len) };
    let from = client.address(family(to));
    // The kernel fills in the checksum of ICMPv6 only.
    let header = usize::try_from(ip_header(to)).expect("a header is short");
    let request = crate::packet::ip(from, to, &message).bytes.split_off(header);
    let mut buffer = vec![0; 65_536];
    for _ in 0..count {
        socket.send(&request).expect("an echo request leaves");
        loop {
            let got = socket.recv(&mut buffer).expect("an echo reply arrives");
            // IPv4 raw sockets hand out the IP header, too.
            let answer = if v4 { &buffer[header..got] } else { &buffer[..got] };
            if answer[0] == reply && answer[4..] == request[4..] {
                break;
            }
        }
    }
    let flow = Flow { src: from, dst: to, protocol, l4: L4::Icmp { kind, code: 0 } };
    let bytes = count * (ip_header(to) + SHORT_HEADER + len as u64);
    let total = Total { packets: count, bytes };
    Talk { client: flow, server: flow, there: total, back: total }
}

/// Knocks at a TCP port where nobody listens: one SYN there, one RST back.
///
/// # Panics
/// If somebody listens, or nobody answers.
#[must_use]
pub fn refused_tcp(client: &Actor, to: SocketAddr) -> Talk {
    let (local, refused) = client.connect_from(0, to);
    let error = refused.expect_err("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    let flow = Flow::ports(TCP, end(local), end(to));
    let bytes = ip_header(to.ip()) + TCP_HEADER;
    Talk {
        client: flow,
        server: flow,
        there: Total { packets: 1, bytes: bytes + SYN_OPTIONS },
        back: Total { packets: 1, bytes },
    }
}

/// A datagram to a port where nobody listens: `there` is the datagram, `back` the ICMP message,
/// whose flow is the third of the answer.
///
/// # Panics
/// If it is not refused.
#[must_use]
pub fn refused_udp(client: &Actor, to: SocketAddr, len: usize) -> (Talk, Flow) {
    let socket = client.udp(SocketAddr::new(client.address(family(to.ip())), 0));
    socket.connect(to).unwrap_or_else(|error| panic!("no route to {to}: {error}"));
    assert_eq!(socket.send(&vec![7; len]).expect("a datagram leaves"), len);
    let error: io::Error = socket.recv(&mut [0; 1]).expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    let local = socket.local_addr().expect("a bound socket has an address");
    let flow = Flow::ports(UDP, end(local), end(to));
    let datagram = ip_header(to.ip()) + SHORT_HEADER + len as u64;
    let (protocol, kind, code) = if to.is_ipv4() { (ICMP, 3, 3) } else { (ICMPV6, 1, 4) };
    let refusal = Flow { src: to.ip(), dst: local.ip(), protocol, l4: L4::Icmp { kind, code } };
    let talk = Talk {
        client: flow,
        server: flow,
        there: Total { packets: 1, bytes: datagram },
        // It carries the refused datagram whole, as long as that is short.
        back: Total { packets: 1, bytes: ip_header(to.ip()) + SHORT_HEADER + datagram },
    };
    (talk, refusal)
}

fn end(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip(), address.port())
}

/// Knocks at a Service that nobody is behind: SYNs there, an ICMP message back from the node for
/// each. The first message finds the socket still in use by the call that dials, if it is as fast as
/// that, and the kernel then knocks once more.
///
/// # Panics
/// If somebody answers.
#[must_use]
pub fn refused_by_service(client: &Actor, to: SocketAddr) -> (Flow, Total, Total) {
    let (local, socket) = client.dial(to);
    wait_closed(&socket);
    let sent = TcpCount::read(&socket).segments;
    let error = socket.take_error().expect("a socket tells its error").expect("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    let syn = ip_header(to.ip()) + TCP_HEADER + SYN_OPTIONS;
    let refusal = ip_header(to.ip()) + SHORT_HEADER + syn;
    let total = |len: u64| Total { packets: sent, bytes: sent * len };
    (Flow::ports(TCP, end(local), end(to)), total(syn), total(refusal))
}
