//! Both planes: what no socket of the owner's sends or takes is told once, as supplement, and
//! everything else is left to the socket plane; together they are every packet of an interface.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use orb8_agent::capture::{self, Planes, SocketRoot};
use orb8_common::network::scope;
use orb8_testbed::flow::{Flow, ICMP, ICMPV6, L4, TCP, Total, Traffic, UDP};
use orb8_testbed::link::{Family, Port, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::traffic;
use orb8_testbed::wait::wait_until;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketType};
use support::cgroup::Cgroup;
use support::direct::{Direct, DirectObserved, options};
use support::{DEADLINE, Direction, Egress, Ingress};

const NEEDS: [Need; 4] = [Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2];

/// A node with a pod: the node's end of the link has addresses without neighbours, as a CNI
/// without a bridge makes it.
struct Scene {
    link: Veth,
    host: Cgroup,
    pod: Cgroup,
    /// Last, because it goes when those inside are gone.
    tree: Cgroup,
}

impl Scene {
    fn new() -> Self {
        let link = Veth::addressed(VethOptions::default());
        link.lead_to_pod();
        let tree = Cgroup::tree();
        let (host, pod) = (tree.child("host"), tree.child("pod"));
        Self { link, host, pod, tree }
    }

    /// Both planes; `interfaces` are attached when this returns.
    fn watch(&self, interfaces: usize) -> Direct {
        let mut options = options("none");
        options.planes = Planes::Both(self.tree.root());
        options.ring_bytes = 8 << 20;
        Direct::with(&options, &self.link.near.netns, interfaces)
    }

    fn supplement(&self, observed: &DirectObserved) -> [Traffic; 2] {
        [Egress, Ingress].map(|way| observed.supplement(self.link.near.ifindex, way))
    }
}

fn sum(parts: &[&Traffic]) -> Traffic {
    let mut all = Traffic::new();
    for part in parts {
        for (&flow, total) in part.iter() {
            all.add(flow, total.packets, total.bytes);
        }
    }
    all
}

fn one(flow: Flow, packets: u64, bytes: u64) -> Traffic {
    let mut traffic = Traffic::new();
    traffic.add(flow, packets, bytes);
    traffic
}

fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8) -> Flow {
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    Flow { src: from, dst: to, protocol, l4: L4::Icmp { kind, code } }
}

/// Asks for a UDP port that nobody has, and for a TCP one, there twice in a row from one port; what
/// went to the first and what came back from there.
fn knock(from: &Port, to: &Port, family: Family) -> [Traffic; 2] {
    let (source, target) = (from.address(family), to.address(family));
    let port = to.netns.enter(|| free_port(target));
    let header: u64 = if target.is_ipv4() { 20 } else { 40 };
    from.netns.enter(|| {
        let socket = socket2(source);
        let local = socket.local_addr().expect("bound");
        socket.connect((target, port)).expect("a route");
        socket.send(&[7; 33]).expect("a datagram leaves");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
        // Arrives as an error of the socket.
        let refused = socket.recv(&mut [0; 1]).expect_err("nobody answers").kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused);
        // Bound to a port that was asked for, a socket keeps it.
        let from = SocketAddr::new(source, free_port(source));
        let domain = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = net::socket(domain, SocketType::STREAM, None).expect("a socket");
        net::bind(&socket, &from).expect("a port that was free a moment ago");
        for _ in 0..2 {
            let refused = net::connect(&socket, &SocketAddr::new(target, port));
            assert_eq!(refused.expect_err("nobody listens"), Errno::CONNREFUSED);
        }
        let datagram = Flow::ports(UDP, (source, local.port()), (target, port));
        let (kind, code) = if target.is_ipv4() { (3, 3) } else { (1, 4) };
        let error = icmp(target, source, kind, code);
        // The error carries the whole datagram behind a header of 8 bytes.
        [one(datagram, 1, header + 41), one(error, 1, header + 8 + header + 41)]
    })
}

/// A port that was free a moment ago.
fn free_port(address: IpAddr) -> u16 {
    let socket = TcpListener::bind((address, 0)).expect("a free port");
    socket.local_addr().expect("bound").port()
}

fn socket2(address: IpAddr) -> UdpSocket {
    UdpSocket::bind((address, 0)).expect("a free port")
}

/// Flows of one protocol.
fn of(traffic: &Traffic, protocol: u8) -> Traffic {
    traffic.only(|flow| flow.protocol == protocol)
}

#[test]
fn a_refused_port_is_told_once_on_each_side() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let mut watch = scene.watch(1);
    let mut asked = Traffic::new();
    let mut answered = Traffic::new();
    for family in Family::ALL {
        let [there, back] = scene.host.enter(|| knock(node, pod, family));
        asked = sum(&[&asked, &there]);
        answered = sum(&[&answered, &back]);
    }
    // At the pod: two SYNs and a datagram in, resets and an error out, in each family. At the
    // host's sockets: SYNs and datagram out, resets in.
    let observed = watch.settled(12 + 10);
    let [sent, taken] = scene.supplement(&observed);
    of(&taken, UDP).assert_equals(&asked, "datagrams to nobody");
    let errors = sent.only(|flow| flow.protocol != TCP);
    errors.assert_equals(&answered, "errors by the kernel");
    let (syn, reset) = (of(&taken, TCP), of(&sent, TCP));
    assert_eq!((syn.total().packets, syn.total().bytes), (4, 2 * (60 + 80)));
    assert_eq!((reset.total().packets, reset.total().bytes), (4, 2 * (40 + 60)));
    // And the host's own sockets saw what is theirs.
    observed.at_sockets(scene.host.id(), Egress).assert_equals(&sum(&[&syn, &asked]), "sent");
    observed.at_sockets(scene.host.id(), Ingress).assert_equals(&reset, "taken");
    assert_eq!(observed.counted_at_socket(), Total::default());
    observed.assert_complete();
}

#[test]
fn a_ping_that_the_kernel_answers_is_told_once_where_it_is_answered() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let mut watch = scene.watch(1);
    let ping = |cgroup: &Cgroup, from, to| {
        let [a, b] = Family::ALL.map(|f| cgroup.enter(|| traffic::echo(from, to, f, 3, 100)));
        sum(&[&a, &b])
    };
    let to_pod = ping(&scene.host, node, pod);
    let from_pod = ping(&scene.pod, pod, node);
    let by = |traffic: &Traffic, port: &Port| {
        traffic.only(|flow| [IpAddr::from(port.v4), port.v6.into()].contains(&flow.src))
    };
    // Each of 24 packets at the link, and those of sockets there too.
    let observed = watch.settled(24 + 24);
    let [sent, taken] = scene.supplement(&observed);
    taken.assert_equals(&by(&to_pod, node), "requests to the pod");
    sent.assert_equals(&by(&to_pod, pod), "replies by the pod's kernel");
    let sockets = |cgroup: &Cgroup, way| observed.at_sockets(cgroup.id(), way);
    sockets(&scene.pod, Egress).assert_equals(&by(&from_pod, pod), "requests by the pod");
    sockets(&scene.pod, Ingress).assert_equals(&by(&from_pod, node), "replies to the pod");
    sockets(&scene.host, Egress).assert_equals(&by(&to_pod, node), "requests by the host");
    assert_eq!(observed.counted_at_socket(), from_pod.total());
    observed.assert_complete();
}

#[test]
fn both_planes_together_are_every_packet_of_the_link_once() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    traffic::plain_tcp([node, pod]);
    let mut watch = scene.watch(1);
    let before = node.counters();
    // The pod's ends of connections, with all the ways of closing; the node's are not in the tree.
    let mut sent = 0;
    for family in Family::ALL {
        for _ in 0..5 {
            let listener = scene.pod.enter(|| {
                pod.netns.enter(|| TcpListener::bind((pod.address(family), 0)).expect("a port"))
            });
            let address = listener.local_addr().expect("bound");
            for closes_first in [true, false] {
                let client = node.netns.enter(|| TcpStream::connect(address).expect("it listens"));
                let (server, _) = scene.pod.enter(|| listener.accept().expect("a connection"));
                use std::io::{Read as _, Write as _};
                (&client).write_all(&[1; 5_000]).expect("bytes leave");
                (&server).read_exact(&mut [0; 5_000]).expect("bytes arrive");
                let (first, second) =
                    if closes_first { (server, client) } else { (client, server) };
                drop(first);
                assert_eq!((&second).read(&mut [0; 1]).expect("the end arrives"), 0);
                drop(second);
            }
        }
        for part in scene.pod.enter(|| {
            [
                traffic::tcp(pod, node, family, 50_000, 20_000).traffic,
                traffic::udp(pod, node, family, 100, 400),
                traffic::udp(node, pod, family, 100, 400),
            ]
        }) {
            sent += part.total().packets;
        }
        scene.host.enter(|| knock(node, pod, family));
    }
    wait_until(DEADLINE, "closed connections to be quiet", || {
        let before = node.counters();
        std::thread::sleep(Duration::from_millis(50));
        before == node.counters()
    });
    let observed = watch.settled(sent);
    let passed = node.counters().since(before);
    let pods = |way| {
        let supplement = observed.supplement(node.ifindex, way).total();
        // The node's address is on its own sockets' flows, the pod's on those of the pod.
        let owner = |flow: &Flow| match way {
            Egress => flow.src,
            Ingress => flow.dst,
        };
        let of_pod = |flow: &Flow| [IpAddr::from(pod.v4), pod.v6.into()].contains(&owner(flow));
        let sockets = observed.at_sockets(scene.pod.id(), way).only(of_pod).total();
        (supplement.packets + sockets.packets, supplement.bytes + sockets.bytes)
    };
    // An interface counts 14 bytes of link header with each packet.
    assert_eq!(pods(Egress), (passed.rx_packets, passed.rx_bytes - 14 * passed.rx_packets));
    assert_eq!(pods(Ingress), (passed.tx_packets, passed.tx_bytes - 14 * passed.tx_packets));
    let [sent, taken] = scene.supplement(&observed);
    assert!(of(&sent, TCP).total().packets >= 2 && of(&taken, TCP).total().packets >= 2);
    observed.assert_complete();
}

#[test]
fn what_passes_through_the_node_is_supplement_at_the_uplink_whoever_listens_there() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let outside = Netns::new("outside");
    let uplink =
        Veth::between(&node.netns, &outside, VethOptions { number: 1, ..Default::default() });
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        node.netns.sysctl(key, 1);
    }
    for (port, via4, via6) in [
        (pod, IpAddr::from(node.v4), IpAddr::from(node.v6)),
        (&uplink.far, uplink.near.v4.into(), uplink.near.v6.into()),
    ] {
        let dev = &port.ifname;
        port.netns.ip_batch(&[
            format!("route add default via {via4} dev {dev}"),
            format!("route add default via {via6} dev {dev}"),
        ]);
    }
    let mut watch = scene.watch(2);
    for family in Family::ALL {
        let receiver = scene.pod.enter(|| {
            pod.netns.enter(|| UdpSocket::bind((pod.address(family), 0)).expect("a free port"))
        });
        let to = receiver.local_addr().expect("bound");
        receiver.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
        // The node has a socket of the same port at every address.
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let _everywhere = scene
            .host
            .enter(|| node.netns.enter(|| UdpSocket::bind((any, to.port())).expect("free")));
        let sender = outside.enter(|| socket2(uplink.far.address(family)));
        for _ in 0..10 {
            sender.send_to(&[3; 50], to).expect("a datagram leaves");
            let (_, from) = receiver.recv_from(&mut [0; 100]).expect("a datagram arrives");
            receiver.send_to(&[4; 70], from).expect("an answer leaves");
            sender.recv(&mut [0; 100]).expect("an answer arrives");
        }
    }
    // 40 at the uplink, 40 at the link, 40 at the pod's sockets.
    let observed = watch.settled(120);
    let datagrams = |traffic: &Traffic| of(traffic, UDP).total();
    let at_uplink = |way| datagrams(&observed.supplement(uplink.near.ifindex, way));
    assert_eq!(at_uplink(Ingress), Total { packets: 20, bytes: 10 * (78 + 98) });
    assert_eq!(at_uplink(Egress), Total { packets: 20, bytes: 10 * (98 + 118) });
    let [sent, taken] = scene.supplement(&observed);
    assert_eq!((datagrams(&sent), datagrams(&taken)), (Total::default(), Total::default()));
    let sockets = |way| datagrams(&observed.at_sockets(scene.pod.id(), way));
    assert_eq!(sockets(Ingress), at_uplink(Ingress));
    assert_eq!(sockets(Egress), at_uplink(Egress));
    assert_eq!(observed.counted_at_socket().packets, 40);
    observed.assert_complete();
}

#[test]
fn the_outside_of_a_tunnel_is_supplement_and_its_inside_is_the_sockets() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let node = &scene.link.near;
    let outside = Netns::new("outside");
    let uplink = Veth::between(
        &node.netns,
        &outside,
        VethOptions { number: 1, mtu: 1600, ..Default::default() },
    );
    for (own, peer, at, to) in
        [(&uplink.near, &uplink.far, 1, 2), (&uplink.far, &uplink.near, 2, 1)]
    {
        // So that nothing but the datagrams is inside.
        own.netns.sysctl("ipv6/conf/default/disable_ipv6", 1);
        let (dev, remote) = (&own.ifname, peer.v4);
        let vxlan = format!("id 7 dev {dev} remote {remote} dstport 8472 nolearning");
        own.netns.ip_batch(&[
            format!("link add vx0 address 02:00:00:99:00:0{at} type vxlan {vxlan}"),
            format!("addr add 10.99.0.{at}/24 dev vx0"),
            "link set vx0 up".to_owned(),
            format!("neigh add 10.99.0.{to} lladdr 02:00:00:99:00:0{to} dev vx0 nud permanent"),
        ]);
    }
    // The uplink, the tunnel's inside, and the link to the pod.
    let mut watch = scene.watch(3);
    let inside = |last: u8| IpAddr::from([10, 99, 0, last]);
    let receiver = outside.enter(|| socket2(inside(2)));
    let to = receiver.local_addr().expect("bound");
    let sender = scene.host.enter(|| node.netns.enter(|| socket2(inside(1))));
    sender.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
    for _ in 0..10 {
        sender.send_to(&[3; 50], to).expect("a datagram leaves");
        let (_, from) = receiver.recv_from(&mut [0; 100]).expect("a datagram arrives");
        receiver.send_to(&[4; 70], from).expect("an answer leaves");
        sender.recv(&mut [0; 100]).expect("an answer arrives");
    }
    let observed = watch.settled(60);
    let outer = |way| {
        let all = observed.supplement(uplink.near.ifindex, way);
        all.only(|flow| matches!(flow.l4, L4::Ports { dst: 8472, .. })).total()
    };
    // Outside: 50 bytes of IPv4, UDP, VXLAN and Ethernet.
    assert_eq!(outer(Egress), Total { packets: 10, bytes: 10 * (78 + 50) });
    assert_eq!(outer(Ingress), Total { packets: 10, bytes: 10 * (98 + 50) });
    let scopes: Vec<_> = observed
        .flow_facts
        .iter()
        .filter(|(id, _)| id.owner == u64::from(uplink.near.ifindex))
        .filter(|(id, _)| id.key.dst_port == 8472_u16.to_be_bytes())
        .map(|(_, facts)| facts.scope)
        .collect();
    assert!(!scopes.is_empty() && scopes.iter().all(|s| *s == scope::TUNNEL), "{scopes:?}");
    let sockets = |way| of(&observed.at_sockets(scene.host.id(), way), UDP).total();
    assert_eq!(sockets(Egress), Total { packets: 10, bytes: 780 });
    assert_eq!(sockets(Ingress), Total { packets: 10, bytes: 980 });
    observed.assert_complete();
}

#[test]
fn without_the_socket_plane_interfaces_count_all_of_it() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let mut options = options("none");
    // The kernel refuses to attach there.
    let root = SocketRoot { path: "/proc".into(), ..scene.tree.root() };
    options.planes = Planes::Both(root);
    let mut watch = Direct::with(&options, &node.netns, 1);
    assert!(!watch.has_sockets());
    let [to_pod, from_pod] = scene.pod.enter(|| {
        [(node, pod), (pod, node)].map(|(from, to)| traffic::udp(from, to, Family::V4, 9, 200))
    });
    let observed = watch.settled(18);
    observed.traffic(&node.ifname, Ingress).assert_equals(&to_pod, "to the pod");
    observed.traffic(&node.ifname, Egress).assert_equals(&from_pod, "from the pod");
    assert_eq!(scene.supplement(&observed), [Traffic::new(), Traffic::new()]);
    assert_eq!(observed.counted_at_socket(), Total::default());
    let scopes: Vec<_> = observed.flow_facts.values().map(|facts| facts.scope).collect();
    assert!(scopes.iter().all(|scope| *scope == scope::SOCKET), "{scopes:?}");
    observed.assert_complete();
    // The totals come from the link, so what it carried before is missing from them.
    let elsewhere = Netns::new("elsewhere");
    let options = VethOptions { number: 1, ..Default::default() };
    let late = Veth::between(&elsewhere, &Netns::new("late"), options);
    let missed = traffic::udp(&late.near, &late.far, Family::V4, 9, 200).total().packets;
    let before = observed.report.unattached_packets;
    elsewhere.run(&format!("ip link set {} netns {}", late.near.ifname, node.netns.path()));
    wait_until(DEADLINE, "what is missing to be told", || {
        watch.drain();
        watch.observed().report.unattached_packets >= before + missed
    });
}

#[test]
fn an_answer_after_the_socket_was_closed_is_supplement() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let mut watch = scene.watch(1);
    for family in Family::ALL {
        let server = scene.host.enter(|| node.netns.enter(|| socket2(node.address(family))));
        let to = server.local_addr().expect("bound");
        let client = scene.pod.enter(|| pod.netns.enter(|| socket2(pod.address(family))));
        client.send_to(&[5; 40], to).expect("a datagram leaves");
        let (_, from) = server.recv_from(&mut [0; 100]).expect("a datagram arrives");
        drop(client);
        server.send_to(&[6; 60], from).expect("an answer leaves");
    }
    // Two datagrams at both sockets and the link, two at one socket and the link, two errors.
    let observed = watch.settled(6 + 4 + 2);
    let [_, taken] = scene.supplement(&observed);
    assert_eq!(of(&taken, UDP).total(), Total { packets: 2, bytes: 88 + 108 });
    observed.assert_complete();
}

/// How many datagrams of the interface's owner no socket of it sends or takes.
fn datagrams(watch: &Direct, port: &Port, way: Direction) -> u64 {
    of(&watch.observed().supplement(port.ifindex, way), UDP).total().packets
}

/// A host's client of a Service is translated behind the uplink, so that no look-up finds it. What
/// vouches for it there is what it sends, and it ends with that, however much goes on to arrive.
#[test]
fn what_arrives_for_a_translated_client_that_is_closed_becomes_supplement() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Tool("iptables"));
    let scene = Scene::new();
    let node = &scene.link.near;
    let outside = Netns::new("outside");
    let uplink =
        Veth::between(&node.netns, &outside, VethOptions { number: 1, ..Default::default() });
    let backend = outside.enter(|| socket2(uplink.far.address(Family::V4)));
    let at = backend.local_addr().expect("bound");
    node.netns.run(&format!("ip route add 10.96.0.0/16 via {}", uplink.far.v4));
    node.netns.run(&format!(
        "iptables -w -t nat -A OUTPUT -d 10.96.0.10 -p udp --dport 53 -j DNAT --to-destination {at}"
    ));
    let mut watch = scene.watch(2);
    let client = scene.host.enter(|| node.netns.enter(|| socket2(uplink.near.address(Family::V4))));
    client.set_read_timeout(Some(DEADLINE)).expect("a timeout is accepted");
    client.connect("10.96.0.10:53").expect("a route");
    let mut from = None;
    for _ in 0..10 {
        client.send(&[5; 40]).expect("a datagram leaves");
        let asked = backend.recv_from(&mut [0; 100]).expect("a datagram arrives").1;
        backend.send_to(&[6; 60], asked).expect("an answer leaves");
        client.recv(&mut [0; 100]).expect("an answer arrives");
        from = Some(asked);
    }
    let from = from.expect("there was one");
    // Ten each way, at the uplink and at the socket.
    let observed = watch.settled(40);
    assert_eq!(observed.counted_at_socket(), Total { packets: 20, bytes: 10 * (68 + 88) });
    drop(client);
    let more = || {
        backend.send_to(&[6; 60], from).expect("a datagram leaves");
    };
    wait_until(DEADLINE, "nobody to be vouched for", || {
        more();
        watch.drain();
        datagrams(&watch, &uplink.near, Ingress) > 0
    });
    let before = watch.observed().clone();
    for _ in 0..20 {
        more();
    }
    wait_until(DEADLINE, "all of the rest to be told", || {
        watch.drain();
        datagrams(&watch, &uplink.near, Ingress) >= 21
    });
    let observed = watch.observed();
    assert_eq!(observed.counted_at_socket(), before.counted_at_socket());
    observed.assert_complete();
}

#[test]
fn a_socket_that_opens_amid_datagrams_to_its_port_is_found() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let mut watch = scene.watch(1);
    let address = pod.address(Family::V4);
    let to = SocketAddr::new(address, pod.netns.enter(|| free_port(address)));
    let sender = node.netns.enter(|| socket2(node.address(Family::V4)));
    let mut sent = 0;
    let mut more = || {
        sender.send_to(&[5; 40], to).expect("a datagram leaves");
        sent += 1;
    };
    more();
    wait_until(DEADLINE, "a datagram to nobody", || {
        watch.drain();
        datagrams(&watch, node, Ingress) == 1
    });
    let _receiver =
        scene.pod.enter(|| pod.netns.enter(|| UdpSocket::bind(to).expect("a free port")));
    wait_until(DEADLINE, "the socket to be found", || {
        more();
        watch.drain();
        watch.observed().counted_at_socket().packets > 0
    });
    let before = datagrams(&watch, node, Ingress);
    for _ in 0..20 {
        more();
    }
    wait_until(DEADLINE, "all datagrams to be drained", || {
        watch.drain();
        let left = watch.observed().counted_at_socket().packets;
        left + datagrams(&watch, node, Ingress) == sent
    });
    assert_eq!(datagrams(&watch, node, Ingress), before, "none of the others is supplement");
    watch.observed().assert_complete();
}

/// Nobody can be asked who takes a reply to a ping: who has asked vouches for it, and not for ever.
#[test]
fn replies_to_pings_become_supplement_when_nobody_asks_any_more() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let mut watch = scene.watch(1);
    for family in Family::ALL {
        scene.pod.enter(|| traffic::echo(pod, node, family, 3, 100));
    }
    // At the link and at the socket.
    let observed = watch.settled(24);
    assert_eq!(observed.counted_at_socket().packets, 12);
    for family in Family::ALL {
        let (own, to) = (node.address(family), pod.address(family));
        let replies = node.netns.enter(|| traffic::Replies::open(own, to));
        let reply = icmp(own, to, if family == Family::V4 { 0 } else { 129 }, 0);
        let told =
            |watch: &Direct| watch.observed().supplement(node.ifindex, Ingress).get(&reply).packets;
        wait_until(DEADLINE, "nobody to be vouched for", || {
            replies.send();
            watch.drain();
            told(&watch) > 0
        });
        let (told_before, left) = (told(&watch), watch.observed().counted_at_socket());
        for _ in 0..20 {
            replies.send();
        }
        wait_until(DEADLINE, "all of the rest to be told", || {
            watch.drain();
            told(&watch) >= told_before + 20
        });
        assert_eq!(watch.observed().counted_at_socket(), left);
    }
    watch.observed().assert_complete();
}

#[test]
fn later_fragments_are_left_out_by_a_reason_of_their_own() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let scene = Scene::new();
    let (node, pod) = (&scene.link.near, &scene.link.far);
    let mut watch = scene.watch(1);
    let sender = node.netns.enter(|| socket2(node.address(Family::V4)));
    let receiver = scene.pod.enter(|| pod.netns.enter(|| socket2(pod.address(Family::V4))));
    let to = receiver.local_addr().expect("bound");
    sender.send_to(&[5; 4_000], to).expect("a datagram leaves");
    assert_eq!(receiver.recv(&mut [0; 5_000]).expect("a datagram arrives"), 4_000);
    // Three fragments of at most 1500 bytes: 1480 + 1480 + 1048 behind a header of 20.
    let observed = watch.settled(3 + 1);
    assert_eq!(observed.counted_at_socket(), Total { packets: 1, bytes: 1_500 });
    assert_eq!(observed.later_fragments(), Total { packets: 2, bytes: 1_500 + 1_068 });
    let at_socket = observed.at_sockets(scene.pod.id(), Ingress).total();
    assert_eq!(at_socket, Total { packets: 1, bytes: 4_028 });
    observed.assert_complete();
}

/// At the hierarchy's real root the kernel's own sockets are seen too, some of them: what the host's
/// kernel answers is counted in one plane or the other, whatever the family, and never in both. Nor
/// do the kernel's resets, which its own socket sends, vouch for anybody who takes what is refused.
#[test]
fn what_the_hosts_own_kernel_answers_is_told_once() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    // An address that nobody else on this machine has at this time.
    let link = Veth::addressed(VethOptions { number: 251, ..VethOptions::default() });
    let (host, other) = (&link.near, &link.far);
    let view = capture::look(Path::new("/proc"), None);
    let root = view.root.unwrap_or_else(|error| panic!("{error}"));
    let root_id = root.id;
    let mut options = options("none");
    options.planes = Planes::Both(root);
    let mut watch = Direct::with(&options, &host.netns, 1);
    let (mut asked, mut answered) = (Traffic::new(), Traffic::new());
    for family in Family::ALL {
        let [there, back] = knock(other, host, family);
        let ping = traffic::echo(other, host, family, 3, 100);
        let requests = ping.only(|flow| flow.src == other.address(family));
        let replies = ping.only(|flow| flow.src == host.address(family));
        asked = sum(&[&asked, &there, &requests]);
        answered = sum(&[&answered, &back, &replies]);
    }
    let of_host = |flow: &Flow, way| {
        let owner = if way == Egress { flow.src } else { flow.dst };
        [IpAddr::from(host.v4), host.v6.into()].contains(&owner)
    };
    let both = |observed: &DirectObserved, way| {
        let sockets = observed.at_sockets(root_id, way).only(|flow| of_host(flow, way));
        sum(&[&sockets, &observed.supplement(host.ifindex, way)])
    };
    wait_until(DEADLINE, "all of it to be drained", || {
        watch.drain();
        let found = |way| both(watch.observed(), way).total().packets;
        found(Ingress) >= asked.total().packets + 4 && found(Egress) >= answered.total().packets + 4
    });
    let observed = watch.observed();
    let (taken, sent) = (both(observed, Ingress), both(observed, Egress));
    taken.only(|flow| flow.protocol != TCP).assert_equals(&asked, "asked");
    sent.only(|flow| flow.protocol != TCP).assert_equals(&answered, "answered");
    let (syn, reset) = (of(&taken, TCP).total(), of(&sent, TCP).total());
    assert_eq!((syn.packets, syn.bytes), (4, 2 * (60 + 80)));
    assert_eq!((reset.packets, reset.bytes), (4, 2 * (40 + 60)));
}
