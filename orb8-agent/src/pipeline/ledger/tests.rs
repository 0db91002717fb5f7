//! Tests of the ledgers against a simulated kernel.

use proptest::prelude::*;

use super::*;

/// A hook on one CPU: counts a packet as seen first and where it went last.
#[derive(Default)]
struct Kernel {
    counters: Counters,
    line: Volume,
    in_flight: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Count { bytes: u64, gso: u64, padding: u64 },
    Reject { bytes: u64 },
    Lose { bytes: u64 },
}

impl Kernel {
    fn see(&mut self, step: Step) {
        let bytes = match step {
            Step::Count { bytes, gso, padding } => {
                self.counters.0[GSO_HEADER_BYTES] += gso;
                self.counters.0[PADDING_BYTES] += padding;
                bytes + padding - gso
            }
            Step::Reject { bytes } | Step::Lose { bytes } => bytes,
        };
        self.counters.0[SEEN_PACKETS] += 1;
        self.counters.0[SEEN_BYTES] += bytes;
        self.in_flight.push(step);
    }

    fn settle(&mut self) {
        for step in self.in_flight.drain(..) {
            match step {
                Step::Count { bytes, .. } => self.line.add(Volume { packets: 1, bytes }),
                Step::Reject { bytes } => {
                    let index = REJECTED + 2 * Reject::Truncated as usize;
                    self.counters.0[index] += 1;
                    self.counters.0[index + 1] += bytes;
                }
                Step::Lose { bytes } => {
                    let index = LOST + 2 * Lost::FlowTableFull as usize;
                    self.counters.0[index] += 1;
                    self.counters.0[index + 1] += bytes;
                }
            }
        }
    }

    fn read(&self) -> Counters {
        self.counters
    }
}

/// One drain of the simulated kernel, with traffic between its parts.
fn drain(
    kernel: &mut Kernel,
    ledger: &mut Ledger,
    drained: &mut Volume,
    traffic: &[Vec<Step>; 3],
    remove: u64,
) {
    for step in &traffic[0] {
        kernel.see(*step);
    }
    let before = kernel.read();
    kernel.settle();
    for step in &traffic[1] {
        kernel.see(*step);
        kernel.settle();
    }
    let mut delta = kernel.line.beyond(*drained);
    *drained = kernel.line;
    delta.packets = delta.packets.saturating_sub(remove);
    for step in &traffic[2] {
        kernel.see(*step);
    }
    let after = kernel.read();
    kernel.settle();
    let mut tally = Tally { counted: delta, ..Tally::default() };
    ledger.apply(&mut tally);
    ledger.close_drain(&DrainReport { before, after, ..DrainReport::default() });
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (20_u64..1500, 0_u64..3, 0_u64..40).prop_map(|(bytes, gso, padding)| Step::Count {
            bytes: bytes + gso * 54,
            gso: gso * 54,
            padding
        }),
        (1_u64..1500).prop_map(|bytes| Step::Reject { bytes }),
        (20_u64..1500).prop_map(|bytes| Step::Lose { bytes }),
    ]
}

fn rounds() -> impl Strategy<Value = Vec<[Vec<Step>; 3]>> {
    let traffic = || prop::collection::vec(step(), 0..6);
    prop::collection::vec([traffic(), traffic(), traffic()], 1..12)
}

fn fresh() -> (Kernel, Ledger, Volume) {
    Default::default()
}

const SILENCE: [Vec<Step>; 3] = [Vec::new(), Vec::new(), Vec::new()];

proptest! {
    #[test]
    fn any_interleaving_of_traffic_and_drains_balances(rounds in rounds()) {
        let (mut kernel, mut ledger, mut drained) = fresh();
        for traffic in &rounds {
            drain(&mut kernel, &mut ledger, &mut drained, traffic, 0);
            prop_assert_eq!(ledger.packets().balance, Balance::Balanced);
        }
        for _ in 0..2 {
            drain(&mut kernel, &mut ledger, &mut drained, &SILENCE, 0);
        }
        let packets = ledger.packets();
        prop_assert_eq!(packets.balance, Balance::Balanced);
        prop_assert!(packets.in_flight.is_empty());
        let mut sum = packets.reported;
        for (_, volume) in &packets.rejected {
            sum.add(*volume);
        }
        sum.add(total(&packets.lost));
        prop_assert_eq!(sum, packets.seen);
    }

    #[test]
    fn one_removed_packet_turns_the_ledger_red(rounds in rounds(), at in any::<prop::sample::Index>()) {
        let (mut kernel, mut ledger, mut drained) = fresh();
        let at = at.index(rounds.len());
        for (number, traffic) in rounds.iter().enumerate() {
            if number == at {
                kernel.see(Step::Count { bytes: 100, gso: 0, padding: 0 });
                kernel.settle();
            }
            drain(&mut kernel, &mut ledger, &mut drained, traffic, u64::from(number == at));
        }
        for _ in 0..2 {
            drain(&mut kernel, &mut ledger, &mut drained, &SILENCE, 0);
        }
        prop_assert_eq!(ledger.packets().balance, Balance::Unbalanced { count: 1, bytes: 0 });
        // More traffic hides the difference; it does not mend it.
        drain(&mut kernel, &mut ledger, &mut drained, &rounds[0], 0);
        prop_assert_ne!(ledger.packets().balance, Balance::Balanced);
    }
}

fn counters(values: &[(usize, u64)]) -> Counters {
    let mut counters = Counters::default();
    for (index, value) in values {
        counters.0[*index] = *value;
    }
    counters
}

fn report(time_ns: u64, values: &[(usize, u64)]) -> DrainReport {
    let counters = counters(values);
    DrainReport { time_ns, before: counters, after: counters, ..DrainReport::default() }
}

#[test]
fn more_counted_than_seen_is_an_excess() {
    let mut ledger = Ledger::default();
    let counted = Volume { packets: 3, bytes: 300 };
    ledger.apply(&mut Tally { counted, ..Tally::default() });
    let seen = [(SEEN_PACKETS, 2), (SEEN_BYTES, 200)];
    ledger.close_drain(&report(1, &seen));
    ledger.close_drain(&report(2, &seen));
    assert_eq!(ledger.packets().balance, Balance::Unbalanced { count: -1, bytes: -100 });
}

#[test]
fn an_estimate_of_segments_is_corrected_in_both_directions() {
    for excess in [2, 2_u64.wrapping_neg()] {
        let mut ledger = Ledger::default();
        let packets = 10_u64.wrapping_sub(excess);
        let counted = Volume { packets, bytes: 1000 };
        ledger.apply(&mut Tally { counted, ..Tally::default() });
        let seen = [(SEEN_PACKETS, 10), (SEEN_BYTES, 1000), (SEGMENT_EXCESS, excess)];
        for time in 1..4 {
            ledger.close_drain(&report(time, &seen));
        }
        assert_eq!(ledger.seen().packets, packets);
        assert_eq!(ledger.packets().balance, Balance::Balanced);
    }
}

#[test]
fn a_persistent_shortfall_beside_traffic_is_told_after_two_drains() {
    let mut ledger = Ledger::default();
    let seen = |packets| [(SEEN_PACKETS, packets), (SEEN_BYTES, packets * 100)];
    ledger.close_drain(&report(1, &seen(1_000)));
    assert_eq!(ledger.packets().balance, Balance::Balanced);
    ledger.close_drain(&report(2, &seen(1_100)));
    assert_eq!(ledger.packets().balance, Balance::Balanced, "could still be on its way");
    ledger.close_drain(&report(3, &seen(1_200)));
    let expected = Balance::Unbalanced { count: 1_100, bytes: 110_000 };
    assert_eq!(ledger.packets().balance, expected);
}

#[test]
fn losses_are_told_once_and_with_the_interval_they_fell_into() {
    let mut ledger = Ledger::default();
    let full = LOST + 2 * Lost::FlowTableFull as usize;
    let first = ledger.close_drain(&report(10, &[(full, 5), (full + 1, 500), (EVENTS_LOST, 2)]));
    assert_eq!(
        first,
        [
            losses::of_packets("hook", "flow_table_full", Volume { packets: 5, bytes: 500 }),
            losses::of_events("ring", "ring_full", 2),
        ]
    );
    let mut tally = Tally::default();
    let room = losses::of_packets("flow_table", "no_room", Volume { packets: 1, bytes: 60 });
    tally.lose(room);
    ledger.apply(&mut tally);
    assert_eq!(ledger.lost_between(11, 20), [room]);
    let second = ledger.close_drain(&report(20, &[(full, 6), (full + 1, 560), (EVENTS_LOST, 2)]));
    let again = losses::of_packets("hook", "flow_table_full", Volume { packets: 1, bytes: 60 });
    assert_eq!(second, [room, again]);
    assert!(
        ledger.close_drain(&report(30, &[(full, 6), (full + 1, 560), (EVENTS_LOST, 2)])).is_empty()
    );
    assert_eq!(ledger.lost_between(11, 19), [room, again]);
    assert!(ledger.lost_between(21, 30).is_empty());
}

#[test]
fn what_was_never_attached_lies_outside_the_balance() {
    let mut ledger = Ledger::default();
    let late = DrainReport { unattached_packets: 7, unattached_bytes: 700, ..report(5, &[]) };
    assert_eq!(ledger.close_drain(&late)[0].stage, "unattached");
    ledger.close_drain(&late);
    let packets = ledger.packets();
    assert_eq!(packets.balance, Balance::Balanced);
    assert_eq!(packets.lost[0].volume, Volume { packets: 7, bytes: 700 });
}

#[test]
fn events_balance_when_all_are_taken_and_turn_red_when_one_is_missing() {
    let mut ledger = Ledger::default();
    let counters = [(EVENTS_PRODUCED, 10), (EVENTS_LOST, 3)];
    ledger.apply(&mut Tally { events: 7, ..Tally::default() });
    for time in 1..5 {
        ledger.close_drain(&report(time, &counters));
        assert_eq!(ledger.events().balance, Balance::Balanced);
    }
    let more = [(EVENTS_PRODUCED, 12), (EVENTS_LOST, 3)];
    ledger.apply(&mut Tally { events: 1, ..Tally::default() });
    for time in 5..8 {
        ledger.close_drain(&report(time, &more));
    }
    assert_eq!(ledger.events().balance, Balance::Unbalanced { count: 1, bytes: 0 });
    ledger.apply(&mut Tally { events: 1, ..Tally::default() });
    ledger.close_drain(&report(9, &more));
    assert_eq!(ledger.events().balance, Balance::Balanced);
}

#[test]
fn a_source_is_failing_until_it_succeeds() {
    let mut ledger = Ledger::default();
    assert!(ledger.source_failed("lines", "no".to_owned()));
    assert!(!ledger.source_failed("lines", "still no".to_owned()));
    let (name, failures) = ledger.failures().next().unwrap();
    assert_eq!((name, failures.count), ("lines", 2));
    assert_eq!(failures.current.as_deref(), Some("still no"));
    assert!(ledger.source_succeeded("lines"));
    assert!(!ledger.source_succeeded("lines"));
    assert!(!ledger.source_succeeded("ring"));
}
