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

/// An address of a Service's own, or None for that of any node; port; IP protocol number.
type Dialled = (Option<IpAddr>, u16, u8);

#[derive(Clone, Debug)]
struct Place {
    of: Name,
    port: usize,
    kind: ServiceKind,
    /// It is the Service's since then at the earliest, CLOCK_MONOTONIC nanoseconds.
    from_ns: u64,
}

/// Services by address and port. Bounded by the numbers of Services and of slices that are kept.
#[derive(Debug, Default)]
pub(crate) struct Services {
    entries: HashMap<Name, Entry>,
    slices: HashMap<Name, Slice>,
    slices_of: HashMap<Name, Vec<Name>>,
    places: HashMap<Dialled, Place>,
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

    /// Sets a Service. What it had not before is its own from `from_ns` (CLOCK_MONOTONIC
    /// nanoseconds) on at the earliest. True if anything changed.
    pub(crate) fn apply(&mut self, name: &Name, told: Told, from_ns: u64) -> bool {
        if self.entries.get(name).is_some_and(|held| held.told.same_as(&told)) {
            return false;
        }
        let before: HashMap<Dialled, u64> = self.taken_out(name).into_iter().collect();
        for (port, facts) in told.service.ports.iter().enumerate() {
            for (dialled, kind) in told.dialled(facts) {
                let from_ns = before.get(&dialled).map_or(from_ns, |since_ns| *since_ns);
                // After a cut a Service may be told of before the one that had its address is gone.
                self.places.insert(dialled, Place { of: name.clone(), port, kind, from_ns });
            }
        }
        self.entries.insert(name.clone(), Entry { told, usable: vec![] });
        self.count(name);
        true
    }

    /// Removes a Service and gives back what was known of it.
    pub(crate) fn remove(&mut self, name: &Name) -> Option<Told> {
        self.taken_out(name);
        self.entries.remove(name).map(|entry| entry.told)
    }

    /// Takes out what is dialled for a Service, and gives back since when it was the Service's.
    fn taken_out(&mut self, name: &Name) -> Vec<(Dialled, u64)> {
        let Some(entry) = self.entries.get(name) else { return vec![] };
        let ports = entry.told.service.ports.iter();
        let mut taken = vec![];
        for (dialled, _) in ports.flat_map(|facts| entry.told.dialled(facts)) {
            if self.places.get(&dialled).is_some_and(|place| place.of == *name)
                && let Some(place) = self.places.remove(&dialled)
            {
                taken.push((dialled, place.from_ns));
            }
        }
        taken
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

    /// The Service at an address of its own, or without one at a port of the nodes, if it was that
    /// already at `at_ns` (CLOCK_MONOTONIC nanoseconds).
    pub(crate) fn at(
        &self,
        ip: Option<IpAddr>,
        port: u16,
        protocol: u8,
        at_ns: u64,
        listed: bool,
    ) -> Option<ServiceHit<'_>> {
        let place = self.places.get(&(ip, port, protocol))?;
        self.hit(place, listed).filter(|_| place.from_ns <= at_ns)
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
    /// What is dialled for a port of it.
    fn dialled(&self, port: &ServicePort) -> impl Iterator<Item = (Dialled, ServiceKind)> {
        let (number, node_port, protocol) = (port.port, port.node_port, port.protocol);
        let at = move |kind| move |ip: &IpAddr| ((Some(*ip), number, protocol), kind);
        let own = self.cluster_ips.iter().map(at(ServiceKind::ClusterIp));
        let external = self.external_ips.iter().map(at(ServiceKind::External));
        let at_nodes =
            (node_port != 0).then_some(((None, node_port, protocol), ServiceKind::NodePort));
        // A later one takes the place of an earlier one: its own address counts before one from outside.
        external.chain(own).chain(at_nodes)
    }

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
