//! Whether we are where we say: programs that were taken off, interfaces that cannot be attached.

mod support;

use orb8_testbed::link::{Port, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::packet;
use orb8_testbed::raw::RawSocket;
use support::{Egress, Ingress, Watch, options};

const CLSACT: &[Need] = &[Need::Root, Need::Bpf, Need::Tool("ip"), Need::Tool("tc")];

fn clsact(port: &Port) -> orb8_testbed::agent::AgentOptions {
    options(&port.ifname).env("ORB8_TC_ATTACH", "clsact")
}

/// Sends datagrams that arrive at `link.near`.
fn arrive(link: &Veth, count: usize) -> orb8_testbed::flow::Traffic {
    let datagram = packet::ip(link.far.v4.into(), link.near.v4.into(), &packet::udp(7, 9, 30));
    RawSocket::open(&link.far, link.near.mac).send(&vec![datagram; count])
}

fn unattached(watch: &Watch) -> u64 {
    let ledger = watch.status().packet_ledger.expect("a packet ledger");
    ledger.lost.iter().filter(|loss| loss.stage == "unattached").map(|loss| loss.packets).sum()
}

#[test]
fn filters_that_somebody_removes_are_missed_and_attached_again() {
    need!(@check CLSACT);
    let link = Veth::quiet(VethOptions::default());
    let watch = Watch::with(&clsact(&link.near), &link.near.netns, 1);
    link.near.netns.run(&format!("tc qdisc del dev {} clsact", link.near.ifname));
    let _unseen = arrive(&link, 20);
    watch.wait_status("the removal to be told", |status| {
        status.notices.iter().any(|notice| notice.code == "programs_removed")
    });
    watch.wait_attached(1);
    watch.wait_status("the gap to be told", |_| unattached(&watch) >= 20);
    let sent = arrive(&link, 5);
    let observed = watch.settled(5);
    assert_eq!(observed.traffic(&link.near.ifname, Ingress), sent);
    assert!(!observed.answer.nodes[0].complete, "the gap is within this answer");
}

#[test]
fn ingress_qdisc_has_no_egress_hook_so_the_attach_fails_and_says_so() {
    need!(@check CLSACT);
    let link = Veth::quiet(VethOptions::default());
    link.near.netns.run(&format!("tc qdisc add dev {} ingress", link.near.ifname));
    let watch = Watch::with(&clsact(&link.near), &link.near.netns, 0);
    let status = watch.wait_status("the attach to fail", |status| {
        status.interfaces.iter().any(|interface| interface.state == "failed")
    });
    assert!(status.interfaces[0].reason.contains("qdisc `ingress`"), "{:?}", status.interfaces);
    assert!(!status.healthy, "{}", status.health_message);
    let _unseen = arrive(&link, 12);
    watch.wait_status("what passes to be told", |_| unattached(&watch) >= 12);
    link.near.netns.run(&format!("tc qdisc del dev {} ingress", link.near.ifname));
    watch.wait_attached(1);
    let before = unattached(&watch);
    let sent = arrive(&link, 3);
    let observed = watch.settled(3);
    assert_eq!(observed.traffic(&link.near.ifname, Ingress), sent);
    assert!(observed.traffic(&link.near.ifname, Egress).is_empty(), "nothing is counted twice");
    assert_eq!(unattached(&watch), before);
}

#[test]
fn udp_to_the_number_of_our_port_is_not_ours() {
    need!(@check CLSACT);
    let link = Veth::addressed(VethOptions::default());
    let options = options(&link.near.ifname).env("ORB8_GRPC_LISTEN", "0.0.0.0");
    let watch = Watch::with(&options, &link.near.netns, 1);
    let datagram = packet::ip(link.far.v4.into(), link.near.v4.into(), &packet::udp(7, 9090, 30));
    let sent = RawSocket::open(&link.far, link.near.mac).send(&vec![datagram; 4]);
    let observed = watch.settled(4);
    let got = observed.traffic(&link.near.ifname, Ingress);
    for (flow, total) in sent.iter() {
        assert_eq!(got.get(flow), *total);
    }
}

#[test]
fn one_interface_that_cannot_be_attached_makes_the_answer_partial() {
    need!(@check CLSACT);
    let link = Veth::addressed(VethOptions::default());
    let netns = link.near.netns.clone();
    let other =
        Veth::between(&netns, &link.far.netns, VethOptions { number: 1, ..VethOptions::default() });
    netns.run(&format!("tc qdisc add dev {} ingress", other.near.ifname));
    let names = format!("{},{}", link.near.ifname, other.near.ifname);
    let options = options(&names).env("ORB8_TC_ATTACH", "clsact");
    let watch = Watch::with(&options, &netns, 1);
    watch.wait_status("the failure to be told", |status| {
        !status.healthy && status.health_message.contains(&other.near.ifname)
    });
    let sent = arrive(&link, 3);
    let observed = watch.settled(3);
    assert_eq!(observed.traffic(&link.near.ifname, Ingress), sent);
    assert!(!observed.answer.nodes[0].complete, "half of what was asked for cannot be seen");
}
