//! Every header form counts right, and what cannot be parsed is rejected by its reason: tags,
//! fragments, options, extension headers, cut and malformed packets, devices without a link
//! header, headers outside the linear part.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use orb8_testbed::flow::Traffic;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet, SERVICE_VLAN, VLAN, extension, tcp_flag};
use orb8_testbed::raw::{Offload, RawSocket, Segments, count};
use orb8_testbed::ring::Ring;
use orb8_testbed::scapy::{self, Case, Expect};
use orb8_testbed::tun::Tun;
use support::{Egress, Ingress, Observed, Watch};

const V4: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
const V6: (Ipv6Addr, Ipv6Addr) = (
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
);

/// A cable that takes frames of 9000 bytes, with an agent that sees both of its ends.
fn bench() -> (Veth, Watch) {
    let netns = Netns::new("forms");
    let cable = Veth::cable(&netns, VethOptions { mtu: 9000, ..VethOptions::default() });
    let watch = Watch::start(&netns, "eth0,peer0", 2);
    (cable, watch)
}

/// What was sent has left one end and arrived at the other.
#[track_caller]
fn assert_both_ends(observed: &Observed, sent: &Traffic) {
    observed.traffic("eth0", Egress).assert_equals(sent, "leaving eth0");
    observed.traffic("peer0", Ingress).assert_equals(sent, "arriving at peer0");
    observed.assert_complete();
}

/// One packet of every common protocol, in both families, with and without data.
fn samples(len: usize) -> Vec<Packet> {
    let ends: [(IpAddr, IpAddr); 2] = [(V4.0.into(), V4.1.into()), (V6.0.into(), V6.1.into())];
    let mut packets = Vec::new();
    for (a, b) in ends {
        for payload in [
            packet::udp(1000, 53, len),
            packet::tcp(2000, 80, tcp_flag::ACK, 12, len),
            packet::tcp(2001, 80, tcp_flag::SYN, 20, 0),
            packet::sctp(3000, 36412, len),
            packet::other(47, len + 4),
        ] {
            packets.push(packet::ip(a, b, &payload));
        }
    }
    packets.push(packet::ip(ends[0].0, ends[0].1, &packet::icmp(8, 0, len)));
    packets.push(packet::ip(ends[1].0, ends[1].1, &packet::icmpv6(128, 0, len)));
    packets
}

#[test]
fn vlan_and_qinq_tags_are_looked_through() {
    need!();
    let (cable, watch) = bench();
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let mut sent = Traffic::new();
    for tags in [
        &[(VLAN, 5)][..],
        &[(SERVICE_VLAN, 7), (VLAN, 5)],
        &[(VLAN, 7), (VLAN, 5)],
        &[(SERVICE_VLAN, 9)],
        // Priority tag: number 0, priority 5.
        &[(VLAN, 0xa000)],
    ] {
        for (&flow, total) in socket.send_tagged(&samples(64), tags).iter() {
            sent.add(flow, total.packets, total.bytes);
        }
    }
    assert_both_ends(&watch.settled(2 * sent.total().packets), &sent);
}

#[test]
fn fragments_count_on_their_flow_or_as_fragment() {
    need!();
    let (cable, watch) = bench();
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let mut packets = Vec::new();
    for (a, b) in [(V4.0.into(), V4.1.into()), (V6.0.into(), V6.1.into())] {
        packets.extend(packet::ip(a, b, &packet::udp(1000, 53, 4000)).fragments(1000));
        packets.extend(packet::ip(a, b, &packet::tcp(2000, 80, 16, 0, 3000)).fragments(512));
        packets.extend(packet::ip(a, b, &packet::other(47, 2000)).fragments(800));
    }
    packets.extend(packet::ipv4(V4.0, V4.1, 40, &packet::udp(1001, 53, 900)).fragments(400));
    let echo = packet::ip(V4.0.into(), V4.1.into(), &packet::icmp(8, 0, 3000));
    packets.extend(echo.fragments(1480));
    let sent = socket.send(&packets);
    assert_both_ends(&watch.settled(2 * sent.total().packets), &sent);
}

#[test]
fn options_and_extension_headers_are_part_of_the_packet() {
    need!();
    let (cable, watch) = bench();
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let payloads = [packet::udp(1, 53, 10), packet::tcp(2, 80, 16, 12, 10), packet::icmp(8, 0, 10)];
    let mut packets = Vec::new();
    for options in (0..=40).step_by(4) {
        packets.extend(payloads.iter().map(|payload| packet::ipv4(V4.0, V4.1, options, payload)));
    }
    let chains: [&[(u8, usize)]; 6] = [
        &[(extension::HOP_BY_HOP, 8)],
        &[(extension::DESTINATION, 200)],
        &[(extension::HOP_BY_HOP, 8), (extension::ROUTING, 24), (extension::DESTINATION, 16)],
        &[(extension::AUTHENTICATION, 24)],
        &[(extension::AUTHENTICATION, 28), (extension::DESTINATION, 8)],
        &[(extension::DESTINATION, 8); 8],
    ];
    let payloads =
        [packet::udp(1, 53, 10), packet::tcp(2, 80, 16, 12, 10), packet::icmpv6(128, 0, 10)];
    for chain in chains {
        packets.extend(payloads.iter().map(|payload| packet::ipv6(V6.0, V6.1, chain, payload)));
    }
    let sent = socket.send(&packets);
    assert_both_ends(&watch.settled(2 * sent.total().packets), &sent);
}

/// What the catalogue must come to.
fn expected(cases: &[Case]) -> (Traffic, BTreeMap<String, u64>) {
    let mut traffic = Traffic::new();
    let mut rejected = BTreeMap::new();
    for case in cases {
        match &case.expect {
            Expect::Counted(flow, bytes) => traffic.add(*flow, 1, *bytes),
            Expect::Rejected(reason) => *rejected.entry(reason.clone()).or_default() += 2,
        }
    }
    (traffic, rejected)
}

fn check_catalogue(send: impl FnOnce(&Veth, &[Case])) {
    let cases = scapy::catalogue();
    let (cable, watch) = bench();
    send(&cable, &cases);
    let (counted, rejected) = expected(&cases);
    let observed = watch.settled(2 * cases.len() as u64);
    assert_eq!(observed.rejected(), rejected, "rejected at both ends, by reason");
    assert_both_ends(&observed, &counted);
}

#[test]
fn frames_made_by_scapy_count_as_scapy_says() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Scapy);
    check_catalogue(|cable, cases| {
        let frames: Vec<_> = cases.iter().map(|case| &case.frame).collect();
        RawSocket::open(&cable.near, cable.far.mac).send_frames(&frames);
    });
}

#[test]
fn frames_made_by_scapy_count_the_same_outside_the_linear_part() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Scapy);
    check_catalogue(|cable, cases| {
        let mut ring = Ring::open(&cable.near, cable.far.mac);
        for case in cases {
            ring.send_frame(&case.frame);
        }
    });
}

#[test]
fn headers_outside_the_linear_part_are_read() {
    need!();
    let (cable, watch) = bench();
    let mut ring = Ring::open(&cable.near, cable.far.mac);
    let mut packets = samples(100);
    packets.extend(samples(8000));
    packets.extend(packet::ip(V4.0.into(), V4.1.into(), &packet::udp(1, 2, 3000)).fragments(800));
    packets.push(packet::ipv4(V4.0, V4.1, 40, &packet::udp(1, 53, 10)));
    let chain = [(extension::HOP_BY_HOP, 8), (extension::DESTINATION, 16)];
    packets.push(packet::ipv6(V6.0, V6.1, &chain, &packet::udp(1, 53, 10)));
    let mut sent = ring.send(&packets, &[]);
    for (&flow, total) in ring.send(&packets, &[(SERVICE_VLAN, 7), (VLAN, 5)]).iter() {
        sent.add(flow, total.packets, total.bytes);
    }
    let observed = watch.settled(2 * sent.total().packets);
    assert_both_ends(&observed, &sent);
    let cold = observed.status.packet_ledger.as_ref().expect("a ledger").cold_path_packets;
    assert!(cold >= sent.total().packets, "{cold} packets took the cold path");
}

#[test]
fn linear_part_may_end_inside_any_header() {
    need!();
    let (cable, watch) = bench();
    let socket = RawSocket::open_offload(&cable.near, cable.far.mac);
    // Only packets above a page are made with a linear part as short as asked for.
    let packets = samples(5000);
    let mut sent = Traffic::new();
    for linear in 14..80 {
        let offload =
            Offload { kind: Segments::None, linear, size: 0, transport_at: 0, checksum_at: 0 };
        for packet in packets.iter().filter(|packet| packet.len() > 5000) {
            let frame = packet.frame(cable.near.mac, cable.far.mac, &[]);
            socket.send_offload(offload, &frame);
            sent.add(packet.flow, 1, packet.len());
        }
    }
    assert_both_ends(&watch.settled(2 * sent.total().packets), &sent);
}

#[test]
fn tun_device_has_no_link_header_to_skip() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Tun);
    let netns = Netns::new("tun");
    let mut tun = Tun::open(&netns, "tun0");
    let (own, peer) = (Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2));
    netns.run("ip addr add 10.9.0.1/24 dev tun0");
    let watch = Watch::start(&netns, "tun0", 1);
    let mut arriving: Vec<Packet> = samples(64);
    arriving.extend(packet::ip(V4.0.into(), V4.1.into(), &packet::udp(1, 2, 3000)).fragments(800));
    arriving.push(packet::ipv6(V6.0, V6.1, &[(extension::DESTINATION, 24)], &packet::udp(4, 5, 6)));
    let request = packet::ip(peer.into(), own.into(), &packet::icmp(8, 0, 40));
    arriving.push(request.clone());
    let received = tun.deliver(&arriving);
    let reply = tun.take();
    assert_eq!(reply[20], 0, "the kernel answers the echo request");
    let mut sent = Traffic::new();
    sent.add(request.flow.reply(), 1, reply.len() as u64);
    let observed = watch.settled(received.total().packets + 1);
    observed.traffic("tun0", Ingress).assert_equals(&received, "arriving");
    observed.traffic("tun0", Egress).assert_equals(&sent, "leaving");
    observed.assert_complete();
}

#[test]
fn tun_device_tells_malformed_packets_apart() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Tun);
    let netns = Netns::new("tun");
    let mut tun = Tun::open(&netns, "tun0");
    let watch = Watch::start(&netns, "tun0", 1);
    let whole = packet::ip(V4.0.into(), V4.1.into(), &packet::udp(1, 2, 100));
    tun.deliver_bytes(&whole.bytes[..60]);
    tun.deliver_bytes(&whole.bytes[..20]);
    let mut short_header = whole.bytes.clone();
    short_header[0] = 0x44;
    tun.deliver_bytes(&short_header);
    let sent = tun.deliver(std::slice::from_ref(&whole));
    let observed = watch.settled(4);
    let reasons = [("bad_header".to_owned(), 1), ("truncated".to_owned(), 2)];
    assert_eq!(observed.rejected(), BTreeMap::from(reasons));
    observed.traffic("tun0", Ingress).assert_equals(&sent, "arriving");
    observed.assert_complete();
}

#[test]
fn super_packet_above_64_kib_has_no_length_field_to_trust() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::LargeFrames);
    // BIG TCP: a super-packet that does not fit into 16 bits says length 0.
    let netns = Netns::new("jumbo");
    let cable = Veth::cable(&netns, VethOptions { segmentation: true, ..VethOptions::default() });
    let watch = Watch::start(&netns, "eth0,peer0", 2);
    let socket = RawSocket::open_offload(&cable.near, cable.far.mac);
    let mut sent = Traffic::new();
    let payload = packet::tcp(1, 2, tcp_flag::ACK, 0, 1000);
    for (whole, kind, length_at) in [
        (packet::ipv4(V4.0, V4.1, 0, &payload), Segments::TcpV4, 2),
        (packet::ipv6(V6.0, V6.1, &[], &payload), Segments::TcpV6, 4),
    ] {
        let headers = whole.bytes.len() - 1000;
        let mut bytes = whole.bytes.clone();
        bytes[length_at..length_at + 2].fill(0);
        bytes.resize(headers + 100_000, 0x5a);
        let big = Packet { bytes, ..whole };
        let at = |offset: usize| u16::try_from(14 + offset).expect("headers are short");
        let offload = Offload {
            kind,
            linear: at(headers),
            size: 1000,
            transport_at: at(headers - 20),
            checksum_at: 16,
        };
        socket.send_offload(offload, &big.frame(cable.near.mac, cable.far.mac, &[]));
        sent.add(big.flow, 100, 100 * headers as u64 + 100_000);
    }
    assert_both_ends(&watch.settled(2 * sent.total().packets), &sent);
}

#[test]
fn padding_behind_the_datagram_is_not_counted() {
    need!();
    let (cable, watch) = bench();
    let packets = samples(0);
    let frames: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| {
            let mut frame = packet.frame(cable.near.mac, cable.far.mac, &[]);
            frame.resize(frame.len() + 30, 0);
            frame
        })
        .collect();
    RawSocket::open(&cable.near, cable.far.mac).send_frames(&frames);
    let sent = count(&packets);
    assert_both_ends(&watch.settled(2 * sent.total().packets), &sent);
}
