//! The Kubernetes API is away, cut off, forgetful or forbidding: the agent counts on, says so, and
//! catches up.

mod cluster_support;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_support::rows::{End, Row, by_address, ends, is_owned, key, line, said, who};
use cluster_support::{ALL, Auto, Capture, Scene, Socket, Tc, wait_flow};
use orb8_proto::v1::{Endpoint, Kubernetes, NetworkFlow, QueryFlowsRequest, WatchedResource};
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::plan::{API, Plan, PodPlan};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::{Talk, UdpTalk};
use orb8_testbed::cluster::{NEEDS, port, talk};
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

/// A talk between two pods is told with both names, whatever else is told of them.
#[track_caller]
fn check_seen_named(scene: &Scene, client: &Pod, server: &Pod) {
    let talk = datagrams(client, &server.app, server.at(V4, 8080), 8080);
    let cni = scene.cluster.plan.cni;
    for wanted in between(scene, &talk, client, server) {
        let wanted = wanted.line(cni);
        wait_flow(scene, 1, &wanted, |row| is_owned(row) && line(row, cni) == wanted);
    }
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
    for capture in [Auto, Tc] {
        check_cut(capture);
    }
}

#[track_caller]
fn check_cut(capture: Capture) {
    let scene = Scene::start(one_node(), capture);
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    check_named(&scene, &a, &b);
    scene.cluster.api.close_port();
    let status = scene.wait_status(1, "a state that is stale", |status| {
        status.kubernetes.as_ref().is_some_and(|k| k.state == "stale")
    });
    assert!(status.healthy, "{}", status.health_message);
    assert_ne!(status.kubernetes.expect("it is told").reason, "");
    let before = resource(&scene, "pods");
    let heard_ns = before.last_heard_ns;
    assert_ne!(heard_ns, 0);
    let talk = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let rows = between(&scene, &talk, &a, &b);
    wait_flow(&scene, 1, "a name with its doubt", |row| {
        let peer = ends(row).1;
        let told = (&*peer.pod, &*peer.attribution, &*peer.reason);
        key(row) == talk.client && told == ("b", "address", "api_not_synced")
    });
    scene.cluster.delete(b);
    let late = scene.cluster.simple("shop/late", 1);
    // It has tried again, in vain.
    let status = scene.wait_status(1, "another failure", |status| {
        let resources = status.kubernetes.iter().flat_map(|k| &k.resources);
        resources.filter(|one| one.name == "pods").all(|one| one.errors > before.errors)
    });
    let resources = status.kubernetes.iter().flat_map(|k| &k.resources);
    let told =
        resources.filter(|one| one.name == "pods").map(|one| (one.last_heard_ns, &*one.state));
    assert_eq!(told.collect::<Vec<_>>(), [(heard_ns, "stale")], "nothing was heard");
    scene.cluster.api.open_port();
    scene.wait_ready(1);
    scene.wait_status(1, "the API to be heard again", |status| {
        let resources = status.kubernetes.iter().flat_map(|k| &k.resources);
        resources.filter(|one| one.name == "pods").all(|one| one.last_heard_ns > heard_ns)
    });
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
    for capture in [Auto, Tc] {
        check_forgotten(capture);
    }
}

#[track_caller]
fn check_forgotten(capture: Capture) {
    let scene = Scene::start(one_node(), capture);
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

/// Two pods on a node whose agent may not ask for one resource and is told so, with the remedy.
fn forbidding(name: &str, capture: Capture) -> (Scene, Pod, Pod) {
    let mut scene = Scene::without_agents(one_node(), capture);
    scene.cluster.api.forbid(name);
    scene.start_agents_unready();
    scene.wait_status(1, "one forbidden resource and all others", |status| {
        let wanted = |one: &WatchedResource| {
            one.state == if one.name == name { "forbidden" } else { "synced" }
        };
        status.kubernetes.as_ref().is_some_and(|k| k.resources.iter().all(wanted))
    });
    let told = resource(&scene, name);
    let remedy = format!("grant get, list and watch on {name} in API group \"\"");
    assert!(told.reason.contains("is forbidden") && told.reason.contains(&remedy), "{told:?}");
    assert_eq!(kubernetes(&scene).state, "forbidden");
    assert!(scene.status(1).healthy, "the rest is of use");
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    scene.wait_links(1, 2);
    (scene, a, b)
}

/// Of a talk with somebody of whom a forbidden resource would tell, the other end is unknown, and
/// never said to be outside of the cluster. Gives back the owner.
#[track_caller]
fn check_unknown(scene: &Scene, talk: &Talk) -> Endpoint {
    let [owner, _] =
        [(talk.client, "egress"), (talk.client.reply(), "ingress")].map(|(flow, way)| {
            let row = wait_flow(scene, 1, "the client's row", |row| {
                key(row) == flow && row.direction == way && is_owned(row) && !row.supplement
            });
            let (owner, peer) = ends(&row);
            assert_eq!(who(&peer), "unknown api_not_synced none", "{row:#?}");
            assert_eq!(row.service, None, "{row:#?}");
            owner
        });
    for said in scene.trace(1).said() {
        let about = [talk.client, talk.client.reply()].contains(&key(&said));
        assert!(!about || ends(&said).1.kind == "unknown", "{said:#?}");
    }
    owner
}

fn datagrams(client: &Pod, server: &Actor, dial: SocketAddr, port: u16) -> Talk {
    let (_, mut talk) = UdpTalk::open(&client.app, &[server], dial, port);
    talk.say(3, 100);
    talk.talk()
}

#[test]
fn with_services_forbidden_pods_are_named_and_what_may_be_a_service_is_unknown() {
    need!(@check NEEDS);
    for capture in [Auto, Tc] {
        let (scene, a, b) = forbidding("services", capture);
        check_named(&scene, &a, &b);
        let service = scene.cluster.service("shop/web", &[port("UDP", 80, 8080, 0)], &[&b]);
        let dialled = SocketAddr::new(service.ips[0], 80);
        check_unknown(&scene, &datagrams(&a, &b.app, dialled, 8080));
        let outside = &scene.cluster.outside;
        let dialled = SocketAddr::new(outside.address(V4), 9000);
        check_unknown(&scene, &datagrams(&a, outside, dialled, 9000));
    }
}

#[test]
fn with_nodes_forbidden_pods_are_named_and_nobody_is_said_to_be_outside() {
    need!(@check NEEDS);
    for capture in [Auto, Tc] {
        let (scene, a, b) = forbidding("nodes", capture);
        check_seen_named(&scene, &a, &b);
        let outside = &scene.cluster.outside;
        let dialled = SocketAddr::new(outside.address(V4), 9000);
        let owner = check_unknown(&scene, &datagrams(&a, outside, dialled, 9000));
        assert_eq!((&*owner.pod, &*owner.node, &*owner.zone), ("a", "node1", ""), "{owner:?}");
    }
}

#[test]
fn with_pods_forbidden_a_pod_has_its_uid_and_no_name() {
    need!(@check NEEDS);
    for capture in [Auto, Tc] {
        let (scene, a, b) = forbidding("pods", capture);
        let talk = datagrams(&a, &b.app, b.at(V4, 8080), 8080);
        let owner = check_unknown(&scene, &talk);
        let told = (&owner.pod_uid, &*owner.pod, &*owner.kind, &*owner.reason);
        assert_eq!(told, (&a.object.uid, "", "pod", "pod_unknown"), "{owner:?}");
    }
}

#[test]
fn an_agent_in_a_pod_needs_its_service_account_alone_and_takes_up_a_new_token() {
    need!(@check NEEDS);
    let scene = Scene::without_agents(one_node(), Auto);
    let api = &scene.cluster.api;
    let program = Path::new(env!("CARGO_BIN_EXE_orb8-agent"));
    let agent = scene.cluster.agent(1, program).env("KUBECONFIG", "");
    let agent = agent
        .env("KUBERNETES_SERVICE_HOST", api.address().ip())
        .env("KUBERNETES_SERVICE_PORT", api.address().port())
        .env("ORB8_MAX_QUERY_LIMIT", ALL)
        .service_account(&api.service_account("mounted"))
        .start(&scene.node(1).netns);
    scene.wait_ready(1);
    assert_eq!(kubernetes(&scene).server, api.url());
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    scene.wait_links(1, 2);
    check_seen_named(&scene, &a, &b);
    for resource in RESOURCES {
        assert_eq!(api.requests("mounted", resource).lists, 1, "{resource}");
    }
    assert_eq!(api.requests("node1", "").lists, 0, "there is no kubeconfig");
    api.revoke("mounted");
    let status = scene.wait_status(1, "refused credentials", |status| {
        status.kubernetes.as_ref().is_some_and(|k| k.state == "forbidden")
    });
    let reason = status.kubernetes.expect("it is told").reason;
    assert!(reason.contains("the credentials are refused (Unauthorized)"), "{reason}");
    let late = scene.cluster.simple("shop/late", 1);
    let folder = api.service_account("mounted");
    assert!(folder.join("token").exists(), "the new one lies where the old one lay");
    scene.wait_ready(1);
    scene.wait_links(1, 3);
    check_seen_named(&scene, &a, &late);
    assert_eq!(api.requests("mounted", "pods").lists, 1, "its watch went on where it was");
    let (status, log) = agent.stop();
    assert!(status.success(), "{status}:\n{log}");
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
