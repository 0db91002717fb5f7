//! Tests of queries: order, intervals, limits.

use std::time::Duration;

use orb8_proto::v1::{Ports, Sort, Strings};
use proptest::prelude::*;

use super::*;
use crate::event::{DrainReport, Event};
use crate::host::HostFacts;
use crate::network::keys;
use crate::network::table::{FlowProcessor, Limits};
use crate::pipeline::enricher::EnrichedEvent;
use crate::pipeline::ledger::{Ledger, Tally};
use crate::pipeline::processor::{EventProcessor, Output};
use crate::testing::{ManualClock, count, resolver, udp};

const OFFSET: i64 = 1_000_000_000_000;

fn drained(time_ns: u64) -> Event {
    Event::Drained(Box::new(DrainReport { time_ns, ..DrainReport::default() }))
}

/// The table after one drain of these events.
fn table(events: impl IntoIterator<Item = Event>) -> SharedTable {
    table_of(events.into_iter().chain([drained(1_000_000_000)]))
}

fn table_of(events: impl IntoIterator<Item = Event>) -> SharedTable {
    let table = FlowTable::shared(
        Limits {
            max_flows: 1_000,
            history: Duration::from_secs(300),
            idle: Duration::from_secs(30),
            drain_interval: Duration::from_secs(1),
        },
        0,
    );
    let events: Vec<_> = events.into_iter().map(EnrichedEvent::plain).collect();
    FlowProcessor::new(Arc::clone(&table), resolver()).process(&events, &mut Output::default());
    table
}

fn node() -> Arc<Node> {
    Arc::new(Node::named("n1"))
}

fn run(table: &SharedTable, request: &QueryFlowsRequest) -> Found {
    FlowQuery::compile(request, 10_000, OFFSET).unwrap().run(table, &node())
}

fn sorted(field: Field, ascending: bool, limit: u32) -> QueryFlowsRequest {
    let sort = Some(Sort { field: field.into(), ascending });
    QueryFlowsRequest { sort, limit, ..QueryFlowsRequest::default() }
}

fn ids(found: &Found) -> Vec<u64> {
    found.flows.iter().map(|flow| flow.flow_id).collect()
}

#[test]
fn the_best_come_first_in_the_order_asked_for() {
    let table = table_of([
        count(udp(1), 9, 100, 50),
        count(udp(2), 1, 300, 10),
        count(udp(3), 5, 200, 90),
        count(udp(1), 0, 0, 60),
        drained(1_000_000_000),
        count(udp(2), 1, 1, 40),
        drained(2_000_000_000),
        // Half of the next drain, which is no part of any answer.
        count(udp(3), 90, 9_000, 90),
    ]);
    let check = |field, ascending, limit, expected: &[u64]| {
        let found = run(&table, &sorted(field, ascending, limit));
        assert_eq!(ids(&found), expected, "{field:?} {ascending}");
        assert_eq!(found.matched, 3);
    };
    check(Field::Bytes, false, 0, &[2, 3, 1]);
    check(Field::Bytes, false, 2, &[2, 3]);
    check(Field::Bytes, true, 2, &[1, 3]);
    check(Field::Packets, false, 1, &[1]);
    check(Field::FirstSeen, true, 3, &[2, 1, 3]);
    check(Field::LastSeen, false, 3, &[3, 1, 2]);
    check(Field::Duration, false, 1, &[2]);
    check(Field::BytesPerSecond, false, 3, &[2, 1, 3]);
    check(Field::PacketsPerSecond, true, 3, &[1, 3, 2]);
}

#[test]
fn flows_that_only_their_scope_leaves_out_are_counted() {
    let table = table((1..=3).map(|n| count(udp(n), 1, 60, u64::from(n))));
    let scope = |negate, words: &[&str]| Condition {
        negate,
        field: Some(condition::Field::Scope(Strings {
            values: words.iter().map(ToString::to_string).collect(),
        })),
        side: 0,
    };
    let check = |all: Vec<Condition>, from: i64, expected| {
        let start_time_ns = if from == 0 { 0 } else { OFFSET + from };
        let filter = Some(FlowFilter { all });
        let found = run(&table, &QueryFlowsRequest { filter, start_time_ns, ..Default::default() });
        assert_eq!((found.matched, found.of_other_scopes), expected);
    };
    let protocol = |name: &str| Condition {
        field: Some(condition::Field::Protocol(Strings { values: vec![name.to_owned()] })),
        ..Default::default()
    };
    check(vec![], 0, (3, 0));
    check(vec![scope(true, &["forwarded", "tunnel"])], 0, (3, 0));
    check(vec![scope(false, &["forwarded"])], 0, (0, 3));
    check(vec![scope(false, &["forwarded"])], 2, (0, 2));
    check(vec![scope(false, &["forwarded"]), protocol("udp")], 0, (0, 3));
    check(vec![scope(false, &["forwarded"]), protocol("tcp")], 0, (0, 0));
}

#[test]
fn equal_flows_come_in_the_order_of_their_ids() {
    let table = table((1..=20).map(|n| count(udp(n), 1, 60, 5)));
    assert_eq!(ids(&run(&table, &sorted(Field::Bytes, false, 3))), [1, 2, 3]);
    assert_eq!(ids(&run(&table, &sorted(Field::Bytes, true, 3))), [1, 2, 3]);
}

#[test]
fn an_interval_selects_the_flows_that_were_seen_in_it() {
    let table = table([
        count(udp(1), 1, 60, 100),
        count(udp(2), 1, 60, 200),
        count(udp(2), 1, 60, 300),
        count(udp(3), 1, 60, 400),
    ]);
    let check = |start, end, expected: &[u64]| {
        let unix = |time: i64| if time == 0 { 0 } else { time + OFFSET };
        let request = QueryFlowsRequest {
            start_time_ns: unix(start),
            end_time_ns: unix(end),
            ..sorted(Field::FirstSeen, true, 0)
        };
        assert_eq!(ids(&run(&table, &request)), expected, "{start} {end}");
    };
    check(0, 0, &[1, 2, 3]);
    check(101, 0, &[2, 3]);
    check(0, 199, &[1]);
    check(250, 350, &[2]);
    check(301, 399, &[]);
}

#[test]
fn a_request_that_cannot_be_answered_is_refused_with_the_value() {
    let check = |request: QueryFlowsRequest, expected: &str| {
        let error = FlowQuery::compile(&request, 500, 0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let plain = QueryFlowsRequest::default;
    check(
        QueryFlowsRequest { limit: 501, ..plain() },
        "limit 501 is above this agent's maximum of 500",
    );
    check(QueryFlowsRequest { start_time_ns: -1, ..plain() }, "start_time_ns -1");
    check(QueryFlowsRequest { end_time_ns: -2, ..plain() }, "end_time_ns -2");
    check(
        QueryFlowsRequest { start_time_ns: 9, end_time_ns: 8, ..plain() },
        "end_time_ns 8 is before start_time_ns 9",
    );
    let sort = Some(Sort { field: 99, ascending: false });
    check(QueryFlowsRequest { sort, ..plain() }, "unknown sort field 99");
    let field = Some(condition::Field::Ip(Strings { values: vec!["nowhere".to_owned()] }));
    let all = vec![Condition { side: 0, negate: false, field }];
    check(QueryFlowsRequest { filter: Some(FlowFilter { all }), ..plain() }, "nowhere");
}

/// The answers of an agent whose table forgot flow 1 at 100 and holds the others, and that lost
/// packets between 40 and 50.
struct AfterLoss(NetworkQueries);

impl AfterLoss {
    fn holding(later: impl IntoIterator<Item = Event>, forgets_the_first: bool) -> Self {
        let limits = Limits {
            max_flows: 1_000,
            history: Duration::ZERO,
            idle: Duration::from_secs(3600),
            drain_interval: Duration::from_secs(1),
        };
        let table = FlowTable::shared(limits, 1);
        let mut processor = FlowProcessor::new(Arc::clone(&table), resolver());
        let mut take = |events: Vec<Event>| {
            let events: Vec<_> = events.into_iter().map(EnrichedEvent::plain).collect();
            processor.process(&events, &mut Output::default());
        };
        take(vec![count(udp(1), 1, 60, 100)]);
        if forgets_the_first {
            // Ended flows are kept by the whole second, so the history is over two seconds later.
            let time_ns = 3_000_000_000;
            let report = DrainReport { time_ns, ..DrainReport::default() };
            take(vec![Event::Released(udp(1)), count(udp(9), 1, 60, time_ns)]);
            take(vec![Event::Drained(Box::new(report))]);
        }
        take(later.into_iter().collect());
        let mut ledger = Ledger::default();
        let drain = |time_ns| DrainReport { time_ns, ..DrainReport::default() };
        ledger.close_drain(&drain(40));
        let mut tally = Tally::default();
        let volume = crate::event::Volume { packets: 3, bytes: 180 };
        tally.lose(losses::of_packets("flow_table", "no_room", volume));
        // Counted before it was lost, as in a table: the ledger still adds up.
        ledger.apply(&mut tally);
        ledger.close_drain(&drain(50));
        ledger.close_drain(&drain(60));
        Self(NetworkQueries {
            known: Knowledge::of_host(HostFacts::shared()),
            table,
            ledger: Arc::new(std::sync::Mutex::new(ledger)),
            status: Status::new("n1".into()),
            clock: ManualClock::at(60, OFFSET),
            max_limit: 100,
        })
    }

    fn ask(&self, request: &QueryFlowsRequest) -> (bool, String, usize) {
        let answer = self.0.query(request).unwrap();
        let node = &answer.nodes[0];
        assert_eq!(node.state == "ok", node.complete);
        assert_eq!(answer.loss.is_empty(), node.message.is_empty());
        (node.complete, node.message.clone(), answer.flows.len())
    }
}

#[test]
fn an_answer_without_a_beginning_is_charged_with_losses_since_its_oldest_flow() {
    let plain = QueryFlowsRequest::default();
    let told = "flow_table lost 3 packets (180 bytes): no_room";
    let nothing_forgotten = AfterLoss::holding([], false);
    assert_eq!(nothing_forgotten.ask(&plain), (false, told.to_owned(), 1));
    let forgotten = AfterLoss::holding([], true);
    assert_eq!(forgotten.ask(&plain), (true, String::new(), 1), "lost before what is held");
    let old_flow_is_held = AfterLoss::holding([count(udp(2), 1, 60, 45)], true);
    assert_eq!(old_flow_is_held.ask(&plain), (false, told.to_owned(), 2));
}

#[test]
fn an_old_loss_is_told_to_who_asks_for_its_time_or_for_a_flow_of_it() {
    let agent = AfterLoss::holding([count(udp(2), 1, 60, 45)], true);
    let since = |ns: i64| QueryFlowsRequest { start_time_ns: OFFSET + ns, ..Default::default() };
    assert!(!agent.ask(&since(45)).0);
    assert!(agent.ask(&since(51)).0);
    let to = |address: &str| {
        let field = Some(condition::Field::Ip(Strings { values: vec![address.to_owned()] }));
        let all = vec![Condition { side: 0, negate: false, field }];
        QueryFlowsRequest { filter: Some(FlowFilter { all }), ..Default::default() }
    };
    let (complete, _, flows) = agent.ask(&to("10.1.0.2"));
    assert_eq!((complete, flows), (false, 1), "the flow was counted while packets were lost");
    let (complete, _, flows) = agent.ask(&to("10.1.0.9"));
    assert_eq!((complete, flows), (true, 1), "the flow began after the loss");
}

proptest! {
    /// The heap gives what sorting everything and cutting would give.
    #[test]
    fn the_top_is_the_top_of_a_full_sort(
        flows in prop::collection::vec((1_u64..9, 1_u64..9, 1_u64..9), 1..60),
        field in 0_i32..7,
        ascending: bool,
        limit in 1_u32..70,
    ) {
        let events = flows.iter().enumerate().map(|(n, (packets, bytes, time))| {
            count(udp(u32::try_from(n).unwrap()), *packets, *bytes, *time)
        });
        let table = table(events);
        let field = Field::try_from(field).unwrap();
        let request = sorted(field, ascending, limit);
        let query = FlowQuery::compile(&request, 10_000, 0).unwrap();
        let mut all: Vec<_> = {
            let table = read(&table);
            let slots = 0..table.used_rows();
            slots.filter_map(|slot| table.row(slot).map(|flow| (slot, flow))).map(|(slot, flow)| {
                let volume = Volume { packets: flow.packets, bytes: flow.bytes };
                let rates = || table.snapshot().rates(&table, slot);
                (std::cmp::Reverse(query.rank(flow, volume, rates)), flow.flow_id)
            }).collect()
        };
        all.sort_unstable();
        all.truncate(limit as usize);
        let expected: Vec<_> = all.into_iter().map(|(_, id)| id).collect();
        prop_assert_eq!(ids(&run(&table, &request)), expected);
    }

    #[test]
    fn matched_counts_all_and_the_limit_cuts(
        ports in prop::collection::vec(1_u16..6, 0..50),
        first in 1_u32..6,
        limit in 1_u32..20,
    ) {
        let events = ports.iter().enumerate().map(|(n, port)| {
            let mut id = udp(u32::try_from(n).unwrap());
            id.key.dst_port = port.to_be_bytes();
            count(id, 1, 60, 1)
        });
        let table = table(events);
        let range = orb8_proto::v1::PortRange { first, last: first };
        let field = Some(condition::Field::Port(Ports { ranges: vec![range] }));
        let side = condition::Side::Destination.into();
        let filter = Some(FlowFilter { all: vec![Condition { side, negate: false, field }] });
        let found = run(&table, &QueryFlowsRequest { filter, limit, ..Default::default() });
        let expected = ports.iter().filter(|port| u32::from(**port) == first).count();
        prop_assert_eq!(found.matched, expected as u64);
        prop_assert_eq!(found.flows.len(), expected.min(limit as usize));
        for flow in &found.flows {
            prop_assert_eq!(u32::from(keys::ports(&flow.id.key).unwrap().1), first);
        }
    }
}

/// A step of the pipeline, or the next look of a query.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Look,
    Count,
}

proptest! {
    /// However drains and looks take turns, an answer is the totals of one drain, or none is given.
    #[test]
    fn looks_between_the_batches_of_drains_see_one_drain_or_know_that_they_do_not(
        turns in prop::collection::vec(prop_oneof![Just(Turn::Look), Just(Turn::Count)], 1..120),
        drained_before in 1_u64..4,
    ) {
        const FLOWS: u32 = 12;
        let limits = Limits {
            max_flows: FLOWS,
            history: Duration::from_secs(300),
            idle: Duration::from_secs(3600),
            drain_interval: Duration::from_secs(1),
        };
        let table = FlowTable::shared(limits, 0);
        let mut processor = FlowProcessor::new(Arc::clone(&table), resolver());
        let (mut drain, mut flow) = (1_u64, 0);
        // Two flows at a time, each a packet in each drain.
        let mut step = || {
            let now_ns = drain * 1_000_000_000;
            let mut events = vec![];
            for _ in 0..2 {
                events.push(EnrichedEvent::plain(count(udp(flow), 1, 60, now_ns)));
                flow += 1;
            }
            if flow == FLOWS {
                events.push(EnrichedEvent::plain(drained(now_ns)));
                (flow, drain) = (0, drain + 1);
            }
            processor.process(&events, &mut Output::default());
            drain - 1
        };
        let mut complete = 0;
        while complete < drained_before {
            complete = step();
        }
        let request = QueryFlowsRequest { limit: FLOWS, ..QueryFlowsRequest::default() };
        let mut query = FlowQuery::compile(&request, FLOWS, OFFSET).unwrap();
        let mut pass = query.begin(&read(&table));
        let wanted = complete;
        for turn in turns {
            match turn {
                Turn::Count => complete = step(),
                Turn::Look => match query.look(&mut pass, &read(&table), &node(), 5) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(Overtaken) => {
                        prop_assert!(complete > wanted, "within a drain nothing overtakes");
                        return Ok(());
                    }
                },
            }
        }
        if pass.next < FLOWS as usize {
            return Ok(());
        }
        for candidate in pass.best.iter() {
            match pass.copy(candidate, &read(&table)) {
                Ok(flow) => prop_assert_eq!((flow.packets, flow.bytes), (wanted, 60 * wanted)),
                Err(Overtaken) => prop_assert!(complete > wanted),
            }
        }
    }
}
