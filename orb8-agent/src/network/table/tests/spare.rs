//! Tests of which counts enrichers are asked about.

use orb8_common::network::scope;

use super::names::{Bench, from_cgroup};
use super::*;
use crate::event::{FlowFacts, Scope};
use crate::testing::{World, cgroup_of};

const SECOND: u64 = 1_000_000_000;

/// A count at line 3.
fn counted(id: FlowId, time_ns: u64, cgroup_id: u64, scope: u8) -> FlowCount {
    let facts = FlowFacts { cgroup_id, scope, ..FlowFacts::default() };
    FlowCount {
        id,
        line: 3,
        new_line: false,
        packets: 1,
        bytes: 60,
        first_seen_ns: SECOND,
        last_seen_ns: time_ns,
        facts,
    }
}

/// Whether enrichers are asked about this count, which comes then.
fn is_wanted(bench: &mut Bench, count: FlowCount) -> bool {
    let mut events = [EnrichedEvent::plain(Event::Count(count))];
    bench.processor.spare(&mut events);
    let [EnrichedEvent { event, wanted, .. }] = events;
    bench.feed([event]);
    wanted
}

#[test]
fn a_count_is_spared_when_its_row_has_all_that_could_be_added() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 1);
    world.cgroup(7, &cgroup_of("shop/web"));
    let mut bench = Bench::new(world);
    let id = from_cgroup(7, "10.244.1.5:40000", "10.244.2.7:80");
    let at = |time_ns| counted(id, time_ns, 0, scope::SOCKET);
    assert!(is_wanted(&mut bench, at(SECOND)), "there is no row yet");
    assert!(is_wanted(&mut bench, at(SECOND + 1)), "the process may still be told");
    bench.drain(3 * SECOND);
    assert!(!is_wanted(&mut bench, at(3 * SECOND)));
    assert!(is_wanted(&mut bench, FlowCount { new_line: true, ..at(4 * SECOND) }));
    let other = from_cgroup(7, "10.244.1.5:40001", "10.244.2.7:80");
    assert!(is_wanted(&mut bench, FlowCount { id: other, ..at(4 * SECOND) }));
    assert_eq!(bench.named()[0], "web cgroup > unknown (address_unknown): 4");
}

#[test]
fn what_a_row_lacks_is_asked_for_at_each_count() {
    let always = |id: FlowId, cgroup_id, scope| {
        let mut bench = Bench::new(World::synced());
        for seconds in 1..5 {
            assert!(is_wanted(&mut bench, counted(id, seconds * SECOND, cgroup_id, scope)));
            bench.drain(seconds * SECOND + 1);
        }
    };
    let at_interface = |owner| FlowId { owner, ..udp(1) };
    always(from_cgroup(8, "10.244.1.5:40000", "10.244.2.7:80"), 0, scope::SOCKET);
    always(at_interface(9), 0, scope::SOCKET);
    always(at_interface(2), 8, scope::SOCKET);
    always(at_interface(2), 0, scope::UNKNOWN);
}

#[test]
fn a_row_that_a_spared_count_begins_has_no_scope_until_the_next_drain_asks() {
    const GRE: u8 = 47;
    let mut bench = Bench::new(World::synced());
    let id = flow(GRE, ([10, 9, 9, 9].into(), 0), ([10, 9, 9, 8].into(), 0), true);
    let at = |seconds| Event::Count(counted(id, seconds * SECOND, 0, scope::UNKNOWN));
    let scopes = |bench: &Bench| -> Vec<_> { bench.rows().iter().map(|row| row.scope).collect() };
    bench.feed_sparing([at(1)]).drain(2 * SECOND);
    assert_eq!(scopes(&bench), [Scope::Forwarded], "the host has neither address");
    // The row that has all ends between the question and the count.
    bench.feed_sparing([Event::Released(id), at(3)]);
    assert_eq!(scopes(&bench), [Scope::Forwarded, Scope::Unknown]);
    bench.drain(4 * SECOND).feed_sparing([at(5)]);
    assert_eq!(scopes(&bench), [Scope::Forwarded, Scope::Forwarded]);
}
