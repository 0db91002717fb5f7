//! How the agent stays within its budgets: what it gives up, in which order, and when it takes it back.
//!
//! The judge here is pure: it is told what was measured over an interval and says what is given up from
//! then on. Nothing here ever touches what flows count; what is given up is time between drains, early
//! word of some events, packets of the packet view, and how long ended flows are kept.

use std::time::Duration;

use crate::datapath::RingFill;
use crate::pipeline::on_demand::Drains;

mod board;
mod ladder;
mod meter;
mod room;
mod source;

pub use board::{Board, State};
use ladder::{Ladder, Load, Step};
pub use meter::{Basis, Meter};
pub use room::{BASE_BYTES, FLOW_BYTES, flows_within, has_room, is_large};
pub use source::{GovernorSource, Hands};

/// What the agent may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budgets {
    /// Of all the node's CPUs together, 0 to 1 (ORB8_CPU_BUDGET).
    pub cpu: f64,
    /// Bytes, resident and maps (ORB8_MEMORY_BUDGET).
    pub memory_bytes: u64,
    /// Of a ring, 0 to 1 (ORB8_SAMPLING_THRESHOLD).
    pub ring: f64,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { cpu: 0.01, memory_bytes: 96 << 20, ring: 0.8 }
    }
}

/// What was measured over an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// How long it was.
    pub interval: Duration,
    /// The node's CPUs.
    pub cpus: u32,
    /// CPU time of the agent's threads.
    pub user: Duration,
    /// CPU time of the programs in the kernel.
    pub programs: Duration,
    /// That time was measured; else it was worked out of the rate that the last drain told.
    pub exact: bool,
    /// Bytes, resident and maps, at its end.
    pub memory_bytes: u64,
    /// A drain has begun in it: without one, nothing new is known of what programs and drains cost.
    pub drained: bool,
}

impl Measured {
    /// This interval and one before it as one. A rate that was not measured is that of the whole: the
    /// last drain tells what passed since the one before it.
    #[must_use]
    pub fn with(self, before: &Self) -> Self {
        let interval = self.interval.saturating_add(before.interval);
        let programs = if self.exact || self.interval.is_zero() {
            self.programs.saturating_add(before.programs)
        } else {
            self.programs.mul_f64(interval.as_secs_f64() / self.interval.as_secs_f64())
        };
        Self { interval, programs, user: self.user.saturating_add(before.user), ..self }
    }

    /// A time as a share of what the node's CPUs had; 0 for an interval of no length.
    #[must_use]
    pub fn share(&self, time: Duration) -> f64 {
        let had = self.interval.as_secs_f64() * f64::from(self.cpus.max(1));
        if had > 0.0 { time.as_secs_f64() / had } else { 0.0 }
    }

    /// CPU time of agent and programs, as [`Self::share`].
    #[must_use]
    pub fn cpu(&self) -> f64 {
        self.share(self.user.saturating_add(self.programs))
    }
}

/// What is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// So many intervals pass between drains.
    pub intervals: u32,
    /// Starts of flows that no SYN opens are left to the drain.
    pub fewer_events: bool,
    /// Of packets of the packet view that are not critical, one of so many is told.
    pub sampling: u32,
    /// Ended flows are kept for one part in so many of the set time; 0: not at all.
    pub history_part: u32,
}

impl Given {
    /// Nothing is given up.
    pub const NOTHING: Self =
        Self { intervals: 1, fewer_events: false, sampling: 1, history_part: 1 };

    /// How long ended flows are kept, where so long is set.
    #[must_use]
    pub fn history(&self, set: Duration) -> Duration {
        set.checked_div(self.history_part).unwrap_or(Duration::ZERO)
    }
}

/// What is given up for CPU time, in the order in which it is: intervals, fewer events, sampling. Each
/// step halves at most what costs most.
const CPU_STEPS: [(u32, bool, u32); 9] = [
    (1, false, 1),
    (2, false, 1),
    (4, false, 1),
    (4, true, 1),
    (4, true, 2),
    (4, true, 4),
    (4, true, 8),
    (4, true, 16),
    (4, true, 32),
];

/// No more intervals than this pass between drains, whatever is given up.
pub const MOST_INTERVALS: u32 = 4;

/// The part of the history that is kept, for memory.
const HISTORY_PARTS: [u32; 4] = [1, 2, 4, 0];

/// Doublings of the sampling for a ring of packets that fills.
const DOUBLINGS: usize = orb8_common::sample::MAX_ONE_IN.ilog2() as usize;

/// Taking a step back may double the cost, so less than this part of a budget must be used before.
const CALM: f64 = 0.45;
/// The same of memory, which does not double when more flows are kept.
const MEMORY_CALM: f64 = 0.9;
/// Memory comes back late or not at all, so another step is taken only when it has grown by this part of
/// its budget since the last.
const MEMORY_GROWTH: u64 = 64;

/// Which budget a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// The ring of lifecycle events was nearly full.
    EventRing,
    /// The ring of the packet view was nearly full.
    PacketRing,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::EventRing, Self::PacketRing];

    /// The word that status uses.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::EventRing => "event_ring",
            Self::PacketRing => "packet_ring",
        }
    }
}

/// A step was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// For which budget.
    pub cause: Cause,
    /// It has been calm, and something is taken back.
    pub back: bool,
    /// It changes what is given up; otherwise that is given up for another budget too.
    pub felt: bool,
}

/// Holds the budgets.
#[derive(Clone, Debug)]
pub struct Governor {
    budgets: Budgets,
    cpu_steps: Vec<(u32, bool, u32)>,
    history_parts: Vec<u32>,
    cpu: Ladder,
    memory: Ladder,
    events: Ladder,
    packets: Ladder,
    /// Since CPU time was judged last; none: nothing yet.
    unjudged: Option<Measured>,
    /// The part of the node's CPU time that was judged last.
    judged_cpu: f64,
    /// Memory when the last step was taken for it, in either direction.
    memory_before: u64,
}

impl Governor {
    /// Nothing given up yet, of so much time between drains and so long a history; something is taken
    /// back when it has been calm for so long. Steps that would change nothing are left out.
    #[must_use]
    pub fn new(
        budgets: Budgets,
        calm_for: Duration,
        drain_interval: Duration,
        history: Duration,
    ) -> Self {
        let mut cpu_steps = CPU_STEPS.to_vec();
        cpu_steps.dedup_by_key(|(intervals, fewer_events, sampling)| {
            (Drains::stretched_by(drain_interval, *intervals), *fewer_events, *sampling)
        });
        let mut history_parts = HISTORY_PARTS.to_vec();
        history_parts
            .dedup_by_key(|part| Given { history_part: *part, ..Given::NOTHING }.history(history));
        Self {
            budgets,
            cpu: Ladder::new(cpu_steps.len() - 1, calm_for),
            memory: Ladder::new(history_parts.len() - 1, calm_for),
            cpu_steps,
            history_parts,
            events: Ladder::new(1, calm_for),
            packets: Ladder::new(DOUBLINGS, calm_for),
            unjudged: None,
            judged_cpu: 0.0,
            memory_before: 0,
        }
    }

    /// What is given up now.
    #[must_use]
    pub fn given(&self) -> Given {
        let (intervals, fewer_events, sampling) = self.cpu_steps[self.cpu.step()];
        Given {
            intervals,
            fewer_events: fewer_events || self.events.step() > 0,
            sampling: sampling.max(1 << self.packets.step()),
            history_part: self.history_parts[self.memory.step()],
        }
    }

    /// How many steps are taken now.
    #[must_use]
    pub const fn level(&self) -> usize {
        self.cpu.step() + self.memory.step() + self.events.step() + self.packets.step()
    }

    /// How many of them are taken for a budget.
    #[must_use]
    pub const fn steps_for(&self, cause: Cause) -> usize {
        match cause {
            Cause::Cpu => self.cpu.step(),
            Cause::Memory => self.memory.step(),
            Cause::EventRing => self.events.step(),
            Cause::PacketRing => self.packets.step(),
        }
    }

    /// Judges CPU time and memory of an interval: for each one step further at once if its budget was
    /// exceeded, one step back after a while of calm. CPU time is judged when a drain has begun since
    /// it was judged last: that is what shows what a step has done.
    pub fn judge_load(&mut self, measured: &Measured) -> impl Iterator<Item = Change> + use<> {
        let before = self.given();
        let cpu = self.judge_cpu(measured);
        let between = self.given();
        let memory = self.load_of_memory(measured.memory_bytes);
        let memory = self.memory.judge(memory, measured.interval);
        if memory.is_some() {
            self.memory_before = measured.memory_bytes;
        }
        let after = self.given();
        changes([(Cause::Cpu, cpu, between != before), (Cause::Memory, memory, after != between)])
    }

    fn judge_cpu(&mut self, measured: &Measured) -> Option<Step> {
        let whole = self.unjudged.take().map_or(*measured, |before| measured.with(&before));
        if !measured.drained {
            self.unjudged = Some(whole);
            return None;
        }
        self.judged_cpu = whole.cpu();
        self.cpu.judge(Load::of(whole.cpu(), self.budgets.cpu, CALM), whole.interval)
    }

    /// The part of the node's CPU time that was judged last.
    #[must_use]
    pub const fn judged_cpu(&self) -> f64 {
        self.judged_cpu
    }

    /// Judges how full the rings were at the most, over so long.
    pub fn judge_rings(
        &mut self,
        fill: RingFill,
        interval: Duration,
    ) -> impl Iterator<Item = Change> + use<> {
        let events = Load::of(fill.events, self.budgets.ring, CALM);
        let packets = Load::of(fill.packets, self.budgets.ring, CALM);
        let before = self.given();
        let events = self.events.judge(events, interval);
        let between = self.given();
        let packets = self.packets.judge(packets, interval);
        let after = self.given();
        changes([
            (Cause::EventRing, events, between != before),
            (Cause::PacketRing, packets, after != between),
        ])
    }

    /// Gives up nothing more for the ring of packets: the view is closed that filled it.
    pub fn close_packets(&mut self) -> Option<Change> {
        let before = self.given();
        let step = self.packets.reset();
        let felt = self.given() != before;
        step.map(|_back| Change { cause: Cause::PacketRing, back: true, felt })
    }

    /// Whether a ring is over the threshold, and something can be given up for it.
    #[must_use]
    pub fn is_pressed(&self, fill: RingFill) -> bool {
        let over = |fill: f64, ladder: &Ladder| fill > self.budgets.ring && !ladder.is_at_end();
        over(fill.events, &self.events) || over(fill.packets, &self.packets)
    }

    fn load_of_memory(&self, bytes: u64) -> Load {
        let budget = self.budgets.memory_bytes;
        let grown = bytes > self.memory_before.saturating_add(budget / MEMORY_GROWTH);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^53 bytes")]
        match Load::of(bytes as f64, budget as f64, MEMORY_CALM) {
            Load::Over if self.memory.step() > 0 && !grown => Load::Within,
            load => load,
        }
    }
}

fn changes(steps: [(Cause, Option<Step>, bool); 2]) -> impl Iterator<Item = Change> + use<> {
    steps.into_iter().filter_map(|(cause, step, felt)| {
        step.map(|step| Change { cause, back: step == Step::Back, felt })
    })
}

#[cfg(test)]
mod programs;
#[cfg(test)]
mod tests;
