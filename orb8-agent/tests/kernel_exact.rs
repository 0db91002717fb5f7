//! What was sent is what is answered: packets and bytes per flow and direction, once each.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use orb8_testbed::flow::Traffic;
use orb8_testbed::link::{Family, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet, tcp_flag};
use orb8_testbed::raw::{Offload, RawSocket, Segments};
use orb8_testbed::traffic;
use support::{Egress, Ingress, Watch};

/// Bytes of an Ethernet header.
const LINK_HEADER: u64 = 14;

/// A cable with an agent that sees both of its ends.
struct Bench {
    cable: Veth,
    watch: Watch,
}

impl Bench {
    fn new(options: VethOptions) -> Self {
        let netns = Netns::new("bench");
        let cable = Veth::cable(&netns, options);
        // Room for the starts of many flows at once on a machine that is busy with other tests.
        let agent = support::options("eth0,peer0").env("ORB8_RING_BUFFER_SIZE", 8 << 20);
        let watch = Watch::with(&agent, &netns, 2);
        Self { cable, watch }
    }

    fn socket(&self) -> RawSocket {
        RawSocket::open(&self.cable.near, self.cable.far.mac)
    }

    /// What was sent has left one end and arrived at the other, and nothing else has.
    #[track_caller]
    fn check(&self, sent: &Traffic) {
        let observed = self.watch.settled(2 * sent.total().packets);
        observed.traffic("eth0", Egress).assert_equals(sent, "leaving eth0");
        observed.traffic("peer0", Ingress).assert_equals(sent, "arriving at peer0");
        assert_eq!(observed.total().packets, 2 * sent.total().packets, "nothing besides");
        observed.assert_complete();
    }
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn v6(last: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
}

#[test]
fn every_protocol_is_counted_once_in_each_direction() {
    need!();
    let bench = Bench::new(VethOptions::default());
    let mut packets: Vec<Packet> = Vec::new();
    for (a, b) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        for i in 0..50 {
            let len = usize::from(i);
            packets.extend([
                packet::ip(a, b, &packet::udp(1000 + i % 7, 53, len)),
                packet::ip(b, a, &packet::udp(53, 1000 + i % 7, 2 * len)),
                packet::ip(a, b, &packet::tcp(2000 + i % 3, 443, tcp_flag::ACK, 12, len)),
                packet::ip(a, b, &packet::sctp(3000, 36412, len)),
                packet::ip(a, b, &packet::other(47, 20 + len)),
                packet::ip(a, b, &packet::other(253, len)),
            ]);
        }
    }
    for i in 0..20 {
        packets.push(packet::ip(v4(1), v4(2), &packet::icmp(8, 0, i)));
        packets.push(packet::ip(v4(1), v4(2), &packet::icmp(3, 1, i)));
        packets.push(packet::ip(v6(1), v6(2), &packet::icmpv6(128, 0, i)));
        packets.push(packet::ip(v6(1), v6(2), &packet::icmpv6(1, 4, i)));
    }
    let sent = bench.socket().send(&packets);
    bench.check(&sent);
}

#[test]
fn addresses_of_both_families_with_equal_bytes_are_two_flows() {
    need!();
    let bench = Bench::new(VethOptions::default());
    let same: (IpAddr, IpAddr) = (
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0xc000, 0x0201).into(),
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0xc000, 0x0202).into(),
    );
    let payload = packet::udp(7, 7, 10);
    let packets = [packet::ip(v4(1), v4(2), &payload), packet::ip(same.0, same.1, &payload)];
    let sent = bench.socket().send(&packets);
    assert_eq!(sent.len(), 2);
    bench.check(&sent);
}

#[test]
fn two_interfaces_with_the_same_five_tuple_are_two_flows() {
    need!();
    let netns = Netns::new("twins");
    let cables =
        [0, 1].map(|number| Veth::cable(&netns, VethOptions { number, ..VethOptions::default() }));
    let watch = Watch::start(&netns, "eth*,peer*", 4);
    let packet = packet::ip(v4(1), v4(2), &packet::udp(5, 6, 100));
    let mut sent = Vec::new();
    for (cable, count) in cables.iter().zip([3, 5]) {
        let socket = RawSocket::open(&cable.near, cable.far.mac);
        sent.push(socket.send(&vec![packet.clone(); count]));
    }
    let observed = watch.settled(2 * (3 + 5));
    for (number, sent) in sent.iter().enumerate() {
        observed.traffic(&format!("eth{number}"), Egress).assert_equals(sent, "leaving");
        observed.traffic(&format!("peer{number}"), Ingress).assert_equals(sent, "arriving");
    }
    assert_eq!(observed.answer.flows.len(), 4);
    observed.assert_complete();
}

/// Real sockets, from both sides; the agent is at the near end.
fn check_sockets(segmentation: bool) {
    let veth = Veth::addressed(VethOptions { segmentation, ..VethOptions::default() });
    let (near, far) = (&veth.near, &veth.far);
    traffic::plain_tcp([near, far]);
    let watch = Watch::start(&near.netns, "eth0", 1);
    let mut sent = Traffic::new();
    for family in Family::ALL {
        for (from, to) in [(near, far), (far, near)] {
            for part in [
                traffic::udp(from, to, family, 50, 700),
                traffic::udp_segments(from, to, family, 1000, 20_500),
                traffic::tcp(from, to, family, 400_000, 1_000).traffic,
                traffic::echo(from, to, family, 3, 100),
            ] {
                for (&flow, total) in part.iter() {
                    sent.add(flow, total.packets, total.bytes);
                }
            }
        }
    }
    let observed = watch.settled(sent.total().packets);
    let own = |address: IpAddr| near.v4 == address || near.v6 == address;
    let leaving = sent.only(|flow| own(flow.src));
    observed.traffic("eth0", Egress).assert_equals(&leaving, "leaving");
    observed.traffic("eth0", Ingress).assert_equals(&sent.only(|f| !own(f.src)), "arriving");
    observed.assert_complete();
}

#[test]
fn sockets_send_what_is_answered_without_segmentation_offload() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::SegmentsWithoutChecksums);
    check_sockets(false);
}

#[test]
fn sockets_send_what_is_answered_with_segmentation_offload() {
    need!();
    check_sockets(true);
}

#[test]
fn super_packets_count_as_the_segments_that_the_wire_carries() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::UdpSuperFrames);
    // The receiving end takes whole super-packets in the first round, single segments in the second.
    for segmentation in [true, false] {
        let bench = Bench::new(VethOptions { segmentation, ..VethOptions::default() });
        let socket = RawSocket::open_offload(&bench.cable.near, bench.cable.far.mac);
        let mut sent = Traffic::new();
        for (a, b, tcp, header) in
            [(v4(1), v4(2), Segments::TcpV4, 20_u16), (v6(1), v6(2), Segments::TcpV6, 40)]
        {
            for (kind, checksum_at, payload) in [
                (tcp, 16, packet::tcp(80, 9000, tcp_flag::ACK, 12, 25_500)),
                (Segments::Udp, 6, packet::udp(4433, 9001, 25_500)),
            ] {
                let whole = packet::ip(a, b, &payload);
                let transport_at = 14 + header;
                let headers = whole.len() - 25_500;
                let linear = u16::try_from(14 + headers).expect("headers are short");
                let offload = Offload { kind, linear, size: 1000, transport_at, checksum_at };
                let frame = whole.frame(bench.cable.near.mac, bench.cable.far.mac, &[]);
                socket.send_offload(offload, &frame);
                sent.add(whole.flow, 26, 26 * headers + 25_500);
            }
        }
        bench.check(&sent);
    }
}

#[test]
fn million_packets_over_ten_thousand_flows_equal_the_interface_counters() {
    need!();
    let bench = Bench::new(VethOptions::default());
    let flows: u16 = 10_000;
    let before = (bench.cable.near.counters(), bench.cable.far.counters());
    let packets: Vec<Packet> = (0..flows)
        .map(|i| {
            let host = u8::try_from(i % 200).expect("below 200");
            packet::ip(v4(host), v4(250), &packet::udp(20_000 + i, 53, usize::from(i % 64)))
        })
        .collect();
    let socket = bench.socket();
    let mut sent = Traffic::new();
    for _ in 0..100 {
        for (&flow, total) in socket.send(&packets).iter() {
            sent.add(flow, total.packets, total.bytes);
        }
    }
    assert_eq!(sent.total().packets, 1_000_000);
    bench.check(&sent);
    let near = bench.cable.near.counters().since(before.0);
    let far = bench.cable.far.counters().since(before.1);
    let observed = bench.watch.settled(2_000_000);
    for (counted, passed) in [
        (observed.traffic("eth0", Egress).total(), (near.tx_packets, near.tx_bytes)),
        (observed.traffic("peer0", Ingress).total(), (far.rx_packets, far.rx_bytes)),
    ] {
        assert_eq!((counted.packets, counted.bytes + LINK_HEADER * counted.packets), passed);
    }
}
