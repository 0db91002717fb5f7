//! One pod for each uid: made by a cgroup's path or by the API, whoever is first.

use std::collections::HashMap;
use std::sync::Arc;

use crate::k8s::model::Pod;

/// Cgroups of pods that the API does not know, at least; a node runs a few hundred pods.
const MIN_PLACEHOLDERS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// The API knows it.
    Told,
    /// Only a cgroup told of it; goes when nobody holds it.
    Placeholder,
    /// The API told that it ended, at this time; kept for late records.
    Ended(u64),
}

/// Pods by the uid in their cgroup's path; static pods of other nodes by these nodes' names, too.
#[derive(Debug)]
pub(super) struct Uids {
    pods: HashMap<Box<str>, (Arc<Pod>, Kept)>,
    placeholders: usize,
    ended: usize,
    max_placeholders: usize,
    max_ended: usize,
    /// Ended pods above which those that nobody holds are dropped.
    sweep_above: usize,
    rejected: u64,
}

impl Uids {
    pub(super) fn new(max_pods: usize) -> Self {
        Self {
            pods: HashMap::new(),
            placeholders: 0,
            ended: 0,
            max_placeholders: max_pods.max(MIN_PLACEHOLDERS),
            max_ended: max_pods.max(MIN_PLACEHOLDERS),
            sweep_above: max_pods.max(MIN_PLACEHOLDERS),
            rejected: 0,
        }
    }

    pub(super) const fn rejected(&self) -> u64 {
        self.rejected
    }

    pub(super) fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.get(uid).map(|(pod, _)| Arc::clone(pod))
    }

    pub(super) fn of_cgroup(&mut self, uid: &str) -> Option<Arc<Pod>> {
        if let Some(pod) = self.get(uid) {
            return Some(pod);
        }
        if self.placeholders >= self.max_placeholders {
            self.drop_unheld(|kept| kept == Kept::Placeholder);
        }
        if self.placeholders >= self.max_placeholders {
            self.rejected += 1;
            return None;
        }
        self.placeholders += 1;
        Some(self.insert(uid, uid, Kept::Placeholder))
    }

    /// The pod that the API tells of, which is kept by `key`.
    pub(super) fn told(&mut self, key: &str, uid: &str) -> Arc<Pod> {
        let Some((pod, kept)) = self.pods.get_mut(key) else {
            return self.insert(key, uid, Kept::Told);
        };
        match std::mem::replace(kept, Kept::Told) {
            Kept::Told => {}
            Kept::Placeholder => self.placeholders -= 1,
            Kept::Ended(_) => self.ended -= 1,
        }
        Arc::clone(pod)
    }

    /// The API told that the pod ended.
    pub(super) fn ended(&mut self, key: &str, at_ns: u64) {
        if let Some((_, kept)) = self.pods.get_mut(key)
            && *kept == Kept::Told
        {
            *kept = Kept::Ended(at_ns);
            self.ended += 1;
        }
        if self.ended > self.sweep_above {
            self.drop_unheld(|kept| matches!(kept, Kept::Ended(_)));
            // All pods are looked at for it, and rows may hold those that ended.
            self.sweep_above = self.ended.max(self.max_ended).saturating_add(self.max_ended / 8);
        }
    }

    /// Drops what ended before `before_ns`, and placeholders, where nobody holds them.
    pub(super) fn expire(&mut self, before_ns: u64) {
        self.drop_unheld(|kept| match kept {
            Kept::Told => false,
            Kept::Placeholder => true,
            Kept::Ended(at_ns) => at_ns < before_ns,
        });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().map(|(pod, _)| pod)
    }

    fn insert(&mut self, key: &str, uid: &str, kept: Kept) -> Arc<Pod> {
        let pod = Arc::new(Pod::unnamed(uid));
        self.pods.insert(key.into(), (Arc::clone(&pod), kept));
        pod
    }

    /// A pod that somebody holds stays: another one with its uid would be a stranger to it.
    fn drop_unheld(&mut self, may_go: impl Fn(Kept) -> bool) {
        self.pods.retain(|_, (pod, kept)| Arc::strong_count(pod) > 1 || !may_go(*kept));
        let of =
            |wanted: fn(&Kept) -> bool| self.pods.values().filter(|(_, kept)| wanted(kept)).count();
        self.placeholders = of(|kept| *kept == Kept::Placeholder);
        self.ended = of(|kept| matches!(kept, Kept::Ended(_)));
    }
}
