//! The benchmark's own programs: the empty ones, the one of known cost, and those in front that make
//! each run another flow. And how a run of any program is timed.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{CgroupSkb, ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use orb8_agent::ebpf::sys;
use orb8_testbed::link::Port;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::packets::Kind;

fn object() -> anyhow::Result<Ebpf> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/bench-probes.o");
    EbpfLoader::new().load_file(path).with_context(|| format!("load {path}"))
}

/// A classifier of the benchmark's.
pub(crate) fn classifier(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<ProgramFd> {
    let program = ebpf.program_mut(name).with_context(|| format!("program {name}"))?;
    let program: &mut SchedClassifier = program.try_into()?;
    program.load()?;
    Ok(program.fd()?.try_clone()?)
}

/// A program of the benchmark's at sockets, and its id.
pub(crate) fn at_sockets(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<(ProgramFd, u32)> {
    let program = ebpf.program_mut(name).with_context(|| format!("program {name}"))?;
    let program: &mut CgroupSkb = program.try_into()?;
    program.load()?;
    Ok((program.fd()?.try_clone()?, program.info()?.id()))
}

/// How the next flow is drawn; the numbers are those of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draw {
    /// One flow.
    Same = 0,
    InTurn = 1,
    Uniform = 2,
    OneOverRank = 3,
}

/// The programs in front, and the map that names the program behind.
pub(crate) struct Rotation {
    front: ProgramFd,
    pub(crate) empty: ProgramFd,
    /// Does nothing but read the clock.
    pub(crate) clock: ProgramFd,
    target: ProgramArray<MapData>,
    state: Array<MapData, [u32; 4]>,
    // Keeps what the others refer to.
    _ebpf: Ebpf,
}

impl Rotation {
    pub(crate) fn load(kind: &Kind) -> anyhow::Result<Self> {
        let mut ebpf = object()?;
        let front = classifier(&mut ebpf, kind.front)?;
        let empty = classifier(&mut ebpf, "bench_empty")?;
        let clock = classifier(&mut ebpf, "bench_clock")?;
        let target = ebpf.take_map("TARGET").context("map TARGET")?.try_into()?;
        let state = ebpf.take_map("ROTATION").context("map ROTATION")?.try_into()?;
        Ok(Self { front, empty, clock, target, state, _ebpf: ebpf })
    }

    /// From the first flow on.
    pub(crate) fn begin(&mut self, draw: Draw, flows: u32) -> anyhow::Result<()> {
        ensure!(draw != Draw::OneOverRank || flows.is_power_of_two(), "{flows} flows");
        let state = if draw == Draw::InTurn { 0 } else { 0x6f72_6238 };
        Ok(self.state.set(0, [state, flows, draw as u32, flows.ilog2()], 0)?)
    }

    /// Nanoseconds of this thread's CPU per run of `target`, behind the rotation.
    pub(crate) fn time(
        &mut self,
        target: &ProgramFd,
        packet: &[u8],
        runs: u32,
    ) -> anyhow::Result<f64> {
        self.target.set(0, target, 0)?;
        time(self.front.as_fd(), packet, runs)
    }
}

/// Nanoseconds of this thread's CPU per run.
pub(crate) fn time(program: BorrowedFd<'_>, packet: &[u8], runs: u32) -> anyhow::Result<f64> {
    let before = cpu_ns();
    sys::test_run(program, packet, runs)?;
    Ok((cpu_ns() - before) / f64::from(runs))
}

fn cpu_ns() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

/// Numbers of the CPUs that this process may use.
pub(crate) fn cpus() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Keeps this thread, and those that it starts, on one CPU.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Empty programs on the hooks of an interface or of a cgroup; gone when dropped.
pub(crate) struct Empty {
    /// Ids: receiving, sending.
    pub(crate) ids: [u32; 2],
    _links: [OwnedFd; 2],
    _ebpf: Ebpf,
}

impl Empty {
    pub(crate) fn at_interface(port: &Port) -> anyhow::Result<Self> {
        let mut ebpf = object()?;
        let empty = classifier(&mut ebpf, "bench_empty")?;
        let attach =
            |hook| port.netns.enter(|| sys::tcx_attach(empty.as_fd(), port.ifindex, hook, None));
        let links = [attach(sys::BPF_TCX_INGRESS)?, attach(sys::BPF_TCX_EGRESS)?];
        let ids = crate::bed::Bed::at_interface(port)?;
        Ok(Self { ids, _links: links, _ebpf: ebpf })
    }

    pub(crate) fn at_cgroup(directory: &Path) -> anyhow::Result<Self> {
        let mut ebpf = object()?;
        let cgroup = File::open(directory)?;
        let (receiving, first) = at_sockets(&mut ebpf, "bench_empty_in")?;
        let (sending, second) = at_sockets(&mut ebpf, "bench_empty_out")?;
        let attach =
            |program: &ProgramFd, hook| sys::cgroup_attach(program.as_fd(), cgroup.as_fd(), hook);
        let links = [
            attach(&receiving, sys::BPF_CGROUP_INET_INGRESS)?,
            attach(&sending, sys::BPF_CGROUP_INET_EGRESS)?,
        ];
        Ok(Self { ids: [first, second], _links: links, _ebpf: ebpf })
    }

    /// Not attached, to be run.
    pub(crate) fn loaded_for_sockets() -> anyhow::Result<(Ebpf, [ProgramFd; 2], [u32; 2])> {
        let mut ebpf = object()?;
        let (receiving, first) = at_sockets(&mut ebpf, "bench_empty_in")?;
        let (sending, second) = at_sockets(&mut ebpf, "bench_empty_out")?;
        Ok((ebpf, [receiving, sending], [first, second]))
    }
}
