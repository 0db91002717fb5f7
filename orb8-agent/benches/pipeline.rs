//! What a count costs from the drain to the table, and a query beside it: no kernel, no network.
//!
//! `cargo bench -p orb8-agent --bench pipeline [-- FLOWS [DRAINS]]`. Every flow has names at both
//! ends and counts in each drain. Prints nanoseconds of CPU a flow and drain of the stages
//! alone, and the time that queries take.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that prints figures"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orb8_agent::clock::Clock;
use orb8_agent::export::feed::Queries;
use orb8_agent::network::query::NetworkQueries;
use orb8_agent::testing::{Drainer, Drains, ManualClock};
use orb8_proto::v1::QueryFlowsRequest;

/// What the line source gives in one call.
const A_CALL: u32 = 2048;

/// CPU time of this thread: others may keep it waiting.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

/// The next drain; the time that its events took to make, and to move.
fn drain(drainer: &mut Drainer, flows: u32) -> (Duration, Duration) {
    let (mut made, mut moved) = (Duration::ZERO, Duration::ZERO);
    drainer.begin();
    let mut first = 0;
    while first < flows {
        let start = cpu_time();
        first = drainer.make(first, A_CALL);
        let between = cpu_time();
        made += between - start;
        drainer.move_all();
        moved += cpu_time() - between;
    }
    (made, moved)
}

fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3
}

fn ask(queries: &NetworkQueries, times: usize, go_on: &AtomicBool) -> Vec<Duration> {
    let request = QueryFlowsRequest { limit: 100, ..QueryFlowsRequest::default() };
    let mut taken = Vec::new();
    while taken.len() < times || go_on.load(Ordering::Relaxed) {
        let start = Instant::now();
        let answer = queries.query(&request).unwrap();
        taken.push(start.elapsed());
        assert_eq!(answer.flows.len(), 100);
        assert!(answer.flows.iter().all(|flow| flow.pod_name.starts_with("own")));
    }
    taken.sort_unstable();
    taken
}

fn main() {
    let numbers: Vec<u32> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let flows = numbers.first().copied().unwrap_or(100_000);
    let times = numbers.get(1).copied().unwrap_or(40);
    let (drains, mut drainer) = Drains::of(flows);
    let reserved = drains.table.read().reserved_bytes();
    // The first drain names, in the next ones the flows are young.
    let first = drain(&mut drainer, flows);
    (0..15).for_each(|_| drainer.drain(A_CALL));
    let taken = (0..times).map(|_| drain(&mut drainer, flows));
    let (mut made, mut moved): (Vec<_>, Vec<_>) = taken.unzip();
    made.sort_unstable();
    moved.sort_unstable();
    let ns = |taken: Duration| taken.as_nanos() as f64 / f64::from(flows);
    println!("flows {flows}, {} bytes reserved a flow", reserved / flows as usize);
    println!("first drain: {:.0} ns a flow", ns(first.1));
    println!(
        "later drains: least {:.0}, median {:.0} ns a flow; to make the events: {:.0}",
        ns(moved[0]),
        ns(moved[moved.len() / 2]),
        ns(made[0])
    );
    let clock: Arc<dyn Clock> = ManualClock::at(100_000_000_000, 0);
    let queries = drains.queries(clock);
    let alone = ask(&queries, 100, &AtomicBool::new(false));
    let busy = AtomicBool::new(true);
    let (beside, taken) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&queries, 0, &busy));
        let taken: Vec<_> = (0..times).map(|_| ns(drain(&mut drainer, flows).1)).collect();
        busy.store(false, Ordering::Relaxed);
        (asked.join().unwrap(), taken)
    });
    for (what, taken) in [("alone", &alone), ("beside drains without a pause", &beside)] {
        let [p50, p99, most] = [50, 99, 100].map(|percent| quantile(taken, percent));
        println!("query {what}: p50 {p50:.2}, p99 {p99:.2}, most {most:.2} ms of {}", taken.len());
    }
    let mean = taken.iter().sum::<f64>() / taken.len() as f64;
    println!("drains beside queries: {mean:.0} ns a flow");
}
