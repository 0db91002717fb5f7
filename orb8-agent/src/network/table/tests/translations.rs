//! Tests of what connection tracking tells late or takes back: pods behind the node's address, and
//! backends of Services. What is in doubt is nobody's, and stays so.

use std::net::SocketAddr;
use std::sync::Arc;

use orb8_common::network::scope;

use super::super::*;
use super::names::{Bench, began, counted, from_cgroup, verdicts};
use crate::conntrack::{Translation, Tuple};
use crate::event::{Event, FlowCount, FlowFacts, Scope};
use crate::testing::{World, cgroup_of, flow};

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Where the kernel found the packets to go.
fn with_scope(event: Event, scope: u8) -> Event {
    match event {
        Event::Count(count) => {
            let facts = FlowFacts { scope, ..FlowFacts::default() };
            Event::Count(FlowCount { facts, ..count })
        }
        other => other,
    }
}

/// The pods c (10.244.1.5) and d (10.244.1.6) of a node whose port 4000 hides them in turn from a
/// server outside.
struct Masked {
    bench: Bench,
    far: SocketAddr,
    mask: SocketAddr,
    id: FlowId,
}

impl Masked {
    fn new() -> Self {
        let mut world = World::synced();
        world.pod("shop/c", "n1", "10.244.1.5", 1).pod("shop/d", "n1", "10.244.1.6", 1);
        let (far, mask) = (socket("1.1.1.1:443"), socket("10.0.0.1:4000"));
        let id = flow(6, (mask.ip(), mask.port()), (far.ip(), far.port()), true);
        Self { bench: Bench::new(world), far, mask, id }
    }

    /// From `at_ns` on the port hides the pod with this last byte in its address.
    fn hide(&self, last: u8, at_ns: u64) -> Arc<Translation> {
        let pod = SocketAddr::from(([10, 244, 1, last], 4000));
        self.bench.world.translate((pod, self.far), (self.far, self.mask), at_ns)
    }

    /// Packets at the uplink that were no socket's of the host, as a pod's are.
    fn passing(&self, packets: u64, first_ns: u64, last_ns: u64) -> Event {
        with_scope(counted(self.id, packets, first_ns, last_ns), scope::NO_SOCKET)
    }

    fn scopes(&self) -> Vec<Scope> {
        self.bench.rows().iter().map(|flow| flow.scope).collect()
    }

    fn packets_by_scope(&self) -> Vec<(Scope, u64)> {
        let table = self.bench.table();
        table.shares().map(|it| (it.scope, it.volume.packets)).collect()
    }
}

#[test]
fn an_uplink_flow_that_is_translated_late_is_a_pods_and_forwarded() {
    let mut masked = Masked::new();
    masked.bench.feed([masked.passing(2, SECOND, SECOND)]);
    assert_eq!(masked.bench.named(), ["n1 address > external address: 2"]);
    assert_eq!(masked.scopes(), [Scope::Unclaimed]);
    assert_eq!(masked.bench.told(), [""; 0], "the kernel may be about to tell who is behind it");
    masked.hide(5, SECOND + MS);
    masked.bench.drain(2 * SECOND);
    assert_eq!(masked.bench.named(), ["c masqueraded > external address: 2"]);
    assert_eq!(masked.scopes(), [Scope::Forwarded]);
    assert_eq!(masked.bench.shares(), [("masqueraded ".to_owned(), 2)]);
    assert_eq!(masked.bench.told(), ["start c masqueraded"]);
}

#[test]
fn what_the_host_sends_where_a_pod_was_hidden_before_is_the_hosts() {
    let mut masked = Masked::new();
    let hidden = masked.hide(5, SECOND);
    masked.bench.feed([masked.passing(2, SECOND, SECOND)]).drain(2 * SECOND);
    hidden.end(3 * SECOND);
    for second in 4..7 {
        let count = counted(masked.id, 1, SECOND, second * SECOND);
        masked.bench.feed([count]).drain((second + 1) * SECOND);
    }
    let rows = ["c masqueraded > external address: 2", "n1 address > external address: 3"];
    assert_eq!(masked.bench.named(), rows);
    assert_eq!(masked.scopes(), [Scope::Forwarded, Scope::Local]);
    let shares = masked.packets_by_scope();
    assert!(shares.contains(&(Scope::Local, 3)) && shares.contains(&(Scope::Forwarded, 2)));
}

#[test]
fn what_is_counted_after_a_doubt_stands_in_a_row_of_its_own() {
    let mut masked = Masked::new();
    let old = masked.hide(5, 58 * SECOND);
    masked.bench.feed([masked.passing(4, 58 * SECOND, 58 * SECOND)]).drain(59 * SECOND + 500 * MS);
    old.end(60 * SECOND + 100 * MS);
    masked.hide(6, 60 * SECOND + 200 * MS);
    for (packets, second) in [(7, 60), (2, 61), (4, 62)] {
        let at_ns = second * SECOND + 500 * MS;
        if second == 62 {
            // Room was needed for others.
            masked.bench.world.forget(&old);
        }
        masked.bench.feed([masked.passing(packets, 58 * SECOND, at_ns)]).drain(at_ns);
    }
    assert_eq!(
        masked.bench.named(),
        [
            "c masqueraded > external address: 4",
            "unknown (address_ambiguous) > external address: 9",
            "d masqueraded > external address: 4",
        ]
    );
    assert_eq!(masked.scopes(), [Scope::Forwarded, Scope::Unclaimed, Scope::Forwarded]);
}

#[test]
fn a_start_that_was_named_by_the_connection_before_is_not_forwarded_for_good() {
    let mut masked = Masked::new();
    let old = masked.hide(5, SECOND);
    masked.bench.feed([began(masked.id, 60 * SECOND)]);
    assert_eq!(masked.scopes(), [Scope::Forwarded], "that it is over was not told yet");
    old.end(60 * SECOND + MS);
    let count = counted(masked.id, 3, 60 * SECOND, 60 * SECOND + 500 * MS);
    masked.bench.feed([count]).drain(61 * SECOND);
    assert_eq!(masked.bench.named(), ["n1 address > external address: 3"]);
    assert_eq!(masked.scopes(), [Scope::Local]);
    assert_eq!(masked.packets_by_scope(), [(Scope::Local, 3)]);
}

/// A row that was named by a connection that was over, which is told when the row counts on, or
/// when it has ended.
#[test]
fn whom_a_mask_hid_is_taken_back_where_it_turns_out_to_be_doubtful_and_stays_so() {
    for (ends, scope_after) in [(false, Scope::Unknown), (true, Scope::Unclaimed)] {
        let mut masked = Masked::new();
        let old = masked.hide(5, SECOND);
        let at_ns = 60 * SECOND;
        masked.bench.feed([masked.passing(1, at_ns, at_ns)]);
        assert_eq!(masked.bench.named(), ["c masqueraded > external address: 1"]);
        if ends {
            masked.bench.feed([Event::Released(masked.id)]);
        }
        old.end(at_ns + MS);
        let new = masked.hide(6, at_ns + 2 * MS);
        masked.bench.drain(61 * SECOND);
        let doubt = "unknown (address_ambiguous) > external address: 1";
        assert_eq!(masked.bench.named(), [doubt]);
        assert_eq!(masked.scopes(), [scope_after], "that it was forwarded is taken back");
        // Of the two that made the doubt, one is forgotten and then the other.
        for (second, forgotten) in [(92, &old), (122, &new)] {
            masked.bench.world.forget(forgotten);
            masked.bench.world.pod("shop/e", "n1", "10.244.1.9", second);
            masked.bench.drain(second * SECOND);
            assert_eq!(masked.bench.named(), [doubt]);
        }
        assert_eq!(masked.bench.shares(), [("none address_ambiguous".to_owned(), 1)]);
    }
}

/// Where the connection of a row went, and what the row counted.
fn backends(bench: &Bench) -> Vec<String> {
    let backend = |flow: &FlowRecord| {
        let found = flow.translation.as_ref().map(|it| it.reply.src.to_string());
        format!("{} {}", found.unwrap_or_default(), flow.packets)
    };
    bench.rows().iter().map(backend).collect()
}

/// The pod c asks a Service from its port 4000: the flow of its socket.
fn served() -> (Bench, FlowId) {
    let mut world = World::synced();
    world.pod("shop/c", "n1", "10.244.1.5", 1);
    world.service("shop/web", "10.96.0.10", 0, 2, 1);
    let bench = Bench::new(world);
    bench.world.cgroup(7, &cgroup_of("shop/c"));
    (bench, from_cgroup(7, "10.244.1.5:4000", "10.96.0.10:80"))
}

/// From `at_ns` on the n-th backend answers it.
fn answered(bench: &Bench, n: u8, at_ns: u64) -> Arc<Translation> {
    let (client, service) = (socket("10.244.1.5:4000"), socket("10.96.0.10:80"));
    let backend = SocketAddr::from(([10, 244, 2, n], 8080));
    bench.world.translate((client, service), (backend, client), at_ns)
}

#[test]
fn a_reused_port_is_not_given_the_backend_of_the_connection_before() {
    let (mut bench, id) = served();
    let old = answered(&bench, 1, SECOND);
    bench.feed([counted(id, 3, SECOND, 9 * SECOND)]).drain(10 * SECOND);
    assert_eq!(backends(&bench), ["10.244.2.1:8080 3"]);
    // The kernel ends it for this packet, and tells so afterwards.
    let at_ns = 60 * SECOND;
    old.end(at_ns + MS);
    let new = answered(&bench, 2, at_ns + 2 * MS);
    bench.feed([counted(id, 1, SECOND, at_ns)]).drain(61 * SECOND);
    assert_eq!(backends(&bench), ["10.244.2.1:8080 3", " 1"]);
    assert!(bench.rows().iter().all(|flow| flow.ends.asked.is_some()), "the Service is certain");
    bench.drain(62 * SECOND).drain(63 * SECOND);
    bench.feed([counted(id, 2, SECOND, at_ns + 5 * SECOND)]).drain(66 * SECOND);
    assert_eq!(backends(&bench), ["10.244.2.1:8080 3", " 1", "10.244.2.2:8080 2"]);
    // Of the two that made the doubt, one is forgotten and then the other.
    for (second, forgotten) in [(91, &old), (121, &new)] {
        bench.world.forget(forgotten);
        bench.world.pod("shop/other", "n1", "10.244.1.9", second);
        bench.drain(second * SECOND);
        assert_eq!(backends(&bench), ["10.244.2.1:8080 3", " 1", "10.244.2.2:8080 2"]);
    }
}

#[test]
fn a_connection_that_opens_on_a_port_that_is_reused_has_its_own_backend_from_its_first_packet_on() {
    // Whether a connection ends in one drain or goes on, and whether its start is read before the
    // count or after it.
    for (last_ns, is_counted_first) in [(0, false), (0, true), (5 * MS, false), (500 * MS, true)] {
        let (mut bench, id) = served();
        let old = answered(&bench, 1, SECOND);
        // The kernel ends what waits for its time for the packet that opens, and tells both late.
        let at_ns = 60 * SECOND;
        old.end(at_ns + MS);
        answered(&bench, 2, at_ns + 2 * MS);
        let mut events = vec![began(id, at_ns), counted(id, 4, at_ns, at_ns + last_ns)];
        if is_counted_first {
            events.reverse();
        }
        bench.feed(events).drain(61 * SECOND);
        assert_eq!(backends(&bench), ["10.244.2.2:8080 4"], "{last_ns} {is_counted_first}");
        bench.feed([counted(id, 2, at_ns, 61 * SECOND + 5 * MS)]).drain(62 * SECOND);
        assert_eq!(backends(&bench), ["10.244.2.2:8080 6"], "{last_ns} {is_counted_first}");
    }
}

#[test]
fn a_connection_that_opens_behind_a_port_that_hid_another_pod_is_the_pods_that_it_hides_now() {
    let mut masked = Masked::new();
    let at_ns = 60 * SECOND;
    let old = masked.hide(5, SECOND);
    masked.bench.feed([began(masked.id, at_ns)]);
    old.end(at_ns + MS);
    masked.hide(6, at_ns + 2 * MS);
    masked.bench.feed([masked.passing(3, at_ns, at_ns + 500 * MS)]).drain(61 * SECOND);
    assert_eq!(masked.bench.named(), ["d masqueraded > external address: 3"]);
    assert_eq!(masked.scopes(), [Scope::Forwarded]);
}

#[test]
fn another_port_of_the_same_mask_splits_no_row() {
    let mut world = World::synced();
    world.pod("shop/c", "n1", "10.244.1.5", 1);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, &cgroup_of("shop/c"));
    let (pod, far) = (socket("10.244.1.5:123"), socket("1.1.1.1:123"));
    let id = from_cgroup(7, "10.244.1.5:123", "1.1.1.1:123");
    let first = bench.world.translate((pod, far), (far, socket("10.0.0.1:31000")), SECOND);
    bench.feed([counted(id, 3, SECOND, SECOND)]).drain(2 * SECOND);
    first.end(40 * SECOND + MS);
    bench.world.translate((pod, far), (far, socket("10.0.0.1:32000")), 40 * SECOND + 2 * MS);
    bench.feed([counted(id, 2, SECOND, 40 * SECOND)]).drain(41 * SECOND);
    assert_eq!(bench.named(), ["c cgroup > external address: 5"]);
}

#[test]
fn pings_of_two_pods_behind_one_mask_are_nobodys_while_both_may_ping_and_then_the_others() {
    let mut masked = Masked::new();
    let tuple = |src: SocketAddr, dst: SocketAddr| Tuple { protocol: 1, src, dst };
    let (far, mask) = (socket("1.1.1.1:0"), socket("10.0.0.1:0"));
    let ping = |masked: &Masked, last: u8, at_ns| {
        let pod = SocketAddr::from(([10, 244, 1, last], 0));
        let translation = Translation::new(tuple(pod, far), tuple(far, mask), at_ns);
        masked.bench.world.known.translations.insert(translation)
    };
    masked.id = flow(1, (mask.ip(), 8), (far.ip(), 0), true);
    let first = ping(&masked, 5, SECOND);
    masked.bench.feed([masked.passing(2, SECOND, SECOND + 500 * MS)]).drain(2 * SECOND);
    assert_eq!(masked.bench.named(), ["c masqueraded > external address: 2"]);
    // The first one's last packet is a second before this at most.
    ping(&masked, 6, 2 * SECOND + 100 * MS);
    for second in 2..6 {
        let at_ns = second * SECOND + 500 * MS;
        masked.bench.feed([masked.passing(1, SECOND, at_ns)]).drain((second + 1) * SECOND);
    }
    first.end(6 * SECOND);
    masked.bench.world.forget(&first);
    for second in 40..43 {
        masked.bench.drain(second * SECOND);
    }
    masked.bench.feed([masked.passing(4, SECOND, 42 * SECOND + 500 * MS)]).drain(43 * SECOND);
    let rows = [
        "c masqueraded > external address: 2",
        "unknown (address_ambiguous) > external address: 4",
        "d masqueraded > external address: 4",
    ];
    assert_eq!(masked.bench.named(), rows);
}

#[test]
fn a_port_of_the_nodes_that_passes_on_names_no_young_row_that_was_translated() {
    let bench = &mut Bench::new(World::synced());
    bench.world.service("shop/old", "10.96.0.10", 30_080, 1, SECOND);
    let (client, dialled) = (socket("10.244.1.5:40000"), socket("10.0.0.1:30080"));
    bench.world.translate((client, dialled), (socket("10.244.2.1:8080"), client), SECOND);
    let id = from_cgroup(7, &client.to_string(), &dialled.to_string());
    bench.feed([began(id, 2 * SECOND), counted(id, 3, 2 * SECOND, 2 * SECOND)]).drain(3 * SECOND);
    assert_eq!(verdicts(bench), ["old Ok: 3"]);
    bench.world.remove_service("shop/old", 3 * SECOND);
    bench.world.service("shop/new", "10.96.0.11", 30_080, 1, 4 * SECOND);
    bench.drain(5 * SECOND);
    assert_eq!(verdicts(bench), ["old Ok: 3"]);
}

#[test]
fn a_long_flow_whose_backend_changes_splits_the_row() {
    let bench = &mut Bench::new(World::synced());
    bench.world.service("shop/web", "10.96.0.10", 0, 2, SECOND);
    let (client, service) = (socket("10.244.1.5:40000"), socket("10.96.0.10:80"));
    let answers = |n: u8| (SocketAddr::from(([10, 244, 2, n], 8080)), client);
    let first = bench.world.translate((client, service), answers(1), 2 * SECOND);
    let id = from_cgroup(7, &client.to_string(), &service.to_string());
    bench.feed([began(id, 2 * SECOND), counted(id, 3, 2 * SECOND, 2 * SECOND)]).drain(3 * SECOND);
    let second_passes = |bench: &mut Bench, second| {
        let at_ns = second * SECOND + 500 * MS;
        bench.feed([counted(id, 1, 2 * SECOND, at_ns)]).drain((second + 1) * SECOND);
    };
    for second in 3..20 {
        second_passes(bench, second);
    }
    first.end(20 * SECOND + 100 * MS);
    bench.world.translate((client, service), answers(2), 20 * SECOND + 200 * MS);
    for second in 20..24 {
        second_passes(bench, second);
    }
    assert_eq!(backends(bench), ["10.244.2.1:8080 20", " 2", "10.244.2.2:8080 2"]);
    let states: Vec<_> = bench.rows().iter().map(|flow| flow.state).collect();
    let ended = FlowState::Ended(EndReason::PeerChanged);
    assert_eq!(states, [ended, ended, FlowState::Active]);
    assert_eq!(verdicts(bench), ["web Ok: 20", "web Ok: 2", "web Ok: 2"]);
    bench.world.forget(&first);
    bench.world.pod("shop/other", "n1", "10.244.1.9", 51 * SECOND);
    bench.drain(51 * SECOND);
    let after = ["10.244.2.1:8080 20", " 2", "10.244.2.2:8080 2"];
    assert_eq!(backends(bench), after, "what is forgotten leaves its rows to nobody else");
}
