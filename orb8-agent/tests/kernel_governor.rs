//! The agent over its budgets: what it gives up, that no count is among it, and that it comes back.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use orb8_proto::v1::{AgentStatus, EventLedger, Governor, Notice, QueryFlowsRequest};
use orb8_testbed::agent::{AgentOptions, Captured, Cli, Signal};
use orb8_testbed::bpf::{Hook, attached};
use orb8_testbed::flow::Traffic;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::wait::wait_until;
use serde_json::Value;
use support::{DEADLINE, Egress, Watch, options};

const NEEDS: &[Need] = &[Need::Root, Need::Bpf, Need::Tcx, Need::Tool("ip"), Need::Binary("orb8")];

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN_ACK: u8 = 17;
const RST: u8 = 4;

/// A running `orb8 trace network`.
struct View {
    child: Child,
    stdout: Captured,
}

impl View {
    fn open(netns: &Netns, more: &str) -> Self {
        let line = format!("trace network -o json {more}");
        let mut command = Cli::new(netns).command(&line);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the CLI starts");
        let stdout = Captured::follow(child.stdout.take().expect("piped"));
        Self { child, stdout }
    }

    /// What it has told so far, of one type.
    fn told(&self, kind: &str) -> Vec<Value> {
        let text = self.stdout.text();
        // The last line may still be under way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let beginning = format!("{{\"type\":\"{kind}\"");
        whole
            .lines()
            .filter(|line| line.starts_with(&beginning))
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).ok();
        self.child.wait().ok();
    }
}

fn host(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 1, high, low).into()
}

fn to() -> IpAddr {
    Ipv4Addr::new(10, 2, 0, 1).into()
}

fn udp(number: u16) -> Packet {
    packet::ip(host(number), to(), &packet::udp(1000, 53, 40))
}

fn tcp(number: u16, flags: u8) -> Packet {
    packet::ip(host(number), to(), &packet::tcp(1000, 80, flags, 0, 10))
}

fn send(cable: &Veth, packets: &[Packet], sent: &mut Traffic) {
    for (&flow, total) in RawSocket::open(&cable.near, cable.far.mac).send(packets).iter() {
        sent.add(flow, total.packets, total.bytes);
    }
}

/// An agent that may take a fifth of one CPU, and looks often.
fn thrifty() -> AgentOptions {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    options("eth0")
        .env("ORB8_CPU_BUDGET", format!("{:.4}%", 20.0 / cpus as f64))
        .arg("--governor-interval-ms=100")
}

fn is_step(notice: &Value) -> bool {
    notice["code"] == "governor_step" || notice["code"] == "governor_back"
}

fn governor(status: &AgentStatus) -> &Governor {
    status.governor.as_ref().expect("a governor")
}

fn events(status: &AgentStatus) -> &EventLedger {
    status.event_ledger.as_ref().expect("an event ledger")
}

/// Keeps the agent busy with questions while `work` is done.
fn while_busy<T>(watch: &Watch, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let end = End(&stop);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let everything = QueryFlowsRequest { limit: 100_000, ..Default::default() };
                    let _answer = watch.query(&everything);
                }
            });
        }
        let result = work();
        drop(end);
        result
    })
}

/// Also when an assertion fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn over_its_cpu_budget_the_agent_tells_later_and_counts_the_same_and_comes_back() {
    need!(@check NEEDS);
    let netns = Netns::new("budget");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::with(&thrifty(), &netns, 1);
    let view = View::open(&netns, "");
    watch.wait_status("the subscription", |status| status.subscribers.len() == 1);
    let mut sent = Traffic::new();
    send(&cable, &(0..1000).map(udp).collect::<Vec<_>>(), &mut sent);
    watch.settled(sent.total().packets);
    let observed = while_busy(&watch, || {
        let before =
            watch.wait_status("starts to be deferred", |status| governor(status).starts_deferred);
        assert_eq!(governor(&before).drain_interval_ms, 4000);
        assert!(governor(&before).given_up.len() >= 2, "{:?}", governor(&before));
        for _ in 0..3 {
            send(&cable, &(3000..3100).map(udp).collect::<Vec<_>>(), &mut sent);
        }
        for flags in [SYN, ACK, FIN_ACK, RST] {
            let connections: Vec<_> = (0..20).map(|number| tcp(number, flags)).collect();
            send(&cable, &connections, &mut sent);
        }
        watch.drain();
        let observed = watch.settled(sent.total().packets);
        let (before, after) = (events(&before), events(&observed.status));
        assert_eq!(after.deferred - before.deferred, 100, "no start of a datagram by the ring");
        assert_eq!(after.produced - before.produced, 60, "each SYN, FIN and RST by the ring");
        assert_eq!(after.processed, after.produced);
        observed
    });
    observed.traffic("eth0", Egress).assert_equals(&sent, "counts are never given up");
    observed.assert_complete();
    // Not by asking the agent, which would keep it busy.
    wait_until(DEADLINE, "everything to be taken back", || {
        let steps = view.told("notice");
        let last = steps.iter().rfind(|notice| is_step(notice));
        let says_so = |step: &Value| step["message"].to_string().contains("nothing is given up");
        // What is told may lag behind what holds.
        last.is_some_and(says_so) && governor(&watch.status()).level == 0
    });
    let before = watch.status();
    assert_eq!((governor(&before).level, governor(&before).cause.as_str()), (0, "calm"));
    assert_eq!(governor(&before).drain_interval_ms, 1000);
    send(&cable, &(3100..3110).map(udp).collect::<Vec<_>>(), &mut sent);
    let observed = watch.settled(sent.total().packets);
    let (before, after) = (events(&before), events(&observed.status));
    assert_eq!((after.deferred - before.deferred, after.produced - before.produced), (0, 10));
    let flows = sent.len();
    wait_until(DEADLINE, "every start", || view.told("flow_start").len() >= flows);
    let mut starts: BTreeMap<String, u32> = BTreeMap::new();
    for start in view.told("flow_start") {
        *starts.entry(format!("{} {}", start["src_ip"], start["protocol"])).or_default() += 1;
    }
    assert_eq!(starts.len(), flows);
    assert!(starts.values().all(|&times| times == 1), "each flow is told once");
}

#[test]
fn sampled_packets_stand_for_all_that_were_offered_and_each_flows_first_is_told() {
    need!(@check NEEDS);
    let netns = Netns::new("sampled");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::with(&thrifty(), &netns, 1);
    let mut sent = Traffic::new();
    send(&cable, &(0..1000).map(udp).collect::<Vec<_>>(), &mut sent);
    watch.settled(sent.total().packets);
    let view = View::open(&netns, "--packets --rate-limit 100000");
    wait_until(DEADLINE, "the packet view to be attached", || {
        attached(&netns, "eth0", Hook::Egress).len() == 2
    });
    let one = |number, len| packet::ip(host(number), to(), &packet::udp(1000, 53, len));
    let ping = |number, len| packet::ip(host(number), to(), &packet::icmp(8, 0, len));
    // Of each flow the first packet is the longest.
    let round = |len| (0..50).flat_map(move |number| [one(number, len), ping(number, len)]);
    let sampling = while_busy(&watch, || {
        let status = watch.wait_status("packets to be sampled", |status| {
            // CPU time is judged once for each.
            watch.drain();
            governor(status).packet_sampling >= 8
        });
        for len in std::iter::once(80).chain([40; 29]) {
            send(&cable, &round(len).collect::<Vec<_>>(), &mut sent);
        }
        let of_each = |flags| (0..10).map(move |number| tcp(number, flags));
        let opening = of_each(SYN).chain(of_each(ACK));
        let ending = of_each(FIN_ACK).chain(of_each(RST));
        send(&cable, &opening.chain(ending).collect::<Vec<_>>(), &mut sent);
        governor(&status).packet_sampling
    });
    let status = watch.wait_status("the packets to be judged", |status| {
        status.packet_view.is_some_and(|view| view.matched == 3040)
    });
    let counts = status.packet_view.expect("a packet view");
    assert_eq!(counts.told + counts.untold + counts.rate_limited + counts.ring_full, 3040);
    let weight = |packet: &Value| packet["sample_weight"].as_u64().expect("a weight");
    wait_until(DEADLINE, "what was told to arrive", || {
        view.told("packet").iter().map(weight).sum::<u64>() == counts.told
    });
    let packets = view.told("packet");
    assert!(packets.len() < 3040 / 2, "{} of 3040 at one in {sampling}", packets.len());
    let first: Vec<_> = packets.iter().filter(|packet| packet["bytes"] == 20 + 8 + 80).collect();
    assert_eq!(first.len(), 100, "no flow's first packet is sampled away");
    assert!(first.iter().all(|packet| weight(packet) == 1));
    let tcp = packets.iter().filter(|packet| packet["protocol"] == "tcp");
    let alone = tcp.filter(|packet| weight(packet) == 1).count();
    assert!(alone >= 30, "no SYN, FIN or RST is sampled away: {alone}");
    assert!(alone < 40, "what follows a SYN is not the first");
    wait_until(DEADLINE, "those for which none stands to be told as lost", || {
        let losses = view.told("loss");
        let sampled = losses.iter().filter(|loss| loss["reason"] == "sampled");
        sampled.map(|loss| loss["packets"].as_u64().expect("a count")).sum::<u64>() >= counts.untold
    });
    watch.drain();
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "counts are never sampled");
    observed.assert_complete();
}

#[test]
fn a_ring_that_fills_is_spared_at_once() {
    need!(@check NEEDS);
    let netns = Netns::new("rings");
    let cable = Veth::cable(&netns, VethOptions::default());
    let small = options("eth0").env("ORB8_RING_BUFFER_SIZE", 65_536);
    let mut watch = Watch::with(&small, &netns, 1);
    let view = View::open(&netns, "--packets --rate-limit 100000");
    wait_until(DEADLINE, "the packet view to be attached", || {
        attached(&netns, "eth0", Hook::Egress).len() == 2
    });
    // While the agent does not run, nobody empties the rings.
    watch.agent().signal(Signal::Stop);
    let mut sent = Traffic::new();
    send(&cable, &(0..2000).map(udp).collect::<Vec<_>>(), &mut sent);
    watch.agent().signal(Signal::Continue);
    let status = watch.wait_status("both rings to be spared", |status| {
        governor(status).starts_deferred && governor(status).packet_sampling > 1
    });
    let told = |code: &str| status.notices.iter().filter(|notice| notice.code == code).count();
    assert_eq!(told("governor_step"), 1, "one warning a minute: {:?}", status.notices);
    assert_eq!(governor(&status).drain_interval_ms, 1000, "a full ring is no want of CPU time");
    let before = events(&status).deferred;
    send(&cable, &(2000..2050).map(udp).collect::<Vec<_>>(), &mut sent);
    let observed = watch.settled(sent.total().packets);
    assert_eq!(events(&observed.status).deferred - before, 50);
    observed.traffic("eth0", Egress).assert_equals(&sent, "counts need no ring");
    drop(view);
    let status = watch.wait_status("sampling to end with the view", |status| {
        governor(status).packet_sampling == 1
    });
    let closed = |notice: &&Notice| notice.message.starts_with("the last packet view was closed");
    assert_eq!(status.notices.iter().filter(closed).count(), 1, "{:?}", status.notices);
    wait_until(DEADLINE, "the programs of the first view to go", || {
        attached(&netns, "eth0", Hook::Egress).len() == 1
    });
    let _view = View::open(&netns, "--packets --rate-limit 100000");
    wait_until(DEADLINE, "the second view to be attached", || {
        attached(&netns, "eth0", Hook::Egress).len() == 2
    });
    watch.agent().signal(Signal::Stop);
    send(&cable, &(0..2000).map(udp).collect::<Vec<_>>(), &mut sent);
    watch.agent().signal(Signal::Continue);
    watch.wait_status("the ring to be spared for the second view, too", |status| {
        governor(status).packet_sampling > 1
    });
}

#[test]
fn what_a_packet_costs_in_the_programs_is_what_the_kernel_says() {
    need!(@check NEEDS);
    let netns = Netns::new("cost");
    let cable = Veth::cable(&netns, VethOptions::default());
    let often = options("eth0").arg("--governor-interval-ms=100");
    let watch = Watch::with(&often, &netns, 1);
    let stop = AtomicBool::new(false);
    let end = End(&stop);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let socket = RawSocket::open(&cable.near, cable.far.mac);
            let packets: Vec<_> = (0..100).map(udp).collect();
            while !stop.load(Ordering::Relaxed) {
                socket.send(&packets);
            }
        });
        let status = watch.wait_status("the programs' cost", |status| {
            let governor = governor(status);
            matches!(&*governor.cpu_programs_by, "calibrated" | "measured")
                && governor.cpu_programs > 0.0
        });
        let governor = governor(&status);
        // The kernel may be keeping statistics all the time here.
        if governor.cpu_programs_by == "calibrated" {
            assert!((1.0..5000.0).contains(&governor.packet_ns), "{governor:?}");
            assert_ne!(governor.packet_ns, 50.0, "an estimate");
        }
        assert!(governor.cpu_programs < 1.0, "{governor:?}");
        drop(end);
    });
}

#[test]
fn a_ring_is_in_memory_three_times() {
    need!(@check NEEDS);
    const MIB: u64 = 1 << 20;
    let taken = |ring: u64| {
        let netns = Netns::new("ringmem");
        let _cable = Veth::cable(&netns, VethOptions::default());
        // With room for all flows beside either.
        let roomy = options("eth0").env("ORB8_MEMORY_BUDGET", "256MiB");
        // As it was at the start, whoever is asked sooner.
        let roomy = roomy.arg("--governor-interval-ms=60000");
        let watch = Watch::with(&roomy.env("ORB8_RING_BUFFER_SIZE", ring), &netns, 1);
        governor(&watch.status()).memory_bytes
    };
    let (small, large) = (taken(MIB), taken(8 * MIB));
    let more = large.saturating_sub(small);
    assert!((20 * MIB..22 * MIB).contains(&more), "{more} bytes more for 7 MiB more of ring");
}

#[test]
fn an_agent_over_its_memory_budget_holds_fewer_flows_and_for_less_time() {
    need!(@check NEEDS);
    let netns = Netns::new("memory");
    let _cable = Veth::cable(&netns, VethOptions::default());
    // A ring that alone takes more than half of the least that can be set.
    let small = options("eth0").env("ORB8_MEMORY_BUDGET", "32MiB");
    let small = small.env("ORB8_RING_BUFFER_SIZE", "8MiB").arg("--governor-interval-ms=100");
    let watch = Watch::with(&small, &netns, 1);
    let status = watch
        .wait_status("history to be shortened", |status| governor(status).history_seconds < 300);
    assert!(governor(&status).memory_bytes > 32 << 20);
    assert_eq!((status.max_flows, status.max_flows_set), (5802, 100_000));
    let told = |code: &str| status.notices.iter().any(|notice| notice.code == code);
    assert!(told("max_flows_lowered") && told("governor_step"), "{:?}", status.notices);
}
