//! From a pod's owner to the top one: a ReplicaSet's Deployment, a Job's CronJob.
//!
//! Only owners that have an owner are kept. The ones at the top need no object of their own, the
//! reference names them. An owner that is not known is the top for as long as nobody tells better.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::k8s::model::Workload;
use crate::k8s::registry::names::Names;
use crate::k8s::status::Resource;

/// Owners by uid, with the one above. Bounded by `max`.
#[derive(Debug)]
pub(crate) struct Owners {
    above: HashMap<Box<str>, (Resource, Arc<Workload>)>,
    /// Pods by the uid of an owner that may have one above it.
    pods: HashMap<Box<str>, Vec<Box<str>>>,
    workloads: HashSet<Arc<Workload>>,
    max: usize,
}

impl Owners {
    pub(crate) fn new(max: usize) -> Self {
        Self { above: HashMap::new(), pods: HashMap::new(), workloads: HashSet::new(), max }
    }

    /// Owners of one resource that are kept.
    pub(crate) fn count(&self, of: Resource) -> usize {
        self.above.values().filter(|(resource, _)| *resource == of).count()
    }

    /// Tells of a ReplicaSet or Job. True if that changes somebody's workload; an error if it does
    /// not fit.
    pub(crate) fn apply(
        &mut self,
        resource: Resource,
        meta: &ObjectMeta,
        names: &mut Names,
    ) -> Result<bool, Full> {
        let Some(uid) = meta.uid.as_deref() else { return Ok(false) };
        let Some(owner) = controller(meta) else { return Ok(self.above.remove(uid).is_some()) };
        if let Some((_, held)) = self.above.get(uid) {
            if *held.kind == *owner.kind && *held.name == *owner.name {
                return Ok(false);
            }
        } else if self.above.len() >= self.max {
            return Err(Full);
        }
        let top = self.workload(&owner.kind, &owner.name, names);
        self.above.insert(uid.into(), (resource, top));
        Ok(true)
    }

    /// Forgets an owner; pods keep what they were told.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.above.remove(uid);
    }

    /// Forgets the owners of one resource that a list did not name.
    pub(crate) fn sweep(&mut self, swept: Resource, listed: &HashSet<Box<str>>) {
        self.above.retain(|uid, (resource, _)| *resource != swept || listed.contains(uid));
    }

    /// The workload of a pod, and the uid of its owner where one above it may become known.
    pub(crate) fn of_pod<'a>(
        &mut self,
        meta: &'a ObjectMeta,
        names: &mut Names,
    ) -> (Option<Arc<Workload>>, Option<&'a str>) {
        let Some(owner) = controller(meta) else { return (None, None) };
        let chained = matches!(owner.kind.as_str(), "ReplicaSet" | "Job");
        let follow = chained.then_some(owner.uid.as_str());
        match self.above.get(owner.uid.as_str()) {
            Some((_, top)) => (Some(Arc::clone(top)), follow),
            None => (Some(self.workload(&owner.kind, &owner.name, names)), follow),
        }
    }

    /// The one above an owner.
    pub(crate) fn above(&self, owner_uid: &str) -> Option<&Arc<Workload>> {
        self.above.get(owner_uid).map(|(_, top)| top)
    }

    /// A pod wants to be told of the one above its owner.
    pub(crate) fn follow(&mut self, owner_uid: &str, pod_uid: &str) {
        let pods = self.pods.entry(owner_uid.into()).or_default();
        if !pods.iter().any(|uid| **uid == *pod_uid) {
            pods.push(pod_uid.into());
        }
    }

    pub(crate) fn unfollow(&mut self, owner_uid: &str, pod_uid: &str) {
        if let Some(pods) = self.pods.get_mut(owner_uid) {
            pods.retain(|uid| **uid != *pod_uid);
            if pods.is_empty() {
                self.pods.remove(owner_uid);
            }
        }
    }

    /// The pods that follow an owner.
    pub(crate) fn followers(&self, owner_uid: &str) -> &[Box<str>] {
        self.pods.get(owner_uid).map_or(&[], Vec::as_slice)
    }

    /// Drops workloads that nobody has any more.
    pub(crate) fn expire(&mut self) {
        self.workloads.retain(|workload| Arc::strong_count(workload) > 1);
    }

    fn workload(&mut self, kind: &str, name: &str, names: &mut Names) -> Arc<Workload> {
        let wanted = Workload { kind: names.get(kind), name: name.into() };
        if let Some(held) = self.workloads.get(&wanted) {
            return Arc::clone(held);
        }
        let made = Arc::new(wanted);
        self.workloads.insert(Arc::clone(&made));
        made
    }
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The owner that manages the object. A mirror pod's is its Node, which is no workload.
fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true) && owner.kind != "Node")
}
