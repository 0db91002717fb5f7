//! Which interfaces are attached: uplinks, links to pods, and those that the settings name.

use std::collections::HashSet;

use globset::GlobSet;

use super::netlink::{Address, Device, bits};
use crate::datapath::ChosenBy;

/// The devices to attach, each with the reason: links to pods last, else in the order of their
/// numbers.
#[must_use]
pub fn choose(
    devices: &[Device],
    addresses: &[Address],
    default_routes: &[u32],
    configured: &GlobSet,
) -> Vec<(Device, ChosenBy)> {
    let indices = |wanted: fn(&Address) -> bool| -> HashSet<u32> {
        addresses.iter().filter(|a| wanted(a)).map(|a| a.ifindex).collect()
    };
    let global = indices(|address| address.global);
    // An address with neighbours on its link: the node talks to others there, not to one pod.
    // Every interface has such an address of IPv6's link scope.
    let with_neighbours = indices(|address| address.global && address.prefix < bits(address.ip));
    let why = |device: &Device| {
        let default_route = default_routes.contains(&device.ifindex);
        if configured.is_match(&device.name) {
            return Some(ChosenBy::Configured);
        }
        if device.bridge || device.loopback {
            return None;
        }
        if device.veth {
            // Within one namespace a pair is a cable, whose packets come by elsewhere.
            device.peer_netns?;
            return Some(if default_route {
                ChosenBy::DefaultRoute
            } else if with_neighbours.contains(&device.ifindex) {
                ChosenBy::GlobalAddress
            } else {
                ChosenBy::PodLink
            });
        }
        if default_route {
            return Some(ChosenBy::DefaultRoute);
        }
        global.contains(&device.ifindex).then_some(ChosenBy::GlobalAddress)
    };
    let mut chosen: Vec<_> =
        devices.iter().filter_map(|device| Some((device.clone(), why(device)?))).collect();
    chosen.sort_by_key(|(device, why)| (*why == ChosenBy::PodLink, device.ifindex));
    chosen
}

/// Whether a device is not the one that had its index before: it has another name, or leads
/// elsewhere. One that was only renamed is taken for another too; it is attached to anew.
#[must_use]
pub fn is_another(before: &Device, now: &Device) -> bool {
    before.name != now.name || before.peer_netns != now.peer_netns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::LinkKind;
    use crate::ebpf::netlink::Carried;
    use globset::{Glob, GlobSetBuilder};

    fn device(ifindex: u32, name: &str) -> Device {
        let veth = name.starts_with("veth");
        Device {
            ifindex,
            name: name.to_owned(),
            link: LinkKind::Ethernet,
            loopback: name == "lo",
            hardware: false,
            bridge: name.starts_with("cni"),
            veth,
            peer_netns: (veth && name != "veth-cable").then_some(7),
            controller: None,
            tunnel_port: None,
            carried: Carried::default(),
        }
    }

    fn globs(patterns: &[&str]) -> GlobSet {
        let mut builder = GlobSetBuilder::new();
        for pattern in patterns {
            builder.add(Glob::new(pattern).unwrap());
        }
        builder.build().unwrap()
    }

    fn address(ifindex: u32, text: &str) -> Address {
        let (ip, prefix) = text.split_once('/').unwrap();
        let ip: std::net::IpAddr = ip.parse().unwrap();
        let global = !text.starts_with("fe80") && !ip.is_loopback();
        Address { ifindex, ip, prefix: prefix.parse().unwrap(), global }
    }

    fn check(names: &[&str], addresses: &[Address], patterns: &[&str], expected: &[&str]) {
        let devices: Vec<_> = names.iter().zip(1..).map(|(name, n)| device(n, name)).collect();
        let chosen = choose(&devices, addresses, &[2], &globs(patterns));
        let shown: Vec<_> = chosen.iter().map(|(d, why)| format!("{} {why:?}", d.name)).collect();
        assert_eq!(shown, expected);
    }

    const NAMES: [&str; 6] = ["lo", "eth0", "eth1", "eth2", "veth-cable", "cni0"];

    fn addresses() -> [Address; 6] {
        [
            address(1, "127.0.0.1/8"),
            address(2, "192.0.2.1/24"),
            address(3, "2001:db8::1/64"),
            address(4, "fe80::1/64"),
            address(5, "10.0.0.1/24"),
            address(6, "10.244.0.1/24"),
        ]
    }

    #[test]
    fn uplinks_have_a_default_route_or_a_global_address_and_are_no_bridge_cable_or_loopback() {
        check(&NAMES, &addresses(), &[], &["eth0 DefaultRoute", "eth1 GlobalAddress"]);
    }

    #[test]
    fn globs_add_interfaces_of_any_kind_to_the_uplinks() {
        let expected =
            ["eth0 DefaultRoute", "eth1 GlobalAddress", "eth2 Configured", "veth-cable Configured"];
        check(&NAMES, &addresses(), &["veth*", "eth2"], &expected);
    }

    #[test]
    fn a_veth_into_another_namespace_leads_to_a_pod_unless_the_node_has_neighbours_there() {
        check(&["veth0", "veth1", "eth0"], &[], &[], &["veth1 DefaultRoute", "veth0 PodLink"]);
        let addresses = [
            address(1, "169.254.1.1/32"),
            address(1, "fe80::1/64"),
            address(3, "172.18.0.2/16"),
            address(4, "fd00::1/128"),
        ];
        check(
            &["veth0", "veth1", "veth2", "veth3"],
            &addresses,
            &[],
            &["veth1 DefaultRoute", "veth2 GlobalAddress", "veth0 PodLink", "veth3 PodLink"],
        );
    }

    #[test]
    fn another_name_or_another_namespace_behind_it_makes_another_device() {
        let before = Device { peer_netns: Some(1), ..device(5, "veth5") };
        let busier =
            Device { carried: Carried { rx_packets: 9, ..before.carried }, ..before.clone() };
        assert!(!is_another(&before, &busier));
        assert!(is_another(&before, &Device { peer_netns: Some(2), ..before.clone() }));
        assert!(is_another(&before, &Device { name: "veth6".into(), ..before.clone() }));
    }
}
