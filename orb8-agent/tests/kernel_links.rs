//! Links to pods: found, attached with the pod's view, and what is behind them is known.

mod support;

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use orb8_agent::capture::Planes;
use orb8_agent::datapath::{AttachRoute, AttachState, ChosenBy};
use orb8_agent::event::Severity;
use orb8_common::network::flag;
use orb8_testbed::flow::UDP;
use orb8_testbed::link::{self, Family, Veth, VethOptions, ifindex};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::traffic;
use orb8_testbed::wait::wait_until;
use support::cgroup::Cgroup;
use support::direct::{Direct, options};
use support::{DEADLINE, Egress, Ingress};

#[test]
fn at_a_pods_link_direction_and_cgroup_are_the_pods() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    check_view_of_pod(None);
}

#[test]
fn at_a_pods_link_clsact_gives_the_pods_view_too() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Tool("tc"), Need::Cgroup2);
    check_view_of_pod(Some(AttachRoute::Clsact));
}

fn check_view_of_pod(route: Option<AttachRoute>) {
    let tree = Cgroup::tree();
    let pod = tree.child("pod");
    let link = Veth::addressed(VethOptions::default());
    link.lead_to_pod();
    let (node, inside) = (&link.near, &link.far);
    let mut options = options("none");
    options.route = route;
    let mut watch = Direct::with(&options, &node.netns, 1);
    let status = watch.kernel().state().interfaces.clone();
    assert_eq!(status[0].chosen_by, ChosenBy::PodLink);
    let sent = pod.enter(|| traffic::udp(inside, node, Family::V4, 10, 100));
    let taken = pod.enter(|| traffic::udp(node, inside, Family::V4, 20, 200));
    let observed = watch.settled(30);
    observed.traffic("eth0", Egress).assert_equals(&sent, "sent by the pod");
    observed.traffic("eth0", Ingress).assert_equals(&taken, "taken by the pod");
    for (id, facts) in &observed.flow_facts {
        // What arrives still bears the cgroup of who sent it, which is not the pod's.
        let expected = if id.key.flags & flag::EGRESS == 0 { 0 } else { pod.id() };
        assert_eq!(facts.cgroup_id, expected, "{id:?}");
    }
    observed.assert_complete();
}

#[test]
fn the_addresses_behind_a_link_are_known_from_routes_and_from_the_bridge() {
    need!();
    let node = Netns::new("node");
    let routed = Veth::between(&node, &Netns::new("routed"), VethOptions::default());
    routed.lead_to_pod();
    let bridged = Veth::between(
        &node,
        &Netns::new("bridged"),
        VethOptions { number: 1, ..Default::default() },
    );
    let (port, pod) = (&bridged.near, &bridged.far);
    node.ip_batch(&[format!("addr flush dev {}", port.ifname)]);
    link::bridge(&node, "cni0", &[&port.ifname]);
    node.ip_batch(&[format!("addr add {}/24 dev cni0", port.v4)]);
    pod.netns.ip_batch(&[format!("neigh flush dev {}", pod.ifname)]);
    let watch = Direct::with(&options("none"), &node, 2);
    let knows = |port: &link::Port, address: IpAddr| {
        watch
            .facts()
            .pod_link(port.ifindex)
            .is_some_and(|link| link.link.addresses.contains(&address))
    };
    wait_until(DEADLINE, "the routed address", || knows(&routed.near, routed.far.v4.into()));
    assert!(!knows(port, pod.v4.into()), "nobody has talked to it yet");
    node.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        socket.send_to(&[1], (pod.v4, 9)).expect("a route");
    });
    wait_until(DEADLINE, "the address on the bridge", || knows(port, pod.v4.into()));
    // Another pod gets it, while the link of the one that had it is still there.
    let options = VethOptions { number: 2, ..Default::default() };
    let next = Veth::between(&node, &Netns::new("next"), options);
    node.ip_batch(&[
        format!("addr flush dev {}", next.near.ifname),
        format!("link set {} master cni0", next.near.ifname),
    ]);
    pod.netns.ip_batch(&[format!("addr del {}/24 dev {}", pod.v4, pod.ifname)]);
    next.far.netns.ip_batch(&[format!("addr add {}/24 dev {}", pod.v4, next.far.ifname)]);
    next.far.netns.enter(|| {
        let socket = UdpSocket::bind((pod.v4, 0)).expect("a free port");
        socket.send_to(&[1], (port.v4, 9)).expect("a route");
    });
    wait_until(DEADLINE, "the address at its new link alone", || {
        knows(&next.near, pod.v4.into()) && !knows(port, pod.v4.into())
    });
    assert!(watch.facts().pod_link(ifindex(&node, "cni0")).is_none(), "a bridge leads to many");
    node.run(&format!("ip link del {}", routed.near.ifname));
    let index = routed.near.ifindex;
    wait_until(DEADLINE, "the link to go", || {
        watch.facts().pod_links().all(|(listed, _)| listed != index)
    });
    let facts = watch.facts();
    assert!(facts.pod_link(index).is_some(), "its rows are a pod's still");
    assert!(!facts.is_uplink(index));
}

/// Adds `count` links into a namespace.
fn add_pod_links(node: &Netns, pods: &Netns, count: usize) {
    let path = pods.path();
    let add = |n| format!("link add pod{n} up type veth peer name in{n} netns {path}");
    node.ip_batch(&(0..count).map(add).collect::<Vec<_>>());
}

#[test]
fn many_links_to_pods_do_not_delay_sockets_and_uplinks() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    const LINKS: usize = 500;
    let tree = Cgroup::tree();
    let node = Netns::new("node");
    let pods = Netns::new("pods");
    add_pod_links(&node, &pods, LINKS);
    let uplink = Veth::between(&node, &Netns::new("outside"), VethOptions::default());
    let mut options = options("none");
    options.planes = Planes::Both(tree.root());
    let began = Instant::now();
    // Two are enough: the uplink comes first, though it is the last of the list.
    let watch = Direct::at_least(&options, &node, 1);
    let state = |name: &str| {
        let state = watch.kernel().state();
        let found = state.interfaces.iter().find(|i| i.name == name).map(|i| i.state);
        (found, state.interfaces.iter().filter(|i| i.state == AttachState::Attaching).count())
    };
    let (uplink_state, attaching) = state(&uplink.near.ifname);
    let ready = began.elapsed();
    assert_eq!(uplink_state, Some(AttachState::Attached));
    assert!(attaching > LINKS / 2, "{attaching} links still wait when the uplink is ready");
    wait_until(DEADLINE, "all links to be attached", || watch.attached().len() == LINKS + 1);
    assert!(ready < began.elapsed() / 2, "ready after {ready:?} of {:?}", began.elapsed());
}

#[test]
fn links_that_come_and_go_are_no_error() {
    need!();
    let node = Netns::new("node");
    let pods = Netns::new("pods");
    let uplink = Veth::between(&node, &Netns::new("outside"), VethOptions::default());
    let mut watch = Direct::with(&options("none"), &node, 1);
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        add_pod_links(&node, &pods, 20);
        node.ip_batch(&(0..20).map(|n| format!("link del pod{n}")).collect::<Vec<_>>());
    }
    wait_until(DEADLINE, "only the uplink to be left", || {
        watch.attached() == [uplink.near.ifname.clone()]
            && watch.kernel().state().interfaces.len() == 1
    });
    let sent = traffic::udp(&uplink.near, &uplink.far, Family::V4, 5, 5);
    let observed = watch.settled(5);
    let udp = observed.traffic("eth0", Egress).only(|flow| flow.protocol == UDP);
    udp.assert_equals(&sent, "the uplink still counts");
    let bad: Vec<_> =
        observed.notices.iter().filter(|notice| notice.severity != Severity::Info).collect();
    assert!(bad.is_empty(), "{bad:?}");
}
