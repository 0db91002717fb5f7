//! `orb8 verify` on a node with pods: what their network namespaces counted is what the socket plane
//! counted for their cgroups, and with both planes every packet at an interface is accounted for.

mod cluster_support;
mod verify_support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use cluster_support::{Auto, Capture, Scene, Socket, Tc};
use orb8_testbed::cgroup;
use orb8_testbed::cluster::NEEDS;
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::plan::Plan;
use orb8_testbed::cluster::talk::{self, Talk};
use orb8_testbed::flow::Total;
use orb8_testbed::link::Family::V4;
use orb8_testbed::need::{self, Need};
use orb8_testbed::wait::wait_until;
use verify_support::{Done, Verify};

fn met(test: &str) -> bool {
    need::met(test, NEEDS) && need::met(test, &[Need::Binary("orb8")])
}

/// What went there and back in both.
fn both(one: Talk, other: Talk) -> (Total, Total) {
    let sum = |one: Total, other: Total| Total {
        packets: one.packets + other.packets,
        bytes: one.bytes + other.bytes,
    };
    (sum(one.there, other.there), sum(one.back, other.back))
}

/// Two pods of a node talk within a window; what it printed, and what they said by UDP and TCP.
fn talk_within_a_window(capture: Capture) -> (Done, [Talk; 2]) {
    let scene = Scene::start(Plan { nodes: 1, ..Plan::default() }, capture);
    let [a, b] = ["shop/a", "shop/b"].map(|name| scene.cluster.simple(name, 1));
    if capture != Socket {
        scene.wait_links(1, 2);
    }
    // Neighbours are known afterwards, and the pods by their cgroups.
    let first = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let verify = Verify::start(&scene.node(1).netns, "--tolerance 0");
    let udp = talk::udp(&a.app, &b.app, b.at(V4, 8081), 40, 700);
    let tcp = talk::tcp(&a.app, &b.app, b.at(V4, 8082), 300_000, 2_000);
    let done = verify.finish();
    scene.mention(&[first.client, udp.client, tcp.client]);
    (done, [udp, tcp])
}

/// What pods sent and took is what their network namespaces say.
fn check_pods(capture: Capture) {
    let (done, [udp, tcp]) = talk_within_a_window(capture);
    let (there, back) = both(udp, tcp);
    for (pod, sent, taken) in [("shop/a", there, back), ("shop/b", back, there)] {
        for (direction, said) in [("egress", sent), ("ingress", taken)] {
            let row = done.row("pod", pod, direction);
            assert_eq!(row.verdict(), "ok", "{row:#?}");
            let counted = (row.number("orb8_packets"), row.number("orb8_bytes"));
            assert_eq!(counted, (said.packets, said.bytes), "{capture:?} {row:#?}");
        }
    }
    for (pod, sent) in [("shop/a", tcp.there), ("shop/b", tcp.back)] {
        // The kernel counts the segments of TCP one by one, also those in super-packets.
        let row = done.row_of("pod", pod, "egress", &"tcp".into());
        let counted = (row.number("orb8_packets"), row.number("kernel_packets"));
        assert_eq!(counted, (sent.packets, sent.packets), "{capture:?} {row:#?}");
    }
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn pods_agree_with_the_counters_of_their_namespaces_at_sockets() {
    if met("pods_agree_with_the_counters_of_their_namespaces_at_sockets") {
        check_pods(Socket);
    }
}

#[test]
fn pods_and_interfaces_agree_where_both_planes_count() {
    if met("pods_and_interfaces_agree_where_both_planes_count") {
        check_pods(Auto);
    }
}

#[test]
fn what_both_planes_leave_out_and_count_is_all_that_passes_interfaces() {
    if !met("what_both_planes_leave_out_and_count_is_all_that_passes_interfaces") {
        return;
    }
    let (done, [udp, tcp]) = talk_within_a_window(Auto);
    let (there, back) = both(udp, tcp);
    let document = done.document();
    let rows = document["rows"].as_array().expect("rows");
    let all: Vec<_> = rows.iter().filter(|row| row["kind"] == "interfaces").collect();
    assert_eq!(all.len(), 1, "{document:#}");
    assert_eq!(all[0]["verdict"], "ok", "{document:#}");
    // Each packet passes the links of both pods.
    let least = 2 * (there.packets + back.packets);
    assert!(all[0]["orb8_packets"].as_u64() >= Some(least), "{document:#}");
}

#[test]
fn pods_links_agree_with_the_kernel_where_interfaces_alone_count() {
    if !met("pods_links_agree_with_the_kernel_where_interfaces_alone_count") {
        return;
    }
    let (done, [udp, tcp]) = talk_within_a_window(Tc);
    let (there, back) = both(udp, tcp);
    let document = done.document();
    let rows = document["rows"].as_array().expect("rows");
    let links: Vec<_> = rows
        .iter()
        .filter(|row| row["kind"] == "interface" && row["orb8_packets"].as_u64() > Some(0))
        .collect();
    assert!(links.len() >= 4, "two links, both ways: {document:#}");
    assert!(links.iter().all(|row| row["verdict"] == "ok"), "{document:#}");
    for said in [there, back] {
        let passed = |row: &&&serde_json::Value| row["orb8_packets"].as_u64() >= Some(said.packets);
        assert!(links.iter().filter(passed).count() >= 2, "{document:#}");
    }
}

#[test]
fn tcp_that_a_node_forwards_is_not_taken_for_its_own() {
    if !met("tcp_that_a_node_forwards_is_not_taken_for_its_own") {
        return;
    }
    let scene = Scene::start(Plan { nodes: 2, ..Plan::default() }, Auto);
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 2));
    scene.wait_links(1, 1);
    let first = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let node = scene.node(1);
    let unit = cgroup::make(node.cgroup_root(), "system.slice/verify.service");
    let verify = Verify::start_in(&unit, &node.netns, "--tolerance 0");
    let tcp = talk::tcp(&a.app, &b.app, b.at(V4, 8082), 300_000, 2_000);
    let done = verify.finish();
    scene.mention(&[first.client, tcp.client]);
    let row = done.row_of("host", "host", "egress", &"tcp".into());
    assert_eq!(row.verdict(), "ok", "{row:#?}");
    let reason = row.text("reason");
    assert!(reason.contains("without a socket may have been forwarded"), "{row:#?}");
}

/// States of a connection for which no socket is left, as `/proc/net/tcp` writes them.
const FIN_WAIT2: &str = "05";
const TIME_WAIT: &str = "06";

/// Waits until the connection to a port is in this state in a process's namespace.
fn wait_state(actor: &Actor, port: u16, state: &str) {
    let path = format!("/proc/{}/net/tcp", actor.pid());
    let is_meant = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(2);
        let to = words.next().is_some_and(|to| to.ends_with(&format!(":{port:04X}")));
        to && words.next() == Some(state)
    };
    wait_until(Duration::from_secs(60), "the connection to come to its state", || {
        fs::read_to_string(&path).expect("a process").lines().any(is_meant)
    });
}

#[test]
fn the_last_packets_of_a_connection_that_is_closed_early_are_no_difference() {
    if !met("the_last_packets_of_a_connection_that_is_closed_early_are_no_difference") {
        return;
    }
    let scene = Scene::start(Plan { nodes: 1, ..Plan::default() }, Socket);
    let [a, b] = ["shop/a", "shop/b"].map(|name| scene.cluster.simple(name, 1));
    let first = talk::udp(&a.app, &b.app, b.at(V4, 8080), 3, 100);
    let verify = Verify::start(&scene.node(1).netns, "--tolerance 0");
    let listener = b.app.listen(b.at(V4, 8083));
    let mut client = a.app.connect(b.at(V4, 8083)).expect("somebody listens");
    let (mut server, _) = listener.accept().expect("a connection");
    client.write_all(&[0; 1000]).expect("all bytes leave");
    drop(client);
    wait_state(&a.app, 8083, FIN_WAIT2);
    assert_eq!(server.read_to_end(&mut Vec::new()).expect("bytes arrive"), 1000);
    drop(server);
    wait_state(&a.app, 8083, TIME_WAIT);
    let done = verify.finish();
    scene.mention(&[first.client]);
    for direction in ["ingress", "egress"] {
        let row = done.row("pod", "shop/a", direction);
        assert_eq!(row.verdict(), "ok", "{row:#?}");
        // The other's FIN, or the ACK of it.
        let alone = row.number("kernel_packets") - row.number("orb8_packets");
        assert_eq!(alone, 1, "{row:#?}");
    }
    let row = done.row_of("pod", "shop/a", "egress", &"tcp".into());
    assert_eq!(row.verdict(), "ok", "{row:#?}");
    assert_eq!(done.code, Some(0), "{done:?}");
}
