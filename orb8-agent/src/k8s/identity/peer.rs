//! Who the other end is: by its address at the time, and by what hides behind it.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Batch, Began, Question, Sides};
use crate::event::{Attribution, End, How, Reason};

impl Batch<'_> {
    /// The other end at a time.
    pub(super) fn peer(
        &self,
        question: &Question<'_>,
        sides: Option<&Sides>,
        owner: &End,
        at_ns: u64,
    ) -> End {
        if question.peer.is_loopback() {
            return self.beside(question, owner);
        }
        if let Some(real) = sides.and_then(|sides| sides.hidden_peer(question.peer)) {
            return self.hidden_by_mask(real, at_ns);
        }
        let began = sides.map_or(question.began, |sides| sides.began);
        match self.lookup.holder(question.peer, at_ns) {
            End::Node(how, node) if self.may_hide_a_pod(question.peer, began) => {
                End::Node(How { attribution: Attribution::Masqueraded, ..how }, node)
            }
            other => other,
        }
    }

    /// The other end by its address, given that connection tracking knows several whose address this
    /// one may be. Another node's says already that it may hide somebody.
    pub(super) fn unless_masked_peer(&self, question: &Question<'_>, peer: End) -> End {
        match peer {
            End::Node(how, _)
                if how.attribution == Attribution::Address && question.began != Began::Owner =>
            {
                End::unknown(Reason::AddressAmbiguous)
            }
            other => other,
        }
    }

    /// Whether another node's address may stand for a pod there: what the owner dialled itself is
    /// that node, what dialled the owner, be it a pod or this host, may be anybody there.
    fn may_hide_a_pod(&self, address: IpAddr, began: Began) -> bool {
        began != Began::Owner && !self.lookup.is_local(address)
    }

    /// Who is at a loopback address: somebody in the owner's own network namespace. That of a pod's
    /// process is the pod's where both ends are loopback addresses; one that has entered another
    /// network is not told apart, so this is known by the address and never by the cgroup.
    fn beside(&self, question: &Question<'_>, owner: &End) -> End {
        let own = || End::Node(How::by(Attribution::Address), Arc::clone(self.lookup.own_node));
        match owner {
            End::Pod(_, pod) => match pod.identity() {
                Some(identity) if identity.host_network => own(),
                Some(_) if question.owner.is_loopback() => {
                    End::Pod(How::by(Attribution::Address), Arc::clone(pod))
                }
                Some(_) => End::unknown(Reason::AddressAmbiguous),
                None => End::unknown(Reason::PodUnknown),
            },
            End::Node(..) => own(),
            // A container may have a network of its own; the path does not tell.
            End::Process(_) if !is_in_container(question) => own(),
            End::Unknown(_) | End::External(_) | End::Service(..) | End::Process(_) => {
                End::unknown(Reason::AddressAmbiguous)
            }
        }
    }
}

fn is_in_container(question: &Question<'_>) -> bool {
    let cgroup = question.membership.and_then(|found| found.cgroup());
    let placement = cgroup.and_then(|cgroup| cgroup.placement.as_ref());
    placement.is_some_and(|found| found.container.is_some())
}
