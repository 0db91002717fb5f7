//! Pods: what is kept of each, and what a change of one does to names and addresses.

use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use super::facts::PodFacts;
use super::tables::Tables;
use super::uids::Uids;
use super::{Seen, read, write};
use crate::k8s::addresses::{Claim, End, OPEN, RUNS_ON_NS, Who};
use crate::k8s::model::{Container, Pod, PodIdentity};
use crate::k8s::status::Resource;

/// A pod that the API has.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) pod: Arc<Pod>,
    /// Where it is kept among the uids, if not by its own: a static pod of another node.
    elsewhere: Option<Box<str>>,
    /// Bound to this node.
    pub(super) local: bool,
    pub(super) finished: bool,
    /// The names of a pod that is bound to no node; it gets them when it is.
    pub(super) unbound: Option<Box<PodIdentity>>,
    pub(super) addresses: Vec<IpAddr>,
    /// A container of it ran when it was last told of.
    runs: bool,
    from_ns: u64,
    /// uid of its owner, where one above that may become known.
    follows: Option<Box<str>>,
}

impl Held {
    /// By what it is kept among the uids.
    fn key(&self) -> &str {
        self.elsewhere.as_deref().unwrap_or(&self.pod.uid)
    }
}

impl Tables {
    /// Sets a pod. True if an answer may have changed.
    pub(super) fn apply_pod(
        &mut self,
        facts: &PodFacts<'_>,
        seen: Seen,
        uids: &RwLock<Uids>,
    ) -> bool {
        self.told(Resource::Pods, facts.uid);
        let local = facts.node == Some(&*self.own_node.name);
        let mut changed = false;
        if !self.pods.contains_key(facts.uid) {
            // What has finished elsewhere is no end of any packet still to come.
            if facts.finished && !local {
                return false;
            }
            if !self.make_room(local, seen, uids) {
                self.rejected += 1;
                return self.addresses_taken(facts, seen);
            }
            self.add_pod(facts, seen, uids);
            changed = true;
        }
        let Some(mut held) = self.pods.remove(facts.uid) else { return changed };
        self.local += usize::from(local && !held.local);
        held.local |= local;
        changed |= self.name_pod(&mut held, facts);
        changed |= self.describe_pod(&mut held, facts);
        changed |= self.address_pod(&mut held, facts, seen);
        self.pods.insert(facts.uid.into(), held);
        if facts.finished {
            changed |= self.finish_pod(facts.uid, seen, uids);
        }
        changed
    }

    /// The pod is gone. True if it was known.
    pub(super) fn end_pod(&mut self, uid: &str, seen: Seen, uids: &RwLock<Uids>) -> bool {
        let Some(held) = self.remove_pod(uid, seen) else { return false };
        // The object that mirrors a static pod may be gone while the next one tells of the pod.
        let is_mirror = *held.pod.uid != *uid;
        if !is_mirror || !self.pods.values().any(|other| Arc::ptr_eq(&other.pod, &held.pod)) {
            held.pod.update(|state| state.ended_ns = state.ended_ns.or(Some(seen.at_ns)));
            write(uids).ended(held.key(), seen.at_ns);
        }
        true
    }

    fn remove_pod(&mut self, uid: &str, seen: Seen) -> Option<Held> {
        let mut held = self.pods.remove(uid)?;
        self.local -= usize::from(held.local);
        self.release_all(&mut held, uid, seen);
        Some(held)
    }

    fn finish_pod(&mut self, uid: &str, seen: Seen, uids: &RwLock<Uids>) -> bool {
        let Some(held) = self.pods.get_mut(uid) else { return false };
        if !held.local {
            return self.end_pod(uid, seen, uids);
        }
        let was_finished = std::mem::replace(&mut held.finished, true);
        held.pod.update(|state| state.ended_ns = state.ended_ns.or(Some(seen.at_ns)));
        !was_finished
    }

    /// Pods of this node go first: for one of them another's place is taken.
    fn make_room(&mut self, local: bool, seen: Seen, uids: &RwLock<Uids>) -> bool {
        if self.pods.len() < self.max {
            return true;
        }
        let victim = self.pods.iter().find(|(_, held)| local && !held.local);
        let Some(victim) = victim.map(|(uid, _)| uid.clone()) else { return false };
        self.rejected += 1;
        if let Some(held) = self.remove_pod(&victim, seen) {
            write(uids).ended(held.key(), seen.at_ns);
        }
        true
    }

    /// The uid that the pod's node names its cgroup by, and where that is another node, what stands for
    /// it here: only a pod of this node has a cgroup here. That of a static pod is another's if a pod
    /// with another name has it already.
    fn uid_of<'a>(
        &mut self,
        facts: &PodFacts<'a>,
        uids: &RwLock<Uids>,
    ) -> (&'a str, Option<Box<str>>) {
        let (Some(hash), Some(node)) = (facts.mirrored, facts.node) else {
            return (facts.uid, None);
        };
        let is_local = *node == *self.own_node.name;
        let elsewhere = (!is_local).then(|| format!("{node}/{hash}").into_boxed_str());
        let known = read(uids).get(elsewhere.as_deref().unwrap_or(hash));
        let is_anothers = known
            .as_ref()
            .and_then(|pod| pod.identity())
            .is_some_and(|of| *of.namespace != *facts.namespace || *of.name != *facts.name);
        if is_anothers {
            self.rejected += 1;
            return (facts.uid, None);
        }
        (hash, elsewhere)
    }

    /// A pod that is not kept has addresses: none of those who had them before has them still.
    fn addresses_taken(&mut self, facts: &PodFacts<'_>, seen: Seen) -> bool {
        let has_own = !facts.host_network && !facts.finished;
        let mut changed = false;
        for address in facts.addresses.iter().filter(|_| has_own) {
            changed |= self.addresses.taken(*address, seen.at_ns);
        }
        changed
    }

    fn add_pod(&mut self, facts: &PodFacts<'_>, seen: Seen, uids: &RwLock<Uids>) {
        let (uid, elsewhere) = self.uid_of(facts, uids);
        let pod = write(uids).told(elsewhere.as_deref().unwrap_or(uid), uid);
        pod.update(|state| state.ended_ns = None);
        let unbound = pod.identity().is_none().then(|| {
            Box::new(PodIdentity {
                namespace: self.names.get(facts.namespace),
                name: facts.name.into(),
                node: None,
                host_network: facts.host_network,
            })
        });
        let held = Held {
            pod,
            elsewhere,
            local: false,
            finished: false,
            unbound,
            addresses: vec![],
            runs: false,
            from_ns: seen.earliest(facts.created_unix_ns),
            follows: None,
        };
        self.pods.insert(facts.uid.into(), held);
    }

    /// Names a pod once it is bound to a node, which never changes.
    fn name_pod(&mut self, held: &mut Held, facts: &PodFacts<'_>) -> bool {
        let Some(node) = facts.node else { return false };
        let Some(identity) = held.unbound.take() else { return false };
        let identity = PodIdentity { node: Some(self.node_named(node)), ..*identity };
        held.pod.name(identity).is_ok()
    }

    fn describe_pod(&mut self, held: &mut Held, facts: &PodFacts<'_>) -> bool {
        let (workload, follows) = self.owners.of_pod(facts.meta, &mut self.names);
        if held.follows.as_deref() != follows {
            if let Some(old) = &held.follows {
                self.owners.unfollow(old, facts.uid);
            }
            if let Some(new) = follows {
                self.owners.follow(new, facts.uid);
            }
            held.follows = follows.map(Into::into);
        }
        let labels = facts.meta.labels.as_ref().filter(|labels| !labels.is_empty());
        let labels = labels.map(|labels| self.names.labels(labels.iter()));
        let containers = if held.local { self.containers(facts) } else { vec![] };
        let state = held.pod.state();
        let same =
            state.workload == workload && state.labels == labels && state.containers == containers;
        drop(state);
        if !same {
            held.pod.update(|state| {
                state.workload = workload;
                state.labels = labels;
                state.containers = containers;
            });
        }
        !same
    }

    fn containers(&mut self, facts: &PodFacts<'_>) -> Vec<Container> {
        let told = facts.containers().map(|(id, name, runtime)| {
            self.runtimes.extend(runtime);
            Container { id: id.into(), name: self.names.get(name), runtime }
        });
        told.collect()
    }

    fn address_pod(&mut self, held: &mut Held, facts: &PodFacts<'_>, seen: Seen) -> bool {
        let has_own = !facts.host_network && !facts.finished && facts.node.is_some();
        let wanted: &[IpAddr] = if has_own { &facts.addresses } else { &[] };
        let who = Who::Pod(Arc::clone(&held.pod));
        let mut changed = false;
        for address in held.addresses.iter().filter(|address| !wanted.contains(address)) {
            let runs_on = facts.finished && facts.runs;
            let end = End { sure_until_ns: facts.ended(seen), ..seen.end(runs_on) };
            changed |= self.addresses.release(*address, &who, end);
        }
        held.runs = facts.runs;
        let claim = Claim {
            sure_from_ns: facts.sure_from(seen).map_or(OPEN, |from_ns| from_ns.max(held.from_ns)),
            leaving: facts.leaving,
            leaving_since_ns: facts.left(seen),
            quiet: facts.quiet,
            since_ns: facts.ended(seen),
            ..seen.claim(held.from_ns)
        };
        if facts.finished && !held.finished && !facts.host_network {
            for address in &facts.addresses {
                changed |= self.addresses.passed(*address, &who, seen.claim(held.from_ns));
            }
        }
        for address in wanted {
            changed |= self.addresses.claim(*address, who.clone(), claim);
        }
        let is_new = |address: &&IpAddr| !held.addresses.contains(address);
        if wanted.iter().filter(is_new).any(|address| !self.is_in_cluster(*address)) {
            self.stray_pods(wanted);
        }
        if let Some(node) = facts.node {
            if has_own && wanted.is_empty() {
                let node = self.node_named(node);
                self.addresses.await_address(&node.name, &held.pod.uid, held.from_ns);
            } else {
                self.addresses.awaits_no_longer(node, &held.pod.uid);
            }
        }
        if *held.addresses != *wanted {
            held.addresses = wanted.to_vec();
        }
        changed
    }

    fn release_all(&mut self, held: &mut Held, uid: &str, seen: Seen) {
        let who = Who::Pod(Arc::clone(&held.pod));
        if self.addresses.awaits(&held.pod) {
            // It may have had one that was never told, and after a cut it may still have it.
            let runs_on_ns = if seen.since_ns == seen.at_ns { 0 } else { RUNS_ON_NS };
            self.blind_for(held.from_ns, seen.at_ns.saturating_add(runs_on_ns));
        }
        for address in held.addresses.drain(..) {
            self.addresses.release(address, &who, seen.end(held.runs));
        }
        if let Some(node) = held.pod.identity().and_then(|identity| identity.node.as_ref()) {
            self.addresses.awaits_no_longer(&node.name, &held.pod.uid);
        }
        if let Some(owner) = held.follows.take() {
            self.owners.unfollow(&owner, uid);
        }
    }
}
