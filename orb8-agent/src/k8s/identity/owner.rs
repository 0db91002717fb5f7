//! Whose traffic it is: by cgroup, else by the link to a pod, else by address.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Batch, Question, Sides};
use crate::event::{Attribution, End, How, Reason, Scope};
use crate::host::PodLink;
use crate::k8s::model::Pod;

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

    /// Who is behind a link to a pod.
    fn behind(&self, ifindex: u32, link: &PodLink, owner: IpAddr, at_ns: u64) -> End {
        let by_link = |pod: &Arc<Pod>| End::Pod(How::by(Attribution::Interface), Arc::clone(pod));
        if let Some(pod) = self.links.pod(ifindex) {
            return by_link(pod);
        }
        let mut found: Option<Arc<Pod>> = None;
        for address in &link.addresses {
            let End::Pod(_, pod) = self.lookup.holder(*address, at_ns) else { continue };
            if found.as_ref().is_some_and(|other| other.uid != pod.uid) {
                return End::unknown(Reason::AddressAmbiguous);
            }
            found = Some(pod);
        }
        if let Some(pod) = found {
            return by_link(&pod);
        }
        match self.lookup.holder(owner, at_ns) {
            end @ End::Pod(..) => end,
            _ => End::unknown(Reason::InterfaceUnknown),
        }
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
            End::External(_) | End::Unknown(_)
                if question.ifindex.is_some() && question.scope == Scope::Local =>
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
        let masked = How::by(Attribution::Masqueraded);
        match self.lookup.holder(real, at_ns) {
            End::Pod(_, pod) => End::Pod(masked, pod),
            End::Node(_, node) => End::Node(masked, node),
            End::External(_) => End::External(masked),
            other => other,
        }
    }

    /// Whether translation hides that a packet at an uplink only passes through this host.
    pub(super) fn passes_through(&self, question: &Question<'_>, sides: Option<&Sides>) -> bool {
        let at_uplink = question.ifindex.is_some_and(|it| self.lookup.facts.pod_link(it).is_none());
        at_uplink && sides.is_some_and(|sides| !self.lookup.is_local(sides.owner.ip()))
    }
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
