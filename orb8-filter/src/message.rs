//! Flows as they travel, seen by a filter.

use std::net::IpAddr;

use orb8_proto::v1::{Endpoint, NetworkFlow};
use orb8_util::protocol;

use crate::view::{End, EndView, FlowView, LabelView};

/// True if the ports of a flow mean something: TCP, UDP and SCTP, but not later fragments.
#[must_use]
pub fn has_ports(flow: &NetworkFlow) -> bool {
    !flow.fragment && protocol::number(&flow.protocol).is_ok_and(protocol::has_ports)
}

impl FlowView for NetworkFlow {
    type End<'a> = Option<&'a Endpoint>;

    fn end(&self, end: End) -> Option<&Endpoint> {
        match end {
            End::Source => self.source.as_ref(),
            End::Destination => self.destination.as_ref(),
        }
    }

    fn address(&self, end: End) -> Option<IpAddr> {
        let text = match end {
            End::Source => &self.src_ip,
            End::Destination => &self.dst_ip,
        };
        text.parse().ok()
    }

    fn port(&self, end: End) -> Option<u16> {
        let port = match end {
            End::Source => self.src_port,
            End::Destination => self.dst_port,
        };
        has_ports(self).then(|| u16::try_from(port).ok()).flatten()
    }

    fn protocol(&self) -> Option<u8> {
        protocol::number(&self.protocol).ok()
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn direction(&self) -> &str {
        &self.direction
    }

    fn scope(&self) -> &str {
        &self.scope
    }

    fn state(&self) -> &str {
        &self.state
    }

    fn plane(&self) -> &str {
        &self.plane
    }

    fn supplement(&self) -> bool {
        self.supplement
    }

    fn service(&self) -> Option<(&str, &str)> {
        self.service.as_ref().map(|service| (&*service.namespace, &*service.name))
    }

    fn verdict(&self) -> &str {
        self.service.as_ref().map_or("", |service| &service.verdict)
    }

    fn owner(&self) -> (&str, &str) {
        (&self.namespace, &self.pod_name)
    }
}

impl EndView for Option<&Endpoint> {
    fn kind(&self) -> &str {
        self.map_or("", |end| &end.kind)
    }

    fn attribution(&self) -> &str {
        self.map_or("", |end| &end.attribution)
    }

    fn namespace(&self) -> &str {
        self.map_or("", |end| &end.namespace)
    }

    fn pod(&self) -> &str {
        self.map_or("", |end| &end.pod)
    }

    fn service(&self) -> &str {
        self.map_or("", |end| &end.service)
    }

    fn node(&self) -> &str {
        self.map_or("", |end| &end.node)
    }

    fn container_id(&self) -> &str {
        self.map_or("", |end| &end.container_id)
    }

    fn comm(&self) -> &str {
        self.and_then(|end| end.process.as_ref()).map_or("", |process| &process.comm)
    }

    fn cgroup(&self) -> &str {
        self.map_or("", |end| &end.cgroup)
    }

    fn workload(&self, ask: impl FnOnce(&str, &str) -> bool) -> bool {
        self.is_some_and(|end| !end.workload.is_empty() && ask(&end.workload_kind, &end.workload))
    }

    fn container(&self, ask: impl FnOnce(&str) -> bool) -> bool {
        self.is_some_and(|end| !end.container.is_empty() && ask(&end.container))
    }

    fn zone(&self, ask: impl FnOnce(&str) -> bool) -> bool {
        self.is_some_and(|end| !end.zone.is_empty() && ask(&end.zone))
    }

    /// A message that was made without labels looks like that of a pod that has none: not known.
    fn labels(&self, ask: impl FnOnce(&dyn LabelView) -> bool) -> bool {
        self.is_some_and(|end| !end.labels.is_empty() && ask(&end.labels))
    }
}
