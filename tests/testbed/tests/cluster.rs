//! The simulated cluster by itself: traffic arrives, Services translate, counts are the kernel's.

use std::net::SocketAddr;

use orb8_testbed::cluster::plan::{Cni, Families, Masquerade, Plan, PodPlan, node_addresses};
use orb8_testbed::cluster::{Cluster, NEEDS, port, talk};
use orb8_testbed::counters;
use orb8_testbed::flow::L4;
use orb8_testbed::link::Family;
use orb8_testbed::need;

/// Every kind of cluster whose pods talk to each other.
fn shapes() -> Vec<Plan> {
    let mut plans = Vec::new();
    for cni in [Cni::Bridge, Cni::Routed] {
        for overlay in [false, true] {
            plans.push(Plan { cni, overlay, families: Families::Dual, ..Plan::default() });
        }
        // Nothing of IPv4 comes first that would show whether the links work.
        plans.push(Plan { cni, families: Families::V6, ..Plan::default() });
    }
    plans
}

/// The families of a plan's pods.
fn families(plan: &Plan) -> &'static [Family] {
    match plan.families {
        Families::V4 => &[Family::V4],
        Families::V6 => &[Family::V6],
        Families::Dual => &Family::ALL,
    }
}

#[test]
fn pods_talk_in_every_shape_of_cluster_and_see_each_other() {
    if !need::met("pods_talk_in_every_shape", NEEDS) {
        return;
    }
    for plan in shapes() {
        let cluster = Cluster::new(plan.clone());
        let (a, b) = (cluster.simple("shop/a", 1), cluster.simple("shop/b", 1));
        let far = cluster.simple("shop/far", 2);
        for &family in families(&plan) {
            for other in [&b, &far] {
                let before = counters::interface(a.netns(), "eth0");
                let said = talk::udp(&a.app, &other.app, other.at(family, 8080), 20, 500);
                assert_eq!(said.client, said.server, "nothing translates: {plan:?}");
                assert_eq!(said.there.packets, 21);
                let counted = counters::interface(a.netns(), "eth0").since(before);
                assert!(counted.tx_packets >= 21, "{plan:?} {counted:?}");
                let said = talk::tcp(&a.app, &other.app, other.at(family, 80), 3000, 200_000);
                assert_eq!(said.client, said.server, "nothing translates: {plan:?}");
                let said = talk::ping(&a.app, other.address(family), 3, 56);
                assert_eq!(said.there.packets, 3);
            }
            let refused = talk::refused_tcp(&a.app, b.at(family, 81));
            assert_eq!(refused.back.packets, 1);
            let (refused, message) = talk::refused_udp(&a.app, far.at(family, 81), 100);
            assert_eq!((refused.client.src, message.src), (message.dst, far.address(family)));
        }
    }
}

#[test]
fn services_choose_backends_and_hairpin_and_refuse() {
    if !need::met("services_choose_backends", NEEDS) {
        return;
    }
    for cni in [Cni::Bridge, Cni::Routed] {
        let cluster = Cluster::new(Plan { cni, families: Families::Dual, ..Plan::default() });
        let (client, near) = (cluster.simple("shop/client", 1), cluster.simple("shop/near", 1));
        let far = cluster.simple("shop/far", 2);
        let ports = [port("TCP", 80, 8080, 30080), port("UDP", 53, 5353, 0)];
        let web = cluster.service("shop/web", &ports, &[&near, &far]);
        let none = cluster.service("shop/none", &[port("TCP", 80, 8080, 0)], &[]);
        for (at, family) in Family::ALL.into_iter().enumerate() {
            let (ip, backends) = (web.ips[at], [&near.app, &far.app]);
            let dial = SocketAddr::new(ip, 80);
            let mut chosen = [0; 2];
            for _ in 0..16 {
                let (number, said) = talk::tcp_any(&client.app, &backends, dial, 8080, 100, 100);
                chosen[number] += 1;
                assert_eq!(said.client.dst, ip);
                assert_eq!(said.server.dst, backends[number].address(family));
                assert_eq!(said.server.src, client.address(family), "pods are not masqueraded");
            }
            assert!(chosen[0] > 0 && chosen[1] > 0, "{chosen:?} of 16 connections");
            let (_, udp) =
                talk::UdpTalk::open(&client.app, &backends, SocketAddr::new(ip, 53), 5353);
            assert_eq!(udp.talk().client.dst, ip);
            // A node's port from outside: the backend sees the node.
            let node = SocketAddr::new(node_addresses(1)[at], 30080);
            let (_, said) =
                talk::tcp_any(&cluster.outside, &[&far.app, &near.app], node, 8080, 10, 10);
            assert_ne!(said.server.src, cluster.outside.address(family));
            let refused = talk::refused_by_service(&client.app, SocketAddr::new(none.ips[at], 80));
            assert_eq!(refused.0.dst, none.ips[at]);
        }
        cluster.set_backends(&web, &[&near]);
        let dial = SocketAddr::new(web.ips[0], 80);
        let (_, said) = talk::tcp_any(&near.app, &[&near.app], dial, 8080, 10, 10);
        assert_ne!(said.server.src, near.address(Family::V4), "a hairpin shows the node");
        let host = cluster.host_process(1, "cron.service");
        let (_, said) = talk::tcp_any(&host, &[&near.app], dial, 8080, 10, 10);
        assert_eq!(said.client.dst, web.ips[0]);
    }
}

#[test]
fn masquerade_shows_the_node_and_the_outside_is_reached() {
    if !need::met("masquerade_shows_the_node", NEEDS) {
        return;
    }
    let plan = Plan { masquerade: Masquerade::Everything, ..Plan::default() };
    let cluster = Cluster::new(plan);
    let (a, b) = (cluster.simple("shop/a", 1), cluster.simple("shop/b", 2));
    let said = talk::udp(&a.app, &b.app, b.at(Family::V4, 8080), 3, 100);
    assert_eq!(said.server.src, node_addresses(1)[0]);
    let outside = &cluster.outside;
    let dial = SocketAddr::new(outside.address(Family::V4), 9000);
    let said = talk::tcp(&a.app, outside, dial, 100, 100);
    assert_eq!(said.server.src, node_addresses(1)[0]);
    let back = talk::tcp(outside, &b.app, b.at(Family::V4, 8080), 100, 100);
    assert_eq!(back.server.src, outside.address(Family::V4));
}

#[test]
fn a_pods_processes_are_in_its_cgroups_and_share_its_addresses() {
    if !need::met("a_pods_processes", NEEDS) {
        return;
    }
    let cluster = Cluster::new(Plan { nodes: 1, ..Plan::default() });
    let pod = cluster.simple("shop/a", 1);
    let own = |actor: &orb8_testbed::cluster::actor::Actor| {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", actor.pid()));
        let text = text.expect("a process of ours");
        let line = text.lines().find_map(|line| line.strip_prefix("0::")).expect("a v2 line");
        line.to_owned()
    };
    assert!(own(&pod.app).contains("kubepods-burstable-pod"), "{}", own(&pod.app));
    let nested = pod.nested("init.scope");
    assert_eq!(own(&nested), format!("{}/init.scope", own(&pod.app)));
    let host = cluster.pod(PodPlan::new("kube-system/proxy", 1).host_network());
    assert_eq!(host.address(Family::V4), node_addresses(1)[0]);
    let said = talk::udp(&nested, &host.app, host.at(Family::V4, 7000), 2, 10);
    assert!(matches!(said.client.l4, L4::Ports { dst: 7000, .. }));
    let (directory, name) = (pod.directory().to_owned(), pod.host_ifname().to_owned());
    cluster.delete(pod);
    assert!(!directory.exists());
    assert!(!cluster.node(1).netns.run("ip -o link").contains(&name));
    assert_eq!(cluster.api.store().get("pods", "shop", "a"), None);
    let tree = cluster.tree().root().to_owned();
    drop((nested, host, cluster));
    assert!(!tree.exists());
}
