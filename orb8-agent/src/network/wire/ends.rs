//! The ends of flows and the Services that were asked for, as messages.

use std::net::IpAddr;

use orb8_filter::EndView;
use orb8_proto::v1::{Endpoint, Process, ServiceUse};

use super::Shown;
use crate::event::{End, FlowRecord};
use crate::k8s::identity::Span;
use crate::k8s::services::ServiceKind;
use crate::network::keys;
use crate::network::view::{SeenEnd, verdict};

impl Shown {
    /// One end.
    pub(super) fn endpoint(&self, seen: SeenEnd<'_>) -> Endpoint {
        let how = seen.end.how();
        let mut end = Endpoint {
            kind: seen.kind().to_owned(),
            namespace: seen.namespace().to_owned(),
            pod: seen.pod().to_owned(),
            service: seen.service().to_owned(),
            node: seen.node().to_owned(),
            attribution: how.attribution.as_str().to_owned(),
            reason: how.reason.as_str().to_owned(),
            ..Endpoint::default()
        };
        seen.zone(|zone| {
            zone.clone_into(&mut end.zone);
            true
        });
        if let Some(pod) = seen.end.pod() {
            self.add_pod(&mut end, pod);
        }
        add_owner(&mut end, &seen);
        end
    }

    fn add_pod(&self, end: &mut Endpoint, pod: &crate::k8s::model::Pod) {
        end.pod_uid = pod.uid.to_string();
        let state = pod.state();
        if let Some(workload) = &state.workload {
            end.workload = workload.name.to_string();
            end.workload_kind = workload.kind.to_string();
        }
        if let Some(labels) = state.labels.as_ref().filter(|_| self.labels) {
            let text =
                |(key, value): &(_, _)| (ToString::to_string(key), ToString::to_string(value));
            end.labels = labels.iter().map(text).collect();
        }
    }

    /// The Service that was asked for, and who answered.
    pub(super) fn service(&self, flow: &FlowRecord) -> Option<ServiceUse> {
        let asked = flow.ends.asked.as_ref()?;
        let translation = flow.translation.as_deref();
        let translated = translation.filter(|found| found.rewrites_destination());
        let dialled =
            translated.map_or_else(|| dialled(flow, asked.kind), |it| it.original.dst.ip());
        let kind = match asked.kind {
            ServiceKind::ClusterIp => "cluster_ip",
            ServiceKind::External => "external_ip",
            ServiceKind::NodePort => "node_port",
        };
        let mut used = ServiceUse {
            namespace: asked.service.namespace.to_string(),
            name: asked.service.name.to_string(),
            ip: dialled.to_string(),
            port: asked.port.into(),
            port_name: asked.port_name().to_owned(),
            kind: kind.to_owned(),
            verdict: verdict(asked.verdict).to_owned(),
            ..ServiceUse::default()
        };
        if let Some(answering) = translated {
            let backend = answering.reply.src;
            used.backend_ip = backend.ip().to_string();
            used.backend_port = backend.port().into();
            used.backend = Some(self.backend(flow, backend.ip()));
        }
        Some(used)
    }

    /// Who a Service's backend was when the flow began.
    fn backend(&self, flow: &FlowRecord, address: IpAddr) -> Endpoint {
        let key = &flow.id.key;
        let shown = [(&flow.ends.owner, keys::owner(key)), (&flow.ends.peer, keys::peer(key))];
        let known = shown.into_iter().find(|(_, shown)| *shown == address);
        let found;
        let end: &End = if let Some((end, _)) = known {
            end
        } else {
            let span = Span { since_ns: flow.first_seen_ns, until_ns: flow.last_seen_ns };
            found = self.known.who(address, span);
            &found
        };
        self.endpoint(SeenEnd::of(end, &self.node))
    }
}

/// What the client dialled, where the packets themselves show it.
fn dialled(flow: &FlowRecord, kind: ServiceKind) -> IpAddr {
    let key = &flow.id.key;
    match (&flow.ends.peer, kind) {
        (End::Service(..) | End::Node(..), _) => keys::peer(key),
        (_, ServiceKind::NodePort) => keys::owner(key),
        (_, ServiceKind::ClusterIp | ServiceKind::External) => keys::peer(key),
    }
}

/// What is known of the local socket alone.
fn add_owner(end: &mut Endpoint, seen: &SeenEnd<'_>) {
    let Some(membership) = seen.owned.and_then(|flow| flow.membership.as_ref()) else { return };
    end.cgroup_id = membership.id;
    seen.cgroup().clone_into(&mut end.cgroup);
    end.process =
        seen.process().map(|found| Process { pid: found.pid, comm: found.comm.to_string() });
    seen.container(|name| {
        name.clone_into(&mut end.container);
        true
    });
    if let Some(container) = seen.in_container() {
        end.container_id = container.id.to_string();
        // The path of a pod's container does not tell it where the kubelet names directories itself.
        let told = || seen.end.pod().and_then(|pod| pod.runtime(&container.id));
        let runtime = container.runtime.or_else(told);
        end.runtime = runtime.map_or("", |runtime| runtime.as_str()).to_owned();
    }
    if let Some(unit) = seen.placement().and_then(|found| found.unit.as_deref()) {
        unit.clone_into(&mut end.unit);
    }
}
