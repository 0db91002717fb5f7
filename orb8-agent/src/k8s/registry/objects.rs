//! Services, EndpointSlices and owners, as the API writes them, into the tables.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service as ApiService, ServicePort as ApiPort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::facts::unix_ns;
use super::tables::{SECOND_NS, Tables};
use super::{Seen, names::Names};
use crate::k8s::addresses::{End, Who};
use crate::k8s::model::{Service, ServicePort};
use crate::k8s::services::{Name, Slice, Told, Usable, key_of};
use crate::k8s::status::Resource;

/// An address that a load balancer or a user gives passes on at once, while a watch tells of it
/// later than kube-proxy is told: for this long before, both may have it.
const LAG_NS: u64 = SECOND_NS;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Tables {
    /// Sets a Service. True if an answer may have changed.
    pub(super) fn apply_service(&mut self, api: &ApiService, seen: Seen) -> bool {
        let Some(name) = name_of(&api.metadata, &mut self.names) else {
            self.rejected += 1;
            return false;
        };
        self.told(Resource::Services, &key_of(&name));
        if !self.services.contains(&name) && self.services.len() >= self.max {
            self.rejected += 1;
            return false;
        }
        let told = service(api, &name);
        let who = Who::Service(Arc::clone(&told.service));
        let (own, outer) = (told.cluster_ips.clone(), told.external_ips.clone());
        let (own_before, outer_before) = match self.services.get(&name) {
            Some(held) => (held.cluster_ips.clone(), held.external_ips.clone()),
            None => Default::default(),
        };
        let from_ns = if self.services.contains(&name) {
            // It had not what it has now when it was told of before.
            seen.since_ns.saturating_sub(LAG_NS)
        } else {
            seen.earliest(api.metadata.creation_timestamp.as_ref().and_then(unix_ns))
        };
        if !self.services.apply(&name, told, from_ns) {
            return false;
        }
        let claim = seen.claim(from_ns);
        self.addresses.pass(&own_before, &own, &who, claim, seen.end(false));
        self.external.pass(&outer_before, &outer, &who, claim, passing(seen));
        if own_before != own {
            self.ranges_changed(Resource::Services);
        }
        true
    }

    /// A Service is gone.
    pub(super) fn delete_service(&mut self, meta: &ObjectMeta, seen: Seen) -> bool {
        let name = name_of(meta, &mut self.names);
        name.is_some_and(|name| self.end_service(&name, seen))
    }

    pub(super) fn end_service(&mut self, name: &Name, seen: Seen) -> bool {
        let Some(told) = self.services.remove(name) else { return false };
        let who = Who::Service(told.service);
        for ip in told.cluster_ips {
            self.addresses.release(ip, &who, seen.end(false));
        }
        for ip in told.external_ips {
            self.external.release(ip, &who, passing(seen));
        }
        self.ranges_changed(Resource::Services);
        true
    }

    /// Sets an EndpointSlice. True if an answer may have changed.
    pub(super) fn apply_slice(&mut self, api: &EndpointSlice) -> bool {
        let Some(name) = name_of(&api.metadata, &mut self.names) else {
            self.rejected += 1;
            return false;
        };
        self.told(Resource::EndpointSlices, &key_of(&name));
        let labels = api.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
            return self.services.apply_slice(&name, None);
        };
        if !self.services.has_slice(&name) && self.services.slices() >= self.max {
            self.rejected += 1;
            return false;
        }
        let service = (Arc::clone(&name.0), self.names.get(service));
        let slice = Slice { service, usable: usable(api, &self.own_node.name) };
        self.services.apply_slice(&name, Some(slice))
    }

    /// An EndpointSlice is gone.
    pub(super) fn delete_slice(&mut self, meta: &ObjectMeta) -> bool {
        let name = name_of(meta, &mut self.names);
        name.is_some_and(|name| self.services.apply_slice(&name, None))
    }

    /// Sets a ReplicaSet or Job. True if an answer may have changed.
    pub(super) fn apply_owner(&mut self, resource: Resource, meta: &ObjectMeta) -> bool {
        let Some(uid) = meta.uid.as_deref() else {
            self.rejected += 1;
            return false;
        };
        self.told(resource, uid);
        match self.owners.apply(resource, meta, &mut self.names) {
            Ok(false) => false,
            Ok(true) => self.tell_followers(uid),
            Err(_full) => {
                self.rejected += 1;
                false
            }
        }
    }

    /// A ReplicaSet or Job is gone; its pods keep what they were told.
    pub(super) fn delete_owner(&mut self, meta: &ObjectMeta) -> bool {
        if let Some(uid) = meta.uid.as_deref() {
            self.owners.remove(uid);
        }
        false
    }

    fn tell_followers(&mut self, owner_uid: &str) -> bool {
        let Some(top) = self.owners.above(owner_uid) else { return false };
        let followers = self.owners.followers(owner_uid);
        for held in followers.iter().filter_map(|uid| self.pods.get(uid)) {
            held.pod.update(|state| state.workload = Some(Arc::clone(top)));
        }
        !followers.is_empty()
    }
}

/// When an external address was lost of which it is told now.
fn passing(seen: Seen) -> End {
    End { sure_until_ns: seen.since_ns.saturating_sub(LAG_NS), ..seen.end(false) }
}

fn name_of(meta: &ObjectMeta, names: &mut Names) -> Option<Name> {
    Some((names.get(meta.namespace.as_deref()?), names.get(meta.name.as_deref()?)))
}

fn service(api: &ApiService, name: &Name) -> Told {
    let spec = api.spec.as_ref();
    let is_external = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    let ports = spec.filter(|_| !is_external).and_then(|spec| spec.ports.as_deref());
    let service = Service {
        namespace: Arc::clone(&name.0),
        name: (*name.1).into(),
        ports: ports.unwrap_or_default().iter().filter_map(port).collect(),
    };
    let cluster = spec.into_iter().flat_map(|spec| {
        spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter()).map(String::as_str)
    });
    let given = spec.into_iter().flat_map(|spec| {
        spec.external_ips.iter().flatten().chain(spec.load_balancer_ip.iter()).map(String::as_str)
    });
    let balanced = api.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balanced = balanced.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let external = given.chain(balanced.filter_map(|ingress| ingress.ip.as_deref()));
    let policy = |policy: Option<&String>| policy.is_some_and(|policy| policy == "Local");
    Told {
        service: Arc::new(service),
        cluster_ips: parsed(cluster),
        external_ips: parsed(external),
        internal_local: policy(spec.and_then(|spec| spec.internal_traffic_policy.as_ref())),
        external_local: policy(spec.and_then(|spec| spec.external_traffic_policy.as_ref())),
    }
}

/// The addresses among the words: a headless Service has the word None.
fn parsed<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut parsed: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    parsed.sort_unstable();
    parsed.dedup();
    parsed
}

fn port(api: &ApiPort) -> Option<ServicePort> {
    Some(ServicePort {
        name: api.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(api.protocol.as_deref())?,
        port: u16::try_from(api.port).ok()?,
        node_port: u16::try_from(api.node_port.unwrap_or(0)).ok()?,
    })
}

/// IP protocol number; TCP is what is meant where nothing is said.
fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _other => None,
    }
}

fn usable(api: &EndpointSlice, own_node: &str) -> Vec<Usable> {
    let takes = api.endpoints.iter().filter(|endpoint| takes_traffic(endpoint));
    let (anywhere, here) = takes.fold((0, 0), |(anywhere, here), endpoint| {
        let is_here = endpoint.node_name.as_deref() == Some(own_node);
        (anywhere + 1, here + u32::from(is_here))
    });
    let ports = api.ports.iter().flatten().filter_map(|port| {
        let name = port.name.as_deref().unwrap_or_default().into();
        Some(Usable { port: name, protocol: protocol(port.protocol.as_deref())?, anywhere, here })
    });
    if anywhere == 0 { vec![] } else { ports.collect() }
}

/// Ready, which is meant where nothing is said, or on its way out but still serving: kube-proxy
/// falls back to those.
fn takes_traffic(endpoint: &Endpoint) -> bool {
    let Some(conditions) = &endpoint.conditions else { return true };
    let serves_on = conditions.serving == Some(true) && conditions.terminating == Some(true);
    conditions.ready.unwrap_or(true) || serves_on
}
