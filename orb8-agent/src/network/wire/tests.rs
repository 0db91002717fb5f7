//! Tests of the shape of messages.

use orb8_common::network::FlowKey;

use super::*;
use crate::cgroup::{Answer, Cgroup, Membership, Process, no_pods};
use crate::event::FlowId;
use crate::host::InterfaceName;
use crate::network::table::blank;
use crate::testing::flow;

const SHOWN_AT: i64 = 1_000_000;

fn shown() -> Shown {
    Shown { node_name: "n1".into(), unix_offset_ns: SHOWN_AT }
}

fn id(protocol: u8, egress: bool) -> FlowId {
    flow(protocol, ([10, 0, 0, 1].into(), 40_000), ([10, 0, 0, 2].into(), 443), egress)
}

#[test]
fn every_fact_of_a_flow_is_shown() {
    let process = Process { pid: 42, comm: "nginx".into(), started_ns: 1 };
    let cgroup = Arc::new(Cgroup::new(11, "/web.slice", &no_pods()));
    let answer = Answer { cgroup: Some(cgroup), process: Some(process), checked_ns: 600 };
    let record = FlowRecord {
        flow_id: 9,
        packets: 7,
        bytes: 700,
        first_seen_ns: 500,
        last_seen_ns: 900,
        cookie: 77,
        membership: Some(Arc::new(Membership::answered(11, answer))),
        interface: Some(Arc::new(InterfaceName { index: 2, name: "eth0".into() })),
        byte_rate: 12.5,
        packet_rate: 0.5,
        tcp_seen: tcp_bit::SYN | tcp_bit::FIN,
        scope: Scope::Local,
        state: FlowState::Ended(EndReason::Fin),
        ..blank(id(6, true))
    };
    insta::assert_debug_snapshot!(shown().flow(&record));
}

#[test]
fn an_unknown_flow_shows_nothing_that_is_not_known() {
    insta::assert_debug_snapshot!(shown().flow(&blank(id(47, false))));
}

#[test]
fn only_the_owners_end_carries_its_cgroup() {
    let membership = Some(Arc::new(Membership::asked(11)));
    for (egress, source, destination) in [(true, "cgroup", "none"), (false, "none", "cgroup")] {
        let record = FlowRecord { membership: membership.clone(), ..blank(id(17, egress)) };
        let flow = shown().flow(&record);
        assert_eq!(flow.source.unwrap().attribution, source);
        assert_eq!(flow.destination.unwrap().attribution, destination);
    }
}

#[test]
fn tcp_state_follows_what_was_seen() {
    let check = |tcp_seen, established, expected: &str| {
        let record = FlowRecord { tcp_seen, established, ..blank(id(6, true)) };
        assert_eq!(shown().flow(&record).tcp.unwrap().state, expected, "{tcp_seen:#b}");
    };
    check(0, false, "open");
    check(tcp_bit::SYN, false, "opening");
    check(tcp_bit::SYN_ACK, false, "opening");
    check(tcp_bit::SYN, true, "open");
    check(tcp_bit::SYN | tcp_bit::FIN, true, "closing");
    check(tcp_bit::FIN | tcp_bit::RST, true, "reset");
    assert!(shown().flow(&blank(id(17, true))).tcp.is_none());
}

#[test]
fn icmp_has_type_and_code_and_no_ports() {
    let mut id = id(1, true);
    (id.key.src_port, id.key.dst_port) = ([3, 1], [0, 0]);
    let flow = shown().flow(&blank(id));
    assert_eq!((flow.src_port, flow.dst_port), (0, 0));
    assert_eq!(flow.icmp, Some(IcmpInfo { r#type: 3, code: 1 }));
    assert_eq!(flow.protocol, "icmp");
}

#[test]
fn a_packet_is_shown_with_its_flags() {
    let flow_id = id(6, true);
    let packet = orb8_common::network::PacketEvent {
        key: FlowKey { ..flow_id.key },
        owner: 2,
        time_ns: 5,
        bytes: 60,
        packets: 1,
        tcp_flags: 0x12,
        ..Default::default()
    };
    let record = PacketRecord { packet, flow: blank(flow_id) };
    insta::assert_debug_snapshot!(shown().packet(&record));
}
