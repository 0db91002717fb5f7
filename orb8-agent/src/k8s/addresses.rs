//! Who held an address when: each address has tenures, and a tenure says how sure it is.
//!
//! The API tells late and at times not at all, so a tenure has an inner interval, in which the
//! holder is sure, and an outer one, in which it is possible. An answer is given only where nobody
//! else can have been it; two that can be are [`Found::Ambiguous`]. Nothing here reads a clock or
//! talks to the API.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use crate::k8s::model::{Node, Pod, Service};

/// An end that has not been told.
pub(crate) const OPEN: u64 = u64::MAX;

/// How long containers may go on after the API forgot their pod: a kubelet that runs ends them
/// within seconds, and one that does not gives their address to nobody.
pub(crate) const RUNS_ON_NS: u64 = 120 * 1_000_000_000;

/// Ended tenures of one address that are kept; the one that ended first goes. Those that go on are
/// as many as hold it: without one of them another would be taken for the only one.
const MAX_ENDED_HERE: usize = 16;

/// What can hold an address.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// A pod that has its own network namespace.
    Pod(Arc<Pod>),
    /// A node, as its own.
    Node(Arc<Node>),
    /// A Service, as its ClusterIP or as an address of it outside of the cluster.
    Service(Arc<Service>),
}

impl Who {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pod(one), Self::Pod(two)) => Arc::ptr_eq(one, two),
            (Self::Node(one), Self::Node(two)) => one.name == two.name,
            (Self::Service(one), Self::Service(two)) => {
                one.namespace == two.namespace && one.name == two.name
            }
            (Self::Pod(_) | Self::Node(_) | Self::Service(_), _) => false,
        }
    }
}

/// What the API told of a holder that has an address now. CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The earliest time at which it can have had the address.
    pub(crate) from_ns: u64,
    /// It surely had it from this on; [`OPEN`] if the API may tell of an address it has lost.
    pub(crate) sure_from_ns: u64,
    /// When this was told.
    pub(crate) told_ns: u64,
    /// It has been so since this at the earliest.
    pub(crate) since_ns: u64,
    /// It is about to go.
    pub(crate) leaving: bool,
    /// Since this at the earliest.
    pub(crate) leaving_since_ns: u64,
    /// None of its containers runs any more, so that the address may be free already.
    pub(crate) quiet: bool,
}

/// When a holder ended. CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Not before this.
    pub(crate) sure_until_ns: u64,
    /// When it was told.
    pub(crate) told_ns: u64,
    /// The API forgot it while its containers ran: they may keep the address for some time.
    pub(crate) runs_on: bool,
}

/// One holder of an address.
#[derive(Debug)]
pub(crate) struct Tenure {
    pub(crate) who: Who,
    from_ns: u64,
    sure_from_ns: u64,
    sure_until_ns: u64,
    until_ns: u64,
    leaving_ns: u64,
    quiet_ns: u64,
    /// When the API told last that it holds the address.
    told_ns: u64,
    /// When the API told that it does not.
    ended_ns: u64,
}

impl Tenure {
    fn begin(who: Who, claim: Claim) -> Self {
        let told_ns = claim.told_ns;
        let mut tenure = Self {
            who,
            from_ns: claim.from_ns.min(told_ns),
            sure_from_ns: claim.sure_from_ns,
            sure_until_ns: OPEN,
            until_ns: OPEN,
            leaving_ns: OPEN,
            quiet_ns: OPEN,
            told_ns,
            ended_ns: OPEN,
        };
        tenure.tell(claim);
        tenure
    }

    fn tell(&mut self, claim: Claim) {
        let quiet_ns = if claim.quiet { claim.since_ns } else { OPEN };
        let leaving_ns = if claim.leaving { claim.leaving_since_ns } else { OPEN };
        let since = |held_ns: u64, now_ns| if now_ns == OPEN { OPEN } else { held_ns.min(now_ns) };
        self.leaving_ns = since(self.leaving_ns, leaving_ns.min(quiet_ns));
        self.quiet_ns = since(self.quiet_ns, quiet_ns);
        self.sure_from_ns = self.sure_from_ns.min(claim.sure_from_ns);
        self.told_ns = claim.told_ns;
    }

    /// An end that was not announced may have come any time after the API last told of the holder.
    fn end(&mut self, end: End) {
        self.leaving_ns = self.leaving_ns.min(self.told_ns);
        self.sure_until_ns = end.sure_until_ns.max(self.sure_from_ns).min(end.told_ns);
        self.quiet_ns = self.quiet_ns.min(self.sure_until_ns);
        self.until_ns = end.told_ns.saturating_add(if end.runs_on { RUNS_ON_NS } else { 0 });
        self.ended_ns = end.told_ns;
    }

    /// Somebody else has had the address since then.
    fn runs_until(&mut self, at_ns: u64) {
        self.until_ns = self.until_ns.min(at_ns.max(self.ended_ns));
    }

    fn reopen(&mut self, claim: Claim) {
        (self.sure_until_ns, self.until_ns, self.ended_ns) = (OPEN, OPEN, OPEN);
        self.tell(claim);
    }

    /// What was told of an earlier holder is forgotten: before its end, this one was merely possible
    /// beside it, and is not the one that is left.
    fn yield_to(&mut self, forgotten_until_ns: u64) {
        self.from_ns = self.from_ns.max(forgotten_until_ns.min(self.sure_from_ns));
    }

    const fn is_live(&self) -> bool {
        self.ended_ns == OPEN
    }

    fn is_sure(&self, at_ns: u64) -> bool {
        (self.sure_from_ns..=self.sure_until_ns).contains(&at_ns)
    }

    fn is_possible(&self, at_ns: u64) -> bool {
        (self.from_ns..=self.until_ns).contains(&at_ns)
    }

    fn is_leaving(&self, at_ns: u64) -> bool {
        self.leaving_ns <= at_ns
    }
}

/// Who held an address at a time.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// Nobody that is known.
    Nobody,
    /// This one, and whether nobody else has the address now.
    One(&'a Tenure, bool),
    /// More than one can have been it.
    Ambiguous,
}

/// Tenures by address. Bounded by the holders that are kept and by `max_ended`.
#[derive(Debug)]
pub(crate) struct Addresses {
    tenures: HashMap<IpAddr, Vec<Tenure>>,
    /// Addresses with an ended tenure, in the order of the ends.
    ended: VecDeque<(u64, IpAddr)>,
    max_ended: usize,
    /// When the last of the forgotten holders ended: who comes later may have been possible beside
    /// one of them.
    forgotten_until_ns: u64,
    /// Pods without an address yet, by node: uid and the earliest time of an address.
    awaiting: HashMap<Arc<str>, Vec<(Box<str>, u64)>>,
}

impl Addresses {
    pub(crate) fn new(max_ended: usize) -> Self {
        Self {
            tenures: HashMap::new(),
            ended: VecDeque::new(),
            max_ended,
            forgotten_until_ns: 0,
            awaiting: HashMap::new(),
        }
    }

    /// `who` has `address`. True if that was not known before.
    pub(crate) fn claim(&mut self, address: IpAddr, who: Who, claim: Claim) -> bool {
        let tenures = self.tenures.entry(address).or_default();
        if let Some(held) = tenures.iter_mut().find(|t| t.is_live() && t.who.is(&who)) {
            let before = (held.leaving_ns, held.quiet_ns);
            held.who = who;
            held.tell(claim);
            return before != (held.leaving_ns, held.quiet_ns);
        }
        if let Some(at) = reopened(tenures, &who) {
            tenures[at].reopen(claim);
            return true;
        }
        // Whoever ran on has lost the address now at the latest.
        for ended in tenures.iter_mut().filter(|tenure| !tenure.is_live()) {
            ended.runs_until(claim.told_ns);
        }
        let mut begun = Tenure::begin(who, claim);
        begun.yield_to(self.forgotten_until_ns.min(claim.told_ns));
        tenures.push(begun);
        forget_oldest(tenures);
        true
    }

    /// `who` has `address` no longer. True if it had it.
    pub(crate) fn release(&mut self, address: IpAddr, who: &Who, end: End) -> bool {
        let Some(tenures) = self.tenures.get_mut(&address) else { return false };
        let Some(held) = tenures.iter_mut().find(|t| t.is_live() && t.who.is(who)) else {
            return false;
        };
        held.end(end);
        self.ended.push_back((end.told_ns, address));
        if self.ended.len() > self.max_ended {
            self.forget_first();
        }
        true
    }

    /// `who` has the addresses `now`, and those of `before` that are not among them no longer.
    pub(crate) fn pass(
        &mut self,
        before: &[IpAddr],
        now: &[IpAddr],
        who: &Who,
        claim: Claim,
        end: End,
    ) {
        for address in before.iter().filter(|address| !now.contains(address)) {
            self.release(*address, who, end);
        }
        for address in now {
            self.claim(*address, who.clone(), claim);
        }
    }

    /// Somebody of whom nothing is kept has `address`: whoever ran on has lost it.
    pub(crate) fn taken(&mut self, address: IpAddr, told_ns: u64) -> bool {
        let mut changed = false;
        let ended = self.tenures.get_mut(&address).into_iter().flatten();
        for tenure in ended.filter(|tenure| !tenure.is_live()) {
            changed |= tenure.until_ns > told_ns.max(tenure.ended_ns);
            tenure.runs_until(told_ns);
        }
        changed
    }

    /// `who` had `address` for some time before it ended, which was never told while it had it.
    pub(crate) fn passed(&mut self, address: IpAddr, who: &Who, claim: Claim) -> bool {
        let known =
            self.tenures.get(&address).is_some_and(|held| held.iter().any(|t| t.who.is(who)));
        if known {
            return false;
        }
        let end = End { sure_until_ns: claim.told_ns, told_ns: claim.told_ns, runs_on: false };
        let brief = Claim { quiet: true, since_ns: claim.from_ns, ..claim };
        self.claim(address, who.clone(), brief) && self.release(address, who, end)
    }

    /// A pod of `node` that has no address yet may have any that becomes free.
    pub(crate) fn await_address(&mut self, node: &Arc<str>, uid: &str, from_ns: u64) {
        let waiting = self.awaiting.entry(Arc::clone(node)).or_default();
        if !waiting.iter().any(|(of, _)| **of == *uid) {
            waiting.push((uid.into(), from_ns));
        }
    }

    /// Whether the pod is still without an address.
    pub(crate) fn awaits(&self, pod: &Pod) -> bool {
        let node = pod.identity().and_then(|identity| identity.node.as_ref());
        let waiting = node.and_then(|node| self.awaiting.get(&node.name));
        waiting.is_some_and(|pods| pods.iter().any(|(uid, _)| **uid == *pod.uid))
    }

    /// The pod has one now, or never will.
    pub(crate) fn awaits_no_longer(&mut self, node: &str, uid: &str) {
        if let Some(waiting) = self.awaiting.get_mut(node) {
            waiting.retain(|(of, _)| **of != *uid);
            if waiting.is_empty() {
                self.awaiting.remove(node);
            }
        }
    }

    /// Forgets what ended before `before_ns`. True if something did.
    pub(crate) fn expire(&mut self, before_ns: u64) -> bool {
        let held = self.ended.len();
        while self.ended.front().is_some_and(|(ended_ns, _)| *ended_ns < before_ns) {
            self.forget_first();
        }
        held != self.ended.len()
    }

    /// Forgets that before `until_ns` others may have come and gone without being told of.
    pub(crate) fn forget_blind(&mut self, until_ns: u64) {
        self.forgotten_until_ns = self.forgotten_until_ns.max(until_ns);
        self.tenures.values_mut().flatten().for_each(|tenure| tenure.yield_to(until_ns));
    }

    fn forget_first(&mut self) {
        let Some((ended_ns, address)) = self.ended.pop_front() else { return };
        let Some(tenures) = self.tenures.get_mut(&address) else { return };
        let gone = tenures.iter().filter(|tenure| tenure.ended_ns <= ended_ns);
        let Some(until_ns) = gone.map(|tenure| tenure.until_ns).max() else { return };
        tenures.retain(|tenure| tenure.ended_ns > ended_ns);
        tenures.iter_mut().for_each(|tenure| tenure.yield_to(until_ns));
        self.forgotten_until_ns = self.forgotten_until_ns.max(until_ns);
        if tenures.is_empty() {
            self.tenures.remove(&address);
        }
    }

    /// Who held `address` at `at_ns`, as far as it can be told. `blind`: others may have come and
    /// gone at that time without being told of.
    pub(crate) fn find(&self, address: IpAddr, at_ns: u64, blind: bool) -> Found<'_> {
        self.tenures.get(&address).map_or(Found::Nobody, |held| self.among(held, at_ns, blind))
    }

    /// Whether it is in doubt who held `address` at each of these times, with which comes whether
    /// others may have come and gone untold.
    pub(crate) fn are_doubtful(&self, address: IpAddr, times: [(u64, bool); 2]) -> [bool; 2] {
        let Some(tenures) = self.tenures.get(&address) else { return [false; 2] };
        times.map(|(at_ns, blind)| matches!(self.among(tenures, at_ns, blind), Found::Ambiguous))
    }

    /// Whether `pod` may have held `address` at `at_ns`; if so, whether nobody else has it now.
    pub(crate) fn may_hold(&self, address: IpAddr, pod: &Arc<Pod>, at_ns: u64) -> Option<bool> {
        let tenures = self.tenures.get(&address)?;
        let is_pod =
            |tenure: &&Tenure| matches!(&tenure.who, Who::Pod(held) if Arc::ptr_eq(held, pod));
        let mut its = tenures.iter().filter(is_pod);
        its.any(|tenure| tenure.is_possible(at_ns))
            .then(|| !tenures.iter().any(|tenure| tenure.is_live() && !is_pod(&tenure)))
    }

    /// Whether it is kept that `pod` has or had `address`.
    pub(crate) fn remembers(&self, address: IpAddr, pod: &Arc<Pod>) -> bool {
        let mut tenures = self.tenures.get(&address).into_iter().flatten();
        tenures.any(|tenure| matches!(&tenure.who, Who::Pod(held) if Arc::ptr_eq(held, pod)))
    }

    fn among<'a>(&self, tenures: &'a [Tenure], at_ns: u64, blind: bool) -> Found<'a> {
        let possible = || tenures.iter().filter(|t| t.is_possible(at_ns));
        let sure = || possible().filter(|t| t.is_sure(at_ns));
        let only = match (sure().count(), possible().count()) {
            (_, 0) => return Found::Nobody,
            (0, 1) if !blind => possible().next(),
            (0, _) => None,
            (1, 1) => sure().next(),
            // Nobody else can have what one holds that is alive and well.
            (1, _) => sure().find(|t| !t.is_leaving(at_ns)),
            (_, _) => {
                let mut staying = sure().filter(|t| !t.is_leaving(at_ns));
                staying.next().filter(|_| staying.next().is_none())
            }
        };
        let Some(only) = only else { return Found::Ambiguous };
        let passed_on = tenures.iter().any(|t| t.is_live() && !t.who.is(&only.who));
        Found::One(only, !passed_on)
    }

    /// Whether the holder's containers are gone, or the API forgot it, and a new pod that may get
    /// its address has none that is known yet: one of its node where the address is of that node's
    /// own range (`is_nodes`), else one of any node.
    pub(crate) fn may_be_taken(
        &self,
        tenure: &Tenure,
        at_ns: u64,
        is_nodes: impl Fn(&Node) -> bool,
    ) -> bool {
        let Who::Pod(pod) = &tenure.who else { return false };
        if tenure.quiet_ns > at_ns || self.awaiting.is_empty() {
            return false;
        }
        let waits = |pods: &Vec<(Box<str>, u64)>| {
            pods.iter().any(|(uid, from_ns)| *from_ns <= at_ns && **uid != *pod.uid)
        };
        let node = pod.identity().and_then(|identity| identity.node.as_ref());
        match node.filter(|node| is_nodes(node)) {
            Some(node) => self.awaiting.get(&node.name).is_some_and(waits),
            None => self.awaiting.values().any(waits),
        }
    }
}

/// Forgets what ended first, where too much has ended.
fn forget_oldest(tenures: &mut Vec<Tenure>) {
    let ended = || (0..tenures.len()).filter(|at| !tenures[*at].is_live());
    if ended().count() <= MAX_ENDED_HERE {
        return;
    }
    if let Some(oldest) = ended().min_by_key(|at| tenures[*at].ended_ns) {
        let until_ns = tenures.remove(oldest).until_ns;
        tenures.iter_mut().for_each(|tenure| tenure.yield_to(until_ns));
    }
}

/// The ended tenure of the same holder, if nobody else had the address after it: the mirror object
/// of a static pod goes and comes back while the pod runs on.
fn reopened(tenures: &[Tenure], who: &Who) -> Option<usize> {
    let last = (0..tenures.len()).max_by_key(|at| tenures[*at].ended_ns)?;
    tenures[last].who.is(who).then_some(last)
}
