//! Tests of naming over time: late names, held starts, split rows, exact shares, no allocation.

use std::net::{IpAddr, SocketAddr};

use orb8_common::network::{FlowKey, PacketEvent, flag, scope};
use proptest::prelude::*;

use super::super::*;
use crate::cgroup::Memberships;
use crate::event::{Attribution, Event, FlowCount, FlowFacts, SignalKind};
use crate::k8s::identity::{OwnerEnricher, Resolver};
use crate::network::keys;
use crate::pipeline::enricher::{EnrichedEvent, EventEnricher};
use crate::pipeline::processor::EventProcessor as _;
use crate::testing::{World, cgroup_of, flow, signal};

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
const SYN: u8 = 2;

/// A table with the world that names its flows, and what it has told.
pub(super) struct Bench {
    pub(super) world: World,
    enricher: OwnerEnricher,
    table: super::Bench,
}

impl std::ops::Deref for Bench {
    type Target = super::Bench;

    fn deref(&self) -> &super::Bench {
        &self.table
    }
}

impl Bench {
    pub(super) fn new(world: World) -> Self {
        let known = world.known.clone();
        let memberships = Memberships::unanswered(known.cgroups.clone());
        let enricher = OwnerEnricher::new(Arc::clone(&known.facts), memberships, keys::of_event);
        let table = super::Bench::with(super::limits(64), Resolver::new(known));
        Self { world, enricher, table }
    }

    pub(super) fn feed(&mut self, events: impl IntoIterator<Item = Event>) -> &mut Self {
        let mut events: Vec<_> = events.into_iter().map(EnrichedEvent::plain).collect();
        for event in &mut events {
            self.enricher.enrich(event);
        }
        self.table.process(&events);
        self
    }

    /// As the pipeline does it: what all rows have is not asked for.
    pub(super) fn feed_sparing(&mut self, events: impl IntoIterator<Item = Event>) -> &mut Self {
        let mut events: Vec<_> = events.into_iter().map(EnrichedEvent::plain).collect();
        self.table.processor.spare(&mut events);
        for event in events.iter_mut().filter(|event| event.wanted) {
            self.enricher.enrich(event);
        }
        self.table.process(&events);
        self
    }

    pub(super) fn drain(&mut self, time_ns: u64) -> &mut Self {
        self.feed([super::drained(time_ns)])
    }

    /// Rows as owner, peer and packets.
    pub(super) fn named(&self) -> Vec<String> {
        let row = |flow: &FlowRecord| {
            let (owner, peer) = (word(&flow.ends.owner), word(&flow.ends.peer));
            format!("{owner} > {peer}: {}", flow.packets)
        };
        self.rows().iter().map(row).collect()
    }

    pub(super) fn told(&mut self) -> Vec<String> {
        let word = |told: Told| match told {
            Told::FlowStart(flow) => format!("start {}", word(&flow.ends.owner)),
            Told::FlowEnd(flow) => format!("end {:?}", flow.state),
            other => format!("{other:?}"),
        };
        self.table.output.told.drain(..).map(word).collect()
    }

    /// Packets by the owner's attribution and reason.
    pub(super) fn shares(&self) -> Vec<(String, u64)> {
        let table = self.table();
        let word = |share: &Share| {
            format!("{} {}", share.how.attribution.as_str(), share.how.reason.as_str())
        };
        table.shares().map(|share| (word(&share), share.volume.packets)).collect()
    }
}

fn word(end: &crate::event::End) -> String {
    use crate::event::End;
    let name = match end {
        End::Pod(_, pod) => pod.identity().map_or("?", |of| &*of.name).to_owned(),
        End::Node(_, node) => node.name.to_string(),
        End::Service(_, service) => service.name.to_string(),
        End::Unknown(_) | End::External(_) | End::Process(_) => end.kind().to_owned(),
    };
    let how = end.how();
    match how.attribution {
        Attribution::None => format!("{name} ({})", how.reason.as_str()),
        attribution => format!("{name} {}", attribution.as_str()),
    }
}

/// The egress flow of the socket of a cgroup.
pub(super) fn from_cgroup(cgroup: u64, source: &str, destination: &str) -> FlowId {
    let (source, destination): (SocketAddr, SocketAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let turn = |it: SocketAddr| (it.ip(), it.port());
    let mut id = flow(6, turn(source), turn(destination), true);
    id.key.flags |= flag::SOCKET_PLANE;
    id.owner = cgroup;
    id
}

pub(super) fn counted(id: FlowId, packets: u64, first_seen_ns: u64, last_seen_ns: u64) -> Event {
    let facts = FlowFacts { scope: scope::SOCKET, ..FlowFacts::default() };
    let bytes = 100 * packets;
    Event::Count(FlowCount {
        id,
        line: 0,
        new_line: false,
        packets,
        bytes,
        first_seen_ns,
        last_seen_ns,
        facts,
    })
}

pub(super) fn began(id: FlowId, at_ns: u64) -> Event {
    signal(id, SignalKind::Start, at_ns, SYN)
}

#[test]
fn a_row_of_a_pod_that_is_told_later_is_named_with_all_it_has_counted() {
    let mut bench = Bench::new(World::synced());
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    let id = from_cgroup(7, "10.244.1.5:40000", "1.1.1.1:443");
    bench.feed([began(id, 2 * SECOND), counted(id, 3, 2 * SECOND, 2 * SECOND)]);
    assert_eq!(bench.named(), ["? (pod_unknown) > external address: 3"]);
    assert_eq!(bench.told(), [""; 0], "the start waits for the name");
    assert_eq!(bench.shares(), [("none pod_unknown".to_owned(), 3)]);
    bench.world.pod("shop/web", "n1", "10.244.1.5", 2 * SECOND + MS);
    bench.feed([counted(id, 1, 2 * SECOND, 2 * SECOND + 2 * MS)]);
    assert_eq!(bench.told(), ["start web cgroup"]);
    assert_eq!(bench.named(), ["web cgroup > external address: 4"]);
    assert_eq!(bench.shares(), [("cgroup ".to_owned(), 4)]);
}

#[test]
fn a_start_that_gets_no_name_is_told_with_the_next_drain_and_an_end_never_comes_first() {
    let mut bench = Bench::new(World::synced());
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    let id = from_cgroup(7, "10.244.1.5:40000", "1.1.1.1:443");
    let other = from_cgroup(7, "10.244.1.5:40001", "1.1.1.1:443");
    bench.feed([began(id, SECOND), began(other, SECOND)]);
    bench.feed([Event::Released(other)]);
    assert_eq!(bench.told(), ["start ? (pod_unknown)", "end Ended(Idle)"]);
    bench.drain(2 * SECOND);
    let told = bench.told();
    assert_eq!(told[0], "start ? (pod_unknown)", "{told:?}");
    assert!(bench.table().changed(0, 0, 1).is_none(), "nothing changed since it was told");
    bench.world.pod("shop/web", "n1", "10.244.1.5", 2 * SECOND);
    bench.drain(3 * SECOND);
    let table = bench.table();
    let changed = table.changed(0, 1, 2).expect("the name is an update");
    assert_eq!(word(&changed.ends.owner), "web cgroup");
    assert_eq!(table.snapshot().rates(&table, 0), (0.0, 0.0));
}

#[test]
fn a_start_waits_a_second_for_its_name_however_far_away_the_next_drain_is() {
    let mut bench = Bench::new(World::synced());
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    bench.world.cgroup(8, "/system.slice/sshd.service");
    let id = from_cgroup(7, "10.244.1.5:40000", "1.1.1.1:443");
    let other = |port: u32| from_cgroup(8, &format!("10.0.0.1:{port}"), "1.1.1.1:443");
    bench.feed([began(id, 2 * SECOND), began(other(1), 3 * SECOND)]);
    assert_eq!(bench.told(), ["start process cgroup"], "a second is not over");
    bench.feed([began(other(2), 3 * SECOND + 1)]);
    assert_eq!(bench.told(), ["start process cgroup", "start ? (pod_unknown)"]);
    bench.drain(6 * SECOND);
    assert_eq!(bench.told(), [""; 0], "once");
}

#[test]
fn starts_wait_in_a_bounded_place() {
    let mut bench = Bench::new(World::synced());
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    let limits = Limits { max_flows: 4_096, ..bench.table().limits };
    let resolver = Resolver::new(bench.world.known.clone());
    bench.table.processor = FlowProcessor::new(FlowTable::shared(limits, 0), resolver);
    let id = |port: u32| from_cgroup(7, &format!("10.244.1.5:{port}"), "1.1.1.1:443");
    bench.feed((1..2_001).map(|port| began(id(port), SECOND)));
    assert_eq!(bench.told().len(), 2_000 - name::MAX_HELD, "the rest is told at once");
    bench.drain(2 * SECOND);
    assert_eq!(bench.told().len(), name::MAX_HELD);
}

#[test]
fn an_address_that_changes_hands_splits_the_row_and_the_time_between_is_nobodys() {
    let mut world = World::synced();
    world.pod("shop/old", "n2", "10.244.2.5", SECOND);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, "/system.slice/curl.service");
    let id = from_cgroup(7, "10.0.0.1:40000", "10.244.2.5:80");
    bench.feed([began(id, 2 * SECOND), counted(id, 5, 2 * SECOND, 2 * SECOND + 500 * MS)]);
    bench.drain(3 * SECOND);
    bench.feed([counted(id, 1, 2 * SECOND, 3 * SECOND + 100 * MS)]).drain(4 * SECOND);
    assert_eq!(bench.named(), ["process cgroup > old address: 6"]);
    // It ends, and another pod of the node gets its address, between two drains.
    bench.world.delete("shop/old", 4 * SECOND + 200 * MS);
    bench.world.pod("shop/new", "n2", "10.244.2.5", 4 * SECOND + 400 * MS);
    bench.feed([counted(id, 7, 2 * SECOND, 4 * SECOND + 900 * MS)]).drain(5 * SECOND);
    for second in 5..9 {
        let at_ns = second * SECOND + 900 * MS;
        bench.feed([counted(id, 1, 2 * SECOND, at_ns)]).drain((second + 1) * SECOND);
    }
    let rows = bench.named();
    assert_eq!(rows[0], "process cgroup > old address_reused: 6");
    assert!(rows[1].starts_with("process cgroup > unknown (address_ambiguous): "), "{rows:?}");
    assert!(rows[2].starts_with("process cgroup > new address: "), "{rows:?}");
    assert_eq!(bench.rows().iter().map(|flow| flow.packets).sum::<u64>(), 17);
    let states: Vec<_> = bench.rows().iter().map(|flow| flow.state).collect();
    let changed = FlowState::Ended(EndReason::PeerChanged);
    assert_eq!(states, [changed, changed, FlowState::Active]);
    let told = bench.told();
    assert_eq!(told.iter().filter(|it| it.starts_with("start")).count(), 3, "{told:?}");
}

#[test]
fn what_a_pod_of_this_node_counted_proves_whom_others_talked_to_in_the_second_of_a_handover() {
    let mut world = World::synced();
    world.pod("shop/old", "n1", "10.244.1.5", SECOND);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, "/system.slice/sshd.service");
    bench.world.cgroup(8, &cgroup_of("shop/old"));
    let own = from_cgroup(8, "10.244.1.5:40000", "10.0.0.1:22");
    let at_server =
        |owner| FlowId { key: FlowKey { flags: own.key.flags ^ flag::EGRESS, ..own.key }, owner };
    let (near, alone) = (at_server(7), from_cgroup(7, "10.0.0.1:23", "10.244.1.5:40001"));
    let until_ns = 10 * SECOND + 300 * MS;
    bench.feed([
        counted(near, 5, 10 * SECOND + 100 * MS, until_ns),
        counted(alone, 1, 2 * SECOND, until_ns + 100 * MS),
        counted(own, 5, 2 * SECOND, until_ns),
    ]);
    bench.drain(10 * SECOND + 500 * MS);
    bench.world.delete("shop/old", 10 * SECOND + 600 * MS);
    // Made in the same second, so as far as the API tells it may have had the address all the time.
    bench.world.pod_with("shop/new", "n1", "10.244.1.5", 10 * SECOND + 700 * MS, |pod| {
        pod["metadata"]["creationTimestamp"] = "1970-01-01T00:00:10Z".into();
    });
    bench.drain(11 * SECOND).drain(12 * SECOND);
    let expected = [
        "process cgroup > old address_reused: 5",
        "process cgroup > unknown (address_ambiguous): 1",
        "old cgroup > n1 address: 5",
    ];
    assert_eq!(bench.named(), expected);
}

#[test]
fn a_row_that_was_named_stays_named_when_the_pod_is_forgotten() {
    let mut world = World::synced();
    world.pod("shop/web", "n2", "10.244.2.5", SECOND);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, "/system.slice/curl.service");
    let id = from_cgroup(7, "10.0.0.1:40000", "10.244.2.5:80");
    bench.feed([began(id, 2 * SECOND), counted(id, 5, 2 * SECOND, 2 * SECOND)]).drain(3 * SECOND);
    bench.world.delete("shop/web", 4 * SECOND);
    // Long after: the registry forgets with the next change.
    bench.world.pod("shop/other", "n2", "10.244.2.6", 1_000 * SECOND);
    for second in 5..9 {
        bench.drain(second * SECOND);
    }
    assert_eq!(bench.named(), ["process cgroup > web address: 5"]);
}

#[test]
fn a_row_that_was_named_stays_named_when_the_service_or_node_is_forgotten() {
    let mut bench = Bench::new(World::synced());
    bench.world.service("shop/web", "10.96.0.10", 0, 1, SECOND);
    bench.world.cgroup(7, "/system.slice/curl.service");
    let to_service = from_cgroup(7, "10.0.0.1:40000", "10.96.0.10:80");
    let to_node = from_cgroup(7, "10.0.0.1:40000", "10.0.0.2:80");
    for id in [to_service, to_node] {
        bench.feed([began(id, 2 * SECOND), counted(id, 5, 2 * SECOND, 2 * SECOND)]);
    }
    bench.drain(3 * SECOND);
    bench.world.remove_service("shop/web", 4 * SECOND);
    let meta = serde_json::from_value(serde_json::json!({ "name": "n2" })).unwrap();
    let registry = Arc::clone(&bench.world.known.registry);
    registry.delete_node(&meta, crate::k8s::registry::Seen::live(4 * SECOND, 0));
    bench.drain(5 * SECOND);
    // Long after: the registry forgets with the next change.
    bench.world.pod("shop/other", "n2", "10.244.2.6", 1_000 * SECOND);
    for second in 6..9 {
        bench.drain(second * SECOND);
    }
    let rows = bench.named();
    assert_eq!(rows, ["process cgroup > web address: 5", "process cgroup > n2 address: 5"]);
}

#[test]
fn flows_of_a_moved_process_belong_to_the_cgroup_of_their_socket() {
    let mut world = World::synced();
    world.pod("shop/a", "n1", "10.244.1.5", 1).pod("shop/b", "n1", "10.244.1.6", 1);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, &cgroup_of("shop/a"));
    bench.world.cgroup(8, &cgroup_of("shop/b"));
    let (old, new) = (
        from_cgroup(7, "10.244.1.5:40000", "1.1.1.1:443"),
        from_cgroup(8, "10.244.1.5:40001", "1.1.1.1:443"),
    );
    bench.feed([counted(old, 1, SECOND, SECOND), counted(new, 1, SECOND, SECOND)]);
    let expected = ["a cgroup > external address: 1", "b cgroup > external address: 1"];
    assert_eq!(bench.named(), expected);
}

#[test]
fn the_same_tuple_in_two_pods_is_two_flows() {
    let mut world = World::synced();
    world.pod("shop/a", "n1", "10.244.1.5", 1).pod("shop/b", "n1", "10.244.1.6", 1);
    let mut bench = Bench::new(world);
    for (id, name) in [(7, "shop/a"), (8, "shop/b")] {
        bench.world.cgroup(id, &cgroup_of(name));
        bench.feed([counted(from_cgroup(id, "127.0.0.1:1", "127.0.0.1:2"), id, SECOND, SECOND)]);
    }
    assert_eq!(bench.named(), ["a cgroup > a address: 7", "b cgroup > b address: 8"]);
}

/// What a subscriber is told of changes after a drain.
fn updates(bench: &Bench, since: u32) -> Vec<String> {
    let table = bench.table();
    let changed = (0..table.used_rows()).filter_map(|slot| table.changed(slot, since, u32::MAX));
    let line = |flow: &FlowRecord| {
        let how = |end: &crate::event::End| (word(end), end.how().reason.as_str());
        let (owner, peer) = (how(&flow.ends.owner), how(&flow.ends.peer));
        format!("{} {} > {} {} {:?}", owner.0, owner.1, peer.0, peer.1, flow.state)
    };
    changed.map(line).collect()
}

#[test]
fn a_flow_that_has_ended_is_told_again_when_it_gets_its_name_and_never_for_less() {
    let mut bench = Bench::new(World::synced());
    bench.world.cgroup(7, &cgroup_of("shop/late"));
    bench.world.pod("shop/far", "n2", "10.244.2.5", 1);
    let id = from_cgroup(7, "10.244.1.5:40000", "10.244.2.5:443");
    bench.feed([began(id, SECOND), counted(id, 3, SECOND, SECOND), Event::Released(id)]);
    bench.drain(2 * SECOND);
    assert_eq!(bench.told(), ["start ? (pod_unknown)", "end Ended(Idle)"]);
    let epoch = bench.table().epoch();
    bench.drain(3 * SECOND);
    assert_eq!(updates(&bench, epoch), [""; 0]);
    bench.world.pod("shop/late", "n1", "10.244.1.5", 1);
    bench.drain(4 * SECOND);
    assert_eq!(updates(&bench, epoch), ["late cgroup  > far address  Ended(Idle)"]);
    assert_eq!(bench.named(), ["late cgroup > far address: 3"]);
    let epoch = bench.table().epoch();
    // Its peer's address goes to another: that changes how it is known, and not who it was.
    bench.world.delete("shop/far", 5 * SECOND);
    bench.world.pod("shop/next", "n2", "10.244.2.5", 6 * SECOND);
    bench.drain(7 * SECOND);
    assert_eq!(bench.named(), ["late cgroup > far address_reused: 3"]);
    assert_eq!(updates(&bench, epoch), [""; 0]);
}

#[test]
fn that_the_api_is_not_heard_any_more_is_told_of_active_flows() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 1).pod("shop/far", "n2", "10.244.2.5", 1);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    let to_pod = from_cgroup(7, "10.244.1.5:40000", "10.244.2.5:443");
    let by_node = flow(6, (IpAddr::from([10, 0, 0, 2]), 5), ([10, 244, 1, 5].into(), 80), false);
    let by_node = FlowId {
        owner: 7,
        key: orb8_common::network::FlowKey {
            flags: by_node.key.flags | flag::SOCKET_PLANE,
            ..by_node.key
        },
    };
    let feed = |bench: &mut Bench, second: u64| {
        let at_ns = second * SECOND;
        bench.feed([counted(to_pod, 1, SECOND, at_ns), counted(by_node, 1, SECOND, at_ns)]);
        bench.drain(at_ns + MS);
    };
    feed(&mut bench, 1);
    let epoch = bench.table().epoch();
    for resource in [crate::k8s::status::Resource::Pods, crate::k8s::status::Resource::Nodes] {
        bench.world.known.registry.lose_touch(resource, SECOND - 1);
    }
    bench.drain(2 * SECOND);
    let mut told = updates(&bench, epoch);
    told.sort_unstable();
    assert_eq!(
        told,
        [
            "web cgroup  > far address api_not_synced Active",
            "web cgroup  > n2 masqueraded api_not_synced Active",
        ]
    );
}

#[test]
fn who_sent_first_is_not_guessed_of_what_was_on_its_way_at_the_start() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 1);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    let udp = |port: u16| {
        let mut id = from_cgroup(7, &format!("10.244.1.5:{port}"), "10.0.0.2:53");
        id.key.protocol = 17;
        id
    };
    bench.feed([counted(udp(1), 1, SECOND, SECOND)]).drain(2 * SECOND);
    bench.feed([counted(udp(2), 1, 3 * SECOND, 3 * SECOND)]).drain(4 * SECOND);
    assert_eq!(bench.named(), ["web cgroup > n2 masqueraded: 1", "web cgroup > n2 address: 1"]);
}

#[test]
fn a_packet_that_sockets_count_is_named_as_their_flow_is() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 1);
    world.link(9, &[[10, 244, 1, 5].into()]);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    let id = from_cgroup(7, "10.244.1.5:40000", "10.0.0.2:30080");
    bench.feed([began(id, SECOND), counted(id, 5, SECOND, SECOND)]).drain(2 * SECOND);
    assert_eq!(bench.named(), ["web cgroup > n2 address: 5"]);
    let mut key = id.key;
    key.flags &= !flag::SOCKET_PLANE;
    bench.table.output.told.clear();
    for (tcp_flags, cgroup_id) in [(SYN, 0), (0x10, 7)] {
        bench.feed([Event::Packet(PacketEvent {
            key,
            owner: 9,
            time_ns: SECOND,
            cgroup_id,
            tcp_flags,
            ..PacketEvent::default()
        })]);
    }
    let peer = |told: Told| match told {
        Told::Packet(packet) => word(&packet.flow.ends.peer),
        other => format!("{other:?}"),
    };
    let peers: Vec<_> = bench.table.output.told.drain(..).map(peer).collect();
    assert_eq!(peers, ["n2 address", "n2 address"]);
}

#[test]
fn a_sweep_stops_where_the_registry_has_its_turn_and_goes_on_until_all_rows_are_named() {
    let mut bench = Bench::new(World::synced());
    bench.world.cgroup(7, &cgroup_of("shop/web"));
    let ids = (1..41).map(|port| from_cgroup(7, &format!("10.244.1.5:{port}"), "1.1.1.1:443"));
    bench.feed(ids.map(|id| counted(id, 1, SECOND, SECOND)));
    bench.world.pod("shop/web", "n1", "10.244.1.5", 2 * SECOND);
    let table = Arc::clone(&bench.table.processor.table);
    let mut table = table.write();
    let mut resolver = Resolver::new(bench.world.known.clone());
    let mut left = table.begin_close(2 * SECOND);
    let (mut turns, mut renamed) = (0, 0);
    while !left.is_done() {
        let before = table.named_by_cgroup();
        table.sweep(&mut left, 15, &mut resolver.batch());
        renamed = table.named_by_cgroup();
        assert!(renamed - before <= 15, "one turn is bounded");
        turns += 1;
        // Between turns the registry takes what it is told.
        bench.world.pod(&format!("shop/other{turns}"), "n2", "", 2 * SECOND);
    }
    assert_eq!((turns, renamed), (6, 40), "40 young rows and 40 of all");
}

impl FlowTable {
    /// Packets in the share of what a cgroup has named.
    fn named_by_cgroup(&self) -> u64 {
        let named = |share: &Share| share.how.attribution == Attribution::Cgroup;
        self.shares().filter(named).map(|share| share.volume.packets).sum()
    }
}

pub(super) fn verdicts(bench: &Bench) -> Vec<String> {
    let word = |flow: &FlowRecord| match &flow.ends.asked {
        Some(asked) => format!("{} {:?}: {}", asked.service.name, asked.verdict, flow.packets),
        None => format!("none: {}", flow.packets),
    };
    bench.rows().iter().map(word).collect()
}

#[test]
fn a_verdict_is_that_of_the_time_and_a_reused_service_address_names_no_old_row() {
    let bench = &mut Bench::new(World::synced());
    bench.world.service("shop/old", "10.96.0.10", 0, 0, SECOND);
    let id = from_cgroup(7, "10.244.1.5:40000", "10.96.0.10:80");
    bench.feed([began(id, 2 * SECOND), counted(id, 3, 2 * SECOND, 2 * SECOND)]).drain(3 * SECOND);
    assert_eq!(verdicts(bench), ["old NoEndpoints: 3"]);
    bench.world.service("shop/old", "10.96.0.10", 0, 1, 4 * SECOND);
    bench.drain(5 * SECOND);
    assert_eq!(verdicts(bench), ["old NoEndpoints: 3"], "endpoints came later");
    bench.world.remove_service("shop/old", 6 * SECOND);
    bench.world.service("shop/new", "10.96.0.10", 0, 1, 7 * SECOND);
    bench.drain(8 * SECOND);
    assert_eq!(verdicts(bench), ["old NoEndpoints: 3"], "the address was another Service's");
}

#[test]
fn what_the_api_tells_after_it_was_away_names_what_was_counted_meanwhile() {
    let mut world = World::silent();
    world.pod("shop/web", "n2", "10.244.2.5", SECOND);
    let mut bench = Bench::new(world);
    bench.world.cgroup(7, &cgroup_of("shop/client"));
    let id = from_cgroup(7, "10.244.1.5:40000", "10.244.2.5:80");
    bench.feed([began(id, 2 * SECOND), counted(id, 5, 2 * SECOND, 2 * SECOND)]).drain(3 * SECOND);
    assert_eq!(bench.named(), ["? (pod_unknown) > unknown (api_not_synced): 5"]);
    bench.world.pod("shop/client", "n1", "10.244.1.5", 20 * SECOND);
    bench.world.list(20 * SECOND);
    bench.drain(21 * SECOND);
    assert_eq!(bench.named(), ["client cgroup > web address: 5"], "also when it is not young");
}

/// What may happen to an address and to a flow that goes there.
#[derive(Clone, Copy, Debug)]
enum Step {
    Count(u64),
    Signal,
    Drain,
    Delete,
    Create,
    Show,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1_u64..4).prop_map(Step::Count),
        1 => Just(Step::Signal),
        4 => Just(Step::Drain),
        1 => Just(Step::Delete),
        1 => Just(Step::Create),
        2 => Just(Step::Show),
        1 => Just(Step::Release),
    ]
}

proptest! {
    /// Whatever the order of traffic and of what the API tells: in the end no packet stands under
    /// the name of a pod that did not have the address when the packet passed, no packet is lost,
    /// and the shares add up.
    #[test]
    fn no_packet_stands_under_a_wrong_name(
        steps in prop::collection::vec((step(), 1_u64..400), 1..120),
    ) {
        let mut bench = Bench::new(World::synced());
        bench.world.cgroup(7, "/system.slice/curl.service");
        let id = from_cgroup(7, "10.0.0.1:40000", "10.244.2.5:80");
        let (mut now, mut number, mut holder) = (SECOND, 0, None::<u32>);
        // Packets by the pod that had the address when they passed; those since the last drain.
        let mut truth: std::collections::HashMap<Option<u32>, u64> = Default::default();
        let (mut passed, mut line_ns): ((u64, u64), Option<u64>) = ((0, 0), None);
        let mut total = 0;
        for (step, ms) in steps {
            now += ms * MS;
            match step {
                Step::Count(packets) => {
                    passed = (passed.0 + packets, now);
                    line_ns.get_or_insert(now);
                    *truth.entry(holder).or_default() += packets;
                    total += packets;
                }
                Step::Signal => { bench.feed([signal(id, SignalKind::End, now, 0)]); }
                Step::Drain => {
                    if passed.0 > 0 {
                        bench.feed([counted(id, passed.0, line_ns.unwrap(), passed.1)]);
                        passed.0 = 0;
                    }
                    bench.drain(now);
                }
                Step::Delete => {
                    if let Some(pod) = holder.take() {
                        bench.world.delete(&format!("shop/p{pod}"), now);
                    }
                }
                Step::Create if holder.is_none() => {
                    number += 1;
                    // The node gives it the address of the one that is gone; the API shows it later.
                    bench.world.pod(&format!("shop/p{number}"), "n2", "", now);
                    holder = Some(number);
                }
                Step::Show => {
                    if let Some(pod) = holder {
                        bench.world.pod(&format!("shop/p{pod}"), "n2", "10.244.2.5", now);
                    }
                }
                Step::Release if passed.0 == 0 => {
                    bench.feed([Event::Released(id)]);
                    line_ns = None;
                }
                Step::Release | Step::Create => {}
            }
        }
        now += SECOND;
        if passed.0 > 0 {
            bench.feed([counted(id, passed.0, line_ns.unwrap(), passed.1)]);
        }
        bench.drain(now).drain(now + SECOND);
        let mut named: std::collections::HashMap<u32, u64> = Default::default();
        for flow in bench.rows() {
            if let Some(identity) = flow.ends.peer.pod().and_then(|pod| pod.identity()) {
                let number = identity.name[1..].parse().unwrap();
                *named.entry(number).or_default() += flow.packets;
            }
        }
        for (pod, packets) in &named {
            let had = truth.get(&Some(*pod)).copied().unwrap_or(0);
            prop_assert!(*packets <= had, "p{pod} is named with {packets} packets and had {had}");
        }
        let rows: u64 = bench.rows().iter().map(|flow| flow.packets).sum();
        prop_assert_eq!(rows, total);
        let shares: u64 = bench.shares().iter().map(|(_, packets)| packets).sum();
        prop_assert_eq!(shares, total);
    }
}
