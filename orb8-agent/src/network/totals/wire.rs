//! A total as a message, with what is known of its place.

use orb8_common::network::flag;
use orb8_proto::v1;
use orb8_util::protocol;

use super::Place;
use crate::cgroup::Cgroups;
use crate::event::Volume;
use crate::host::Facts;
use crate::network::view::{direction, plane};

/// A total at a place.
pub(super) fn total(place: &Place, volume: &Volume, facts: &Facts, cgroups: &Cgroups) -> v1::Total {
    let mut total = v1::Total {
        plane: plane(place.flags).to_owned(),
        direction: direction(place.flags & flag::EGRESS != 0).to_owned(),
        ip_version: if place.flags & flag::IPV6 == 0 { 4 } else { 6 },
        protocol: protocol::name(place.protocol),
        supplement: place.flags & flag::SUPPLEMENT != 0,
        filtered: place.left_out.to_owned(),
        packets: volume.packets,
        bytes: volume.bytes,
        ..v1::Total::default()
    };
    if place.flags & flag::SOCKET_PLANE == 0 {
        at_interface(&mut total, place.owner, facts);
    } else {
        at_cgroup(&mut total, place.owner, cgroups);
    }
    total
}

fn at_interface(total: &mut v1::Total, owner: u64, facts: &Facts) {
    // An ifindex has 31 bits; 0 is nobody's.
    total.ifindex = u32::try_from(owner).unwrap_or(0);
    let link = facts.pod_link(total.ifindex);
    let gone = || link.and_then(|link| link.interface.as_ref());
    if let Some(interface) = facts.interface(total.ifindex).or_else(gone) {
        total.interface = interface.name.to_string();
    }
    if let Some(link) = link {
        total.pod_link = true;
        total.link_addresses = link.link.addresses.iter().map(ToString::to_string).collect();
    }
}

fn at_cgroup(total: &mut v1::Total, owner: u64, cgroups: &Cgroups) {
    total.cgroup_id = owner;
    let Some(cgroup) = cgroups.find(owner) else { return };
    total.cgroup = cgroup.path.to_string();
    if let Some(identity) = cgroup.pod().and_then(|pod| pod.identity()) {
        total.namespace = identity.namespace.to_string();
        total.pod = identity.name.to_string();
    }
}
