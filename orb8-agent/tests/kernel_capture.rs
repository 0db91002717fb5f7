//! The choice of planes, made by a whole agent with exactly the capabilities that it asks for.

mod support;

use std::net::UdpSocket;

use orb8_proto::v1::AgentStatus;
use orb8_testbed::agent::AgentOptions;
use orb8_testbed::link::{Family, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::proc::{self, Hierarchies};
use orb8_testbed::traffic;
use support::cgroup::Cgroup;
use support::{DEADLINE, Watch};

/// CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
const CAPABILITIES: [u32; 3] = [12, 38, 39];

fn agent(tree: &Cgroup, capture: &str) -> AgentOptions {
    support::options("eth0")
        .env("ORB8_CAPTURE", capture)
        .env("ORB8_CGROUP_ROOT", tree.path().display())
        .capabilities(&CAPABILITIES)
}

fn capture(status: &AgentStatus) -> String {
    format!("{}: {}", status.capture, status.capture_reason)
}

/// How often a filter's reason is in the packet ledger.
fn filtered(status: &AgentStatus, reason: &str) -> u64 {
    let ledger = status.packet_ledger.as_ref().expect("a ledger");
    ledger.filtered.iter().filter(|found| found.reason == reason).map(|found| found.packets).sum()
}

#[test]
fn a_hybrid_node_with_pods_in_cgroup2_gets_both_planes_and_each_packet_counts_once() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    let pods = tree.child("kubepods.slice");
    let veth = Veth::addressed(VethOptions::default());
    traffic::plain_tcp([&veth.near, &veth.far]);
    let proc = proc::with(Hierarchies::Hybrid);
    let agent = agent(&tree, "auto").env("ORB8_PROC_ROOT", proc.path().display());
    let watch = Watch::with(&agent, &veth.near.netns, 1);
    let status = watch.status();
    let found = "containers are in cgroup2 (hybrid node, found kubepods.slice)";
    assert_eq!(capture(&status), format!("both: {found}"));
    assert!(status.healthy, "{}", status.health_message);
    assert_eq!(status.interfaces[0].mode, "supplement");
    let sent = pods.enter(|| traffic::tcp(&veth.near, &veth.far, Family::V4, 50_000, 1_000));
    let packets = sent.traffic.total().packets;
    // Both ends' sockets, and every packet at the uplink.
    let observed = watch.settled(3 * packets);
    assert_eq!(filtered(&observed.status, "counted_at_socket"), packets);
    for plane in ["socket", "tc"] {
        let flows = observed.answer.flows.iter().filter(|flow| flow.plane == plane);
        let total: u64 = flows.map(|flow| flow.packets).sum();
        let expected = if plane == "socket" { 2 * packets } else { 0 };
        assert_eq!(total, expected, "{plane}: {:#?}", observed.answer.flows);
    }
    observed.assert_complete();
    let (code, log) = watch.stop();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_hybrid_node_without_pods_in_cgroup2_is_counted_at_interfaces() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    let veth = Veth::addressed(VethOptions::default());
    let proc = proc::with(Hierarchies::Hybrid);
    let agent = agent(&tree, "auto").env("ORB8_PROC_ROOT", proc.path().display());
    let watch = Watch::with(&agent, &veth.near.netns, 1);
    let status = watch.status();
    assert_eq!(capture(&status), "tc: hybrid node without pods or containers in cgroup2");
    assert_eq!(status.interfaces[0].mode, "full");
}

/// Such as a container that was started without a cgroup of its own: in the namespace of a pod, and
/// in no cgroup that says so.
#[test]
fn a_process_of_the_root_cgroup_in_another_namespace_is_counted_once_each_way() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    // That pods are in cgroup2 makes it a node with both planes.
    let _pods = tree.child("kubepods.slice");
    let veth = Veth::addressed(VethOptions::default());
    veth.lead_to_pod();
    traffic::plain_tcp([&veth.near, &veth.far]);
    let watch =
        Watch::with(&agent(&tree, "auto").env("ORB8_INTERFACES", "auto"), &veth.near.netns, 1);
    let (node, pod) = (&veth.near, &veth.far);
    for family in Family::ALL {
        let outside =
            node.netns.enter(|| UdpSocket::bind((node.address(family), 0)).expect("free"));
        outside.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
        let inside = tree
            .enter(|| pod.netns.enter(|| UdpSocket::bind((pod.address(family), 0)).expect("free")));
        inside.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
        for _ in 0..10 {
            outside.send_to(&[1; 50], inside.local_addr().expect("bound")).expect("it leaves");
            let (_, from) = inside.recv_from(&mut [0; 100]).expect("it arrives");
            inside.send_to(&[2; 70], from).expect("an answer leaves");
            outside.recv(&mut [0; 100]).expect("an answer arrives");
        }
    }
    let sent = tree.enter(|| Family::ALL.map(|it| traffic::echo(pod, node, it, 3, 100)));
    let pings: u64 = sent.iter().map(|both| both.total().packets / 2).sum();
    // At the link 40 datagrams and the pings; at the socket the same, but for the node's own side.
    let observed = watch.settled(2 * (40 + 2 * pings));
    let count = |plane: &str, direction: &str, is_udp: bool| -> u64 {
        let flows = observed.answer.flows.iter().filter(|flow| {
            flow.plane == plane && flow.direction == direction && (flow.protocol == "udp") == is_udp
        });
        flows.map(|flow| flow.packets).sum()
    };
    let at = |plane| {
        [("egress", true), ("ingress", true), ("egress", false), ("ingress", false)]
            .map(|(direction, is_udp)| count(plane, direction, is_udp))
    };
    assert_eq!(at("socket"), [0, 20, 0, 0], "{:#?}", observed.answer.flows);
    assert_eq!(at("tc"), [20, 0, pings, pings], "{:#?}", observed.answer.flows);
    observed.assert_complete();
}

#[test]
fn the_socket_plane_alone_attaches_to_no_interface_and_is_healthy() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    // The root's own sockets may be the kernel's, and their packets are left out.
    let pod = tree.child("pod");
    let veth = Veth::addressed(VethOptions::default());
    let watch = Watch::with(&agent(&tree, "socket"), &veth.near.netns, 0);
    let status = watch.wait_status("the socket plane", |status| status.healthy);
    assert_eq!(capture(&status), "socket: the settings say so");
    assert_eq!(status.interfaces, []);
    let sent = pod.enter(|| traffic::udp(&veth.near, &veth.far, Family::V6, 7, 70));
    let observed = watch.settled(14);
    let socket = observed.answer.flows.iter().filter(|flow| flow.plane == "socket");
    assert_eq!(socket.map(|flow| flow.bytes).sum::<u64>(), 2 * sent.total().bytes);
    observed.assert_complete();
}

#[test]
fn a_socket_plane_that_cannot_be_had_is_told_with_what_to_do() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    let options =
        support::options("eth0").env("ORB8_CAPTURE", "socket").env("ORB8_CGROUP_ROOT", "/proc");
    let watch = Watch::with(&options, &veth.near.netns, 0);
    let status = watch.status();
    assert!(!status.healthy);
    let expected = "the socket plane needs cgroup2, and /proc is no cgroup2 directory";
    assert!(status.health_message.contains(expected), "{}", status.health_message);
}

/// Where maps are charged to the memlock limit, and it is small and cannot be raised, nothing can
/// be loaded; the check names what holds the agent up. Elsewhere the limit means nothing.
#[test]
fn a_small_memlock_limit_is_named_where_maps_are_charged_to_it_and_means_nothing_elsewhere() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    let options = support::options("eth0").capabilities(&CAPABILITIES).memlock(65_536);
    let watch = Watch::of(options.start(&veth.near.netns), &veth.near.netns);
    let status = watch.wait_status("an attached interface or why there is none", |status| {
        status.health_message.contains("refused")
            || status.health_message.contains("load the p")
            || status.interfaces.iter().any(|found| found.state == "attached")
    });
    let memlock = status.checks.iter().find(|check| check.name == "memlock").expect("the check");
    let release = &status.kernel_release;
    if orb8_agent::preflight::charges_memlock(release) {
        assert!(!status.healthy, "{status:#?}");
        let said = format!("kernel {release} is older than 5.11 and charges maps to the memlock");
        assert!(memlock.reason.starts_with(&said), "{memlock:?}");
        assert!(memlock.reason.contains("65536 bytes"), "{memlock:?}");
        assert!(memlock.remedy.contains("LimitMEMLOCK=infinity"), "{memlock:?}");
        assert!(status.health_message.contains("memlock limit"), "{}", status.health_message);
    } else {
        assert!(status.healthy, "{}", status.health_message);
        assert_eq!(memlock.reason, "this kernel does not charge maps to the memlock limit");
    }
}
