//! Which Service was asked for: by the address that was dialled, or by what the kernel noted of it
//! before it was translated.

use std::net::SocketAddr;

use super::{Batch, Began, Question};
use crate::conntrack::Translation;
use crate::event::{Asked, End, Scope};
use crate::k8s::services::{ServiceHit, Verdict};

impl Batch<'_> {
    /// The Service of a flow.
    pub(super) fn asked(
        &self,
        question: &Question<'_>,
        peer: &End,
        translation: Option<&Translation>,
    ) -> Option<Asked> {
        if let Some(found) = translation.filter(|found| found.rewrites_destination()) {
            let dialled = found.original.dst;
            // Somebody was chosen, whoever is ready now.
            let asked = |hit| Asked { verdict: Verdict::Ok, ..asked(hit, dialled.port()) };
            return self.dialled(dialled, question.protocol).map(asked);
        }
        let (owner_port, peer_port) = question.ports?;
        let own = self.lookup.view.service(question.peer, peer_port, question.protocol);
        let (hit, port) = match own {
            Some(hit) => (Some(hit), peer_port),
            None if question.began == Began::Owner && matches!(peer, End::Node(..)) => {
                (self.lookup.view.node_port(peer_port, question.protocol), peer_port)
            }
            None if self.is_dialled_here(question) => {
                (self.lookup.view.node_port(owner_port, question.protocol), owner_port)
            }
            None => (None, 0),
        };
        hit.map(|hit| asked(hit, port))
    }

    /// The Service at an address as a client dials it.
    fn dialled(&self, address: SocketAddr, protocol: u8) -> Option<ServiceHit<'_>> {
        let own = self.lookup.view.service(address.ip(), address.port(), protocol);
        own.or_else(|| self.lookup.view.node_port(address.port(), protocol))
    }

    /// Whether somebody outside dials an address of this node behind which nobody listens.
    fn is_dialled_here(&self, question: &Question<'_>) -> bool {
        let at_uplink = question.ifindex.is_some_and(|it| self.lookup.facts.pod_link(it).is_none());
        at_uplink
            && question.began == Began::Peer
            && question.scope != Scope::Local
            && self.lookup.is_local(question.owner)
    }
}

fn asked(hit: ServiceHit<'_>, port: u16) -> Asked {
    let service = std::sync::Arc::clone(hit.service);
    Asked { service, port, kind: hit.kind, verdict: hit.verdict }
}
