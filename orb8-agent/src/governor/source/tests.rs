//! Tests of the governor at work: what the judge says is done, shown and told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::datapath::Ring;
use crate::event::DrainReport;
use crate::governor::programs::Programs;
use crate::governor::{Budgets, State};
use crate::pipeline::on_demand::OnDemand;
use crate::pipeline::runner::{SharedLedger, lock};
use crate::testing::{EmptyDrains, ManualClock};

const INTERVAL: Duration = Duration::from_secs(5);

struct Bench {
    source: GovernorSource,
    now: Instant,
    drains: Arc<Drains>,
    drain: OnDemand,
    ledger: SharedLedger,
    /// When the last drain began.
    drained_ns: u64,
    board: Arc<Board>,
    kept: Arc<Mutex<Vec<Duration>>>,
    /// How often memory was given back.
    gave_back: Arc<AtomicU32>,
    programs: Arc<Programs>,
}

/// A governor that tells this at its beginning.
fn bench(budgets: Budgets, opening: Vec<Notice>) -> Bench {
    bench_of(budgets, opening, 1, 300)
}

/// One with so many seconds between drains, and of history.
fn bench_of(budgets: Budgets, opening: Vec<Notice>, drain_interval: u64, history: u64) -> Bench {
    let clock: Arc<dyn Clock> = ManualClock::at(1, 0);
    let (drains, now) = (Drains::shared().unwrap(), clock.instant());
    let ledger = SharedLedger::default();
    let books = Arc::clone(&ledger);
    let timer = Arc::clone(&clock);
    let meter = Meter::new("/proc".into(), 1, None, books, Arc::clone(&drains), timer);
    let kept: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let gave_back: Arc<AtomicU32> = Arc::default();
    let gives = Arc::clone(&gave_back);
    let programs: Arc<Programs> = Arc::default();
    let [drain_interval, history] = [drain_interval, history].map(Duration::from_secs);
    let hands = Hands {
        drains: Arc::clone(&drains),
        datapath: Some(Arc::clone(&programs) as _),
        keep_history: Box::new(move |history| keep.lock().unwrap().push(history)),
        give_back: Box::new(move || {
            gives.fetch_add(1, Ordering::Relaxed);
        }),
        drain_interval,
        history,
    };
    let board = Arc::new(Board::new(State::new(budgets, drain_interval, history)));
    let governor = Governor::new(budgets, 3 * INTERVAL, drain_interval, history);
    let shown = Arc::clone(&board);
    let source = GovernorSource::new(governor, meter, hands, shown, clock, INTERVAL, opening);
    let drain = OnDemand::new(Box::new(EmptyDrains), Arc::clone(&drains), drain_interval);
    let drained_ns = 0;
    Bench { source, now, drains, drain, ledger, drained_ns, board, kept, gave_back, programs }
}

impl Bench {
    /// What is told when so much time has passed, at the end of which the lines were read, as code and
    /// message.
    fn after(&mut self, time: Duration) -> Vec<(&'static str, String)> {
        self.drained_ns += 1;
        let report = DrainReport { time_ns: self.drained_ns, ..DrainReport::default() };
        lock(&self.ledger).close_drain(&report);
        self.after_no_drain(time)
    }

    /// The same, and the lines were not read.
    fn after_no_drain(&mut self, time: Duration) -> Vec<(&'static str, String)> {
        self.now += time;
        let mut out = Vec::new();
        self.source.collect(self.now, &mut out).unwrap();
        let told = |event| match event {
            Event::Notice(notice) => (notice.code, notice.message),
            other => panic!("{other:?} is no notice"),
        };
        out.into_iter().map(told).collect()
    }
}

/// Whatever runs here takes more CPU time than none, and more memory.
const NOTHING: Budgets = Budgets { cpu: 0.0, memory_bytes: 1, ring: 0.8 };
const EVERYTHING: Budgets = Budgets { cpu: 1.0, memory_bytes: u64::MAX, ring: 0.8 };

#[test]
fn what_the_judge_says_is_done_and_shown_and_told() {
    let mut bench = bench(NOTHING, Vec::new());
    assert!(bench.board.state().memory_bytes > 1 && bench.board.state().measured.is_none());
    assert_eq!(bench.after(INTERVAL), [], "nothing is given up for what starting takes");
    assert!(bench.board.state().measured.is_some(), "and it is shown");
    let told = bench.after(INTERVAL);
    let [(code, cpu), (_, memory)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*code, "governor_step");
    assert!(cpu.contains("the budget is 0 % (ORB8_CPU_BUDGET): from now on counters"), "{cpu}");
    assert!(memory.contains("the budget is 1B (ORB8_MEMORY_BUDGET)"), "{memory}");
    assert_eq!(bench.drains.stretched(Duration::from_secs(1)), Duration::from_secs(2));
    assert_eq!(*bench.kept.lock().unwrap(), [Duration::from_secs(150)]);
    bench.after(INTERVAL);
    let state = bench.board.state();
    assert_eq!(state.drain_interval, Duration::from_secs(4));
    assert!(state.measured.is_some_and(|measured| measured.memory_bytes > 1));
    assert_eq!(state.sentences[0], "counters are read every 4 s instead of every 1 s");
    assert!(state.steps >= 3 && state.level >= 3, "{state:?}");
}

#[test]
fn nothing_is_looked_at_before_its_time() {
    let mut bench = bench(NOTHING, Vec::new());
    bench.after(INTERVAL);
    let due = bench.source.wakeup().due;
    assert_eq!(due, Some(bench.now + INTERVAL));
    assert_eq!(bench.after(INTERVAL / 2), []);
    assert_eq!(bench.board.state().steps, 0);
}

#[test]
fn a_ring_that_fills_is_acted_on_at_once_and_told_once_a_minute_and_its_all_clear_always() {
    let mut bench = bench(EVERYTHING, Vec::new());
    let rings = Arc::clone(&bench.source.rings);
    let mut warnings = 0;
    for doublings in 1..=3 {
        rings.note(crate::datapath::Ring::Packets, 90, 100);
        let due = bench.source.wakeup().due.unwrap();
        assert!(due <= bench.now + RING_PAUSE, "not in five seconds");
        warnings += bench.after(RING_PAUSE).len();
        assert_eq!(bench.board.state().given.sampling, 1 << doublings);
    }
    assert_eq!(warnings, 1);
    rings.note(crate::datapath::Ring::Packets, 79, 100);
    assert!(bench.source.wakeup().due.unwrap() > bench.now + RING_PAUSE, "below the threshold");
    let mut told: Vec<_> = (0..4).flat_map(|_| bench.after(INTERVAL)).collect();
    assert_eq!(bench.board.state().given.sampling, 4);
    assert_eq!(bench.board.state().cause, "packet_ring", "of what is given up still");
    told.extend((0..6).flat_map(|_| bench.after(INTERVAL)));
    let [(_, first), _, ("governor_back", last)] = &told[..] else { panic!("{told:?}") };
    assert!(first.ends_with("stands for the others (2 steps before were not told)"), "{first}");
    assert!(last.ends_with("nothing is given up any more"), "{last}");
    assert_eq!(bench.board.state().given, Given::NOTHING);
    assert_eq!((bench.board.state().steps, bench.board.state().cause), (6, "calm"));
    bench.after(MINUTE);
    rings.note(crate::datapath::Ring::Events, 1, 1);
    let told = bench.after(RING_PAUSE);
    let [(_, message)] = &told[..] else { panic!("{told:?}") };
    assert!(message.contains("the ring of events was 100 % full"), "{message}");
}

#[test]
fn sampling_for_the_ring_ends_with_the_last_packet_view() {
    let mut bench = bench(EVERYTHING, Vec::new());
    for _ in 0..3 {
        bench.source.rings.note(Ring::Packets, 90, 100);
        bench.after(RING_PAUSE);
    }
    assert_eq!(bench.board.state().given.sampling, 8);
    bench.source.rings.note(Ring::Packets, 90, 100);
    bench.source.rings.close_packets();
    assert!(bench.source.wakeup().due.unwrap() <= bench.now, "at once");
    let told = bench.after(Duration::ZERO);
    let says = "the last packet view was closed: nothing is given up any more (2 steps before were not told)";
    assert_eq!(told, [("governor_back", says.to_owned())]);
    assert_eq!(bench.board.state().given, Given::NOTHING);
    assert_eq!(bench.programs.asked.lock().unwrap().unwrap().sampling, 1);
    bench.source.rings.close_packets();
    assert_eq!(bench.after(Duration::ZERO), [], "once");
    bench.source.rings.note(Ring::Packets, 90, 100);
    assert_eq!(bench.source.rings.fullest().packets, 0.0, "nobody watches");
    bench.source.rings.open_packets();
    bench.source.rings.note(Ring::Packets, 90, 100);
    assert_eq!(bench.source.rings.fullest().packets, 0.9);
}

#[test]
fn what_filled_a_ring_is_shown_and_calm_begins_after_it() {
    let mut bench = bench(EVERYTHING, Vec::new());
    bench.source.rings.note(Ring::Packets, 90, 100);
    let shortly = Duration::from_millis(100);
    bench.after(INTERVAL - shortly);
    let fill = |bench: &Bench| bench.board.state().rings.packets;
    assert_eq!((bench.board.state().level, fill(&bench)), (1, 0.9));
    bench.source.rings.note(Ring::Packets, 10, 100);
    bench.after(shortly);
    assert_eq!(fill(&bench), 0.9, "of the whole interval");
    bench.after(INTERVAL);
    assert_eq!(fill(&bench), 0.0);
    bench.after(INTERVAL);
    assert_eq!(bench.board.state().level, 1, "it was calm for ten seconds");
    bench.after(INTERVAL);
    assert_eq!(bench.board.state().level, 0);
}

#[test]
fn memory_is_given_back_once_the_flows_are_forgotten_for_which_a_step_was_taken() {
    let mut bench = bench(Budgets { memory_bytes: 1, ..EVERYTHING }, Vec::new());
    let gave_back = |bench: &Bench| bench.gave_back.load(Ordering::Relaxed);
    bench.after(INTERVAL);
    bench.after(INTERVAL);
    assert_eq!(bench.board.state().history, Duration::from_secs(150));
    bench.after(INTERVAL);
    assert_eq!(gave_back(&bench), 0, "nothing was forgotten yet");
    bench.drain.collect(bench.now, &mut Vec::new()).unwrap();
    bench.after(INTERVAL);
    assert_eq!(gave_back(&bench), 1);
    bench.after(INTERVAL);
    assert_eq!(gave_back(&bench), 1, "once");
}

#[test]
fn what_the_programs_were_not_told_is_not_shown_and_tried_again() {
    let mut bench = bench(EVERYTHING, Vec::new());
    bench.programs.deaf.store(true, Ordering::Relaxed);
    bench.source.rings.note(Ring::Events, 90, 100);
    let told = bench.after(RING_PAUSE);
    let [("governor_step", refused)] = &told[..] else { panic!("{told:?}") };
    let says = ": the programs cannot be asked to tell less or more, which is tried again: permission denied";
    assert!(refused.ends_with(says), "{refused}");
    let state = bench.board.state();
    assert_eq!((state.level, state.given, state.sentences.len()), (1, Given::NOTHING, 0));
    assert_eq!(bench.after(INTERVAL), [], "told once");
    bench.programs.deaf.store(false, Ordering::Relaxed);
    let told = bench.after(INTERVAL);
    let [("governor_step", done)] = &told[..] else { panic!("{told:?}") };
    let says = "the programs do what they refused: from now on starts of flows without a SYN are told by the next read";
    assert_eq!(done, says);
    assert!(bench.board.state().given.fewer_events);
    let asked = *bench.programs.asked.lock().unwrap();
    assert_eq!(asked, Some(Sparing { sampling: 1, fewer_events: 1 }));
}

#[test]
fn a_step_back_that_the_programs_refuse_takes_nothing_back() {
    let mut bench = bench(EVERYTHING, Vec::new());
    for _ in 0..2 {
        bench.source.rings.note(Ring::Packets, 90, 100);
        bench.after(RING_PAUSE);
    }
    assert_eq!(bench.board.state().given.sampling, 4);
    bench.programs.deaf.store(true, Ordering::Relaxed);
    let told: Vec<_> = (0..4).flat_map(|_| bench.after(INTERVAL)).collect();
    let [("governor_back", refused)] = &told[..] else { panic!("{told:?}") };
    let says = "which is tried again: permission denied; still one in 4 packets of the packet view is told \
                and stands for the others (1 step before was not told)";
    assert!(refused.ends_with(says), "{refused}");
    assert_eq!(bench.board.state().given.sampling, 4);
}

#[test]
fn a_step_further_that_the_programs_refuse_gives_nothing_more_up() {
    let mut bench = bench(Budgets { cpu: 0.0, ..EVERYTHING }, Vec::new());
    for _ in 0..3 {
        bench.after(INTERVAL);
    }
    bench.programs.deaf.store(true, Ordering::Relaxed);
    let told = bench.after(INTERVAL);
    let [("governor_step", refused)] = &told[..] else { panic!("{told:?}") };
    let says = "permission denied; still counters are read every 4 s instead of every 1 s";
    assert!(refused.ends_with(says), "{refused}");
}

#[test]
fn a_step_that_changes_nothing_is_told_if_what_was_refused_is_done_with_it() {
    let mut bench = bench_of(Budgets { cpu: 0.0, ..EVERYTHING }, Vec::new(), 60, 300);
    bench.after(INTERVAL);
    bench.after(INTERVAL);
    bench.programs.deaf.store(true, Ordering::Relaxed);
    bench.after(INTERVAL);
    assert_eq!(bench.board.state().given.sampling, 1, "refused");
    bench.programs.deaf.store(false, Ordering::Relaxed);
    bench.source.rings.note(Ring::Packets, 90, 100);
    let told = bench.after(RING_PAUSE);
    let [("governor_step", done)] = &told[..] else { panic!("{told:?}") };
    assert!(done.contains("the ring of packets was 90 % full"), "{done}");
    assert!(done.contains("from now on") && done.contains("one in 2 packets"), "{done}");
    bench.source.rings.note(Ring::Packets, 90, 100);
    bench.after(RING_PAUSE);
    assert_eq!(bench.board.state().given.sampling, 4);
}

/// Drains at once, and has no line to spare.
struct Scarce;

impl EventSource for Scarce {
    fn name(&self) -> &'static str {
        "scarce"
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup::default()
    }

    fn keeps_set_pace(&self) -> bool {
        true
    }

    fn collect(&mut self, _now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        out.push(Event::Drained(Box::default()));
        Ok(())
    }

    fn finish(&mut self, _out: &mut Vec<Event>) -> Result<(), SourceError> {
        Ok(())
    }
}

#[test]
fn the_time_between_drains_is_shown_as_it_is_kept() {
    let mut bench = bench(Budgets { cpu: 0.0, ..EVERYTHING }, Vec::new());
    for _ in 0..3 {
        bench.after(INTERVAL);
    }
    let shown = |bench: &Bench| {
        let state = bench.board.state();
        (state.drain_interval.as_secs(), state.sentences[0].clone())
    };
    let stretched = (4, "counters are read every 4 s instead of every 1 s".to_owned());
    assert_eq!(shown(&bench), stretched);
    let drains = Arc::clone(&bench.drains);
    let mut scarce = OnDemand::new(Box::new(Scarce), drains, Duration::from_secs(1));
    scarce.collect(bench.now, &mut Vec::new()).unwrap();
    bench.after_no_drain(INTERVAL);
    let kept = "counters are read every 1 s, not every 4 s, while flow lines are scarce";
    assert_eq!(shown(&bench), (1, kept.to_owned()));
    bench.drain.collect(bench.now, &mut Vec::new()).unwrap();
    bench.after_no_drain(INTERVAL);
    assert_eq!(shown(&bench), stretched);
}

#[test]
fn cpu_time_is_judged_once_for_each_drain() {
    let mut bench = bench(Budgets { cpu: 0.0, ..EVERYTHING }, Vec::new());
    let steps = |bench: &Bench| bench.board.state().steps;
    for _ in 0..12 {
        assert_eq!(bench.after_no_drain(INTERVAL), []);
    }
    assert_eq!(steps(&bench), 0, "programs and drains cost what they did before");
    bench.after(INTERVAL);
    assert_eq!(steps(&bench), 1);
}

#[test]
fn nothing_is_told_that_is_no_change() {
    let mut bench = bench_of(NOTHING, Vec::new(), 60, 0);
    let told: Vec<_> = (0..4).flat_map(|_| bench.after(INTERVAL)).map(|(_, told)| told).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told[0].ends_with("starts of flows without a SYN are told by the next read"),
        "{told:?}"
    );
    bench.source.rings.note(Ring::Events, 90, 100);
    assert_eq!(bench.after(RING_PAUSE), [], "that was given up before");
    assert_eq!(bench.board.state().level, 4);
}

#[test]
fn shares_are_told_as_they_were_set() {
    for (part, told) in [(0.29, "29"), (0.8, "80"), (0.0001, "0.01"), (1.0, "100")] {
        assert_eq!(percent(part).to_string(), told);
    }
}

#[test]
fn what_is_known_at_the_start_is_told_first_and_once() {
    let message = "fewer".to_owned();
    let known = Notice { severity: Severity::Warning, code: "max_flows_lowered", message };
    let mut bench = bench(EVERYTHING, vec![known]);
    assert_eq!(bench.source.wakeup().due, Some(bench.now));
    assert_eq!(bench.after(Duration::ZERO), [("max_flows_lowered", "fewer".to_owned())]);
    assert_eq!(bench.after(INTERVAL), []);
}
