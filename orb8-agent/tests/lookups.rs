//! Looking up what the kernel told allocates nothing: it happens for every flow at every drain.

mod counting;

use std::net::SocketAddr;
use std::sync::Arc;

use counting::allocations;
use orb8_agent::cgroup::{Cgroup, Cgroups, no_pods};
use orb8_agent::conntrack::{Translation, Translations, Tuple};
use orb8_agent::event::Scope;
use orb8_agent::k8s::identity::{Began, Question, Resolver, Span};
use orb8_agent::testing::{World, cgroup_of};

#[test]
fn finding_a_cgroup_allocates_nothing() {
    let cgroups = Cgroups::default();
    for id in 0..1_000 {
        let path = format!("/kubepods/pod{id:032x}/{}", "0f".repeat(32));
        cgroups.insert(Arc::new(Cgroup::new(id, &path, &no_pods())));
    }
    let mut found = 0;
    let allocated = allocations(|| {
        for id in 0..2_000 {
            found += usize::from(cgroups.find(id).is_some_and(|it| it.placement.is_some()));
        }
    });
    assert_eq!((found, allocated), (1_000, 0));
    assert_eq!(allocations(|| drop(Box::new(1_u64))), 1, "allocations are counted");
}

#[test]
fn finding_a_translation_allocates_nothing() {
    let table = Translations::empty(4_096);
    let address = |last: u8, port| SocketAddr::new([10, 0, 0, last].into(), port);
    let tuple = |port| Tuple { protocol: 6, src: address(1, port), dst: address(2, 80) };
    for port in 1..=1_000 {
        let reply = Tuple { protocol: 6, src: address(3, 8080), dst: address(1, port) };
        table.insert(Translation::new(tuple(port), reply, u64::from(port)));
    }
    let mut found = 0;
    let allocated = allocations(|| {
        for port in 1..=2_000 {
            let asked = tuple(port);
            found += usize::from(table.find(&asked).is_some());
            found += usize::from(table.find_at(&asked.reversed(), 5_000).is_some());
        }
    });
    assert_eq!((found, allocated), (2_000, 0));
    assert_eq!(table.find(&tuple(7)).unwrap().reply.src.port(), 8080);
}

#[test]
fn saying_who_the_ends_are_allocates_nothing() {
    let mut world = World::synced();
    for last in 2..200 {
        world.pod(&format!("shop/p{last}"), "n2", &format!("10.244.2.{last}"), 1);
    }
    world.pod("shop/own", "n1", "10.244.1.5", 1);
    world.service("shop/web", "10.96.0.10", 0, 1, 1);
    world.link(5, &[[10, 244, 1, 5].into()]);
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (host, backend) = (address("10.0.0.1:4000"), address("10.244.2.7:8080"));
    world.translate((host, address("10.96.0.10:80")), (backend, host), 1);
    let membership = world.cgroup(7, &cgroup_of("shop/own"));
    let mut resolver = Resolver::new(world.known.clone());
    let span = Span { since_ns: 2, until_ns: 9 };
    let mut named = 0;
    let mut ask = |ifindex, owner: &str, peer: &str, in_cgroup: bool| {
        let (owner, peer) = (address(owner), address(peer));
        let question = Question {
            ifindex,
            egress: true,
            protocol: 6,
            owner: owner.ip(),
            peer: peer.ip(),
            ports: Some((owner.port(), peer.port())),
            membership: in_cgroup.then_some(&membership),
            scope: Scope::Local,
            began: Began::Owner,
            translation: None,
            opened_ns: None,
        };
        // The first answer teaches which pod is behind a link.
        resolver.batch().resolve(&question, span);
        let allocated = allocations(|| {
            let mut batch = resolver.batch();
            for _ in 0..100 {
                let answer = batch.resolve(&question, span);
                named += usize::from(!answer.ends.owner.is_unknown());
                named += usize::from(!answer.ends.peer.is_unknown());
            }
        });
        assert_eq!(allocated, 0, "{owner} > {peer}");
    };
    ask(None, "10.244.1.5:1", "10.244.2.9:80", true);
    ask(None, "127.0.0.1:1", "127.0.0.1:2", true);
    ask(Some(5), "10.244.1.5:1", "10.96.0.10:80", false);
    ask(Some(5), "10.244.1.5:1", "1.1.1.1:80", true);
    ask(Some(2), "10.0.0.1:4000", "10.244.2.7:8080", false);
    assert_eq!(named, 1_000);
}
