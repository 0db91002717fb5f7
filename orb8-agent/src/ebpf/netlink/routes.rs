//! What routes and neighbour tables tell: where the uplinks are, and who is behind an interface.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use super::{Netlink, NetlinkError};

/// What routes tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Devices that a default route leads to, sorted.
    pub default_devices: Vec<u32>,
    /// Single addresses and the device that they are behind.
    pub hosts: Vec<(IpAddr, u32)>,
}

/// What neighbour tables tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Addresses, the device that they are behind, and the hardware address that they have there.
    pub addresses: Vec<(IpAddr, u32, HardwareAddress)>,
    /// Hardware addresses and the bridge's port that they were seen at.
    pub ports: Vec<(HardwareAddress, u32)>,
}

/// The address of an Ethernet device.
pub type HardwareAddress = [u8; 6];

impl Netlink {
    /// Default routes and routes to single addresses.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn routes(&self) -> Result<Routes, NetlinkError> {
        let mut found = Routes::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            let replies = self.handle.route().get(ask).execute();
            for (default, hosts) in
                self.all("routes", replies, |m| Some((default_route(&m), host_route(&m))))?
            {
                found.default_devices.extend(default);
                found.hosts.extend(hosts);
            }
        }
        found.default_devices.sort_unstable();
        found.default_devices.dedup();
        Ok(found)
    }

    /// Neighbours that answer, and what bridges have learned.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn neighbours(&self) -> Result<Neighbours, NetlinkError> {
        let list = |family| {
            let ask = self.handle.neighbours().get().set_address_family(family);
            self.all("neighbours", ask.execute(), Some)
        };
        let mut found = Neighbours::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            found.addresses.extend(list(family)?.iter().filter_map(neighbour));
        }
        found.ports = list(AddressFamily::Bridge)?.iter().filter_map(port).collect();
        Ok(found)
    }
}

/// The devices of a default route, none if the route is another.
fn default_route(message: &RouteMessage) -> Vec<u32> {
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => devices.push(*ifindex),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    devices
}

/// The address and the device of a route to a single address behind a device.
pub(super) fn host_route(message: &RouteMessage) -> Option<(IpAddr, u32)> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let (mut to, mut device) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(ifindex) => device = Some(*ifindex),
            // The address is not behind the device, somebody there knows the way.
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    let (to, device) = (to?, device?);
    (header.destination_prefix_length == bits(to)).then_some((to, device))
}

/// Bits of an address.
#[must_use]
pub const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A neighbour with a hardware address.
fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, u32, HardwareAddress)> {
    if matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete) {
        return None;
    }
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some((ip, message.header.ifindex, hardware_address(message)?))
}

/// A hardware address that a bridge has learned; its ports' own are permanent.
fn port(message: &NeighbourMessage) -> Option<(HardwareAddress, u32)> {
    let learned = message.header.state != NeighbourState::Permanent;
    learned.then(|| Some((hardware_address(message)?, message.header.ifindex))).flatten()
}

fn hardware_address(message: &NeighbourMessage) -> Option<HardwareAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}
