//! What the agent knows of the cluster: pods by uid, holders of addresses, Services, owners.
//!
//! Watchers (and tests) write, one change at a time; identity reads, one guard for a batch. Nothing
//! here does I/O or reads a clock: every change says when it was told. The read side allocates
//! nothing. Everything is bounded, and what does not fit is counted.

mod facts;
pub(crate) mod names;
mod nodes;
mod objects;
mod pods;
mod ranges;
mod tables;
mod uids;
mod view;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::api::core::v1::{Node as ApiNode, Pod as ApiPod, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::k8s::model::{Node, Pod};
use crate::k8s::status::{Health, Resource, Status};
use tables::Tables;
use uids::Uids;

pub use view::{Field, Holder, View};

/// How long what ended is kept for late records, nanoseconds.
pub const KEPT_NS: u64 = 300 * 1_000_000_000;

/// Time between two looks for what has been kept long enough, nanoseconds.
const EXPIRE_EVERY_NS: u64 = 10 * 1_000_000_000;

/// When something was told. Monotonic nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it was received.
    pub at_ns: u64,
    /// It happened between this and `at_ns`. The same as `at_ns` on a watch that runs; after a cut,
    /// or in a list, when the API was last heard before.
    pub since_ns: u64,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, to place the API's own times.
    pub unix_offset_ns: i64,
}

impl Seen {
    /// Told by a watch that runs.
    #[must_use]
    pub const fn live(at_ns: u64, unix_offset_ns: i64) -> Self {
        Self { at_ns, since_ns: at_ns, unix_offset_ns }
    }

    /// Told by a list, or after a cut; `since_ns` is when the API was last heard before, 0 if never.
    #[must_use]
    pub const fn late(at_ns: u64, since_ns: u64, unix_offset_ns: i64) -> Self {
        Self { at_ns, since_ns, unix_offset_ns }
    }
}

/// The agent's knowledge of the cluster, one for each agent.
#[derive(Debug)]
pub struct Registry {
    tables: RwLock<Tables>,
    /// Behind a lock of its own, taken last: a reader of `tables` may ask for a pod by its cgroup.
    uids: RwLock<Uids>,
    generation: AtomicU64,
    /// Apart from the tables: counted while a [`View`] is held.
    displaced: AtomicU64,
    health: Health,
}

impl Registry {
    /// An empty one for the agent of `own_node`, with room for `max_pods` pods.
    #[must_use]
    pub fn shared(own_node: &str, max_pods: u32) -> Arc<Self> {
        let max_pods = usize::try_from(max_pods).unwrap_or(usize::MAX);
        Arc::new(Self {
            tables: RwLock::new(Tables::new(own_node, max_pods)),
            uids: RwLock::new(Uids::new(max_pods)),
            generation: AtomicU64::new(0),
            displaced: AtomicU64::new(0),
            health: Health::default(),
        })
    }

    /// The pod whose cgroup's path has `uid` (of a static pod the config hash), made if it is not
    /// known yet. None if there is no room for one more. May be called while a [`View`] is held.
    #[must_use]
    pub fn pod_of_cgroup(&self, uid: &str) -> Option<Arc<Pod>> {
        if let Some(pod) = read(&self.uids).get(uid) {
            return Some(pod);
        }
        write(&self.uids).of_cgroup(uid)
    }

    /// A guard for a batch of questions; changes wait for its end.
    #[must_use]
    pub fn read(&self) -> View<'_> {
        View::new(read(&self.tables), &self.uids)
    }

    /// Moves with every change that may alter an answer.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The pods of this node that have not ended.
    #[must_use]
    pub fn local_pods(&self) -> Vec<Arc<Pod>> {
        read(&self.tables).local_pods().map(Arc::clone).collect()
    }

    /// This node.
    #[must_use]
    pub fn own_node(&self) -> Arc<Node> {
        Arc::clone(read(&self.tables).own_node())
    }

    /// What there is to say about the API and about what is kept.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.health.status();
        read(&self.tables).count(&mut status);
        status.rejected += read(&self.uids).rejected();
        status.rejected += self.displaced.load(Ordering::Relaxed);
        status
    }

    /// Where the watchers say how they fare.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// A list of `resource` begins; what it does not name is gone when it ends.
    pub fn begin_list(&self, resource: Resource) {
        write(&self.tables).begin_list(resource);
    }

    /// A list of `resource` is complete.
    pub fn end_list(&self, resource: Resource, seen: Seen) {
        self.change(seen, |tables, uids| {
            tables.end_list(resource, seen, uids);
            true
        });
    }

    /// The API is not heard: what changed after `heard_ns` (monotonic) is not told for now.
    pub fn lose_touch(&self, resource: Resource, heard_ns: u64) {
        let is_new = write(&self.tables).lose_touch(resource, heard_ns);
        self.moved(is_new);
    }

    /// The API has told all that it did not while it was not heard.
    pub fn regain_touch(&self, resource: Resource) {
        let was_lost = write(&self.tables).regain_touch(resource);
        self.moved(was_lost);
    }

    /// Sets a pod.
    pub fn apply_pod(&self, pod: &ApiPod, seen: Seen) {
        let facts = facts::PodFacts::read(pod);
        let read_it = facts.is_some();
        self.change(seen, |tables, uids| {
            tables.reject_unless(read_it);
            facts.is_some_and(|facts| tables.apply_pod(&facts, seen, uids))
        });
    }

    /// Removes a pod.
    pub fn delete_pod(&self, meta: &ObjectMeta, seen: Seen) {
        let Some(uid) = meta.uid.as_deref() else { return };
        self.change(seen, |tables, uids| tables.end_pod(uid, seen, uids));
    }

    /// Sets a node.
    pub fn apply_node(&self, node: &ApiNode, seen: Seen) {
        self.change(seen, |tables, _| tables.apply_node(node, seen));
    }

    /// Removes a node.
    pub fn delete_node(&self, meta: &ObjectMeta, seen: Seen) {
        let Some(name) = meta.name.as_deref() else { return };
        self.change(seen, |tables, _| tables.end_node(name, seen));
    }

    /// Sets a Service.
    pub fn apply_service(&self, service: &ApiService, seen: Seen) {
        self.change(seen, |tables, _| tables.apply_service(service, seen));
    }

    /// Removes a Service.
    pub fn delete_service(&self, meta: &ObjectMeta, seen: Seen) {
        self.change(seen, |tables, _| tables.delete_service(meta, seen));
    }

    /// Sets an EndpointSlice.
    pub fn apply_slice(&self, slice: &EndpointSlice, seen: Seen) {
        self.change(seen, |tables, _| tables.apply_slice(slice));
    }

    /// Removes an EndpointSlice.
    pub fn delete_slice(&self, meta: &ObjectMeta, seen: Seen) {
        self.change(seen, |tables, _| tables.delete_slice(meta));
    }

    /// Sets a ReplicaSet or a Job; `resource` says which.
    pub fn apply_owner(&self, resource: Resource, meta: &ObjectMeta, seen: Seen) {
        self.change(seen, |tables, _| tables.apply_owner(resource, meta));
    }

    /// Removes a ReplicaSet or a Job.
    pub fn delete_owner(&self, meta: &ObjectMeta, seen: Seen) {
        self.change(seen, |tables, _| tables.delete_owner(meta));
    }

    /// An object could not be read.
    pub fn reject(&self) {
        write(&self.tables).reject_unless(false);
    }

    /// What was seen of a pod had to go for want of room.
    pub(crate) fn count_displaced(&self) {
        self.displaced.fetch_add(1, Ordering::Relaxed);
    }

    fn change(&self, seen: Seen, change: impl FnOnce(&mut Tables, &RwLock<Uids>) -> bool) {
        let mut tables = write(&self.tables);
        let mut changed = change(&mut tables, &self.uids);
        if tables.is_time_to_expire(seen.at_ns, EXPIRE_EVERY_NS) {
            let before_ns = seen.at_ns.saturating_sub(KEPT_NS);
            changed |= tables.expire(seen.at_ns, before_ns);
            write(&self.uids).expire(before_ns);
        }
        drop(tables);
        self.moved(changed);
    }

    fn moved(&self, changed: bool) {
        if changed {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
