//! What a cluster is to be like, as data, and the addresses that follow from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::path::Layout;
use crate::api::object::Owner;
use crate::api::pod::{Container, Qos, Role};

/// How pods are joined to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// All veths are ports of the bridge `cni0`.
    Bridge,
    /// A host route for each pod, no bridge.
    Routed,
}

/// What of the pods' traffic leaves a node under the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Nothing.
    Off,
    /// What goes out of the cluster.
    Outside,
    /// What goes to any other node, as the bridge plugin's own switch does.
    Everything,
}

/// The addresses that pods and Services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Dual,
}

impl Families {
    pub(super) fn has(self, address: &IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Dual => true,
        }
    }
}

/// A cluster.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes, 15 at most.
    pub nodes: u8,
    /// How pods are joined to them.
    pub cni: Cni,
    /// What leaves under the nodes' addresses.
    pub masquerade: Masquerade,
    /// Addresses of pods and Services.
    pub families: Families,
    /// Pods of different nodes talk through VXLAN.
    pub overlay: bool,
    /// Where cgroups are.
    pub layout: Layout,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 2,
            cni: Cni::Bridge,
            masquerade: Masquerade::Outside,
            families: Families::V4,
            overlay: false,
            layout: Layout::default(),
        }
    }
}

/// All pods' addresses.
pub const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The switch, which is everybody's way out.
pub const SWITCH: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1)),
];
/// The address of the API server.
pub const API: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
/// A host that is not of the cluster.
pub const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 10)),
];
/// The switch as that host sees it.
pub const OUTSIDE_GATEWAY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 1)),
];

/// The addresses of a node's uplink.
#[must_use]
pub fn node_addresses(node: u8) -> [IpAddr; 2] {
    let last = 10 + node;
    [
        Ipv4Addr::new(172, 30, 0, last).into(),
        Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, last.into()).into(),
    ]
}

/// The addresses of a node's pod by number; 1 is the bridge.
#[must_use]
pub fn pod_addresses(node: u8, number: u16) -> [IpAddr; 2] {
    let low = number.to_be_bytes();
    assert!(node < 16 && low[0] < 16, "a node has 4094 pod addresses");
    [
        Ipv4Addr::new(10, 244, node * 16 + low[0], low[1]).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, number).into(),
    ]
}

/// The ranges of a node's pods.
#[must_use]
pub fn pod_cidrs(node: u8) -> [String; 2] {
    [format!("10.244.{}.0/20", node * 16), format!("fd00:10:244:{node:x}::/64")]
}

/// The ClusterIPs of a Service by number.
#[must_use]
pub fn cluster_ips(number: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 0, number).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()).into(),
    ]
}

/// A pod that is to be.
#[derive(Clone, Debug)]
pub struct PodPlan {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The number of its node, from 1.
    pub node: u8,
    /// Which of the node's pod addresses it gets; `None`: the next one.
    pub number: Option<u16>,
    /// It is in its node's network namespace.
    pub host_network: bool,
    /// Its class.
    pub qos: Qos,
    /// Its owner.
    pub owner: Option<Owner>,
    /// Labels beside `app`.
    pub labels: Vec<(String, String)>,
    /// Its containers; the first runs the pod's process.
    pub containers: Vec<Container>,
    /// It is a static pod: its cgroup bears a config hash.
    pub is_static: bool,
    /// Another place of its cgroups than the cluster's.
    pub layout: Option<Layout>,
    /// The API learns of it at once.
    pub announced: bool,
}

impl PodPlan {
    /// `namespace/name` on a node.
    ///
    /// # Panics
    /// If there is no slash in the name.
    #[must_use]
    pub fn new(name: &str, node: u8) -> Self {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node,
            number: None,
            host_network: false,
            qos: Qos::Burstable,
            owner: None,
            labels: Vec::new(),
            containers: vec![Container::new("app", Role::Main)],
            is_static: false,
            layout: None,
            announced: true,
        }
    }

    /// In its node's network namespace.
    #[must_use]
    pub fn host_network(self) -> Self {
        Self { host_network: true, ..self }
    }

    /// With this address of its node's.
    #[must_use]
    pub fn number(self, number: u16) -> Self {
        Self { number: Some(number), ..self }
    }

    /// Owned by a controller.
    #[must_use]
    pub fn owner(self, owner: &Owner) -> Self {
        Self { owner: Some(owner.clone()), ..self }
    }

    /// The API does not know it until it is told.
    #[must_use]
    pub fn unannounced(self) -> Self {
        Self { announced: false, ..self }
    }
}
