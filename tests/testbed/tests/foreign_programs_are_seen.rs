//! Foreign tcx programs run, count and are listed in order; a namespace takes nothing with it.

use orb8_testbed::bpf::{Foreign, Hook, Place, attached, program_exists};
use orb8_testbed::link::{Family, Veth, VethOptions, add_many, remove_many};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::traffic;

const TCX: &[Need] = &[Need::Root, Need::Bpf, Need::Tcx, Need::Tool("ip")];

#[test]
fn foreign_program_counts_its_packets_and_is_gone_when_dropped() {
    need!(@check TCX);
    let veth = Veth::addressed(VethOptions::default());
    let (netns, ifname) = (&veth.near.netns, veth.near.ifname.as_str());
    let foreign = Foreign::attach(netns, ifname, Hook::Egress, Place::Last, -1);
    let _sent = traffic::udp(&veth.near, &veth.far, Family::V4, 7, 10);
    assert_eq!(foreign.runs(), 7);
    let listed = attached(netns, ifname, Hook::Egress);
    assert_eq!(listed.iter().map(|program| program.name.as_str()).collect::<Vec<_>>(), ["foreign"]);
    drop(foreign);
    assert_eq!(attached(netns, ifname, Hook::Egress), []);
    orb8_testbed::wait::wait_until(
        std::time::Duration::from_secs(10),
        "the program to end",
        || !program_exists(listed[0].id),
    );
}

#[test]
fn first_program_ends_the_chain_with_pass_but_not_with_next() {
    need!(@check TCX);
    let veth = Veth::addressed(VethOptions::default());
    let (netns, ifname) = (&veth.near.netns, veth.near.ifname.as_str());
    let last = Foreign::attach(netns, ifname, Hook::Egress, Place::Last, -1);
    let next = Foreign::attach(netns, ifname, Hook::Egress, Place::First, -1);
    let _sent = traffic::udp(&veth.near, &veth.far, Family::V4, 3, 10);
    assert_eq!((next.runs(), last.runs()), (3, 3));
    let pass = Foreign::attach(netns, ifname, Hook::Egress, Place::First, 0);
    let _sent = traffic::udp(&veth.near, &veth.far, Family::V4, 5, 10);
    assert_eq!((pass.runs(), next.runs(), last.runs()), (5, 3, 3));
}

#[test]
fn many_links_come_and_go() {
    need!();
    let netns = Netns::new("many");
    add_many(&netns, "m", 50);
    assert_eq!(netns.run("ip -o link show type veth").lines().count(), 100);
    remove_many(&netns, "m", 50);
    assert_eq!(netns.run("ip -o link show type veth").lines().count(), 0);
}

#[test]
fn unmet_need_names_its_remedy() {
    let why = Need::Binary("no-such-program").missing().expect("it does not exist");
    assert!(why.contains("no-such-program is not built: run `cargo build"), "{why}");
    let why = Need::Tool("no-such-tool").missing().expect("it does not exist");
    assert!(why.contains("not in PATH"), "{why}");
}
