//! Which addresses are behind the links to pods: pure, over what routes and neighbours tell.
//!
//! A CNI without a bridge has a route to each pod's address. On a bridge the node's neighbour
//! table has the pod's hardware address, and the bridge the port at which it was seen; that is
//! known as soon as the node itself has talked to the pod.

use std::collections::HashMap;
use std::net::IpAddr;

use super::netlink::{HardwareAddress, Neighbours};
use crate::host::{MAX_POD_ADDRESSES, PodLink};

/// The node's end of a link to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub ifindex: u32,
    /// The bridge that it is a port of.
    pub controller: Option<u32>,
}

/// The addresses behind each link; a link without any is there too.
#[must_use]
pub fn behind(
    links: &[Link],
    hosts: &[(IpAddr, u32)],
    neighbours: &Neighbours,
) -> HashMap<u32, PodLink> {
    let mut found: HashMap<u32, PodLink> =
        links.iter().map(|link| (link.ifindex, PodLink::default())).collect();
    let bridges: HashMap<u32, u32> =
        links.iter().filter_map(|link| Some((link.ifindex, link.controller?))).collect();
    let ports: HashMap<(u32, HardwareAddress), u32> = neighbours
        .ports
        .iter()
        .filter_map(|(hardware, port)| Some(((*bridges.get(port)?, *hardware), *port)))
        .collect();
    let on_bridges = neighbours
        .addresses
        .iter()
        .filter_map(|(ip, bridge, hardware)| Some((*ip, *ports.get(&(*bridge, *hardware))?)));
    for (ip, ifindex) in hosts.iter().copied().chain(on_bridges) {
        if let Some(link) = found.get_mut(&ifindex)
            && !is_of_link(ip)
            && !link.addresses.contains(&ip)
        {
            link.addresses.push(ip);
        }
    }
    for link in found.values_mut() {
        link.addresses.sort_unstable();
        link.addresses.truncate(MAX_POD_ADDRESSES);
    }
    found
}

/// Addresses that mean something on their own link alone.
fn is_of_link(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const BRIDGE: u32 = 3;

    fn check(
        links: &[Link],
        hosts: &[(&str, u32)],
        neighbours: &Neighbours,
        expected: &[(u32, &[&str])],
    ) {
        let hosts: Vec<_> = hosts.iter().map(|(address, index)| (ip(address), *index)).collect();
        let mut found: Vec<_> = behind(links, &hosts, neighbours).into_iter().collect();
        found.sort_by_key(|(index, _)| *index);
        let expected: Vec<_> = expected
            .iter()
            .map(|(index, addresses)| {
                (*index, PodLink { addresses: addresses.iter().map(|a| ip(a)).collect() })
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn routes_to_single_addresses_tell_what_is_behind_a_link() {
        let links = [5, 6, 7].map(|ifindex| Link { ifindex, controller: None });
        let hosts = [("10.0.0.5", 5), ("fd00::5", 5), ("10.0.0.6", 6), ("10.0.0.9", 9)];
        let expected: [(u32, &[&str]); 3] =
            [(5, &["10.0.0.5", "fd00::5"]), (6, &["10.0.0.6"]), (7, &[])];
        check(&links, &hosts, &Neighbours::default(), &expected);
    }

    #[test]
    fn on_a_bridge_hardware_addresses_lead_from_neighbours_to_ports() {
        let links = [5, 6].map(|ifindex| Link { ifindex, controller: Some(BRIDGE) });
        let neighbours = Neighbours {
            addresses: vec![
                (ip("10.1.0.5"), BRIDGE, [5; 6]),
                (ip("fd01::5"), BRIDGE, [5; 6]),
                (ip("fe80::5"), BRIDGE, [5; 6]),
                (ip("10.1.0.6"), BRIDGE, [6; 6]),
                (ip("10.2.0.6"), 4, [6; 6]),
                (ip("10.1.0.7"), BRIDGE, [7; 6]),
            ],
            ports: vec![([5; 6], 5), ([6; 6], 6), ([7; 6], 12)],
        };
        let expected: [(u32, &[&str]); 2] = [(5, &["10.1.0.5", "fd01::5"]), (6, &["10.1.0.6"])];
        check(&links, &[], &neighbours, &expected);
    }

    proptest! {
        #[test]
        fn the_addresses_of_a_link_are_bounded_and_sorted(last in prop::collection::vec(any::<u8>(), 0..99)) {
            let links = [Link { ifindex: 5, controller: None }];
            let hosts: Vec<_> = last.iter().map(|n| (IpAddr::from([10, 0, 0, *n]), 5)).collect();
            let found = behind(&links, &hosts, &Neighbours::default());
            let addresses = &found[&5].addresses;
            prop_assert!(addresses.len() <= MAX_POD_ADDRESSES);
            prop_assert!(addresses.is_sorted());
        }
    }
}
