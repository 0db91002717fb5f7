//! Nodes: their own addresses, their zones and the ranges that their pods get addresses from.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node as ApiNode;

use super::Seen;
use super::facts::unix_ns;
use super::tables::Tables;
use crate::k8s::addresses::Who;
use crate::k8s::model::{Node, NodeState};
use crate::k8s::status::Resource;

const ZONE: &str = "topology.kubernetes.io/zone";

/// Addresses of a node that its status does not list: those of Calico's tunnels.
const TUNNEL_ADDRESSES: [&str; 4] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
];

/// A node that the API has, or that a pod is bound to.
#[derive(Debug)]
pub(super) struct HeldNode {
    pub(super) node: Arc<Node>,
    /// The API told of it, not only a pod.
    pub(super) told: bool,
    pub(super) pod_ranges: Vec<IpNet>,
}

impl HeldNode {
    pub(super) const fn of(node: Arc<Node>) -> Self {
        Self { node, told: false, pod_ranges: vec![] }
    }
}

impl Tables {
    /// The node with this name, made if it is not known.
    pub(super) fn node_named(&mut self, name: &str) -> Arc<Node> {
        if let Some(held) = self.nodes.get(name) {
            return Arc::clone(&held.node);
        }
        let node = Arc::new(Node::named(name));
        self.nodes.insert(Arc::clone(&node.name), HeldNode::of(Arc::clone(&node)));
        node
    }

    /// Sets a node. True if an answer may have changed.
    pub(super) fn apply_node(&mut self, api: &ApiNode, seen: Seen) -> bool {
        let Some(name) = api.metadata.name.as_deref() else {
            self.rejected += 1;
            return false;
        };
        self.told(Resource::Nodes, name);
        if !self.nodes.contains_key(name) && self.nodes.len() >= self.max {
            self.rejected += 1;
            return false;
        }
        let node = self.node_named(name);
        let zone = api.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
        let state =
            NodeState { zone: zone.map(|zone| self.names.get(zone)), addresses: addresses(api) };
        let ranges = pod_ranges(api);
        let mut changed = self.address_node(&node, &state.addresses, api, seen);
        if *node.state() != state {
            node.update(|held| *held = state);
            changed = true;
        }
        let Some(held) = self.nodes.get_mut(name) else { return changed };
        held.told = true;
        if held.pod_ranges != ranges {
            held.pod_ranges = ranges;
            self.ranges_changed(Resource::Nodes);
            changed = true;
        }
        changed
    }

    /// The node is gone. True if it was known.
    pub(super) fn end_node(&mut self, name: &str, seen: Seen) -> bool {
        let Some(held) = self.nodes.get_mut(name) else { return false };
        held.told = false;
        held.pod_ranges.clear();
        let node = Arc::clone(&held.node);
        let who = Who::Node(Arc::clone(&node));
        let addresses = node.state().addresses.clone();
        for address in addresses {
            self.addresses.release(address, &who, seen.end(false));
        }
        node.update(|state| state.addresses.clear());
        self.ranges_changed(Resource::Nodes);
        true
    }

    fn address_node(
        &mut self,
        node: &Arc<Node>,
        addresses: &[IpAddr],
        api: &ApiNode,
        seen: Seen,
    ) -> bool {
        let who = Who::Node(Arc::clone(node));
        let gone: Vec<IpAddr> =
            node.state().addresses.iter().filter(|ip| !addresses.contains(ip)).copied().collect();
        let mut changed = false;
        for address in gone {
            changed |= self.addresses.release(address, &who, seen.end(false));
        }
        let from_ns = seen.earliest(api.metadata.creation_timestamp.as_ref().and_then(unix_ns));
        let claim = seen.claim(from_ns);
        for address in addresses {
            changed |= self.addresses.claim(*address, who.clone(), claim);
        }
        changed
    }

    /// Whether an address is of the range that a node gives its own pods addresses from.
    pub(super) fn is_of_node(&self, address: IpAddr, node: &Node) -> bool {
        let held = self.nodes.get(&node.name);
        held.is_some_and(|held| held.pod_ranges.iter().any(|range| range.contains(&address)))
    }

    /// Drops nodes that only a pod named and no pod names any more.
    pub(super) fn expire_nodes(&mut self) {
        self.nodes.retain(|_, held| held.told || Arc::strong_count(&held.node) > 1);
    }
}

fn addresses(api: &ApiNode) -> Vec<IpAddr> {
    let told = api.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let own = told.filter(|address| matches!(&*address.type_, "InternalIP" | "ExternalIP"));
    let annotations = api.metadata.annotations.as_ref();
    let tunnels = TUNNEL_ADDRESSES
        .iter()
        .filter_map(|key| annotations.and_then(|annotations| annotations.get(*key)));
    let texts = own.map(|address| address.address.as_str()).chain(tunnels.map(String::as_str));
    let mut parsed: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    parsed.sort_unstable();
    parsed.dedup();
    parsed
}

fn pod_ranges(api: &ApiNode) -> Vec<IpNet> {
    let Some(spec) = &api.spec else { return vec![] };
    let all = spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter());
    let mut parsed: Vec<IpNet> = all.filter_map(|text| text.parse().ok()).collect();
    parsed.sort_unstable();
    parsed.dedup();
    parsed
}
