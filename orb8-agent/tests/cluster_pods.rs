//! Who talked to whom: pods, nodes, host processes and the world outside, each packet and byte,
//! in every plane that can see it.

mod cluster_support;

use std::net::SocketAddr;

use cluster_support::rows::{End, Row, by_address, ends, heard, is_owned, key, said, who};
use cluster_support::{Auto, Capture, Scene, Socket, Tc};
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::plan::{Cni, Families, Masquerade, Plan, PodPlan};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::Talk;
use orb8_testbed::cluster::{NEEDS, talk};
use orb8_testbed::flow::{L4, Total};
use orb8_testbed::link::Family::{self, V4};
use orb8_testbed::need;

/// A host that is not of the cluster, as its peer tells it.
const OUTSIDE: &str = "external address";

fn plan() -> Plan {
    Plan::default()
}

#[test]
fn pods_of_one_node_are_named_at_both_ends() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        for cni in [Cni::Bridge, Cni::Routed] {
            let scene = Scene::start(Plan { nodes: 1, cni, ..plan() }, capture);
            let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
            scene.wait_links(1, 2);
            let client = End::pod(&a, capture, &by_address(&b));
            let server = End::pod(&b, capture, &by_address(&a));
            for talk in [
                talk::udp(&a.app, &b.app, b.at(V4, 8080), 20, 500),
                talk::tcp(&a.app, &b.app, b.at(V4, 80), 2_000, 300_000),
            ] {
                scene.expect(&said(capture, &talk, &client, Some(&server)));
            }
            scene.assert_complete();
        }
    }
}

#[test]
fn pods_of_two_nodes_are_named_at_both_ends() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(plan(), capture);
        check_across(&scene, Family::V4);
        scene.assert_complete();
    }
}

#[test]
fn pods_that_talk_through_an_overlay_are_named_and_the_tunnel_is_kept_apart() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { overlay: true, ..plan() }, capture);
        let inner = check_across(&scene, Family::V4);
        if capture != Socket {
            check_tunnel(&scene, inner);
        }
        scene.assert_complete();
    }
}

/// The tunnel carries what was said from node 1 to node 2 with 50 bytes before each packet: IPv4,
/// UDP, VXLAN and Ethernet.
#[track_caller]
fn check_tunnel(scene: &Scene, inner: Total) {
    for (node, direction) in [(1, "egress"), (2, "ingress")] {
        let mut outer = Total::default();
        let flows = scene.flows(node);
        for flow in flows.iter().filter(|flow| flow.dst_port == 8472) {
            assert_eq!(flow.scope, "tunnel", "{flow:?}");
            let (owner, peer) = ends(flow);
            // Each way has ports of its own, so nothing tells that it is an answer.
            let known_by = if flow.direction == "egress" { "address" } else { "masqueraded" };
            let own = format!("node node{node} address");
            let other = format!("node node{} {known_by}", 3 - node);
            assert_eq!([who(&owner), who(&peer)], [own, other], "{flow:?}");
            if flow.direction == direction {
                outer.add(flow.packets, flow.bytes);
            }
        }
        assert_eq!(outer.packets, inner.packets, "node{node}");
        // Of packets that the device is to cut up, the tunnel's row has the inner headers once.
        let most = inner.bytes + 50 * inner.packets;
        assert!((inner.bytes..=most).contains(&outer.bytes), "node{node}: {outer}, {most} bytes");
    }
}

#[test]
fn pods_of_two_families_are_named_by_each_of_their_addresses() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { families: Families::Dual, ..plan() }, capture);
        for family in Family::ALL {
            check_across(&scene, family);
        }
        scene.assert_complete();
    }
}

#[test]
fn pods_of_an_ipv6_cluster_are_named() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        for cni in [Cni::Bridge, Cni::Routed] {
            let scene = Scene::start(Plan { families: Families::V6, cni, ..plan() }, capture);
            check_across(&scene, Family::V6);
            scene.assert_complete();
        }
    }
}

/// UDP and TCP from a pod of node 1 to one of node 2; what the first one sent.
#[track_caller]
fn check_across(scene: &Scene, family: Family) -> Total {
    let capture = scene.capture;
    let name = |what: &str| format!("shop/{what}-{}", family.header_len());
    let a = scene.cluster.simple(&name("a"), 1);
    let b = scene.cluster.simple(&name("b"), 2);
    scene.wait_links(1, 1);
    scene.wait_links(2, 1);
    let client = End::pod(&a, capture, &by_address(&b));
    let server = End::pod(&b, capture, &by_address(&a));
    let mut rows = Vec::new();
    let mut sent = Total::default();
    for talk in [
        talk::udp(&a.app, &b.app, b.at(family, 8080), 20, 500),
        talk::tcp(&a.app, &b.app, b.at(family, 80), 2_000, 100_000),
    ] {
        rows.extend(said(capture, &talk, &client, Some(&server)));
        sent.add(talk.there.packets, talk.there.bytes);
    }
    scene.expect(&rows);
    scene.cluster.delete(a);
    scene.cluster.delete(b);
    sent
}

#[test]
fn behind_a_masquerade_the_receiver_says_node_and_invents_no_pod() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let masquerade = Masquerade::Everything;
        let scene = Scene::start(Plan { masquerade, families: Families::Dual, ..plan() }, capture);
        let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 2));
        scene.wait_links(1, 1);
        scene.wait_links(2, 1);
        for family in Family::ALL {
            let talk = talk::udp(&a.app, &b.app, b.at(family, 8080), 20, 500);
            assert_ne!(talk.client, talk.server, "the node hides the pod");
            let client = End::pod(&a, capture, &by_address(&b));
            let server = End::pod(&b, capture, "node node1 masqueraded");
            scene.expect(&said(capture, &talk, &client, Some(&server)));
        }
        scene.assert_complete();
    }
}

#[test]
fn a_masqueraded_pod_that_calls_a_host_process_is_told_as_its_node_and_as_hidden() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let masquerade = Masquerade::Everything;
        let scene = Scene::start(Plan { masquerade, ..plan() }, capture);
        let pod = scene.cluster.simple("shop/a", 1);
        let sshd = scene.cluster.host_process(2, "sshd.service");
        scene.wait_links(1, 1);
        let talk = talk::tcp(&pod.app, &sshd, SocketAddr::new(sshd.address(V4), 22), 500, 4_000);
        assert_ne!(talk.client, talk.server, "the node hides the pod");
        let client = End::pod(&pod, capture, "node node2 address");
        let exact = "process sshd.service cgroup";
        // The tc plane cannot see which cgroup takes a packet that arrives at an uplink.
        let taker = if capture == Tc { "node node2 address" } else { exact };
        let server = End::named(2, exact, taker, "node node1 masqueraded");
        scene.expect(&said(capture, &talk, &client, Some(&server)));
        scene.assert_complete();
    }
}

#[test]
fn a_pod_that_goes_out_through_masquerade_is_counted_once_and_never_as_its_node() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, families: Families::Dual, ..plan() }, capture);
        let pod = scene.cluster.simple("shop/a", 1);
        scene.wait_links(1, 1);
        for family in Family::ALL {
            let dial = SocketAddr::new(scene.cluster.outside.address(family), 9000);
            let talk = talk::tcp(&pod.app, &scene.cluster.outside, dial, 5_000, 50_000);
            assert_ne!(talk.client, talk.server, "the node hides the pod");
            let client = End::pod(&pod, capture, OUTSIDE);
            scene.expect(&said(capture, &talk, &client, None));
            // On the uplink it has the node's address; the row says that it passes through.
            let flows = scene.flows(1);
            for (flow, total) in [(talk.server, talk.there), (talk.server.reply(), talk.back)] {
                let hidden: Vec<_> = flows.iter().filter(|row| key(row) == flow).collect();
                assert_eq!(hidden.len(), usize::from(capture != Socket), "the uplink carried it");
                for row in hidden {
                    assert_eq!((row.packets, row.bytes), (total.packets, total.bytes), "{row:?}");
                    assert_eq!(row.scope, "forwarded", "{row:?}");
                    let (owner, _) = ends(row);
                    assert_eq!(who(&owner), "pod shop/a masqueraded", "who passes is known");
                }
            }
        }
        scene.assert_complete();
    }
}

#[test]
fn routed_pods_that_nothing_hides_are_told_by_their_own_addresses_everywhere() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let (cni, masquerade) = (Cni::Routed, Masquerade::Off);
        let scene = Scene::start(Plan { cni, masquerade, ..plan() }, capture);
        check_across(&scene, V4);
        let pod = scene.cluster.simple("shop/a", 1);
        scene.wait_links(1, 1);
        let dial = SocketAddr::new(scene.cluster.outside.address(V4), 9000);
        let talk = talk::tcp(&pod.app, &scene.cluster.outside, dial, 5_000, 50_000);
        assert_eq!(talk.client, talk.server, "nothing hides the pod");
        let client = End::pod(&pod, capture, OUTSIDE);
        scene.expect(&said(capture, &talk, &client, None));
        let ways = [talk.client, talk.client.reply()];
        let mut passing = scene.flows(1);
        passing.retain(|row| ways.contains(&key(row)) && !is_owned(row));
        assert_eq!(passing.len(), if capture == Socket { 0 } else { 2 }, "{passing:#?}");
        for row in passing {
            let (owner, peer) = ends(&row);
            let named = [row.scope.as_str(), &who(&owner), &who(&peer)];
            assert_eq!(named, ["forwarded", "pod shop/a address", OUTSIDE], "{row:?}");
        }
        scene.assert_complete();
    }
}

#[test]
fn the_world_outside_that_calls_a_pod_is_external() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, ..plan() }, capture);
        let pod = scene.cluster.simple("shop/a", 1);
        scene.wait_links(1, 1);
        let talk = talk::udp(&scene.cluster.outside, &pod.app, pod.at(V4, 8080), 7, 300);
        let server = End::pod(&pod, capture, OUTSIDE);
        scene.expect(&heard(capture, &talk, &server));
        scene.assert_complete();
    }
}

#[test]
fn host_network_pods_and_a_host_process_are_told_apart() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(plan(), capture);
        let host = Host::start(&scene);
        let far = scene.cluster.simple("shop/far", 2);
        scene.wait_links(2, 1);
        let mut rows = Vec::new();
        for (actor, owner) in host.actors() {
            // The tc plane cannot see which cgroup takes a packet that arrives at an uplink.
            let taker = if capture == Tc { "node node1 address" } else { owner };
            let talk = talk::udp(actor, &far.app, far.at(V4, 8080), 5, 100);
            let client = End::named(1, owner, taker, &by_address(&far));
            let server = End::pod(&far, capture, "node node1 masqueraded");
            rows.extend(said(capture, &talk, &client, Some(&server)));
            let dial = SocketAddr::new(actor.address(V4), 7000);
            let talk = talk::tcp(&far.app, actor, dial, 300, 3_000);
            let client = End::pod(&far, capture, "node node1 address");
            let server = End::named(1, owner, taker, "node node2 masqueraded");
            rows.extend(said(capture, &talk, &client, Some(&server)));
        }
        scene.expect(&rows);
        scene.assert_complete();
    }
}

/// Who has the first node's network: two pods and a process of the host.
struct Host {
    pods: [Pod; 2],
    sshd: Actor,
}

impl Host {
    fn start(scene: &Scene) -> Self {
        let pod = |name| scene.cluster.pod(PodPlan::new(name, 1).host_network());
        let pods = ["kube-system/proxy", "monitoring/exporter"].map(pod);
        Self { pods, sshd: scene.cluster.host_process(1, "sshd.service") }
    }

    /// Each of them, and what it is as an owner whose cgroup is known.
    fn actors(&self) -> [(&Actor, &'static str); 3] {
        [
            (&self.pods[0].app, "pod kube-system/proxy:app cgroup"),
            (&self.pods[1].app, "pod monitoring/exporter:app cgroup"),
            (&self.sshd, "process sshd.service cgroup"),
        ]
    }
}

#[test]
fn a_host_and_its_own_pods_are_named_whoever_calls_whom() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        for cni in [Cni::Bridge, Cni::Routed] {
            let scene = Scene::start(Plan { nodes: 1, cni, ..plan() }, capture);
            let host = Host::start(&scene);
            let pod = scene.cluster.simple("shop/a", 1);
            scene.wait_links(1, 1);
            let mut rows = Vec::new();
            for (actor, owner) in host.actors() {
                let at_host = End::named(1, owner, owner, &by_address(&pod));
                let at_pod = End::pod(&pod, capture, "node node1 address");
                // A probe, as a kubelet's, and an answer to one.
                let probe = talk::tcp(actor, &pod.app, pod.at(V4, 8080), 200, 2_000);
                let asked =
                    talk::udp(&pod.app, actor, SocketAddr::new(actor.address(V4), 7000), 5, 90);
                if capture == Tc {
                    // Between a pod and its own node a packet passes one interface that is watched,
                    // the pod's: this plane cannot see the host's end.
                    rows.extend(heard(capture, &probe, &at_pod));
                    rows.extend(said(capture, &asked, &at_pod, None));
                } else {
                    rows.extend(said(capture, &probe, &at_host, Some(&at_pod)));
                    rows.extend(said(capture, &asked, &at_pod, Some(&at_host)));
                }
            }
            scene.expect(&rows);
            scene.assert_complete();
        }
    }
}

#[test]
fn one_five_tuple_on_the_loopback_of_two_pods_is_two_flows() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, ..plan() }, capture);
        let pods = ["shop/a", "shop/b"].map(|name| scene.cluster.simple(name, 1));
        let dial = SocketAddr::from(([127, 0, 0, 1], 8080));
        let mut rows = Vec::new();
        for (pod, count) in pods.iter().zip([3, 5]) {
            let client = pod.app.udp(SocketAddr::from(([127, 0, 0, 1], 40_000)));
            let server = pod.app.udp(dial);
            client.connect(dial).expect("loopback is up");
            for _ in 0..count {
                client.send(&[1; 100]).expect("a datagram leaves");
                server.recv(&mut [0; 100]).expect("a datagram arrives");
            }
            let flow = orb8_testbed::flow::Flow::ports(
                17,
                ([127, 0, 0, 1].into(), 40_000),
                (dial.ip(), dial.port()),
            );
            let total = orb8_testbed::flow::Total { packets: count, bytes: count * 128 };
            let (namespace, name) = pod.key();
            let owner = format!("pod {namespace}/{name}:app cgroup");
            for egress in [true, false] {
                rows.push(Row {
                    node: 1,
                    plane: "socket",
                    supplement: false,
                    egress,
                    flow,
                    total,
                    owner: owner.clone(),
                    // Loopback is the pod itself; which of its containers, nobody says.
                    peer: format!("pod {namespace}/{name} address"),
                    service: String::new(),
                });
            }
        }
        if capture == Tc {
            // No packet of it passes an interface that is watched: this plane cannot see it.
            scene.wait_links(1, 2);
            let later = talk::udp(&pods[0].app, &pods[1].app, pods[1].at(V4, 8080), 2, 10);
            let ends = [0, 1].map(|of| End::pod(&pods[of], Tc, &by_address(&pods[1 - of])));
            scene.expect(&said(Tc, &later, &ends[0], Some(&ends[1])));
            let flows = scene.flows(1);
            assert!(!flows.iter().any(|flow| flow.src_ip == "127.0.0.1"), "{flows:#?}");
        } else {
            scene.expect(&rows);
        }
        scene.assert_complete();
    }
}

#[test]
fn refused_ports_and_pings_are_shown_as_supplement_or_at_the_links() {
    need!(@check NEEDS);
    for (cni, capture) in
        [(Cni::Bridge, Auto), (Cni::Routed, Auto), (Cni::Routed, Tc), (Cni::Bridge, Socket)]
    {
        // The neighbours of IPv6 that a bridge's node is given would tell it the ports.
        let families = if cni == Cni::Routed { Families::Dual } else { Families::V4 };
        let scene = Scene::start(Plan { nodes: 1, cni, families, ..plan() }, capture);
        let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
        scene.wait_links(1, 2);
        let mut rows = Vec::new();
        let used = if cni == Cni::Routed { &Family::ALL[..] } else { &[V4] };
        for &family in used {
            rows.extend(refusals(capture, &a, &b, family));
        }
        scene.expect(&rows);
        for row in scene.flows(1).iter().filter(|row| row.supplement) {
            let owner = ends(row).0;
            // A bridge does not tell the node which address is behind which port before the node
            // itself has talked to it; a route does.
            let known_by = if cni == Cni::Routed { "interface" } else { "address" };
            assert!(owner.pod.is_empty() || owner.attribution == known_by, "{row:?}");
        }
        scene.assert_complete();
    }
}

/// A pod knocks at closed ports of another one and pings it: what a plane can see of that.
fn refusals(capture: Capture, a: &Pod, b: &Pod, family: Family) -> Vec<Row> {
    let knock = talk::refused_tcp(&a.app, b.at(family, 81));
    let (datagram, refusal) = talk::refused_udp(&a.app, b.at(family, 82), 100);
    let pinged = talk::ping(&a.app, b.address(family), 3, 56);
    let near = End::pod(a, capture, &by_address(b));
    let mut rows = said(capture, &knock, &near, None);
    rows.extend(said(capture, &pinged, &near, None));
    rows.extend(said(capture, &datagram, &near, None).into_iter().take(1));
    // No socket took or sent the rest, the kernel answered in the pods' place: sockets alone cannot
    // see it.
    let kernel = |pod: &Pod, peer: &Pod| {
        let owner = by_address(pod);
        End::named(1, &owner, &owner, &by_address(peer))
    };
    let (at_a, at_b) = (kernel(a, b), kernel(b, a));
    let mut refused = heard(Tc, &datagram, &at_b);
    refused[1].flow = refusal;
    let message = Talk { client: refusal, server: refusal, there: datagram.back, ..datagram };
    refused.extend(heard(Tc, &message, &at_a).into_iter().take(1));
    refused.extend(heard(Tc, &knock, &at_b));
    refused.extend(heard(Tc, &pinged, &at_b));
    for row in &mut refused {
        row.supplement = capture == Auto;
    }
    if capture != Socket {
        rows.extend(refused);
    }
    rows
}

#[test]
fn a_foreign_server_on_the_agents_port_is_seen() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, ..plan() }, capture);
        let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
        scene.wait_links(1, 2);
        let talk = talk::tcp(&a.app, &b.app, b.at(V4, 9090), 1_000, 1_000);
        assert!(matches!(talk.client.l4, L4::Ports { dst: 9090, .. }));
        let client = End::pod(&a, capture, &by_address(&b));
        let server = End::pod(&b, capture, &by_address(&a));
        scene.expect(&said(capture, &talk, &client, Some(&server)));
        scene.assert_complete();
    }
}
