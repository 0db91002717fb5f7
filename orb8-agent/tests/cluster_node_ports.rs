//! NodePorts: asked from outside, by a pod and by another node, over TCP and UDP, with a backend on
//! the node that was asked and with one on another.

mod cluster_support;

use std::net::SocketAddr;

use cluster_support::rows::{End, ends, heard, key, said, who};
use cluster_support::{Capture, DEADLINE, Scene, Socket, Tc};
use orb8_proto::v1::NetworkFlow;
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::plan::{Plan, node_addresses};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::{self, Talk, UdpTalk};
use orb8_testbed::cluster::{NEEDS, port};
use orb8_testbed::flow::Total;
use orb8_testbed::link::Family::V4;
use orb8_testbed::need;
use orb8_testbed::wait::wait_until;

/// The ports of the Service at every node.
const WEB: u16 = 30_080;
const DNS: u16 = 30_053;

/// A Service `shop/web` for TCP and UDP in front of a pod, told to both agents.
fn serve(scene: &Scene, backend: &Pod) {
    let ports = [port("TCP", 80, 8080, WEB), port("UDP", 53, 5353, DNS)];
    drop(scene.cluster.service("shop/web", &ports, &[backend]));
    scene.wait_services(&[1, 2], 1);
}

/// A port of the first node.
fn dial(port: u16) -> SocketAddr {
    SocketAddr::new(node_addresses(1)[0], port)
}

/// Over TCP and over UDP: what was said, and what it was asked as.
fn ask(client: &Actor, backend: &Pod) -> [(Talk, String); 2] {
    let servers = [&backend.app];
    let (_, tcp) = talk::tcp_any(client, &servers, dial(WEB), 8080, 300, 4_000);
    let (_, mut udp) = UdpTalk::open(client, &servers, dial(DNS), 5353);
    udp.say(6, 200);
    let named = |asked: u16, target: u16| {
        let (dial, at) = (dial(asked), backend.at(V4, target));
        format!("node_port shop/web {dial} ok at {at}")
    };
    [(tcp, named(WEB, 8080)), (udp.talk(), named(DNS, 5353))]
}

/// What passes through the node that was asked is the uplink's, names the Service, and at its ends
/// these: whose it is and who asks.
#[track_caller]
fn check_passing(scene: &Scene, talk: &Talk, named: [&str; 2]) {
    let asked = [(talk.client, talk.there), (talk.client.reply(), talk.back)];
    let expected = if scene.capture == Socket { 0 } else { asked.len() };
    let mut passing = Vec::new();
    // What was counted last may be on its way yet.
    wait_until(DEADLINE, "what passes to be counted", || {
        passing = scene.flows(1);
        passing.retain(|row| asked.iter().any(|(flow, _)| *flow == key(row)));
        let is_whole = |row: &NetworkFlow| {
            let counted = Total { packets: row.packets, bytes: row.bytes };
            asked.iter().any(|(flow, total)| *flow == key(row) && *total == counted)
        };
        passing.len() == expected && passing.iter().all(is_whole)
    });
    for flow in passing {
        assert_eq!((flow.plane.as_str(), flow.scope.as_str()), ("tc", "forwarded"), "{flow:?}");
        let service = flow.service.as_ref().map(|service| service.name.as_str());
        assert_eq!(service, Some("web"), "{flow:?}");
        let (owner, peer) = ends(&flow);
        assert_eq!([who(&owner).as_str(), &who(&peer)], named, "{flow:?}");
    }
}

#[test]
fn asked_from_outside_over_tcp_and_udp_the_backend_on_the_node_knows_the_service() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let backend = scene.cluster.simple("shop/web-0", 1);
        scene.wait_links(1, 1);
        serve(&scene, &backend);
        for (talk, service) in ask(&scene.cluster.outside, &backend) {
            let server = End::pod(&backend, capture, "external masqueraded").service(&service);
            scene.expect(&heard(capture, &talk, &server));
            check_passing(&scene, &talk, ["node node1 address", "external address"]);
        }
        scene.assert_complete();
    }
}

#[test]
fn asked_from_outside_a_backend_on_another_node_sees_the_node_that_was_asked() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let backend = scene.cluster.simple("shop/web-0", 2);
        scene.wait_links(2, 1);
        serve(&scene, &backend);
        for (talk, _) in ask(&scene.cluster.outside, &backend) {
            // Only the node that translated knows what was asked for, and by whom.
            let server = End::pod(&backend, capture, "node node1 masqueraded");
            scene.expect(&heard(capture, &talk, &server));
            check_passing(&scene, &talk, ["node node1 address", "external address"]);
        }
        scene.assert_complete();
    }
}

#[test]
fn asked_by_a_pod_its_own_node_names_the_service_and_the_pod_behind_the_node() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let client = scene.cluster.simple("shop/client", 1);
        let backend = scene.cluster.simple("shop/web-0", 1);
        scene.wait_links(1, 2);
        serve(&scene, &backend);
        for (talk, service) in ask(&client.app, &backend) {
            let asks = End::pod(&client, capture, "node node1 address").service(&service);
            let server = End::pod(&backend, capture, "pod shop/client masqueraded");
            scene.expect(&said(capture, &talk, &asks, Some(&server.service(&service))));
        }
        scene.assert_complete();
    }
}

#[test]
fn asked_by_a_pod_a_backend_on_another_node_sees_the_pods_node() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let client = scene.cluster.simple("shop/client", 1);
        let backend = scene.cluster.simple("shop/web-0", 2);
        scene.wait_links(1, 1);
        scene.wait_links(2, 1);
        serve(&scene, &backend);
        for (talk, service) in ask(&client.app, &backend) {
            let asks = End::pod(&client, capture, "node node1 address").service(&service);
            let server = End::pod(&backend, capture, "node node1 masqueraded");
            scene.expect(&said(capture, &talk, &asks, Some(&server)));
        }
        scene.assert_complete();
    }
}

#[test]
fn asked_by_another_node_the_process_names_the_service_and_the_backend_the_node() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let backend = scene.cluster.simple("shop/web-0", 1);
        let cron = scene.cluster.host_process(2, "cron.service");
        scene.wait_links(1, 1);
        serve(&scene, &backend);
        for (talk, service) in ask(&cron, &backend) {
            let owner = "process cron.service cgroup";
            // The node that was asked translates; the one that asks knows the Service by its port.
            let (known, _) = service.split_once(" at ").expect("a backend");
            // The tc plane cannot see which cgroup takes a packet that arrives at an uplink.
            let taker = if capture == Tc { "node node2 address" } else { owner };
            let asks = End::named(2, owner, taker, "node node1 address").service(known);
            let server = End::pod(&backend, capture, "node node2 masqueraded").service(&service);
            scene.expect_own(&said(capture, &talk, &asks, Some(&server)));
            check_passing(&scene, &talk, ["node node1 address", "node node2 masqueraded"]);
        }
        scene.assert_complete();
    }
}
