//! Nothing is lost or told twice where the counting code is interrupted by itself at any
//! instruction, while caches overflow all the time, or grow, and lines are drained and go out of use.
//!
//! The programs are those of `orb8-probes/src/nest.rs`: they note for themselves what they count.

use std::collections::HashMap;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::{MapData, MapInfo, PerCpuArray};
use aya::programs::PerfEvent;
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use orb8_agent::capture::Planes;
use orb8_agent::ebpf::clock::Clock;
use orb8_agent::ebpf::cpus::{self, Cached, Cpus};
use orb8_agent::ebpf::exchange;
use orb8_agent::ebpf::grace::Grace;
use orb8_agent::ebpf::lines::{LineSource, LineTimes};
use orb8_agent::ebpf::load::{self, LoadOptions, Programs};
use orb8_agent::ebpf::mapping::Mapping;
use orb8_agent::ebpf::side_channel::SideChannel;
use orb8_agent::ebpf::sys;
use orb8_agent::event::{Counters, DrainReport, Event, FlowId};
use orb8_agent::pipeline::source::EventSource as _;
use orb8_common::cache::{self, CachedLine, CpuBlock, FRESH_TICKS, MIN_SETS};
use orb8_common::counter::{self, Lost, Reject};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// As in the programs.
const FLOWS: usize = 1024;
/// Indices of the programs' map `STATE`.
const NESTED: usize = 1;
const RUNS: usize = 2;

/// How long it goes on at most if not all has happened by then that should.
const AT_MOST: Duration = Duration::from_secs(40);
/// A memory budget with which caches stay the smallest there are.
const SMALLEST: u64 = 1;
/// One with which they grow with the flows, on as many as 682 CPUs.
const GROWING: u64 = 1 << 30;
/// Interrupts of a program that counts, with which plain stores go wrong several times.
const ENOUGH: u64 = 20_000;
/// How often caches are to grow. They begin with room for one group of flows.
const GROWTHS: usize = 2;
/// Interrupts a second on each CPU, where the kernel allows so many.
const RATE: u64 = 50_000;
/// Packets in one system call: some milliseconds.
const BATCH: u32 = 10_000;

/// Packets and bytes.
type Pair = [u64; 2];
/// What one of the programs notes of each flow.
type Notes = PerCpuArray<MapData, [Pair; FLOWS]>;

/// The CPUs are needed as a whole.
static ALONE: Mutex<()> = Mutex::new(());

/// The programs of a run, and how it goes.
struct Pairing {
    outer: &'static str,
    timer: &'static str,
    memory_budget: u64,
    /// How long it goes on.
    at_least: Duration,
}

/// The programs and what they note.
struct Nest {
    programs: Programs,
    outer: Notes,
    timer: Notes,
    state: PerCpuArray<MapData, [u64; 8]>,
    caches: Caches,
    source: LineSource,
}

/// What came out of a run.
#[derive(Default)]
struct Outcome {
    told: HashMap<FlowId, Pair>,
    report: DrainReport,
    /// What the programs noted.
    noted: Vec<Pair>,
    /// The first time that more of a flow was told than there is.
    too_much: Option<String>,
    /// Each mask that the caches had, and how many packets were noted when it was first seen.
    masks: Vec<(u32, u64)>,
    evicted: u64,
    released: u64,
    drains: u64,
    /// Interrupts of a program that counted, on each CPU.
    nested: Vec<u64>,
}

/// Part of the test program, which then also runs where nothing is built.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nest-probes.o"));

impl Nest {
    /// With lines that go out of use as soon as they may.
    fn load(pairing: &Pairing) -> Self {
        let options = LoadOptions {
            planes: Planes::Tc,
            max_flows: 4096,
            memory_budget: pairing.memory_budget,
            ring_bytes: 64 * 1024,
            packet_ring_bytes: 64 * 1024,
            fault_bytes: 0,
        };
        let needed = [pairing.outer, pairing.timer, "orb8_clock"];
        let mut loaded = load::load_object(OBJECT, &options, |name| needed.contains(&name))
            .unwrap_or_else(|e| panic!("the programs load: {e}"));
        let clock = loaded.programs.duplicate("orb8_clock").expect("a descriptor");
        let clock = Clock::new(clock, loaded.clock).expect("the clocks can be read");
        let times = LineTimes {
            drain_interval: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            linger: Duration::ZERO,
        };
        let grace = Grace::start().expect("BPF can be used");
        let side = Arc::new(SideChannel::default());
        let object = loaded.programs.object().expect("not yet forgotten");
        let program = object.program(pairing.outer).expect("a program");
        let caches = Caches::of(program, pairing.memory_budget);
        let mut map = |name: &str| object.take_map(name).expect("a map of the object");
        Self {
            outer: map("OUTER").try_into().expect("an array of each CPU"),
            timer: map("TIMER").try_into().expect("an array of each CPU"),
            state: map("STATE").try_into().expect("an array of each CPU"),
            caches,
            source: LineSource::new(loaded.table, clock, grace, times, side),
            programs: loaded.programs,
        }
    }

    /// Interrupts these CPUs until the object is forgotten.
    fn interrupt(&mut self, timer: &str, cpus: &[usize]) {
        let object = self.programs.object().expect("not yet forgotten");
        let program: &mut PerfEvent =
            object.program_mut(timer).expect("a program").try_into().expect("of perf events");
        let allowed = std::fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let rate = RATE.min(allowed.unwrap_or(RATE));
        for &cpu in cpus {
            let cpu = u32::try_from(cpu).expect("a number of a CPU");
            program
                .attach(
                    PerfEventConfig::Software(SoftwareEvent::CpuClock),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Period(1_000_000_000 / rate),
                    false,
                )
                .expect("root may watch a CPU");
        }
    }

    /// A value of `STATE` on each of some CPUs.
    fn each(&self, cpus: &[usize], at: usize) -> Vec<u64> {
        let state = self.state.get(&0, 0).expect("one value");
        cpus.iter().map(|&cpu| state[cpu][at]).collect()
    }

    /// What both programs noted of each flow, on all CPUs together.
    fn noted(&self) -> Vec<Pair> {
        let mut sums = vec![[0; 2]; FLOWS];
        for notes in [&self.outer, &self.timer] {
            for of_cpu in notes.get(&0, 0).expect("one value").iter() {
                for (sum, [packets, bytes]) in sums.iter_mut().zip(of_cpu) {
                    sum[0] += packets;
                    sum[1] += bytes;
                }
            }
        }
        sums
    }

    fn take(&mut self, events: &mut Vec<Event>, outcome: &mut Outcome) {
        for event in events.drain(..) {
            match event {
                Event::Count(count) => {
                    let told = outcome.told.entry(count.id).or_default();
                    told[0] += count.packets;
                    told[1] += count.bytes;
                }
                Event::Released(_) => outcome.released += 1,
                Event::Drained(report) => {
                    outcome.drains += 1;
                    outcome.report = *report;
                    outcome.evicted += self.caches.evicted();
                    outcome.noted = self.noted();
                    outcome.look_for_too_much();
                    outcome.look_for_growth(self.caches.mask());
                }
                _ => {}
            }
        }
    }

    /// Drains without a pause while `cpus` count, for as long as `go_on` says.
    fn drain(&mut self, outcome: &mut Outcome, go_on: impl Fn(&Self, &Outcome) -> bool) {
        let mut events = Vec::new();
        while go_on(self, outcome) {
            self.source.collect(Instant::now(), &mut events).expect("lines can be read");
            self.take(&mut events, outcome);
        }
    }

    /// Reads what is left when everybody has ended.
    fn finish(mut self, mut outcome: Outcome) -> Outcome {
        self.programs.forget_object();
        let mut events = Vec::new();
        self.source.finish(&mut events).expect("lines can be read");
        self.take(&mut events, &mut outcome);
        outcome
    }
}

/// Where a block has its mask: the line, and the offset there.
#[expect(clippy::cast_possible_truncation, reason = "within a page")]
const MASK: (u32, usize) = {
    let byte = offset_of!(CpuBlock, mask);
    ((byte / size_of::<CachedLine>()) as u32, byte % size_of::<CachedLine>())
};

/// The caches, looked at beside the drain.
struct Caches {
    cpus: Cpus,
    held: Vec<Option<Cached>>,
    /// The first CPU's block: all of them have one mask.
    first: Mapping<CachedLine>,
}

impl Caches {
    fn of(program: &aya::programs::Program, memory_budget: u64) -> Self {
        let ids = program.info().and_then(|info| info.map_ids()).expect("a loaded program");
        let maps = ids.expect("kernels say so").into_iter();
        let map = maps
            .map(|id| MapInfo::from_id(id).expect("a map that is in use"))
            .find(|map| map.name_as_str() == Some("CPUS"))
            .expect("the programs use it");
        let possible = std::fs::read_to_string(cpus::POSSIBLE).expect("the kernel tells");
        let possible = cpus::highest(&possible).expect("ranges");
        let usable = exchange::is_known().expect("the kernel takes programs");
        let sets = if usable { cpus::sets(possible, memory_budget) } else { MIN_SETS };
        let fd = map.fd().expect("root may");
        let cpus = Cpus::new(fd.as_fd(), possible, sets, usable).expect("it can be mapped");
        let held = vec![None; cpus.count() as usize];
        let mut first = Mapping::new(fd.as_fd(), MASK.0 + 1).expect("a descriptor");
        first.reach(MASK.0 + 1).expect("it can be mapped");
        Self { cpus, held, first }
    }

    fn mask(&self) -> u32 {
        self.first.word32(MASK.0, MASK.1).load(Ordering::Acquire)
    }

    /// How many lines hold another flow than at the last look, for which a program has moved what
    /// they held to the table: user space takes none away that had a packet as lately as these.
    fn evicted(&mut self) -> u64 {
        let mut evicted = 0;
        for (number, before) in (0..).zip(&mut self.held) {
            let now = self.cpus.read(number);
            if let (Some(before), Some(now)) = (&before, &now)
                && before.slot != now.slot
                && now.last_seen.wrapping_sub(before.last_seen) < FRESH_TICKS
            {
                evicted += 1;
            }
            *before = now;
        }
        evicted
    }
}

/// The number of a flow, if it is one of those that the programs count.
fn number(id: &FlowId) -> Option<usize> {
    let key = &id.key;
    let ends = (key.src[3].to_ne_bytes(), key.dst[3].to_ne_bytes());
    let flow = usize::from(u16::from_be_bytes(key.src_port));
    let known = ends == ([10, 0, 0, 1], [10, 0, 0, 2]) && key.dst_port == [0, 53];
    (known && flow < FLOWS).then_some(flow)
}

impl Outcome {
    /// It was tried often enough to mean something.
    fn assert_interrupted(&self) {
        let nested: u64 = self.nested.iter().sum();
        assert!(nested >= ENOUGH, "interrupted {nested} times, which are too few to tell");
    }

    /// What was told, by the number of the flow; whatever is no flow of the programs is the last.
    fn sums(&self) -> Vec<Pair> {
        let mut sums = vec![[0; 2]; FLOWS + 1];
        for (id, told) in &self.told {
            let sum = &mut sums[number(id).unwrap_or(FLOWS)];
            sum[0] += told[0];
            sum[1] += told[1];
        }
        sums
    }

    /// What was told must have been noted by then.
    fn look_for_too_much(&mut self) {
        if self.too_much.is_some() {
            return;
        }
        for (flow, (told, noted)) in self.sums().iter().zip(&self.noted).enumerate() {
            if told[0] > noted[0] || told[1] > noted[1] {
                self.too_much = Some(format!("{flow}: told {told:?} of {noted:?}"));
            }
        }
    }

    fn look_for_growth(&mut self, mask: u32) {
        if self.masks.last().is_none_or(|&(before, _)| before != mask) {
            self.masks.push((mask, self.packets()));
        }
    }

    /// The caches have grown, and packets have come after it.
    fn counted_on(&self) -> bool {
        self.masks.get(GROWTHS).is_some_and(|&(_, packets)| packets < self.packets())
    }

    /// All packets that were noted.
    fn packets(&self) -> u64 {
        self.noted.iter().map(|&[packets, _]| packets).sum()
    }

    /// Every flow has what was noted, and never had more.
    fn assert_exact(&self) {
        assert_eq!(self.wrong(), [""; 0], "flows of {FLOWS}");
        assert_eq!(self.too_much, None, "more was told than there was");
        assert!(self.nested.iter().all(|&nested| nested > 0), "{:?}", self.nested);
        self.assert_interrupted();
        assert!(self.released > 0, "no line went out of use");
        let Counters(counters) = &self.report.after;
        let seen = [counters[counter::SEEN_PACKETS], counters[counter::SEEN_BYTES]];
        assert_eq!((self.total(), self.left_out()), (seen, 0), "counted, and left out");
    }

    /// The flows of which something else was told than was noted.
    fn wrong(&self) -> Vec<String> {
        let sums = self.sums();
        let noted = self.noted.iter().chain([&[0; 2]]);
        let wrong = sums.iter().zip(noted).enumerate().filter(|(_, (told, noted))| told != noted);
        wrong.map(|(flow, (told, noted))| format!("{flow}: {told:?} of {noted:?}")).collect()
    }

    fn total(&self) -> Pair {
        self.sums().iter().fold([0; 2], |sum, [packets, bytes]| [sum[0] + packets, sum[1] + bytes])
    }

    /// What the ledger says was neither counted nor could be.
    fn left_out(&self) -> u64 {
        let Counters(counters) = &self.report.after;
        let lost = Lost::ALL.iter().map(|&why| counters[counter::LOST + 2 * why as usize]);
        let rejected = Reject::ALL.iter().map(|&w| counters[counter::REJECTED + 2 * w as usize]);
        lost.chain(rejected).sum()
    }
}

/// The first two CPUs on which we may run.
fn two_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("every thread may ask");
    (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).take(2).collect()
}

/// Stays on one CPU.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("a CPU on which we may run");
}

/// 66 bytes: Ethernet, IPv4, UDP to port 53.
fn packet() -> Vec<u8> {
    let mut packet = vec![2; 12];
    packet.extend([0x08, 0]);
    packet.extend([0x45, 0, 0, 52, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([0, 0, 0, 53, 0, 32, 0, 0]);
    packet.extend([0; 24]);
    packet
}

/// Tells whoever counts to stop, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets this thread go before what else runs on the machine, which leaves it little time.
fn hurry() {
    // SAFETY: takes no pointers. Without a number it is this thread.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) } != 0;
    assert!(!refused, "root may: {}", std::io::Error::last_os_error());
}

fn count_until(program: &OwnedFd, cpu: usize, stop: &AtomicBool) {
    pin(cpu);
    hurry();
    let packet = packet();
    while !stop.load(Ordering::Relaxed) {
        sys::test_run(program.as_fd(), &packet, BATCH).expect("the program runs");
    }
}

/// Counts on two CPUs, interrupted and drained all the time, until all of that has happened often
/// enough.
#[expect(clippy::print_stdout, reason = "the harness shows it where the test fails")]
fn run(pairing: &Pairing) -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cpus = two_cpus();
    let cached = exchange::is_known().expect("the kernel takes programs");
    let mut nest = Nest::load(pairing);
    nest.interrupt(pairing.timer, &cpus);
    let program = nest.programs.duplicate(pairing.outer).expect("a descriptor");
    let stop = AtomicBool::new(false);
    let mut outcome = Outcome::default();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for &cpu in &cpus {
            let (program, stop) = (&program, &stop);
            scope.spawn(move || count_until(program, cpu, stop));
        }
        hurry();
        let begin = Instant::now();
        nest.drain(&mut outcome, |nest, outcome| {
            let nested = nest.each(&cpus, NESTED);
            let happened = nested.iter().all(|&nested| nested > 0)
                && nested.iter().sum::<u64>() >= ENOUGH
                && outcome.released > 0
                && match pairing.memory_budget {
                    GROWING => outcome.counted_on(),
                    _ => outcome.evicted > 0 || !cached,
                };
            let took = begin.elapsed();
            took < pairing.at_least || took < AT_MOST && !happened
        });
    });
    outcome.nested = nest.each(&cpus, NESTED);
    let runs = nest.each(&cpus, RUNS);
    let outcome = nest.finish(outcome);
    println!(
        "{}: {} flows wrong of {FLOWS}; {:?} packets and bytes, interrupted {:?} of {runs:?}, {} \
         evictions seen, {} lines released, {} drains, masks {:?}",
        pairing.outer,
        outcome.wrong().len(),
        outcome.total(),
        outcome.nested,
        outcome.evicted,
        outcome.released,
        outcome.drains,
        outcome.masks
    );
    outcome
}

#[test]
fn what_interrupts_itself_is_counted_exactly_while_lines_are_evicted_drained_and_released() {
    need!(Need::Root, Need::Bpf);
    let outcome = run(&Pairing {
        outer: "nest_outer",
        timer: "nest_timer",
        memory_budget: SMALLEST,
        at_least: Duration::from_secs(5),
    });
    outcome.assert_exact();
    let cached = exchange::is_known().expect("the kernel takes programs");
    assert!(outcome.evicted > 0 || !cached, "no line was driven out of a cache");
    let masks: Vec<u32> = outcome.masks.iter().map(|&(mask, _)| mask).collect();
    assert_eq!(masks, [if cached { cache::mask(MIN_SETS) } else { 0 }], "the smallest caches");
}

#[test]
fn what_interrupts_itself_is_counted_exactly_while_caches_grow() {
    need!(Need::Root, Need::Bpf, Need::CompareExchange);
    let outcome = run(&Pairing {
        outer: "nest_outer",
        timer: "nest_timer",
        memory_budget: GROWING,
        at_least: Duration::from_secs(2),
    });
    outcome.assert_exact();
    let masks = &outcome.masks;
    assert!(outcome.counted_on(), "the caches grew while flows were counted: {masks:?}");
    assert!(masks.is_sorted_by(|a, b| a.0 < b.0), "no cache becomes smaller: {masks:?}");
}

/// The other test can fail: where a count is stored without a look at what is there, it is found.
#[test]
fn counts_stored_on_top_of_others_are_found() {
    // Where there are no caches nothing is stored in that way.
    need!(Need::Root, Need::Bpf, Need::CompareExchange);
    let outcome = run(&Pairing {
        outer: "nest_outer_plain",
        timer: "nest_timer_plain",
        memory_budget: SMALLEST,
        at_least: Duration::from_secs(5),
    });
    outcome.assert_interrupted();
    assert!(!outcome.wrong().is_empty(), "nothing is wrong after {:?}", outcome.nested);
}
