//! What is lost is told: the ledgers add up, the answer names stage and reason, the CLI says 3.

mod support;

use std::net::{IpAddr, Ipv4Addr};

use orb8_testbed::agent::{Captured, Cli};
use orb8_testbed::flow::Traffic;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::wait::wait_until;
use support::{DEADLINE, Observed, Watch, assert_ledger_sums, lost, seen};

const WITH_CLI: &[Need] = &[Need::Root, Need::Bpf, Need::Tool("ip"), Need::Binary("orb8")];

fn flow(number: u16) -> Packet {
    let [high, low] = number.to_be_bytes();
    let host: IpAddr = Ipv4Addr::new(10, 1, high, low).into();
    packet::ip(host, Ipv4Addr::new(10, 2, 0, 1).into(), &packet::udp(1000, 53, 40))
}

fn bench(options: &orb8_testbed::agent::AgentOptions) -> (Veth, Watch) {
    let netns = Netns::new("loss");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::with(options, &netns, 1);
    (cable, watch)
}

/// Sends `count` packets on each of `flows` flows.
fn send(cable: &Veth, flows: u16, count: usize) -> Traffic {
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let packets: Vec<_> = (0..flows).map(flow).collect();
    let mut sent = Traffic::new();
    for _ in 0..count {
        for (&flow, total) in socket.send(&packets).iter() {
            sent.add(flow, total.packets, total.bytes);
        }
    }
    sent
}

/// The answer says that it is not complete, and why.
#[track_caller]
fn assert_told(observed: &Observed, stage: &str, reason: &str) {
    let answer = &observed.answer;
    assert!(!answer.nodes[0].complete, "{:?}", answer.nodes);
    let told = answer.loss.iter().any(|loss| loss.stage == stage && loss.reason.contains(reason));
    assert!(told, "{stage} {reason}: {:?}", answer.loss);
}

/// The CLI prints the loss and says so with its exit code.
#[track_caller]
fn assert_partial(watch: &Watch, stage: &str) {
    let cli = Cli::new(watch.netns());
    let answer = cli.run("flows -o json --limit 10");
    assert_eq!(answer.code, Some(3), "{answer:?}");
    let loss = answer.json()["loss"].as_array().expect("a list of losses").clone();
    assert!(loss.iter().any(|loss| loss["stage"] == stage), "{loss:?}");
    assert_eq!(cli.run("flows --limit 10 --allow-partial").code, Some(0));
}

#[test]
fn full_flow_table_loses_packets_of_new_flows_only_and_says_so() {
    need!(@check WITH_CLI);
    let (cable, watch) = bench(&support::options("eth0").env("ORB8_MAX_FLOWS", 1000));
    let sent = send(&cable, 3000, 5);
    let observed = watch.settled(sent.total().packets);
    assert_ledger_sums(&observed.status);
    assert_eq!(seen(&observed.status), sent.total());
    let hook = lost(&observed.status, "hook", "");
    let table = lost(&observed.status, "flow_table", "");
    assert_eq!(hook + table, sent.total().packets - observed.total().packets);
    assert!(hook >= 2000 * 5, "{hook} packets found the kernel's table full");
    // What is answered is right: no flow has more than was sent.
    let answered = observed.traffic("eth0", support::Egress);
    for (flow, total) in answered.iter() {
        assert!(total.packets <= sent.get(flow).packets, "{flow}");
    }
    assert!(answered.len() >= 500, "{} flows", answered.len());
    assert_told(&observed, "hook", "flow_table_full");
    assert_partial(&watch, "hook");
}

#[test]
fn tiny_ring_loses_events_but_no_packets_and_says_so() {
    need!(@check WITH_CLI);
    let (cable, watch) = bench(&support::options("eth0").env("ORB8_RING_BUFFER_SIZE", 65_536));
    // While the agent does not run, nobody empties the ring.
    let mut watch = watch;
    watch.agent().signal(orb8_testbed::agent::Signal::Stop);
    let sent = send(&cable, 5000, 2);
    watch.agent().signal(orb8_testbed::agent::Signal::Continue);
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", support::Egress).assert_equals(&sent, "counts need no ring");
    assert_ledger_sums(&observed.status);
    let ledger = observed.status.event_ledger.as_ref().expect("an event ledger");
    let lost: u64 = ledger.lost.iter().map(|loss| loss.events).sum();
    assert_eq!(ledger.produced, 5000);
    assert_eq!(ledger.processed + ledger.rejected + lost, ledger.produced, "{ledger:#?}");
    assert!(lost > 3000, "64 KiB hold some 680 events: {ledger:#?}");
    assert!(ledger.lost.iter().any(|loss| loss.stage == "ring"), "{ledger:#?}");
    assert_eq!(ledger.state, "balanced");
    assert_eq!(observed.status.events_dropped, lost);
    assert_told(&observed, "ring", "full");
    assert_partial(&watch, "ring");
}

#[test]
fn stalled_subscriber_loses_its_own_events_and_slows_nobody() {
    need!(@check WITH_CLI);
    let options = support::options("eth0").env("ORB8_BROADCAST_CHANNEL_SIZE", 64);
    let (cable, watch) = bench(&options);
    let cli = Cli::new(watch.netns());
    let mut stalled = cli
        .command("trace network -o json")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the CLI starts");
    watch.wait_status("the subscription", |status| status.subscribers.len() == 1);
    let pid = rustix_pid(&stalled);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("our own child");
    let mut sent = Traffic::new();
    // Enough for every buffer between the agent and the stopped process.
    for round in 0..5 {
        let socket = RawSocket::open(&cable.near, cable.far.mac);
        let packets: Vec<_> = (0..2000).map(|i| flow(round * 2000 + i)).collect();
        for (&flow, total) in socket.send(&packets).iter() {
            sent.add(flow, total.packets, total.bytes);
        }
    }
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", support::Egress).assert_equals(&sent, "nobody else is slowed");
    let status = watch.wait_status("the subscriber's own loss", |status| {
        status.subscribers.iter().any(|subscriber| subscriber.lost > 0)
    });
    for subscriber in &status.subscribers {
        let accounted =
            subscriber.delivered + subscriber.filtered + subscriber.lost + subscriber.queued;
        assert_eq!(subscriber.offered, accounted, "{subscriber:?}");
    }
    // It wakes up, reads on, and is told what it has missed.
    let mut stdout = Captured::follow(stalled.stdout.take().expect("piped"));
    let mut stderr = Captured::follow(stalled.stderr.take().expect("piped"));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("our own child");
    wait_until(DEADLINE, "the loss to reach the subscriber", || {
        stdout.contains("\"type\":\"loss\"")
    });
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our own child");
    let end = stalled.wait().expect("it ends");
    assert_eq!(end.code(), Some(3), "{}", stderr.finish());
    drop(stdout.finish());
    watch.settled(sent.total().packets).assert_complete();
}

fn rustix_pid(child: &std::process::Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

#[test]
fn packets_from_before_the_start_are_before_the_agents_time() {
    need!();
    let netns = Netns::new("late");
    let cable = Veth::cable(&netns, VethOptions::default());
    let _missed = send(&cable, 10, 3);
    let watch = Watch::start(&netns, "eth0", 1);
    let sent = send(&cable, 10, 4);
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", support::Egress).assert_equals(&sent, "since it is attached");
    // Nothing is claimed about the time before it answered.
    assert_eq!(lost(&observed.status, "unattached", ""), 0);
    assert!(observed.answer.nodes[0].complete, "{:?}", observed.answer.nodes);
    let held_since = observed.answer.context.as_ref().map_or(0, |context| context.held_since_ns);
    assert!(observed.answer.flows.iter().all(|flow| flow.first_seen_ns >= held_since));
    assert_ledger_sums(&observed.status);
}

#[test]
fn packets_of_a_new_interface_before_it_is_attached_are_told_as_unattached() {
    need!();
    let netns = Netns::new("new");
    let first = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth*", 1);
    // The agent stands still while a second link comes up and carries packets.
    let mut watch = watch;
    watch.agent().signal(orb8_testbed::agent::Signal::Stop);
    let late = Veth::cable(&netns, VethOptions { number: 1, ..VethOptions::default() });
    let missed = send(&late, 10, 3);
    watch.agent().signal(orb8_testbed::agent::Signal::Continue);
    watch.wait_attached(2);
    let sent = send(&late, 10, 4);
    let _also = send(&first, 10, 1);
    let observed = watch.settled(sent.total().packets + 10);
    observed.traffic("eth1", support::Egress).assert_equals(&sent, "since it is attached");
    assert_eq!(lost(&observed.status, "unattached", ""), missed.total().packets);
    assert_told(&observed, "unattached", "");
    assert_ledger_sums(&observed.status);
}
