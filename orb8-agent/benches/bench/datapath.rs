//! Nanoseconds of the probes per packet, net of an empty program in the same run.
//!
//! A program in front, the same for both, makes each run another flow and jumps to the target; the
//! lines of the flow table then show how many flows there were.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use orb8_agent::capture::Planes;
use orb8_agent::ebpf::load::{self, LoadOptions, Loaded};
use orb8_agent::ebpf::sys;

use crate::report::{self, Goal, Row, median};

const SAMPLES: usize = 15;
const RUNS: u32 = 200_000;
/// The limit at 1 000 flows; the other rows show the shape around it.
const GOAL_NS: f64 = 50.0;

/// A kind of packet.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    front: &'static str,
    pub(crate) packet: Vec<u8>,
}

pub(crate) fn cases() -> [Case; 3] {
    [
        Case { name: "ipv4", front: "bench_rotate_v4", packet: ipv4(6) },
        Case { name: "ipv6", front: "bench_rotate_v6", packet: ipv6() },
        Case { name: "udp", front: "bench_rotate_v4", packet: ipv4(17) },
    ]
}

fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut packet = vec![2; 12];
    packet.extend(ethertype.to_be_bytes());
    packet
}

/// 66 bytes: Ethernet, IPv4, and TCP with timestamps or UDP with 24 bytes.
fn ipv4(protocol: u8) -> Vec<u8> {
    let mut packet = ethernet(0x0800);
    packet.extend([0x45, 0, 0, 52, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(transport());
    packet
}

/// 86 bytes: Ethernet, IPv6 and TCP with timestamps.
fn ipv6() -> Vec<u8> {
    let mut packet = ethernet(0x86dd);
    packet.extend([0x60, 0, 0, 0, 0, 32, 6, 64]);
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(transport());
    packet
}

fn transport() -> [u8; 32] {
    let mut header = [0; 32];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    header[12] = 0x80;
    header[13] = 0x10;
    header
}

/// The programs in front, and the map that names the program behind.
struct Front {
    ebpf: Ebpf,
    target: ProgramArray<MapData>,
    rotation: Array<MapData, [u32; 2]>,
}

impl Front {
    fn load() -> anyhow::Result<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/bench-probes.o");
        let mut ebpf = EbpfLoader::new().load_file(path).with_context(|| format!("load {path}"))?;
        for name in ["bench_empty", "bench_rotate_v4", "bench_rotate_v6"] {
            Self::classifier(&mut ebpf, name)?.load()?;
        }
        let target = ebpf.take_map("TARGET").context("map TARGET")?.try_into()?;
        let rotation = ebpf.take_map("ROTATION").context("map ROTATION")?.try_into()?;
        Ok(Self { ebpf, target, rotation })
    }

    fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
        Ok(ebpf.program_mut(name).with_context(|| format!("program {name}"))?.try_into()?)
    }

    /// Nanoseconds of this thread's CPU per run.
    fn sample(&mut self, case: &Case, flows: u32, target: &ProgramFd) -> anyhow::Result<f64> {
        self.target.set(0, target, 0)?;
        self.rotation.set(0, [0, flows], 0)?;
        let front = Self::classifier(&mut self.ebpf, case.front)?;
        let before = cpu_ns();
        sys::test_run(front.fd()?.as_fd(), &case.packet, RUNS)?;
        Ok((cpu_ns() - before) / f64::from(RUNS))
    }

    fn empty(&mut self, case: &Case, flows: u32) -> anyhow::Result<f64> {
        let fd = Self::classifier(&mut self.ebpf, "bench_empty")?.fd()?.try_clone()?;
        self.target.set(0, &fd, 0)?;
        self.rotation.set(0, [0, flows], 0)?;
        let front = Self::classifier(&mut self.ebpf, case.front)?;
        let before = cpu_ns();
        sys::test_run(front.fd()?.as_fd(), &case.packet, RUNS)?;
        Ok((cpu_ns() - before) / f64::from(RUNS))
    }
}

pub(crate) fn cpu_ns() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

pub(crate) fn load_probes(planes: Planes) -> anyhow::Result<Loaded> {
    Ok(load::load(&LoadOptions {
        planes,
        max_flows: 100_000,
        memory_budget: 96 << 20,
        ring_bytes: 1 << 20,
        packet_ring_bytes: 1 << 16,
        fault_bytes: 0,
    })?)
}

/// Lines that hold a flow.
pub(crate) fn lines_in_use(loaded: &mut Loaded) -> anyhow::Result<u32> {
    let lines = &mut loaded.table.lines;
    lines.reach(lines.count())?;
    Ok(u32::try_from((0..lines.count()).filter(|slot| lines.copy(*slot).packets != 0).count())?)
}

fn measure(case: &Case, flows: u32, program: &str) -> anyhow::Result<(f64, f64)> {
    let mut front = Front::load()?;
    let mut loaded = load_probes(Planes::Tc)?;
    // Every flow has begun before the clock starts.
    let target = loaded.programs.classifier(program).context("the object")?.fd()?.try_clone()?;
    front.sample(case, flows, &target)?;
    let (mut probe, mut empty, mut net) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let without = front.empty(case, flows)?;
        let with = front.sample(case, flows, &target)?;
        net.push(with - without);
        probe.push(with);
        empty.push(without);
    }
    let held = lines_in_use(&mut loaded)?;
    ensure!(held == flows, "the table holds {held} flows, not {flows}");
    Ok((median(net), median(empty)))
}

/// Measures every packet kind at 1, 1 000 and 10 000 flows, in both directions.
pub(crate) fn run(rows: &mut Vec<Row>) {
    for case in cases() {
        for (flows, suffix) in [(1, "cached"), (1_000, "1k"), (10_000, "10k")] {
            for (program, direction) in [("orb8_in_eth", ""), ("orb8_out_eth", "_egress")] {
                let name = match (case.name, suffix) {
                    ("ipv4", "10k") => format!("tc_10k{direction}_ns"),
                    _ => format!("tc_{}_{suffix}{direction}_ns", case.name),
                };
                let goal = if flows == 1_000 { Goal::AtMost(GOAL_NS) } else { Goal::None };
                let row = match measure(&case, flows, program) {
                    Ok((net, empty)) => Row::new(name, net, "ns", goal).against(empty),
                    Err(error) => Row::failed(&name, "ns", &format!("{error:#}")),
                };
                report::print(&row);
                rows.push(row);
            }
        }
    }
}
