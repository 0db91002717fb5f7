//! Tests of the shape of messages.

use orb8_common::network::FlowKey;

use super::*;
use crate::cgroup::{Answer, Membership, Process};
use crate::event::{
    Asked, Attribution, End, EndReason, Ends, FlowId, FlowState, How, Reason, Scope,
};
use crate::host::{HostFacts, InterfaceName};
use crate::k8s::services::{ServiceKind, Verdict};
use crate::network::table::blank;
use crate::testing::{World, cgroup_of, flow};

const SHOWN_AT: i64 = 1_000_000;

fn shown() -> Shown {
    let known = Knowledge::of_host(HostFacts::shared());
    let node = Arc::new(Node::named("n1"));
    Shown { node, known, unix_offset_ns: SHOWN_AT, labels: true }
}

fn id(protocol: u8, egress: bool) -> FlowId {
    flow(protocol, ([10, 0, 0, 1].into(), 40_000), ([10, 0, 0, 2].into(), 443), egress)
}

/// `shop/client` of this node asks the Service `shop/web`; `shop/server` of n2 answers.
fn through_a_service() -> (World, FlowRecord) {
    let mut world = World::synced();
    world.pod_with("shop/client", "n1", "10.244.1.5", 2, |pod| {
        pod["status"]["containerStatuses"] = serde_json::json!([
            {"name": "main", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
             "containerID": format!("containerd://{}", "c0ffee00".repeat(8))},
        ]);
        pod["metadata"]["ownerReferences"] = serde_json::json!([
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "clients", "uid": "u",
             "controller": true},
        ]);
    });
    world.pod("shop/server", "n2", "10.244.2.6", 2);
    world.service("shop/web", "10.96.0.10", 0, 1, 2);
    let client = "10.244.1.5:40000".parse().unwrap();
    let (dialled, backend) = ("10.96.0.10:80".parse().unwrap(), "10.244.2.6:8080".parse().unwrap());
    let translation = world.translate((client, dialled), (backend, client), 3);
    let membership = world.cgroup(11, &cgroup_of("shop/client"));
    let id = flow(6, (client.ip(), 40_000), (dialled.ip(), 80), true);
    let mut record = FlowRecord {
        flow_id: 9,
        packets: 7,
        bytes: 700,
        first_seen_ns: 500,
        last_seen_ns: 900,
        cookie: 77,
        byte_rate: 12.5,
        packet_rate: 0.5,
        tcp_seen: tcp_bit::SYN | tcp_bit::FIN,
        scope: Scope::Local,
        state: FlowState::Ended(EndReason::Fin),
        ..blank(id)
    };
    record.id.key.flags |= flag::SOCKET_PLANE;
    let by = |attribution| How::by(attribution);
    let pod = membership.cgroup().unwrap().pod().unwrap();
    let owner = End::Pod(by(Attribution::Cgroup), Arc::clone(pod));
    let service = match world
        .known
        .who(dialled.ip(), crate::k8s::identity::Span { since_ns: 5, until_ns: 5 })
    {
        End::Service(_, service) => service,
        other => panic!("{other:?}"),
    };
    let peer = End::Service(by(Attribution::Address), Arc::clone(&service));
    let kind = ServiceKind::ClusterIp;
    let asked = Some(Asked { service, port: 80, kind, verdict: Verdict::Ok });
    record.ends = Arc::new(Ends { owner, peer, asked });
    record.translation = Some(translation);
    record.membership = Some(membership);
    (world, record)
}

#[test]
fn a_pods_flow_through_a_service_names_all_three() {
    let (world, record) = through_a_service();
    let (known, node) = (world.known.clone(), world.known.registry.own_node());
    let shown = Shown { node, known, unix_offset_ns: SHOWN_AT, labels: true };
    insta::assert_debug_snapshot!(shown.flow(&record));
    let without = Shown { labels: false, ..shown };
    assert!(without.flow(&record).source.unwrap().labels.is_empty());
}

#[test]
fn a_runtime_that_the_path_does_not_tell_is_the_one_of_the_pods_status() {
    let (world, mut record) = through_a_service();
    let uid = record.ends.owner.pod().unwrap().uid.clone();
    let path = |id: &str| format!("/kubepods/burstable/pod{uid}/{}", id.repeat(8));
    let (known, node) = (world.known.clone(), world.known.registry.own_node());
    let shown = Shown { node, known, unix_offset_ns: SHOWN_AT, labels: true };
    for (cgroup, id, runtime) in [(12, "c0ffee00", "containerd"), (13, "0badcafe", "")] {
        record.membership = Some(world.cgroup(cgroup, &path(id)));
        let source = shown.flow(&record).source.unwrap();
        assert_eq!((source.container_id, source.runtime), (id.repeat(8), runtime.to_owned()));
    }
}

#[test]
fn every_fact_of_a_hosts_flow_is_shown() {
    let process = Process { pid: 42, comm: "nginx".into(), started_ns: 1 };
    let world = World::synced();
    let cgroup = world.cgroup(11, "/system.slice/nginx.service").cgroup().cloned();
    let answer = Answer { cgroup, process: Some(process), checked_ns: 600 };
    let mut record = FlowRecord {
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
    let owner = End::Process(How::by(Attribution::Cgroup));
    let peer = End::External(How::not(Reason::NoKubernetes));
    record.ends = Arc::new(Ends { owner, peer, asked: None });
    insta::assert_debug_snapshot!(shown().flow(&record));
}

#[test]
fn an_unknown_flow_shows_nothing_that_is_not_known() {
    insta::assert_debug_snapshot!(shown().flow(&blank(id(47, false))));
}

#[test]
fn only_the_owners_end_carries_its_cgroup() {
    let membership = Some(Arc::new(Membership::asked(11)));
    for egress in [true, false] {
        let record = FlowRecord { membership: membership.clone(), ..blank(id(17, egress)) };
        let flow = shown().flow(&record);
        let (source, destination) = (flow.source.unwrap(), flow.destination.unwrap());
        let (owner, peer) = if egress { (source, destination) } else { (destination, source) };
        assert_eq!((owner.cgroup_id, peer.cgroup_id), (11, 0));
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
