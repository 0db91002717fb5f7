//! The tables behind the registry's lock, and what a list does to them.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use ipnet::IpNet;

use super::Seen;
use super::names::Names;
use super::nodes::HeldNode;
use super::pods::Held;
use super::ranges::{MAX_POD_BITS, MAX_SERVICE_BITS, Ranges, extremes, hull};
use super::uids::Uids;
use crate::cgroup::Runtime;
use crate::clock::from_unix;
use crate::k8s::addresses::{Addresses, Claim, End, OPEN};
use crate::k8s::model::{Node, Pod};
use crate::k8s::owners::Owners;
use crate::k8s::services::Services;
use crate::k8s::status::{Resource, Status};

/// Objects of each other kind for each pod that there is room for: a Deployment keeps ten old
/// ReplicaSets.
const OWNERS_PER_POD: usize = 4;

/// Times without sight that are remembered; those that touch are one, so no more than one of them
/// can go on, and those that go first are over.
const MAX_BLIND: usize = 64;

/// The API's times are in whole seconds, rounded down.
pub(super) const SECOND_NS: u64 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct Tables {
    pub(super) own_node: Arc<Node>,
    pub(super) max: usize,
    pub(super) pods: HashMap<Box<str>, Held>,
    pub(super) local: usize,
    pub(super) nodes: HashMap<Arc<str>, HeldNode>,
    pub(super) addresses: Addresses,
    /// Addresses of Services outside of the cluster. They are apart: a user writes them at will, and
    /// what a pod or a node has, as where a node is its own load balancer, is that one's.
    pub(super) external: Addresses,
    pub(super) services: Services,
    pub(super) owners: Owners,
    pub(super) names: Names,
    pub(super) ranges: Ranges,
    pub(super) rejected: u64,
    /// Of the containers of this node's pods since the start, as the API names them.
    pub(super) runtimes: BTreeSet<Runtime>,
    /// The least and the greatest address of each family that pods had outside of all ranges.
    stray: Vec<IpAddr>,
    /// Names or uids that the running list has told so far.
    listing: [Option<HashSet<Box<str>>>; Resource::COUNT],
    listed: [bool; Resource::COUNT],
    /// Since when changes are not told; [`OPEN`] while they are.
    cut_ns: [u64; Resource::COUNT],
    expired_ns: u64,
    /// Times in which addresses may have been held by pods that were not seen with them, apart from
    /// each other and in their order.
    blind: VecDeque<(u64, u64)>,
}

impl Tables {
    pub(super) fn new(own_node: &str, max: usize) -> Self {
        let own_node = Arc::new(Node::named(own_node));
        let held = HeldNode::of(Arc::clone(&own_node));
        Self {
            nodes: HashMap::from([(Arc::clone(&own_node.name), held)]),
            own_node,
            max,
            pods: HashMap::new(),
            local: 0,
            addresses: Addresses::new(max.max(1024)),
            external: Addresses::new(max.max(1024)),
            services: Services::default(),
            owners: Owners::new(max.saturating_mul(OWNERS_PER_POD)),
            names: Names::default(),
            ranges: Ranges::default(),
            rejected: 0,
            runtimes: BTreeSet::new(),
            stray: vec![],
            listing: Default::default(),
            listed: [false; Resource::COUNT],
            cut_ns: [OPEN; Resource::COUNT],
            expired_ns: 0,
            blind: VecDeque::new(),
        }
    }

    pub(super) const fn own_node(&self) -> &Arc<Node> {
        &self.own_node
    }

    /// Whether a list of the resource was complete once.
    pub(super) fn is_listed(&self, resource: Resource) -> bool {
        self.listed[resource.index()]
    }

    pub(super) fn local_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().filter(|held| held.local && !held.finished).map(|held| &held.pod)
    }

    pub(super) fn reject_unless(&mut self, fits: bool) {
        self.rejected += u64::from(!fits);
    }

    pub(super) fn begin_list(&mut self, resource: Resource) {
        self.listing[resource.index()] = Some(HashSet::new());
    }

    /// Notes that the running list named this.
    pub(super) fn told(&mut self, resource: Resource, key: &str) {
        if let Some(listed) = &mut self.listing[resource.index()] {
            listed.insert(key.into());
        }
    }

    pub(super) fn end_list(&mut self, resource: Resource, seen: Seen, uids: &RwLock<Uids>) {
        let Some(listed) = self.listing[resource.index()].take() else { return };
        match resource {
            Resource::Pods => {
                let gone = gone(self.pods.keys(), &listed);
                for uid in gone {
                    self.end_pod(&uid, seen, uids);
                }
                self.blind_for(seen.since_ns, seen.at_ns);
            }
            Resource::Nodes => {
                let known = self.nodes.iter().filter(|(_, held)| held.told).map(|(name, _)| name);
                let gone: Vec<Arc<str>> =
                    known.filter(|name| !listed.contains(&***name)).cloned().collect();
                for name in gone {
                    self.end_node(&name, seen);
                }
            }
            Resource::Services => {
                let gone = self.services.missing(|key| listed.contains(key));
                for name in gone {
                    self.end_service(&name, seen);
                }
            }
            Resource::EndpointSlices => {
                for name in self.services.missing_slices(|key| listed.contains(key)) {
                    self.services.apply_slice(&name, None);
                }
            }
            Resource::ReplicaSets | Resource::Jobs => self.owners.sweep(resource, &listed),
        }
        self.listed[resource.index()] = true;
        self.rebuild_ranges();
    }

    /// The ranges follow the nodes and Services; during a list they would be built for each object.
    pub(super) fn ranges_changed(&mut self, by: Resource) {
        if self.listing[by.index()].is_none() {
            self.rebuild_ranges();
        }
    }

    /// A pod has addresses that are in no range that is known: such as a network plugin gives that
    /// does not take them from the nodes' ranges.
    pub(super) fn stray_pods(&mut self, addresses: &[IpAddr]) {
        let is_listed = |resource| self.is_listed(resource);
        if is_listed(Resource::Pods) && is_listed(Resource::Nodes) {
            self.stray.extend(addresses.iter().copied());
            self.rebuild_ranges();
        }
    }

    fn rebuild_ranges(&mut self) {
        let nodes = self.nodes.values().flat_map(|held| held.pod_ranges.iter().copied());
        let services = hull(self.services.cluster_ips(), MAX_SERVICE_BITS);
        let mut all: Vec<IpNet> = nodes.chain(services).collect();
        if self.is_listed(Resource::Pods) && self.is_listed(Resource::Nodes) {
            let known = Ranges::of(all.iter().copied());
            let pods = self.pods.values().flat_map(|held| held.addresses.iter().copied());
            let stray = pods.chain(self.stray.drain(..)).filter(|ip| !known.contains(*ip));
            self.stray = extremes(stray);
            all.extend(hull(self.stray.iter().copied(), MAX_POD_BITS));
        }
        self.ranges = Ranges::of(all.into_iter());
    }

    /// Pods may have come and gone in this time, or have had addresses, without being told of.
    pub(super) fn blind_for(&mut self, since_ns: u64, until_ns: u64) {
        let (mut since_ns, mut until_ns) = (since_ns, until_ns);
        let first = self.blind.partition_point(|(_, last_ns)| *last_ns < since_ns);
        while let Some((first_ns, last_ns)) = self.blind.get(first).copied()
            && first_ns <= until_ns
        {
            (since_ns, until_ns) = (since_ns.min(first_ns), until_ns.max(last_ns));
            self.blind.remove(first);
        }
        self.blind.insert(first, (since_ns, until_ns));
        if self.blind.len() > MAX_BLIND {
            self.forget_blind();
        }
    }

    fn forget_blind(&mut self) {
        if let Some((_, until_ns)) = self.blind.pop_front() {
            self.addresses.forget_blind(until_ns);
            self.external.forget_blind(until_ns);
        }
    }

    /// Whether pods may have come and gone unseen at that time.
    pub(super) fn is_blind(&self, at_ns: u64) -> bool {
        self.blind.iter().any(|(since_ns, until_ns)| (*since_ns..*until_ns).contains(&at_ns))
    }

    /// Nothing that changes after `heard_ns` is told for now. True if that is new.
    pub(super) fn lose_touch(&mut self, resource: Resource, heard_ns: u64) -> bool {
        let cut_ns = &mut self.cut_ns[resource.index()];
        let is_new = *cut_ns == OPEN;
        *cut_ns = heard_ns.min(*cut_ns);
        is_new
    }

    /// All that changed has been told again. True if it was not before.
    pub(super) fn regain_touch(&mut self, resource: Resource) -> bool {
        std::mem::replace(&mut self.cut_ns[resource.index()], OPEN) != OPEN
    }

    /// Whether what was so at that time is told.
    pub(super) fn is_in_touch(&self, resource: Resource, at_ns: u64) -> bool {
        at_ns <= self.cut_ns[resource.index()]
    }

    pub(super) fn is_in_cluster(&self, address: IpAddr) -> bool {
        self.ranges.contains(address)
    }

    pub(super) const fn is_time_to_expire(&self, now_ns: u64, every_ns: u64) -> bool {
        now_ns >= self.expired_ns.saturating_add(every_ns)
    }

    /// Forgets what ended before `before_ns`, and names that nobody holds. True if an answer may
    /// have changed.
    pub(super) fn expire(&mut self, now_ns: u64, before_ns: u64) -> bool {
        self.expired_ns = now_ns;
        self.owners.expire();
        self.names.expire();
        self.expire_nodes();
        let held = self.blind.len();
        while self.blind.front().is_some_and(|(_, until_ns)| *until_ns < before_ns) {
            self.forget_blind();
        }
        let external = self.external.expire(before_ns);
        self.addresses.expire(before_ns) || external || held != self.blind.len()
    }

    pub(super) fn count(&self, status: &mut Status) {
        status.pods = self.pods.len();
        status.pods_local = self.local;
        status.max_pods = self.max;
        status.rejected += self.rejected;
        status.runtimes.clone_from(&self.runtimes);
        for resource in Resource::ALL {
            status.resources[resource.index()].objects = match resource {
                Resource::Pods => self.pods.len(),
                Resource::Nodes => self.nodes.values().filter(|held| held.told).count(),
                Resource::Services => self.services.len(),
                Resource::EndpointSlices => self.services.slices(),
                Resource::ReplicaSets | Resource::Jobs => self.owners.count(resource),
            };
        }
    }
}

fn gone<'a>(held: impl Iterator<Item = &'a Box<str>>, listed: &HashSet<Box<str>>) -> Vec<Box<str>> {
    held.filter(|key| !listed.contains(*key)).cloned().collect()
}

impl Seen {
    /// When something that was told now ended.
    pub(super) const fn end(self, runs_on: bool) -> End {
        End { sure_until_ns: self.since_ns, told_ns: self.at_ns, runs_on }
    }

    /// A claim that is told now, of a holder that stays.
    pub(super) const fn claim(self, from_ns: u64) -> Claim {
        let (told_ns, since_ns) = (self.at_ns, self.since_ns);
        Claim {
            from_ns,
            sure_from_ns: told_ns,
            told_ns,
            since_ns,
            leaving: false,
            leaving_since_ns: since_ns,
            quiet: false,
        }
    }

    /// The earliest time at which an object told now, and not before, may have existed.
    ///
    /// However fast a watch is, packets may be faster: the API's own time of creation, in whole
    /// seconds, is early at most.
    pub(super) fn earliest(self, created_unix_ns: Option<i64>) -> u64 {
        let created = created_unix_ns.map(|unix_ns| from_unix(unix_ns, self.unix_offset_ns));
        created.map_or(self.since_ns, |second_ns| second_ns.min(self.at_ns))
    }
}
