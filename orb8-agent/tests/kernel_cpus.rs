//! CPUs that go and come: what one has counted is told after it has gone.
//!
//! Takes a CPU away from everything that runs on the machine, so it does that only where nobody
//! else is: in the guests of `make vm-test`.

mod support;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use orb8_agent::ebpf::lines::LineTimes;
use orb8_testbed::flow::Traffic;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::wait::wait_until;
use rustix::thread::{CpuSet, sched_setaffinity};
use support::direct::{Direct, options};
use support::{DEADLINE, Egress, Ingress};

/// The CPU that goes.
const CPU: usize = 1;
/// Switches it.
const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";
/// Only a guest of `make vm-test` has this.
const GUEST: &str = "/vm/suites";

/// Why a CPU may or can not be taken away here.
fn refusal() -> Option<String> {
    if !Path::new(GUEST).exists() {
        return Some("only a guest of `make vm-test` is left a CPU short".to_owned());
    }
    switch("1").err().map(|error| format!("write {SWITCH}: {error}"))
}

fn switch(to: &str) -> std::io::Result<()> {
    std::fs::write(SWITCH, to)
}

/// The CPU is there again at the end.
struct Gone;

impl Gone {
    fn take() -> Self {
        switch("0").expect("a CPU that can be switched off");
        Self
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        drop(switch("1"));
    }
}

/// Sends from the CPU that goes, which then counts at both ends.
fn send(socket: &RawSocket, packets: &[Packet]) -> Traffic {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut set = CpuSet::new();
            set.set(CPU);
            sched_setaffinity(None, &set).expect("the CPU is there");
            socket.send(packets)
        });
        sending.join().expect("packets leave")
    })
}

#[test]
fn what_a_cpu_has_counted_is_told_and_released_while_it_is_gone() {
    need!();
    if let Some(why) = refusal() {
        // Not a need: no machine on which somebody works can meet it.
        let name = "what_a_cpu_has_counted_is_told_and_released_while_it_is_gone";
        drop(writeln!(std::io::stderr(), "SKIP {name}: {why}"));
        return;
    }
    let netns = Netns::new("cpus");
    let cable = Veth::cable(&netns, VethOptions::default());
    let mut options = options("eth0,peer0");
    let now = Duration::ZERO;
    options.times = LineTimes { drain_interval: now, idle_timeout: now, linger: now };
    let mut watch = Direct::with(&options, &netns, 2);
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let [a, b]: [IpAddr; 2] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last).into());
    let flows = 100;
    let packets: Vec<Packet> = (0..30_u16)
        .flat_map(|_| 0..flows)
        .map(|flow| packet::ip(a, b, &packet::udp(1000 + flow, 53, 100)))
        .collect();
    let mut sent = send(&socket, &packets);
    let gone = Gone::take();
    let observed = watch.settled(2 * sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving, the CPU gone");
    observed.traffic("peer0", Ingress).assert_equals(&sent, "arriving, the CPU gone");
    wait_until(DEADLINE, "the lines to be released without the CPU", || {
        watch.drain();
        watch.observed().released == 2 * u64::from(flows)
    });
    drop(gone);
    for (&flow, total) in send(&socket, &packets).iter() {
        sent.add(flow, total.packets, total.bytes);
    }
    let observed = watch.settled(2 * sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving, the CPU back");
    observed.traffic("peer0", Ingress).assert_equals(&sent, "arriving, the CPU back");
    observed.assert_complete();
}
