//! Tests of the governor at work: what the judge says is done, shown and told.

use std::sync::Mutex;

use super::*;
use crate::governor::{Budgets, State};
use crate::pipeline::runner::SharedLedger;
use crate::testing::ManualClock;

const INTERVAL: Duration = Duration::from_secs(5);

struct Bench {
    source: GovernorSource,
    now: Instant,
    drains: Arc<Drains>,
    board: Arc<Board>,
    kept: Arc<Mutex<Vec<Duration>>>,
}

/// A governor without a kernel side that tells this at its beginning.
fn bench(budgets: Budgets, opening: Vec<Notice>) -> Bench {
    let clock: Arc<dyn Clock> = ManualClock::at(1, 0);
    let (drains, now) = (Drains::shared().unwrap(), clock.instant());
    let ledger = SharedLedger::default();
    let meter = Meter::new("/proc".into(), None, ledger, Arc::clone(&drains), now);
    let kept: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let (drain_interval, history) = (Duration::from_secs(1), Duration::from_secs(300));
    let hands = Hands {
        drains: Arc::clone(&drains),
        datapath: None,
        keep_history: Box::new(move |history| keep.lock().unwrap().push(history)),
        drain_interval,
        history,
    };
    let board = Arc::new(Board::new(State::new(budgets, drain_interval, history)));
    let governor = Governor::new(budgets, 3 * INTERVAL);
    let shown = Arc::clone(&board);
    let source = GovernorSource::new(governor, meter, hands, shown, clock, INTERVAL, opening);
    Bench { source, now, drains, board, kept }
}

impl Bench {
    /// What is told when so much time has passed, as code and message.
    fn after(&mut self, time: Duration) -> Vec<(&'static str, String)> {
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
    assert_eq!(bench.after(INTERVAL), [], "the first look has nothing to compare with");
    let told = bench.after(INTERVAL);
    let [(code, cpu), (_, memory)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*code, "governor_step");
    assert!(cpu.contains("the budget is 0 % (ORB8_CPU_BUDGET): from now on counters"), "{cpu}");
    assert!(memory.contains("the budget is 1B (ORB8_MEMORY_BUDGET)"), "{memory}");
    assert_eq!(bench.drains.stretched(Duration::from_secs(1)), Duration::from_secs(2));
    assert_eq!(bench.kept.lock().unwrap()[0], Duration::from_secs(150));
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
fn a_ring_that_fills_is_acted_on_at_once_and_told_once_a_minute() {
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
    for _ in 0..9 {
        assert_eq!(bench.after(INTERVAL), [], "withheld");
    }
    let told = bench.after(3 * INTERVAL);
    let [("governor_back", message)] = &told[..] else { panic!("{told:?}") };
    let end = "nothing is given up any more (4 steps before were not told)";
    assert!(message.ends_with(end), "{message}");
    assert_eq!(bench.board.state().given, Given::NOTHING);
    assert_eq!((bench.board.state().steps, bench.board.state().cause), (6, "calm"));
    bench.after(MINUTE);
    rings.note(crate::datapath::Ring::Events, 1, 1);
    let told = bench.after(RING_PAUSE);
    let [(_, message)] = &told[..] else { panic!("{told:?}") };
    assert!(message.contains("the ring of events was 100 % full"), "{message}");
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
