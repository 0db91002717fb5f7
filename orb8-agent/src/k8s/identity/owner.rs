//! Whose traffic it is: by cgroup, else by the link to a pod, else by address.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Batch, Question, Sides};
use crate::event::{Attribution, End, How, Reason, Scope};
use crate::host::KnownLink;

impl Batch<'_> {
    /// The owner at a time.
    pub(super) fn owner(&self, question: &Question<'_>, sides: Option<&Sides>, at_ns: u64) -> End {
        let unsaid = match by_cgroup(question) {
            Ok(end) => return end,
            Err(unsaid) => unsaid,
        };
        let link =
            question.ifindex.and_then(|index| Some((index, self.lookup.facts.pod_link(index)?)));
        let end = match link {
            Some((index, link)) => self.behind(index, link, question.owner, at_ns),
            None => self.at_host(question, sides, at_ns),
        };
        match end {
            End::Unknown(how)
                if how.reason != Reason::AddressAmbiguous && unsaid != Reason::None =>
            {
                End::unknown(unsaid)
            }
            End::Node(how, node) if how.reason == Reason::None => {
                End::Node(How { reason: unsaid, ..how }, node)
            }
            other => other,
        }
    }

    /// Who is behind a link to a pod, as the link and the address tell together.
    fn behind(&self, ifindex: u32, link: &KnownLink, owner: IpAddr, at_ns: u64) -> End {
        let found = self.by_link(ifindex, link, at_ns);
        match (found, self.lookup.holder(owner, at_ns)) {
            // A process that entered, or an address that somebody borrowed: either may be it.
            (End::Pod(_, pod), End::Pod(_, holder)) if holder.uid != pod.uid => {
                End::unknown(Reason::AddressAmbiguous)
            }
            (found @ End::Pod(..), _) => found,
            (End::Unknown(how), _) if how.reason == Reason::AddressAmbiguous => End::Unknown(how),
            (_, end @ End::Pod(..)) => end,
            (_, End::Unknown(how)) if how.reason == Reason::AddressAmbiguous => End::Unknown(how),
            (_, _) => End::unknown(Reason::InterfaceUnknown),
        }
    }

    /// The pod to which a link leads. A link leads to one network for its whole life, so what is
    /// learned of it later holds for before; another link with the same index tells nothing.
    fn by_link(&self, ifindex: u32, link: &KnownLink, at_ns: u64) -> End {
        if at_ns < link.since_ns {
            return End::unknown(Reason::InterfaceUnknown);
        }
        if let Some(pod) = self.links.pod(ifindex) {
            return End::Pod(How::by(Attribution::Interface), Arc::clone(pod));
        }
        let mut found = None;
        for address in &link.link.addresses {
            let End::Pod(how, pod) = self.lookup.holder(*address, at_ns) else { continue };
            match &found {
                Some(End::Pod(_, other)) if other.uid != pod.uid => {
                    return End::unknown(Reason::AddressAmbiguous);
                }
                Some(_) => {}
                None => found = Some(End::Pod(by_route(how), pod)),
            }
        }
        found.unwrap_or_else(|| End::unknown(Reason::InterfaceUnknown))
    }

    /// Who holds an address at the host itself, or at a socket whose cgroup does not tell.
    fn at_host(&self, question: &Question<'_>, sides: Option<&Sides>, at_ns: u64) -> End {
        if question.owner.is_loopback() {
            // Each network namespace has its own.
            return End::unknown(Reason::AddressAmbiguous);
        }
        if let Some(real) = sides.and_then(|sides| sides.hidden_owner(question.owner)) {
            return self.hidden_by_mask(real, at_ns);
        }
        match self.lookup.holder(question.owner, at_ns) {
            // Maybe a pod's: that somebody took the packet here does not make it the host's.
            End::Unknown(how) if how.reason == Reason::AddressAmbiguous => End::Unknown(how),
            End::External(_) | End::Unknown(_)
                if self.is_at_uplink(question) && question.scope == Scope::Local =>
            {
                // It has a socket here, whatever address that uses.
                let own = Arc::clone(self.lookup.own_node);
                End::Node(How::by(Attribution::Interface), own)
            }
            other => other,
        }
    }

    /// Who stands behind a node's address, where the kernel of this host put it there.
    pub(super) fn hidden_by_mask(&self, real: IpAddr, at_ns: u64) -> End {
        let masked = |how: How| How { attribution: Attribution::Masqueraded, ..how };
        match self.lookup.holder(real, at_ns) {
            End::Pod(how, pod) => End::Pod(masked(how), pod),
            End::Node(how, node) => End::Node(masked(how), node),
            End::External(how) => End::External(masked(how)),
            other => other,
        }
    }

    /// An owner by its address, given that connection tracking knows several whose address this one
    /// may be.
    pub(super) fn unless_masked_owner(&self, question: &Question<'_>, owner: End) -> End {
        match owner {
            End::Node(..) if self.is_at_uplink(question) && question.scope != Scope::Local => {
                End::unknown(Reason::AddressAmbiguous)
            }
            other => other,
        }
    }

    /// Whether it was counted at an interface of the host that is known to be no link to a pod.
    fn is_at_uplink(&self, question: &Question<'_>) -> bool {
        question.ifindex.is_some_and(|index| self.lookup.facts.is_uplink(index))
    }

    /// Whether translation hides that a packet at an uplink only passes through this host.
    pub(super) fn passes_through(&self, question: &Question<'_>, sides: Option<&Sides>) -> bool {
        self.is_at_uplink(question)
            // A host's process sends from a Service's address where the host answers for it (IPVS).
            && sides.is_some_and(|sides| {
                self.lookup.facts.is_local(sides.owner.ip()) != Some(true)
            })
    }
}

/// How a pod behind a link is known that the host's route through it leads to: by the link, as far
/// as the address is beyond doubt the pod's.
fn by_route(how: How) -> How {
    if how == How::by(Attribution::Address) { How::by(Attribution::Interface) } else { how }
}

/// The owner by the cgroup of its socket, or what there is to say about not knowing it.
fn by_cgroup(question: &Question<'_>) -> Result<End, Reason> {
    let Some(membership) = question.membership else { return Err(Reason::None) };
    let Some(cgroup) = membership.cgroup() else { return Err(Reason::CgroupUnknown) };
    let by_cgroup = How::by(Attribution::Cgroup);
    match cgroup.pod() {
        Some(pod) => Ok(End::Pod(by_cgroup, Arc::clone(pod))),
        None if cgroup.is_root() => Err(Reason::RootCgroup),
        None if cgroup.placement.as_ref().is_some_and(|found| found.pod.is_some()) => {
            Ok(End::unknown(Reason::PodUnknown))
        }
        None => Ok(End::Process(by_cgroup)),
    }
}

/// Whether the socket's cgroup tells that the owner has the host's network.
pub(super) fn is_of_host(question: &Question<'_>) -> bool {
    let cgroup = question.membership.and_then(|found| found.cgroup());
    cgroup.is_some_and(|cgroup| match cgroup.pod() {
        Some(pod) => pod.identity().is_some_and(|of| of.host_network),
        None if cgroup.is_root() => false,
        None => {
            let placement = cgroup.placement.as_ref();
            placement.is_none_or(|found| found.pod.is_none() && found.container.is_none())
        }
    })
}
