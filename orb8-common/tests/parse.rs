//! The header parser: never panics, never reads out of range, reads back what was built, and its
//! two readers agree.

use orb8_common::counter::Reject;
use orb8_common::network::{FlowKey, flag};
use orb8_common::parse::{Frame, Link, Parsed, Read, any_form, common_form, protocol};
use proptest::prelude::*;

/// Counts reads behind the end of the packet.
struct Strict<'a>(&'a [u8]);

impl Read for Strict<'_> {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).expect("offsets fit");
        assert!(start <= 4096, "reads stay near the headers, not at {start}");
        self.0.get(start..start + N)?.try_into().ok()
    }
}

fn frame(link: Link, bytes: &[u8]) -> Frame {
    let length = u32::try_from(bytes.len()).expect("short packets");
    Frame { link, length, gso_segs: 0, gso_size: 0 }
}

fn read(link: Link, bytes: &[u8]) -> Result<Parsed, Reject> {
    let mut parsed = Parsed::EMPTY;
    any_form(&Strict(bytes), &frame(link, bytes), &mut parsed).map(|()| parsed)
}

/// A packet that is built from its parts.
#[derive(Clone, Debug)]
struct Built {
    bytes: Vec<u8>,
    key: FlowKey,
    datagram: usize,
    common: bool,
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().expect("4 bytes"));
    }
    words
}

fn transport(proto: u8, ports: [u8; 4], options: usize, payload: usize) -> Vec<u8> {
    let mut l4 = ports.to_vec();
    match proto {
        protocol::TCP => {
            l4.extend([0; 8]);
            l4.push(u8::try_from((5 + options) << 4).expect("at most 15 words"));
            l4.push(0x10);
            l4.resize(20 + options * 4, 0);
        }
        protocol::UDP => l4.extend([0; 4]),
        protocol::SCTP => l4.extend([0; 8]),
        _ => {}
    }
    l4.extend(vec![0xaa; payload]);
    l4
}

fn ported(proto: u8) -> bool {
    matches!(proto, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::UDP_LITE)
}

fn expected_ports(proto: u8, ports: [u8; 4]) -> ([u8; 2], [u8; 2]) {
    let [a, b, c, d] = ports;
    match proto {
        p if ported(p) => ([a, b], [c, d]),
        protocol::ICMP | protocol::ICMPV6 => ([a, b], [0, 0]),
        _ => ([0; 2], [0; 2]),
    }
}

fn l2(vlans: usize, ethertype: u16, ip: &[u8], padding: usize) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    for _ in 0..vlans {
        bytes.extend([0x81, 0x00, 0x00, 0x64]);
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(ip);
    bytes.extend(vec![0; padding]);
    bytes
}

fn protocols() -> impl Strategy<Value = u8> {
    prop_oneof![
        Just(protocol::TCP),
        Just(protocol::UDP),
        Just(protocol::SCTP),
        Just(protocol::ICMP),
        Just(protocol::ICMPV6),
        Just(47),
        Just(50),
    ]
}

prop_compose! {
    fn ipv4()(
        src: [u8; 4], dst: [u8; 4], ports: [u8; 4], proto in protocols(), ip_options in 0usize..=10,
        tcp_options in 0usize..=10, payload in 4usize..64, offset in prop_oneof![3 => Just(0u16), 1 => 1u16..0x1fff],
        more: bool, vlans in 0usize..=2, padding in 0usize..8,
    ) -> Built {
        let l4 = transport(proto, ports, tcp_options, payload);
        let total = 20 + ip_options * 4 + l4.len();
        let mut ip = vec![0x45 + u8::try_from(ip_options).expect("small"), 0];
        ip.extend(u16::try_from(total).expect("short").to_be_bytes());
        ip.extend([0, 1]);
        ip.extend((offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        ip.extend([64, proto, 0, 0]);
        ip.extend(src);
        ip.extend(dst);
        ip.resize(20 + ip_options * 4, 1);
        ip.extend(l4);
        let mut key = FlowKey { protocol: proto, ..FlowKey::EMPTY };
        key.src[3] = u32::from_ne_bytes(src);
        key.dst[3] = u32::from_ne_bytes(dst);
        if offset == 0 {
            (key.src_port, key.dst_port) = expected_ports(proto, ports);
        } else {
            key.flags = flag::FRAGMENT;
        }
        let common = ip_options == 0 && offset == 0 && !more && vlans == 0
            && matches!(proto, protocol::TCP | protocol::UDP);
        Built { bytes: l2(vlans, 0x0800, &ip, padding), key, datagram: total, common }
    }
}

prop_compose! {
    fn ipv6()(
        src: [u8; 16], dst: [u8; 16], ports: [u8; 4], proto in protocols(), extensions in 0usize..=8,
        tcp_options in 0usize..=10, payload in 4usize..64, vlans in 0usize..=2, padding in 0usize..8,
    ) -> Built {
        let l4 = transport(proto, ports, tcp_options, payload);
        let mut rest = Vec::new();
        let kinds = [0u8, 60, 43, 135, 139, 140, 60, 51];
        for at in 0..extensions {
            let next = if at + 1 < extensions { kinds[at + 1] } else { proto };
            // All of these are 8 bytes long when their length field is 0.
            let length = u8::from(kinds[at] == 51) * 2;
            rest.extend([next, length, 0, 0, 0, 0, 0, 0]);
            if kinds[at] == 51 {
                rest.extend([0; 8]);
            }
        }
        rest.extend(l4);
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(u16::try_from(rest.len()).expect("short").to_be_bytes());
        ip.extend([if extensions > 0 { kinds[0] } else { proto }, 64]);
        ip.extend(src);
        ip.extend(dst);
        let datagram = 40 + rest.len();
        ip.extend(rest);
        let (src_port, dst_port) = expected_ports(proto, ports);
        let key = FlowKey {
            src: words(src), dst: words(dst), src_port, dst_port, protocol: proto,
            flags: flag::IPV6, tag: 0,
        };
        let common =
            extensions == 0 && vlans == 0 && matches!(proto, protocol::TCP | protocol::UDP);
        Built { bytes: l2(vlans, 0x86dd, &ip, padding), key, datagram, common }
    }
}

fn check(built: &Built) {
    let parsed = read(Link::Ethernet, &built.bytes).expect("a whole packet");
    assert_eq!(parsed.key, built.key);
    assert_eq!(parsed.datagram_bytes as usize, built.datagram);
    let fast = common_form(&built.bytes.as_slice(), &frame(Link::Ethernet, &built.bytes));
    assert_eq!(fast.is_some(), built.common, "the fast path takes exactly the common form");
    if let Some(fast) = fast {
        assert_eq!(fast, parsed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_built_ipv4_packet_gives_its_key_and_length_back(built in ipv4()) {
        check(&built);
    }

    #[test]
    fn a_built_ipv6_packet_gives_its_key_and_length_back(built in ipv6()) {
        check(&built);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic_and_both_readers_agree(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..160),
        ethertype in prop_oneof![Just(0x0800u16), Just(0x86dd), Just(0x8100), any::<u16>()],
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()],
        raw: bool, gso_size in prop_oneof![Just(0u32), 1u32..2000], gso_segs in 0u32..3,
    ) {
        if bytes.len() > 14 {
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            bytes[if raw { 0 } else { 14 }] = version;
        }
        let link = if raw { Link::Raw } else { Link::Ethernet };
        let frame = Frame { gso_size, gso_segs, ..frame(link, &bytes) };
        let mut slow = Parsed::EMPTY;
        let slow_result = any_form(&Strict(&bytes), &frame, &mut slow);
        if let Some(fast) = common_form(&bytes.as_slice(), &frame) {
            prop_assert_eq!(slow_result, Ok(()));
            prop_assert_eq!(fast, slow);
        }
        if slow_result.is_ok() {
            prop_assert!(slow.datagram_bytes <= frame.length);
            prop_assert!(slow.header_bytes <= slow.datagram_bytes);
            prop_assert!(slow.packets(&frame) >= 1);
        }
        let other = Frame { link: Link::Other { ethertype }, ..frame };
        let _whatever = any_form(&Strict(&bytes), &other, &mut Parsed::EMPTY.clone());
    }

    #[test]
    fn a_packet_cut_anywhere_is_rejected_and_never_another_flow(built in ipv4(), cut in 0usize..100) {
        let end = built.bytes.len().saturating_sub(cut + 8);
        if end < built.bytes.len() - 8 {
            let result = read(Link::Ethernet, &built.bytes[..end]);
            prop_assert!(
                matches!(result, Err(Reject::Truncated | Reject::NotIp | Reject::BadHeader)),
                "{:?}", result
            );
        }
    }
}

fn super_packet(segments: u32, payload: u32) -> (Vec<u8>, Frame) {
    let l4 = transport(protocol::TCP, [0, 1, 0, 2], 3, (segments * payload) as usize);
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2];
    ip.extend(l4);
    let bytes = l2(0, 0x0800, &ip, 0);
    let frame = Frame { gso_segs: segments, gso_size: payload, ..frame(Link::Ethernet, &bytes) };
    (bytes, frame)
}

#[test]
fn a_super_packet_weighs_what_its_segments_weigh_on_the_wire() {
    let (bytes, frame) = super_packet(45, 1448);
    let parsed = common_form(&bytes.as_slice(), &frame).expect("the common form");
    let packets = parsed.packets(&frame);
    assert_eq!(packets, 45);
    let wire = u64::from(parsed.datagram_bytes) + parsed.gso_header_bytes(packets);
    assert_eq!(wire, 45 * (20 + 32 + 1448));
}

#[test]
fn an_skb_that_does_not_know_its_segments_is_divided_by_their_size() {
    let (bytes, frame) = super_packet(3, 1000);
    let unknown = Frame { gso_segs: 0, ..frame };
    let parsed = common_form(&bytes.as_slice(), &unknown).expect("the common form");
    assert_eq!(parsed.packets(&unknown), 3);
    assert_eq!(unknown.packets_estimate(), 4, "headers are not yet known to be headers");
}

#[test]
fn rejects_are_named() {
    let check =
        |bytes: &[u8], expected: Reject| assert_eq!(read(Link::Ethernet, bytes), Err(expected));
    let arp = l2(0, 0x0806, &[0; 28], 0);
    check(&arp, Reject::NotIp);
    check(&arp[..10], Reject::Truncated);
    check(&l2(3, 0x0800, &[0; 40], 0), Reject::TooManyHeaders);
    check(&l2(0, 0x0800, &[0x44; 20], 0), Reject::BadHeader);
    check(&l2(0, 0x0800, &[0x65; 20], 0), Reject::BadHeader);
    check(&l2(0, 0x86dd, &[0x45; 48], 0), Reject::BadHeader);
    assert_eq!(read(Link::Raw, &[0x15; 40]), Err(Reject::NotIp));
    // Nine hop-by-hop headers in a row.
    let mut ip = vec![0x60, 0, 0, 0, 0, 80, 0, 64];
    ip.extend([0; 32]);
    for _ in 0..10 {
        ip.extend([0; 8]);
    }
    check(&l2(0, 0x86dd, &ip, 0), Reject::TooManyHeaders);
}

#[test]
fn later_ipv6_fragments_carry_no_ports_and_first_ones_do() {
    for (offset, fragment) in [(0u16, false), (8, true)] {
        let mut rest = vec![protocol::UDP, 0];
        rest.extend((offset | 1).to_be_bytes());
        rest.extend([0; 4]);
        rest.extend(transport(protocol::UDP, [1, 2, 3, 4], 0, 8));
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(u16::try_from(rest.len()).expect("short").to_be_bytes());
        ip.extend([44, 64]);
        ip.extend([7; 32]);
        ip.extend(rest);
        let parsed = read(Link::Raw, &ip).expect("a fragment");
        assert_eq!(parsed.key.flags & flag::FRAGMENT != 0, fragment);
        assert_eq!(parsed.key.src_port, if fragment { [0, 0] } else { [1, 2] });
        assert_eq!(parsed.key.protocol, protocol::UDP);
    }
}
