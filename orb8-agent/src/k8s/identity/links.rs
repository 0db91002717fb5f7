//! Which pod is behind which link, learned from the cgroups of what leaves it.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Batch, Question, Span};
use crate::event::End;
use crate::host::{Facts, InterfaceName};
use crate::k8s::model::Pod;

/// Links that are remembered; a node has a few hundred pods.
const MAX_LINKS: usize = 16_384;

/// Pods by the ifindex of their links.
#[derive(Debug, Default)]
pub(super) struct Links {
    known: HashMap<u32, Link>,
    generation: u64,
}

#[derive(Debug)]
struct Link {
    /// The link itself: another one with the same index has another name object.
    interface: Arc<InterfaceName>,
    /// None once two pods were seen to send through it.
    pod: Option<Arc<Pod>>,
}

impl Links {
    /// Moves with every change.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// The only pod that was seen to send through a link.
    pub(super) fn pod(&self, ifindex: u32) -> Option<&Arc<Pod>> {
        self.known.get(&ifindex)?.pod.as_ref()
    }

    /// Notes a pod that sends through a link. A process that entered another pod's network makes
    /// the link nobody's.
    pub(super) fn learn(&mut self, ifindex: u32, interface: &Arc<InterfaceName>, pod: &Arc<Pod>) {
        if let Some(link) = self.known.get_mut(&ifindex) {
            if link.pod.as_ref().is_some_and(|known| known.uid != pod.uid) {
                link.pod = None;
                self.generation += 1;
            }
        } else if self.known.len() < MAX_LINKS {
            let link = Link { interface: Arc::clone(interface), pod: Some(Arc::clone(pod)) };
            self.known.insert(ifindex, link);
            self.generation += 1;
        }
    }

    /// Forgets links that nobody remembers, or that are others by now.
    pub(super) fn keep_current(&mut self, facts: &Facts) {
        let is_current = |ifindex: u32, link: &Link| {
            let held = facts.pod_link(ifindex).and_then(|known| known.interface.as_ref());
            held.is_some_and(|held| Arc::ptr_eq(held, &link.interface))
        };
        let before = self.known.len();
        self.known.retain(|ifindex, link| is_current(*ifindex, link));
        if self.known.len() < before {
            self.generation += 1;
        }
    }
}

impl Batch<'_> {
    /// Notes which pod is behind a link, from what leaves it: a socket of the pod's cgroup, from an
    /// address that is this pod's, all while this link was there. Before the address is known to be
    /// its own, it may be a process that entered another pod's network; where there is no Kubernetes
    /// nobody will ever tell.
    pub(super) fn learn(&mut self, question: &Question<'_>, span: Span) {
        let Some(ifindex) = question.ifindex.filter(|_| question.egress) else { return };
        let pod = question.membership.and_then(|found| found.cgroup()).and_then(|it| it.pod());
        let Some(pod) = pod else { return };
        if self.links.pod(ifindex).is_some_and(|known| known.uid == pod.uid) {
            return;
        }
        let Some(link) = self.lookup.facts.pod_link(ifindex) else { return };
        let Some(interface) = link.interface.as_ref().filter(|_| span.since_ns >= link.since_ns)
        else {
            return;
        };
        let is_its_own = match self.lookup.holder(question.owner, span.until_ns) {
            End::Pod(_, holder) => holder.uid == pod.uid,
            _ => !self.lookup.kubernetes,
        };
        if !is_its_own {
            return;
        }
        self.links.learn(ifindex, interface, pod);
    }
}
