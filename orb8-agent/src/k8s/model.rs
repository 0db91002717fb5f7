//! Pods, nodes, Services and owners as the agent keeps them: few fields, shared, named late.
//!
//! There is one [`Pod`] for each pod uid for as long as anybody holds it. It may be made from a
//! cgroup's path alone and get its name when the API tells it; every record that holds it is named
//! with that. Nothing here looks anything up.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::cgroup::Runtime;

/// Labels of a pod, sorted by key.
pub type Labels = Arc<[(Arc<str>, Arc<str>)]>;

/// A pod, known by its uid.
#[derive(Debug)]
pub struct Pod {
    /// As the kubelet names its cgroup: the uid, of a static pod the config hash.
    pub uid: Box<str>,
    identity: OnceLock<PodIdentity>,
    state: RwLock<PodState>,
}

/// What never changes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    /// The node that it is bound to.
    pub node: Option<Arc<Node>>,
    /// It has the addresses of its node, so that these never name it.
    pub host_network: bool,
}

/// What may change while a pod lives.
#[derive(Clone, Debug, Default)]
pub struct PodState {
    /// The top owner, once the chain to it is known.
    pub workload: Option<Arc<Workload>>,
    /// Its labels.
    pub labels: Option<Labels>,
    /// Containers of all kinds.
    pub containers: Vec<Container>,
    /// When the API told that it is gone or finished, CLOCK_MONOTONIC nanoseconds.
    pub ended_ns: Option<u64>,
}

/// A container of a pod, as the pod's status tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id without the runtime's scheme.
    pub id: Box<str>,
    /// Its name in the pod.
    pub name: Arc<str>,
    /// Its runtime, if the scheme is one that is known.
    pub runtime: Option<Runtime>,
}

impl Pod {
    /// A pod of which only the uid is known.
    #[must_use]
    pub fn unnamed(uid: &str) -> Self {
        Self { uid: uid.into(), identity: OnceLock::new(), state: RwLock::default() }
    }

    /// What the API told, if it has.
    #[must_use]
    pub fn identity(&self) -> Option<&PodIdentity> {
        self.identity.get()
    }

    /// Names the pod; a second name for one uid is refused and given back.
    ///
    /// # Errors
    /// The identity, if the pod has one already.
    pub fn name(&self, identity: PodIdentity) -> Result<(), PodIdentity> {
        self.identity.set(identity)
    }

    /// What is known of it now.
    pub fn state(&self) -> RwLockReadGuard<'_, PodState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what may change.
    pub fn update(&self, change: impl FnOnce(&mut PodState)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The name of a container by its id.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<Arc<str>> {
        let state = self.state();
        let found = state.containers.iter().find(|container| &*container.id == id);
        found.map(|container| Arc::clone(&container.name))
    }

    /// The runtime of a container by its id.
    #[must_use]
    pub fn runtime(&self, id: &str) -> Option<Runtime> {
        let state = self.state();
        state.containers.iter().find(|container| &*container.id == id)?.runtime
    }
}

/// A top owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Such as `Deployment`.
    pub kind: Arc<str>,
    /// Its name; its namespace is the pod's.
    pub name: Box<str>,
}

/// A node, known by its name.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    state: RwLock<NodeState>,
}

/// What the API tells of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Node {}

impl Node {
    /// A node of which only the name is known.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), state: RwLock::default() }
    }

    /// What is known of it now.
    pub fn state(&self) -> RwLockReadGuard<'_, NodeState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what may change.
    pub fn update(&self, change: impl FnOnce(&mut NodeState)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A Service as of one version of it; a change makes a new one.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, often empty.
    pub name: Box<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// At the ClusterIP and external addresses.
    pub port: u16,
    /// At every node, 0 if none.
    pub node_port: u16,
}
