//! The one place that says who the ends of a flow are.
//!
//! A pure function of what is known in memory: cgroups, links to pods, addresses with the times at
//! which they were held, Services, and the kernel's translations. It waits for nothing, allocates
//! nothing and reads no clock; what it does not know it says, with the reason. It never rewrites an
//! address and never prefers a likely name to a certain one.

mod enricher;
mod links;
mod owner;
mod peer;
mod service;
mod sides;
mod uses;

use std::net::IpAddr;
use std::sync::Arc;

use crate::cgroup::{Cgroups, Membership};
use crate::conntrack::{Match, Translation, Translations, Tuple};
use crate::event::{Attribution, End, Ends, How, Reason, Scope};
use crate::host::{Facts, HostFacts, HostReader};
use crate::k8s::model::Node;
use crate::k8s::registry::{Holder, Registry, View};
use crate::k8s::status::Resource;

pub use enricher::OwnerEnricher;
use links::Links;
use sides::Sides;
use uses::Uses;

/// What can hold an address.
const HOLDERS: &[Resource] = &[Resource::Pods, Resource::Nodes, Resource::Services];
const PODS: &[Resource] = &[Resource::Pods];
const NODES: &[Resource] = &[Resource::Nodes];
const SERVICES: &[Resource] = &[Resource::Services];

/// What identities are made of.
#[derive(Clone, Debug)]
pub struct Knowledge {
    /// Pods, nodes, Services.
    pub registry: Arc<Registry>,
    /// Whether the Kubernetes API is asked at all.
    pub kubernetes: bool,
    /// Addresses and links of this host.
    pub facts: Arc<HostFacts>,
    /// Paths of cgroups, as memberships show them.
    pub cgroups: Cgroups,
    /// What the kernel makes of addresses.
    pub translations: Translations,
}

impl Knowledge {
    /// That of a host without Kubernetes, cgroups and translations, as far as the facts go.
    #[must_use]
    pub fn of_host(facts: Arc<HostFacts>) -> Self {
        Self {
            registry: Registry::shared("", 0),
            kubernetes: false,
            facts,
            cgroups: Cgroups::default(),
            translations: Translations::empty(0),
        }
    }
}

impl Knowledge {
    /// Who held an address for the whole of a time.
    #[must_use]
    pub fn who(&self, address: IpAddr, span: Span) -> End {
        let (facts, own_node) = (self.facts.snapshot(), self.registry.own_node());
        let lookup = Lookup {
            view: self.registry.read(),
            facts: &facts,
            kubernetes: self.kubernetes,
            own_node: &own_node,
            uses: &mut Uses::default(),
        };
        over(span, |at_ns| lookup.holder(address, at_ns))
    }
}

/// Who sent the first packet of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Began {
    /// Not known: it was on its way before it was seen.
    #[default]
    Unknown,
    /// The owner of the flow.
    Owner,
    /// The other end.
    Peer,
}

/// What there is to ask of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The interface that it was counted at; none where it was counted at a socket.
    pub ifindex: Option<u32>,
    /// The owner sends.
    pub egress: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// The owner's address.
    pub owner: IpAddr,
    /// The address of the other end.
    pub peer: IpAddr,
    /// Ports of the owner and of the other end, where packets have them.
    pub ports: Option<(u16, u16)>,
    /// The cgroup of the owner's socket.
    pub membership: Option<&'a Arc<Membership>>,
    /// What is known of whose traffic it is.
    pub scope: Scope,
    /// Who sent first.
    pub began: Began,
    /// What is known already of its translation.
    pub translation: Option<&'a Arc<Translation>>,
    /// When its first packet was seen (CLOCK_MONOTONIC nanoseconds), if that opened its connection.
    pub opened_ns: Option<u64>,
}

impl Question<'_> {
    /// The packet as the kernel's connection tracking would write it down.
    fn tuple(&self) -> Tuple {
        let (owner_port, peer_port) = self.ports.unwrap_or((0, 0));
        let (owner, peer) = ((self.owner, owner_port).into(), (self.peer, peer_port).into());
        let (src, dst) = if self.egress { (owner, peer) } else { (peer, owner) };
        Tuple { protocol: self.protocol, src, dst }
    }
}

/// The time over which packets were counted, CLOCK_MONOTONIC nanoseconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Of the first.
    pub since_ns: u64,
    /// Of the last.
    pub until_ns: u64,
}

impl Span {
    /// That of one packet.
    #[must_use]
    pub const fn at(at_ns: u64) -> Self {
        Self { since_ns: at_ns, until_ns: at_ns }
    }
}

/// What is known of a flow.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Who, and which Service was asked for.
    pub ends: Ends,
    /// What the kernel's connection tracking made of the addresses.
    pub translation: Option<Arc<Translation>>,
    /// The addresses hide that it only passes through this host.
    pub forwarded: bool,
    /// Several translations could be meant; none is told, also where one was known before.
    pub doubtful: bool,
    /// An answer is on its way that changes nothing else: ask again.
    pub pending: bool,
}

/// Answers, from what is known at the moment of each batch.
#[derive(Debug)]
pub struct Resolver {
    known: Knowledge,
    facts: HostReader,
    links: Links,
    uses: Uses,
    own_node: Arc<Node>,
}

impl Resolver {
    /// One that asks these.
    #[must_use]
    pub fn new(known: Knowledge) -> Self {
        let facts = HostReader::new(Arc::clone(&known.facts));
        let own_node = known.registry.own_node();
        Self { known, facts, links: Links::default(), uses: Uses::default(), own_node }
    }

    /// Questions of one batch, under one lock; changes of the registry wait for its end.
    pub fn batch(&mut self) -> Batch<'_> {
        let facts = self.facts.get();
        self.links.keep_current(facts);
        // Before the view: what changes in between is looked for with the next batch.
        let generation = self.known.registry.generation();
        let view = self.known.registry.read();
        self.uses.keep_current(&view, generation);
        let lookup = Lookup {
            view,
            facts,
            kubernetes: self.known.kubernetes,
            own_node: &self.own_node,
            uses: &mut self.uses,
        };
        Batch { lookup, known: &self.known, links: &mut self.links }
    }
}

/// One batch of questions.
pub struct Batch<'a> {
    lookup: Lookup<'a>,
    known: &'a Knowledge,
    links: &'a mut Links,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl Batch<'_> {
    /// A number that moves when answers may have changed, translations left aside, and what is
    /// pending; never 0. A cgroup that comes or goes changes no answer that is not pending.
    #[must_use]
    pub fn generation(&self) -> u32 {
        let sum = self
            .known
            .registry
            .generation()
            .wrapping_add(self.known.facts.generation())
            .wrapping_add(self.links.generation())
            .wrapping_add(self.lookup.uses.generation());
        // Its low bits are enough to see that it has moved.
        u32::try_from(sum & u64::from(u32::MAX >> 1)).unwrap_or(0) + 1
    }

    /// Whether an address is known to be none of this host's: what has it only passes through.
    #[must_use]
    pub fn is_elsewhere(&self, address: IpAddr) -> bool {
        self.lookup.facts.is_local(address) == Some(false)
    }

    /// Whether the kernel translates anything at all.
    #[must_use]
    pub fn has_translations(&self) -> bool {
        !self.known.translations.is_empty()
    }

    /// The translation of a connection that the kernel may have told since: one that all packets
    /// may be of, else that of the last.
    #[must_use]
    pub fn translation(&self, question: &Question<'_>, span: Span) -> Match {
        let by_loopback = question.owner.is_loopback() || question.peer.is_loopback();
        if by_loopback && !owner::is_of_host(question) {
            // The kernel notes that of the host's own network, and each network has such addresses.
            return Match::None;
        }
        let (tuple, opened_ns) = (question.tuple(), question.opened_ns);
        self.known.translations.find_over(&tuple, span.since_ns, span.until_ns, opened_ns)
    }

    /// Whether a flow's translation, as far as it is known, was that of its packets until a time.
    #[must_use]
    pub fn holds_at(&self, question: &Question<'_>, at_ns: u64) -> bool {
        let Some(held) = question.translation else { return true };
        held.holds_at(at_ns)
            && (!may_be_others(held, question, at_ns)
                || match self.translation(question, Span::at(at_ns)) {
                    // If it is forgotten by now, what followed is found alone.
                    Match::One(found) => found.is_like(held) || !is_before(held, question),
                    Match::None => true,
                    Match::Several => false,
                })
    }

    /// Whether packets of a flow at a time may be of several translations, given that they were of
    /// one before.
    #[must_use]
    pub fn is_doubtful_at(&self, question: &Question<'_>, at_ns: u64) -> bool {
        question.translation.is_none_or(|held| may_be_others(held, question, at_ns))
            && matches!(self.translation(question, Span::at(at_ns)), Match::Several)
    }

    /// Who the ends of a flow were for the whole of a time.
    pub fn resolve(&mut self, question: &Question<'_>, span: Span) -> Answer {
        let kept = question.translation.filter(|_| self.holds_at(question, span.until_ns));
        let found = kept
            .map_or_else(|| self.translation(question, span), |kept| Match::One(Arc::clone(kept)));
        self.answer(question, span, found)
    }

    /// Who the ends of a flow were, given that its packets may be of several translations, also if
    /// they are forgotten by now.
    pub fn resolve_in_doubt(&mut self, question: &Question<'_>, span: Span) -> Answer {
        self.answer(question, span, Match::Several)
    }

    fn answer(&mut self, question: &Question<'_>, span: Span, found: Match) -> Answer {
        let is_doubtful = matches!(found, Match::Several);
        let translation = found.into_one();
        let sides = translation.as_deref().map(|found| Sides::of(question, found));
        self.learn(question, span);
        let owner = over(span, |at_ns| self.owner(question, sides.as_ref(), at_ns));
        self.note_use(question, &owner, span);
        let peer = over(span, |at_ns| self.peer(question, sides.as_ref(), &owner, at_ns));
        let asked = self.asked(question, &peer, translation.as_deref(), span);
        let (owner, peer) = if is_doubtful {
            (self.unless_masked_owner(question, owner), self.unless_masked_peer(question, peer))
        } else {
            (owner, peer)
        };
        let waits = |found: &&Arc<Membership>| match found.cgroup() {
            Some(cgroup) => cgroup.awaits_pod(),
            None => !found.is_gone(),
        };
        Answer {
            forwarded: self.passes_through(question, sides.as_ref()),
            doubtful: is_doubtful,
            pending: question.membership.as_ref().is_some_and(waits),
            ends: Ends { owner, peer, asked },
            translation,
        }
    }
}

/// Whether packets of a flow at a time may be of another translation than it had: it may have been
/// over by then, or there are no ports that tell one from others.
fn may_be_others(held: &Translation, question: &Question<'_>, at_ns: u64) -> bool {
    question.ports.is_none() || held.may_be_over_at(at_ns)
}

/// Whether a translation was over when the first packet of a flow opened its connection.
fn is_before(held: &Translation, question: &Question<'_>) -> bool {
    question.opened_ns.is_some_and(|opened_ns| held.precedes(opened_ns))
}

/// Looks addresses up.
struct Lookup<'a> {
    view: View<'a>,
    facts: &'a Facts,
    kubernetes: bool,
    own_node: &'a Arc<Node>,
    uses: &'a mut Uses,
}

impl Lookup<'_> {
    /// Whether an address is one of this host's, and not a Service's that it answers for.
    fn is_local(&self, address: IpAddr) -> bool {
        self.facts.is_own(address)
    }

    /// By an address as the API told of it: others may have taken it while the API is not heard.
    fn by_address(&self, resources: &[Resource], at_ns: u64) -> How {
        let is_told = resources.iter().all(|resource| self.view.is_in_touch(*resource, at_ns));
        let reason = if is_told { Reason::None } else { Reason::ApiNotSynced };
        How { reason, ..How::by(Attribution::Address) }
    }

    /// Who held an address at a time.
    fn holder(&self, address: IpAddr, at_ns: u64) -> End {
        let own = || End::Node(How::by(Attribution::Address), Arc::clone(self.own_node));
        let told = |resources: &[Resource]| self.by_address(resources, at_ns);
        let held = |resources: &[Resource], current: bool| {
            let reused = How { attribution: Attribution::AddressReused, ..told(resources) };
            if current { told(resources) } else { reused }
        };
        match self.view.holder(address, at_ns) {
            Holder::Pod { pod, current } => End::Pod(held(PODS, current), Arc::clone(pod)),
            Holder::Service { service, current } => {
                End::Service(held(SERVICES, current), Arc::clone(service))
            }
            Holder::Node { node, current } if current && node.name == self.own_node.name => own(),
            Holder::Node { node, current } => End::Node(held(NODES, current), Arc::clone(node)),
            Holder::Ambiguous | Holder::InCluster | Holder::Outside | Holder::NotSynced
                if self.is_local(address) =>
            {
                own()
            }
            Holder::Ambiguous => self.user(address, at_ns),
            Holder::InCluster => End::unknown(Reason::AddressUnknown),
            Holder::Outside | Holder::NotSynced if is_shared(address) => {
                End::unknown(Reason::AddressUnknown)
            }
            Holder::Outside => End::External(told(HOLDERS)),
            Holder::NotSynced if self.kubernetes => End::unknown(Reason::ApiNotSynced),
            // Without the host's own addresses, inside and outside are not told apart.
            Holder::NotSynced if self.facts.is_local(address).is_none() => {
                End::unknown(Reason::NoKubernetes)
            }
            Holder::NotSynced => End::External(How::not(Reason::NoKubernetes)),
        }
    }

    /// Of those who may have held an address at a time, the only one that was seen to use it.
    fn user(&self, address: IpAddr, at_ns: u64) -> End {
        let Some((pod, current)) = self.uses.find(address, at_ns, &self.view) else {
            return End::unknown(Reason::AddressAmbiguous);
        };
        let attribution = if current { Attribution::Address } else { Attribution::AddressReused };
        End::Pod(How::by(attribution), Arc::clone(pod))
    }
}

/// Addresses that stand for many, or for whoever is on the link.
const fn is_shared(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_multicast() || address.is_broadcast() || address.is_unspecified()
        }
        IpAddr::V6(address) => {
            address.is_multicast() || address.is_unspecified() || address.is_unicast_link_local()
        }
    }
}

/// Who it was at both ends of a time; two different ones are nobody.
fn over(span: Span, mut at: impl FnMut(u64) -> End) -> End {
    let last = at(span.until_ns);
    if span.since_ns == span.until_ns || last.is_unknown() {
        return last;
    }
    let first = at(span.since_ns);
    if first.is_same(&last) {
        last
    } else if first.is_unknown() {
        first
    } else {
        End::unknown(Reason::AddressAmbiguous)
    }
}

#[cfg(test)]
mod tests;
