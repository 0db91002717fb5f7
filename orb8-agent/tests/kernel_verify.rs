//! `orb8 verify` at interfaces: it finds the kernel's counters equal to ours to the packet, explains
//! super-packets, and finds packets that a fault has swallowed.

mod support;
mod verify_support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orb8_agent::agent::{Agent, Parts};
use orb8_agent::capture::{Planes, View};
use orb8_agent::clock::SystemClock;
use orb8_agent::config;
use orb8_agent::datapath::{
    AttachState, Datapath, InterfaceStatus, PacketWatch, Start, StartError, Started,
};
use orb8_agent::ebpf::kernel::{self, Kernel, KernelOptions};
use orb8_agent::ebpf::lines::LINES;
use orb8_agent::event::Event;
use orb8_agent::host::HostFacts;
use orb8_agent::network::decode;
use orb8_common::network::PacketFilter;
use orb8_testbed::cgroup::Tree;
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::talk;
use orb8_testbed::link::{Family, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::traffic;
use orb8_testbed::wait::wait_until;
use support::{DEADLINE, Watch, direct};
use tokio::sync::oneshot;
use verify_support::Verify;

const NEEDS: &[Need] = &[Need::Root, Need::Bpf, Need::Tool("ip"), Need::Binary("orb8")];

/// A datagram with so much in it, on one of many flows.
fn datagram(number: u8, len: usize) -> Packet {
    let host: IpAddr = Ipv4Addr::new(10, 1, 0, number).into();
    packet::ip(host, Ipv4Addr::new(10, 2, 0, 1).into(), &packet::udp(1000, 53, len))
}

/// Sends `count` datagrams, all of `len` bytes of payload; how many, and their IP bytes.
fn send(cable: &Veth, count: u8, len: usize) -> (u64, u64) {
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let packets: Vec<_> = (0..count).map(|number| datagram(number, len)).collect();
    let sent = socket.send(&packets).total();
    (sent.packets, sent.bytes)
}

#[test]
fn interfaces_agree_with_the_kernel_to_the_packet() {
    need!(@check NEEDS);
    let netns = Netns::new("verify");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth0,peer0", 2);
    // What passed before is on neither side.
    send(&cable, 20, 300);
    watch.settled(2 * 20);
    let verify = Verify::start(&netns, "--tolerance 0");
    let (packets, bytes) = send(&cable, 200, 83);
    watch.settled(2 * (20 + packets));
    let done = verify.finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    for (scope, sent) in [("eth0", "egress"), ("peer0", "ingress")] {
        for direction in ["egress", "ingress"] {
            let row = done.row("interface", scope, direction);
            let (packets, bytes) = if direction == sent { (packets, bytes) } else { (0, 0) };
            row.assert_equal(packets, bytes);
        }
    }
    assert_eq!(done.document()["verdict"], "ok");
}

#[test]
fn super_packets_are_explained_and_no_difference() {
    need!(@check NEEDS);
    let link = Veth::addressed(VethOptions { segmentation: true, ..VethOptions::default() });
    traffic::plain_tcp([&link.near, &link.far]);
    let watch = Watch::start(&link.near.netns, &link.near.ifname, 1);
    let verify = Verify::start(&link.near.netns, "");
    let before = link.near.counters();
    let said = traffic::tcp(&link.near, &link.far, Family::V4, 1_000_000, 10_000).traffic;
    watch.settled(said.total().packets);
    let kernel = link.near.counters().since(before);
    let done = verify.finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    let row = done.row("interface", &link.near.ifname, "egress");
    assert_eq!(row.verdict(), "ok");
    assert_eq!(row.number("kernel_packets"), kernel.tx_packets);
    let segments = row.number("orb8_packets") - kernel.tx_packets;
    assert!(segments > 0, "the link passes super-packets");
    assert_eq!(row.number("super_packet_segments"), segments);
}

#[test]
fn the_host_agrees_with_its_protocol_counters_and_the_agents_own_traffic_is_in_them() {
    need!(@check NEEDS);
    need!(Need::Cgroup2);
    let tree = Tree::new("verify");
    let host = tree.make("host");
    let netns = Netns::new("host");
    let options = support::options("none")
        .env("ORB8_CAPTURE", "socket")
        .env("ORB8_CGROUP_ROOT", tree.root().display())
        .cgroup(&host);
    let _agent = options.start(&netns);
    let local = IpAddr::from([127, 0, 0, 1]);
    let [from, to] = ["from", "to"].map(|name| Actor::start(name, &host, &netns, &[local]));
    let verify = Verify::start_in(&host, &netns, "--tolerance 0");
    let said = talk::udp(&from, &to, (local, 7001).into(), 50, 200);
    let done = verify.finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    for direction in ["ingress", "egress"] {
        let row = done.row("host", "host", direction);
        // Beside what was said, the agent was asked.
        let least = said.there.packets + said.back.packets;
        assert!(row.number("orb8_packets") >= least, "{row:#?}");
        assert!(row.number("kernel_packets") >= least, "{row:#?}");
        assert_eq!(row.verdict(), "ok", "{row:#?}");
        assert!(row.number("uncertain_packets") < least, "{row:#?}");
    }
}

#[test]
fn a_reading_before_its_time_puts_the_next_off_by_a_whole_interval() {
    need!(@check NEEDS);
    let netns = Netns::new("hurry");
    let options = direct::options("none");
    let started = netns.enter(|| kernel::start(&options, HostFacts::shared()));
    let mut started = started.expect("the kernel side starts");
    let lines = started.sources.iter_mut().find(|source| source.name() == LINES);
    let lines = lines.expect("the lines are a source");
    let begin = Instant::now();
    for round in 0..5 {
        let now = begin + round * Duration::from_millis(10);
        lines.hurry(now);
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, Event::Drained(_))) {
            lines.collect(now, &mut events).expect("the lines can be read");
        }
        assert_eq!(lines.wakeup().due, Some(now + options.times.drain_interval), "{round}");
    }
    assert!(started.kernel.stop(Instant::now() + DEADLINE), "the programs end in time");
}

/// The kernel side of an agent that forgets datagrams of one size.
#[derive(Debug)]
struct Faulty(Kernel);

impl Datapath for Faulty {
    fn interfaces(&self) -> Vec<InterfaceStatus> {
        self.0.state().interfaces.clone()
    }

    fn map_bytes(&self) -> u64 {
        self.0.map_bytes()
    }

    fn watch_packets(
        &self,
        _filter: &PacketFilter,
        _rate: u32,
    ) -> Result<Box<dyn PacketWatch>, StartError> {
        Err(StartError { message: "no packets are shown in this test".to_owned() })
    }

    fn stop(&self, deadline: Instant) -> bool {
        self.0.stop(deadline)
    }
}

fn start_faulty(forgotten: u32) -> Start {
    Box::new(move |_settings, facts| {
        let options = KernelOptions {
            planes: Planes::Tc,
            fault_bytes: forgotten,
            decode_event: decode::flow_event,
            decode_packet: decode::packet_event,
            ..direct::options("eth0,peer0")
        };
        let started = kernel::start(&options, facts)
            .map_err(|error| StartError { message: error.to_string() })?;
        let handle = Faulty(started.kernel);
        wait_until(DEADLINE, "both ends to be attached", || {
            let attached = |found: &InterfaceStatus| found.state == AttachState::Attached;
            handle.interfaces().iter().filter(|found| attached(found)).count() == 2
        });
        Ok(Started { sources: started.sources, handle: Arc::new(handle) })
    })
}

/// Runs an agent in a namespace, in this process, while `work` is done.
fn with_faulty_agent<T>(netns: &Netns, forgotten: u32, work: impl FnOnce() -> T) -> T {
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            netns.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let words = [
                        "orb8-agent",
                        "--node-name",
                        "testbed",
                        "--kubernetes",
                        "off",
                        "--cpu-budget",
                        "100%",
                    ];
                    let settings = config::parse(words).expect("settings").settings;
                    let parts = Parts {
                        start: start_faulty(forgotten),
                        checks: Vec::new(),
                        cgroups: View::none(),
                        known: None,
                        clock: SystemClock::shared(),
                    };
                    let agent = Agent::start(&settings, parts).await.expect("an agent");
                    ready.send(()).expect("somebody waits");
                    let stop = async move {
                        stopped.await.ok();
                    };
                    agent.run_until(stop).await.expect("it ends in order");
                });
            });
        });
        is_ready.recv().expect("the agent starts");
        let result = work();
        stop.send(()).expect("the agent runs until then");
        agent.join().expect("the agent ends");
        result
    })
}

#[test]
fn packets_that_a_fault_has_swallowed_are_found() {
    need!(@check NEEDS);
    let netns = Netns::new("fault");
    let cable = Veth::cable(&netns, VethOptions::default());
    let size = u32::try_from(datagram(1, 83).len()).expect("a small packet");
    let done = with_faulty_agent(&netns, size, || {
        let verify = Verify::start(&netns, "");
        send(&cable, 100, 300);
        send(&cable, 7, 83);
        verify.finish()
    });
    assert_eq!(done.code, Some(1), "{done:?}");
    let row = done.row("interface", "eth0", "egress");
    assert_eq!(row.verdict(), "differs");
    assert_eq!((row.number("orb8_packets"), row.number("kernel_packets")), (100, 107));
    assert_eq!(row.signed("difference_packets"), -7);
    assert_eq!(row.signed("difference_bytes"), -7 * i64::from(size));
}
