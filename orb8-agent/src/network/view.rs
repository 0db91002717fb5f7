//! Rows as filters and messages see them: what is known of each end, read when it is asked for.
//!
//! Names of pods, owners and zones are behind locks and may come late, so nothing is copied into the
//! rows; a filter over rows and one over messages made of them mean the same.

use std::net::IpAddr;
use std::sync::Arc;

use orb8_common::network::{FlowKey, PacketFilter, flag};
use orb8_filter::{EndView, FlowView, LabelView, Required, Unlabelled};
use orb8_util::protocol;

use crate::cgroup::{Container, Placement, Process};
use crate::event::{End, EndReason, FlowRecord, FlowState, Scope};
use crate::k8s::model::{Node, Pod, PodIdentity};
use crate::k8s::services::Verdict;
use crate::network::keys;

/// A flow with the node that it was seen on.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The flow.
    pub flow: &'a FlowRecord,
    /// The agent's own node.
    pub node: &'a Arc<Node>,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug)]
pub struct SeenEnd<'a> {
    /// Who it is.
    pub end: &'a End,
    /// The flow, if this is its owner's end: what is known of the local socket is the owner's.
    pub owned: Option<&'a FlowRecord>,
    node: &'a Arc<Node>,
}

impl<'a> Seen<'a> {
    /// One end.
    #[must_use]
    pub fn at(&self, end: orb8_filter::End) -> SeenEnd<'a> {
        let is_source = end == orb8_filter::End::Source;
        let ends = &self.flow.ends;
        if is_source == keys::is_egress(&self.flow.id.key) {
            SeenEnd { end: &ends.owner, owned: Some(self.flow), node: self.node }
        } else {
            SeenEnd { end: &ends.peer, owned: None, node: self.node }
        }
    }
}

impl<'a> SeenEnd<'a> {
    /// An end that is no flow's owner.
    #[must_use]
    pub const fn of(end: &'a End, node: &'a Arc<Node>) -> Self {
        Self { end, owned: None, node }
    }

    fn identity(&self) -> Option<&'a PodIdentity> {
        self.end.pod()?.identity()
    }

    /// The node that it is on, or is.
    #[must_use]
    pub fn on_node(&self) -> Option<&'a Arc<Node>> {
        match self.end {
            End::Node(_, node) => Some(node),
            End::Process(_) => Some(self.node),
            End::Pod(_, pod) => {
                let told = pod.identity().and_then(|identity| identity.node.as_ref());
                // A pod whose socket or link is here is here.
                told.or_else(|| self.owned.map(|_| self.node))
            }
            End::Unknown(_) | End::External(_) | End::Service(..) => None,
        }
    }

    /// What the path of its cgroup says.
    #[must_use]
    pub fn placement(&self) -> Option<&'a Placement> {
        self.owned?.membership.as_ref()?.cgroup()?.placement.as_ref()
    }

    /// Its container, by the cgroup.
    #[must_use]
    pub fn in_container(&self) -> Option<&'a Container> {
        self.placement()?.container.as_ref()
    }

    /// The local process, where it is certain.
    #[must_use]
    pub fn process(&self) -> Option<&'a Process> {
        let flow = self.owned?;
        flow.membership.as_ref()?.process_at(flow.first_seen_ns)
    }
}

impl FlowView for Seen<'_> {
    type End<'a>
        = SeenEnd<'a>
    where
        Self: 'a;

    fn end(&self, end: orb8_filter::End) -> SeenEnd<'_> {
        self.at(end)
    }

    fn address(&self, end: orb8_filter::End) -> Option<IpAddr> {
        let key = &self.flow.id.key;
        Some(match end {
            orb8_filter::End::Source => keys::source(key),
            orb8_filter::End::Destination => keys::destination(key),
        })
    }

    fn port(&self, end: orb8_filter::End) -> Option<u16> {
        let key = &self.flow.id.key;
        let (source, destination) =
            keys::ports(key).filter(|_| protocol::has_ports(key.protocol))?;
        Some(match end {
            orb8_filter::End::Source => source,
            orb8_filter::End::Destination => destination,
        })
    }

    fn protocol(&self) -> Option<u8> {
        Some(self.flow.id.key.protocol)
    }

    fn interface(&self) -> &str {
        self.flow.interface.as_ref().map_or("", |interface| &interface.name)
    }

    fn direction(&self) -> &str {
        direction(keys::is_egress(&self.flow.id.key))
    }

    fn scope(&self) -> &str {
        scope(self.flow.scope)
    }

    fn state(&self) -> &str {
        state(self.flow.state).0
    }

    fn plane(&self) -> &str {
        plane(self.flow.id.key.flags)
    }

    fn supplement(&self) -> bool {
        self.flow.id.key.flags & flag::SUPPLEMENT != 0
    }

    fn service(&self) -> Option<(&str, &str)> {
        let service = &self.flow.ends.asked.as_ref()?.service;
        Some((&service.namespace, &service.name))
    }

    fn verdict(&self) -> &str {
        self.flow.ends.asked.as_ref().map_or("", |asked| verdict(asked.verdict))
    }

    fn owner(&self) -> (&str, &str) {
        owner(self.flow)
    }
}

impl EndView for SeenEnd<'_> {
    fn kind(&self) -> &str {
        self.end.kind()
    }

    fn attribution(&self) -> &str {
        self.end.how().attribution.as_str()
    }

    fn namespace(&self) -> &str {
        match self.end {
            End::Service(_, service) => &service.namespace,
            _ => self.identity().map_or("", |identity| &identity.namespace),
        }
    }

    fn pod(&self) -> &str {
        self.identity().map_or("", |identity| &identity.name)
    }

    fn service(&self) -> &str {
        match self.end {
            End::Service(_, service) => &service.name,
            _ => "",
        }
    }

    fn node(&self) -> &str {
        self.on_node().map_or("", |node| &node.name)
    }

    fn container_id(&self) -> &str {
        self.in_container().map_or("", |container| &container.id)
    }

    fn comm(&self) -> &str {
        self.process().map_or("", |process| &process.comm)
    }

    fn cgroup(&self) -> &str {
        let membership = self.owned.and_then(|flow| flow.membership.as_ref());
        membership.and_then(|found| found.path()).unwrap_or_default()
    }

    fn workload(&self, ask: impl FnOnce(&str, &str) -> bool) -> bool {
        let Some(pod) = self.end.pod() else { return false };
        let state = pod.state();
        state.workload.as_ref().is_some_and(|found| ask(&found.kind, &found.name))
    }

    fn container(&self, ask: impl FnOnce(&str) -> bool) -> bool {
        let (Some(pod), Some(container)) = (self.end.pod(), self.in_container()) else {
            return false;
        };
        pod.container(&container.id).is_some_and(|name| ask(&name))
    }

    fn zone(&self, ask: impl FnOnce(&str) -> bool) -> bool {
        let Some(node) = self.on_node() else { return false };
        let state = node.state();
        state.zone.as_ref().is_some_and(|zone| ask(zone))
    }

    fn labels(&self, ask: impl FnOnce(&dyn LabelView) -> bool) -> bool {
        let Some(pod) = self.end.pod() else { return false };
        with_labels(pod, ask)
    }
}

/// Asks with a pod's labels; false, without asking, if the API has not told of the pod.
pub(crate) fn with_labels(pod: &Pod, ask: impl FnOnce(&dyn LabelView) -> bool) -> bool {
    let is_told = pod.identity().is_some();
    let state = pod.state();
    match &state.labels {
        Some(labels) => ask(labels),
        None => is_told && ask(&Unlabelled),
    }
}

/// Namespace and name of the pod that owns a flow, both empty if none does.
#[must_use]
pub fn owner(flow: &FlowRecord) -> (&str, &str) {
    let identity = flow.ends.owner.pod().and_then(|pod| pod.identity());
    identity.map_or(("", ""), |identity| (&identity.namespace, &identity.name))
}

/// The word for a direction.
#[must_use]
pub const fn direction(egress: bool) -> &'static str {
    if egress { "egress" } else { "ingress" }
}

/// The word for the plane that counted.
#[must_use]
pub const fn plane(flags: u8) -> &'static str {
    if flags & flag::SOCKET_PLANE == 0 { "tc" } else { "socket" }
}

/// The word for a scope; what is not known is empty.
#[must_use]
pub const fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Unknown => "",
        Scope::Local => "local",
        Scope::Unclaimed => "unclaimed",
        Scope::Forwarded => "forwarded",
        Scope::Tunnel => "tunnel",
    }
}

/// The words for a state and for why a flow ended.
#[must_use]
pub const fn state(state: FlowState) -> (&'static str, &'static str) {
    match state {
        FlowState::Active => ("active", ""),
        FlowState::Ended(EndReason::Idle) => ("ended", "idle"),
        FlowState::Ended(EndReason::Fin) => ("ended", "fin"),
        FlowState::Ended(EndReason::Rst) => ("ended", "rst"),
        FlowState::Ended(EndReason::Evicted) => ("ended", "evicted"),
        FlowState::Ended(EndReason::Shutdown) => ("ended", "shutdown"),
        FlowState::Ended(EndReason::PeerChanged) => ("ended", "peer_changed"),
    }
}

/// The word for whether a Service answers.
#[must_use]
pub const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::NoEndpoints => "no_endpoints",
        Verdict::Unknown => "unknown",
    }
}

/// What of a filter the kernel's packet view can check: never more than the filter asks.
#[must_use]
pub fn packet_filter(required: &Required) -> PacketFilter {
    let mut found = PacketFilter::default();
    if let Some(net) = &required.ip {
        found.address = keys::words(net.network());
        found.mask = keys::words(net.netmask());
        found.flags = if net.addr().is_ipv6() { flag::IPV6 } else { 0 };
    }
    if let Some(port) = required.port {
        found.port = port.to_be_bytes();
    }
    found.protocol = required.protocol.unwrap_or(FlowKey::EMPTY.protocol);
    found
}

#[cfg(test)]
mod tests;
