//! `orb8 verify` on a node with pods: what their network namespaces counted is what the socket plane
//! counted for their cgroups, and with both planes every packet at an interface is accounted for.

mod cluster_support;
mod verify_support;

use cluster_support::{Auto, Capture, Scene, Socket, Tc};
use orb8_testbed::cluster::NEEDS;
use orb8_testbed::cluster::plan::Plan;
use orb8_testbed::cluster::talk::{self, Talk};
use orb8_testbed::flow::Total;
use orb8_testbed::link::Family::V4;
use orb8_testbed::need::{self, Need};
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
