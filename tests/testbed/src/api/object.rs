//! Pods, nodes, Services and their kin as a real cluster writes them, from few facts.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

/// A uid that nothing else in this process has.
#[must_use]
pub fn uid() -> String {
    let hex = format!("{}{}", hex16(), hex16());
    let part = |from: usize, to: usize| hex[from..to].to_owned();
    format!("{}-{}-4{}-9{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// A container id, 64 hex digits, that nothing else in this process has.
#[must_use]
pub fn container_id() -> String {
    [hex16(), hex16(), hex16(), hex16()].concat()
}

/// A static pod's config hash, 32 hex digits.
#[must_use]
pub fn config_hash() -> String {
    [hex16(), hex16()].concat()
}

/// 16 hex digits, never twice the same: a bijection of a counter.
fn hex16() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut x = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    format!("{:016x}", x ^ (x >> 31))
}

/// The wall clock as the API writes it, in seconds.
#[must_use]
pub fn now() -> String {
    after(0)
}

/// Whole seconds since 1970, as the API's times have them.
#[must_use]
pub fn wall_second() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// So many seconds from now, as the API writes it.
#[must_use]
pub fn after(seconds: i64) -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(wall_second() + seconds).unwrap_or(now).to_string()
}

/// The part of an owner that an owned object names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Such as `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Owner {
    /// An owner with a uid of its own.
    #[must_use]
    pub fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned(), uid: uid() }
    }

    pub(super) fn reference(&self) -> Value {
        let version = match self.kind.as_str() {
            "Job" | "CronJob" => "batch/v1",
            "Node" | "Service" => "v1",
            _ => "apps/v1",
        };
        json!({
            "apiVersion": version, "kind": self.kind, "name": self.name, "uid": self.uid,
            "controller": true, "blockOwnerDeletion": true,
        })
    }
}

/// Metadata that every object has.
fn metadata(namespace: &str, name: &str, uid: &str, labels: &[(String, String)]) -> Value {
    let mut metadata = json!({ "name": name, "uid": uid, "creationTimestamp": now() });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    if !labels.is_empty() {
        let labels: Map<String, Value> =
            labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        metadata["labels"] = Value::Object(labels);
    }
    metadata
}

/// An owned object that has no content of its own here: ReplicaSet, Job, Deployment, ...
#[must_use]
pub fn owned(kind: &str, namespace: &str, name: &str, uid: &str, owner: Option<&Owner>) -> Value {
    let resource = super::store::Resource::of_kind(kind).expect("a known kind");
    let mut metadata = metadata(namespace, name, uid, &[]);
    if let Some(owner) = owner {
        metadata["ownerReferences"] = json!([owner.reference()]);
    }
    json!({
        "kind": kind, "apiVersion": resource.api_version(), "metadata": metadata,
        "spec": {}, "status": {},
    })
}

/// A namespace.
#[must_use]
pub fn namespace(name: &str) -> Value {
    let labels = [("kubernetes.io/metadata.name".to_owned(), name.to_owned())];
    json!({
        "kind": "Namespace", "apiVersion": "v1", "metadata": metadata("", name, &uid(), &labels),
        "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" },
    })
}

/// A node that is ready.
#[must_use]
pub fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[String], zone: &str) -> Value {
    let labels = [
        ("kubernetes.io/hostname".to_owned(), name.to_owned()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("topology.kubernetes.io/zone".to_owned(), zone.to_owned()),
    ];
    let mut told: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "type": "InternalIP", "address": address.to_string() }))
        .collect();
    told.push(json!({ "type": "Hostname", "address": name }));
    let mut spec = json!({});
    if let Some(first) = pod_cidrs.first() {
        spec = json!({ "podCIDR": first, "podCIDRs": pod_cidrs });
    }
    json!({
        "kind": "Node", "apiVersion": "v1", "metadata": metadata("", name, &uid(), &labels),
        "spec": spec,
        "status": {
            "capacity": { "cpu": "2", "memory": "24684092Ki", "pods": "110" },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": now(), "lastTransitionTime": now(),
                "message": "kubelet is posting ready status",
            }],
            "addresses": told,
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
            "nodeInfo": {
                "containerRuntimeVersion": "containerd://2.1.9", "kubeletVersion": "v1.36.2",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, often empty.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// At the ClusterIP.
    pub port: u16,
    /// At the pods.
    pub target: u16,
    /// At the nodes, 0 if none.
    pub node_port: u16,
}

/// A Service; no addresses make a headless one.
#[must_use]
pub fn service(
    namespace: &str,
    name: &str,
    uid: &str,
    ips: &[IpAddr],
    ports: &[ServicePort],
) -> Value {
    let node_port = ports.iter().any(|port| port.node_port != 0);
    let told: Vec<Value> = ports
        .iter()
        .map(|port| {
            let mut told = json!({
                "protocol": port.protocol, "port": port.port, "targetPort": port.target,
            });
            if !port.name.is_empty() {
                told["name"] = json!(port.name);
            }
            if port.node_port != 0 {
                told["nodePort"] = json!(port.node_port);
            }
            told
        })
        .collect();
    let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let families: Vec<&str> =
        ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
    let cluster_ips = if ips.is_empty() { vec!["None".to_owned()] } else { ips };
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": metadata(namespace, name, uid, &[]),
        "spec": {
            "ports": told, "selector": { "app": name },
            "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
            "type": if node_port { "NodePort" } else { "ClusterIP" },
            "sessionAffinity": "None", "ipFamilies": families,
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
        },
        "status": { "loadBalancer": {} },
    })
}

/// Who answers behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Is being deleted, and may still serve.
    pub terminating: bool,
    /// `(namespace, name, uid)` of the pod.
    pub pod: (String, String, String),
    /// The pod's node.
    pub node: String,
}

/// The name of the `EndpointSlice` of a Service for the family of each of its addresses.
pub fn slice_names(service: &str, ips: &[IpAddr]) -> Vec<String> {
    ips.iter().map(|ip| slice_name(service, ip.is_ipv6())).collect()
}

fn slice_name(service: &str, ipv6: bool) -> String {
    format!("{service}-{}", family(ipv6))
}

/// As the API names address types, in small letters.
fn family(ipv6: bool) -> &'static str {
    if ipv6 { "ipv6" } else { "ipv4" }
}

/// An EndpointSlice of one address family of a Service.
#[must_use]
pub fn endpoint_slice(
    service: (&str, &str, &str),
    ipv6: bool,
    ports: &[ServicePort],
    endpoints: &[Endpoint],
) -> Value {
    let (namespace, name, service_uid) = service;
    let labels = [
        (
            "endpointslice.kubernetes.io/managed-by".to_owned(),
            "endpointslice-controller.k8s.io".to_owned(),
        ),
        ("kubernetes.io/service-name".to_owned(), name.to_owned()),
    ];
    let owner = Owner { kind: "Service".into(), name: name.into(), uid: service_uid.to_owned() };
    let mut metadata = metadata(namespace, &slice_name(name, ipv6), &uid(), &labels);
    metadata["ownerReferences"] = json!([owner.reference()]);
    let told: Vec<Value> = endpoints
        .iter()
        .filter(|endpoint| endpoint.address.is_ipv6() == ipv6)
        .map(|endpoint| {
            let (namespace, name, uid) = &endpoint.pod;
            json!({
                "addresses": [endpoint.address.to_string()],
                "conditions": {
                    "ready": endpoint.ready && !endpoint.terminating,
                    "serving": endpoint.ready,
                    "terminating": endpoint.terminating,
                },
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": name, "uid": uid },
                "nodeName": endpoint.node,
            })
        })
        .collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({ "name": port.name, "protocol": port.protocol, "port": port.target }))
        .collect();
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata,
        "addressType": if ipv6 { "IPv6" } else { "IPv4" },
        // When the last one goes, the list is null.
        "endpoints": if told.is_empty() { Value::Null } else { Value::Array(told) },
        "ports": ports,
    })
}
