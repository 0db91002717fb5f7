//! Which Service was asked for: by the address that was dialled, or by what the kernel noted of it
//! before it was translated.

use std::net::{IpAddr, SocketAddr};

use super::{Batch, Began, Question, Span};
use crate::conntrack::Translation;
use crate::event::{Asked, End, Scope};
use crate::k8s::registry::Holder;
use crate::k8s::services::{ServiceHit, ServiceKind, Verdict};

impl Batch<'_> {
    /// The Service of a flow.
    pub(super) fn asked(
        &self,
        question: &Question<'_>,
        peer: &End,
        translation: Option<&Translation>,
        span: Span,
    ) -> Option<Asked> {
        if let Some(found) = translation.filter(|found| found.rewrites_destination()) {
            let dialled = found.original.dst;
            // Somebody was chosen, whoever is ready now.
            let asked = |hit| Asked { verdict: Verdict::Ok, ..asked(hit, dialled.port()) };
            return self.dialled(dialled, question.protocol, span).map(asked);
        }
        let (owner_port, peer_port) = question.ports?;
        let own = self.at_own_address((question.peer, peer_port).into(), question.protocol, span);
        let node_port = |port| self.at_nodes(port, question.protocol, span);
        let (hit, port) = match own {
            Some(hit) => (Some(hit), peer_port),
            None if question.began == Began::Owner && matches!(peer, End::Node(..)) => {
                (node_port(peer_port), peer_port)
            }
            None if self.is_dialled_here(question) => (node_port(owner_port), owner_port),
            None => (None, 0),
        };
        hit.map(|hit| asked(hit, port))
    }

    /// The Service at an address as a client dials it.
    fn dialled(&self, address: SocketAddr, protocol: u8, span: Span) -> Option<ServiceHit<'_>> {
        let own = self.at_own_address(address, protocol, span);
        own.or_else(|| {
            let is_nodes = self.is_a_nodes(address.ip(), span.until_ns);
            is_nodes.then(|| self.at_nodes(address.port(), protocol, span)).flatten()
        })
    }

    /// The Service at a port of the nodes, if that was its port from the first packet on.
    fn at_nodes(&self, port: u16, protocol: u8, span: Span) -> Option<ServiceHit<'_>> {
        self.lookup.view.node_port(port, protocol, span.since_ns)
    }

    /// The Service at an address of its own, if that was its address for the whole of a time.
    fn at_own_address(
        &self,
        address: SocketAddr,
        protocol: u8,
        span: Span,
    ) -> Option<ServiceHit<'_>> {
        let view = &self.lookup.view;
        let hit = view.service(address.ip(), address.port(), protocol, span.since_ns)?;
        let held = |at_ns| match view.holder(address.ip(), at_ns) {
            Holder::Service { service: then, .. } => {
                then.namespace == hit.service.namespace && then.name == hit.service.name
            }
            // Several Services may share an external address, each with ports of its own.
            Holder::Ambiguous => hit.kind != ServiceKind::ClusterIp,
            _ => true,
        };
        (held(span.until_ns) && held(span.since_ns)).then_some(hit)
    }

    /// Whether node ports are dialled at this address.
    fn is_a_nodes(&self, address: IpAddr, at_ns: u64) -> bool {
        self.lookup.is_local(address)
            || matches!(self.lookup.view.holder(address, at_ns), Holder::Node { .. })
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
