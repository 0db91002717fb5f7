//! A node: a network namespace with an uplink, a cgroup subtree, and the wires of its pods.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use super::plan::{self, Cni, Families, Plan};
use crate::link::wait_operational;
use crate::netns::Netns;

/// Number of the first pod address that is handed out by itself.
const FIRST: u16 = 10;
/// Device of the overlay.
pub const OVERLAY: &str = "flannel.1";
/// UDP port of the overlay.
pub const OVERLAY_PORT: u16 = 8472;

/// Bridge of a node's pods, and the one that joins the nodes.
const BRIDGE: &str = "cni0";
const SWITCH: &str = "sw0";

/// Link-layer address of every node's bridge, in its own network.
const BRIDGE_MAC: &str = "02:12:00:00:00:01";
/// Link-layer address of the switch.
pub(super) const SWITCH_MAC: &str = "02:13:00:00:00:01";

/// A node.
#[derive(Debug)]
pub struct Node {
    /// From 1.
    pub number: u8,
    /// `node1`, `node2`, ...
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    root: PathBuf,
    cni: Cni,
    families: Families,
    /// Largest packet of a pod: what the overlay adds must fit beside it.
    mtu: u32,
    next: AtomicU16,
    wires: AtomicU32,
}

/// A pod's wire: where its namespace ends and its node begins.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) netns: Netns,
    pub(super) host_ifname: String,
    node: Netns,
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Goes with either end; the pod's namespace may have ended before.
        let mut command = self.node.command("ip");
        command.args(["link", "del", &self.host_ifname]);
        drop(command.stderr(std::process::Stdio::null()).status());
    }
}

impl Node {
    pub(super) fn new(number: u8, plan: &Plan, switch: &Netns, root: PathBuf) -> Self {
        let name = format!("node{number}");
        let netns = Netns::new(&name);
        quiet(&netns);
        netns.sysctls(&[
            ("ipv4/ip_forward", 1),
            ("ipv6/conf/all/forwarding", 1),
            ("ipv6/conf/default/forwarding", 1),
        ]);
        if Path::new("/proc/sys/net/bridge").exists() {
            netns.sysctls(&[
                ("bridge/bridge-nf-call-iptables", 1),
                ("bridge/bridge-nf-call-ip6tables", 1),
            ]);
        }
        let [v4, v6] = plan::node_addresses(number);
        let [gateway4, gateway6] = plan::SWITCH;
        netns.ip_batch(&[
            format!(
                "link add eth0 address {} type veth peer name node{number} netns {}",
                node_mac(number),
                switch.path()
            ),
            "link set eth0 up".to_owned(),
            format!("addr add {v4}/24 dev eth0"),
            format!("addr add {v6}/64 dev eth0 nodad"),
            format!("route add default via {gateway4} dev eth0"),
            format!("route add default via {gateway6} dev eth0"),
            // Without link-local addresses nobody is asked for on behalf of a forwarded packet.
            format!("neigh replace {gateway6} lladdr {SWITCH_MAC} dev eth0 nud permanent"),
        ]);
        switch.ip_batch(&[
            format!("link set node{number} master sw0"),
            format!("link set node{number} up"),
            format!("neigh replace {v6} lladdr {} dev sw0 nud permanent", node_mac(number)),
        ]);
        wait_operational(&netns, "eth0");
        wait_operational(switch, &format!("node{number}"));
        wait_operational(switch, SWITCH);
        let node = Self {
            number,
            name,
            netns,
            root,
            cni: plan.cni,
            families: plan.families,
            mtu: if plan.overlay { 1450 } else { 1500 },
            next: AtomicU16::new(FIRST),
            wires: AtomicU32::new(0),
        };
        if plan.cni == Cni::Bridge {
            node.bridge();
        }
        node
    }

    /// The root of its cgroups.
    #[must_use]
    pub fn cgroup_root(&self) -> &Path {
        &self.root
    }

    /// The addresses of its uplink.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        plan::node_addresses(self.number)
    }

    /// A number that no pod of this node has had.
    pub(super) fn next_number(&self) -> u16 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn bridge(&self) {
        let [v4, v6] = plan::pod_addresses(self.number, 1);
        self.netns.ip_batch(&[
            format!("link add cni0 address {BRIDGE_MAC} type bridge mcast_snooping 0"),
            "link set cni0 up".to_owned(),
            format!("addr add {v4}/20 dev cni0"),
            format!("addr add {v6}/64 dev cni0 nodad"),
        ]);
    }

    /// Ways to the pods of the other nodes: through their uplinks, or through the overlay.
    pub(super) fn reach(&self, nodes: u8, overlay: bool) {
        let mut lines = Vec::new();
        let [own, _] = self.addresses();
        if overlay {
            lines.extend([
                format!(
                    "link add {OVERLAY} address {} type vxlan id 1 local {own} dev eth0 \
                     dstport {OVERLAY_PORT} nolearning",
                    overlay_mac(self.number)
                ),
                format!("link set {OVERLAY} mtu 1450 up"),
            ]);
        }
        for other in (1..=nodes).filter(|&other| other != self.number) {
            let ranges = plan::pod_cidrs(other);
            let [_, v6] = plan::node_addresses(other);
            let mac = node_mac(other);
            lines.push(format!("neigh replace {v6} lladdr {mac} dev eth0 nud permanent"));
            let hops =
                if overlay { plan::pod_addresses(other, 0) } else { plan::node_addresses(other) };
            for (range, via) in ranges.iter().zip(hops) {
                if overlay {
                    let mac = overlay_mac(other);
                    lines.push(format!("route add {range} via {via} dev {OVERLAY} onlink"));
                    lines.push(format!(
                        "neigh replace {via} lladdr {mac} dev {OVERLAY} nud permanent"
                    ));
                } else {
                    lines.push(format!("route add {range} via {via} dev eth0"));
                }
            }
        }
        self.netns.ip_batch(&lines);
        if overlay {
            let fdb = (1..=nodes).filter(|&other| other != self.number).map(|other| {
                let [to, _] = plan::node_addresses(other);
                format!("fdb append {} dev {OVERLAY} dst {to}", overlay_mac(other))
            });
            for line in fdb {
                self.netns.run(&format!("bridge {line}"));
            }
        }
    }

    /// A new namespace wired to this node, with these addresses.
    pub(super) fn wire(&self, label: &str, addresses: &[IpAddr]) -> Wire {
        let netns = Netns::new(label);
        quiet(&netns);
        let number = self.wires.fetch_add(1, Ordering::Relaxed);
        let (host, inside) = match self.cni {
            Cni::Bridge => (format!("veth{number:x}"), self.bridged(addresses)),
            Cni::Routed => (format!("cali{number:x}"), routed_inside(addresses)),
        };
        let (mac, mtu) = (pod_mac(number), self.mtu);
        let mut outside = vec![format!(
            "link add {host} mtu {mtu} address ee:ee:ee:ee:ee:ee type veth \
             peer name eth0 mtu {mtu} address {mac} netns {}",
            netns.path()
        )];
        match self.cni {
            // A bridge learns its address from its ports, so these must not share one.
            Cni::Bridge => {
                outside.extend([
                    format!("link set {host} address {}", host_mac(number)),
                    format!("link set {host} master cni0"),
                    format!("link set {host} type bridge_slave hairpin on"),
                    format!("link set {host} up"),
                ]);
                for v6 in addresses.iter().filter(|address| address.is_ipv6()) {
                    outside.push(format!("neigh replace {v6} lladdr {mac} dev cni0 nud permanent"));
                }
            }
            Cni::Routed => {
                outside.push(format!("link set {host} up"));
                for address in addresses {
                    let len = if address.is_ipv4() { 32 } else { 128 };
                    outside.push(format!("route add {address}/{len} dev {host}"));
                    outside.push(format!(
                        "neigh replace {address} lladdr {mac} dev {host} nud permanent"
                    ));
                }
            }
        }
        self.netns.ip_batch(&outside);
        let wire = Wire { netns, host_ifname: host, node: self.netns.clone() };
        wire.netns.ip_batch(&inside);
        wait_operational(&wire.netns, "eth0");
        wait_operational(&self.netns, &wire.host_ifname);
        if self.cni == Cni::Bridge {
            // It begins to work after its first port has: a datagram in between is dropped at it,
            // and with neighbours that are known nobody sends anything a second time.
            wait_operational(&self.netns, BRIDGE);
        }
        wire
    }

    fn bridged(&self, addresses: &[IpAddr]) -> Vec<String> {
        let mut lines = vec!["link set eth0 up".to_owned()];
        for gateway in plan::pod_addresses(self.number, 1) {
            let Some(own) = addresses.iter().find(|own| own.is_ipv4() == gateway.is_ipv4()) else {
                continue;
            };
            let rest = if own.is_ipv4() { "/20 dev eth0" } else { "/64 dev eth0 nodad" };
            lines.push(format!("addr add {own}{rest}"));
            lines.push(format!("route add default via {gateway} dev eth0"));
            if own.is_ipv6() {
                let mac = BRIDGE_MAC;
                lines.push(format!("neigh replace {gateway} lladdr {mac} dev eth0 nud permanent"));
            }
        }
        lines
    }

    /// The addresses of one of its pods, in the cluster's families.
    pub(super) fn pod_addresses(&self, number: u16) -> Vec<IpAddr> {
        let all = plan::pod_addresses(self.number, number);
        all.into_iter().filter(|address| self.families.has(address)).collect()
    }
}

/// A pod without a bridge sends everything to a next hop that is only its neighbour.
fn routed_inside(addresses: &[IpAddr]) -> Vec<String> {
    let mut lines = vec!["link set eth0 up".to_owned()];
    for own in addresses {
        let (len, hop) = if own.is_ipv4() { (32, "169.254.1.1") } else { (128, "fd00:169::1") };
        let nodad = if own.is_ipv4() { "" } else { " nodad" };
        lines.extend([
            format!("addr add {own}/{len} dev eth0{nodad}"),
            format!("route add {hop} dev eth0"),
            format!("route add default via {hop} dev eth0"),
            format!("neigh replace {hop} lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent"),
        ]);
    }
    lines
}

/// No filters by the way back, no advice to senders, segments with headers of known length.
pub(super) fn quiet(netns: &Netns) {
    netns.sysctls(&[
        ("ipv4/conf/all/rp_filter", 0),
        ("ipv4/conf/default/rp_filter", 0),
        ("ipv4/conf/all/send_redirects", 0),
        ("ipv4/conf/default/send_redirects", 0),
        ("ipv4/tcp_timestamps", 0),
        ("ipv4/tcp_sack", 0),
        ("ipv4/tcp_window_scaling", 0),
        ("ipv4/tcp_ecn", 0),
        // A test's refused packets are all refused, also many in a second.
        ("ipv4/icmp_ratelimit", 0),
        ("ipv6/icmp/ratelimit", 0),
    ]);
}

fn node_mac(node: u8) -> String {
    format!("02:1e:00:00:00:{node:02x}")
}

fn overlay_mac(node: u8) -> String {
    format!("02:0f:00:00:00:{node:02x}")
}

fn pod_mac(number: u32) -> String {
    let [_, high, mid, low] = number.to_be_bytes();
    format!("02:10:00:{high:02x}:{mid:02x}:{low:02x}")
}

fn host_mac(number: u32) -> String {
    let [_, high, mid, low] = number.to_be_bytes();
    format!("02:11:00:{high:02x}:{mid:02x}:{low:02x}")
}
