//! The packet view: it exists only while somebody asks, tells each packet, says what it skipped,
//! and changes no count.

mod support;

use std::process::{Child, Stdio};

use orb8_testbed::agent::{Captured, Cli};
use orb8_testbed::bpf::{Hook, attached};
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::packet::{self, Packet, VLAN};
use orb8_testbed::raw::RawSocket;
use orb8_testbed::wait::wait_until;
use serde_json::Value;
use support::{DEADLINE, Egress, Watch};

const NEEDS: &[Need] = &[Need::Root, Need::Bpf, Need::Tcx, Need::Tool("ip"), Need::Binary("orb8")];

/// A running `orb8 trace network --packets`.
struct View {
    child: Child,
    stdout: Captured,
    stderr: Captured,
}

impl View {
    /// Opens it; packets are told from when this returns.
    fn open(netns: &Netns, more: &str) -> Self {
        let line = format!("trace network --packets -o json {more}");
        let mut child = Cli::new(netns)
            .command(&line)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the CLI starts");
        let stdout = Captured::follow(child.stdout.take().expect("piped"));
        let stderr = Captured::follow(child.stderr.take().expect("piped"));
        wait_until(DEADLINE, "the packet view to be attached", || programs(netns) == 2);
        Self { child, stdout, stderr }
    }

    fn packets(&self) -> Vec<Value> {
        let text = self.stdout.text();
        // The last line may still be under way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .filter(|line: &Value| line["type"] == "packet")
            .collect()
    }

    /// Ends it as Ctrl-C does; exit code, stdout and stderr.
    fn close(mut self) -> (Option<i32>, String, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our own child");
        let status = self.child.wait().expect("it ends");
        (status.code(), self.stdout.finish(), self.stderr.finish())
    }
}

/// How many programs are on the egress hook of `eth0`.
fn programs(netns: &Netns) -> usize {
    attached(netns, "eth0", Hook::Egress).len()
}

fn bench() -> (Netns, Veth, Watch) {
    let netns = Netns::new("packets");
    let cable = Veth::cable(&netns, VethOptions::default());
    let watch = Watch::start(&netns, "eth0", 1);
    (netns, cable, watch)
}

fn packets(cable: &Veth, port: u16, count: usize) -> Vec<Packet> {
    let (a, b) = (cable.near.v4.into(), cable.far.v4.into());
    (0..count).map(|len| packet::ip(a, b, &packet::udp(1000, port, len))).collect()
}

#[test]
fn packet_view_tells_each_packet_and_changes_no_count() {
    need!(@check NEEDS);
    let (netns, cable, watch) = bench();
    assert_eq!(programs(&netns), 1, "nobody asks yet");
    let view = View::open(&netns, "--rate-limit 100000");
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let mut sent = socket.send(&packets(&cable, 53, 100));
    let tagged = socket.send_tagged(&packets(&cable, 54, 50), &[(VLAN, 3)]);
    for (&flow, total) in tagged.iter() {
        sent.add(flow, total.packets, total.bytes);
    }
    wait_until(DEADLINE, "each packet to be told", || view.packets().len() == 150);
    let told: u64 = view.packets().iter().filter_map(|packet| packet["bytes"].as_u64()).sum();
    assert_eq!(told, sent.total().bytes);
    for packet in view.packets() {
        assert_eq!(packet["src_ip"], cable.near.v4.to_string());
        assert_eq!(packet["direction"], "egress");
        assert_eq!(packet["interface"], "eth0");
        assert_eq!(packet["packets"], 1);
    }
    let (code, stdout, stderr) = view.close();
    assert_eq!(code, Some(0), "{stdout}\n{stderr}");
    wait_until(DEADLINE, "the packet programs to go", || programs(&netns) == 1);
    let observed = watch.settled(sent.total().packets);
    observed.traffic("eth0", Egress).assert_equals(&sent, "leaving");
    observed.assert_complete();
}

#[test]
fn packet_view_shows_only_what_matches() {
    need!(@check NEEDS);
    let (netns, cable, _watch) = bench();
    let view = View::open(&netns, "--rate-limit 100000 --port 53");
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let _other = socket.send(&packets(&cable, 80, 40));
    let _sent = socket.send(&packets(&cable, 53, 30));
    wait_until(DEADLINE, "the packets that match", || view.packets().len() >= 30);
    let (code, stdout, stderr) = view.close();
    assert_eq!(code, Some(0), "{stdout}\n{stderr}");
    let ports: Vec<_> = stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"))
        .filter(|line| line["type"] == "packet")
        .map(|packet| packet["dst_port"].clone())
        .collect();
    assert_eq!(ports, vec![Value::from(53); 30]);
}

#[test]
fn packet_view_says_what_it_skipped() {
    need!(@check NEEDS);
    let (netns, cable, watch) = bench();
    let view = View::open(&netns, "--rate-limit 10");
    let socket = RawSocket::open(&cable.near, cable.far.mac);
    let mut sent = 0;
    wait_until(DEADLINE, "the loss to be told", || {
        sent += socket.send(&packets(&cable, 53, 100)).total().packets;
        view.stdout.text().contains("packet_view")
    });
    let told = view.packets().len() as u64;
    assert!(told < sent / 2, "{told} of {sent} packets at 10 a second");
    let (code, _, stderr) = view.close();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("packet"), "{stderr}");
    // The flows are complete all the same.
    watch.settled(sent).assert_complete();
}
