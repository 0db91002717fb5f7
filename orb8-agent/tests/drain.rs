//! A steady drain allocates nothing for a row, and a query beside it sees the totals of one drain.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod counting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use counting::allocations;
use orb8_agent::clock::Clock;
use orb8_agent::export::feed::Queries;
use orb8_agent::testing::{Drains, ManualClock};
use orb8_proto::v1::QueryFlowsRequest;

const A_CALL: u32 = 2048;

fn clock() -> Arc<dyn Clock> {
    ManualClock::at(100_000_000_000, 0)
}

/// What the stages allocate in a drain of so many flows that have counted in earlier ones.
fn of_a_drain(flows: u32) -> usize {
    let (_drains, mut drainer) = Drains::of(flows);
    (0..15).for_each(|_| drainer.drain(A_CALL));
    drainer.begin();
    let (mut first, mut allocated) = (0, 0);
    while first < flows {
        first = drainer.make(first, A_CALL);
        allocated += allocations(|| drainer.move_all());
    }
    allocated
}

#[test]
fn a_steady_drain_allocates_nothing_for_a_row() {
    let few = of_a_drain(100);
    assert_eq!(of_a_drain(5_000), few);
    assert!(few <= 4, "the end of a drain may allocate, and did so {few} times");
    assert_eq!(allocations(|| drop(Box::new(1_u64))), 1, "allocations are counted");
}

#[test]
fn a_query_allocates_nothing_for_a_row_that_it_does_not_show() {
    let of_a_query = |flows| {
        let (drains, mut drainer) = Drains::of(flows);
        drainer.drain(A_CALL);
        let queries = drains.queries(clock());
        let request = QueryFlowsRequest { limit: 10, ..QueryFlowsRequest::default() };
        allocations(|| {
            assert_eq!(queries.query(&request).unwrap().matched, u64::from(flows));
        })
    };
    assert_eq!(of_a_query(5_000), of_a_query(100));
}

/// Ends the drains, also where an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn queries_beside_drains_without_a_pause_see_whole_drains() {
    const FLOWS: u32 = 10_000;
    let (drains, mut drainer) = Drains::of(FLOWS);
    drainer.drain(A_CALL);
    let queries = drains.queries(clock());
    let request = QueryFlowsRequest { limit: FLOWS, ..QueryFlowsRequest::default() };
    let go_on = AtomicBool::new(true);
    let drained = std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            while go_on.load(Ordering::Relaxed) {
                drainer.drain(A_CALL);
            }
            drainer.drain
        });
        let stop = Stop(&go_on);
        let mut last = 0;
        for _ in 0..10 {
            let answer = queries.query(&request).unwrap();
            assert_eq!((answer.flows.len(), answer.matched), (FLOWS as usize, FLOWS.into()));
            let packets = answer.flows[0].packets;
            let is_whole = |flow: &orb8_proto::v1::NetworkFlow| {
                flow.packets == packets && flow.bytes == 100 * packets
            };
            assert!(answer.flows.iter().all(is_whole), "one drain's totals and no other's");
            assert!(packets >= last, "time does not go back");
            last = packets;
        }
        drop(stop);
        counting.join().unwrap()
    });
    let whole = queries.query(&request).unwrap();
    assert!(whole.flows.iter().all(|flow| flow.packets == drained), "nothing is left out for good");
}
