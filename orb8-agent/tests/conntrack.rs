//! What the kernel's connection tracking tells, against rules as kube-proxy makes them, in
//! namespaces that stand for a node, two pods and a machine outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use orb8_agent::clock::SystemClock;
use orb8_agent::conntrack::{self, Bounds, State, Tracking, Translation, Translations, Tuple};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::wait::{wait_for, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    v6: bool,
}

impl Family {
    const BOTH: [Self; 2] = [Self { v6: false }, Self { v6: true }];

    fn ip(self, v4: &str, v6: &str) -> IpAddr {
        if self.v6 { v6.parse().unwrap() } else { v4.parse().unwrap() }
    }

    fn pod(self, n: u8) -> IpAddr {
        self.ip(&format!("10.244.{n}.5"), &format!("fd00:244:{n}::5"))
    }

    /// The node's end of a pod's link.
    fn gateway(self, n: u8) -> IpAddr {
        self.ip(&format!("10.244.{n}.1"), &format!("fd00:244:{n}::1"))
    }

    fn service(self, n: u8) -> IpAddr {
        self.ip(&format!("10.96.0.{n}"), &format!("fd00:96::{n}"))
    }

    fn node(self) -> IpAddr {
        self.ip("172.30.0.11", "fd00:30::11")
    }

    fn outside(self) -> IpAddr {
        self.ip("172.30.0.99", "fd00:30::99")
    }
}

/// A node with two pods (namespaces 1 and 2), joined to a machine outside.
struct Site {
    node: Netns,
    pods: [Netns; 2],
    outside: Netns,
}

impl Site {
    fn new() -> Self {
        let node = Netns::new("node");
        let join = |name: &str, far: &Netns, near: [String; 2], own: [String; 2]| {
            let at = far.path();
            node.run(&format!("ip link add {name} type veth peer name eth0 netns {at}"));
            for (netns, dev, addresses) in [(&node, name, &near), (far, "eth0", &own)] {
                netns.ip_batch(&[
                    format!("link set {dev} up"),
                    format!("addr add {}/24 dev {dev}", addresses[0]),
                    format!("addr add {}/64 dev {dev} nodad", addresses[1]),
                ]);
            }
            // A router asks for a neighbour from its link-local address only.
            node.run(&format!("ip addr add fe80::1/64 dev {name} nodad"));
        };
        let both = |of: fn(Family) -> IpAddr| Family::BOTH.map(|family| of(family).to_string());
        let outside = Netns::new("outside");
        join("uplink", &outside, both(Family::node), both(Family::outside));
        let pods = [1, 2].map(|n| {
            let pod = Netns::new(&format!("pod{n}"));
            let ends = [Family::gateway, Family::pod];
            let [near, own] = ends.map(|of| Family::BOTH.map(|it| of(it, n).to_string()));
            let routes = near.clone().map(|via| format!("route add default via {via}"));
            join(&format!("pod{n}"), &pod, near, own);
            pod.ip_batch(&routes);
            pod
        });
        node.ip_batch(&both(Family::outside).map(|via| format!("route add default via {via}")));
        node.sysctl("ipv4/ip_forward", 1);
        node.sysctl("ipv6/conf/all/forwarding", 1);
        Self { node, pods, outside }
    }

    fn pod(&self, n: u8) -> &Netns {
        &self.pods[usize::from(n) - 1]
    }

    /// As kube-proxy does it: Service 1 to pod 2, Service 2 to pod 1 with hairpin, NodePort 30080
    /// to pod 2, masquerade for what leaves the pods' network.
    fn rules(&self) {
        for family in Family::BOTH {
            for protocol in ["tcp", "udp"] {
                self.service(family, protocol, 1, 2);
                self.service(family, protocol, 2, 1);
                let backend = SocketAddr::new(family.pod(2), 8080);
                self.nat(family, &format!(
                    "-A PREROUTING -d {} -p {protocol} --dport 30080 -j DNAT --to-destination {backend}",
                    family.node()
                ));
            }
            let pods = if family.v6 { "fd00:244::/32" } else { "10.244.0.0/16" };
            self.nat(family, &format!("-A POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE"));
            let pod = family.pod(1);
            self.nat(family, &format!("-A POSTROUTING -s {pod} -d {pod} -j MASQUERADE"));
        }
    }

    fn service(&self, family: Family, protocol: &str, service: u8, pod: u8) {
        let (ip, backend) = (family.service(service), SocketAddr::new(family.pod(pod), 8080));
        for chain in ["PREROUTING", "OUTPUT"] {
            self.nat(
                family,
                &format!(
                    "-A {chain} -d {ip} -p {protocol} --dport 80 -j DNAT --to-destination {backend}"
                ),
            );
        }
    }

    fn nat(&self, family: Family, rule: &str) {
        let program = if family.v6 { "ip6tables" } else { "iptables" };
        self.node.run(&format!("{program} -w -t nat {rule}"));
    }

    fn listen(&self, bounds: Bounds) -> Tracking {
        self.node
            .enter(|| conntrack::start(bounds, Path::new("/proc"), SystemClock::shared()))
            .unwrap()
    }

    /// Ends all connections of the node at once.
    fn flush(&self) {
        let script = "import socket,struct\n\
            s=socket.socket(socket.AF_NETLINK,socket.SOCK_RAW,12)\n\
            s.sendto(struct.pack('=IHHII4x',20,0x102,5,1,0),(0,0))\n\
            assert struct.unpack_from('=i',s.recv(4096),16)[0]==0";
        let output = self.node.command("python3").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A connection as its client sees it, kept open.
struct Client {
    _socket: Box<dyn Send>,
    original: Tuple,
}

/// Connects, or sends a datagram, from any or from a given port.
fn connect(from: &Netns, protocol: u8, to: SocketAddr, port: u16) -> Client {
    from.enter(|| {
        let any: IpAddr = if to.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
        let (socket, src): (Box<dyn Send>, _) = if protocol == TCP {
            let stream = TcpStream::connect_timeout(&to, DEADLINE)
                .unwrap_or_else(|error| panic!("{to} from {}: {error}", from.label()));
            let src = stream.local_addr().unwrap();
            (Box::new(stream), src)
        } else {
            let socket = UdpSocket::bind((any, port)).unwrap();
            socket.connect(to).unwrap();
            socket.send(b"hello").unwrap();
            let src = socket.local_addr().unwrap();
            (Box::new(socket), src)
        };
        Client { _socket: socket, original: Tuple { protocol, src, dst: to } }
    })
}

fn server(at: &Netns, address: SocketAddr) -> (TcpListener, UdpSocket) {
    at.enter(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()))
}

fn found(table: &Translations, tuple: &Tuple) -> Arc<Translation> {
    wait_for(DEADLINE, "the connection is known", || table.find(tuple))
}

fn living(table: &Translations, tuple: &Tuple) -> Arc<Translation> {
    let goes_on = |it: &Arc<Translation>| it.until_ns().is_none();
    wait_for(DEADLINE, "a connection that goes on is known", || table.find(tuple).filter(goes_on))
}

fn is_ok(table: &Translations) -> bool {
    table.status().state == State::Ok
}

fn tools() -> [Need; 4] {
    [Need::Root, Need::Tool("ip"), Need::Tool("iptables"), Need::Tool("ip6tables")]
}

macro_rules! need_rules {
    () => {
        need!(@check &tools());
    };
}

#[test]
fn every_kind_of_translation_is_found_from_each_form_of_its_packets() {
    need_rules!();
    let site = Site::new();
    site.rules();
    let tracking = site.listen(Bounds::default());
    let table = tracking.translations();
    wait_until(DEADLINE, "the first dump is read", || is_ok(table));
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
        servers.push(server(site.pod(1), at(family.pod(1), 8080)));
        servers.push(server(site.pod(2), at(family.pod(2), 8080)));
        servers.push(server(&site.outside, at(family.outside(), 9000)));
        let (pod1, pod2) = (at(family.pod(1), 8080), at(family.pod(2), 8080));
        let far = at(family.outside(), 9000);
        for (what, from, to, backend, shown_as) in [
            ("pod to ClusterIP", site.pod(1), at(family.service(1), 80), pod2, family.pod(1)),
            ("host to ClusterIP", &site.node, at(family.service(1), 80), pod2, family.node()),
            ("hairpin", site.pod(1), at(family.service(2), 80), pod1, family.gateway(1)),
            ("NodePort", &site.outside, at(family.node(), 30080), pod2, family.outside()),
            ("masquerade", site.pod(1), far, far, family.node()),
        ] {
            for protocol in [TCP, UDP] {
                let client = connect(from, protocol, to, 0);
                let held = found(table, &client.original);
                assert_eq!(held.original, client.original, "{what}");
                assert_eq!((held.reply.src, held.reply.dst.ip()), (backend, shown_as), "{what}");
                assert_eq!(held.rewrites_destination(), backend != to, "{what}");
                assert_eq!(held.rewrites_source(), shown_as != client.original.src.ip(), "{what}");
                let forms = [held.original, held.reply];
                for form in forms.iter().flat_map(|form| [*form, form.reversed()]) {
                    assert!(Arc::ptr_eq(&found(table, &form), &held), "{what}: {form:?}");
                }
                clients.push(client);
            }
        }
        clients.push(connect(site.pod(1), TCP, pod2, 0));
        let direct = connect(site.pod(1), UDP, pod2, 0);
        assert!(table.find(&direct.original).is_none(), "nothing is rewritten");
        clients.push(direct);
    }
    let status = table.status();
    assert_eq!((status.entries, status.rejected, status.overruns), (20, 0, 0));
    assert_eq!((status.state, status.reason.as_str()), (State::Ok, ""));
}

#[test]
fn connections_that_were_there_before_are_found_and_so_are_ends_and_reuse() {
    need_rules!();
    need!(Need::Tool("python3"));
    let site = Site::new();
    let family = Family { v6: false };
    site.service(family, "udp", 1, 2);
    let service = SocketAddr::new(family.service(1), 80);
    let before = connect(site.pod(1), UDP, service, 40_001);
    let tracking = site.listen(Bounds::default());
    let table = tracking.translations();
    let old = found(table, &before.original);
    assert_eq!((old.from_ns, old.until_ns()), (0, None));
    wait_until(DEADLINE, "the dump is read", || is_ok(table));

    let first = connect(site.pod(1), UDP, service, 40_002);
    let one = found(table, &first.original);
    assert!(one.from_ns > 0);
    site.flush();
    wait_until(DEADLINE, "its end is told", || one.until_ns().is_some());
    let until_ns = one.until_ns().unwrap();
    // The same client asks again, and another backend answers.
    site.nat(family, "-F");
    site.service(family, "udp", 1, 1);
    let original = first.original;
    drop((before, first));
    let again = connect(site.pod(1), UDP, service, 40_002);
    assert_eq!(again.original, original);
    let two = living(table, &original);
    assert_eq!(two.reply.src, SocketAddr::new(family.pod(1), 8080));
    assert_eq!(one.reply.src, SocketAddr::new(family.pod(2), 8080));
    // Where the second was told within a second, either may have sent what came just before.
    let then = table.find_at(&original, until_ns);
    assert!(then.is_none_or(|it| Arc::ptr_eq(&it, &one)), "as of then");
    assert!(Arc::ptr_eq(&table.find_at(&original, two.from_ns).unwrap(), &two), "as of now");
    // Of what was there before, the kernel may tell no end; whoever takes its tuple ends it.
    let taker = connect(site.pod(1), UDP, service, 40_001);
    wait_until(DEADLINE, "the old one is over", || old.until_ns().is_some());
    assert_eq!(living(table, &taker.original).reply.src.ip(), family.pod(1));
}

#[test]
fn five_thousand_connections_are_all_found() {
    need_rules!();
    let site = Site::new();
    let family = Family { v6: false };
    site.service(family, "udp", 1, 2);
    let tracking = site.listen(Bounds::default());
    let table = tracking.translations();
    wait_until(DEADLINE, "the first dump is read", || is_ok(table));
    let tuples = burst(&site, family, 10_000..15_000);
    wait_until(DEADLINE, "all are known", || tuples.iter().all(|it| table.find(it).is_some()));
    let status = table.status();
    assert_eq!((status.entries, status.evicted, status.overruns), (5_000, 0, 0));
}

/// A datagram to Service 1 from each of these ports of pod 1.
fn burst(site: &Site, family: Family, ports: std::ops::Range<u16>) -> Vec<Tuple> {
    let dst = SocketAddr::new(family.service(1), 80);
    site.pod(1).enter(|| {
        let send = |port| {
            let src = SocketAddr::new(family.pod(1), port);
            UdpSocket::bind(src).unwrap().send_to(b"hello", dst).unwrap();
            Tuple { protocol: UDP, src, dst }
        };
        ports.map(send).collect()
    })
}

#[test]
fn what_does_not_fit_goes_oldest_first_and_is_counted() {
    need_rules!();
    let site = Site::new();
    let family = Family { v6: false };
    site.service(family, "udp", 1, 2);
    let tracking = site.listen(Bounds { max_entries: Some(100), ..Bounds::default() });
    let table = tracking.translations();
    wait_until(DEADLINE, "the first dump is read", || is_ok(table));
    let tuples = burst(&site, family, 10_000..10_300);
    wait_until(DEADLINE, "the last is known", || table.find(&tuples[299]).is_some());
    let held = tuples.iter().map(|it| table.find(it).is_some());
    let expected = (0..300).map(|n| n >= 200);
    assert!(held.eq(expected), "the newest hundred");
    let status = table.status();
    assert_eq!((status.entries, status.max_entries, status.evicted), (100, 100, 200));
}

#[test]
fn after_an_overrun_the_table_is_read_again_and_agrees_with_the_kernel() {
    need_rules!();
    need!(Need::Tool("python3"));
    let site = Site::new();
    let family = Family { v6: false };
    site.service(family, "udp", 1, 2);
    // Room for a handful of messages: the kernel writes thousands while nobody can read.
    let tracking = site.listen(Bounds { queue_bytes: Some(4_096), ..Bounds::default() });
    let table = tracking.translations();
    wait_until(DEADLINE, "the first dump is read", || is_ok(table));
    let gone = burst(&site, family, 10_000..12_000);
    wait_until(DEADLINE, "all are known", || gone.iter().all(|it| table.find(it).is_some()));
    site.flush();
    wait_until(DEADLINE, "messages were lost", || table.status().overruns > 0);
    let stay = burst(&site, family, 20_000..20_050);
    let live = |tuple: &Tuple| table.find(tuple).is_some_and(|it| it.until_ns().is_none());
    wait_until(DEADLINE, "the table agrees with the kernel", || {
        is_ok(table) && stay.iter().all(live) && !gone.iter().any(live)
    });
    assert_eq!(table.status().rejected, 0);
}

#[test]
fn without_the_right_the_reason_is_told_and_nothing_else_happens() {
    need!(Need::Root);
    let netns = Netns::new("node");
    let tracking = netns.enter(|| {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        sets.permitted.remove(CapabilitySet::NET_ADMIN);
        sets.inheritable.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        conntrack::start(Bounds::default(), Path::new("/proc"), SystemClock::shared()).unwrap()
    });
    let status = wait_for(DEADLINE, "the reason is told", || {
        Some(tracking.translations().status()).filter(|it| it.reason.contains("CAP_NET_ADMIN"))
    });
    assert_eq!(status.state, State::Unavailable);
    assert_eq!((status.entries, status.overruns), (0, 0));
}

#[test]
fn events_that_are_turned_off_are_told_with_the_next_step() {
    need_rules!();
    let site = Site::new();
    // The module is loaded with the first rule.
    site.rules();
    site.node.sysctl("netfilter/nf_conntrack_events", 0);
    let tracking = site.listen(Bounds::default());
    let status = wait_for(DEADLINE, "the reason is told", || {
        let status = tracking.translations().status();
        Some(status).filter(|it| it.reason.contains("net.netfilter.nf_conntrack_events"))
    });
    assert_eq!(status.state, State::Unavailable);
}

#[test]
fn events_that_are_turned_off_later_end_what_is_held_when_they_were_last_told() {
    need_rules!();
    let site = Site::new();
    let family = Family { v6: false };
    site.service(family, "udp", 1, 2);
    let clock = SystemClock::shared();
    let tracking = site.listen(Bounds::default());
    let table = tracking.translations();
    wait_until(DEADLINE, "the first dump is read", || is_ok(table));
    let client = connect(site.pod(1), UDP, SocketAddr::new(family.service(1), 80), 0);
    let held = found(table, &client.original);
    assert!(table.find_at(&client.original, clock.monotonic_ns()).is_some());
    site.node.sysctl("netfilter/nf_conntrack_events", 0);
    let off_ns = clock.monotonic_ns();
    wait_until(DEADLINE, "that is noticed", || table.status().state == State::Unavailable);
    assert!(table.find_at(&client.original, clock.monotonic_ns()).is_none(), "nobody would tell");
    let until_ns = held.until_ns().unwrap();
    assert!((held.from_ns..=off_ns).contains(&until_ns), "{until_ns} after {off_ns}");
}

#[test]
fn what_ends_without_a_word_is_found_to_be_over_when_the_table_is_read_again() {
    need_rules!();
    need!(Need::Tool("python3"));
    let site = Site::new();
    let family = Family { v6: false };
    site.service(family, "udp", 1, 2);
    // Of what begins while nobody listens no end is told.
    site.node.sysctl("netfilter/nf_conntrack_events", 2);
    let silent = connect(site.pod(1), UDP, SocketAddr::new(family.service(1), 80), 0);
    let renew = Some(Duration::from_secs(1));
    let tracking = site.listen(Bounds { renew, ..Bounds::default() });
    let table = tracking.translations();
    let old = found(table, &silent.original);
    wait_until(DEADLINE, "the dump is read", || is_ok(table));
    let told = connect(site.pod(1), UDP, SocketAddr::new(family.service(1), 80), 0);
    let new = found(table, &told.original);
    site.flush();
    wait_until(DEADLINE, "both are over", || old.until_ns().is_some() && new.until_ns().is_some());
    assert_eq!(table.status().overruns, 0);
}
