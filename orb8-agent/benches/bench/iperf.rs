//! iperf3 over a veth, with an agent that watches the sender's end and its sockets, and without.
//!
//! A round is three runs in an order drawn anew: one with the agent, two without. The first two make a
//! pair; the two without make the pair of equals that says how much of a difference is noise.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use orb8_proto::v1::AgentStatus;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need::Need;
use orb8_util::stats::{Random, judge, median};

use crate::bed::{Bed, wait};
use crate::cgroup::Cgroup;
use crate::counted::Counted;
use crate::report::{Amount, Report, Row};

/// A ratio of throughputs that may be lost at most.
const GOAL: f64 = 0.97;
/// The port that iperf3 listens on unless told otherwise, as `/proc/net/tcp` writes it.
const PORT: &str = ":1451 ";

/// What is sent, as arguments of the client.
#[derive(Clone, Copy, Debug)]
struct Load {
    row: &'static str,
    arguments: &'static [&'static str],
}

const LOADS: [Load; 2] = [
    Load { row: "iperf_tcp_ratio", arguments: &[] },
    // Small datagrams as fast as they go.
    Load { row: "iperf_udp_ratio", arguments: &["--udp", "--bitrate", "0", "--length", "64"] },
];

/// Both rows.
pub(crate) fn run(report: &mut Report) {
    for load in LOADS {
        report.measure(&[load.row], |report| rounds(report, load).map(|row| vec![row]));
    }
}

/// A server in a namespace; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Server {
    fn start(link: &Veth) -> anyhow::Result<Self> {
        let mut command = link.far.netns.command("iperf3");
        command.args(["--server", "--bind", &link.far.v4.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("iperf3")?;
        let server = Self(child);
        wait("iperf3 to listen", || {
            Ok(link.far.netns.run("cat /proc/net/tcp").lines().any(|line| line.contains(PORT)))
        })?;
        Ok(server)
    }
}

/// What all runs of a load share.
struct Scene {
    // Ends before the cgroups: it is in the directory above them.
    _server: Server,
    link: Veth,
    client: Cgroup,
    tree: Cgroup,
    seconds: u32,
}

fn rounds(report: &mut Report, load: Load) -> anyhow::Result<Row> {
    if let Some(why) = Need::Tool("iperf3").missing() {
        anyhow::bail!("{why}");
    }
    let (rounds, seconds) = if report.quick { (3, 1) } else { (20, 3) };
    let tree = Cgroup::tree();
    // A name that says that containers are in cgroup2, so that the agent takes both planes.
    let pods = tree.child("kubepods.slice");
    let link = Veth::addressed(VethOptions { segmentation: true, ..VethOptions::default() });
    let server = Server::start(&link)?;
    let scene = Scene { link, client: pods, tree, _server: server, seconds };
    // Neither the first run nor the order is anybody's advantage.
    scene.throughput(load)?;
    let mut random = Random::new(0x6f72_6238);
    let (mut ratios, mut of_equals, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let mut order = [0, 1, 2];
        random.shuffle(&mut order);
        let mut found = [0.0; 3];
        for run in order {
            found[run] = match run {
                0 => scene.watched(report, load)?,
                _ => scene.throughput(load)?,
            };
        }
        let [with, without, again] = found;
        println!(
            "    {} {round}/{rounds}: {:.3}, equals {:.3}",
            load.row,
            with / without,
            again / without
        );
        ratios.push(with / without);
        of_equals.push(again / without);
        alone.push(without);
    }
    let verdict = judge(&ratios, &of_equals, GOAL);
    Ok(Row::judged(load.row, &verdict, GOAL, rounds).against(median(&alone) / 1e9))
}

impl Scene {
    /// Bits a second of one run, as the receiver of TCP and the sender of UDP count them.
    fn throughput(&self, load: Load) -> anyhow::Result<f64> {
        let (server, seconds) = (self.link.far.v4.to_string(), self.seconds.to_string());
        let output = self.client.enter(|| {
            let mut command: Command = self.link.near.netns.command("iperf3");
            command.args(["--json", "--client", &server, "--time", &seconds]);
            command.args(load.arguments).stdin(Stdio::null()).output()
        });
        let output = output.context("iperf3")?;
        let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(output.status.success(), "iperf3: {}", told["error"]);
        let end = &told["end"];
        let sum = ["sum_received", "sum"].map(|name| end[name]["bits_per_second"].as_f64());
        let udp = load.arguments.contains(&"--udp");
        let found =
            if udp { end["sum_sent"]["bits_per_second"].as_f64().or(sum[1]) } else { sum[0] };
        let found = found.with_context(|| format!("iperf3 told no throughput: {end}"))?;
        ensure!(found > 0.0, "iperf3 moved nothing");
        Ok(found)
    }

    /// One run under the eyes of an agent; what passed meanwhile is compared with what it reports.
    fn watched(&self, report: &mut Report, load: Load) -> anyhow::Result<f64> {
        let settings = [
            ("ORB8_CAPTURE", "auto".to_owned()),
            ("ORB8_CGROUP_ROOT", self.tree.path().display().to_string()),
        ];
        let bed = Bed::start(self.link.clone(), &settings)?;
        let before = Counted::at_rest(&self.link.near.netns)?;
        let found = self.throughput(load)?;
        let sent = Counted::at_rest(&self.link.near.netns)?.since(&before);
        // Both planes see it.
        let both = Amount { packets: 2 * sent.packets, bytes: 2 * sent.bytes };
        let (all, status) = bed.accounted(both)?;
        let at_socket = counted_at_socket(&status);
        let accounted =
            Amount { packets: all.packets - at_socket.packets, bytes: all.bytes - at_socket.bytes };
        report.book(load.row, sent, accounted);
        Ok(found)
    }
}

/// What an interface leaves to the socket plane: each of these packets is in the account twice.
fn counted_at_socket(status: &AgentStatus) -> Amount {
    let ledger = status.packet_ledger.iter().flat_map(|ledger| &ledger.filtered);
    let mut total = Amount::default();
    for found in ledger.filter(|found| found.reason == "counted_at_socket") {
        total.add(Amount { packets: found.packets, bytes: found.bytes });
    }
    total
}
