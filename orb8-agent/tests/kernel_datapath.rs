//! The kernel side alone, in this process: faults made on purpose, panics, chains and draining as
//! they show only from inside.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orb8_agent::datapath::AttachRoute;
use orb8_agent::ebpf::chain::ChainPolicy;
use orb8_agent::ebpf::kernel::KernelOptions;
use orb8_agent::ebpf::lines::LineTimes;
use orb8_agent::event::Volume;
use orb8_agent::pipeline::ledger::{Balance, Ledger, Tally};
use orb8_testbed::bpf::{Foreign, Hook, Place, attached};
use orb8_testbed::flow::{Total, Traffic};
use orb8_testbed::fork::while_descriptors_are_held;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::wait::wait_until;
use support::direct::{self, Direct};
use support::{DEADLINE, Egress, Ingress};

const TCX: &[Need] = &[Need::Root, Need::Bpf, Need::Tcx, Need::Tool("ip")];

fn flow(number: u16, len: usize) -> Packet {
    let [high, low] = number.to_be_bytes();
    let host: IpAddr = Ipv4Addr::new(10, 1, high, low).into();
    packet::ip(host, Ipv4Addr::new(10, 2, 0, 1).into(), &packet::udp(1000, 53, len))
}

fn cable(label: &str) -> (Netns, Veth) {
    let netns = Netns::new(label);
    let cable = Veth::cable(&netns, VethOptions::default());
    (netns, cable)
}

#[test]
fn packet_dropped_on_purpose_turns_the_ledger_red() {
    need!();
    let (netns, cable) = cable("fault");
    // The programs forget datagrams of 111 bytes: a bug, as far as the ledger can tell.
    let options = KernelOptions { fault_bytes: 111, ..direct::options("eth0") };
    let mut watch = Direct::with(&options, &netns, 1);
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let whole: Vec<_> = (0..100).map(|i| flow(i, 50)).collect();
    let sent = socket.send(&whole);
    let observed = watch.settled(100);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    observed.assert_complete();
    let _forgotten = socket.send(&[flow(7, 111 - 28)]);
    let observed = watch.settled(101);
    assert_eq!(observed.unexplained(), (1, 111));

    // The agent's own ledger, fed with what the kernel told: red as soon as the host is silent.
    let mut ledger = Ledger::default();
    let counted = observed.total();
    let counted = Volume { packets: counted.packets, bytes: counted.bytes };
    ledger.apply(&mut Tally { counted, ..Tally::default() });
    for _ in 0..2 {
        ledger.close_drain(&observed.report);
    }
    assert_eq!(ledger.packets().balance, Balance::Unbalanced { count: 1, bytes: 111 });
}

#[test]
fn detaching_ends_the_counting_and_reads_the_rest() {
    need!();
    let (netns, cable) = cable("rest");
    let watch = Direct::start(&netns, "eth0,peer0", 2);
    let packets: Vec<_> = (0..500).map(|i| flow(i, 20)).collect();
    let sent = RawSocket::open(&cable.near, cable.far.mac).send(&packets);
    // Nothing was drained before the end.
    let observed = watch.stop();
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    observed.traffic("peer0", Ingress).assert_equals(&sent, "arriving");
    observed.assert_complete();
    assert_eq!(observed.signals, 1000, "each flow was told once");
    for hook in [Hook::Ingress, Hook::Egress] {
        assert_eq!(attached(&netns, "eth0", hook), []);
    }
}

#[test]
fn detaching_needs_nobody_else_to_close_a_descriptor() {
    need!(@check TCX);
    let (netns, _cable) = cable("held");
    let watch = Direct::start(&netns, "eth0", 1);
    // As when some library forks in the moment in which the agent lets go of an interface.
    while_descriptors_are_held(|| {
        drop(watch.stop());
        for hook in [Hook::Ingress, Hook::Egress] {
            assert_eq!(attached(&netns, "eth0", hook), []);
        }
    });
}

#[test]
fn panic_leaves_nothing_attached() {
    need!(@check TCX);
    let (netns, _cable) = cable("panic");
    let result = std::panic::catch_unwind(|| {
        let watch = Direct::start(&netns, "eth0", 1);
        assert_eq!(watch.attached().len(), 2, "this is the panic of the test");
    });
    assert!(result.is_err());
    for hook in [Hook::Ingress, Hook::Egress] {
        assert_eq!(attached(&netns, "eth0", hook), []);
    }
}

#[test]
fn panic_leaves_no_filter_and_no_qdisc() {
    need!(Need::Root, Need::Bpf, Need::Tool("ip"), Need::Tool("tc"));
    let (netns, _cable) = cable("panic");
    let options = KernelOptions { route: Some(AttachRoute::Clsact), ..direct::options("eth0") };
    let result = std::panic::catch_unwind(|| {
        let watch = Direct::with(&options, &netns, 1);
        assert!(netns.run("tc filter show dev eth0 egress").contains("orb8_"));
        assert_eq!(watch.attached().len(), 2, "this is the panic of the test");
    });
    assert!(result.is_err());
    assert_eq!(netns.run("tc filter show dev eth0 egress"), "");
    assert!(!netns.run("tc qdisc show dev eth0").contains("clsact"));
}

#[test]
fn two_foreign_programs_and_ours_never_move_more_often_than_allowed() {
    need!(@check TCX);
    let (netns, cable) = cable("chain");
    let port = &cable.near;
    let chain = ChainPolicy {
        look_every: Duration::from_millis(50),
        move_every: Duration::from_secs(2),
        max_moves: 2,
    };
    let options = KernelOptions { chain, ..direct::options("eth0") };
    let mut watch = Direct::with(&options, &netns, 1);
    let first = || attached(&port.netns, &port.ifname, Hook::Egress)[0].name.clone();
    let push_ahead = || Foreign::attach(&netns, "eth0", Hook::Egress, Place::First, 0);
    let mut wait_first = |what: &str| {
        wait_until(DEADLINE, what, || {
            watch.drain();
            let notices = &watch.observed().notices;
            assert!(!notices.iter().any(|notice| notice.code == "move_failed"), "{notices:?}");
            first() != "foreign"
        });
    };
    assert_ne!(first(), "foreign");
    let _one = push_ahead();
    wait_first("the first move");
    let moved = Instant::now();
    let _two = push_ahead();
    wait_first("the second move");
    let rested = moved.elapsed();
    assert!(rested > Duration::from_millis(1500), "moved again after {rested:?}");
    // Two moves are all: the third time we stay behind, and say so.
    let _three = push_ahead();
    wait_until(DEADLINE, "the place behind to be told", || {
        let state = watch.kernel().state();
        state.interfaces.iter().any(|interface| interface.reason.contains("after moving"))
    });
    assert_eq!(first(), "foreign");
    watch.drain();
    let told = watch.observed().notices.iter().filter(|n| n.code == "moved_to_front").count();
    assert_eq!(told, 2, "{:?}", watch.observed().notices);
    let displaced = watch.observed().notices.iter().find(|n| n.code == "displaced");
    assert!(displaced.is_some_and(|notice| notice.message.contains("foreign")), "{displaced:?}");
    // What the program ahead ends is not seen; what it lets through is counted right.
    let sent = RawSocket::open(port, cable.far.mac).send(&[flow(1, 10)]);
    assert_eq!(sent.total().packets, 1);
    assert_eq!(watch.settled(0).total().packets, 0, "the program ahead ended the chain");
}

#[test]
fn moving_to_the_front_counts_nothing_twice() {
    need!(@check TCX);
    let (netns, cable) = cable("move");
    let chain = ChainPolicy { look_every: Duration::from_millis(20), ..ChainPolicy::default() };
    let options = KernelOptions { chain, ..direct::options("eth0") };
    let mut watch = Direct::with(&options, &netns, 1);
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| flood(&cable, &[flow(1, 40), flow(2, 90)], &stop));
        let foreign = Foreign::attach(&netns, "eth0", Hook::Egress, Place::First, -1);
        let first = || attached(&netns, "eth0", Hook::Egress)[0].name.clone();
        wait_until(DEADLINE, "our program to be first again", || first() != "foreign");
        stop.store(true, Ordering::Relaxed);
        drop(foreign);
        sender.join().expect("the flood ends")
    });
    wait_until(DEADLINE, "the move to be told", || {
        watch.drain();
        watch.observed().notices.iter().any(|notice| notice.code == "moved_to_front")
    });
    let observed = watch.settled(0);
    observed.assert_complete();
    // While we move, for a moment, no program of ours is there; that is told as unattached.
    let counted = observed.total().packets;
    let missed = observed.report.unattached_packets;
    assert!(counted <= sent.total().packets, "{counted} of {}", sent.total());
    assert!(counted + missed >= sent.total().packets, "{counted} + {missed} of {}", sent.total());
}

/// Sends bursts without a pause until told to stop.
fn flood(cable: &Veth, packets: &[Packet], stop: &AtomicBool) -> Traffic {
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let burst: Vec<Packet> = packets.iter().cycle().take(packets.len().max(512)).cloned().collect();
    let one = orb8_testbed::raw::count(&burst);
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let _sent = socket.send(&burst);
        rounds += 1;
    }
    one.iter()
        .map(|(&flow, t)| (flow, Total { packets: t.packets * rounds, bytes: t.bytes * rounds }))
        .collect()
}

#[test]
fn lines_are_given_back_under_a_writer_without_losing_a_packet() {
    need!();
    let (netns, cable) = cable("recycle");
    // A line is taken out of use after a quarter of a second, while its flow is about to be
    // written to again: the table is small, so that lines go round and round.
    let options = KernelOptions {
        max_flows: 2000,
        times: LineTimes {
            drain_interval: Duration::from_millis(1),
            idle_timeout: Duration::from_millis(250),
            linger: Duration::from_millis(250),
        },
        ..direct::options("eth0")
    };
    let mut watch = Direct::with(&options, &netns, 1);
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let socket = RawSocket::open(&cable.near, cable.far.mac);
            let mut sent = Traffic::new();
            let mut round: u16 = 0;
            while !stop.load(Ordering::Relaxed) {
                // 400 flows at a time, each group for some 300 ms of every 1500.
                let group =
                    u16::try_from(started.elapsed().as_millis() / 300 % 5).expect("below 5");
                let packets: Vec<Packet> =
                    (0..400).map(|i| flow(group * 400 + i, usize::from(round % 100))).collect();
                for (&flow, total) in socket.send(&packets).iter() {
                    sent.add(flow, total.packets, total.bytes);
                }
                round = round.wrapping_add(1);
            }
            sent
        });
        while started.elapsed() < Duration::from_secs(10) {
            watch.drain();
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("the writer ends")
    });
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    observed.assert_complete();
    assert!(observed.released > 2000, "only {} lines were given back", observed.released);
    assert!(observed.new_lines > 4000, "only {} lines were taken", observed.new_lines);
}

#[test]
fn two_writers_on_the_same_flows_lose_nothing() {
    need!();
    let (netns, cable) = cable("writers");
    let mut watch = Direct::start(&netns, "eth0", 1);
    let packets: Vec<Packet> = (0..64).map(|i| flow(i, 30)).collect();
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let parts = std::thread::scope(|scope| {
        let senders = [0, 1].map(|_| scope.spawn(|| flood(&cable, &packets, &stop)));
        while started.elapsed() < Duration::from_secs(5) {
            watch.drain();
        }
        stop.store(true, Ordering::Relaxed);
        senders.map(|sender| sender.join().expect("a writer ends"))
    });
    let mut sent = Traffic::new();
    for (&flow, total) in parts.iter().flat_map(Traffic::iter) {
        sent.add(flow, total.packets, total.bytes);
    }
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    observed.assert_complete();
}

#[test]
fn full_table_loses_new_flows_and_counts_what_it_lost() {
    need!();
    let (netns, cable) = cable("full");
    let options = KernelOptions { max_flows: 100, ..direct::options("eth0") };
    let mut watch = Direct::with(&options, &netns, 1);
    let packets: Vec<_> = (0..150).map(|i| flow(i, 40)).collect();
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let sent = socket.send(&packets);
    let _again = socket.send(&packets);
    let observed = watch.settled(2 * sent.total().packets);
    assert_eq!(observed.unexplained(), (0, 0));
    let lost: u64 = observed.lost().values().sum();
    assert_eq!(lost, 2 * 50, "{:?}", observed.lost());
    assert_eq!(observed.total().packets, 2 * 100);
}
