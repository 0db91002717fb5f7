//! Who the two ends of a flow are, and how that is known.
//!
//! Values alone: who decides them is `k8s::identity`. What may become known later (a pod's name) is
//! read when it is shown.

use std::sync::{Arc, LazyLock};

use crate::k8s::model::{Node, Pod, Service, ServicePort};
use crate::k8s::services::{ServiceKind, Verdict};

/// How an end was identified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attribution {
    /// It was not.
    #[default]
    None,
    /// By the cgroup of its socket.
    Cgroup,
    /// By the link that leads to it alone.
    Interface,
    /// By its address, which nobody else holds now.
    Address,
    /// By its address, which it held then and somebody else holds now.
    AddressReused,
    /// By the address of a node, behind which somebody else may stand.
    Masqueraded,
}

impl Attribution {
    /// Every one, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Cgroup,
        Self::Interface,
        Self::Address,
        Self::AddressReused,
        Self::Masqueraded,
    ];

    /// The word for it in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cgroup => "cgroup",
            Self::Interface => "interface",
            Self::Address => "address",
            Self::AddressReused => "address_reused",
            Self::Masqueraded => "masqueraded",
        }
    }
}

/// Why an end is not known, or not known better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// There is nothing to say.
    #[default]
    None,
    /// There is no Kubernetes to ask.
    NoKubernetes,
    /// Kubernetes has not been listed yet.
    ApiNotSynced,
    /// Its cgroup is that of a pod that the API has not told.
    PodUnknown,
    /// Nobody is known to hold the address.
    AddressUnknown,
    /// More than one may have held the address.
    AddressAmbiguous,
    /// Its cgroup is gone, or not found yet.
    CgroupUnknown,
    /// Its socket is in the root cgroup: it is the kernel's, or nobody's in particular.
    RootCgroup,
    /// The pod behind the link is not known.
    InterfaceUnknown,
}

impl Reason {
    /// Every one, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::NoKubernetes,
        Self::ApiNotSynced,
        Self::PodUnknown,
        Self::AddressUnknown,
        Self::AddressAmbiguous,
        Self::CgroupUnknown,
        Self::RootCgroup,
        Self::InterfaceUnknown,
    ];

    /// The word for it in answers; empty if there is nothing to say.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::NoKubernetes => "no_kubernetes",
            Self::ApiNotSynced => "api_not_synced",
            Self::PodUnknown => "pod_unknown",
            Self::AddressUnknown => "address_unknown",
            Self::AddressAmbiguous => "address_ambiguous",
            Self::CgroupUnknown => "cgroup_unknown",
            Self::RootCgroup => "root_cgroup",
            Self::InterfaceUnknown => "interface_unknown",
        }
    }
}

/// An attribution and what there is to say about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct How {
    /// How it was identified.
    pub attribution: Attribution,
    /// Why not, or not better.
    pub reason: Reason,
}

impl How {
    /// Identified so, with nothing to add.
    #[must_use]
    pub const fn by(attribution: Attribution) -> Self {
        Self { attribution, reason: Reason::None }
    }

    /// Not identified, for this reason.
    #[must_use]
    pub const fn not(reason: Reason) -> Self {
        Self { attribution: Attribution::None, reason }
    }
}

/// One end of a flow.
#[derive(Clone, Debug)]
pub enum End {
    /// Not known.
    Unknown(How),
    /// Outside of the cluster, or of this host where there is no Kubernetes.
    External(How),
    /// A process of this host that is in no pod; the flow's membership says which.
    Process(How),
    /// A node itself.
    Node(How, Arc<Node>),
    /// A pod, perhaps without a name yet.
    Pod(How, Arc<Pod>),
    /// A Service by an address of its own.
    Service(How, Arc<Service>),
}

impl Default for End {
    fn default() -> Self {
        Self::Unknown(How::default())
    }
}

impl End {
    /// Not known, for this reason.
    #[must_use]
    pub const fn unknown(reason: Reason) -> Self {
        Self::Unknown(How::not(reason))
    }

    /// The word for what it is.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            Self::External(_) => "external",
            Self::Process(_) => "process",
            Self::Node(..) => "node",
            Self::Pod(..) => "pod",
            Self::Service(..) => "service",
        }
    }

    /// How it is known at this moment: a pod that has no name yet is not identified by its uid.
    #[must_use]
    pub fn how(&self) -> How {
        match self {
            Self::Pod(_, pod) if pod.identity().is_none() => How::not(Reason::PodUnknown),
            Self::Unknown(how)
            | Self::External(how)
            | Self::Process(how)
            | Self::Node(how, _)
            | Self::Pod(how, _)
            | Self::Service(how, _) => *how,
        }
    }

    /// The pod, named or not.
    #[must_use]
    pub const fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::Pod(_, pod) => Some(pod),
            _ => None,
        }
    }

    /// Whether it is not known who it is.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether both are the same party, however they were identified.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unknown(_), Self::Unknown(_))
            | (Self::External(_), Self::External(_))
            | (Self::Process(_), Self::Process(_)) => true,
            (Self::Node(_, one), Self::Node(_, other)) => one == other,
            (Self::Pod(_, one), Self::Pod(_, other)) => {
                Arc::ptr_eq(one, other) || one.uid == other.uid
            }
            (Self::Service(_, one), Self::Service(_, other)) => {
                one.namespace == other.namespace && one.name == other.name
            }
            _ => false,
        }
    }
}

/// A Service that was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The Service.
    pub service: Arc<Service>,
    /// The port that was dialled, at the Service or at a node.
    pub port: u16,
    /// What was dialled.
    pub kind: ServiceKind,
    /// Whether somebody answers there.
    pub verdict: Verdict,
}

impl Asked {
    /// The name of the port, often empty.
    #[must_use]
    pub fn port_name(&self) -> &str {
        let is_dialled = |port: &&ServicePort| match self.kind {
            ServiceKind::NodePort => port.node_port == self.port,
            ServiceKind::ClusterIp | ServiceKind::External => port.port == self.port,
        };
        let dialled = self.service.ports.iter().filter(is_dialled);
        dialled.map(|port| &*port.name).next().unwrap_or_default()
    }
}

/// Everything that is known of who talks to whom on a flow, its translation left aside.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// Whose traffic it is: the sender of egress, the receiver of ingress.
    pub owner: End,
    /// The other end.
    pub peer: End,
    /// The Service that the client asked for.
    pub asked: Option<Asked>,
}

impl Ends {
    /// Those of which nothing is known yet.
    #[must_use]
    pub fn nobody() -> Arc<Self> {
        static NOBODY: LazyLock<Arc<Ends>> = LazyLock::new(Arc::default);
        Arc::clone(&NOBODY)
    }
}
