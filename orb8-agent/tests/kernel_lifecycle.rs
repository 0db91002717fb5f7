//! Start, stop, crash, expiry: the counts stay right whatever happens around them.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orb8_testbed::agent::Signal;
use orb8_testbed::bpf::{Hook, attached};
use orb8_testbed::flow::Traffic;
use orb8_testbed::link::{Family, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::traffic;
use support::{Egress, Ingress, Watch, seen};

const TCX: &[Need] = &[Need::Root, Need::Bpf, Need::Tcx, Need::Tool("ip")];

fn flow(number: u16) -> Packet {
    let [high, low] = number.to_be_bytes();
    let host: IpAddr = Ipv4Addr::new(10, 1, high, low).into();
    packet::ip(host, Ipv4Addr::new(10, 2, 0, 1).into(), &packet::udp(1000, 53, 40))
}

/// Sends bursts of `flows` flows without a pause until told to stop; which flows moves on with
/// every burst, so that some fall silent and come back.
fn flood(cable: &Veth, flows: u16, stop: &AtomicBool) -> Traffic {
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let all: Vec<Packet> = (0..flows).map(flow).collect();
    let window = all.len() / 8;
    let mut counts = vec![0_u64; all.len()];
    let mut round = 0;
    let started = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // One eighth is busy for half a second, then the next one.
        let at = started.elapsed().as_millis() / 500;
        let begin = usize::try_from(at % 8).expect("below 8") * window;
        let _sent = socket.send(&all[begin..begin + window]);
        for count in &mut counts[begin..begin + window] {
            *count += 1;
        }
        round += 1;
    }
    assert!(round > 0, "the flood never began");
    all.iter()
        .zip(counts)
        .filter(|&(_, count)| count > 0)
        .map(|(packet, count)| {
            let total = orb8_testbed::flow::Total { packets: count, bytes: count * packet.len() };
            (packet.flow, total)
        })
        .collect()
}

/// Floods for a while.
fn flood_for(cable: &Veth, flows: u16, time: Duration) -> Traffic {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| flood(cable, flows, &stop));
        // The length of the flood is the point, not a condition that it waits for.
        let end = Instant::now() + time;
        while let Some(rest) = end.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(rest);
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("the flood ends")
    })
}

#[test]
fn draining_and_expiring_beside_a_flood_loses_nothing() {
    need!();
    let netns = Netns::new("drain");
    let cable = Veth::cable(&netns, VethOptions::default());
    // Flows that are silent for a second are taken out of the kernel's table while others are
    // written to, and come back three seconds later.
    let options = support::options("eth0,peer0")
        .env("ORB8_FLOW_TIMEOUT_SECS", 1)
        .env("ORB8_FLOW_HISTORY_SECS", 300);
    let watch = Watch::with(&options, &netns, 2);
    let sent = flood_for(&cable, 4000, Duration::from_secs(30));
    let observed = watch.settled(2 * sent.total().packets);
    assert_eq!(seen(&observed.status).packets, 2 * sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving eth0");
    observed.traffic("peer0", Ingress).assert_equals(&sent, "arriving at peer0");
    observed.assert_complete();
    let ended = observed.answer.flows.iter().filter(|flow| flow.state == "ended").count();
    assert!(ended > 4000, "flows expired while the flood went on: {ended} ended");
}

#[test]
fn killed_agent_starts_again_under_load() {
    need!(@check TCX);
    let netns = Netns::new("restart");
    let cable = Veth::cable(&netns, VethOptions::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| flood(&cable, 800, &stop));
        for _ in 0..3 {
            let mut watch = Watch::start(&netns, "eth0,peer0", 2);
            watch.wait_status("packets to be seen", |status| seen(status).packets > 1000);
            watch.agent().signal(Signal::Kill);
            watch.agent().wait();
            assert_eq!(attached(&netns, "eth0", Hook::Egress), []);
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("the flood ends");
    });
    // A fresh one counts from zero, exactly.
    let watch = Watch::start(&netns, "eth0,peer0", 2);
    let packets: Vec<_> = (0..100).map(flow).collect();
    let sent = RawSocket::open(&cable.near, cable.far.mac).send(&packets);
    let observed = watch.settled(200);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving eth0");
    observed.traffic("peer0", Ingress).assert_equals(&sent, "arriving at peer0");
    observed.assert_complete();
}

#[test]
fn agent_stops_in_time_under_load() {
    need!();
    let netns = Netns::new("stop");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth0,peer0", 2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| flood(&cable, 800, &stop));
        watch.wait_status("packets to be seen", |status| seen(status).packets > 1000);
        let (code, log) = watch.stop();
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("the flood ends");
        assert_eq!(code, Some(0), "{log}");
    });
}

#[test]
fn interfaces_that_vanish_while_they_are_attached_do_no_harm() {
    need!();
    let netns = Netns::new("vanish");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth0,m*", 1);
    // Attaching one takes some milliseconds: most of these are gone before their turn.
    for round in 0..30 {
        let name = format!("m{round}x");
        orb8_testbed::link::add_many(&netns, &name, 2);
        orb8_testbed::link::remove_many(&netns, &name, 2);
    }
    watch.wait_status("only the lasting interface to be known", |status| {
        status.interfaces.len() == 1 && status.interfaces[0].state == "attached"
    });
    let packets: Vec<_> = (0..100).map(flow).collect();
    let sent = RawSocket::open(&cable.near, cable.far.mac).send(&packets);
    let observed = watch.settled(100);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving eth0");
    observed.assert_complete();
    assert!(observed.status.healthy, "{}", observed.status.health_message);
    assert_eq!(watch.stop().0, Some(0));
}

#[test]
fn interface_of_the_same_name_is_another_interface() {
    need!();
    let netns = Netns::new("again");
    let watch = Watch::start(&netns, "eth*", 0);
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let cable = Veth::cable(&netns, VethOptions::default());
        watch.wait_status("the interface of this round", |status| {
            status.interfaces.iter().any(|interface| {
                interface.ifindex == cable.near.ifindex && interface.state == "attached"
            })
        });
        let _sent = RawSocket::open(&cable.near, cable.far.mac).send(&[flow(1)]);
        numbers.push(cable.near.ifindex);
        watch.settled(numbers.len() as u64);
        netns.run("ip link del eth0");
        watch.wait_attached(0);
    }
    let observed = watch.settled(3);
    let mut answered: Vec<u32> = observed.answer.flows.iter().map(|flow| flow.ifindex).collect();
    answered.sort_unstable();
    assert_eq!(answered, numbers, "each has its own flow");
    assert!(observed.answer.flows.iter().all(|flow| flow.packets == 1));
}

#[test]
fn second_agent_on_the_same_port_ends_with_2_and_names_the_port() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    let netns = &veth.near.netns;
    let watch = Watch::start(netns, "eth0", 1);
    let (status, log) = support::options("eth0").spawn(netns).finish();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("9090"), "{log}");
    // The first one goes on as if nothing had happened.
    let sent = traffic::udp(&veth.near, &veth.far, Family::V4, 10, 10);
    let observed = watch.settled(10);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    observed.assert_complete();
}

#[test]
fn two_agents_on_two_ports_count_the_same() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    let netns = &veth.near.netns;
    let first = Watch::start(netns, "eth0", 1);
    let second =
        support::options("eth0").env("ORB8_GRPC_PORT", 9190).listen("127.0.0.1:9190").start(netns);
    orb8_testbed::wait::wait_until(support::DEADLINE, "both to be attached", || {
        attached(netns, "eth0", Hook::Egress).len() == 2
    });
    let sent = traffic::udp(&veth.near, &veth.far, Family::V4, 10, 10);
    first.settled(10).traffic("eth0", Egress).assert_equals(&sent, "leaving");
    let (status, log) = second.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn tcp_connection_shows_its_life() {
    need!();
    let veth = Veth::addressed(VethOptions::default());
    traffic::plain_tcp([&veth.near, &veth.far]);
    let watch = Watch::start(&veth.near.netns, "eth0", 1);
    let report = traffic::tcp(&veth.near, &veth.far, Family::V4, 1000, 1000);
    let observed = watch.settled(report.traffic.total().packets);
    assert_eq!(observed.answer.flows.len(), 2);
    for row in &observed.answer.flows {
        let tcp = row.tcp.as_ref().expect("a TCP flow");
        let syn = if row.direction == "egress" { "syn" } else { "syn_ack" };
        assert!(tcp.flags.iter().any(|flag| flag == syn), "{row:?}");
        assert!(tcp.flags.iter().any(|flag| flag == "fin"), "{row:?}");
        assert_eq!(row.scope, "local", "{row:?}");
        assert!(row.first_seen_ns <= row.last_seen_ns && row.first_seen_ns > 0, "{row:?}");
    }
}
