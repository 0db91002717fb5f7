//! Tests of the flow table: told once, bounded, conserving.

mod names;
mod spare;
mod translations;

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::event::{DrainReport, Event, FlowCount, LossRecord, SignalKind};
use crate::k8s::identity::Resolver;
use crate::network::keys;
use crate::pipeline::enricher::EnrichedEvent;
use crate::pipeline::processor::EventProcessor;
use crate::testing::{count, flow, resolver, signal, start, udp};

const MS: u64 = 1_000_000;

fn limits(max_flows: u32) -> Limits {
    Limits {
        max_flows,
        history: Duration::from_secs(300),
        idle: Duration::from_secs(30),
        drain_interval: Duration::from_secs(1),
    }
}

fn drained(time_ns: u64) -> Event {
    Event::Drained(Box::new(DrainReport { time_ns, ..DrainReport::default() }))
}

/// A table with what it has told and lost.
struct Bench {
    processor: FlowProcessor,
    output: Output,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self::with(limits, resolver())
    }

    fn with(limits: Limits, resolver: Resolver) -> Self {
        let processor = FlowProcessor::new(FlowTable::shared(limits, 0), resolver);
        Self { processor, output: Output::default() }
    }

    fn feed(&mut self, events: impl IntoIterator<Item = Event>) -> &mut Self {
        let events: Vec<_> = events.into_iter().map(EnrichedEvent::plain).collect();
        self.process(&events);
        self
    }

    fn process(&mut self, events: &[EnrichedEvent]) {
        self.processor.process(events, &mut self.output);
    }

    fn drain(&mut self, time_ns: u64) -> &mut Self {
        self.feed([drained(time_ns)])
    }

    fn table(&self) -> RwLockReadGuard<'_, FlowTable> {
        read(&self.processor.table)
    }

    fn rows(&self) -> Vec<FlowRecord> {
        let table = self.table();
        (0..table.used_rows()).filter_map(|slot| table.row(slot).cloned()).collect()
    }

    fn told(&mut self) -> Vec<String> {
        let word = |told: Told| match told {
            Told::FlowStart(flow) => format!("start {} {}p", flow.flow_id, flow.packets),
            Told::FlowEnd(flow) => {
                format!("end {} {}p {:?}", flow.flow_id, flow.packets, flow.state)
            }
            other => format!("{other:?}"),
        };
        self.output.told.drain(..).map(word).collect()
    }
}

fn new_line(event: Event) -> Event {
    match event {
        Event::Count(count) => Event::Count(FlowCount { new_line: true, ..count }),
        other => other,
    }
}

#[test]
fn a_flow_is_told_once_however_often_its_start_comes() {
    let mut bench = Bench::new(limits(8));
    bench.feed([start(udp(1), 5), start(udp(1), 6), count(udp(1), 1, 60, 7), start(udp(1), 4)]);
    assert_eq!(bench.told(), ["start 1 0p"]);
    assert_eq!(bench.rows()[0].first_seen_ns, 4);
}

#[test]
fn a_flow_whose_start_was_lost_is_told_from_its_count() {
    let mut bench = Bench::new(limits(8));
    bench.feed([count(udp(1), 2, 120, 7), start(udp(1), 5)]);
    assert_eq!(bench.told(), ["start 1 2p"]);
    assert_eq!(bench.rows()[0].first_seen_ns, 5);
}

#[test]
fn a_flow_ends_when_its_last_line_is_released_and_may_begin_again() {
    let mut bench = Bench::new(limits(8));
    let line = || new_line(count(udp(1), 1, 60, 7));
    bench.feed([line(), line(), Event::Released(udp(1))]);
    assert_eq!(bench.told(), ["start 1 1p"], "another line counts on");
    bench.feed([Event::Released(udp(1)), Event::Released(udp(1)), line()]);
    assert_eq!(bench.told(), ["end 1 2p Ended(Idle)", "start 2 1p"]);
    let table = bench.table();
    assert_eq!((table.active_flows(), table.ended_flows()), (1, 1));
}

/// The kernel side finds a line idle with the first drain after the timeout, takes it out of use with
/// the next, and releases it with the one after.
#[test]
fn a_flow_that_comes_back_while_drains_are_far_apart_ends_and_begins_once() {
    const DRAIN: u64 = 4 * SECOND_NS;
    let timeout = Duration::from_secs(30);
    let idle = Limits::idle(timeout, Duration::from_nanos(DRAIN));
    let mut bench = Bench::new(Limits { idle, ..limits(8) });
    bench.feed([new_line(count(udp(1), 5, 300, MS))]);
    for drain in 1..=9 {
        bench.drain(drain * DRAIN);
    }
    // Packets of the flow open another line, and what the old one was is released.
    bench.feed([start(udp(1), 39 * SECOND_NS), Event::Released(udp(1))]);
    bench.feed([new_line(count(udp(1), 2, 120, 39 * SECOND_NS))]).drain(10 * DRAIN);
    assert_eq!(bench.told(), ["start 1 5p", "end 1 5p Ended(Idle)", "start 2 2p"]);
}

fn at(line: u32, event: Event) -> Event {
    match event {
        Event::Count(count) => Event::Count(FlowCount { line, ..count }),
        other => other,
    }
}

#[test]
fn a_line_that_another_flow_has_by_now_counts_for_that_one() {
    let mut bench = Bench::new(limits(8));
    let first = |line, flow| at(line, new_line(count(udp(flow), 1, 60, 7)));
    bench.feed([first(3, 1), first(4, 2)]);
    // Beyond the table, and lines that have changed hands.
    bench.feed([at(4_000_000, count(udp(1), 1, 60, 8)), at(3, count(udp(2), 5, 300, 8))]);
    bench.feed([Event::Released(udp(2))]);
    bench.feed([at(3, count(udp(2), 2, 120, 9)), at(4, count(udp(1), 3, 180, 9))]);
    let expected =
        ["start 1 1p", "start 2 1p", "end 2 6p Ended(Idle)", "start 3 2p"].map(str::to_owned);
    assert_eq!(bench.told(), expected);
    let packets: Vec<_> = bench.rows().iter().map(|row| row.packets).collect();
    assert_eq!(packets, [5, 6, 2]);
}

#[test]
fn an_end_names_its_reason() {
    const FIN: u8 = 1;
    const RST: u8 = 4;
    let tcp = |port| flow(6, ([10, 0, 0, 1].into(), port), ([10, 0, 0, 2].into(), 80), true);
    let mut bench = Bench::new(limits(8));
    for (port, flags) in [(1, FIN), (2, RST), (3, FIN | RST), (4, 0)] {
        bench.feed([signal(tcp(port), SignalKind::End, 5, flags), Event::Released(tcp(port))]);
    }
    let ends: Vec<_> = bench.told().into_iter().filter(|told| told.starts_with("end")).collect();
    let expected = [
        "end 1 0p Ended(Fin)",
        "end 2 0p Ended(Rst)",
        "end 3 0p Ended(Rst)",
        "end 4 0p Ended(Idle)",
    ];
    assert_eq!(ends, expected);
}

#[test]
fn a_connection_is_established_when_both_sides_answered() {
    const SYN: u8 = 2;
    const SYN_ACK: u8 = 18;
    let client = flow(6, ([10, 0, 0, 1].into(), 40_000), ([10, 0, 0, 2].into(), 80), true);
    let server = keys::reverse(&client);
    let established =
        |bench: &Bench| -> Vec<bool> { bench.rows().iter().map(|flow| flow.established).collect() };
    let mut bench = Bench::new(limits(8));
    bench.feed([signal(client, SignalKind::Start, 5, SYN), count(client, 3, 180, 6)]);
    assert_eq!(established(&bench), [false], "nobody answered");
    bench.feed([signal(server, SignalKind::Start, 7, SYN_ACK), count(server, 1, 60, 7)]);
    assert_eq!(established(&bench), [true, true]);
    let mut bench = Bench::new(limits(8));
    bench.feed([
        signal(client, SignalKind::Start, 5, SYN),
        count(client, 1, 60, 6),
        signal(server, SignalKind::Start, 7, SYN_ACK),
        count(server, 1, 60, 7),
    ]);
    assert_eq!(established(&bench), [false, false], "the client went on with nothing");
}

#[test]
fn a_full_table_forgets_the_earliest_ended_first() {
    let mut bench = Bench::new(limits(2));
    bench.feed([count(udp(1), 1, 60, 10), count(udp(2), 1, 60, 20)]);
    bench.feed([Event::Released(udp(2)), Event::Released(udp(1)), count(udp(3), 1, 60, 30)]);
    let held: Vec<_> = bench.rows().iter().map(|flow| flow.id).collect();
    assert_eq!(held.len(), 2);
    assert!(held.contains(&udp(1)) && held.contains(&udp(3)));
    assert_eq!(bench.table().held_since_ns(), 20);
    assert!(bench.output.tally.lost.is_empty());
}

#[test]
fn a_full_table_evicts_who_was_silent_but_never_who_is_counted() {
    let mut bench = Bench::new(limits(2));
    bench.feed([count(udp(1), 5, 300, 10), count(udp(2), 1, 60, 20)]).drain(100);
    bench.feed([count(udp(3), 7, 700, 110)]);
    let lost = |bench: &Bench| bench.output.tally.lost.clone();
    let loss = |reason, packets, bytes| -> LossRecord {
        losses::of_packets("flow_table", reason, Volume { packets, bytes })
    };
    assert_eq!(lost(&bench), [loss("no_room", 7, 700)], "both were counted in the last drain");
    bench.feed([count(udp(2), 1, 60, 120)]).drain(200);
    bench.feed([count(udp(3), 7, 700, 210)]);
    assert_eq!(lost(&bench), [loss("no_room", 7, 700), loss("evicted", 5, 300)]);
    assert!(bench.told().contains(&"end 1 5p Ended(Evicted)".to_owned()));
    let held: Vec<_> = bench.rows().iter().map(|flow| flow.id).collect();
    assert!(held.contains(&udp(2)) && held.contains(&udp(3)));
}

#[test]
fn a_history_that_is_shortened_is_forgotten_at_the_next_drain() {
    let mut bench = Bench::new(limits(8));
    bench.feed([start(udp(1), MS), count(udp(1), 1, 60, MS), Event::Released(udp(1))]);
    bench.drain(10 * SECOND_NS);
    assert_eq!(bench.table().ended_flows(), 1);
    bench.processor.table.write().keep_for(Duration::ZERO);
    bench.drain(11 * SECOND_NS);
    assert_eq!(bench.table().ended_flows(), 0);
    assert_eq!(bench.table().held_since_ns(), MS, "and that is told");
}

#[test]
fn history_is_kept_for_its_time_and_a_flow_that_nobody_releases_ends() {
    let short = Limits { history: Duration::from_secs(10), ..limits(8) };
    let mut bench = Bench::new(short);
    bench.feed([start(udp(1), 0)]).drain(29_000 * MS);
    assert_eq!(bench.table().active_flows(), 1);
    bench.drain(31_000 * MS);
    assert_eq!(bench.told(), ["start 1 0p", "end 1 0p Ended(Idle)"]);
    bench.drain(41_000 * MS);
    assert_eq!(bench.table().ended_flows(), 1);
    bench.drain(42_001 * MS);
    assert_eq!(bench.table().ended_flows(), 0);
}

#[test]
fn rates_are_those_of_the_last_drain() {
    let mut bench = Bench::new(limits(8));
    bench.feed([count(udp(1), 10, 1_000, 1)]).drain(1_000 * MS);
    let rates = |bench: &Bench| bench.table().snapshot().rates(&bench.table(), 0);
    assert_eq!(rates(&bench), (1_000.0, 10.0));
    bench.feed([count(udp(1), 4, 400, 2), count(udp(1), 2, 200, 3)]).drain(3_000 * MS);
    assert_eq!(rates(&bench), (300.0, 3.0));
    bench.drain(4_000 * MS);
    assert_eq!(rates(&bench), (0.0, 0.0));
}

#[test]
fn updates_are_flows_that_changed_and_were_told_before() {
    let mut bench = Bench::new(limits(8));
    bench.feed([count(udp(1), 1, 60, 1), count(udp(2), 1, 60, 1)]).drain(1_000 * MS);
    bench.feed([count(udp(1), 1, 60, 2)]).drain(2_000 * MS);
    bench.feed([count(udp(3), 1, 60, 3)]);
    let changed = |bench: &Bench, since, until| -> Vec<usize> {
        let table = bench.table();
        (0..table.used_rows()).filter(|slot| table.changed(*slot, since, until).is_some()).collect()
    };
    assert_eq!(changed(&bench, 0, 1), [0, 1]);
    assert_eq!(changed(&bench, 1, 2), [0], "the third was told after drain 2");
    assert_eq!(changed(&bench, 2, 3), [2]);
    bench.feed([Event::Released(udp(1))]);
    assert_eq!(changed(&bench, 1, 2), [0_usize; 0], "its end was told");
}

#[test]
fn at_the_end_all_flows_end() {
    let mut bench = Bench::new(limits(8));
    bench.feed([count(udp(1), 1, 60, 1), count(udp(2), 2, 60, 1)]);
    bench.told();
    bench.processor.finish(9, &mut bench.output);
    assert_eq!(bench.told(), ["end 1 1p Ended(Shutdown)", "end 2 2p Ended(Shutdown)"]);
}

#[test]
fn a_full_table_never_grows_beyond_what_was_reserved() {
    let max = 1_000;
    let mut bench = Bench::new(limits(max));
    let reserved = bench.table().reserved_bytes();
    for round in 0..50 {
        bench.feed((0..max).map(|n| count(udp(round * max + n), 1, 60, u64::from(round))));
        bench.feed((0..max).map(|n| Event::Released(udp(round * max + n))));
    }
    assert_eq!(bench.table().reserved_bytes(), reserved);
    assert_eq!(bench.rows().len(), max as usize);
}

#[test]
fn a_flow_takes_204_bytes_at_most_with_its_places_in_the_indexes() {
    let reserved = FlowTable::new(limits(100_000), 0).reserved_bytes();
    assert!(reserved <= 204 * 100_000, "{reserved} bytes for 100000 flows");
}

#[derive(Clone, Debug)]
enum Step {
    Start(u32),
    Count(u32, u64, u64),
    Release(u32),
    Drain(u64),
}

fn step(flows: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..flows).prop_map(Step::Start),
        6 => (0..flows, 1_u64..5, 40_u64..3_000).prop_map(|(f, p, b)| Step::Count(f, p, b)),
        2 => (0..flows).prop_map(Step::Release),
        2 => (1_u64..20_000).prop_map(Step::Drain),
    ]
}

proptest! {
    /// Counted = held + forgotten after its end + lost, per packet and byte, in any order; and
    /// each flow is told as start, then end, then start again.
    #[test]
    fn packets_and_bytes_are_conserved_in_any_order(
        steps in prop::collection::vec(step(12), 1..200),
        max_flows in 1_u32..16,
    ) {
        let history = Limits { history: Duration::from_secs(5), ..limits(max_flows) };
        let mut bench = Bench::new(history);
        let (mut counted, mut now) = (Volume::default(), 1);
        for (steps_done, step) in (0..).zip(steps) {
            now += MS;
            match step {
                Step::Start(flow) => { bench.feed([start(udp(flow), now)]); }
                Step::Count(flow, packets, bytes) => {
                    counted.add(Volume { packets, bytes });
                    // Lines change hands in no order.
                    let line = (flow + steps_done) % 5;
                    bench.feed([at(line, count(udp(flow), packets, bytes, now))]);
                }
                Step::Release(flow) => { bench.feed([Event::Released(udp(flow))]); }
                Step::Drain(ms) => {
                    now += ms * MS;
                    bench.drain(now);
                }
            }
            let table = bench.table();
            prop_assert!(table.active_flows() + table.ended_flows() <= max_flows);
        }
        let (mut told_end, mut active) = (Volume::default(), HashMap::new());
        for told in &bench.output.told {
            match told {
                Told::FlowStart(flow) => {
                    prop_assert!(active.insert(flow.id, flow.flow_id).is_none(), "told twice");
                }
                Told::FlowEnd(flow) => {
                    prop_assert_eq!(active.remove(&flow.id), Some(flow.flow_id));
                    if flow.state != FlowState::Ended(EndReason::Evicted) {
                        told_end.add(Volume { packets: flow.packets, bytes: flow.bytes });
                    }
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        let mut sum = told_end;
        let rows = bench.rows();
        for flow in rows.iter().filter(|flow| flow.state == FlowState::Active) {
            prop_assert_eq!(active.get(&flow.id), Some(&flow.flow_id));
            sum.add(Volume { packets: flow.packets, bytes: flow.bytes });
        }
        prop_assert_eq!(active.len(), bench.table().active_flows() as usize);
        for loss in &bench.output.tally.lost {
            sum.add(loss.volume);
        }
        prop_assert_eq!(sum, counted);
    }
}
