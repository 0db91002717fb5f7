//! Services: the address that the client asked for and the backend that answered, both on the
//! record, for pods and for host processes.

mod cluster_support;

use std::net::SocketAddr;

use cluster_support::rows::{End, by_address, heard, key, said};
use cluster_support::{Auto, Capture, Scene, Socket, Tc, in_a_later_second};
use orb8_testbed::cluster::plan::{Cni, Families, Plan, node_addresses, pod_addresses};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::{NEEDS, port, talk};
use orb8_testbed::flow::{Flow, ICMP, L4};
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
    for _ in 0..12 {
        let (number, talk) = talk::tcp_any(&client.app, &servers, dial, 8080, 10, 10);
        chosen[number] += 1;
        let backend = &backends[number];
        let service = asked("cluster_ip", dial, Some(backend.at(V4, 8080)));
        let asks = End::pod(&client, Auto, "service shop/web address").service(&service);
        scene.expect_own(&said(Auto, &talk, &asks, None)[..1]);
    }
    assert!(chosen.iter().filter(|&&count| count > 0).count() > 1, "{chosen:?}");
}

fn uid() -> String {
    orb8_testbed::api::object::uid()[..8].to_owned()
}

#[test]
fn a_host_process_that_asks_a_cluster_ip_is_told_with_service_and_backend() {
    need!(@check NEEDS);
    for capture in [Auto, Socket] {
        let scene = Scene::start(Plan::default(), capture);
        let backend = scene.cluster.simple("shop/web-0", 2);
        let cron = scene.cluster.host_process(1, "cron.service");
        let ports = [port("TCP", 80, 8080, 0), port("UDP", 53, 5353, 0)];
        let service = scene.cluster.service("shop/web", &ports, &[&backend]);
        scene.wait_services(&[1], 1);
        scene.wait_links(2, 1);
        let (web, dns) = (SocketAddr::new(service.ips[0], 80), SocketAddr::new(service.ips[0], 53));
        let (_, tcp) = talk::tcp_any(&cron, &[&backend.app], web, 8080, 700, 9_000);
        let (_, mut udp) = talk::UdpTalk::open(&cron, &[&backend.app], dns, 5353);
        udp.say(9, 400);
        let owner = "process cron.service cgroup";
        let end = |peer: &str, service: &str| End::named(1, owner, owner, peer).service(service);
        let server = End::pod(&backend, capture, "node node1 masqueraded");
        for (talk, dial, target) in [(tcp, web, 8080), (udp.talk(), dns, 5353)] {
            let named = asked("cluster_ip", dial, Some(backend.at(V4, target)));
            // Its packets are counted behind the translation, the answers before it.
            let sends = end(&by_address(&backend), &named);
            let gets = end("service shop/web address", &named);
            let mut rows = said(capture, &talk, &gets, Some(&server));
            rows[0] = said(capture, &talk, &sends, None)[0].clone();
            rows[0].flow = talk.server;
            scene.expect(&rows);
        }
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
        let scene = Scene::start(Plan { nodes: 1, ..Plan::default() }, capture);
        let client = scene.cluster.simple("shop/client", 1);
        let service = scene.cluster.service("shop/web", &[port("TCP", 80, 8080, 0)], &[]);
        scene.wait_services(&[1], 1);
        scene.wait_links(1, 1);
        let dial = SocketAddr::new(service.ips[0], 80);
        let (flow, total, refused) = talk::refused_by_service(&client.app, dial);
        let verdict = format!("cluster_ip shop/web {}:80 no_endpoints", dial.ip());
        let end = End::pod(&client, capture, "service shop/web address").service(&verdict);
        let talk = talk::Talk { client: flow, server: flow, there: total, back: total };
        let mut rows = said(capture, &talk, &end, None)[..1].to_vec();
        // The node itself refuses, from its address on the pods' bridge, and no socket of the pod
        // takes that: sockets alone cannot see it.
        if capture != Socket {
            let refusal = Flow {
                src: pod_addresses(1, 1)[0],
                dst: flow.src,
                protocol: ICMP,
                l4: L4::Icmp { kind: 3, code: 3 },
            };
            let message = talk::Talk { client: refusal, server: refusal, there: refused, ..talk };
            let owner = by_address(&client);
            let end = End::named(1, &owner, &owner, "node node1 address");
            let mut row = heard(Tc, &message, &end)[0].clone();
            row.supplement = capture == Auto;
            rows.push(row);
        }
        scene.expect(&rows);
        scene.assert_complete();
    }
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
        let refused = talk::Talk { client: flow, server: flow, there: total, back: total };
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
