//! The questions that may be asked, for a batch at a time.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use super::read;
use super::tables::Tables;
use super::uids::Uids;
use crate::k8s::addresses::{Found, Tenure, Who};
use crate::k8s::model::{Node, Pod, PodIdentity, Service};
use crate::k8s::services::ServiceHit;
use crate::k8s::status::Resource;

/// Who has an address.
#[derive(Debug)]
pub enum Holder<'a> {
    /// A pod had it at that time.
    Pod {
        /// The pod.
        pod: &'a Arc<Pod>,
        /// Nobody else has the address now.
        current: bool,
    },
    /// A node had it at that time, as its own.
    Node {
        /// The node.
        node: &'a Arc<Node>,
        /// Nobody else has the address now.
        current: bool,
    },
    /// A Service had it at that time, as its ClusterIP or as an address outside of the cluster.
    Service {
        /// The Service.
        service: &'a Arc<Service>,
        /// Nobody else has the address now.
        current: bool,
    },
    /// More than one may have had it at that time.
    Ambiguous,
    /// Nobody that is known, but it is one that pods or Services get.
    InCluster,
    /// Nobody's, and of no range of the cluster's.
    Outside,
    /// Nobody's that is known, and the API has not told of everybody yet.
    NotSynced,
}

impl<'a> Holder<'a> {
    const fn of(tenure: &'a Tenure, current: bool) -> Self {
        match &tenure.who {
            Who::Pod(pod) => Self::Pod { pod, current },
            Who::Node(node) => Self::Node { node, current },
            Who::Service(service) => Self::Service { service, current },
        }
    }
}

/// What a filter may speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// A whole name of a namespace.
    Namespace,
    /// `[namespace/]prefix` of a pod's name.
    Pod,
    /// `[namespace/][kind/]name` of a top owner, the kind in any case.
    Workload,
    /// `[namespace/]name` of a Service.
    Service,
    /// A whole name of a node.
    Node,
}

/// What the registry knows, as of one moment. Changes wait while it is held, so it is held briefly.
#[derive(Debug)]
pub struct View<'r> {
    tables: RwLockReadGuard<'r, Tables>,
    uids: &'r RwLock<Uids>,
}

impl<'r> View<'r> {
    pub(super) const fn new(tables: RwLockReadGuard<'r, Tables>, uids: &'r RwLock<Uids>) -> Self {
        Self { tables, uids }
    }

    /// Who had `address` at `at_ns` (monotonic).
    #[must_use]
    pub fn holder(&self, address: IpAddr, at_ns: u64) -> Holder<'_> {
        // Half a list may lack the one pod that has the address now.
        if !self.tables.is_listed(Resource::Pods) {
            return Holder::NotSynced;
        }
        let (tables, blind) = (&self.tables, self.tables.is_blind(at_ns));
        match tables.addresses.find(address, at_ns, blind) {
            Found::One(tenure, _) if self.may_be_taken(tenure, address, at_ns) => Holder::Ambiguous,
            Found::One(tenure, current) => Holder::of(tenure, current),
            Found::Ambiguous => Holder::Ambiguous,
            Found::Nobody => match tables.external.find(address, at_ns, blind) {
                Found::One(tenure, current) => Holder::of(tenure, current),
                Found::Ambiguous => Holder::Ambiguous,
                Found::Nobody => self.nobody(address),
            },
        }
    }

    fn may_be_taken(&self, tenure: &Tenure, address: IpAddr, at_ns: u64) -> bool {
        let is_nodes = |node: &Node| self.tables.is_of_node(address, node);
        self.tables.addresses.may_be_taken(tenure, at_ns, is_nodes)
    }

    /// Whether the API leaves it in doubt who had `address` at each of these times (monotonic).
    #[must_use]
    pub fn are_doubtful(&self, address: IpAddr, times: [u64; 2]) -> [bool; 2] {
        let times = times.map(|at_ns| (at_ns, self.tables.is_blind(at_ns)));
        self.tables.addresses.are_doubtful(address, times)
    }

    /// Whether `pod` may have had `address` at `at_ns` (monotonic), as far as the API tells; if so,
    /// whether nobody else has it now.
    #[must_use]
    pub fn may_have_had(&self, address: IpAddr, pod: &Arc<Pod>, at_ns: u64) -> Option<bool> {
        self.tables.addresses.may_hold(address, pod, at_ns)
    }

    /// Whether the registry keeps that `pod` has or had `address`; what has ended is forgotten after
    /// a while.
    #[must_use]
    pub fn remembers(&self, address: IpAddr, pod: &Arc<Pod>) -> bool {
        self.tables.addresses.remembers(address, pod)
    }

    /// Whether the API tells what was so at `at_ns`; after a cut, a name may be another's by then.
    /// What it told before stays the best that there is.
    #[must_use]
    pub fn is_in_touch(&self, resource: Resource, at_ns: u64) -> bool {
        self.tables.is_in_touch(resource, at_ns)
    }

    fn nobody(&self, address: IpAddr) -> Holder<'_> {
        if self.tables.is_in_cluster(address) {
            return Holder::InCluster;
        }
        let told = [Resource::Nodes, Resource::Services];
        if told.into_iter().all(|resource| self.tables.is_listed(resource)) {
            Holder::Outside
        } else {
            Holder::NotSynced
        }
    }

    /// The Service that is dialled at an address and port, if it was there at `at_ns` (monotonic);
    /// `protocol` is the IP protocol's number.
    #[must_use]
    pub fn service(
        &self,
        address: IpAddr,
        port: u16,
        protocol: u8,
        at_ns: u64,
    ) -> Option<ServiceHit<'_>> {
        let listed = self.tables.is_listed(Resource::EndpointSlices);
        self.tables.services.at(Some(address), port, protocol, at_ns, listed)
    }

    /// The Service that is dialled at a port of a node, if it was there at `at_ns` (monotonic).
    #[must_use]
    pub fn node_port(&self, port: u16, protocol: u8, at_ns: u64) -> Option<ServiceHit<'_>> {
        let listed = self.tables.is_listed(Resource::EndpointSlices);
        self.tables.services.at(None, port, protocol, at_ns, listed)
    }

    /// A node by its name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.tables.nodes.get(name).map(|held| &held.node)
    }

    /// The agent's own node.
    #[must_use]
    pub fn own_node(&self) -> &Arc<Node> {
        self.tables.own_node()
    }

    /// Whether all objects of a kind were told of once.
    #[must_use]
    pub fn is_listed(&self, resource: Resource) -> bool {
        self.tables.is_listed(resource)
    }

    /// Whether anything is known that a filter's value can mean, ended pods that are kept included.
    /// True where it cannot be told, because the API has not told of everything.
    #[must_use]
    pub fn knows(&self, field: Field, value: &str) -> bool {
        let needs: &[Resource] = match field {
            Field::Namespace => &[Resource::Pods, Resource::Services],
            Field::Pod => &[Resource::Pods],
            Field::Workload => &[Resource::Pods, Resource::ReplicaSets, Resource::Jobs],
            Field::Service => &[Resource::Services],
            Field::Node => &[Resource::Nodes],
        };
        if needs.iter().any(|resource| !self.tables.is_listed(*resource)) {
            return true;
        }
        match field {
            Field::Namespace => {
                self.tables.services.iter().any(|service| *service.namespace == *value)
                    || self.any_name(|namespace, _| namespace == value)
                    || self.any_pod(|pod| is_in(pod, Some(value)))
            }
            Field::Pod => {
                let (namespace, prefix) = split(value);
                let fits = |of: &str, name: &str| {
                    namespace.is_none_or(|wanted| wanted == of) && name.starts_with(prefix)
                };
                self.any_name(fits)
                    || self.any_pod(|pod| {
                        pod.identity().is_some_and(|of| fits(&of.namespace, &of.name))
                    })
            }
            Field::Workload => self.any_pod(|pod| has_workload(pod, value)),
            Field::Service => {
                let (namespace, name) = split(value);
                self.tables.services.iter().any(|service| {
                    *service.name == *name
                        && namespace.is_none_or(|wanted| *service.namespace == *wanted)
                })
            }
            Field::Node => self.tables.nodes.contains_key(value),
        }
    }

    /// Every name that a filter's value may have meant, in the form of one with so many words
    /// between slashes: a name alone, or with what may stand before it. Pods go by their workload
    /// where their names begin with it. None in a form that the field does not have.
    #[must_use]
    pub fn names(&self, field: Field, words: usize) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut add = |before: &[&str], name: &str| {
            if before.len() + 1 == words {
                names.insert([before, &[name]].concat().join("/"));
            }
        };
        match field {
            Field::Namespace => {
                self.tables.services.iter().for_each(|service| add(&[], &service.namespace));
                self.each_identity(|of, _| add(&[], &of.namespace));
            }
            Field::Pod => self.each_identity(|of, pod| {
                let state = pod.map(Pod::state);
                let workload = state.as_ref().and_then(|state| state.workload.as_ref());
                let workload = workload.filter(|one| of.name.starts_with(&*one.name));
                let name = workload.map_or(&*of.name, |workload| &*workload.name);
                add(&[], name);
                add(&[&of.namespace], name);
            }),
            Field::Workload => self.each_identity(|of, pod| {
                let state = pod.map(Pod::state);
                let Some(workload) = state.as_ref().and_then(|state| state.workload.as_ref())
                else {
                    return;
                };
                let (kind, name) = (workload.kind.to_ascii_lowercase(), &*workload.name);
                add(&[], name);
                add(&[&of.namespace], name);
                add(&[&kind], name);
                add(&[&of.namespace, &kind], name);
            }),
            Field::Service => self.tables.services.iter().for_each(|service| {
                add(&[], &service.name);
                add(&[&service.namespace], &service.name);
            }),
            Field::Node => self.tables.nodes.keys().for_each(|name| add(&[], name)),
        }
        names
    }

    /// All pods with a name, those that wait for a node by that alone.
    fn each_identity(&self, mut each: impl FnMut(&PodIdentity, Option<&Pod>)) {
        let unbound = self.tables.pods.values().filter_map(|held| held.unbound.as_ref());
        unbound.for_each(|identity| each(identity, None));
        read(self.uids).iter().for_each(|pod| {
            if let Some(identity) = pod.identity() {
                each(identity, Some(pod));
            }
        });
    }

    /// Whether any pod that is kept, ended ones included, fulfils a condition.
    #[must_use]
    pub fn any_pod(&self, condition: impl FnMut(&Pod) -> bool) -> bool {
        let mut condition = condition;
        read(self.uids).iter().any(|pod| condition(pod))
    }

    /// Whether any pod that waits for a node has such a namespace and name.
    fn any_name(&self, fits: impl Fn(&str, &str) -> bool) -> bool {
        let unbound = self.tables.pods.values().filter_map(|held| held.unbound.as_ref());
        unbound.into_iter().any(|identity| fits(&identity.namespace, &identity.name))
    }
}

fn split(value: &str) -> (Option<&str>, &str) {
    value.split_once('/').map_or((None, value), |(namespace, name)| (Some(namespace), name))
}

fn is_in(pod: &Pod, namespace: Option<&str>) -> bool {
    let identity = pod.identity();
    namespace.is_none_or(|wanted| identity.is_some_and(|of| *of.namespace == *wanted))
}

/// `[namespace/][kind/]name`: with two words the first may be either.
fn has_workload(pod: &Pod, value: &str) -> bool {
    let state = pod.state();
    let Some(workload) = &state.workload else { return false };
    let is_kind = |kind: &str| workload.kind.eq_ignore_ascii_case(kind);
    let is_name = |name: &str| *workload.name == *name;
    let mut words = value.splitn(3, '/');
    match (words.next(), words.next(), words.next()) {
        (Some(name), None, _) => is_name(name),
        (Some(first), Some(name), None) => {
            is_name(name) && (is_kind(first) || is_in(pod, Some(first)))
        }
        (Some(namespace), Some(kind), Some(name)) => {
            is_in(pod, Some(namespace)) && is_kind(kind) && is_name(name)
        }
        (None, _, _) => false,
    }
}
