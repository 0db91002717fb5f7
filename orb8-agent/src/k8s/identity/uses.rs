//! Which pods of this node were seen to use an address, where the API leaves its holder in doubt.
//!
//! The API writes seconds and tells late. What a pod's own sockets and link tell is to the moment:
//! who had an address before and after had it in between. Only ever chooses among those who may
//! have held it as far as the API tells.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Batch, Lookup, Question, Span};
use crate::event::{Attribution, End};
use crate::k8s::model::Pod;
use crate::k8s::registry::View;

/// Uses that are remembered; the one that was noted first goes. Doubt comes with an address that
/// changes hands, and is over when the registry forgets the first one.
const MAX_USES: usize = 4096;

/// What two ends saw of one packet is this far apart at most: the kernel's ticks are 10 ms or less,
/// and the packet may wait. No network plugin takes an address from one pod and gives it to another
/// in as little time.
const APART_NS: u64 = 20_000_000;

/// Uses by address.
#[derive(Debug, Default)]
pub(super) struct Uses {
    known: HashMap<IpAddr, Vec<Use>>,
    order: VecDeque<(IpAddr, Arc<Pod>)>,
    generation: u64,
}

/// A pod had an address for the whole of this time.
#[derive(Debug)]
struct Use {
    pod: Arc<Pod>,
    span: Span,
}

impl Uses {
    /// Moves with every change.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// The only pod that used `address` at `at_ns`, and whether nobody else has it now.
    pub(super) fn find<'a>(
        &'a self,
        address: IpAddr,
        at_ns: u64,
        view: &View<'_>,
    ) -> Option<(&'a Arc<Pod>, bool)> {
        let mut users = self.known.get(&address)?.iter().filter(|used| used.holds_at(at_ns));
        let only = users.next().filter(|_| users.next().is_none())?;
        Some((&only.pod, view.may_have_had(address, &only.pod, at_ns)?))
    }

    /// Whether it is noted that `pod` used `address` at `at_ns`.
    fn has(&self, address: IpAddr, pod: &Arc<Pod>, at_ns: u64) -> bool {
        let mut known = self.known.get(&address).into_iter().flatten();
        known.any(|known| {
            let Span { since_ns, until_ns } = known.span;
            Arc::ptr_eq(&known.pod, pod) && (since_ns..=until_ns).contains(&at_ns)
        })
    }

    fn note(&mut self, address: IpAddr, pod: &Arc<Pod>, span: Span) {
        self.generation += 1;
        let uses = self.known.entry(address).or_default();
        if let Some(known) = uses.iter_mut().find(|known| Arc::ptr_eq(&known.pod, pod)) {
            let held = &mut known.span;
            held.since_ns = held.since_ns.min(span.since_ns);
            held.until_ns = held.until_ns.max(span.until_ns);
            return;
        }
        uses.push(Use { pod: Arc::clone(pod), span });
        self.order.push_back((address, Arc::clone(pod)));
        if self.order.len() > MAX_USES {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((address, pod)) = self.order.pop_front() else { return };
        if let Some(uses) = self.known.get_mut(&address) {
            uses.retain(|known| !Arc::ptr_eq(&known.pod, &pod));
            if uses.is_empty() {
                self.known.remove(&address);
            }
        }
    }
}

impl Use {
    fn holds_at(&self, at_ns: u64) -> bool {
        let Span { since_ns, until_ns } = self.span;
        (since_ns.saturating_sub(APART_NS)..=until_ns.saturating_add(APART_NS)).contains(&at_ns)
    }
}

impl Batch<'_> {
    /// Notes that a pod used an address, if it is known by more than that address.
    pub(super) fn note_use(&mut self, question: &Question<'_>, owner: &End, span: Span) {
        let End::Pod(how, pod) = owner else { return };
        if !matches!(how.attribution, Attribution::Cgroup | Attribution::Interface) {
            return;
        }
        let (address, times) = (question.owner, [span.since_ns, span.until_ns]);
        let Lookup { view, uses, .. } = &mut self.lookup;
        let doubts = view.are_doubtful(address, times);
        let is_new = |(at_ns, doubt): (u64, bool)| doubt && !uses.has(address, pod, at_ns);
        if !times.into_iter().zip(doubts).any(is_new) {
            return;
        }
        // A process that entered another network uses addresses that its pod never had.
        if times.iter().all(|at_ns| view.may_have_had(address, pod, *at_ns).is_some()) {
            uses.note(address, pod, span);
        }
    }
}
