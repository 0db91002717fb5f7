//! The Kubernetes API is away, cut off, forgetful or forbidding: the agent counts on, says so, and
//! catches up.

mod cluster_support;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_support::rows::{End, Row, by_address, ends, key, said};
use cluster_support::{ALL, Auto, Capture, Scene, Socket, wait_flow};
use orb8_proto::v1::{Endpoint, Kubernetes, NetworkFlow, QueryFlowsRequest, WatchedResource};
use orb8_testbed::cluster::plan::{API, Plan, PodPlan};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::Talk;
use orb8_testbed::cluster::{NEEDS, talk};
use orb8_testbed::link::Family::V4;
use orb8_testbed::need;
use orb8_testbed::wait::wait_until;

/// Everything that an agent watches.
const RESOURCES: [&str; 6] = ["pods", "nodes", "services", "endpointslices", "replicasets", "jobs"];

fn one_node() -> Plan {
    Plan { nodes: 1, ..Plan::default() }
}

fn kubernetes(scene: &Scene) -> Kubernetes {
    scene.status(1).kubernetes.expect("Kubernetes is told")
}

fn resource(scene: &Scene, name: &str) -> WatchedResource {
    let all = kubernetes(scene).resources;
    all.into_iter().find(|one| one.name == name).expect("a watched resource")
}

/// A talk between two pods is told with both names.
#[track_caller]
fn check_named(scene: &Scene, client: &Pod, server: &Pod) {
    scene.wait_links(1, 2);
    let talk = talk::udp(&client.app, &server.app, server.at(V4, 8080), 3, 100);
    scene.expect(&between(scene, &talk, client, server));
}

fn between(scene: &Scene, talk: &Talk, client: &Pod, server: &Pod) -> Vec<Row> {
    let near = End::pod(client, scene.capture, &by_address(server));
    let far = End::pod(server, scene.capture, &by_address(client));
    said(scene.capture, talk, &near, Some(&far))
}

#[test]
fn an_agent_that_starts_without_the_api_counts_and_names_later() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        check_start_without_api(capture);
    }
}

#[track_caller]
fn check_start_without_api(capture: Capture) {
    let mut scene = Scene::without_agents(one_node(), capture);
    let watched = if capture == Socket { 0 } else { 3 };
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    scene.cluster.api.close_port();
    scene.start_agents_unready();
    let status = scene.wait_status(1, "attached programs without the API", |status| {
        let attached = status.interfaces.iter().filter(|one| one.state == "attached").count();
        let state = status.kubernetes.as_ref().map(|k| k.state.as_str());
        attached == watched && state == Some("unreachable")
    });
    assert!(status.healthy, "without the API it is still of use: {}", status.health_message);
    let told = status.kubernetes.expect("Kubernetes is told");
    assert!(
        !told.reason.is_empty() && told.server.starts_with(&scene.cluster.api.url()),
        "{told:?}"
    );
    let talk = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let row = wait_flow(&scene, 1, "the row of a pod without a name", |row| {
        key(row) == talk.client && row.direction == "egress" && !row.supplement
    });
    let (owner, peer) = ends(&row);
    assert_eq!((&owner.pod_uid, owner.attribution.as_str()), (&a.object.uid, "none"));
    assert_eq!((peer.kind.as_str(), peer.reason.as_str()), ("unknown", "api_not_synced"));
    scene.cluster.api.open_port();
    scene.wait_ready(1);
    scene.expect(&between(&scene, &talk, &a, &b));
    scene.assert_complete();
}

#[test]
fn an_agent_that_is_cut_off_keeps_its_names_says_so_and_catches_up() {
    need!(@check NEEDS);
    let scene = Scene::start(one_node(), Auto);
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    check_named(&scene, &a, &b);
    scene.cluster.api.close_port();
    let status = scene.wait_status(1, "a state that is stale", |status| {
        status.kubernetes.as_ref().is_some_and(|k| k.state == "stale")
    });
    assert!(status.healthy, "{}", status.health_message);
    assert_ne!(status.kubernetes.expect("it is told").reason, "");
    let talk = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let rows = between(&scene, &talk, &a, &b);
    wait_flow(&scene, 1, "a name with its doubt", |row| {
        let peer = ends(row).1;
        let told = (&*peer.pod, &*peer.attribution, &*peer.reason);
        key(row) == talk.client && told == ("b", "address", "api_not_synced")
    });
    scene.cluster.delete(b);
    let late = scene.cluster.simple("shop/late", 1);
    scene.cluster.api.open_port();
    scene.wait_ready(1);
    // What the cgroups of this node prove, and the API tells now, leaves no doubt.
    scene.expect(&rows);
    check_named(&scene, &a, &late);
    scene.assert_complete();
}

#[test]
fn a_name_that_may_have_passed_on_during_a_silent_cut_is_told_with_that_reason() {
    need!(@check NEEDS);
    let scene = Scene::start(Plan::default(), Auto);
    let a = scene.cluster.simple("shop/a", 1);
    let old = scene.cluster.pod(PodPlan::new("shop/old", 2).number(77));
    check_peer(&scene, &a, &old, |peer| (&*peer.pod, &*peer.reason) == ("old", ""));
    // No connection is closed: packets to and from the API just vanish.
    let api = format!("{API}/32");
    scene.cluster.switch.run(&format!("iptables -A INPUT -d {api} -p tcp -j DROP"));
    scene.cluster.switch.run(&format!("iptables -A OUTPUT -s {api} -p tcp -j DROP"));
    scene.cluster.delete(old);
    let new = scene.cluster.pod(PodPlan::new("shop/new", 2).number(77));
    scene.wait_status(1, "a cut that was noticed", |status| {
        status.kubernetes.as_ref().is_some_and(|told| {
            told.resources.iter().any(|one| one.name == "pods" && one.state == "stale")
        })
    });
    let row = check_peer(&scene, &a, &new, |peer| peer.reason == "api_not_synced");
    let peer = ends(&row).1;
    assert_eq!((&*peer.pod, &*peer.attribution), ("old", "address"), "the best there is");
    scene.cluster.switch.run("iptables -F");
    scene.wait_ready(1);
    wait_flow(&scene, 1, "no wrong name", |other| {
        key(other) == key(&row) && other.direction == "egress" && ends(other).1.pod != "old"
    });
    check_peer(&scene, &a, &new, |peer| (&*peer.pod, &*peer.reason) == ("new", ""));
}

/// The first row of a new talk whose other end is as wanted.
#[track_caller]
fn check_peer(
    scene: &Scene,
    client: &Pod,
    server: &Pod,
    wanted: impl Fn(&Endpoint) -> bool,
) -> NetworkFlow {
    let talk = talk::udp(&client.app, &server.app, server.at(V4, 8080), 3, 100);
    wait_flow(scene, 1, "a row with that other end", |row| {
        key(row) == talk.client && row.direction == "egress" && wanted(&ends(row).1)
    })
}

#[test]
fn an_agent_whose_api_falls_silent_invents_no_names_and_catches_up() {
    need!(@check NEEDS);
    let scene = Scene::start(one_node(), Auto);
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    check_named(&scene, &a, &b);
    // Connections stay open and tell nothing more.
    scene.cluster.api.stall();
    check_named(&scene, &a, &b);
    scene.cluster.delete(b);
    let late = scene.cluster.simple("shop/late", 1);
    scene.wait_links(1, 2);
    let talk = talk::udp(&a.app, &late.app, late.at(V4, 8080), 3, 100);
    let row = wait_flow(&scene, 1, "the row of the pod that is known", |row| {
        key(row) == talk.client && row.direction == "egress" && !row.supplement
    });
    let (owner, peer) = ends(&row);
    assert_eq!((owner.pod.as_str(), owner.attribution.as_str()), ("a", "cgroup"), "{owner:?}");
    assert_eq!((peer.kind.as_str(), peer.pod.as_str()), ("unknown", ""), "{peer:?}");
    assert!(
        ["address_unknown", "api_not_synced"].contains(&peer.reason.as_str()),
        "an address of the node's range that nobody told of: {peer:?}"
    );
    let row = wait_flow(&scene, 1, "the row of the pod that nobody told of", |row| {
        key(row) == talk.server && row.direction == "ingress" && !row.supplement
    });
    let (owner, _) = ends(&row);
    assert_eq!((&owner.pod_uid, owner.pod.as_str()), (&late.object.uid, ""), "{owner:?}");
    assert_eq!(owner.reason, "pod_unknown");
    scene.cluster.api.heal();
    let near = End::pod(&a, Auto, &by_address(&late));
    let far = End::pod(&late, Auto, &by_address(&a));
    scene.expect(&said(Auto, &talk, &near, Some(&far)));
    scene.assert_complete();
}

#[test]
fn a_history_that_is_gone_is_listed_anew_once() {
    need!(@check NEEDS);
    let scene = Scene::start(one_node(), Auto);
    let a = scene.cluster.simple("shop/a", 1);
    let lists = || scene.cluster.api.requests("node1", "pods").lists;
    wait_until(Duration::from_secs(30), "the first list", || lists() == 1);
    scene.cluster.api.close_port();
    let late = scene.cluster.simple("shop/late", 1);
    scene.cluster.api.compact();
    scene.cluster.api.open_port();
    scene.wait_ready(1);
    check_named(&scene, &a, &late);
    assert_eq!(lists(), 2, "one list more, after 410 Gone");
}

#[test]
fn a_forbidden_resource_is_told_with_its_remedy_and_stops_nothing_else() {
    need!(@check NEEDS);
    let mut scene = Scene::without_agents(one_node(), Auto);
    scene.cluster.api.forbid("services");
    scene.start_agents_unready();
    scene.wait_status(1, "a forbidden resource", |status| {
        let services = |k: &Kubernetes| {
            k.resources.iter().any(|one| one.name == "services" && one.state == "forbidden")
        };
        status.kubernetes.as_ref().is_some_and(services)
    });
    let told = resource(&scene, "services");
    assert!(told.reason.contains("services") && told.reason.contains("list"), "{told:?}");
    scene.wait_status(1, "the other resources", |status| {
        let synced = |k: &Kubernetes| {
            k.resources.iter().filter(|one| one.state == "synced").count() == RESOURCES.len() - 1
        };
        status.kubernetes.as_ref().is_some_and(synced)
    });
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    scene.wait_links(1, 2);
    let talk = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let near = End::pod(&a, Auto, &by_address(&b));
    scene.expect_own(&said(Auto, &talk, &near, None));
    assert!(scene.status(1).healthy);
}

#[test]
fn at_rest_the_api_sees_one_list_and_one_watch_of_each_resource_and_agent() {
    need!(@check NEEDS);
    let scene = Scene::start(Plan::default(), Auto);
    let pods: Vec<Pod> = (0..20)
        .map(|number| scene.cluster.pod(PodPlan::new(&format!("shop/p{number}"), 1 + number % 2)))
        .collect();
    for node in ["node1", "node2"] {
        for resource in RESOURCES {
            let requests = scene.cluster.api.requests(node, resource);
            let seen = (requests.lists, requests.watches, requests.open, requests.refused);
            assert_eq!(seen, (1, 1, 1, 0), "{node} {resource}");
        }
    }
    drop(pods);
}

#[test]
fn switched_off_nothing_is_asked_and_addresses_stay_addresses() {
    need!(@check NEEDS);
    let mut scene = Scene::without_agents(one_node(), Auto).env("ORB8_KUBERNETES", "off");
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    scene.start_agents_unready();
    scene.wait_status(1, "attached programs", |status| {
        status.interfaces.iter().filter(|one| one.state == "attached").count() == 3
    });
    assert_eq!(kubernetes(&scene).state, "off");
    let talk = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let row = wait_flow(&scene, 1, "a row", |row| {
        key(row) == talk.client && row.direction == "egress" && !row.supplement
    });
    let (_, peer) = ends(&row);
    assert_eq!((peer.kind.as_str(), peer.reason.as_str()), ("external", "no_kubernetes"));
    assert_eq!(scene.cluster.api.requests("node1", "").lists, 0);
}

/// Lets a busy thread rest with its end.
struct Rest<'a>(&'a AtomicBool);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn the_first_answers_of_an_agent_are_whole_and_tell_nothing_of_its_own() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let mut scene = Scene::without_agents(one_node(), capture);
        let netns = scene.node(1).netns.clone();
        let busy = AtomicBool::new(true);
        std::thread::scope(|threads| {
            // Packets pass the uplink while programs are attached to it.
            threads.spawn(|| {
                netns.enter(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
                    while busy.load(Ordering::Relaxed) {
                        drop(socket.send_to(b"busy", (API, 9)));
                        std::thread::park_timeout(Duration::from_millis(1));
                    }
                });
            });
            // Also where an assertion fails: else the thread, and so the test, would never end.
            let rest = Rest(&busy);
            scene.start_agents_unready();
            let first = scene.answer(1, &QueryFlowsRequest::default());
            drop(rest);
            assert!(first.nodes[0].complete, "{capture:?}: {:?}", first.nodes);
            assert_eq!(first.loss, [], "{capture:?}");
        });
        scene.wait_ready(1);
        scene.wait_status(1, "own packets to the API", |status| {
            let filtered = status.packet_ledger.iter().flat_map(|ledger| &ledger.filtered);
            filtered.filter(|one| one.reason == "self_traffic").any(|one| one.packets > 0)
        });
        let answer = scene.answer(1, &QueryFlowsRequest { limit: ALL, ..Default::default() });
        let api = API.to_string();
        let own = answer
            .flows
            .iter()
            .filter(|flow| flow.protocol == "tcp" && (flow.src_ip == api || flow.dst_ip == api));
        assert_eq!(own.collect::<Vec<_>>(), Vec::<&NetworkFlow>::new(), "{capture:?}");
        assert!(answer.nodes[0].complete, "{capture:?}: {:?}", answer.nodes);
        scene.assert_complete();
    }
}
