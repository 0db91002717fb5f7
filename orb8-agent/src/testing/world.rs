//! A cluster, a host and its kernel as identity knows them, fed by hand. Times are CLOCK_MONOTONIC
//! nanoseconds, and 1970 is when the host was booted.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cgroup::{Answer, Cgroup, Cgroups, Membership, PodOf};
use crate::conntrack::{Translation, Translations, Tuple};
use crate::host::{HostFacts, PodLink};
use crate::k8s::identity::Knowledge;
use crate::k8s::registry::{Registry, Seen};
use crate::k8s::status::Resource;

/// Everything that identities are made of.
#[derive(Debug)]
pub struct World {
    pub known: Knowledge,
    pods: HashMap<String, Value>,
}

#[allow(clippy::expect_used, reason = "only tests run this")]
fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of the API")
}

impl World {
    /// The host `n1` with the address 10.0.0.1 and the interface eth0 (2), in a cluster that has told
    /// nothing yet.
    #[must_use]
    pub fn silent() -> Self {
        let facts = HostFacts::shared();
        facts.update(|facts| {
            facts.set_addresses([IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 244, 1, 1])]);
            facts.set_interface(2, "eth0");
        });
        let mut known = Knowledge::of_host(facts);
        known.registry = Registry::shared("n1", 1_000);
        known.kubernetes = true;
        known.cgroups = Cgroups::default();
        known.translations = Translations::empty(1_000);
        Self { known, pods: HashMap::new() }
    }

    /// The same, in a cluster of the nodes n1 (10.0.0.1) and n2 (10.0.0.2) with pods in 10.244.0.0/16
    /// that has told all there is at time 1.
    #[must_use]
    pub fn synced() -> Self {
        let mut world = Self::silent();
        world.list(1);
        world
    }

    /// Everything is listed.
    pub fn list(&mut self, at_ns: u64) {
        let seen = Seen::late(at_ns, 0, 0);
        for resource in Resource::ALL {
            self.known.registry.begin_list(resource);
            match resource {
                Resource::Pods => {
                    for pod in self.pods.values() {
                        self.known.registry.apply_pod(&object(pod.clone()), seen);
                    }
                }
                Resource::Nodes => {
                    for (name, last) in [("n1", 1), ("n2", 2)] {
                        self.known.registry.apply_node(&object(node(name, last)), seen);
                    }
                }
                Resource::Services
                | Resource::EndpointSlices
                | Resource::ReplicaSets
                | Resource::Jobs => {}
            }
            self.known.registry.end_list(resource, seen);
        }
    }

    /// Sets a pod (`namespace/name`, also its uid) on a node; an empty address: it has none yet.
    pub fn pod(&mut self, name: &str, node: &str, address: &str, at_ns: u64) -> &mut Self {
        self.pod_with(name, node, address, at_ns, |_| {})
    }

    /// The same, changed before it is told.
    pub fn pod_with(
        &mut self,
        name: &str,
        node: &str,
        address: &str,
        at_ns: u64,
        change: impl FnOnce(&mut Value),
    ) -> &mut Self {
        let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
        let mut pod = json!({
            "metadata": {
                "name": short, "namespace": namespace, "uid": uid(name),
                "labels": {"app": short},
            },
            "spec": {"nodeName": node, "containers": [{"name": "main"}]},
            "status": {"phase": "Running"},
        });
        if !address.is_empty() {
            pod["status"]["podIP"] = json!(address);
            pod["status"]["podIPs"] = json!([{"ip": address}]);
        }
        change(&mut pod);
        self.pods.insert(name.to_owned(), pod.clone());
        self.known.registry.apply_pod(&object(pod), Seen::live(at_ns, 0));
        self
    }

    /// The API tells that a pod is gone.
    pub fn delete(&mut self, name: &str, at_ns: u64) -> &mut Self {
        if let Some(pod) = self.pods.remove(name) {
            let meta = object(pod["metadata"].clone());
            self.known.registry.delete_pod(&meta, Seen::live(at_ns, 0));
        }
        self
    }

    /// Sets a Service with port 80 (`http`) at an address, with so many endpoints that are ready.
    pub fn service(&self, name: &str, address: &str, node_port: u16, ready: usize, at_ns: u64) {
        let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
        let port = json!({
            "name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080,
            "nodePort": node_port,
        });
        let service = json!({
            "metadata": {"name": short, "namespace": namespace, "uid": uid(name)},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [port]},
        });
        let slice = json!({
            "metadata": {
                "name": format!("{short}-1"), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": short},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": (0..ready).map(|n| json!({
                "addresses": [format!("10.244.9.{n}")], "conditions": {"ready": true},
            })).collect::<Vec<_>>(),
        });
        self.known.registry.apply_service(&object(service), Seen::live(at_ns, 0));
        self.known.registry.apply_slice(&object(slice), Seen::live(at_ns, 0));
    }

    /// The API tells that a Service is gone.
    pub fn remove_service(&self, name: &str, at_ns: u64) {
        let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
        let meta = json!({"name": short, "namespace": namespace, "uid": uid(name)});
        self.known.registry.delete_service(&object(meta), Seen::live(at_ns, 0));
    }

    /// A cgroup with this path; the path of a pod's may be had from [`cgroup_of`].
    #[allow(clippy::must_use_candidate, reason = "it is in the index, too")]
    pub fn cgroup(&self, id: u64, path: &str) -> Arc<Membership> {
        let registry = Arc::clone(&self.known.registry);
        let pods: PodOf = Arc::new(move |uid| registry.pod_of_cgroup(uid));
        let cgroup = Arc::new(Cgroup::new(id, path, &pods));
        self.known.cgroups.insert(Arc::clone(&cgroup));
        let answer = Answer { cgroup: Some(cgroup), process: None, checked_ns: u64::MAX };
        Arc::new(Membership::answered(id, answer))
    }

    /// A link to a pod, with the addresses behind it, there from the beginning.
    pub fn link(&self, ifindex: u32, addresses: &[IpAddr]) {
        self.link_since(ifindex, addresses, 0);
    }

    /// A link to a pod, as listed at a time.
    pub fn link_since(&self, ifindex: u32, addresses: &[IpAddr], at_ns: u64) {
        self.known.facts.update(|facts| {
            facts.set_interface(ifindex, &format!("veth{ifindex}"));
            let mut links: HashMap<_, _> =
                facts.pod_links().map(|(index, link)| (index, link.clone())).collect();
            links.insert(ifindex, PodLink { addresses: addresses.to_vec() });
            facts.set_pod_links(links, at_ns);
        });
    }

    /// A link to a pod goes, with the pod.
    pub fn unlink(&self, ifindex: u32, at_ns: u64) {
        self.known.facts.update(|facts| {
            facts.remove_interface(ifindex);
            let others = facts.pod_links().filter(|(index, _)| *index != ifindex);
            let others = others.map(|(index, link)| (index, link.clone())).collect();
            facts.set_pod_links(others, at_ns);
        });
    }

    /// A translated TCP connection: what the client sent, and what its answers look like.
    pub fn translate(
        &self,
        original: (SocketAddr, SocketAddr),
        reply: (SocketAddr, SocketAddr),
        from_ns: u64,
    ) -> Arc<Translation> {
        let tuple = |(src, dst)| Tuple { protocol: 6, src, dst };
        let translation = Translation::new(tuple(original), tuple(reply), from_ns);
        self.known.translations.insert(translation)
    }

    /// Forgets a translation, as is done some time after its end.
    pub fn forget(&self, translation: &Arc<Translation>) {
        self.known.translations.take(translation);
    }
}

/// The uid of the pod with this name.
#[must_use]
pub fn uid(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    let padded = format!("{digits:0<32}");
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &padded[part]).join("-")
}

/// The cgroup of a container of a pod, as systemd's driver names it.
#[must_use]
pub fn cgroup_of(name: &str) -> String {
    let slice = uid(name).replace('-', "_");
    let id = "c0ffee00".repeat(8);
    format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{id}.scope")
}

fn node(name: &str, last: u8) -> Value {
    json!({
        "metadata": {
            "name": name, "uid": uid(name),
            "labels": {"topology.kubernetes.io/zone": format!("z{last}")},
        },
        "spec": {"podCIDR": format!("10.244.{last}.0/24"), "podCIDRs": [format!("10.244.{last}.0/24")]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": format!("10.0.0.{last}")},
            {"type": "Hostname", "address": name},
        ]},
    })
}
