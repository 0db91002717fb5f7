//! Who a flow belongs to: what the kernel tells of a sender, and never of a receiver by the sender.

mod support;

use std::net::UdpSocket;

use orb8_proto::v1::NetworkFlow;
use orb8_testbed::link::{Family, Port, Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use support::Watch;

const TCX: &[Need] = &[Need::Root, Need::Bpf, Need::Tcx, Need::Tool("ip")];

fn socket(port: &Port) -> UdpSocket {
    let address = port.address(Family::V4);
    port.netns.enter(|| UdpSocket::bind((address, 0))).expect("a UDP socket")
}

fn number(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("a bound socket").port()
}

/// The flow to a port, as one end's agent saw it.
fn to_port(watch: &Watch, packets: u64, port: u16, direction: &str) -> NetworkFlow {
    let flows = watch.settled(packets).answer.flows;
    let mut found = flows
        .into_iter()
        .filter(|flow| flow.dst_port == u32::from(port) && flow.direction == direction);
    let flow = found.next().unwrap_or_else(|| panic!("no {direction} flow to port {port}"));
    assert!(found.next().is_none(), "two flows to port {port}");
    flow
}

#[test]
fn the_sender_is_told_where_it_sends_and_nobody_is_told_where_it_arrives() {
    if !need::met("the_sender_is_told_where_it_sends", TCX) {
        return;
    }
    let link = Veth::addressed(VethOptions::default());
    let near = Watch::start(&link.near.netns, &link.near.ifname, 1);
    let far = Watch::start(&link.far.netns, &link.far.ifname, 1);
    let (sender, receiver, refused) = (socket(&link.near), socket(&link.far), socket(&link.far));
    let (open, closed) = (number(&receiver), number(&refused));
    drop(refused);
    let to = link.far.address(Family::V4);
    for port in [open, closed] {
        link.near.netns.enter(|| sender.send_to(&[7; 100], (to, port))).expect("a datagram sent");
    }

    // Two datagrams, and the ICMP message that refuses the second.
    let sent = to_port(&near, 3, open, "egress");
    assert_eq!(sent.scope, "local");
    assert_ne!(sent.socket_cookie, 0, "the sender's socket is known");
    assert_ne!(sent.source.expect("a source").cgroup_id, 0, "and so is its cgroup");

    let got = to_port(&far, 3, open, "ingress");
    assert_eq!(got.scope, "local", "somebody listens on {open}");
    let turned_away = to_port(&far, 3, closed, "ingress");
    assert_eq!(turned_away.scope, "unclaimed", "nobody listens on {closed}");
    for flow in [got, turned_away] {
        assert_eq!(flow.socket_cookie, 0, "the packet carries the sender's socket, not ours");
        let destination = flow.destination.expect("a destination");
        assert_eq!((destination.cgroup_id, destination.process), (0, None));
        // The address is this node's, and who there is not known.
        assert_eq!((&*destination.kind, &*destination.attribution), ("node", "address"));
    }
}
