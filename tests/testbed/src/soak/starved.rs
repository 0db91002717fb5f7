//! An agent whose only CPU others want too, all of them before it.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::bed::{Bed, options};
use super::figures::Figures;
use super::flows::paced;
use super::{Load, Turn};
use crate::flood::{Flood, Small};
use crate::link::{Veth, VethOptions};

/// Processes that want the CPU all the time.
const GREEDY: usize = 6;
/// Their niceness: each has three times the weight of the agent.
const NICENESS: i32 = -5;
/// Packets a second, on as many flows.
const RATE: f64 = 50_000.0;
const FLOWS: u32 = 5_000;

pub(super) fn run(turn: &Turn<'_>) -> anyhow::Result<Figures> {
    let link = Veth::quiet(VethOptions::default());
    let options = options(&turn.options.agent, &link);
    let bed = Bed::start(link, &options)?;
    turn.overload(bed, |bed| {
        // A thread of its own, whose CPUs nobody has to give back.
        let load = std::thread::scope(|scope| scope.spawn(|| load(bed, turn.load)).join());
        load.map_err(|_told| anyhow::anyhow!("who starves it panicked"))?
    })
}

/// A process of no use; it ends with its handle.
struct Greedy(Child);

impl Drop for Greedy {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn load(bed: &Bed, time: Duration) -> anyhow::Result<Load> {
    let own = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| own.is_set(*cpu)).context("a CPU of ours")?;
    let mut only = CpuSet::new();
    only.set(first);
    confine(bed.pid(), &only)?;
    // Who sends is not to be starved, if there is another CPU.
    let mut others = own;
    others.unset(first);
    sched_setaffinity(None, if others.count() > 0 { &others } else { &own })?;
    let greedy: Vec<Greedy> = (0..GREEDY)
        .map(|_| {
            let mut command = bed.link.far.netns.command("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            let child = Greedy(command.spawn().context("a shell")?);
            let pid = Pid::from_child(&child.0);
            setpriority_process(Some(pid), NICENESS).context("a niceness below 0")?;
            sched_setaffinity(Some(pid), &only)?;
            Ok(child)
        })
        .collect::<anyhow::Result<_>>()?;
    let mut flood = Flood::open(&bed.link.far, &bed.link.near);
    let start = Instant::now();
    paced(&mut flood, RATE, FLOWS, |_| start.elapsed() < time, Small::unique);
    let to = Instant::now();
    drop(greedy);
    // All CPUs are the agent's again.
    confine(bed.pid(), &own)?;
    Ok(Load { to: Some(to), flows: Some(FLOWS.into()), ..Load::default() })
}

/// Keeps all threads of a process, and those that they will start, to some CPUs.
fn confine(pid: u32, cpus: &CpuSet) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread: i32 = entry?.file_name().to_string_lossy().parse()?;
        // A thread may have ended meanwhile.
        sched_setaffinity(Pid::from_raw(thread), cpus).ok();
    }
    Ok(())
}
