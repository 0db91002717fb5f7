//! The probes change nothing and leave nothing behind.

mod support;

use orb8_proto::v1::Interface;
use orb8_testbed::agent::Signal;
use orb8_testbed::bpf::{self, Foreign, Hook, Place, attached};
use orb8_testbed::flow::Traffic;
use orb8_testbed::link::{Family, Port, Veth, VethOptions, add_many, remove_many};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, VLAN};
use orb8_testbed::raw::{Capture, RawSocket};
use orb8_testbed::traffic;
use orb8_testbed::wait::wait_until;
use support::{DEADLINE, Egress, Ingress, Watch};

const TCX: &[Need] = &[Need::Root, Need::Bpf, Need::Tcx, Need::Tool("ip")];
const CLSACT: &[Need] = &[Need::Root, Need::Bpf, Need::Tool("ip"), Need::Tool("tc")];
const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];

/// Programs on a port that are not the testbed's own.
fn ours(port: &Port, hook: Hook) -> Vec<bpf::Attached> {
    let mut programs = attached(&port.netns, &port.ifname, hook);
    programs.retain(|program| program.name != "foreign");
    programs
}

/// Filters that `tc` lists on both hooks of a port.
fn filters(port: &Port) -> String {
    ["ingress", "egress"]
        .map(|hook| port.netns.run(&format!("tc filter show dev {} {hook}", port.ifname)))
        .concat()
}

/// How many of them are the agent's.
fn our_filters(port: &Port) -> usize {
    filters(port).lines().filter(|line| line.contains("orb8_")).count()
}

fn has_clsact(port: &Port) -> bool {
    port.netns.run(&format!("tc qdisc show dev {}", port.ifname)).contains("clsact")
}

#[test]
fn frames_pass_unchanged() {
    need!();
    let netns = Netns::new("unchanged");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth0,peer0", 2);
    let capture = Capture::open(&cable.far);
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let (a, b) = (cable.near.v4.into(), cable.far.v4.into());
    for len in [0, 1, 63, 500, 1400] {
        let packet = packet::ip(a, b, &packet::udp(7, 9, len));
        for frame in [
            packet.frame(cable.near.mac, cable.far.mac, &[]),
            packet::frame(cable.near.mac, cable.far.mac, &[], 0x88cc, &vec![3; len]),
            packet.frame(cable.near.mac, cable.far.mac, &[])[..20].to_vec(),
        ] {
            socket.send_frames(std::slice::from_ref(&frame));
            assert_eq!(capture.next_frame(), frame);
        }
    }
    watch.settled(30).assert_complete();
    // The kernel takes the tag out of the frame before it hands it on.
    let tagged =
        packet::ip(a, b, &packet::udp(7, 9, 10)).frame(cable.near.mac, cable.far.mac, &[(VLAN, 3)]);
    socket.send_frames(std::slice::from_ref(&tagged));
    assert_eq!(capture.next_frame(), [&tagged[..12], &tagged[16..]].concat());
}

#[test]
fn sockets_and_devices_work_as_without_the_agent() {
    need!();
    let veth = Veth::addressed(VethOptions { segmentation: true, ..VethOptions::default() });
    let watches = [&veth.near, &veth.far].map(|port| Watch::start(&port.netns, &port.ifname, 1));
    // Each of these checks its own data, to the last byte.
    for family in Family::ALL {
        let _sent = traffic::udp(&veth.near, &veth.far, family, 100, 1000);
        let _sent = traffic::tcp(&veth.near, &veth.far, family, 2_000_000, 2_000_000);
        let _sent = traffic::echo(&veth.near, &veth.far, family, 10, 1000);
    }
    let dropped = veth.near.counters().rx_dropped + veth.far.counters().rx_dropped;
    assert_eq!(dropped, 0);
    for watch in watches {
        assert_eq!(watch.stop().0, Some(0));
    }
}

/// A foreign program returns `verdict`; it was there before us if `before`, else it comes later
/// and goes to the end of the chain.
fn check_foreign(before: bool, verdict: i32) {
    let netns = Netns::new("foreign");
    let cable = Veth::cable(&netns, VethOptions::default());
    let attach = || {
        [(&cable.near, Hook::Egress), (&cable.far, Hook::Ingress)].map(|(port, hook)| {
            Foreign::attach(&port.netns, &port.ifname, hook, Place::Last, verdict)
        })
    };
    let early = before.then(attach);
    let watch = Watch::start(&netns, "eth0,peer0", 2);
    let foreign = early.unwrap_or_else(attach);
    let packet = packet::ip(cable.near.v4.into(), cable.far.v4.into(), &packet::udp(1, 2, 30));
    let sent = RawSocket::open(&cable.near, cable.far.mac).send(&vec![packet; 25]);
    let observed = watch.settled(50);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    observed.traffic("peer0", Ingress).assert_equals(&sent, "arriving");
    observed.assert_complete();
    let runs = foreign.each_ref().map(Foreign::runs);
    assert_eq!(runs, [25, 25], "the foreign programs run");
    let named = |interface: &Interface| interface.after.iter().any(|n| n.contains("foreign"));
    let status = watch
        .wait_status("the neighbours to be named", |status| status.interfaces.iter().all(named));
    for interface in &status.interfaces {
        assert_eq!(interface.attach, "tcx");
        assert!(interface.before.is_empty(), "we are first: {interface:?}");
    }
}

#[test]
fn foreign_program_from_before_us_still_runs_and_passes() {
    need!(@check TCX);
    check_foreign(true, 0);
}

#[test]
fn foreign_program_from_before_us_still_runs_and_goes_on() {
    need!(@check TCX);
    check_foreign(true, -1);
}

#[test]
fn foreign_program_from_after_us_still_runs_and_passes() {
    need!(@check TCX);
    check_foreign(false, 0);
}

#[test]
fn foreign_program_from_after_us_still_runs_and_goes_on() {
    need!(@check TCX);
    check_foreign(false, -1);
}

#[test]
fn program_put_ahead_of_ours_is_named_and_passed_once() {
    need!(@check TCX);
    let netns = Netns::new("ahead");
    let cable = Veth::cable(&netns, VethOptions::default());
    let port = &cable.near;
    let watch = Watch::start(&netns, "eth0", 1);
    let foreign = Foreign::attach(&port.netns, &port.ifname, Hook::Egress, Place::First, 0);
    let first = || attached(&port.netns, &port.ifname, Hook::Egress)[0].name.clone();
    wait_until(DEADLINE, "our program to be first again", || first() != "foreign");
    let status = watch.wait_status("the displacement to be told", |status| {
        status.notices.iter().any(|notice| notice.code.contains("displaced"))
    });
    let told = status.notices.iter().find(|notice| notice.code.contains("displaced"));
    assert!(told.is_some_and(|notice| notice.message.contains("eth0")), "{told:?}");
    let packet = packet::ip(port.v4.into(), cable.far.v4.into(), &packet::udp(1, 2, 30));
    let socket = RawSocket::open(port, cable.far.mac);
    let before = foreign.runs();
    let _sent = socket.send(&vec![packet.clone(); 10]);
    assert_eq!(foreign.runs() - before, 10, "the other program is not pushed out");
    // Who insists is left in front: no fight within the minute.
    let second = Foreign::attach(&port.netns, &port.ifname, Hook::Egress, Place::First, 0);
    watch.wait_status("the neighbour in front to be named", |status| {
        status.interfaces.iter().any(|interface| !interface.before.is_empty())
    });
    assert_eq!(first(), "foreign");
    let _sent = socket.send(&vec![packet; 10]);
    assert_eq!(second.runs(), 10);
}

/// The numbers of all programs and maps that an agent has on a port.
fn kernel_objects(port: &Port) -> (Vec<u32>, Vec<u32>) {
    let programs: Vec<_> = HOOKS.into_iter().flat_map(|hook| ours(port, hook)).collect();
    assert_eq!(programs.len(), 2, "one program a hook: {programs:?}");
    let maps = programs.iter().flat_map(|program| program.maps.clone()).collect();
    (programs.iter().map(|program| program.id).collect(), maps)
}

fn check_nothing_is_left(end: impl FnOnce(Watch)) {
    let veth = Veth::addressed(VethOptions::default());
    let watch = Watch::start(&veth.near.netns, "eth0", 1);
    let _sent = traffic::udp(&veth.near, &veth.far, Family::V4, 10, 10);
    let (programs, maps) = kernel_objects(&veth.near);
    assert!(!maps.is_empty());
    end(watch);
    for hook in HOOKS {
        assert_eq!(attached(&veth.near.netns, "eth0", hook), [], "nothing is attached");
    }
    assert!(!has_clsact(&veth.near), "no qdisc was added");
    // The kernel frees programs and maps after a grace period.
    wait_until(DEADLINE, "programs and maps to be freed", || {
        !programs.iter().any(|&id| bpf::program_exists(id))
            && !maps.iter().any(|&id| bpf::map_exists(id))
    });
    let _sent = traffic::udp(&veth.near, &veth.far, Family::V4, 10, 10);
}

#[test]
fn tcx_leaves_nothing_after_exit() {
    need!(@check TCX);
    check_nothing_is_left(|watch| assert_eq!(watch.stop().0, Some(0)));
}

#[test]
fn tcx_leaves_nothing_after_sigkill() {
    need!(@check TCX);
    check_nothing_is_left(|mut watch| {
        watch.agent().signal(Signal::Kill);
        let status = watch.agent().wait();
        assert_eq!(status.code(), None, "killed");
    });
}

#[test]
fn clsact_leaves_nothing_after_exit() {
    need!(@check CLSACT);
    let veth = Veth::addressed(VethOptions::default());
    let watch =
        Watch::with(&support::options("eth0").env("ORB8_TC_ATTACH", "clsact"), &veth.near.netns, 1);
    let sent = traffic::udp(&veth.near, &veth.far, Family::V4, 10, 10);
    assert!(has_clsact(&veth.near));
    assert_eq!(our_filters(&veth.near), 2, "{}", filters(&veth.near));
    let observed = watch.settled(10);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    assert_eq!(observed.status.interfaces[0].attach, "clsact");
    assert_eq!(watch.stop().0, Some(0));
    assert!(!has_clsact(&veth.near), "the qdisc was ours");
}

#[test]
fn clsact_of_somebody_else_stays_with_its_filters() {
    need!(@check CLSACT);
    let veth = Veth::addressed(VethOptions::default());
    let netns = &veth.near.netns;
    netns.run("tc qdisc add dev eth0 clsact");
    netns.run("tc filter add dev eth0 egress protocol ip prio 7 u32 match u32 0 0 flowid 1:1");
    let before = filters(&veth.near);
    let watch = Watch::with(&support::options("eth0").env("ORB8_TC_ATTACH", "clsact"), netns, 1);
    let sent = traffic::udp(&veth.near, &veth.far, Family::V4, 10, 10);
    watch.settled(10).traffic("eth0", Egress).assert_equals(&sent, "leaving");
    let listed = filters(&veth.near);
    let (our_place, their_place) = (listed.find("orb8_"), listed.find("u32"));
    assert!(our_place.is_some() && their_place.is_some(), "{listed}");
    assert_eq!(watch.stop().0, Some(0));
    assert!(has_clsact(&veth.near), "the qdisc is not ours");
    assert_eq!(filters(&veth.near), before);
}

/// An agent on clsact, killed; its two filters stay.
fn killed_on_clsact(veth: &Veth) {
    let options = support::options("eth0").env("ORB8_TC_ATTACH", "clsact");
    let mut watch = Watch::with(&options, &veth.near.netns, 1);
    watch.agent().signal(Signal::Kill);
    watch.agent().wait();
    assert_eq!(our_filters(&veth.near), 2, "the kernel keeps a killed agent's filters");
}

#[test]
fn next_start_removes_the_filters_of_a_killed_agent() {
    need!(@check CLSACT);
    let veth = Veth::addressed(VethOptions::default());
    killed_on_clsact(&veth);
    let options = support::options("eth0").env("ORB8_TC_ATTACH", "clsact");
    let watch = Watch::with(&options, &veth.near.netns, 1);
    assert_eq!(our_filters(&veth.near), 2, "only the living agent's\n{}", filters(&veth.near));
    let sent = traffic::udp(&veth.near, &veth.far, Family::V4, 10, 10);
    let observed = watch.settled(10);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    assert_eq!(watch.stop().0, Some(0));
    assert_eq!(our_filters(&veth.near), 0);
}

#[test]
fn cleanup_removes_the_filters_of_dead_agents_only() {
    need!(@check CLSACT);
    // Both ends in one namespace: an agent attaches there only if it is told to.
    let (node, outside) = (Netns::new("node"), Netns::new("outside"));
    let veth = Veth::cable(&node, VethOptions::default());
    let netns = &veth.near.netns;
    netns.run("tc qdisc add dev eth0 clsact");
    netns.run("tc filter add dev eth0 egress protocol ip prio 7 u32 match u32 0 0 flowid 1:1");
    let foreign = filters(&veth.near);
    killed_on_clsact(&veth);
    // A second agent, alive, on another port and another link of the same host.
    netns.sysctl("ipv6/conf/default/disable_ipv6", 0);
    netns.sysctl("ipv6/conf/all/disable_ipv6", 0);
    let other = Veth::between(netns, &outside, VethOptions { number: 1, ..VethOptions::default() });
    let options = support::options("eth1").env("ORB8_TC_ATTACH", "clsact");
    let watch = Watch::with(&options, netns, 1);
    let cleanup = netns.run(&format!("{} --cleanup", env!("CARGO_BIN_EXE_orb8-agent")));
    assert_eq!(filters(&veth.near), foreign, "{cleanup}");
    assert!(has_clsact(&veth.near), "the qdisc is somebody else's");
    assert_eq!(our_filters(&other.near), 2, "a living agent keeps its filters");
    let sent = traffic::udp(&other.near, &other.far, Family::V4, 10, 10);
    watch.settled(10).traffic("eth1", Egress).assert_equals(&sent, "leaving");
}

#[test]
fn cleanup_removes_the_qdisc_that_a_dead_agent_had_made() {
    need!(@check CLSACT);
    let veth = Veth::addressed(VethOptions::default());
    killed_on_clsact(&veth);
    assert!(has_clsact(&veth.near));
    let netns = &veth.near.netns;
    netns.run(&format!("{} --cleanup", env!("CARGO_BIN_EXE_orb8-agent")));
    assert_eq!(our_filters(&veth.near), 0);
    assert!(!has_clsact(&veth.near), "nobody else uses it");
    // There is nothing left to do, and that is no error.
    netns.run(&format!("{} --cleanup", env!("CARGO_BIN_EXE_orb8-agent")));
}

#[test]
fn two_hundred_interfaces_come_and_go_under_traffic() {
    need!();
    let netns = Netns::new("churn");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth0,m*", 1);
    let packet = packet::ip(cable.near.v4.into(), cable.far.v4.into(), &packet::udp(1, 2, 30));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut sent = Traffic::new();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let socket = RawSocket::open(&cable.near, cable.far.mac);
            let burst = vec![packet.clone(); 64];
            let mut sent = Traffic::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (&flow, total) in socket.send(&burst).iter() {
                    sent.add(flow, total.packets, total.bytes);
                }
                std::thread::yield_now();
            }
            sent
        });
        for _ in 0..2 {
            // 100 pairs: 200 interfaces.
            add_many(&netns, "m", 100);
            watch.wait_attached(201);
            remove_many(&netns, "m", 100);
            watch.wait_attached(1);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        sent = sender.join().expect("the sender ends");
    });
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    assert_eq!(observed.status.interfaces.len(), 1, "forgotten when they are gone");
    observed.assert_complete();
    let (code, log) = watch.stop();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn interfaces_attach_quickly_enough_to_be_useful() {
    need!();
    let netns = Netns::new("late");
    let first = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth*", 1);
    let late = Veth::cable(&netns, VethOptions { number: 1, ..VethOptions::default() });
    watch.wait_attached(2);
    let mut expected = Vec::new();
    for cable in [&first, &late] {
        let packet = packet::ip(cable.near.v4.into(), cable.far.v4.into(), &packet::udp(1, 2, 3));
        expected.push(RawSocket::open(&cable.near, cable.far.mac).send(&[packet]));
    }
    let observed = watch.settled(2);
    observed.traffic("eth0", Egress).assert_equals(&expected[0], "the first link");
    observed.traffic("eth1", Egress).assert_equals(&expected[1], "the link that came later");
}
