//! Which interfaces are attached: uplinks, and those that the settings name.

use std::collections::HashSet;
use std::net::IpAddr;

use globset::GlobSet;

use super::netlink::Device;
use crate::datapath::ChosenBy;

/// The devices to attach, each with the reason, in the order of their numbers.
#[must_use]
pub fn choose(
    devices: &[Device],
    addresses: &[(u32, IpAddr, bool)],
    default_routes: &[u32],
    configured: &GlobSet,
) -> Vec<(Device, ChosenBy)> {
    let global: HashSet<u32> =
        addresses.iter().filter(|(_, _, global)| *global).map(|(index, ..)| *index).collect();
    let mut chosen: Vec<_> = devices
        .iter()
        .filter_map(|device| {
            let why = if configured.is_match(&device.name) {
                ChosenBy::Configured
            } else if device.internal || device.loopback {
                return None;
            } else if default_routes.contains(&device.ifindex) {
                ChosenBy::DefaultRoute
            } else if global.contains(&device.ifindex) {
                ChosenBy::GlobalAddress
            } else {
                return None;
            };
            Some((device.clone(), why))
        })
        .collect();
    chosen.sort_by_key(|(device, _)| device.ifindex);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::LinkKind;
    use crate::ebpf::netlink::Carried;
    use globset::{Glob, GlobSetBuilder};

    fn device(ifindex: u32, name: &str) -> Device {
        Device {
            ifindex,
            name: name.to_owned(),
            link: LinkKind::Ethernet,
            loopback: name == "lo",
            hardware: false,
            internal: name.starts_with("veth") || name.starts_with("cni"),
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

    fn check(patterns: &[&str], expected: &[(&str, ChosenBy)]) {
        let devices = ["lo", "eth0", "eth1", "eth2", "veth1", "cni0"].map(|name| {
            let index = match name {
                "lo" => 1,
                "eth0" => 2,
                "eth1" => 3,
                "eth2" => 4,
                "veth1" => 5,
                _ => 6,
            };
            device(index, name)
        });
        let addresses = [
            (1, "127.0.0.1".parse().unwrap(), false),
            (2, "192.0.2.1".parse().unwrap(), true),
            (3, "2001:db8::1".parse().unwrap(), true),
            (4, "fe80::1".parse().unwrap(), false),
            (5, "10.0.0.1".parse().unwrap(), true),
            (6, "10.244.0.1".parse().unwrap(), true),
        ];
        let chosen = choose(&devices, &addresses, &[2], &globs(patterns));
        let names: Vec<_> = chosen.iter().map(|(d, why)| (d.name.as_str(), *why)).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn uplinks_have_a_default_route_or_a_global_address_and_are_no_bridge_veth_or_loopback() {
        check(&[], &[("eth0", ChosenBy::DefaultRoute), ("eth1", ChosenBy::GlobalAddress)]);
    }

    #[test]
    fn globs_add_interfaces_of_any_kind_to_the_uplinks() {
        check(
            &["veth*", "eth2"],
            &[
                ("eth0", ChosenBy::DefaultRoute),
                ("eth1", ChosenBy::GlobalAddress),
                ("eth2", ChosenBy::Configured),
                ("veth1", ChosenBy::Configured),
            ],
        );
    }
}
