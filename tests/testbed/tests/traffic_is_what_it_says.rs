//! The testbed's own promises: what it says it sent is what the kernel's counters say passed.
//!
//! No probe runs here; if one of these fails, no kernel test can be believed.

use std::time::Duration;

use orb8_testbed::counters;
use orb8_testbed::flow::{Total, Traffic};
use orb8_testbed::link::{Family, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, SERVICE_VLAN, VLAN};
use orb8_testbed::raw::{Offload, RawSocket, Segments};
use orb8_testbed::ring::Ring;
use orb8_testbed::scapy::{self, Expect};
use orb8_testbed::traffic;
use orb8_testbed::tun::Tun;
use orb8_testbed::wait::wait_until;

/// Bytes of an Ethernet header, which veth counts and the testbed does not.
const LINK_HEADER: u64 = 14;

/// Runs `send` on the link and compares with what both ends counted.
#[track_caller]
fn check(veth: &Veth, tag_bytes: u64, send: impl FnOnce() -> Traffic) {
    let before = (veth.near.counters(), veth.far.counters());
    let sent = send();
    let near = veth.near.counters().since(before.0);
    let far = veth.far.counters().since(before.1);
    let own = |address| address == veth.near.v4 || address == veth.near.v6;
    let there = sent.only(|flow| own(flow.src)).total();
    let back = sent.only(|flow| !own(flow.src)).total();
    let link =
        |total: Total| (total.packets, total.bytes + total.packets * (LINK_HEADER + tag_bytes));
    assert_eq!((near.tx_packets, near.tx_bytes), link(there), "sent by the near end");
    assert_eq!((far.rx_packets, far.rx_bytes), link(there), "received by the far end");
    assert_eq!((near.rx_packets, near.rx_bytes), link(back), "received by the near end");
    assert!(there.packets > 0, "something was sent");
}

#[test]
fn udp_counts_every_datagram() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    for family in Family::ALL {
        check(&veth, 0, || traffic::udp(&veth.near, &veth.far, family, 100, 321));
        check(&veth, 0, || traffic::udp(&veth.near, &veth.far, family, 1, 0));
    }
}

#[test]
fn udp_segments_count_as_datagrams() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    for family in Family::ALL {
        check(&veth, 0, || traffic::udp_segments(&veth.near, &veth.far, family, 1000, 10_500));
    }
}

#[test]
fn tcp_counts_every_segment() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    traffic::plain_tcp([&veth.near, &veth.far]);
    for family in Family::ALL {
        check(&veth, 0, || traffic::tcp(&veth.near, &veth.far, family, 300_000, 5_000).traffic);
    }
}

#[test]
fn echo_counts_requests_and_replies() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    for family in Family::ALL {
        check(&veth, 0, || traffic::echo(&veth.near, &veth.far, family, 5, 100));
    }
}

#[test]
fn tcp_reports_segments_of_super_packets() {
    need!();
    let veth = Veth::addressed(VethOptions { segmentation: true, ..VethOptions::default() });
    traffic::plain_tcp([&veth.near, &veth.far]);
    let before = veth.near.counters();
    let report = traffic::tcp(&veth.near, &veth.far, Family::V4, 3_000_000, 0);
    let passed = veth.near.counters().since(before);
    let segments = report.traffic.iter().map(|(_, total)| total.packets).max().expect("a flow");
    assert!(segments >= 3_000_000 / 1460, "a segment has at most 1460 bytes");
    assert!(passed.tx_packets < segments / 2, "the device carried super-packets");
}

#[test]
fn quiet_links_carry_nothing_of_their_own() {
    need!();
    let veth = Veth::quiet(VethOptions::default());
    let socket = RawSocket::open(&veth.near, veth.far.mac);
    let (a, b) = (veth.near.v4.into(), veth.far.v4.into());
    let packets: Vec<_> =
        (0..1000).map(|port| packet::ip(a, b, &packet::udp(port, 53, 64))).collect();
    check(&veth, 0, || socket.send(&packets));
    check(&veth, 8, || socket.send_tagged(&packets, &[(SERVICE_VLAN, 3), (VLAN, 5)]));
    assert_eq!(veth.far.counters().tx_packets, 0, "nobody answers");
}

#[test]
fn ring_sends_the_same_frames() {
    need!();
    let veth = Veth::quiet(VethOptions::default());
    let mut ring = Ring::open(&veth.near, veth.far.mac);
    let (a, b) = (veth.near.v4.into(), veth.far.v4.into());
    let packets: Vec<_> =
        (0..200).map(|port| packet::ip(a, b, &packet::tcp(port, 80, 16, 12, 100))).collect();
    check(&veth, 0, || ring.send(&packets, &[]));
}

#[test]
fn super_packets_are_cut_into_the_segments_that_were_asked_for() {
    need!();
    let veth = Veth::quiet(VethOptions::default());
    let socket = RawSocket::open_offload(&veth.near, veth.far.mac);
    let (a, b) = (veth.near.v4.into(), veth.far.v4.into());
    let whole = packet::ip(a, b, &packet::tcp(1, 2, 16, 0, 10_000));
    let offload = Offload {
        kind: Segments::TcpV4,
        linear: 54,
        size: 1000,
        transport_at: 34,
        checksum_at: 16,
    };
    let frame = whole.frame(veth.near.mac, veth.far.mac, &[]);
    let mut expected = Traffic::new();
    expected.add(whole.flow, 10, 10 * 40 + 10_000);
    check(&veth, 0, || {
        socket.send_offload(offload, &frame);
        expected
    });
}

#[test]
fn tun_delivers_and_takes_packets() {
    need!(Need::Root, Need::Tool("ip"), Need::Tun);
    let netns = Netns::new("tun");
    let mut tun = Tun::open(&netns, "tun0");
    netns.ip_batch(&["addr add 10.9.0.1/24 dev tun0".to_owned()]);
    let (own, peer) = ("10.9.0.1".parse().expect("ip"), "10.9.0.2".parse().expect("ip"));
    let request = packet::ip(peer, own, &packet::icmp(8, 0, 40));
    let sent = tun.deliver(std::slice::from_ref(&request));
    let seen = counters::interface(&netns, "tun0");
    assert_eq!((seen.rx_packets, seen.rx_bytes), (1, sent.total().bytes));
    let reply = tun.take();
    assert_eq!(reply.len(), request.bytes.len());
    assert_eq!(reply[20], 0, "an echo reply");
}

#[test]
fn fragments_are_put_together_by_the_kernel() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    let socket = RawSocket::open(&veth.near, veth.far.mac);
    let before = counters::protocols(&veth.far.netns);
    for family in Family::ALL {
        let (src, dst) = (veth.near.address(family), veth.far.address(family));
        // Without a receiver the kernel would send an error back.
        let _receiver = veth.far.netns.enter(|| std::net::UdpSocket::bind((dst, 9)));
        let whole = packet::ip(src, dst, &packet::udp(9, 9, 4000));
        check(&veth, 0, || socket.send(&whole.fragments(1400)));
    }
    wait_until(Duration::from_secs(5), "both datagrams to be put together", || {
        let after = counters::protocols(&veth.far.netns);
        let grew = |name: &str| after[name] > before[name];
        grew("Ip.ReasmOKs") && grew("Ip6ReasmOKs")
    });
}

#[test]
fn kernel_accepts_what_the_packet_maker_writes() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    let socket = RawSocket::open(&veth.near, veth.far.mac);
    let (v4, v6) = ((veth.near.v4, veth.far.v4), (veth.near.v6, veth.far.v6));
    let receiver = |address: std::net::IpAddr| {
        veth.far.netns.enter(|| std::net::UdpSocket::bind((address, 7777))).expect("a free port")
    };
    let sockets = [receiver(v4.1.into()), receiver(v6.1.into())];
    let data = packet::udp(1234, 7777, 99);
    let packets = [
        packet::ipv4(v4.0, v4.1, 0, &data),
        packet::ipv4(v4.0, v4.1, 12, &data),
        packet::ipv6(v6.0, v6.1, &[], &data),
        packet::ipv6(v6.0, v6.1, &[(packet::extension::DESTINATION, 16)], &data),
    ];
    let _sent = socket.send(&packets);
    let mut buffer = [0; 200];
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        for _ in 0..2 {
            assert_eq!(socket.recv(&mut buffer).expect("a checked datagram arrives"), 99);
        }
    }
}

#[test]
fn scapy_agrees_with_itself() {
    need!(Need::Scapy);
    let cases = scapy::catalogue();
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert!(names.len() > 50, "{} cases", names.len());
    for case in &cases {
        if let Expect::Counted(_, bytes) = case.expect {
            assert!(bytes <= case.frame.len() as u64 - LINK_HEADER, "{}", case.name);
        }
    }
}

#[test]
fn sends_of_one_packet_maker_equal_those_of_the_other() {
    need!(Need::Scapy);
    let cases = scapy::catalogue();
    let ours = [
        ("udp", packet::udp(1000, 2000, 33)),
        ("tcp", packet::tcp(1002, 80, packet::tcp_flag::ACK, 0, 7)),
        ("icmp_echo", packet::icmp(8, 0, 56)),
    ];
    for (name, payload) in ours {
        let case = cases.iter().find(|case| case.name == name).expect("in the catalogue");
        let Expect::Counted(flow, bytes) = case.expect else { panic!("{name} is counted") };
        let own = packet::ip(flow.src, flow.dst, &payload);
        assert_eq!((own.flow, own.len()), (flow, bytes), "{name}");
    }
}
