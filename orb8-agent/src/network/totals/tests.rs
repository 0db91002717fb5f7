//! Totals hold what passed, whatever became of it, and only while somebody asks.

use std::thread;

use super::*;
use crate::event::{DrainReport, FlowId};
use crate::pipeline::on_demand::OnDemand;
use crate::pipeline::runner::{Mover, Stages};
use crate::pipeline::source::EventSource as _;
use crate::testing::{Script, count, udp};

/// Leaves out packets of one size.
struct Odd;

impl EventFilter for Odd {
    fn filter(&mut self, event: &Event) -> Verdict {
        match event {
            Event::Count(count) if count.bytes == 111 => Verdict::Drop("odd"),
            _ => Verdict::Keep,
        }
    }
}

struct Bench {
    totals: Arc<Totals>,
    script: Script,
    source: OnDemand,
    mover: Mover,
}

impl Bench {
    fn new() -> Self {
        let ledger = SharedLedger::default();
        let totals = Totals::shared(Drains::shared().unwrap(), Arc::clone(&ledger));
        let (script, source) = Script::new("script");
        let filter = CountTotals::around(vec![Box::new(Odd)], Arc::clone(&totals));
        let stages = Stages {
            filters: vec![Box::new(filter)],
            exporters: vec![Box::new(TotalsExporter(Arc::clone(&totals)))],
            ..Stages::default()
        };
        let source = OnDemand::new(Box::new(source), totals.drains(), Duration::from_secs(1));
        Self { totals, script, source, mover: Mover::new(stages, ledger) }
    }

    /// These are counted, and a drain ends.
    fn drain(&mut self, counts: &[(FlowId, u64, u64)], time_ns: u64) {
        let counts = counts.iter().map(|(id, packets, bytes)| count(*id, *packets, *bytes, 1));
        let report = DrainReport { time_ns, ..DrainReport::default() };
        self.script.tell(counts.chain([Event::Drained(Box::new(report))]));
        let mut batch = Vec::new();
        // Asked for or not, the drain is complete when this returns.
        self.totals.drains().ask();
        self.source.collect(Instant::now(), &mut batch).unwrap();
        self.mover.move_all(&mut batch);
    }

    /// Asks while these are counted.
    fn ask(&mut self, until_ns: u64, counts: &[(FlowId, u64, u64)], time_ns: u64) -> Arc<Snapshot> {
        let totals = Arc::clone(&self.totals);
        let before = self.totals.state().latest;
        let asking = thread::spawn(move || totals.ask(until_ns));
        while self.totals.state().latest == before {
            thread::yield_now();
        }
        self.drain(counts, time_ns);
        asking.join().unwrap().unwrap()
    }
}

fn at(id: FlowId, left_out: &'static str) -> Place {
    let (owner, flags) = (id.owner, id.key.flags & FLAGS);
    Place { owner, flags, protocol: id.key.protocol, left_out }
}

fn volume(packets: u64, bytes: u64) -> Volume {
    Volume { packets, bytes }
}

#[test]
fn what_is_kept_and_what_is_left_out_is_added_up_by_place() {
    let mut bench = Bench::new();
    let (here, there) = (udp(1), FlowId { owner: 3, ..udp(2) });
    bench.drain(&[(here, 5, 500)], 1);
    let first = bench.ask(10, &[(here, 1, 60), (here, 1, 111), (there, 2, 140)], 2);
    let expected = [
        (at(here, ""), volume(1, 60)),
        (at(here, "odd"), volume(1, 111)),
        (at(there, ""), volume(2, 140)),
    ];
    assert_eq!(first.totals, expected, "nothing of before the session");
    bench.drain(&[(udp(9), 4, 400)], 3);
    let second = bench.ask(10, &[(here, 1, 60)], 4);
    assert_eq!(second.session, first.session);
    assert_eq!(second.totals[0], (at(here, ""), volume(6, 520)), "all flows of a place");
    assert_eq!(second.totals[1..], expected[1..]);
    assert_eq!(second.unlisted, Volume::default());
}

#[test]
fn a_session_ends_when_nobody_asks_any_more_and_the_next_begins_at_nothing() {
    let mut bench = Bench::new();
    let first = bench.ask(10, &[(udp(1), 1, 60)], 5);
    bench.drain(&[(udp(1), 1, 60)], 9);
    assert_eq!(bench.ask(10, &[], 9).session, first.session);
    // The drain of `drain` asks itself, which `ask` never did: nobody waits.
    let mut batch =
        vec![Event::Drained(Box::new(DrainReport { time_ns: 11, ..Default::default() }))];
    bench.mover.move_all(&mut batch);
    bench.mover.move_all(&mut vec![count(udp(1), 7, 700, 1)]);
    let next = bench.ask(20, &[(udp(1), 2, 120)], 12);
    assert_ne!(next.session, first.session);
    assert_eq!(next.totals, [(at(udp(1), ""), volume(2, 120))]);
}

#[test]
fn places_beyond_the_bound_are_told_as_one_sum() {
    let mut bench = Bench::new();
    let owners = 0..PLACES as u64 + 10;
    let counts: Vec<_> = owners.map(|owner| (FlowId { owner, ..udp(1) }, 1, 50)).collect();
    let snapshot = bench.ask(10, &counts, 1);
    assert_eq!(snapshot.totals.len(), PLACES);
    assert_eq!(snapshot.unlisted, volume(10, 500));
}
