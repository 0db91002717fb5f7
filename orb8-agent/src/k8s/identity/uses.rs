//! Which pods of this node were seen to use an address, where the API leaves its holder in doubt.
//!
//! The API writes seconds and tells late. What a pod's own sockets and link tell is to the moment:
//! who had an address before and after had it in between. Only ever chooses among those who may
//! have held it as far as the API tells.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Batch, Lookup, Question, Span};
use crate::event::{Attribution, End};
use crate::k8s::model::Pod;
use crate::k8s::registry::View;

/// Uses that are remembered; the one that was noted first goes, and is counted. Doubt comes with an
/// address that changes hands, and a use is of no more use when the registry forgets that its pod
/// had the address.
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
    /// The registry's, when all were last looked at for what it has forgotten.
    swept: u64,
}

/// A pod had an address for the whole of this time.
#[derive(Debug)]
struct Use {
    pod: Arc<Pod>,
    span: Span,
    /// The times nearest to it that somebody asked about and that it does not hold for.
    asked_before: Cell<Option<u64>>,
    asked_after: Cell<Option<u64>>,
}

impl Uses {
    /// Moves with every change that may alter an answer that was given.
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
        let known = self.known.get(&address)?;
        known.iter().for_each(|used| used.asked_about(at_ns));
        let mut users = known.iter().filter(|used| used.holds_at(at_ns));
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

    /// True if an older one had to go for it.
    fn note(&mut self, address: IpAddr, pod: &Arc<Pod>, span: Span) -> bool {
        let uses = self.known.entry(address).or_default();
        if let Some(known) = uses.iter_mut().find(|known| Arc::ptr_eq(&known.pod, pod)) {
            // A row that goes on extends it at each drain: only who asked about that time asks again.
            self.generation += u64::from(known.extend(span));
            return false;
        }
        uses.push(Use::new(pod, span));
        self.generation += 1;
        self.order.push_back((address, Arc::clone(pod)));
        let is_full = self.order.len() > MAX_USES;
        if is_full && let Some((address, pod)) = self.order.pop_front() {
            forget(&mut self.known, address, &pod);
        }
        is_full
    }

    /// Forgets the uses of which the registry, at this generation, no longer keeps that their pods
    /// had the addresses: it answers for none of their times, and their pods could not go.
    pub(super) fn keep_current(&mut self, view: &View<'_>, generation: u64) {
        if std::mem::replace(&mut self.swept, generation) == generation {
            return;
        }
        let known = &mut self.known;
        self.order.retain(|(address, pod)| {
            let is_current = view.remembers(*address, pod);
            if !is_current {
                forget(known, *address, pod);
            }
            is_current
        });
    }
}

fn forget(known: &mut HashMap<IpAddr, Vec<Use>>, address: IpAddr, pod: &Arc<Pod>) {
    let Some(uses) = known.get_mut(&address) else { return };
    uses.retain(|known| !Arc::ptr_eq(&known.pod, pod));
    if uses.is_empty() {
        known.remove(&address);
    }
}

impl Use {
    fn new(pod: &Arc<Pod>, span: Span) -> Self {
        let (asked_before, asked_after) = (Cell::default(), Cell::default());
        Self { pod: Arc::clone(pod), span, asked_before, asked_after }
    }

    fn holds_at(&self, at_ns: u64) -> bool {
        (self.first_ns()..=self.last_ns()).contains(&at_ns)
    }

    const fn first_ns(&self) -> u64 {
        self.span.since_ns.saturating_sub(APART_NS)
    }

    const fn last_ns(&self) -> u64 {
        self.span.until_ns.saturating_add(APART_NS)
    }

    fn asked_about(&self, at_ns: u64) {
        if at_ns < self.first_ns() {
            self.asked_before.set(self.asked_before.get().max(Some(at_ns)));
        } else if at_ns > self.last_ns() {
            let nearest_ns = self.asked_after.get().map_or(at_ns, |held_ns| held_ns.min(at_ns));
            self.asked_after.set(Some(nearest_ns));
        }
    }

    /// It was so for this time, too. True if somebody asked about a time that is new to it.
    fn extend(&mut self, span: Span) -> bool {
        self.span.since_ns = self.span.since_ns.min(span.since_ns);
        self.span.until_ns = self.span.until_ns.max(span.until_ns);
        let mut was_asked = false;
        for asked in [&self.asked_before, &self.asked_after] {
            if asked.get().is_some_and(|at_ns| self.holds_at(at_ns)) {
                // Whoever asked about times further on asks again, and is noted then.
                asked.set(None);
                was_asked = true;
            }
        }
        was_asked
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
        if times.iter().all(|at_ns| view.may_have_had(address, pod, *at_ns).is_some())
            && uses.note(address, pod, span)
        {
            self.known.registry.count_displaced();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_bounded_and_what_goes_for_another_is_counted() {
        let mut uses = Uses::default();
        let (pod, span) = (Arc::new(Pod::unnamed("a")), Span { since_ns: 1, until_ns: 2 });
        let address = |n: usize| IpAddr::from(u128::try_from(n).unwrap().to_be_bytes());
        let displaced = (0..MAX_USES + 3).filter(|n| uses.note(address(*n), &pod, span)).count();
        assert_eq!((displaced, uses.order.len(), uses.known.len()), (3, MAX_USES, MAX_USES));
        assert!(!uses.has(address(2), &pod, 1), "the first to go");
        assert!(uses.has(address(3), &pod, 1));
    }
}
