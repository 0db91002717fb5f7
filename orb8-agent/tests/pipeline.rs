//! The pipeline's thread with scripted sources and recording stages.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agent_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_support::{DEADLINE, drained};
use orb8_agent::clock::SystemClock;
use orb8_agent::event::{Event, Told, Volume};
use orb8_agent::pipeline::enricher::EnrichedEvent;
use orb8_agent::pipeline::exporter::EventExporter;
use orb8_agent::pipeline::filter::{EventFilter, Verdict};
use orb8_agent::pipeline::processor::{EventProcessor, Output};
use orb8_agent::pipeline::runner::{Handle, Mover, SharedLedger, Stages, StopError, lock, spawn};
use orb8_agent::pipeline::source::{BATCH, EventSource, SourceError, Wakeup};
use orb8_agent::testing::{Script, count, start, udp};

/// Drops counts of one packet.
struct NoSingles;

impl EventFilter for NoSingles {
    fn filter(&mut self, event: &Event) -> Verdict {
        match event {
            Event::Count(count) if count.packets == 1 => Verdict::Drop("single"),
            _ => Verdict::Keep,
        }
    }
}

/// Notes how many events came in each batch.
#[derive(Clone, Default)]
struct Batches(Arc<Mutex<Vec<usize>>>);

impl EventProcessor for Batches {
    fn process(&mut self, events: &[EnrichedEvent], _output: &mut Output) {
        self.0.lock().unwrap().push(events.len());
    }

    fn finish(&mut self, _time_ns: u64, _output: &mut Output) {
        self.0.lock().unwrap().push(0);
    }
}

/// Notes what was told; may block.
#[derive(Clone, Default)]
struct Recorder {
    told: Arc<Mutex<Vec<String>>>,
    blocked: Arc<AtomicBool>,
}

impl EventExporter for Recorder {
    fn export(&mut self, told: &[Told]) {
        while self.blocked.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let word = |told: &Told| match told {
            Told::Drained(mark) => format!("drained {}", mark.epoch),
            Told::Notice(notice) => format!("{} {}", notice.code, notice.message),
            other => format!("{other:?}"),
        };
        self.told.lock().unwrap().extend(told.iter().map(word));
    }

    fn finish(&mut self, _deadline: Instant) {
        self.told.lock().unwrap().push("finished".to_owned());
    }
}

#[derive(Default)]
struct Line {
    ledger: SharedLedger,
    batches: Batches,
    recorder: Recorder,
}

impl Line {
    fn spawn(&self, sources: Vec<Box<dyn EventSource>>) -> Handle {
        let stages = Stages {
            filters: vec![Box::new(NoSingles)],
            enrichers: Vec::new(),
            processors: vec![Box::new(self.batches.clone())],
            exporters: vec![Box::new(self.recorder.clone())],
        };
        let mover = Mover::new(stages, Arc::clone(&self.ledger));
        spawn(sources, mover, SystemClock::shared(), || {}).unwrap()
    }

    fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.told());
            std::thread::yield_now();
        }
    }

    fn told(&self) -> Vec<String> {
        self.recorder.told.lock().unwrap().clone()
    }
}

fn stop(handle: Handle) {
    handle.stop(Instant::now() + DEADLINE).unwrap();
}

#[test]
fn what_a_filter_drops_is_counted_with_its_reason() {
    let line = Line::default();
    let (script, source) = Script::new("script");
    let handle = line.spawn(vec![Box::new(source)]);
    script.tell([count(udp(1), 1, 60, 5), count(udp(2), 3, 300, 5), drained(9, 4, 360)]);
    line.wait_until("the drain", |line| line.told() == ["drained 1"]);
    let packets = lock(&line.ledger).packets();
    assert_eq!(packets.filtered, [("single", Volume { packets: 1, bytes: 60 })]);
    assert_eq!(packets.reported, Volume { packets: 3, bytes: 300 });
    assert!(packets.in_flight.is_empty());
    stop(handle);
}

#[test]
fn a_burst_goes_through_in_bounded_batches() {
    let line = Line::default();
    let (script, source) = Script::new("script");
    let handle = line.spawn(vec![Box::new(source)]);
    let burst = 10 * u32::try_from(BATCH).unwrap() + 7;
    script.tell((0..burst).map(|n| start(udp(n), 5)));
    let sum = |line: &Line| line.batches.0.lock().unwrap().iter().sum::<usize>();
    line.wait_until("the burst", |line| sum(line) == burst as usize);
    assert!(line.batches.0.lock().unwrap().iter().all(|batch| *batch <= BATCH));
    assert_eq!(lock(&line.ledger).events().processed, u64::from(burst));
    stop(handle);
}

#[test]
fn at_the_end_sources_are_read_once_more_before_the_exporters_finish() {
    let line = Line::default();
    let (script, source) = Script::new("script");
    script.tell_last([count(udp(1), 2, 120, 5), drained(9, 2, 120)]);
    stop(line.spawn(vec![Box::new(source)]));
    assert_eq!(line.told(), ["drained 1", "finished"]);
    assert_eq!(*line.batches.0.lock().unwrap(), [2, 0]);
    assert_eq!(lock(&line.ledger).packets().reported.packets, 2);
}

#[test]
fn a_pipeline_that_hangs_does_not_hold_up_the_end_beyond_the_deadline() {
    let line = Line::default();
    let (script, source) = Script::new("script");
    line.recorder.blocked.store(true, Ordering::Relaxed);
    let handle = line.spawn(vec![Box::new(source)]);
    script.tell([drained(9, 0, 0)]);
    let result = handle.stop(Instant::now() + Duration::from_millis(50));
    assert!(matches!(result, Err(StopError::Deadline)), "{result:?}");
    line.recorder.blocked.store(false, Ordering::Relaxed);
    line.wait_until("its end", |line| line.told().contains(&"finished".to_owned()));
}

/// Due at once for a while, then never; fails now and then.
struct Due {
    since: Instant,
    left: u32,
    fail_at: u32,
}

impl EventSource for Due {
    fn name(&self) -> &'static str {
        "due"
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup { fd: None, due: (self.left > 0).then_some(self.since) }
    }

    fn collect(&mut self, _now: Instant, out: &mut Vec<Event>) -> Result<(), SourceError> {
        self.left -= 1;
        out.push(start(udp(self.left), 5));
        if self.left == self.fail_at {
            return Err(SourceError { source_name: "due", message: "not now".to_owned() });
        }
        Ok(())
    }

    fn finish(&mut self, _out: &mut Vec<Event>) -> Result<(), SourceError> {
        Ok(())
    }
}

#[test]
fn a_source_that_fails_is_told_once_and_asked_again_and_what_it_gave_counts() {
    let line = Line::default();
    let (script, scripted) = Script::new("script");
    let due = Due { since: Instant::now(), left: 5, fail_at: 3 };
    let handle = line.spawn(vec![Box::new(due), Box::new(scripted)]);
    script.tell([start(udp(100), 5)]);
    line.wait_until("all events", |line| lock(&line.ledger).events().processed == 6);
    line.wait_until("the recovery", |line| line.told().len() == 2);
    let expected =
        ["source_failed source due: not now", "source_recovered source due can be read again"];
    assert_eq!(line.told(), expected);
    assert_eq!(lock(&line.ledger).failures().next().unwrap().1.count, 1);
    stop(handle);
}

#[test]
fn a_panic_in_a_stage_is_an_error_of_the_end() {
    struct Panics;
    impl EventFilter for Panics {
        fn filter(&mut self, _event: &Event) -> Verdict {
            panic!("on purpose");
        }
    }
    let stages = Stages { filters: vec![Box::new(Panics)], ..Stages::default() };
    let (script, source) = Script::new("script");
    let ended = Arc::new(AtomicBool::new(false));
    let mark = Arc::clone(&ended);
    let mover = Mover::new(stages, SharedLedger::default());
    let handle = spawn(vec![Box::new(source)], mover, SystemClock::shared(), move || {
        mark.store(true, Ordering::Relaxed);
    });
    script.tell([start(udp(1), 5)]);
    let deadline = Instant::now() + DEADLINE;
    while !ended.load(Ordering::Relaxed) {
        assert!(Instant::now() < deadline, "nobody was told that it ended");
        std::thread::yield_now();
    }
    let result = handle.unwrap().stop(deadline);
    assert!(matches!(result, Err(StopError::Panicked)), "{result:?}");
}
