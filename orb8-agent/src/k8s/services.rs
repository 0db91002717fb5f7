//! Services by what a client dials: ClusterIP, external address or node port, and whether anybody
//! answers there.
//!
//! Endpoints are kept as counts alone; which backend answered is the kernel's to tell. Nothing here
//! talks to the API.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::k8s::model::{Service, ServicePort};

/// What a client dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// The Service's own address.
    ClusterIp,
    /// An external address, or one of a load balancer.
    External,
    /// A port of a node.
    NodePort,
}

/// Whether somebody answers at a port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an endpoint that takes traffic.
    Ok,
    /// There is none that this node would send to.
    NoEndpoints,
    /// Not known: EndpointSlices were not listed yet.
    Unknown,
}

/// A port of a Service that was dialled.
#[derive(Clone, Copy, Debug)]
pub struct ServiceHit<'a> {
    /// The Service.
    pub service: &'a Arc<Service>,
    /// The port.
    pub port: &'a ServicePort,
    /// What was dialled.
    pub kind: ServiceKind,
    /// Whether somebody answers.
    pub verdict: Verdict,
}

/// Namespace and name.
pub(crate) type Name = (Arc<str>, Arc<str>);

/// A Service as the API tells it, without what nobody asks for.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) service: Arc<Service>,
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) external_ips: Vec<IpAddr>,
    /// internalTrafficPolicy is Local: only endpoints of this node take what dials the ClusterIP.
    pub(crate) internal_local: bool,
    /// externalTrafficPolicy is Local: only endpoints of this node take what comes from outside.
    pub(crate) external_local: bool,
}

/// Endpoints of one port in one slice that take traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usable {
    pub(crate) port: Box<str>,
    pub(crate) protocol: u8,
    pub(crate) anywhere: u32,
    pub(crate) here: u32,
}

/// One slice: its Service and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) service: Name,
    pub(crate) usable: Vec<Usable>,
}

#[derive(Debug)]
struct Entry {
    told: Told,
    /// For each port of the Service: endpoints anywhere, and on this node.
    usable: Vec<(u32, u32)>,
}

#[derive(Clone, Debug)]
struct Place {
    of: Name,
    port: usize,
    kind: ServiceKind,
}

/// Services by address and port. Bounded by the numbers of Services and of slices that are kept.
#[derive(Debug, Default)]
pub(crate) struct Services {
    entries: HashMap<Name, Entry>,
    slices: HashMap<Name, Slice>,
    slices_of: HashMap<Name, Vec<Name>>,
    by_address: HashMap<(IpAddr, u16, u8), Place>,
    by_node_port: HashMap<(u16, u8), Place>,
    externals: HashMap<IpAddr, Vec<Name>>,
}

impl Services {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn slices(&self) -> usize {
        self.slices.len()
    }

    pub(crate) fn contains(&self, name: &Name) -> bool {
        self.entries.contains_key(name)
    }

    pub(crate) fn has_slice(&self, name: &Name) -> bool {
        self.slices.contains_key(name)
    }

    pub(crate) fn get(&self, name: &Name) -> Option<&Told> {
        self.entries.get(name).map(|entry| &entry.told)
    }

    /// Sets a Service. True if anything changed.
    pub(crate) fn apply(&mut self, name: &Name, told: Told) -> bool {
        if self.entries.get(name).is_some_and(|held| held.told.same_as(&told)) {
            return false;
        }
        self.remove(name);
        for (port, facts) in told.service.ports.iter().enumerate() {
            let at = |kind| Place { of: name.clone(), port, kind };
            for ip in &told.cluster_ips {
                let place = at(ServiceKind::ClusterIp);
                self.by_address.insert((*ip, facts.port, facts.protocol), place);
            }
            for ip in &told.external_ips {
                let place = at(ServiceKind::External);
                self.by_address.entry((*ip, facts.port, facts.protocol)).or_insert(place);
            }
            if facts.node_port != 0 {
                let place = at(ServiceKind::NodePort);
                self.by_node_port.insert((facts.node_port, facts.protocol), place);
            }
        }
        for ip in &told.external_ips {
            self.externals.entry(*ip).or_default().push(name.clone());
        }
        self.entries.insert(name.clone(), Entry { told, usable: vec![] });
        self.count(name);
        true
    }

    /// Removes a Service and gives back what was known of it.
    pub(crate) fn remove(&mut self, name: &Name) -> Option<Told> {
        let entry = self.entries.remove(name)?;
        for facts in &entry.told.service.ports {
            let ips = entry.told.cluster_ips.iter().chain(&entry.told.external_ips);
            for ip in ips {
                let key = (*ip, facts.port, facts.protocol);
                if self.by_address.get(&key).is_some_and(|place| place.of == *name) {
                    self.by_address.remove(&key);
                }
            }
            let key = (facts.node_port, facts.protocol);
            if self.by_node_port.get(&key).is_some_and(|place| place.of == *name) {
                self.by_node_port.remove(&key);
            }
        }
        for ip in &entry.told.external_ips {
            if let Some(names) = self.externals.get_mut(ip) {
                names.retain(|of| of != name);
                if names.is_empty() {
                    self.externals.remove(ip);
                }
            }
        }
        Some(entry.told)
    }

    /// Sets a slice, or removes it. True if it changed.
    pub(crate) fn apply_slice(&mut self, name: &Name, slice: Option<Slice>) -> bool {
        if self.slices.get(name) == slice.as_ref() {
            return false;
        }
        if let Some(old) = self.slices.remove(name) {
            if let Some(names) = self.slices_of.get_mut(&old.service) {
                names.retain(|of| of != name);
                if names.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            self.count(&old.service);
        }
        if let Some(slice) = slice {
            let service = slice.service.clone();
            self.slices_of.entry(service.clone()).or_default().push(name.clone());
            self.slices.insert(name.clone(), slice);
            self.count(&service);
        }
        true
    }

    fn count(&mut self, name: &Name) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let slices = self.slices_of.get(name).into_iter().flatten();
        let usable: Vec<&Usable> =
            slices.filter_map(|of| self.slices.get(of)).flat_map(|slice| &slice.usable).collect();
        let sum = |port: &ServicePort| {
            let of_port = |u: &&&Usable| u.port == port.name && u.protocol == port.protocol;
            let both = usable.iter().filter(of_port).map(|u| (u.anywhere, u.here));
            both.fold((0, 0), |(anywhere, here), (a, h)| (anywhere + a, here + h))
        };
        entry.usable = entry.told.service.ports.iter().map(sum).collect();
    }

    /// The Service at an address of its own.
    pub(crate) fn at(
        &self,
        ip: IpAddr,
        port: u16,
        protocol: u8,
        listed: bool,
    ) -> Option<ServiceHit<'_>> {
        self.hit(self.by_address.get(&(ip, port, protocol))?, listed)
    }

    /// The Service at a port of the nodes.
    pub(crate) fn at_node(&self, port: u16, protocol: u8, listed: bool) -> Option<ServiceHit<'_>> {
        self.hit(self.by_node_port.get(&(port, protocol))?, listed)
    }

    /// The Services that an external address belongs to: none, one, or (None) several.
    pub(crate) fn external(&self, ip: IpAddr) -> Option<Option<&Arc<Service>>> {
        match self.externals.get(&ip)?.as_slice() {
            [only] => self.entries.get(only).map(|entry| Some(&entry.told.service)),
            _several => Some(None),
        }
    }

    /// Services whose key a list did not name.
    pub(crate) fn missing(&self, is_listed: impl Fn(&str) -> bool) -> Vec<Name> {
        missing(self.entries.keys(), is_listed)
    }

    /// Slices whose key a list did not name.
    pub(crate) fn missing_slices(&self, is_listed: impl Fn(&str) -> bool) -> Vec<Name> {
        missing(self.slices.keys(), is_listed)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.entries.values().map(|entry| &entry.told.service)
    }

    pub(crate) fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.entries.values().flat_map(|entry| entry.told.cluster_ips.iter().copied())
    }

    fn hit(&self, place: &Place, listed: bool) -> Option<ServiceHit<'_>> {
        let entry = self.entries.get(&place.of)?;
        let port = entry.told.service.ports.get(place.port)?;
        let (anywhere, here) = entry.usable.get(place.port).copied().unwrap_or_default();
        let local = match place.kind {
            ServiceKind::ClusterIp => entry.told.internal_local,
            ServiceKind::External | ServiceKind::NodePort => entry.told.external_local,
        };
        let verdict = match if local { here } else { anywhere } {
            1.. => Verdict::Ok,
            0 if listed => Verdict::NoEndpoints,
            0 => Verdict::Unknown,
        };
        Some(ServiceHit { service: &entry.told.service, port, kind: place.kind, verdict })
    }
}

impl Told {
    fn same_as(&self, other: &Self) -> bool {
        self.service == other.service
            && self.cluster_ips == other.cluster_ips
            && self.external_ips == other.external_ips
            && self.internal_local == other.internal_local
            && self.external_local == other.external_local
    }
}

fn missing<'a>(
    names: impl Iterator<Item = &'a Name>,
    is_listed: impl Fn(&str) -> bool,
) -> Vec<Name> {
    names.filter(|name| !is_listed(&key_of(name))).cloned().collect()
}

/// A namespaced name as one word.
pub(crate) fn key_of(name: &Name) -> String {
    format!("{}/{}", name.0, name.1)
}
