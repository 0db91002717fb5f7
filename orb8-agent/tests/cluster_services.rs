//! Services: the address that the client asked for and the backend that answered, both on the
//! record, for pods and for host processes.

mod cluster_support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use cluster_support::rows::{End, Row, by_address, heard, key, said};
use cluster_support::{Auto, Capture, Scene, Socket, Tc, in_a_later_second};
use orb8_testbed::cluster::plan::{Cni, Families, Plan, node_addresses, pod_addresses};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk::Talk;
use orb8_testbed::cluster::{NEEDS, port, talk};
use orb8_testbed::flow::{Flow, ICMP};
use orb8_testbed::link::Family::{self, V4};
use orb8_testbed::need;

/// `cluster_ip shop/web 10.96.0.10:80 ok at 10.244.32.10:8080`
fn asked(kind: &str, dial: SocketAddr, backend: Option<SocketAddr>) -> String {
    let at = backend
        .map_or_else(String::new, |backend| format!(" at {}:{}", backend.ip(), backend.port()));
    format!("{kind} shop/web {}:{} ok{at}", dial.ip(), dial.port())
}

/// Both families.
fn dual() -> Plan {
    Plan { families: Families::Dual, ..Plan::default() }
}

/// A client on node 1, a backend on either node, one Service for TCP and UDP of both families.
fn check_cluster_ip(scene: &Scene, client: &Pod, backend: &Pod) {
    let capture = scene.capture;
    let ports = [port("TCP", 80, 8080, 0), port("UDP", 53, 5353, 0)];
    let service = scene.cluster.service("shop/web", &ports, &[backend]);
    // One of the Service, and an EndpointSlice for each family.
    scene.wait_services(&[1, 2], 1);
    for (family, ip) in Family::ALL.into_iter().zip(service.ips) {
        let (web, dns) = (SocketAddr::new(ip, 80), SocketAddr::new(ip, 53));
        let (_, tcp) = talk::tcp_any(&client.app, &[&backend.app], web, 8080, 2_000, 60_000);
        let (_, mut udp) = talk::UdpTalk::open(&client.app, &[&backend.app], dns, 5353);
        udp.say(9, 400);
        for (talk, dial, target) in [(tcp, web, 8080), (udp.talk(), dns, 5353)] {
            let service = asked("cluster_ip", dial, Some(backend.at(family, target)));
            let asks = End::pod(client, capture, "service shop/web address").service(&service);
            let mut answers = End::pod(backend, capture, &by_address(client));
            if backend.node == client.node {
                // Only the node that translated knows what was asked for.
                answers = answers.service(&service);
            }
            scene.expect(&said(capture, &talk, &asks, Some(&answers)));
        }
    }
    scene.assert_complete();
}

#[test]
fn a_cluster_ip_and_the_backend_on_the_same_node_are_both_on_the_record() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        for cni in [Cni::Bridge, Cni::Routed] {
            let scene = Scene::start(Plan { cni, ..dual() }, capture);
            let client = scene.cluster.simple("shop/client", 1);
            let backend = scene.cluster.simple("shop/web-0", 1);
            scene.wait_links(1, 2);
            check_cluster_ip(&scene, &client, &backend);
        }
    }
}

#[test]
fn a_cluster_ip_and_the_backend_on_another_node_are_both_on_the_record() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(dual(), capture);
        let client = scene.cluster.simple("shop/client", 1);
        let backend = scene.cluster.simple("shop/web-0", 2);
        scene.wait_links(1, 1);
        scene.wait_links(2, 1);
        check_cluster_ip(&scene, &client, &backend);
    }
}

#[test]
fn each_connection_names_the_backend_that_it_got() {
    need!(@check NEEDS);
    let scene = Scene::start(Plan::default(), Auto);
    let client = scene.cluster.simple("shop/client", 1);
    let backends = [1, 1, 2].map(|node| scene.cluster.simple(&format!("shop/web-{}", uid()), node));
    let all: Vec<&Pod> = backends.iter().collect();
    let service = scene.cluster.service("shop/web", &[port("TCP", 80, 8080, 0)], &all);
    scene.wait_services(&[1, 2], 1);
    let dial = SocketAddr::new(service.ips[0], 80);
    let servers: Vec<_> = backends.iter().map(|pod| &pod.app).collect();
    let mut chosen = [0; 3];
    let mut rows = Vec::new();
    for _ in 0..12 {
        let (number, talk) = talk::tcp_any(&client.app, &servers, dial, 8080, 10, 10);
        chosen[number] += 1;
        let backend = &backends[number];
        let service = asked("cluster_ip", dial, Some(backend.at(V4, 8080)));
        let asks = End::pod(&client, Auto, "service shop/web address").service(&service);
        let answers = End::pod(backend, Auto, &by_address(&client));
        // Only the node that translated knows what was asked for.
        let answers = if backend.node == 1 { answers.service(&service) } else { answers };
        rows.extend(said(Auto, &talk, &asks, Some(&answers)));
    }
    assert!(chosen.iter().filter(|&&count| count > 0).count() > 1, "{chosen:?}");
    scene.expect(&rows);
    scene.assert_complete();
}

fn uid() -> String {
    orb8_testbed::api::object::uid()[..8].to_owned()
}

#[test]
fn a_host_process_that_asks_a_cluster_ip_is_told_with_service_and_backend() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let backends = [1, 2].map(|node| scene.cluster.simple(&format!("shop/web-{node}"), node));
        let cron = scene.cluster.host_process(1, "cron.service");
        let ports = [port("TCP", 80, 8080, 0), port("UDP", 53, 5353, 0)];
        let service = scene.cluster.service("shop/web", &ports, &[&backends[0]]);
        scene.wait_services(&[1, 2], 1);
        scene.wait_links(1, 1);
        scene.wait_links(2, 1);
        for backend in &backends {
            scene.cluster.set_backends(&service, &[backend]);
            let dials = [80, 53].map(|port| SocketAddr::new(service.ips[0], port));
            let (_, tcp) = talk::tcp_any(&cron, &[&backend.app], dials[0], 8080, 700, 9_000);
            let (_, mut udp) = talk::UdpTalk::open(&cron, &[&backend.app], dials[1], 5353);
            udp.say(9, 400);
            for (talk, dial, target) in [(tcp, dials[0], 8080), (udp.talk(), dials[1], 5353)] {
                let named = asked("cluster_ip", dial, Some(backend.at(V4, target)));
                scene.expect(&asked_by_host(capture, &talk, &named, backend));
            }
        }
        scene.assert_complete();
    }
}

/// What is seen of a process of node 1 that asks a Service: its packets are counted behind the
/// translation, the answers before it at its socket, and behind it at the uplink.
fn asked_by_host(capture: Capture, talk: &Talk, named: &str, backend: &Pod) -> Vec<Row> {
    let owner = "process cron.service cgroup";
    // The tc plane cannot see which cgroup takes a packet that arrives at an uplink.
    let taker = if capture == Tc { "node node1 address" } else { owner };
    let sends = End::named(1, owner, taker, &by_address(backend)).service(named);
    let gets = End::named(1, owner, taker, "service shop/web address").service(named);
    let server = End::pod(backend, capture, "node node1 masqueraded");
    let server = if backend.node == 1 { server.service(named) } else { server };
    let behind = Talk { client: talk.server, ..*talk };
    let mut rows = said(capture, &behind, &sends, Some(&server));
    if capture == Tc && backend.node == 1 {
        // No interface that is watched lies between the host and the pod's link: this plane cannot
        // see the host's end.
        return rows.split_off(2);
    }
    if capture != Tc {
        rows[1] = said(capture, talk, &gets, None)[1].clone();
    }
    rows
}

#[test]
fn what_a_host_process_asks_of_a_service_without_endpoints_nobody_can_see() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan::default(), capture);
        let cron = scene.cluster.host_process(1, "cron.service");
        let far = scene.cluster.simple("shop/far", 2);
        let ports = [port("TCP", 80, 8080, 0), port("UDP", 53, 5353, 0)];
        let service = scene.cluster.service("shop/web", &ports, &[]);
        scene.wait_services(&[1], 1);
        scene.wait_links(2, 1);
        // The node refuses before a packet has come to where programs count.
        let [web, dns] = [80, 53].map(|port| SocketAddr::new(service.ips[0], port));
        let (knock, _, _) = talk::refused_by_service(&cron, web);
        let socket = cron.udp(SocketAddr::new(cron.address(V4), 0));
        socket.connect(dns).expect("there is a route");
        let refused = socket.send(&[7; 100]).expect_err("nobody is there");
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
        // What it says afterwards is counted, so what it said before would be, too.
        let talk = talk::udp(&cron, &far.app, far.at(V4, 8080), 3, 50);
        let owner = "process cron.service cgroup";
        let taker = if capture == Tc { "node node1 address" } else { owner };
        let client = End::named(1, owner, taker, &by_address(&far));
        let server = End::pod(&far, capture, "node node1 masqueraded");
        scene.expect(&said(capture, &talk, &client, Some(&server)));
        let mut seen = scene.flows(1);
        seen.retain(|row| {
            let flow = key(row);
            [flow.src, flow.dst].contains(&knock.dst) || flow.protocol == ICMP
        });
        assert!(seen.is_empty(), "{capture:?}: {seen:#?}");
        scene.assert_complete();
    }
}

#[test]
fn a_node_port_asked_from_outside_names_the_service_where_it_is_translated() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(dual(), capture);
        let backend = scene.cluster.simple("shop/web-0", 1);
        let ports = [port("TCP", 80, 8080, 30080)];
        let _service = scene.cluster.service("shop/web", &ports, &[&backend]);
        scene.wait_services(&[1], 1);
        scene.wait_links(1, 1);
        for (family, address) in Family::ALL.into_iter().zip(node_addresses(1)) {
            let dial = SocketAddr::new(address, 30080);
            let (_, talk) =
                talk::tcp_any(&scene.cluster.outside, &[&backend.app], dial, 8080, 300, 4_000);
            assert_ne!(talk.server.src, talk.client.src, "the node hides who called");
            // This node hid the caller itself, so it knows who that is.
            let service = asked("node_port", dial, Some(backend.at(family, 8080)));
            let server = End::pod(&backend, capture, "external masqueraded").service(&service);
            scene.expect(&heard(capture, &talk, &server));
            for flow in scene.flows(1) {
                if [talk.client, talk.client.reply()].contains(&key(&flow)) {
                    assert_eq!((flow.plane.as_str(), flow.scope.as_str()), ("tc", "forwarded"));
                    assert_eq!(flow.service.map(|service| service.name).as_deref(), Some("web"));
                }
            }
        }
        scene.assert_complete();
    }
}

#[test]
fn a_pod_that_reaches_itself_through_its_service_is_told_as_such() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, ..dual() }, capture);
        let pod = scene.cluster.simple("shop/web-0", 1);
        let service = scene.cluster.service("shop/web", &[port("TCP", 80, 8080, 0)], &[&pod]);
        scene.wait_services(&[1], 1);
        scene.wait_links(1, 1);
        for (family, ip) in Family::ALL.into_iter().zip(service.ips) {
            let dial = SocketAddr::new(ip, 80);
            let (_, talk) = talk::tcp_any(&pod.app, &[&pod.app], dial, 8080, 100, 2_000);
            assert_ne!(talk.server.src, pod.address(family), "a node stands between");
            let named = asked("cluster_ip", dial, Some(pod.at(family, 8080)));
            let client = End::pod(&pod, capture, "service shop/web address").service(&named);
            // The kernel of this node knows that it is the pod itself that the node's address hides.
            let server = End::pod(&pod, capture, "pod shop/web-0 masqueraded").service(&named);
            scene.expect(&said(capture, &talk, &client, Some(&server)));
        }
        scene.assert_complete();
    }
}

#[test]
fn a_service_without_endpoints_is_a_verdict() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, ..dual() }, capture);
        let client = scene.cluster.simple("shop/client", 1);
        let ports = [port("TCP", 80, 8080, 0), port("UDP", 53, 5353, 0)];
        let service = scene.cluster.service("shop/web", &ports, &[]);
        scene.wait_services(&[1], 1);
        scene.wait_links(1, 1);
        let mut rows = Vec::new();
        for (family, ip) in Family::ALL.into_iter().zip(service.ips) {
            rows.extend(refusals(&scene, &client, family, ip));
        }
        scene.expect(&rows);
        scene.assert_complete();
    }
}

/// A pod knocks over TCP and UDP at a Service that nobody is behind: what a plane can see of that.
fn refusals(scene: &Scene, client: &Pod, family: Family, ip: IpAddr) -> Vec<Row> {
    let capture = scene.capture;
    let (flow, total, mut refused) = talk::refused_by_service(&client.app, SocketAddr::new(ip, 80));
    let knock = Talk { client: flow, server: flow, there: total, back: total };
    let (datagram, message) = talk::refused_udp(&client.app, SocketAddr::new(ip, 53), 100);
    refused.add(datagram.back.packets, datagram.back.bytes);
    let mut rows = Vec::new();
    for (talk, port) in [(knock, 80), (datagram, 53)] {
        let verdict = format!("cluster_ip shop/web {ip}:{port} no_endpoints");
        let end = End::pod(client, capture, "service shop/web address").service(&verdict);
        rows.extend(said(capture, &talk, &end, None).into_iter().take(1));
    }
    // The node itself refuses, from its address on the pods' bridge, and no socket of the pod takes
    // that: sockets alone cannot see it.
    if capture != Socket {
        let gateway = pod_addresses(1, 1)[usize::from(family == Family::V6)];
        let refusal = Flow { src: gateway, ..message };
        let message = Talk { client: refusal, server: refusal, there: refused, ..datagram };
        let owner = by_address(client);
        let end = End::named(1, &owner, &owner, "node node1 address");
        let mut row = heard(Tc, &message, &end)[0].clone();
        row.supplement = capture == Auto;
        rows.push(row);
    }
    rows
}

#[test]
fn a_cluster_ip_given_to_another_service_leaves_old_records_theirs() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, ..Plan::default() }, capture);
        let client = scene.cluster.simple("shop/client", 1);
        let [web, api] = ["shop/web-0", "shop/api-0"].map(|name| scene.cluster.simple(name, 1));
        let service = scene.cluster.service("shop/web", &[port("TCP", 80, 8080, 0)], &[&web]);
        scene.wait_services(&[1], 1);
        scene.wait_links(1, 3);
        let dial = SocketAddr::new(service.ips[0], 80);
        let (_, before) = talk::tcp_any(&client.app, &[&web.app], dial, 8080, 100, 2_000);
        let named = asked("cluster_ip", dial, Some(web.at(V4, 8080)));
        let end = |peer: &str, service: &str| End::pod(&client, capture, peer).service(service);
        let known = end("service shop/web address", &named);
        scene.expect_own(&said(capture, &before, &known, None));
        in_a_later_second();
        let replaced = scene.cluster.replace_service(service, "shop/api", &[&api]);
        assert_eq!(replaced.ips[0], dial.ip());
        let (_, after) = talk::tcp_any(&client.app, &[&api.app], dial, 8080, 100, 3_000);
        let renamed = asked("cluster_ip", dial, Some(api.at(V4, 8080))).replace("web", "api");
        let mut rows = said(capture, &after, &end("service shop/api address", &renamed), None);
        // What was said of the first one stays, though somebody else has its address now.
        let past = end("service shop/web address_reused", &named);
        rows.extend(said(capture, &before, &past, None));
        scene.expect_own(&rows);
        scene.mention(&[before.server, after.server]);
        scene.assert_complete();
    }
}

#[test]
fn endpoints_that_come_later_change_no_verdict_that_was_told() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        let scene = Scene::start(Plan { nodes: 1, ..Plan::default() }, capture);
        let client = scene.cluster.simple("shop/client", 1);
        let backend = scene.cluster.simple("shop/web-0", 1);
        let service = scene.cluster.service("shop/web", &[port("TCP", 80, 8080, 0)], &[]);
        scene.wait_services(&[1], 1);
        scene.wait_links(1, 2);
        let dial = SocketAddr::new(service.ips[0], 80);
        let (flow, total, _) = talk::refused_by_service(&client.app, dial);
        let refused = Talk { client: flow, server: flow, there: total, back: total };
        let verdict = format!("cluster_ip shop/web {}:80 no_endpoints", dial.ip());
        let end =
            |service: &str| End::pod(&client, capture, "service shop/web address").service(service);
        let mut rows = said(capture, &refused, &end(&verdict), None);
        rows.truncate(1);
        scene.expect_own(&rows);
        scene.cluster.set_backends(&service, &[&backend]);
        let (_, talk) = talk::tcp_any(&client.app, &[&backend.app], dial, 8080, 100, 2_000);
        let all = scene.flows(1);
        let refusals = all.iter().map(key).filter(|flow| flow.protocol == ICMP);
        scene.mention(&refusals.chain([talk.server]).collect::<Vec<_>>());
        let named = asked("cluster_ip", dial, Some(backend.at(V4, 8080)));
        rows.extend(said(capture, &talk, &end(&named), None));
        scene.expect_own(&rows);
        scene.assert_complete();
    }
}
