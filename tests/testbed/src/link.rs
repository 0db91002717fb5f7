//! Links between namespaces: veth pairs (quiet ones for crafted frames, addressed ones for real
//! sockets), many veths at once, bridges.
//!
//! Neighbours are static and IPv6 is silent, so that nothing but the test's traffic passes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::netns::Netns;
use crate::offload;
use crate::wait::wait_until;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Bytes of a header without options or extension headers.
    #[must_use]
    pub const fn header_len(self) -> u64 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// One end of a link.
#[derive(Clone, Debug)]
pub struct Port {
    /// The namespace it is in.
    pub netns: Netns,
    /// Its name there.
    pub ifname: String,
    /// Its number there.
    pub ifindex: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its IPv4 address; nothing has it on a quiet link.
    pub v4: Ipv4Addr,
    /// Its IPv6 address; nothing has it on a quiet link.
    pub v6: Ipv6Addr,
}

impl Port {
    /// Its address of a family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// What the kernel counted on it so far.
    #[must_use]
    pub fn counters(&self) -> crate::counters::Interface {
        crate::counters::interface(&self.netns, &self.ifname)
    }
}

/// A veth pair between two namespaces.
#[derive(Clone, Debug)]
pub struct Veth {
    /// The end that tests send from; the agent usually watches here.
    pub near: Port,
    /// The other end.
    pub far: Port,
}

/// How a [`Veth`] is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethOptions {
    /// Largest IP packet.
    pub mtu: u32,
    /// Whether super-packets pass (TSO, GSO, GRO).
    pub segmentation: bool,
    /// Third byte of the IPv4 addresses and last group of the IPv6 prefix: which link it is.
    pub number: u8,
}

impl Default for VethOptions {
    fn default() -> Self {
        Self { mtu: 1500, segmentation: false, number: 0 }
    }
}

impl Veth {
    /// Two new namespaces joined by a link without addresses and without IPv6: only frames that
    /// a test writes pass, and no kernel answers them.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn quiet(options: VethOptions) -> Self {
        let (near, far) = (Netns::new("near"), Netns::new("far"));
        disable_ipv6(&near);
        disable_ipv6(&far);
        Self::bare(&near, &far, options)
    }

    /// As [`Self::quiet`], but with both ends in one namespace: an agent there sees every frame
    /// twice, as it leaves and as it arrives.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn cable(netns: &Netns, options: VethOptions) -> Self {
        disable_ipv6(netns);
        Self::bare(netns, netns, options)
    }

    /// Two new namespaces joined by a link with addresses and static neighbours.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn addressed(options: VethOptions) -> Self {
        Self::between(&Netns::new("near"), &Netns::new("far"), options)
    }

    /// A further link with addresses and static neighbours between two namespaces.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn between(near: &Netns, far: &Netns, options: VethOptions) -> Self {
        let veth = Self::bare(near, far, options);
        let reports = |port: &Port| {
            let counters = crate::counters::protocols(&port.netns);
            counters.get("Icmp6OutMLDv2Reports").copied().unwrap_or_default()
        };
        for (own, peer) in [(&veth.near, &veth.far), (&veth.far, &veth.near)] {
            let before = reports(own);
            let dev = &own.ifname;
            let mac = mac_text(peer.mac);
            own.netns.ip_batch(&[
                format!("addr add {}/24 dev {dev}", own.v4),
                format!("addr add {}/64 dev {dev} nodad", own.v6),
                format!("neigh replace {} lladdr {mac} dev {dev} nud permanent", peer.v4),
                format!("neigh replace {} lladdr {mac} dev {dev} nud permanent", peer.v6),
            ]);
            // The address joins one multicast group; its one report is sent a moment later, the
            // next ones, by the namespace's settings, in weeks.
            wait_until(Duration::from_secs(5), "the multicast report of a new address", || {
                reports(own) > before
            });
        }
        veth
    }

    /// Makes the near end that of a link to a pod as a CNI without a bridge does: its addresses have
    /// no neighbours, and one route leads to each of the far end's.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn lead_to_pod(&self) {
        let (near, far) = (&self.near, &self.far);
        let (dev, mac) = (&near.ifname, mac_text(far.mac));
        near.netns.ip_batch(&[
            format!("addr del {}/24 dev {dev}", near.v4),
            format!("addr add {}/32 dev {dev}", near.v4),
            format!("route add {}/32 dev {dev}", far.v4),
            // Gone with the address that had neighbours.
            format!("neigh replace {} lladdr {mac} dev {dev} nud permanent", far.v4),
            format!("addr del {}/64 dev {dev}", near.v6),
            format!("addr add {}/128 dev {dev} nodad", near.v6),
            format!("route add {}/128 dev {dev}", far.v6),
        ]);
    }

    /// Both ends up, no addresses.
    fn bare(near: &Netns, far: &Netns, options: VethOptions) -> Self {
        let VethOptions { mtu, segmentation, number } = options;
        let names = [format!("eth{number}"), format!("peer{number}")];
        let macs = [[2, 0, 0, 0, number, 1], [2, 0, 0, 0, number, 2]];
        near.run(&format!(
            "ip link add {} mtu {mtu} address {} type veth \
             peer name {} mtu {mtu} address {} netns {}",
            names[0],
            mac_text(macs[0]),
            names[1],
            mac_text(macs[1]),
            far.path()
        ));
        for (netns, ifname) in [(near, &names[0]), (far, &names[1])] {
            offload::segmentation(netns, ifname, segmentation);
            // Without checksum offload frames are complete: what is captured can be compared.
            offload::checksums(netns, ifname, segmentation);
            netns.run(&format!("ip link set {ifname} up"));
        }
        for (netns, ifname) in [(near, &names[0]), (far, &names[1])] {
            wait_operational(netns, ifname);
        }
        let port = |netns: &Netns, side: u8| Port {
            netns: netns.clone(),
            ifname: names[usize::from(side) - 1].clone(),
            ifindex: ifindex(netns, &names[usize::from(side) - 1]),
            mac: macs[usize::from(side) - 1],
            v4: Ipv4Addr::new(10, 77, number, side),
            v6: Ipv6Addr::new(0xfd77, 0, 0, number.into(), 0, 0, 0, side.into()),
        };
        Self { near: port(near, 1), far: port(far, 2) }
    }
}

/// Waits until the kernel has noticed that a link that is up works: until then its queue is a hole
/// that takes packets and drops them.
pub(crate) fn wait_operational(netns: &Netns, ifname: &str) {
    netns.enter(|| {
        let deadline = Duration::from_secs(10);
        wait_until(deadline, "a link that carries packets", || {
            offload::is_running(ifname)
                .unwrap_or_else(|error| panic!("{ifname} in {}: {error}", netns.label()))
        });
        // The kernel tells that a link runs a moment before it gives it its queue, all of it under
        // the lock that this question waits for.
        offload::has_carrier(ifname)
            .unwrap_or_else(|error| panic!("{ifname} in {}: {error}", netns.label()));
    });
}

fn disable_ipv6(netns: &Netns) {
    netns.sysctl("ipv6/conf/default/disable_ipv6", 1);
    netns.sysctl("ipv6/conf/all/disable_ipv6", 1);
}

/// The number of an interface inside a namespace.
///
/// # Panics
/// If there is none of that name.
#[must_use]
#[track_caller]
pub fn ifindex(netns: &Netns, ifname: &str) -> u32 {
    let name = std::ffi::CString::new(ifname).expect("an interface name has no zero byte");
    // SAFETY: the name is a C string that outlives the call.
    let index = netns.enter(|| unsafe { libc::if_nametoindex(name.as_ptr()) });
    assert!(index != 0, "no interface {ifname} in namespace {}", netns.label());
    index
}

/// Adds `count` veth pairs named `<prefix>0`, `<prefix>1`, ... with their peers `<prefix>p0`, ...
/// in the same namespace, all up.
///
/// # Panics
/// If the kernel refuses.
pub fn add_many(netns: &Netns, prefix: &str, count: usize) {
    let lines: Vec<String> = (0..count)
        .flat_map(|i| {
            [
                format!("link add {prefix}{i} type veth peer name {prefix}p{i}"),
                format!("link set {prefix}{i} up"),
                format!("link set {prefix}p{i} up"),
            ]
        })
        .collect();
    netns.ip_batch(&lines);
}

/// Removes what [`add_many`] added.
///
/// # Panics
/// If the kernel refuses.
pub fn remove_many(netns: &Netns, prefix: &str, count: usize) {
    let lines: Vec<String> = (0..count).map(|i| format!("link del {prefix}{i}")).collect();
    netns.ip_batch(&lines);
}

/// A bridge, up, with the given ports.
///
/// # Panics
/// If the kernel refuses.
pub fn bridge(netns: &Netns, name: &str, ports: &[&str]) {
    let mut lines = vec![format!("link add {name} type bridge"), format!("link set {name} up")];
    lines.extend(ports.iter().map(|port| format!("link set {port} master {name}")));
    netns.ip_batch(&lines);
}

/// `02:00:00:00:00:01`
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
