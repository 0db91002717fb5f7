//! The socket plane: every packet that a socket sends or takes is counted once on each side, with
//! the cgroup of the socket, and nothing happens to it.

mod support;

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use orb8_agent::capture::Planes;
use orb8_agent::ebpf::kernel::KernelOptions;
use orb8_agent::ebpf::sys;
use orb8_common::counter::{EVENTS_DEFERRED, EVENTS_PRODUCED};
use orb8_common::network::Sparing;
use orb8_testbed::counters;
use orb8_testbed::flow::{Flow, Traffic, UDP};
use orb8_testbed::link::{Family, Port, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::traffic;
use rustix::thread::{CpuSet, sched_setaffinity};
use support::cgroup::Cgroup;
use support::direct::{Direct, DirectObserved, options};
use support::{Egress, Ingress};

/// The socket plane alone at a tree.
fn watch(tree: &Cgroup, netns: &Netns) -> Direct {
    let mut options = options("none");
    options.planes = Planes::Socket(tree.root());
    options.ring_bytes = 8 << 20;
    Direct::with(&options, netns, 0)
}

/// Both ends of everything are in one cgroup, so what was sent is there in both directions.
#[track_caller]
fn check_both_ways(observed: &DirectObserved, cgroup: &Cgroup, sent: &Traffic) {
    observed.at_sockets(cgroup.id(), Egress).assert_equals(sent, "sent by sockets");
    observed.at_sockets(cgroup.id(), Ingress).assert_equals(sent, "taken by sockets");
    assert_eq!(observed.total().packets, 2 * sent.total().packets, "nothing besides");
    observed.assert_complete();
}

fn check_real_traffic(segmentation: bool) {
    let tree = Cgroup::tree();
    let pods = tree.child("pods");
    let veth = Veth::addressed(VethOptions { segmentation, ..VethOptions::default() });
    let (near, far) = (&veth.near, &veth.far);
    traffic::plain_tcp([near, far]);
    let mut watch = watch(&tree, &near.netns);
    let mut sent = Traffic::new();
    for family in Family::ALL {
        for (from, to) in [(near, far), (far, near)] {
            for part in pods.enter(|| {
                [
                    traffic::udp(from, to, family, 50, 700),
                    traffic::udp_segments(from, to, family, 1000, 20_500),
                    traffic::tcp(from, to, family, 400_000, 1_000).traffic,
                ]
            }) {
                for (&flow, total) in part.iter() {
                    sent.add(flow, total.packets, total.bytes);
                }
            }
        }
    }
    let observed = watch.settled(2 * sent.total().packets);
    check_both_ways(&observed, &pods, &sent);
}

#[test]
fn sockets_are_counted_exactly_without_segmentation_offload() {
    let from_6_11 = Need::SegmentsWithoutChecksums;
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2, from_6_11);
    check_real_traffic(false);
}

#[test]
fn sockets_are_counted_exactly_with_segmentation_offload() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    check_real_traffic(true);
}

#[test]
fn pings_are_counted_at_the_socket_that_asks() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    let veth = Veth::addressed(VethOptions::default());
    let (near, far) = (&veth.near, &veth.far);
    let mut watch = watch(&tree, &near.netns);
    let mut sent = Traffic::new();
    for family in Family::ALL {
        for (&flow, total) in tree.enter(|| traffic::echo(near, far, family, 3, 100)).iter() {
            sent.add(flow, total.packets, total.bytes);
        }
    }
    let observed = watch.settled(sent.total().packets);
    let asked = sent.only(|flow| [near.v4.into(), near.v6.into()].contains(&flow.src));
    let answered = sent.only(|flow| [far.v4.into(), far.v6.into()].contains(&flow.src));
    observed.at_sockets(tree.id(), Egress).assert_equals(&asked, "requests");
    observed.at_sockets(tree.id(), Ingress).assert_equals(&answered, "replies");
    observed.assert_complete();
}

/// Sends datagrams from one port of loopback to another, the same in every namespace.
fn over_loopback(netns: &Netns, count: u64) -> Traffic {
    netns.enter(|| {
        let ends = [7_000, 7_001].map(|port| UdpSocket::bind(("127.0.0.1", port)).expect("free"));
        let mut buffer = [0; 100];
        for _ in 0..count {
            ends[0].send_to(&[1; 60], "127.0.0.1:7001").expect("a datagram leaves");
            assert_eq!(ends[1].recv(&mut buffer).expect("a datagram arrives"), 60);
        }
    });
    let mut sent = Traffic::new();
    let local = "127.0.0.1".parse().expect("an address");
    sent.add(Flow::ports(UDP, (local, 7_000), (local, 7_001)), count, count * 88);
    sent
}

#[test]
fn starts_that_are_left_to_the_drain_are_found_by_it() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    let netns = Netns::new("deferred");
    let mut watch = watch(&tree, &netns);
    let spare = |watch: &Direct, fewer_events| {
        let sparing = Sparing { sampling: 1, fewer_events };
        watch.kernel().meter().spare(sparing).expect("programs that can be asked");
    };
    spare(&watch, 1);
    let mut sent = tree.enter(|| over_loopback(&netns, 3));
    let observed = watch.settled(2 * sent.total().packets);
    let events = |observed: &DirectObserved| {
        [EVENTS_DEFERRED, EVENTS_PRODUCED].map(|at| observed.report.after.0[at])
    };
    assert_eq!((events(&observed), observed.signals), ([2, 0], 0), "one each way");
    assert_eq!(observed.new_lines, 2);
    spare(&watch, 0);
    let child = tree.child("another");
    for (&flow, total) in child.enter(|| over_loopback(&netns, 3)).iter() {
        sent.add(flow, total.packets, total.bytes);
    }
    let observed = watch.settled(2 * sent.total().packets);
    assert_eq!((events(&observed), observed.signals), ([2, 2], 2));
    assert_eq!(observed.total().packets, 2 * sent.total().packets);
    observed.assert_complete();
}

#[test]
fn the_same_five_tuple_on_loopback_of_two_pods_is_two_flows() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    let pods = ["a", "b"].map(|name| (Netns::new(name), tree.child(name)));
    let mut watch = watch(&tree, &pods[0].0);
    let sent = [(&pods[0], 3), (&pods[1], 5)]
        .map(|((netns, cgroup), count)| (cgroup, cgroup.enter(|| over_loopback(netns, count))));
    let observed = watch.settled(16);
    for (cgroup, sent) in &sent {
        observed.at_sockets(cgroup.id(), Egress).assert_equals(sent, "sent in the pod");
        observed.at_sockets(cgroup.id(), Ingress).assert_equals(sent, "taken in the pod");
    }
    assert_eq!(observed.total().packets, 16);
    observed.assert_complete();
}

#[test]
fn sockets_outside_the_tree_are_not_seen() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let (tree, other) = (Cgroup::tree(), Cgroup::tree());
    let netns = Netns::new("outside");
    let mut watch = watch(&tree, &netns);
    other.enter(|| over_loopback(&netns, 4));
    let sent = tree.enter(|| over_loopback(&netns, 2));
    let observed = watch.settled(4);
    check_both_ways(&observed, &tree, &sent);
}

#[test]
fn a_socket_keeps_the_cgroup_in_which_it_was_made() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    let (first, second) = (tree.child("first"), tree.child("second"));
    let netns = Netns::new("moved");
    let mut watch = watch(&tree, &netns);
    let ends = first.enter(|| {
        netns.enter(|| [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a free port")))
    });
    let to = ends[1].local_addr().expect("bound");
    let mut buffer = [0; 100];
    second.enter(|| {
        ends[0].send_to(&[1; 60], to).expect("a datagram leaves");
        ends[1].recv(&mut buffer).expect("a datagram arrives");
    });
    let observed = watch.settled(2);
    assert_eq!(observed.at_sockets(first.id(), Egress).total().packets, 1);
    assert_eq!(observed.at_sockets(first.id(), Ingress).total().packets, 1);
    assert_eq!(observed.total().packets, 2);
}

fn attached(cgroup: &Path) -> usize {
    let directory = std::fs::File::open(cgroup).expect("a cgroup");
    let ids = |attach_type| {
        use std::os::fd::AsFd as _;
        sys::cgroup_programs(directory.as_fd(), attach_type).expect("programs can be listed")
    };
    ids(sys::BPF_CGROUP_INET_INGRESS).len() + ids(sys::BPF_CGROUP_INET_EGRESS).len()
}

#[test]
fn nothing_of_ours_stays_attached() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    let tree = Cgroup::tree();
    let netns = Netns::new("leaves");
    let first = watch(&tree, &netns);
    assert_eq!(attached(tree.path()), 2);
    let sent = tree.enter(|| over_loopback(&netns, 3));
    let observed = first.stop();
    assert_eq!(attached(tree.path()), 0);
    // What was counted before the end is told at the end.
    check_both_ways(&observed, &tree, &sent);
    drop(watch(&tree, &netns));
    assert_eq!(attached(tree.path()), 0, "dropped without being stopped");
}

/// Where packets are sent and taken.
#[derive(Clone, Copy)]
enum Cpus {
    /// Datagrams are sent on the first CPU, which takes all that arrives: also segments of TCP, which
    /// the second CPU sends. So receiving interrupts sending.
    FirstIsInterrupted,
    /// Everywhere.
    Any,
}

impl Cpus {
    /// The mask of those that take what arrives.
    const fn taking(self) -> &'static str {
        match self {
            Self::FirstIsInterrupted => "1",
            Self::Any => "3",
        }
    }

    /// Keeps the calling thread on a CPU, if it matters.
    fn pin(self, cpu: usize) {
        if matches!(self, Self::FirstIsInterrupted) {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set).expect("there are two CPUs");
        }
    }
}

/// How often another CPU has handed packets over to the first one, which interrupts it
/// (`received_rps`, net/core/net-procfs.c).
fn handed_to_the_first_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").expect("the kernel's counters");
    let handed = text.lines().next().and_then(|line| line.split_whitespace().nth(9));
    u64::from_str_radix(handed.expect("ten columns"), 16).expect("hexadecimal")
}

/// Lets what arrives be handled by those CPUs, interrupting whatever runs there (RPS).
fn receive_on(cpus: Cpus, port: &Port) {
    let file = format!("/sys/class/net/{}/queues/rx-0/rps_cpus", port.ifname);
    // The namespace has a /sys of its own, once it is mounted.
    let script = format!("mount -t sysfs sysfs /sys && echo {} > {file}", cpus.taking());
    let mut command = port.netns.command("unshare");
    let status = command.args(["--mount", "sh", "-c", &script]).status().expect("unshare runs");
    assert!(status.success(), "{script}: {status}");
}

/// Many flows in both directions at the same time; each with how often it sent again.
fn both_ways_at_once(near: &Port, far: &Port, cpus: Cpus, of_udp: usize) -> Vec<(Traffic, u64)> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (from, to) in [(near, far), (far, near)] {
            for len in 10..10 + of_udp {
                running.push(scope.spawn(move || {
                    cpus.pin(0);
                    (traffic::udp(from, to, Family::V4, 400, len), 0)
                }));
            }
            for _ in 0..2 {
                running.push(scope.spawn(move || {
                    cpus.pin(1);
                    let report = traffic::tcp(from, to, Family::V4, 2_000_000, 1);
                    (report.traffic, report.retransmitted)
                }));
            }
        }
        running.into_iter().map(|one| one.join().expect("traffic arrives")).collect()
    })
}

/// A cable on which much goes both ways, with the planes that watch it.
struct Busy {
    tree: Cgroup,
    veth: Veth,
    watch: Direct,
    cpus: Cpus,
    /// UDP flows in each direction at a time.
    of_udp: usize,
}

impl Busy {
    /// With caches of the usual size.
    fn new(planes: impl FnOnce(&Cgroup) -> Planes) -> Self {
        Self::with(planes, |_| {}, Cpus::FirstIsInterrupted, 8)
    }

    /// With the smallest caches, and with more flows than they have lines.
    fn overflowing(planes: impl FnOnce(&Cgroup) -> Planes, cpus: Cpus) -> Self {
        Self::with(planes, |options| options.memory_budget = 1, cpus, 40)
    }

    fn with(
        planes: impl FnOnce(&Cgroup) -> Planes,
        set: impl FnOnce(&mut KernelOptions),
        cpus: Cpus,
        of_udp: usize,
    ) -> Self {
        let tree = Cgroup::tree();
        let veth = Veth::addressed(VethOptions { segmentation: true, ..VethOptions::default() });
        let (near, far) = (&veth.near, &veth.far);
        traffic::plain_tcp([near, far]);
        for port in [near, far] {
            receive_on(cpus, port);
        }
        let planes = planes(&tree);
        let interfaces = usize::from(!matches!(planes, Planes::Socket(_)));
        let mut options = options(if interfaces == 0 { "none" } else { &near.ifname });
        options.planes = planes;
        options.ring_bytes = 8 << 20;
        set(&mut options);
        let watch = Direct::with(&options, &near.netns, interfaces);
        Self { tree, veth, watch, cpus, of_udp }
    }

    /// What was sent in three seconds, and how often TCP sent again.
    fn send(&self) -> (Traffic, u64) {
        let until = Instant::now() + Duration::from_secs(3);
        let (mut sent, mut retransmitted) = (Traffic::new(), 0);
        while Instant::now() < until || sent.is_empty() {
            let Self { veth, cpus, of_udp, .. } = self;
            let all = || both_ways_at_once(&veth.near, &veth.far, *cpus, *of_udp);
            for (part, again) in self.tree.enter(all) {
                retransmitted += again;
                for (&flow, total) in part.iter() {
                    sent.add(flow, total.packets, total.bytes);
                }
            }
        }
        (sent, retransmitted)
    }

    /// Both directions of everything at once, while receiving interrupts sending.
    fn check_at_sockets(mut self) {
        let interrupted = handed_to_the_first_cpu();
        let ports = [&self.veth.near, &self.veth.far];
        let before = ports.map(|port| counters::protocols(&port.netns));
        let (sent, retransmitted) = self.send();
        let interrupted = handed_to_the_first_cpu() - interrupted;
        assert!(interrupted > 100, "the CPU that sends was interrupted {interrupted} times");
        let lost = retransmitted > 0;
        let observed = self.watch.settled(if lost { 1 } else { 2 * sent.total().packets });
        let after = ports.map(|port| counters::protocols(&port.netns));
        let grown = |name: &str| -> u64 {
            after.iter().zip(&before).map(|(after, before)| after[name] - before[name]).sum()
        };
        let [out, taken] = [Egress, Ingress].map(|way| observed.at_sockets(self.tree.id(), way));
        out.assert_equals(&sent, "sent by sockets");
        let udp = |traffic: &Traffic| traffic.only(|flow| flow.protocol == UDP).total().packets;
        assert_eq!(udp(&out), grown("Udp.OutDatagrams"), "datagrams sent");
        assert_eq!(udp(&taken), grown("Udp.InDatagrams"), "datagrams taken");
        if !lost {
            taken.assert_equals(&sent, "taken by sockets");
        }
        observed.assert_complete();
    }

    /// The same at the interface, which both CPUs send and receive through at the same time.
    fn check_at_the_interface(mut self) {
        let (sent, retransmitted) = self.send();
        let lost = retransmitted > 0;
        let observed = self.watch.settled(if lost { 1 } else { sent.total().packets });
        let near = IpAddr::from(self.veth.near.v4);
        let [leaving, arriving] =
            [Egress, Ingress].map(|way| observed.traffic(&self.veth.near.ifname, way));
        leaving.assert_equals(&sent.only(|flow| flow.src == near), "leaving");
        if !lost {
            arriving.assert_equals(&sent.only(|flow| flow.src != near), "arriving");
        }
        observed.assert_complete();
    }
}

#[test]
fn nothing_is_lost_where_receiving_interrupts_sending() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    Busy::new(|tree| Planes::Socket(tree.root())).check_at_sockets();
}

#[test]
fn nothing_is_lost_at_sockets_where_caches_overflow_while_receiving_interrupts_sending() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    Busy::overflowing(|tree| Planes::Both(tree.root()), Cpus::FirstIsInterrupted)
        .check_at_sockets();
}

#[test]
fn nothing_is_lost_at_an_interface_where_caches_overflow_while_both_cpus_use_it() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Cgroup2);
    Busy::overflowing(|_| Planes::Tc, Cpus::Any).check_at_the_interface();
}
