//! Nanoseconds of the socket plane per packet, net of an empty program in the same run.
//!
//! The kernel gives such a program no packet that it may write, so one test run is one flow. The
//! cached rows repeat one. The cold rows go through the flows with a system call for each packet and
//! take the time from the kernel's own statistics, which surround the program alone: what the call
//! does in between drives the program out of the core's caches, so they are the dearest case and
//! have no goal.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, ensure};
use aya::programs::{CgroupSkb, ProgramFd};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader};
use orb8_agent::capture::{Planes, SocketRoot};
use orb8_agent::ebpf::load::Loaded;
use orb8_agent::ebpf::sys;

use crate::datapath::{Case, cases, cpu_ns, lines_in_use, load_probes};
use crate::report::{self, Goal, Row, median};

const SAMPLES: usize = 15;
const RUNS: u32 = 200_000;
/// What the plane may cost a packet.
const GOAL_NS: f64 = 60.0;

/// The probe and the empty program of one direction.
struct Pair {
    probes: Loaded,
    probe: &'static str,
    _empty: Ebpf,
    empty: ProgramFd,
    info: [u32; 2],
}

impl Pair {
    fn load(probe: &'static str, empty: &str) -> anyhow::Result<Self> {
        let root = SocketRoot { path: "/".into(), id: 1, level: 0 };
        let probes = load_probes(Planes::Socket(root))?;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/bench-probes.o");
        let mut ebpf = EbpfLoader::new().load_file(path).with_context(|| format!("load {path}"))?;
        let program: &mut CgroupSkb = ebpf.program_mut(empty).context("program")?.try_into()?;
        program.load()?;
        let (fd, id) = (program.fd()?.try_clone()?, program.info()?.id());
        let probe_id = probes.programs.id(probe).context("the probe's id")?;
        Ok(Self { probes, probe, _empty: ebpf, empty: fd, info: [probe_id, id] })
    }

    /// Nanoseconds of this thread's CPU per run of both: probe, empty.
    fn repeated(&self, packet: &[u8]) -> anyhow::Result<[f64; 2]> {
        let run = |program| -> anyhow::Result<f64> {
            let before = cpu_ns();
            sys::test_run(program, packet, RUNS)?;
            Ok((cpu_ns() - before) / f64::from(RUNS))
        };
        let empty = run(self.empty.as_fd())?;
        Ok([run(self.probes.programs.fd(self.probe))?, empty])
    }

    /// The same over many packets, by the kernel's statistics, the two in turn.
    fn over(&self, packets: &[Vec<u8>]) -> anyhow::Result<[f64; 2]> {
        let before = self.info.map(statistics);
        for packet in packets {
            sys::test_run(self.empty.as_fd(), packet, 1)?;
            sys::test_run(self.probes.programs.fd(self.probe), packet, 1)?;
        }
        let mut taken = [0.0; 2];
        for ((taken, before), id) in taken.iter_mut().zip(before).zip(self.info) {
            let ((ns, runs), (ns_before, runs_before)) = (statistics(id)?, before?);
            *taken = (ns - ns_before) / (runs - runs_before);
        }
        Ok(taken)
    }
}

/// Nanoseconds and runs so far.
fn statistics(id: u32) -> anyhow::Result<(f64, f64)> {
    let all = aya::programs::loaded_programs();
    let info = all.filter_map(Result::ok).find(|info| info.id() == id).context("the program")?;
    Ok((info.run_time().as_nanos() as f64, info.run_count() as f64))
}

/// The packet as another flow: its number in the source's address and port.
fn flow(case: &Case, n: u32) -> Vec<u8> {
    let mut packet = case.packet.clone();
    let (address, port) =
        if case.name == "ipv6" { (14 + 8 + 12, 14 + 40) } else { (14 + 12, 14 + 20) };
    packet[address..address + 4].copy_from_slice(&n.wrapping_mul(0x9e37_79b1).to_ne_bytes());
    packet[port..port + 2].copy_from_slice(&(n as u16).to_ne_bytes());
    packet
}

fn measure(case: &Case, flows: u32, names: (&'static str, &str)) -> anyhow::Result<(f64, f64)> {
    let mut pair = Pair::load(names.0, names.1)?;
    let packets: Vec<_> = (0..flows).map(|n| flow(case, n)).collect();
    // Every flow has begun before the clock starts.
    for packet in &packets {
        sys::test_run(pair.probes.programs.fd(pair.probe), packet, 1)?;
    }
    let statistics = (flows > 1).then(|| enable_stats(Stats::RunTime)).transpose();
    let _enabled = statistics.context("enable the kernel's statistics")?;
    let (mut net, mut empties) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let [probe, empty] =
            if flows == 1 { pair.repeated(&packets[0])? } else { pair.over(&packets)? };
        net.push(probe - empty);
        empties.push(empty);
    }
    let held = lines_in_use(&mut pair.probes)?;
    ensure!(held == flows, "the table holds {held} flows, not {flows}");
    Ok((median(net), median(empties)))
}

/// Measures every packet kind cached and cold, in both directions.
pub(crate) fn run(rows: &mut Vec<Row>) {
    const DIRECTIONS: [(&str, &str, &str); 2] =
        [("orb8_sock_in", "bench_empty_in", ""), ("orb8_sock_out", "bench_empty_out", "_egress")];
    for case in cases() {
        for (flows, suffix) in [(1, "cached"), (1_000, "1k_cold")] {
            for (probe, empty, direction) in DIRECTIONS {
                let name = match (case.name, suffix) {
                    ("ipv4", "cached") => format!("socket_cached{direction}_ns"),
                    (kind, suffix) => format!("socket_{kind}_{suffix}{direction}_ns"),
                };
                let goal = if flows == 1 { Goal::AtMost(GOAL_NS) } else { Goal::None };
                let row = match measure(&case, flows, (probe, empty)) {
                    Ok((net, empty)) => Row::new(name, net, "ns", goal).against(empty),
                    Err(error) => Row::failed(&name, "ns", &format!("{error:#}")),
                };
                report::print(&row);
                rows.push(row);
            }
        }
    }
}
