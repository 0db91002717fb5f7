//! Tests of identity: who, how it is known, and what is said where it is not.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::k8s::services::{ServiceKind, Verdict};
use crate::testing::{World, cgroup_of};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Owner `a` talks to peer `b`, TCP, at a socket.
fn asking<'a>(owner: &str, peer: &str) -> Question<'a> {
    let (owner, peer) = (at(owner), at(peer));
    Question {
        ifindex: None,
        egress: true,
        protocol: 6,
        owner: owner.ip(),
        peer: peer.ip(),
        ports: Some((owner.port(), peer.port())),
        membership: None,
        scope: Scope::Local,
        began: Began::Owner,
        translation: None,
        opened_ns: None,
    }
}

fn then(at_ns: u64) -> Span {
    Span::at(at_ns)
}

/// An end in a few words.
fn word(end: &End) -> String {
    let name = match end {
        End::Pod(_, pod) => pod
            .identity()
            .map_or_else(|| pod.uid.to_string(), |of| format!("{}/{}", of.namespace, of.name)),
        End::Node(_, node) => node.name.to_string(),
        End::Service(_, service) => format!("{}/{}", service.namespace, service.name),
        End::Unknown(_) | End::External(_) | End::Process(_) => String::new(),
    };
    let how = end.how();
    let words = [end.kind(), &name, how.attribution.as_str(), how.reason.as_str()];
    words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

fn ends(world: &World, question: &Question<'_>, span: Span) -> (String, String) {
    let answer = Resolver::new(world.known.clone()).batch().resolve(question, span);
    (word(&answer.ends.owner), word(&answer.ends.peer))
}

fn peer(world: &World, question: &Question<'_>, at_ns: u64) -> String {
    ends(world, question, then(at_ns)).1
}

fn owner(world: &World, question: &Question<'_>, at_ns: u64) -> String {
    ends(world, question, then(at_ns)).0
}

#[test]
fn the_owner_is_known_by_its_cgroup_first() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 2);
    let path = cgroup_of("shop/web");
    let check = |path: &str, address: &str, expected: &str| {
        let membership = world.cgroup(7, path);
        let question = Question { membership: Some(&membership), ..asking(address, "1.1.1.1:443") };
        assert_eq!(owner(&world, &question, 5), expected, "{path} {address}");
    };
    check(&path, "10.244.1.5:4", "pod shop/web cgroup");
    check(&format!("{path}/deep/er"), "127.0.0.1:4", "pod shop/web cgroup");
    check("/system.slice/sshd.service", "10.0.0.1:22", "process cgroup");
    check("/", "10.0.0.1:22", "node n1 address root_cgroup");
    check("/", "10.244.1.5:4", "pod shop/web address");
    check("/", "10.244.1.6:4", "unknown none root_cgroup");
    let gone = Answer2::gone(9);
    let question = Question { membership: Some(&gone), ..asking("10.244.1.5:4", "1.1.1.1:443") };
    assert_eq!(owner(&world, &question, 5), "pod shop/web address");
}

struct Answer2;

impl Answer2 {
    fn gone(id: u64) -> Arc<Membership> {
        let answer = crate::cgroup::Answer { cgroup: None, process: None, checked_ns: 1 };
        Arc::new(Membership::answered(id, answer))
    }
}

#[test]
fn a_pod_that_the_api_has_not_told_is_a_pod_without_a_name_and_gets_it_later() {
    let mut world = World::synced();
    let membership = world.cgroup(7, &cgroup_of("shop/new"));
    let question =
        Question { membership: Some(&membership), ..asking("10.244.1.5:4", "1.1.1.1:4") };
    let answer = Resolver::new(world.known.clone()).batch().resolve(&question, then(5));
    let uid = crate::testing::uid("shop/new");
    assert_eq!(word(&answer.ends.owner), format!("pod {uid} none pod_unknown"));
    world.pod("shop/new", "n1", "10.244.1.5", 6);
    assert_eq!(word(&answer.ends.owner), "pod shop/new cgroup", "the same answer, later");
}

#[test]
fn a_static_pod_is_known_by_its_config_hash() {
    let mut world = World::synced();
    let hash = "0123456789abcdef0123456789abcdef";
    world.pod_with("kube-system/etcd-n1", "n1", "10.0.0.1", 2, |pod| {
        pod["metadata"]["annotations"] = serde_json::json!({
            "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash,
        });
        pod["spec"]["hostNetwork"] = true.into();
    });
    let membership = world.cgroup(7, &format!("/kubepods/burstable/pod{hash}/{}", "ab".repeat(32)));
    let question = Question { membership: Some(&membership), ..asking("10.0.0.1:4", "1.1.1.1:4") };
    assert_eq!(owner(&world, &question, 5), "pod kube-system/etcd-n1 cgroup");
}

#[test]
fn host_network_pods_and_processes_share_an_address_and_are_told_apart() {
    let mut world = World::synced();
    for name in ["kube-system/proxy", "kube-system/cni"] {
        world.pod_with(name, "n1", "10.0.0.1", 2, |pod| pod["spec"]["hostNetwork"] = true.into());
        let membership = world.cgroup(7, &cgroup_of(name));
        let question =
            Question { membership: Some(&membership), ..asking("10.0.0.1:4", "127.0.0.1:5") };
        let expected = (format!("pod {name} cgroup"), "node n1 address".to_owned());
        assert_eq!(ends(&world, &question, then(5)), expected);
    }
    assert_eq!(peer(&world, &asking("10.244.1.5:4", "10.0.0.1:5"), 5), "node n1 address");
}

#[test]
fn behind_a_link_the_pod_is_known_without_a_cgroup() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 2).pod("shop/db", "n1", "10.244.1.6", 2);
    world.link(5, &[ip("10.244.1.5")]);
    world.link(6, &[]);
    let at_link = |ifindex, egress| Question {
        ifindex: Some(ifindex),
        egress,
        scope: Scope::Unclaimed,
        ..asking("10.244.1.9:4", "1.1.1.1:4")
    };
    let mut resolver = Resolver::new(world.known.clone());
    let mut who =
        |question: &Question<'_>| word(&resolver.batch().resolve(question, then(5)).ends.owner);
    assert_eq!(who(&at_link(5, false)), "pod shop/web interface", "by the host route");
    assert_eq!(who(&at_link(6, false)), "unknown none interface_unknown");
    let db = world.cgroup(7, &cgroup_of("shop/db"));
    let from_db = Question { owner: ip("10.244.1.6"), membership: Some(&db), ..at_link(6, true) };
    assert_eq!(who(&from_db), "pod shop/db cgroup");
    assert_eq!(who(&at_link(6, false)), "pod shop/db interface", "learned from what left it");
    let root = world.cgroup(1, "/");
    let reply = Question { membership: Some(&root), ..at_link(6, true) };
    assert_eq!(who(&reply), "pod shop/db interface", "a reply of the kernel");
    let web = world.cgroup(8, &cgroup_of("shop/web"));
    let intruder = Question { membership: Some(&web), ..at_link(6, true) };
    assert_eq!(who(&intruder), "pod shop/web cgroup", "a process that entered");
    assert_eq!(who(&at_link(6, false)), "pod shop/db interface", "which teaches nothing");
    let at_home = Question { owner: ip("10.244.1.5"), ..intruder };
    assert_eq!(
        who(&at_home),
        "pod shop/web cgroup",
        "a process that entered, from its own address"
    );
    assert_eq!(who(&at_link(6, false)), "unknown none interface_unknown", "two were seen");
    world.unlink(6, 5);
    world.link(6, &[]);
    assert_eq!(who(&from_db), "pod shop/db cgroup");
    assert_eq!(who(&at_link(6, false)), "pod shop/db interface", "another link, same index");
}

#[test]
fn a_link_that_has_gone_is_no_uplink_and_its_pods_keep_their_names() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 2).pod("shop/db", "n1", "10.244.1.6", 2);
    world.link(5, &[ip("10.244.1.5")]);
    world.link(6, &[]);
    let at_link = |ifindex, egress| Question {
        ifindex: Some(ifindex),
        egress,
        ..asking("10.244.1.9:4", "1.1.1.1:4")
    };
    let db = world.cgroup(7, &cgroup_of("shop/db"));
    let mut resolver = Resolver::new(world.known.clone());
    let from_db = Question { owner: ip("10.244.1.6"), membership: Some(&db), ..at_link(6, true) };
    resolver.batch().resolve(&from_db, then(5));
    world.translate(
        (at("10.244.1.9:4"), at("10.96.0.9:4")),
        (at("1.1.1.1:4"), at("10.244.1.9:4")),
        3,
    );
    world.unlink(5, 6);
    world.unlink(6, 6);
    for (ifindex, expected) in [(5, "pod shop/web interface"), (6, "pod shop/db interface")] {
        let answer = resolver.batch().resolve(&at_link(ifindex, false), then(5));
        assert_eq!((word(&answer.ends.owner).as_str(), answer.forwarded), (expected, false));
    }
    let forgotten = resolver.batch().resolve(&at_link(77, true), then(5));
    assert_eq!(word(&forgotten.ends.owner), "unknown none address_unknown", "never the host");
    assert!(!forgotten.forwarded);
}

#[test]
fn an_address_that_two_may_have_held_is_never_the_hosts() {
    let mut world = World::synced();
    world.pod("shop/a", "n1", "10.244.1.5", 2).pod("shop/b", "n1", "10.244.1.5", 2);
    let question = Question { ifindex: Some(2), ..asking("10.244.1.5:4", "1.1.1.1:4") };
    assert_eq!(owner(&world, &question, 5), "unknown none address_ambiguous");
}

#[test]
fn a_process_that_entered_a_pods_network_does_not_name_its_link() {
    let mut world = World::synced();
    world.pod("shop/a", "n1", "10.244.1.5", 2).pod("shop/b", "n1", "10.244.1.6", 2);
    world.link(5, &[]);
    let b = world.cgroup(7, &cgroup_of("shop/b"));
    let at_link = |owner: &str, egress| Question {
        ifindex: Some(5),
        egress,
        scope: Scope::Unclaimed,
        ..asking(owner, "1.1.1.1:4")
    };
    let mut resolver = Resolver::new(world.known.clone());
    let mut who =
        |question: &Question<'_>| word(&resolver.batch().resolve(question, then(5)).ends.owner);
    who(&Question { membership: Some(&b), ..at_link("10.244.1.5:4", true) });
    assert_eq!(who(&at_link("10.244.1.5:4", false)), "pod shop/a address");
    assert_eq!(who(&at_link("10.244.1.9:4", false)), "unknown none interface_unknown");
    who(&Question { membership: Some(&b), ..at_link("10.244.1.9:4", true) });
    assert_eq!(who(&at_link("10.244.1.9:4", false)), "unknown none interface_unknown");
    assert_eq!(who(&at_link("10.244.1.5:4", false)), "pod shop/a address");
}

#[test]
fn a_link_is_learned_when_the_address_is_known_to_be_the_pods_and_not_before() {
    let mut world = World::synced();
    world.pod("shop/tunnel", "n1", "10.244.1.5", 2).pod("shop/new", "n1", "", 2);
    world.pod_with("shop/cni", "n1", "10.0.0.1", 2, |pod| pod["spec"]["hostNetwork"] = true.into());
    world.link(5, &[]);
    let at_link = |membership, egress| Question {
        ifindex: Some(5),
        egress,
        membership,
        scope: Scope::Unclaimed,
        ..asking("10.244.1.6:4", "1.1.1.1:4")
    };
    let mut resolver = Resolver::new(world.known.clone());
    let mut who =
        |question: &Question<'_>| word(&resolver.batch().resolve(question, then(5)).ends.owner);
    let [tunnel, cni, new] = ["shop/tunnel", "shop/cni", "shop/new"]
        .map(|name| world.cgroup(u64::from(name.as_bytes()[5]), &cgroup_of(name)));
    for entered in [&tunnel, &cni] {
        assert!(who(&at_link(Some(entered), true)).ends_with("cgroup"));
        assert_eq!(who(&at_link(None, false)), "unknown none interface_unknown");
    }
    assert_eq!(who(&at_link(Some(&new), true)), "pod shop/new cgroup");
    assert_eq!(who(&at_link(None, false)), "unknown none interface_unknown", "not told yet");
    world.pod("shop/new", "n1", "10.244.1.6", 4);
    assert_eq!(who(&at_link(None, false)), "pod shop/new address");
    assert_eq!(who(&at_link(Some(&new), true)), "pod shop/new cgroup");
    assert_eq!(who(&at_link(None, false)), "pod shop/new interface");
}

#[test]
fn a_pod_known_by_the_route_to_it_is_as_sure_as_its_address() {
    let mut world = World::synced();
    world.pod("shop/old", "n1", "10.244.1.5", 2);
    world.link(5, &[ip("10.244.1.5")]);
    let question = Question {
        ifindex: Some(5),
        egress: false,
        scope: Scope::Unclaimed,
        ..asking("10.244.1.5:4", "1.1.1.1:4")
    };
    world.known.registry.lose_touch(Resource::Pods, 10);
    assert_eq!(owner(&world, &question, 5), "pod shop/old interface");
    assert_eq!(owner(&world, &question, 20), "pod shop/old address api_not_synced");
    world.known.registry.regain_touch(Resource::Pods);
    world.delete("shop/old", 30).pod("shop/new", "n1", "10.244.1.5", 40);
    assert_eq!(owner(&world, &question, 5), "pod shop/old address_reused");
    assert_eq!(owner(&world, &question, 50), "pod shop/new interface");
}

#[test]
fn what_a_pod_says_to_itself_is_no_connection_of_the_hosts() {
    let mut world = World::synced();
    world.service("shop/web", "10.96.0.10", 30_080, 1, 2);
    world.pod("shop/c", "n1", "10.244.1.5", 2).pod("shop/b", "n1", "10.244.1.6", 2);
    world.pod_with("shop/cni", "n1", "10.0.0.1", 2, |pod| pod["spec"]["hostNetwork"] = true.into());
    let (from, to) = (at("127.0.0.1:4000"), at("127.0.0.1:30080"));
    world.translate((from, to), (at("10.244.1.6:8080"), at("10.244.1.1:4000")), 3);
    let docker = format!("/system.slice/docker-{}.scope", "ab".repeat(32));
    for (path, is_hosts) in [
        (cgroup_of("shop/c"), false),
        (docker, false),
        (cgroup_of("shop/cni"), true),
        ("/system.slice/sshd.service".to_owned(), true),
    ] {
        let membership = world.cgroup(7, &path);
        let question = Question {
            membership: Some(&membership),
            ..asking(&from.to_string(), &to.to_string())
        };
        let answer = Resolver::new(world.known.clone()).batch().resolve(&question, then(5));
        assert_eq!(answer.translation.is_some(), is_hosts, "{path}");
        assert_eq!(answer.ends.asked.is_some(), is_hosts, "{path}");
    }
}

#[test]
fn a_link_does_not_tell_who_was_behind_another_one_with_its_index() {
    let mut world = World::synced();
    world.pod("shop/old", "n1", "", 2).pod("shop/new", "n1", "10.244.1.6", 2);
    world.link(5, &[]);
    world.unlink(5, 10);
    world.link_since(5, &[ip("10.244.1.6")], 20);
    let old = world.cgroup(7, &cgroup_of("shop/old"));
    let new = world.cgroup(8, &cgroup_of("shop/new"));
    let at_link = |egress| Question {
        ifindex: Some(5),
        egress,
        scope: Scope::Unclaimed,
        ..asking("10.244.1.9:4", "1.1.1.1:4")
    };
    let mut resolver = Resolver::new(world.known.clone());
    let mut who = |question: &Question<'_>, at_ns| {
        word(&resolver.batch().resolve(question, then(at_ns)).ends.owner)
    };
    assert_eq!(who(&at_link(false), 5), "unknown none interface_unknown");
    assert_eq!(who(&at_link(false), 25), "pod shop/new interface");
    who(&Question { membership: Some(&old), ..at_link(true) }, 5);
    assert_eq!(who(&at_link(false), 25), "pod shop/new interface", "an old row teaches nothing");
    who(&Question { membership: Some(&new), ..at_link(true) }, 25);
    assert_eq!(who(&at_link(false), 5), "unknown none interface_unknown", "learned of the new one");
}

#[test]
fn the_other_end_is_who_held_the_address_then() {
    let mut world = World::synced();
    world.pod("shop/old", "n2", "10.244.2.5", 2 * SECOND);
    world.delete("shop/old", 10 * SECOND);
    world.pod("shop/new", "n2", "", 11 * SECOND).pod("shop/new", "n2", "10.244.2.5", 12 * SECOND);
    let question = asking("10.0.0.1:4", "10.244.2.5:80");
    let check = |at_s: u64, expected: &str| {
        assert_eq!(peer(&world, &question, at_s * SECOND), expected, "at {at_s} s");
    };
    check(5, "pod shop/old address_reused");
    check(20, "pod shop/new address");
    let both = Span { since_ns: 5 * SECOND, until_ns: 20 * SECOND };
    assert_eq!(ends(&world, &question, both).1, "unknown none address_ambiguous");
}

#[test]
fn the_address_of_a_service_is_that_of_who_had_it_then() {
    let world = World::synced();
    world.service("shop/old", "10.96.0.10", 0, 1, 2 * SECOND);
    world.service("shop/other", "10.96.0.11", 0, 1, 2 * SECOND);
    world.remove_service("shop/old", 10 * SECOND);
    world.remove_service("shop/other", 10 * SECOND);
    world.service("shop/new", "10.96.0.10", 0, 1, 20 * SECOND);
    let check = |address: &str, at_s: u64, expected: &str| {
        let question = asking("10.0.0.1:4", address);
        assert_eq!(peer(&world, &question, at_s * SECOND), expected, "{address} at {at_s} s");
    };
    check("10.96.0.10:80", 5, "service shop/old address_reused");
    check("10.96.0.10:80", 25, "service shop/new address");
    check("10.96.0.11:80", 5, "service shop/other address");
}

/// Two pods of this node that the API tells of late: either may have had the address from 10.5 s to
/// 11 s. Membership of each.
fn handed_over() -> (World, [Arc<Membership>; 2]) {
    let mut world = World::synced();
    world.pod("shop/old", "n1", "10.244.1.5", 2 * SECOND);
    let second = |pod: &mut serde_json::Value| {
        pod["metadata"]["creationTimestamp"] = "1970-01-01T00:00:10Z".into();
    };
    world.delete("shop/old", 11 * SECOND);
    world.pod_with("shop/new", "n1", "10.244.1.5", 11 * SECOND, second);
    let memberships =
        [(7, "shop/old"), (8, "shop/new")].map(|(id, name)| world.cgroup(id, &cgroup_of(name)));
    (world, memberships)
}

#[test]
fn an_address_in_doubt_is_that_of_the_pod_of_this_node_that_was_seen_to_use_it() {
    let (world, [old, new]) = handed_over();
    let mut resolver = Resolver::new(world.known.clone());
    let mut ask = |question: &Question<'_>, since_ms: u64, until_ms: u64| {
        let span = Span { since_ns: since_ms * MILLI, until_ns: until_ms * MILLI };
        word(&resolver.batch().resolve(question, span).ends.peer)
    };
    let peer = asking("10.0.0.1:4", "10.244.1.5:80");
    let doubt = "unknown none address_ambiguous";
    assert_eq!(ask(&peer, 10_300, 10_400), doubt);
    let own = |membership| Question {
        membership: Some(membership),
        ..asking("10.244.1.5:80", "10.0.0.1:4")
    };
    ask(&own(&old), 9_000, 10_400);
    ask(&own(&new), 10_700, 12_000);
    assert_eq!(ask(&peer, 10_300, 10_410), "pod shop/old address_reused");
    assert_eq!(ask(&peer, 10_300, 10_450), doubt, "long after it was last seen");
    assert_eq!(ask(&peer, 10_700, 10_900), "pod shop/new address");
    assert_eq!(ask(&peer, 10_300, 10_900), doubt, "both had it");
    ask(&own(&old), 9_000, 10_800);
    assert_eq!(ask(&peer, 10_750, 10_750), doubt, "both used it");
}

#[test]
fn a_process_that_entered_a_pods_network_does_not_prove_who_had_the_address() {
    let (mut world, _) = handed_over();
    world.pod("shop/other", "n1", "10.244.1.9", 2 * SECOND);
    let other = world.cgroup(9, &cgroup_of("shop/other"));
    let mut resolver = Resolver::new(world.known.clone());
    let own = Question { membership: Some(&other), ..asking("10.244.1.5:80", "10.0.0.1:4") };
    let span = Span { since_ns: 10_300 * MILLI, until_ns: 10_400 * MILLI };
    let answer = resolver.batch().resolve(&own, span);
    assert_eq!(word(&answer.ends.owner), "pod shop/other cgroup");
    let peer = asking("10.0.0.1:4", "10.244.1.5:80");
    let answer = resolver.batch().resolve(&peer, span);
    assert_eq!(word(&answer.ends.peer), "unknown none address_ambiguous");
}

#[test]
fn a_use_is_noted_once_and_only_where_there_is_doubt() {
    let (world, [old, new]) = handed_over();
    let mut resolver = Resolver::new(world.known.clone());
    let mut generation_after = |membership, since_ms: u64, until_ms: u64| {
        let own =
            Question { membership: Some(membership), ..asking("10.244.1.5:80", "10.0.0.1:4") };
        let span = Span { since_ns: since_ms * MILLI, until_ns: until_ms * MILLI };
        let mut batch = resolver.batch();
        batch.resolve(&own, span);
        batch.generation()
    };
    let first = generation_after(&old, 3_000, 4_000);
    assert_eq!(generation_after(&new, 15_000, 16_000), first, "nobody doubts it");
    let noted = generation_after(&new, 10_700, 16_000);
    assert_ne!(noted, first);
    // A row that began in doubt and goes on is asked about again with each count.
    assert_eq!(generation_after(&new, 10_700, 17_000), noted);
}

#[test]
fn a_use_that_goes_on_has_only_those_ask_again_who_asked_about_the_time() {
    let (world, [old, _]) = handed_over();
    let mut resolver = Resolver::new(world.known.clone());
    let mut generation_after = |question: &Question<'_>, since_ms: u64, until_ms: u64| {
        let span = Span { since_ns: since_ms * MILLI, until_ns: until_ms * MILLI };
        let mut batch = resolver.batch();
        batch.resolve(question, span);
        batch.generation()
    };
    let own = Question { membership: Some(&old), ..asking("10.244.1.5:80", "10.0.0.1:4") };
    let peer = asking("10.0.0.1:4", "10.244.1.5:80");
    let noted = generation_after(&own, 9_000, 10_400);
    assert_eq!(generation_after(&own, 9_000, 10_500), noted, "nobody asked");
    assert_eq!(generation_after(&peer, 10_800, 10_800), noted);
    assert_eq!(generation_after(&own, 9_000, 10_600), noted, "nobody asked about that time");
    let extended = generation_after(&own, 9_000, 10_850);
    assert_ne!(extended, noted, "the other end of a row can be named now");
    assert_eq!(generation_after(&own, 9_000, 10_900), extended, "told once");
}

#[test]
fn a_use_holds_its_pod_no_longer_than_the_registry_keeps_the_address() {
    let (mut world, [old, _]) = handed_over();
    let mut resolver = Resolver::new(world.known.clone());
    let own = Question { membership: Some(&old), ..asking("10.244.1.5:80", "10.0.0.1:4") };
    let pod = old.cgroup().and_then(|it| it.pod()).unwrap();
    let held = Arc::strong_count(pod);
    resolver.batch().resolve(&own, Span { since_ns: 9 * SECOND, until_ns: 10_400 * MILLI });
    assert!(Arc::strong_count(pod) > held, "the use holds it");
    world.pod("shop/later", "n1", "10.244.1.6", 400 * SECOND);
    resolver.batch();
    assert_eq!(Arc::strong_count(pod), held - 1, "neither the use nor the address does");
}

#[test]
fn addresses_that_are_nobodys_say_what_is_known_of_them() {
    let world = World::synced();
    world.service("shop/web", "10.96.0.10", 0, 1, 2);
    let check = |world: &World, address: &str, expected: &str| {
        let question = asking("10.0.0.1:4", &SocketAddr::new(ip(address), 80).to_string());
        assert_eq!(peer(world, &question, 5), expected, "{address}");
    };
    check(&world, "1.1.1.1", "external address");
    check(&world, "10.244.2.77", "unknown none address_unknown");
    check(&world, "10.96.0.10", "service shop/web address");
    check(&world, "224.0.0.251", "unknown none address_unknown");
    check(&world, "fe80::1", "unknown none address_unknown");
    check(&world, "10.244.1.1", "node n1 address");
    check(&world, "10.0.0.2", "node n2 address");
    let silent = World::silent();
    check(&silent, "1.1.1.1", "unknown none api_not_synced");
    check(&silent, "10.0.0.1", "node n1 address");
    let mut off = World::silent();
    off.known.kubernetes = false;
    check(&off, "1.1.1.1", "external none no_kubernetes");
    check(&off, "10.0.0.1", "node n1 address");
    off.known.facts.update(|facts| facts.set_addresses([]));
    check(&off, "1.1.1.1", "unknown none no_kubernetes");
}

#[test]
fn another_nodes_address_may_hide_a_pod_unless_the_owner_dialled_it() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 2);
    let web = world.cgroup(7, &cgroup_of("shop/web"));
    let check = |began, expected: &str| {
        let question =
            Question { membership: Some(&web), began, ..asking("10.244.1.5:8080", "10.0.0.2:4") };
        assert_eq!(peer(&world, &question, 5), expected, "{began:?}");
        let own = Question { peer: ip("10.0.0.1"), ..question };
        assert_eq!(peer(&world, &own, 5), "node n1 address", "{began:?}");
    };
    check(Began::Owner, "node n2 address");
    check(Began::Peer, "node n2 masqueraded");
    check(Began::Unknown, "node n2 masqueraded");
    let sshd = world.cgroup(8, "/system.slice/sshd.service");
    for membership in [Some(&sshd), None] {
        let at_host = |began| Question { membership, began, ..asking("10.0.0.1:22", "10.0.0.2:4") };
        assert_eq!(peer(&world, &at_host(Began::Owner), 5), "node n2 address");
        assert_eq!(peer(&world, &at_host(Began::Peer), 5), "node n2 masqueraded");
        assert_eq!(peer(&world, &at_host(Began::Unknown), 5), "node n2 masqueraded");
    }
}

#[test]
fn loopback_is_the_owners_own() {
    let mut world = World::synced();
    world.pod("shop/web", "n1", "10.244.1.5", 2).pod("shop/db", "n1", "10.244.1.6", 2);
    for name in ["shop/web", "shop/db"] {
        let membership = world.cgroup(7, &cgroup_of(name));
        let question =
            Question { membership: Some(&membership), ..asking("127.0.0.1:4", "127.0.0.1:5") };
        let expected = (format!("pod {name} cgroup"), format!("pod {name} address"));
        assert_eq!(ends(&world, &question, then(5)), expected, "the cgroup is the owner's alone");
        let mixed = Question { owner: ip("10.244.1.5"), ..question };
        assert_eq!(peer(&world, &mixed, 5), "unknown none address_ambiguous");
    }
    let check = |path: &str, expected: &str| {
        let membership = world.cgroup(8, path);
        let question =
            Question { membership: Some(&membership), ..asking("127.0.0.1:4", "127.0.0.1:5") };
        assert_eq!(peer(&world, &question, 5), expected, "{path}");
    };
    check("/system.slice/sshd.service", "node n1 address");
    let docker = format!("/system.slice/docker-{}.scope", "ab".repeat(32));
    check(&docker, "unknown none address_ambiguous");
    for system in [
        "/lxc.payload.web/system.slice/nginx.service",
        "/machine.slice/machine-web.scope/payload/init.scope",
        "/machine.slice/systemd-nspawn@web.service/payload",
    ] {
        check(system, "unknown none address_ambiguous");
    }
    check("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator", "node n1 address");
}

#[test]
fn a_cluster_ip_that_the_kernel_answers_for_on_this_host_is_not_this_host() {
    let mut world = World::silent();
    let service = ip("10.96.0.10");
    world.known.facts.update(|facts| {
        facts.add_address(service);
        facts.set_service_addresses([service]);
    });
    let question = asking("10.0.0.1:4000", "10.96.0.10:80");
    assert_eq!(peer(&world, &question, 2), "unknown none api_not_synced");
    world.list(1);
    world.service("shop/web", "10.96.0.10", 0, 2, 1);
    assert_eq!(peer(&world, &question, 5), "service shop/web address");
}

#[test]
fn whom_a_mask_hides_is_not_told_where_several_may_be_meant() {
    let mut world = World::synced();
    world.pod("shop/c", "n1", "10.244.1.5", 2).pod("shop/d", "n1", "10.244.1.6", 2);
    let (far, mask) = (at("1.1.1.1:443"), at("10.0.0.1:4000"));
    let old = world.translate((at("10.244.1.5:4000"), far), (far, mask), 3 * SECOND);
    old.end(9 * SECOND);
    world.translate((at("10.244.1.6:4000"), far), (far, mask), 9 * SECOND + 2);
    let question = Question {
        ifindex: Some(2),
        scope: Scope::Unclaimed,
        ..asking("10.0.0.1:4000", "1.1.1.1:443")
    };
    for (at_ns, expected) in [
        (5 * SECOND, "pod shop/c masqueraded"),
        (9 * SECOND - 1, "unknown none address_ambiguous"),
        (9 * SECOND + 1, "pod shop/d masqueraded"),
    ] {
        assert_eq!(owner(&world, &question, at_ns), expected);
    }
    let own = Question { scope: Scope::Local, ..question };
    assert_eq!(owner(&world, &own, 9 * SECOND - 1), "node n1 address", "a socket of the host");
    let hidden = Question { began: Began::Peer, ..asking("1.1.1.1:443", "10.0.0.1:4000") };
    assert_eq!(peer(&world, &hidden, 9 * SECOND - 1), "unknown none address_ambiguous");
}

#[test]
fn the_service_is_told_by_the_address_dialled_with_its_verdict() {
    let world = World::synced();
    world.service("shop/web", "10.96.0.10", 30_080, 1, 2);
    world.service("shop/dead", "10.96.0.11", 0, 0, 2);
    let asked = |question: &Question<'_>| {
        let answer = Resolver::new(world.known.clone()).batch().resolve(question, then(5));
        answer.ends.asked.map(|it| (it.service.name.to_string(), it.port, it.kind, it.verdict))
    };
    let found = |name: &str, port, kind, verdict| Some((name.to_owned(), port, kind, verdict));
    let cluster = ServiceKind::ClusterIp;
    let to = |address: &str| asking("10.244.1.5:40000", address);
    assert_eq!(asked(&to("10.96.0.10:80")), found("web", 80, cluster, Verdict::Ok));
    assert_eq!(asked(&to("10.96.0.11:80")), found("dead", 80, cluster, Verdict::NoEndpoints));
    assert_eq!(asked(&to("10.96.0.10:81")), None, "no such port");
    assert_eq!(
        asked(&to("10.0.0.2:30080")),
        found("web", 30_080, ServiceKind::NodePort, Verdict::Ok)
    );
    let client = Question { began: Began::Peer, ..to("10.0.0.2:30080") };
    assert_eq!(asked(&client), None, "a client's port is no node port");
    assert_eq!(asked(&to("1.1.1.1:30080")), None);
    let dialled_here = Question {
        ifindex: Some(2),
        egress: false,
        began: Began::Peer,
        scope: Scope::Unclaimed,
        ..asking("10.0.0.1:30080", "1.1.1.1:5000")
    };
    assert_eq!(asked(&dialled_here), found("web", 30_080, ServiceKind::NodePort, Verdict::Ok));
}

#[test]
fn a_translated_port_that_is_no_nodes_is_no_node_port() {
    let world = World::synced();
    world.service("shop/web", "10.96.0.10", 30_080, 1, 2);
    let (client, backend) = (at("1.1.1.1:5000"), at("10.244.1.6:8080"));
    let asked = |dialled: &str| {
        world.translate((client, at(dialled)), (backend, client), 3);
        let question = asking(&client.to_string(), dialled);
        let answer = Resolver::new(world.known.clone()).batch().resolve(&question, then(5));
        answer.ends.asked.map(|it| it.kind)
    };
    assert_eq!(asked("10.244.1.77:30080"), None);
    assert_eq!(asked("10.0.0.2:30080"), Some(ServiceKind::NodePort));
}

#[test]
fn a_service_is_not_asked_for_by_what_went_to_its_address_before_it_had_it() {
    let world = World::synced();
    world.service("shop/old", "10.96.0.10", 0, 1, 2 * SECOND);
    world.remove_service("shop/old", 10 * SECOND);
    world.service("shop/new", "10.96.0.10", 0, 1, 20 * SECOND);
    let name = |at_s: u64| {
        let question = asking("10.244.1.5:40000", "10.96.0.10:80");
        let span = then(at_s * SECOND);
        let answer = Resolver::new(world.known.clone()).batch().resolve(&question, span);
        answer.ends.asked.map(|it| it.service.name.to_string())
    };
    assert_eq!(name(5), None);
    assert_eq!(name(25).as_deref(), Some("new"));
}

#[test]
fn a_port_of_the_nodes_that_passes_on_names_no_old_connection() {
    let world = World::synced();
    world.service("shop/old", "10.96.0.10", 30_080, 1, 2 * SECOND);
    world.remove_service("shop/old", 10 * SECOND);
    world.service("shop/new", "10.96.0.11", 30_080, 1, 11 * SECOND);
    let name = |at_s: u64| {
        let span = then(at_s * SECOND);
        let question = asking("10.244.1.5:40000", "10.0.0.2:30080");
        let answer = Resolver::new(world.known.clone()).batch().resolve(&question, span);
        answer.ends.asked.map(|it| it.service.name.to_string())
    };
    assert_eq!(name(5), None);
    assert_eq!(name(12).as_deref(), Some("new"));
}

#[test]
fn every_form_of_a_translated_packet_leads_to_the_service_and_the_client() {
    let mut world = World::synced();
    world.service("shop/web", "10.96.0.10", 30_080, 0, 2);
    world.pod("shop/b", "n1", "10.244.1.6", 2).pod("shop/c", "n1", "10.244.1.5", 2);
    // A host process dials the ClusterIP; a pod dials itself through it and is masked.
    let (host, service) = (at("10.0.0.1:4000"), at("10.96.0.10:80"));
    let (b, c) = (at("10.244.1.6:8080"), at("10.244.1.5:4000"));
    world.translate((host, service), (b, host), 3);
    world.translate((c, service), (b, at("10.244.1.1:999")), 3);
    let check = |question: &Question<'_>, owner: &str, peer: &str| {
        let answer = Resolver::new(world.known.clone()).batch().resolve(question, then(5));
        assert_eq!(
            (word(&answer.ends.owner), word(&answer.ends.peer)),
            (owner.into(), peer.into())
        );
        let asked = answer.ends.asked.unwrap();
        assert_eq!((&*asked.service.name, asked.port), ("web", 80));
        assert_eq!((asked.kind, asked.verdict), (ServiceKind::ClusterIp, Verdict::Ok));
        assert_eq!(answer.translation.unwrap().reply.src, b);
    };
    let question = |owner: SocketAddr, peer: SocketAddr, egress| Question {
        egress,
        ..asking(&owner.to_string(), &peer.to_string())
    };
    check(&question(host, b, true), "node n1 address", "pod shop/b address");
    check(&question(host, service, false), "node n1 address", "service shop/web address");
    check(&question(b, host, false), "pod shop/b address", "node n1 address");
    check(
        &question(b, at("10.244.1.1:999"), false),
        "pod shop/b address",
        "pod shop/c masqueraded",
    );
    check(&question(b, at("10.244.1.1:999"), true), "pod shop/b address", "pod shop/c masqueraded");
    check(&question(c, service, true), "pod shop/c address", "service shop/web address");
}

#[test]
fn what_only_passes_an_uplink_under_the_nodes_address_is_not_the_nodes() {
    let mut world = World::synced();
    world.pod("shop/c", "n1", "10.244.1.5", 2);
    let (pod, far, mask) = (at("10.244.1.5:4000"), at("1.1.1.1:443"), at("10.0.0.1:4000"));
    world.translate((pod, far), (far, mask), 3);
    world.translate(
        (at("10.0.0.1:5000"), at("10.96.0.10:80")),
        (at("10.244.2.9:80"), at("10.0.0.1:5000")),
        3,
    );
    for egress in [true, false] {
        let question =
            Question { ifindex: Some(2), egress, ..asking("10.0.0.1:4000", "1.1.1.1:443") };
        let answer = Resolver::new(world.known.clone()).batch().resolve(&question, then(5));
        assert_eq!(word(&answer.ends.owner), "pod shop/c masqueraded");
        assert_eq!(word(&answer.ends.peer), "external address");
        assert!(answer.forwarded);
        let own = Question { ifindex: Some(2), egress, ..asking("10.0.0.1:5000", "10.244.2.9:80") };
        let answer = Resolver::new(world.known.clone()).batch().resolve(&own, then(5));
        assert!(!answer.forwarded, "the host itself dialled");
    }
}

proptest! {
    /// A pod is named only where it held the address for the whole of the time, whatever the order
    /// of what is told, and never another one.
    #[test]
    fn no_pod_is_named_that_did_not_hold_the_address_all_the_time(
        lives in prop::collection::vec((1_u64..20, 0_u64..5), 1..8),
        since in 0_u64..120,
        length in 0_u64..40,
    ) {
        let mut world = World::synced();
        let (mut now, mut truth) = (10, Vec::new());
        for (number, (life, rest)) in lives.iter().enumerate() {
            let name = format!("shop/p{number}");
            world.pod(&name, "n2", "10.244.2.5", now * SECOND);
            let from = now;
            now += life;
            world.delete(&name, now * SECOND);
            truth.push((from, now, name));
            now += rest;
        }
        let span = Span { since_ns: since * SECOND, until_ns: (since + length) * SECOND };
        let answer = Resolver::new(world.known.clone())
            .batch()
            .resolve(&asking("10.0.0.1:4", "10.244.2.5:80"), span);
        if let End::Pod(_, pod) = &answer.ends.peer {
            let name = &pod.identity().unwrap().name;
            let (from, until, _) =
                truth.iter().find(|(_, _, of)| of.ends_with(&**name)).unwrap();
            // Before the API showed the address the pod may have had it already.
            prop_assert!(since + length <= *until, "named {name} after its end");
            let before = truth.iter().filter(|(_, end, _)| end <= from);
            prop_assert!(before.clone().all(|(start, end, _)| since >= *end || since + length < *start));
        }
    }
}

#[test]
fn a_name_by_address_is_told_with_a_reason_while_the_api_is_not_heard() {
    let mut world = World::synced();
    world.pod("shop/old", "n2", "10.244.2.5", 2);
    world.pod("shop/web", "n1", "10.244.1.5", 2);
    let membership = world.cgroup(7, &cgroup_of("shop/web"));
    let ends_at = |world: &World, address: &str, span| {
        let question =
            Question { membership: Some(&membership), ..asking("10.244.1.5:4", address) };
        ends(world, &question, span)
    };
    let web = "pod shop/web cgroup".to_owned();
    let registry = Arc::clone(&world.known.registry);
    let generation = registry.generation();
    for resource in HOLDERS {
        registry.lose_touch(*resource, 10);
        registry.lose_touch(*resource, 30);
    }
    assert_ne!(registry.generation(), generation, "rows are asked again");
    let by_address = |name: &str| (web.clone(), format!("{name} address"));
    let doubtful = |name: &str| (web.clone(), format!("{name} address api_not_synced"));
    let (during, pod) = (Span { since_ns: 5, until_ns: 20 }, "pod shop/old");
    assert_eq!(ends_at(&world, "10.244.2.5:80", then(10)), by_address(pod), "told before");
    assert_eq!(ends_at(&world, "10.244.2.5:80", then(11)), doubtful(pod));
    assert_eq!(ends_at(&world, "10.244.2.5:80", during), doubtful(pod));
    assert_eq!(ends_at(&world, "10.0.0.2:80", then(11)), doubtful("node n2"));
    assert_eq!(ends_at(&world, "1.1.1.1:80", then(11)), doubtful("external"));
    assert_eq!(ends_at(&world, "10.0.0.1:80", then(11)), by_address("node n1"), "its own");
    world.delete("shop/old", 40).pod("shop/new", "n2", "10.244.2.5", 40);
    let generation = registry.generation();
    for resource in HOLDERS {
        registry.regain_touch(*resource);
    }
    assert_ne!(registry.generation(), generation, "rows are asked again");
    assert_eq!(ends_at(&world, "10.244.2.5:80", then(41)), by_address("pod shop/new"));
    assert_eq!(ends_at(&world, "1.1.1.1:80", then(41)), by_address("external"));
}

#[test]
fn a_cgroup_that_comes_makes_nobody_ask_anew_and_a_pod_does() {
    let mut world = World::synced();
    let mut resolver = Resolver::new(world.known.clone());
    let before = resolver.batch().generation();
    world.cgroup(7, "/system.slice/sshd.service");
    assert_eq!(resolver.batch().generation(), before);
    world.pod("shop/web", "n1", "10.244.1.5", 2);
    assert_ne!(resolver.batch().generation(), before);
}
