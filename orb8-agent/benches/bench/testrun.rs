//! Nanoseconds of the agent's programs per packet by test runs (BPF_PROG_TEST_RUN), each sample
//! between two of an empty program behind the same rotation of flows.
//!
//! The programs are those of a running agent, found on the hooks that it attached them to. So it drains
//! meanwhile, as it always does, and says in the end what it counted.

use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::programs::ProgramFd;
use aya::sys::{Stats, enable_stats};
use orb8_agent::ebpf::sys;
use orb8_proto::v1::QueryFlowsRequest;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_util::stats::median;

use crate::bed::{self, Bed, Cost};
use crate::cgroup::Cgroup;
use crate::packets::Kind;
use crate::programs::{self, Draw, Empty, Rotation, time};
use crate::report::{Goal, Report, Row};

/// Runs of one sample: some 5 ms.
const RUNS: u32 = 50_000;
/// Runs that bring what is drawn often to where it stays.
const RUNS_AHEAD: u32 = 200_000;
/// Machines that others use too are at times twice as slow for some milliseconds: a sample counts
/// only if the empty program took at most this much more on both sides of it than ever.
const DISTURBED: f64 = 1.06;
/// One in so many samples counts all the same, those nearest to that.
const LEAST_KEPT: usize = 6;
/// Flows that begin at once before the agent gets a moment to hear of them.
const BURST: u32 = 8_192;

fn samples(report: &Report) -> u32 {
    if report.quick { 9 } else { 61 }
}

/// One row at interfaces.
struct Case {
    name: String,
    kind: Kind,
    flows: u32,
    draw: Draw,
    /// 0: receiving, 1: sending.
    hook: usize,
    goal: f64,
}

fn cases() -> Vec<Case> {
    let shapes = [
        ("cached", 1, Draw::Same, 10.0),
        ("1k", 1_000, Draw::Uniform, 25.0),
        ("10k", 10_000, Draw::Uniform, 25.0),
        ("zipf131k", 1 << 17, Draw::OneOverRank, 110.0),
    ];
    let mut cases = Vec::new();
    for kind in Kind::all() {
        for (shape, flows, draw, goal) in shapes {
            for (hook, direction) in [(0, ""), (1, "_egress")] {
                let name = match (kind.name, shape) {
                    ("ipv4", "10k" | "zipf131k") => format!("tc_{shape}{direction}_ns"),
                    (kind, _) => format!("tc_{kind}_{shape}{direction}_ns"),
                };
                let kind = kind.clone();
                cases.push(Case { name, kind, flows, draw, hook, goal });
            }
        }
    }
    cases
}

/// Rows of the `tc` plane.
pub(crate) fn at_interfaces(report: &mut Report) {
    method(report);
    for case in cases() {
        report.measure(&[&case.name], |report| {
            let (net, empty) = at_interface(report, &case)?;
            Ok(vec![Row::new(&case.name, net, "ns", Goal::AtMost(case.goal)).against(empty)])
        });
    }
}

/// The empty program against itself is nothing, and a clock that is read is found: else no other
/// figure of this run means anything.
fn method(report: &mut Report) {
    for (name, goal) in
        [("method_empty_ns", Goal::Within(1.0)), ("method_clock_ns", Goal::AtLeast(5.0))]
    {
        report.measure(&[name], |report| {
            let kind = &Kind::all()[0];
            let mut rotation = Rotation::load(kind)?;
            rotation.begin(Draw::Uniform, 10_000)?;
            let program = if name == "method_clock_ns" { &rotation.clock } else { &rotation.empty };
            let program = program.try_clone()?;
            let (net, empty) = net_of_empty(report, &mut rotation, kind, &program)?;
            Ok(vec![Row::new(name, net, "ns", goal).against(empty)])
        });
    }
}

/// As [`net`], behind the rotation.
fn net_of_empty(
    report: &Report,
    rotation: &mut Rotation,
    kind: &Kind,
    program: &ProgramFd,
) -> anyhow::Result<(f64, f64)> {
    let empty = rotation.empty.try_clone()?;
    net(samples(report), |without| {
        rotation.time(if without { &empty } else { program }, &kind.packet, RUNS)
    })
}

/// Medians of: a program less the empty one, the empty one. `time` runs one of them, the empty one
/// if told so.
fn net(
    samples: u32,
    mut time: impl FnMut(bool) -> anyhow::Result<f64>,
) -> anyhow::Result<(f64, f64)> {
    let mut before = time(true)?;
    let mut all = Vec::new();
    for _ in 0..samples {
        let with = time(false)?;
        let after = time(true)?;
        all.push((before.max(after), f64::midpoint(before, after), with));
        before = after;
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let fastest = all.first().context("a sample")?.0;
    let undisturbed = all.partition_point(|(empty, ..)| *empty <= fastest * DISTURBED);
    all.truncate(undisturbed.max(all.len().div_ceil(LEAST_KEPT)));
    let (nets, empties): (Vec<f64>, Vec<f64>) =
        all.into_iter().map(|(_, empty, with)| (with - empty, empty)).unzip();
    Ok((median(&nets), median(&empties)))
}

fn at_interface(report: &mut Report, case: &Case) -> anyhow::Result<(f64, f64)> {
    let mut settings = vec![("ORB8_RING_BUFFER_SIZE", "8MiB".to_owned())];
    if 2 * case.flows > 100_000 {
        settings.push(("ORB8_MAX_FLOWS", (2 * case.flows).to_string()));
        settings.push(("ORB8_MEMORY_BUDGET", "1024MiB".to_owned()));
    }
    let bed = Bed::quiet(&settings)?;
    let program = bed::descriptors(Bed::at_interface(&bed.link.near)?)?[case.hook].try_clone()?;
    let (packet, netns) = (&case.kind.packet, &bed.link.near.netns);
    let mut rotation = Rotation::load(&case.kind)?;
    // Every flow has begun before the clock starts, and on the core that is measured.
    let last = programs::cpus()?.pop().context("a CPU")?;
    let first = if case.draw == Draw::Same { Draw::Same } else { Draw::InTurn };
    rotation.begin(first, case.flows)?;
    netns.enter(|| -> anyhow::Result<()> {
        programs::pin(last)?;
        for burst in (0..case.flows).step_by(BURST as usize) {
            rotation.time(&program, packet, BURST.min(case.flows - burst))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })?;
    bed.wait_flows(case.flows.into())?;
    // A drain makes room in the caches for the flows that it finds.
    bed.accounted(case.kind.amount(case.flows.into()))?;
    rotation.begin(case.draw, case.flows)?;
    let found = netns.enter(|| {
        programs::pin(last)?;
        // What is drawn often is where it stays before the clock starts.
        rotation.time(&program, packet, RUNS_AHEAD)?;
        net_of_empty(report, &mut rotation, &case.kind, &program)
    })?;
    let runs = u64::from(case.flows + RUNS_AHEAD) + u64::from(samples(report)) * u64::from(RUNS);
    let status = report.compare(&case.name, case.kind.amount(runs), &bed)?;
    let held = status.active_flows;
    ensure!(held == u64::from(case.flows), "the agent holds {held} flows, not {}", case.flows);
    if case.draw != Draw::Same {
        drawn_as_told(&bed, case, runs)?;
    }
    Ok(found)
}

/// The flow that came most often did so as often as its way of drawing says.
fn drawn_as_told(bed: &Bed, case: &Case, runs: u64) -> anyhow::Result<()> {
    let answer = bed.query(&QueryFlowsRequest { limit: 1, ..Default::default() })?;
    let most = answer.flows.first().context("a flow")?.packets as f64;
    let even = runs as f64 / f64::from(case.flows);
    // One over its rank: the first flow is drawn where the power of two lies below 2.
    let first = (runs - u64::from(case.flows)) as f64 / f64::from(case.flows.ilog2());
    let expected = match case.draw {
        Draw::OneOverRank => 0.9 * first..=1.1 * first,
        // Of few draws the busiest flow is further from the mean.
        _ => even..=(1.6 * even).max(even + 6.0 * even.sqrt()),
    };
    ensure!(expected.contains(&most), "the first flow has {most} packets, not {expected:?}");
    Ok(())
}

/// Rows of the socket plane. The kernel gives such a program no packet that may be written, so one
/// test run is one flow: the cached rows repeat one. The cold rows go through 1 000 with a system
/// call for each packet and take the time from the kernel's statistics, which surround the program
/// alone: what the call does in between drives the program out of the core's caches, so they are the
/// dearest case and have no goal.
pub(crate) fn at_sockets(report: &mut Report) {
    for kind in Kind::all() {
        for (flows, shape) in [(1, "cached"), (1_000, "1k_cold")] {
            for (hook, direction) in [(0, ""), (1, "_egress")] {
                let name = match (kind.name, shape) {
                    ("ipv4", "cached") => format!("socket_cached{direction}_ns"),
                    (kind, _) => format!("socket_{kind}_{shape}{direction}_ns"),
                };
                let goal = if flows == 1 { Goal::AtMost(15.0) } else { Goal::None };
                report.measure(&[&name], |report| {
                    let (net, empty) = at_socket(report, &name, &kind, flows, hook)?;
                    Ok(vec![Row::new(&name, net, "ns", goal).against(empty)])
                });
            }
        }
    }
}

fn at_socket(
    report: &mut Report,
    name: &str,
    kind: &Kind,
    flows: u32,
    hook: usize,
) -> anyhow::Result<(f64, f64)> {
    let tree = Cgroup::tree();
    // Test runs bear a socket of the caller's cgroup; below the plane's root it is somebody's.
    let owner = tree.child("owner");
    let bed = Bed::start(Veth::quiet(VethOptions::default()), &bed::at_sockets(tree.path()))?;
    let ids = Bed::at_cgroup(tree.path())?;
    let probe = bed::descriptors(ids)?[hook].try_clone()?;
    let (_empties, empty, empty_ids) = Empty::loaded_for_sockets()?;
    let sides = [(&empty[hook], empty_ids[hook]), (&probe, ids[hook])];
    let packets: Vec<_> = (0..flows).map(|n| kind.flow(n)).collect();
    let statistics = (flows > 1).then(|| enable_stats(Stats::RunTime)).transpose();
    let _enabled = statistics.context("enable the kernel's statistics")?;
    let last = programs::cpus()?.pop().context("a CPU")?;
    let count = samples(report);
    let found = owner.enter(|| {
        bed.link.near.netns.enter(|| -> anyhow::Result<_> {
            programs::pin(last)?;
            // Every flow has begun before the clock starts.
            packets.iter().try_for_each(|packet| one_run(&probe, packet))?;
            match packets.as_slice() {
                [one] => net(count, |without| {
                    let program = if without { &empty[hook] } else { &probe };
                    time(program.as_fd(), one, RUNS)
                }),
                many => {
                    let (mut nets, mut empties) = (Vec::new(), Vec::new());
                    for _ in 0..count {
                        let [without, with] = cold(sides, many)?;
                        nets.push(with - without);
                        empties.push(without);
                    }
                    Ok((median(&nets), median(&empties)))
                }
            }
        })
    })?;
    let each = if flows == 1 { u64::from(RUNS) } else { u64::from(flows) };
    let sent = kind.amount(u64::from(flows) + u64::from(count) * each);
    let status = report.compare(name, sent, &bed)?;
    ensure!(status.active_flows == u64::from(flows), "{} flows", status.active_flows);
    Ok(found)
}

fn one_run(program: &ProgramFd, packet: &[u8]) -> anyhow::Result<()> {
    sys::test_run(program.as_fd(), packet, 1)?;
    Ok(())
}

/// Both programs in turn over many packets, by the kernel's statistics.
fn cold(sides: [(&ProgramFd, u32); 2], packets: &[Vec<u8>]) -> anyhow::Result<[f64; 2]> {
    let before = [Cost::of(&[sides[0].1])?, Cost::of(&[sides[1].1])?];
    for packet in packets {
        sides.iter().try_for_each(|(program, _)| one_run(program, packet))?;
    }
    let cost = |side: usize| -> anyhow::Result<f64> {
        Ok(Cost::of(&[sides[side].1])?.since(before[side]).per_run())
    };
    Ok([cost(0)?, cost(1)?])
}

/// What a second core on the same flow makes of a core's cost.
pub(crate) fn contended(report: &mut Report) {
    const NAMES: [&str; 2] = ["contended_ratio", "contended_other_ratio"];
    report.measure(&NAMES, |report| {
        let cpus = programs::cpus()?;
        let [.., other, own] = cpus.as_slice() else {
            anyhow::bail!("this process may use {} CPU only", cpus.len());
        };
        let mut rows = Vec::new();
        for (name, goal, same) in
            [(NAMES[0], Goal::AtMost(1.2), true), (NAMES[1], Goal::None, false)]
        {
            let (alone, both) = contention(report, name, [*own, *other], same)?;
            rows.push(Row::new(name, both / alone, "ratio", goal).against(1.0));
            println!("    net of the empty program: alone {alone:.2} ns, both {both:.2} ns");
        }
        Ok(rows)
    });
}

/// Net nanoseconds of a run on one core, alone and while another core runs the same program, on the
/// same flow or on another.
fn contention(
    report: &mut Report,
    name: &str,
    cpus: [usize; 2],
    same_flow: bool,
) -> anyhow::Result<(f64, f64)> {
    let bed = Bed::quiet(&[])?;
    let program = bed::descriptors(Bed::at_interface(&bed.link.near)?)?[0].try_clone()?;
    let kind = Kind::all()[0].clone();
    let empty = Rotation::load(&kind)?.empty.try_clone()?;
    let own = kind.flow(1);
    let other = if same_flow { own.clone() } else { kind.flow(2) };
    let netns = &bed.link.near.netns;
    let (mut alone, mut both, mut runs) = (Vec::new(), Vec::new(), 0);
    for _ in 0..2 * samples(report) {
        let mut nets = [0.0; 2];
        for (side, beside) in [false, true].into_iter().enumerate() {
            for (program, sign) in [(&empty, -1.0), (&program, 1.0)] {
                let (ns, ran) =
                    netns.enter(|| beside_another(program, [&own, &other], cpus, beside))?;
                nets[side] += sign * ns;
                runs += if sign > 0.0 { ran } else { 0 };
            }
        }
        alone.push(nets[0]);
        both.push(nets[1]);
    }
    report.compare(name, kind.amount(runs), &bed)?;
    Ok((median(&alone), median(&both)))
}

/// Nanoseconds of a run on the first CPU, with the second one busy with the same program or not; and
/// the runs of both.
fn beside_another(
    program: &ProgramFd,
    packets: [&[u8]; 2],
    cpus: [usize; 2],
    beside: bool,
) -> anyhow::Result<(f64, u64)> {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const CHUNK: u32 = 10_000;
    let (stop, ran) = (AtomicBool::new(!beside), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| -> anyhow::Result<()> {
            programs::pin(cpus[1])?;
            while !stop.load(Ordering::Relaxed) {
                sys::test_run(program.as_fd(), packets[1], CHUNK)?;
                ran.fetch_add(CHUNK.into(), Ordering::Relaxed);
            }
            Ok(())
        });
        programs::pin(cpus[0])?;
        while beside && ran.load(Ordering::Relaxed) == 0 && !other.is_finished() {
            std::thread::yield_now();
        }
        let ns = time(program.as_fd(), packets[0], RUNS);
        stop.store(true, Ordering::Relaxed);
        other.join().map_err(|_panic| anyhow::anyhow!("the other core's thread panicked"))??;
        Ok((ns?, u64::from(RUNS) + ran.load(Ordering::Relaxed)))
    })
}
