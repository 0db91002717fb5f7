//! The right pod, or it says so: late names, moved processes, every form of cgroup path.

mod cluster_support;

use std::net::SocketAddr;
use std::time::Instant;

use cluster_support::rows::{End, by_address, ends, key, said, who};
use cluster_support::{
    Auto, Capture, DEADLINE, PORT, Scene, Socket, Tc, difference, from_port, one_node, wait_flow,
};
use orb8_testbed::api::pod::{Container, Qos, Role, Stage};
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::path::{Driver, Layout};
use orb8_testbed::cluster::plan::{Plan, PodPlan};
use orb8_testbed::cluster::talk::{self, Connection, Talk, UdpTalk};
use orb8_testbed::cluster::{NEEDS, port};
use orb8_testbed::flow::Total;
use orb8_testbed::link::Family::V4;
use orb8_testbed::need;

#[test]
fn a_pod_deleted_while_its_records_arrive_keeps_its_name_on_them() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let server = scene.cluster.simple("shop/server", 2);
        let client = scene.cluster.simple("shop/client", 1);
        scene.wait_links(1, 1);
        scene.wait_links(2, 1);
        let near = End::pod(&client, capture, &by_address(&server));
        let far = End::pod(&server, capture, &by_address(&client));
        let talk = from_port(&client, &server, PORT, 50);
        scene.cluster.delete(client);
        scene.expect(&said(capture, &talk, &near, Some(&far)));
        scene.assert_complete();
    }
}

#[test]
fn packets_sent_before_the_api_tells_the_pod_are_named_once_it_does() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let server = scene.cluster.simple("shop/server", 1);
        let early = scene.cluster.pod(PodPlan::new("shop/early", 1).unannounced());
        scene.wait_links(1, 2);
        let talk = from_port(&early, &server, PORT, 5);
        let uid = &early.object.uid;
        let row = wait_flow(&scene, 1, "the early pod's row", |row| {
            key(row) == talk.client && row.direction == "egress" && !row.supplement
        });
        let (owner, _) = ends(&row);
        assert_eq!((&owner.pod_uid, owner.attribution.as_str()), (uid, "none"), "{owner:?}");
        assert_eq!(owner.reason, "pod_unknown");
        for stage in [Stage::Created, Stage::Bound, Stage::Starting, Stage::Running] {
            scene.cluster.announce(&early, stage);
        }
        let near = End::pod(&early, capture, &by_address(&server));
        let far = End::pod(&server, capture, &by_address(&early));
        scene.expect(&said(capture, &talk, &near, Some(&far)));
        scene.assert_complete();
    }
}

#[test]
fn packets_sent_before_the_api_tells_the_address_are_named_at_both_ends() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let server = scene.cluster.simple("shop/server", 1);
        let early = scene.cluster.pod(PodPlan::new("shop/early", 1).unannounced());
        scene.cluster.announce(&early, Stage::Created);
        scene.cluster.announce(&early, Stage::Bound);
        scene.wait_links(1, 2);
        scene.wait_status(1, "the pod to be known", |status| {
            status.kubernetes.as_ref().is_some_and(|k| k.pods == 3)
        });
        let talk = from_port(&early, &server, PORT, 5);
        scene.cluster.announce(&early, Stage::Running);
        let near = End::pod(&early, capture, &by_address(&server));
        let far = End::pod(&server, capture, &by_address(&early));
        scene.expect(&said(capture, &talk, &near, Some(&far)));
        scene.assert_complete();
    }
}

#[test]
fn connections_that_are_older_than_the_agent_are_named_with_service_and_mask() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let mut scene = Scene::without_agents(Plan::default(), capture);
        let client = scene.cluster.simple("shop/client", 1);
        let server = scene.cluster.simple("shop/server", 2);
        let service = scene.cluster.service("shop/web", &[port("TCP", 80, 8080, 0)], &[&server]);
        let (asked, outside) =
            (SocketAddr::new(service.ips[0], 80), scene.cluster.outside.address(V4));
        let open = |to: &Actor, dial, port| Connection::open(&client.app, &[to], dial, port).1;
        let (_, mut datagrams) =
            UdpTalk::open(&client.app, &[&server.app], server.at(V4, 5353), 5353);
        datagrams.say(10, 100);
        let connections = [
            open(&server.app, server.at(V4, 8081), 8081),
            open(&server.app, asked, 8080),
            open(&scene.cluster.outside, SocketAddr::new(outside, 9000), 9000),
        ];
        let before = datagrams.talk();
        let handshakes = connections.each_ref().map(Connection::talk);
        scene.start_agents();
        scene.wait_services(&[1], 1);
        scene.wait_links(1, 1);
        scene.wait_links(2, 1);
        datagrams.say(6, 100);
        let since = datagrams.talk().since(&before);
        let connections = connections.map(|connection| connection.finish(700, 9_000));
        let [direct, served, masked] = [0, 1, 2].map(|at| connections[at].since(&handshakes[at]));
        let named = format!("cluster_ip shop/web {asked} ok at {}", server.at(V4, 8080));
        let near = |peer: &str| End::pod(&client, capture, peer);
        let far = End::pod(&server, capture, &by_address(&client));
        let asks = near("service shop/web address").service(&named);
        let mut rows = Vec::new();
        for (talk, near, far) in [
            (since, near(&by_address(&server)), Some(&far)),
            (direct, near(&by_address(&server)), Some(&far)),
            (served, asks, Some(&far)),
            (masked, near("external address"), None),
        ] {
            rows.extend(said(capture, &talk, &near, far));
        }
        scene.expect(&rows);
        check_hidden(&scene, &masked);
        scene.assert_complete();
    }
}

/// On the uplink the node's address hides the pod, since before the agent was there.
#[track_caller]
fn check_hidden(scene: &Scene, talk: &Talk) {
    let ways = [(talk.server, talk.there), (talk.server.reply(), talk.back)];
    let ways = if scene.capture == Socket { &[][..] } else { &ways };
    let mut wanted: Vec<String> = ways
        .iter()
        .map(|(flow, total)| {
            format!("forwarded {flow} {total} | pod shop/client masqueraded | external address")
        })
        .collect();
    wanted.sort_unstable();
    let hidden = || {
        let flows = scene.flows(1).into_iter();
        let rows = flows.filter(|row| [talk.server, talk.server.reply()].contains(&key(row)));
        let lines = rows.map(|row| {
            let total = Total { packets: row.packets, bytes: row.bytes };
            let (owner, peer) = ends(&row);
            format!("{} {} {total} | {} | {}", row.scope, key(&row), who(&owner), who(&peer))
        });
        let mut lines: Vec<String> = lines.collect();
        lines.sort_unstable();
        lines
    };
    // What was counted last may be on its way yet.
    let end = Instant::now() + DEADLINE;
    while hidden() != wanted {
        assert!(Instant::now() < end, "{}", difference(&hidden(), &wanted));
    }
}

#[test]
fn a_process_that_exec_puts_into_a_nested_cgroup_is_the_pods() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let (pod, server) =
            (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/server", 1));
        scene.wait_links(1, 2);
        let nested = pod.nested("system.slice/sshd.service");
        let talk = talk::udp(&nested, &server.app, server.at(V4, 8080), 4, 100);
        let near = End::pod(&pod, capture, &by_address(&server));
        let far = End::pod(&server, capture, &by_address(&pod));
        scene.expect(&said(capture, &talk, &near, Some(&far)));
        scene.assert_complete();
    }
}

#[test]
fn a_socket_stays_with_the_cgroup_that_it_was_made_in() {
    need!(@check NEEDS);
    let scene = Scene::start(one_node(), Auto);
    let server = scene.cluster.simple("shop/server", 1);
    scene.wait_links(1, 1);
    let mut mover = scene.cluster.host_process(1, "first.service");
    let socket = mover.udp(SocketAddr::new(mover.address(V4), 0));
    let elsewhere = scene.cluster.host_process(1, "second.service");
    mover.move_to(elsewhere.cgroup());
    let (_, old) = UdpTalk::open_with(socket, &[&server.app], server.at(V4, 8080), 8080);
    let (_, new) = UdpTalk::open(&mover, &[&server.app], server.at(V4, 8081), 8081);
    let mut rows = Vec::new();
    for (talk, unit) in [(old.talk(), "first"), (new.talk(), "second")] {
        let owner = format!("process {unit}.service cgroup");
        let end = End::named(1, &owner, &owner, &by_address(&server));
        rows.extend(said(Auto, &talk, &end, None));
    }
    scene.expect_own(&rows);
    scene.assert_complete();
}

#[test]
fn a_process_moved_into_another_pods_cgroup_keeps_its_sockets_where_they_were_made() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let server = scene.cluster.simple("shop/server", 1);
        let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
        scene.wait_links(1, 3);
        let mut mover = a.nested("moved.service");
        let socket = mover.udp(SocketAddr::new(mover.address(V4), 0));
        mover.move_to(b.app.cgroup());
        let (_, mut old) = UdpTalk::open_with(socket, &[&server.app], server.at(V4, 8080), 8080);
        let (_, mut new) = UdpTalk::open(&mover, &[&server.app], server.at(V4, 8081), 8081);
        old.say(3, 100);
        new.say(4, 100);
        let far = End::pod(&server, capture, &by_address(&a));
        let mut rows = Vec::new();
        // The network namespace, and so the address that the server sees, stays that of the first.
        for (talk, pod) in [(old.talk(), &a), (new.talk(), &b)] {
            let (_, name) = pod.key();
            let owner = format!("pod shop/{name}:app cgroup");
            // A packet that arrives at a link does not tell who in the network takes it.
            let taker = if capture == Tc { by_address(&a) } else { owner.clone() };
            let near = End::named(1, &owner, &taker, &by_address(&server));
            rows.extend(said(capture, &talk, &near, Some(&far)));
        }
        scene.expect(&rows);
        scene.assert_complete();
    }
}

#[test]
fn a_static_pod_is_named_by_its_config_hash() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let server = scene.cluster.simple("shop/server", 1);
        let plan = PodPlan { is_static: true, ..PodPlan::new("kube-system/static-web-node1", 1) };
        let pod = scene.cluster.pod(plan);
        scene.wait_links(1, 2);
        let hash = pod.object.config_hash.clone().expect("a static pod");
        assert!(pod.directory().to_str().is_some_and(|path| path.contains(&hash)));
        let talk = talk::udp(&pod.app, &server.app, server.at(V4, 8080), 4, 100);
        let near = End::pod(&pod, capture, &by_address(&server));
        let far = End::pod(&server, capture, &by_address(&pod));
        scene.expect(&said(capture, &talk, &near, Some(&far)));
        scene.assert_complete();
    }
}

#[test]
fn every_container_of_a_pod_is_named() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(one_node(), capture);
        let server = scene.cluster.simple("shop/server", 1);
        let containers = vec![
            Container::new("main", Role::Main),
            Container::new("second", Role::Main),
            Container::new("setup", Role::Init),
            Container::new("side", Role::Sidecar),
            Container::new("debugger", Role::Ephemeral),
        ];
        let pod = scene.cluster.pod(PodPlan { containers, ..PodPlan::new("shop/multi", 1) });
        scene.wait_links(1, 2);
        let mut all = vec![("shop/multi".to_owned(), pod.outside_containers())];
        for name in ["second", "setup", "side", "debugger"] {
            all.push((format!("shop/multi:{name}"), pod.container(name)));
        }
        let far = End::pod(&server, capture, &by_address(&pod));
        let mut rows = Vec::new();
        for (name, process) in &all {
            let talk = talk::udp(process, &server.app, server.at(V4, 8080), 1, 10);
            let owner = format!("pod {name} cgroup");
            // A packet that arrives at a link does not tell which container takes it.
            let taker = if capture == Tc { by_address(&pod) } else { owner.clone() };
            let near = End::named(1, &owner, &taker, &by_address(&server));
            rows.extend(said(capture, &talk, &near, Some(&far)));
        }
        scene.expect(&rows);
        scene.assert_complete();
    }
}

#[test]
fn every_runtime_driver_class_and_prefix_leads_to_the_pod() {
    need!(@check NEEDS);
    for capture in [Auto, Tc] {
        check_every_form(capture);
    }
}

fn check_every_form(capture: Capture) {
    let scene = Scene::start(one_node(), capture);
    let server = scene.cluster.simple("shop/server", 1);
    let mut pods = Vec::new();
    for layout in Layout::all() {
        let classes = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
        let (qos, name) = (classes[pods.len() % 3], format!("shop/form-{}", pods.len()));
        let layout = Some(layout);
        pods.push(scene.cluster.pod(PodPlan { qos, layout, ..PodPlan::new(&name, 1) }));
    }
    scene.wait_links(1, pods.len() + 1);
    let mut rows = Vec::new();
    for pod in &pods {
        let talk = talk::udp(&pod.app, &server.app, server.at(V4, 8080), 2, 50);
        let near = End::pod(pod, capture, &by_address(&server));
        let far = End::pod(&server, capture, &by_address(pod));
        rows.extend(said(capture, &talk, &near, Some(&far)));
    }
    scene.expect(&rows);
    scene.assert_complete();
    let cgroups = scene.status(1).cgroups.expect("cgroups are told");
    for runtime in ["containerd", "cri-o", "docker"] {
        assert!(cgroups.runtimes.iter().any(|found| found == runtime), "{cgroups:?}");
    }
}

#[test]
fn the_status_names_the_plane_of_every_pod_and_how_the_node_keeps_cgroups() {
    need!(@check NEEDS);
    let layout = Layout { driver: Driver::Cgroupfs, ..Layout::default() };
    let scene = Scene::start(Plan { layout, ..one_node() }, Auto);
    let pod = scene.cluster.simple("shop/a", 1);
    scene.wait_links(1, 1);
    let (_, name) = pod.key();
    // A path of this driver does not tell the runtime: the pod's status does.
    let status = scene.wait_status(1, "the pod's plane and the runtime", |status| {
        let runtimes = status.cgroups.as_ref().map(|cgroups| cgroups.runtimes.as_slice());
        status.pod_planes.iter().any(|one| one.pod == name && one.plane == "socket")
            && runtimes == Some(&["containerd".to_owned()])
    });
    assert_eq!(status.capture, "both");
    let cgroups = status.cgroups.expect("cgroups are told");
    assert_eq!(cgroups.driver, "cgroupfs");
}

#[test]
fn an_address_of_the_cluster_that_is_nobodys_is_unknown_and_says_why() {
    need!(@check NEEDS);
    let scene = Scene::start(Plan::default(), Auto);
    let server = scene.cluster.simple("shop/server", 1);
    let stranger = scene.cluster.pod(PodPlan::new("shop/stranger", 2).unannounced());
    scene.wait_links(1, 1);
    let talk = talk::udp(&stranger.app, &server.app, server.at(V4, 8080), 2, 10);
    let row = wait_flow(&scene, 1, "the server's row", |row| {
        key(row) == talk.server && row.direction == "ingress" && !row.supplement
    });
    let (_, peer) = ends(&row);
    assert_eq!(who(&peer), "unknown address_unknown none");
}
