//! The packet view in a cluster: whose packets they are decides which are shown, whichever plane
//! counts them.

mod cluster_support;

use cluster_support::ask::packets;
use cluster_support::{Auto, DEADLINE, Scene, Tc};
use orb8_proto::v1::condition::{Field, Side};
use orb8_proto::v1::{Condition, PacketEvent, Strings};
use orb8_testbed::bpf::{Hook, attached};
use orb8_testbed::cluster::plan::Plan;
use orb8_testbed::cluster::{NEEDS, talk};
use orb8_testbed::link::Family::V4;
use orb8_testbed::need;
use orb8_testbed::wait::wait_until;

/// What a pod sends.
fn sent_by(pod: &str) -> Condition {
    let field = Field::Pod(Strings { values: vec![pod.to_owned()] });
    Condition { side: Side::Source.into(), negate: false, field: Some(field) }
}

#[test]
fn the_packets_of_a_pod_are_shown_at_both_links_and_nobody_elses() {
    need!(@check NEEDS);
    for capture in [Auto, Tc] {
        let scene = Scene::start(Plan { nodes: 1, ..Plan::default() }, capture);
        let pod = |name: &str| scene.cluster.simple(name, 1);
        let [a, b, c, d] = ["shop/a", "shop/b", "shop/c", "shop/d"].map(pod);
        scene.wait_links(1, 4);
        let netns = &scene.node(1).netns;
        let links: Vec<String> =
            scene.status(1).interfaces.into_iter().map(|interface| interface.name).collect();
        let programs = || -> Vec<usize> {
            links.iter().map(|link| attached(netns, link, Hook::Ingress).len()).collect()
        };
        let before = programs();
        let told = packets(netns, sent_by("shop/a"));
        wait_until(DEADLINE, "the packet view to be attached everywhere", || {
            programs().iter().zip(&before).all(|(now, before)| now > before)
        });
        let others = talk::udp(&c.app, &d.app, d.at(V4, 8080), 30, 300);
        let said = talk::udp(&a.app, &b.app, b.at(V4, 8080), 20, 500);
        let told = || told.lock().expect("nobody panics with it").clone();
        let wanted = 2 * usize::try_from(said.there.packets).expect("a few");
        wait_until(DEADLINE, "the packets that the pod sent", || told().len() >= wanted);
        let told: Vec<PacketEvent> = told();
        for direction in ["egress", "ingress"] {
            let there: Vec<_> = told.iter().filter(|p| p.direction == direction).collect();
            let bytes: u64 = there.iter().map(|packet| u64::from(packet.bytes)).sum();
            let seen = (there.len() as u64, bytes);
            assert_eq!(seen, (said.there.packets, said.there.bytes), "{capture:?} {told:?}");
        }
        for packet in &told {
            assert_eq!(packet.src_ip, said.client.src.to_string());
            assert_eq!(packet.dst_ip, said.client.dst.to_string());
        }
        scene.mention(&[others.client, said.client]);
        scene.assert_complete();
    }
}
