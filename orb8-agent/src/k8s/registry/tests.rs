//! The registry as the watchers fill it: names, addresses over time, Services, owners, bounds.

mod borrowed;
mod passing;
mod truth;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as ApiNode, Pod as ApiPod, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{Field, Holder, Registry, Seen};
use crate::cgroup::Runtime;
use crate::k8s::services::{ServiceKind, Verdict};
use crate::k8s::status::Resource;

/// 2026-11-21T05:00:00Z is this monotonic time in the tests.
const ZERO_UNIX_NS: i64 = 1_795_237_200_000_000_000;
const SECOND: u64 = 1_000_000_000;
const OWN: &str = "node1";

fn at(ns: u64) -> Seen {
    Seen::live(ns, ZERO_UNIX_NS)
}

fn created(ns: u64) -> String {
    let second = ZERO_UNIX_NS / 1_000_000_000 + i64::try_from(ns / SECOND).expect("it is small");
    let (hour, rest) = ((second / 3600) % 24, second % 3600);
    format!("2026-11-21T{hour:02}:{:02}:{:02}Z", rest / 60, rest % 60)
}

/// A pod named like its uid, running with an address.
fn running(uid: &str, address: &str, created_ns: u64) -> Value {
    json!({
        "metadata": {
            "uid": uid, "namespace": "shop", "name": uid, "creationTimestamp": created(created_ns),
        },
        "spec": { "nodeName": OWN, "containers": [] },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
            "containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": format!("containerd://of-{uid}"),
                "state": { "running": {} },
            }],
        },
    })
}

fn pod(value: &Value) -> ApiPod {
    serde_json::from_value(value.clone()).expect("it is a pod")
}

fn meta(value: &Value) -> ObjectMeta {
    serde_json::from_value(value["metadata"].clone()).expect("it is metadata")
}

fn node(name: &str, address: &str, range: &str) -> ApiNode {
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "creationTimestamp": created(0),
            "labels": { "topology.kubernetes.io/zone": "zone-a" },
        },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": address }, { "type": "Hostname", "address": name },
        ] },
    }))
    .expect("it is a node")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("it is an address")
}

/// An empty cluster, listed at time 0.
fn listed() -> Arc<Registry> {
    let registry = Registry::shared(OWN, 64);
    for resource in Resource::ALL {
        registry.begin_list(resource);
        registry.end_list(resource, Seen::late(0, 0, ZERO_UNIX_NS));
    }
    registry
}

fn who(registry: &Registry, address: &str, at_ns: u64) -> String {
    match registry.read().holder(ip(address), at_ns) {
        Holder::Pod { pod, current } => {
            let name = pod.identity().map_or("unnamed", |identity| &identity.name);
            if current { name.to_owned() } else { format!("{name}, earlier") }
        }
        Holder::Node { node, .. } => format!("node {}", node.name),
        Holder::Service { service, .. } => format!("service {}", service.name),
        Holder::Ambiguous => "ambiguous".to_owned(),
        Holder::InCluster => "in cluster".to_owned(),
        Holder::Outside => "outside".to_owned(),
        Holder::NotSynced => "not synced".to_owned(),
    }
}

#[test]
fn nobody_is_named_before_everybody_is_known() {
    let registry = Registry::shared(OWN, 64);
    registry.begin_list(Resource::Pods);
    registry.apply_pod(&pod(&running("a", "10.0.0.1", 0)), Seen::late(SECOND, 0, ZERO_UNIX_NS));
    assert_eq!(who(&registry, "10.0.0.1", SECOND), "not synced");
    registry.end_list(Resource::Pods, Seen::late(SECOND, 0, ZERO_UNIX_NS));
    assert_eq!(who(&registry, "10.0.0.1", SECOND), "a");
    assert_eq!(who(&registry, "9.9.9.9", SECOND), "not synced");
    assert!(!registry.read().knows(Field::Pod, "anything"), "pods are listed");
    assert!(registry.read().knows(Field::Node, "anything"), "nodes are not");
}

#[test]
fn a_reused_address_names_each_holder_in_its_time() {
    let registry = listed();
    let old = running("old", "10.0.0.1", 10 * SECOND);
    registry.apply_pod(&pod(&old), at(10 * SECOND));
    registry.delete_pod(&meta(&old), at(20 * SECOND));
    let mut new = running("new", "10.0.0.1", 20 * SECOND);
    new["status"] = json!({ "phase": "Pending" });
    registry.apply_pod(&pod(&new), at(20 * SECOND + 300_000_000));
    registry.apply_pod(&pod(&running("new", "10.0.0.1", 20 * SECOND)), at(21 * SECOND));
    for (time, wanted) in [
        // Before the first: nobody's that is known, but an address that pods get.
        (9 * SECOND, "in cluster"),
        (15 * SECOND, "old, earlier"),
        (20 * SECOND - 1, "old, earlier"),
        // Deleted while its container ran: it may run on, and the new pod was made in this second;
        // that it was told later does not say that it sent nothing before.
        (20 * SECOND + 200_000_000, "ambiguous"),
        (20 * SECOND + 500_000_000, "ambiguous"),
        (22 * SECOND, "new"),
    ] {
        assert_eq!(who(&registry, "10.0.0.1", time), wanted, "{time}");
    }
}

#[test]
fn finished_and_host_network_pods_hold_no_address() {
    let registry = listed();
    registry.apply_node(&node("node1", "172.30.0.11", "10.0.0.0/24"), at(SECOND));
    let mut job = running("job", "10.0.0.1", SECOND);
    registry.apply_pod(&pod(&job), at(2 * SECOND));
    job["status"]["phase"] = json!("Succeeded");
    job["status"]["containerStatuses"][0]["state"] = json!({ "terminated": { "exitCode": 0 } });
    registry.apply_pod(&pod(&job), at(3 * SECOND));
    let mut host = running("host", "172.30.0.11", SECOND);
    host["spec"]["hostNetwork"] = json!(true);
    registry.apply_pod(&pod(&host), at(4 * SECOND));
    assert_eq!(who(&registry, "10.0.0.1", 2 * SECOND), "job");
    assert_eq!(who(&registry, "10.0.0.1", 4 * SECOND), "in cluster");
    assert_eq!(who(&registry, "172.30.0.11", 5 * SECOND), "node node1");
    let job = registry.pod_of_cgroup("job").expect("it is known");
    assert_eq!(job.state().ended_ns, Some(3 * SECOND));
}

#[test]
fn a_cgroup_that_came_first_gets_its_name_later() {
    let registry = listed();
    let early = registry.pod_of_cgroup("a").expect("there is room");
    assert!(early.identity().is_none());
    let mut unbound = running("a", "10.0.0.1", SECOND);
    unbound["spec"] = json!({ "containers": [] });
    unbound["status"] = json!({ "phase": "Pending" });
    registry.apply_pod(&pod(&unbound), at(SECOND));
    assert!(early.identity().is_none(), "its node is not known yet");
    registry.apply_pod(&pod(&running("a", "10.0.0.1", SECOND)), at(2 * SECOND));
    let identity = early.identity().expect("the API told it");
    assert_eq!((&*identity.namespace, &*identity.name), ("shop", "a"));
    assert_eq!(identity.node.as_ref().map(|node| &*node.name), Some(OWN));
    assert_eq!(early.container("of-a").as_deref(), Some("app"));
    assert_eq!(early.runtime("of-a"), Some(Runtime::Containerd));
    assert_eq!(early.runtime("of-b"), None);
    assert_eq!(registry.status().runtimes.into_iter().collect::<Vec<_>>(), [Runtime::Containerd]);
    assert!(Arc::ptr_eq(&early, &registry.pod_of_cgroup("a").expect("it is known")));
}

#[test]
fn a_static_pod_is_one_pod_through_all_its_mirror_objects() {
    let registry = listed();
    let hash = "0123456789abcdef0123456789abcdef";
    let mirror = |uid: &str| {
        let mut mirror = running(uid, "10.0.0.1", SECOND);
        mirror["metadata"]["name"] = json!("static-web-node1");
        mirror["metadata"]["annotations"] =
            json!({ "kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash });
        mirror["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "Node", "name": OWN, "uid": "n", "controller": true,
        }]);
        mirror
    };
    registry.apply_pod(&pod(&mirror("first")), at(2 * SECOND));
    let held = registry.pod_of_cgroup(hash).expect("it is known");
    assert!(held.state().workload.is_none(), "a node is no workload");
    registry.delete_pod(&meta(&mirror("first")), at(10 * SECOND));
    assert_eq!(held.state().ended_ns, Some(10 * SECOND));
    registry.apply_pod(&pod(&mirror("second")), at(11 * SECOND));
    assert_eq!(held.state().ended_ns, None);
    assert!(Arc::ptr_eq(&held, &registry.pod_of_cgroup(hash).expect("it is known")));
    for time in [5, 10, 12] {
        assert_eq!(who(&registry, "10.0.0.1", time * SECOND), "static-web-node1");
    }
    // A hash that only a user wrote names no other pod's cgroup.
    let mut liar = running("liar", "10.0.0.9", SECOND);
    liar["metadata"]["annotations"] = json!({ "kubernetes.io/config.hash": hash });
    registry.apply_pod(&pod(&liar), at(12 * SECOND));
    assert_eq!(held.identity().map(|identity| &*identity.name), Some("static-web-node1"));
}

#[test]
fn pods_of_this_node_go_first_and_what_does_not_fit_is_counted() {
    let registry = Registry::shared(OWN, 2);
    registry.begin_list(Resource::Pods);
    let seen = Seen::late(SECOND, 0, ZERO_UNIX_NS);
    for (uid, node) in [("a", "node2"), ("b", "node2"), ("c", "node2"), ("d", OWN), ("e", OWN)] {
        let mut value = running(uid, &format!("10.0.0.{}", uid.as_bytes()[0]), 0);
        value["spec"]["nodeName"] = json!(node);
        registry.apply_pod(&pod(&value), seen);
    }
    registry.apply_pod(&pod(&running("f", "10.0.0.200", 0)), seen);
    registry.end_list(Resource::Pods, seen);
    let status = registry.status();
    assert_eq!((status.pods, status.pods_local, status.max_pods), (2, 2, 2));
    assert_eq!(status.rejected, 4, "c, f, and a and b for d and e");
    let mut local: Vec<_> = registry.local_pods().iter().map(|pod| pod.uid.to_string()).collect();
    local.sort();
    assert_eq!(local, ["d", "e"]);
}

#[test]
fn placeholders_are_bounded_and_go_when_nobody_holds_them() {
    let registry = Registry::shared(OWN, 16);
    let held: Vec<_> = (0..1024).map(|n| registry.pod_of_cgroup(&n.to_string())).collect();
    assert!(held.iter().all(Option::is_some));
    assert!(registry.pod_of_cgroup("one too many").is_none());
    assert_eq!(registry.status().rejected, 1);
    drop(held);
    assert!(registry.pod_of_cgroup("one more").is_some());
}

#[test]
fn an_ended_pod_keeps_its_name_for_late_records_and_no_longer() {
    let registry = listed();
    registry.apply_pod(&pod(&running("a", "10.0.0.1", 0)), at(SECOND));
    registry.delete_pod(&meta(&running("a", "10.0.0.1", 0)), at(2 * SECOND));
    let name = |registry: &Registry| {
        let pod = registry.pod_of_cgroup("a").expect("there is room");
        pod.identity().map(|identity| identity.name.to_string())
    };
    assert_eq!(name(&registry).as_deref(), Some("a"));
    assert!(registry.read().knows(Field::Pod, "shop/a"));
    let much_later = at(400 * SECOND);
    registry.apply_pod(&pod(&running("b", "10.0.0.2", 400 * SECOND)), much_later);
    assert_eq!(name(&registry), None);
    assert_eq!(who(&registry, "10.0.0.1", SECOND), "in cluster");
}

fn service(value: Value) -> ApiService {
    serde_json::from_value(value).expect("it is a Service")
}

fn slice(ready: &[(bool, &str)]) -> EndpointSlice {
    let endpoints: Vec<Value> = ready
        .iter()
        .map(|(ready, node)| {
            json!({ "addresses": ["10.0.0.1"], "nodeName": node, "conditions": { "ready": ready } })
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "shop", "name": "web-abc",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
    }))
    .expect("it is an EndpointSlice")
}

#[test]
fn services_are_found_by_what_is_dialled_and_say_whether_anybody_answers() {
    let registry = listed();
    let web = json!({
        "metadata": { "namespace": "shop", "name": "web", "creationTimestamp": created(0) },
        "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "externalIPs": ["203.0.113.9"], "externalTrafficPolicy": "Local",
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }],
        },
    });
    registry.apply_service(&service(web.clone()), at(SECOND));
    let verdicts = |registry: &Registry| {
        let view = registry.read();
        let own = view.service(ip("10.96.0.7"), 80, 6, SECOND).expect("its ClusterIP");
        let outer = view.service(ip("203.0.113.9"), 80, 6, SECOND).expect("its external address");
        let node = view.node_port(30080, 6, SECOND).expect("its node port");
        assert_eq!((own.kind, outer.kind), (ServiceKind::ClusterIp, ServiceKind::External));
        assert_eq!((node.kind, &*node.service.name), (ServiceKind::NodePort, "web"));
        assert!(view.service(ip("10.96.0.7"), 80, 17, SECOND).is_none(), "UDP is another port");
        (own.verdict, node.verdict)
    };
    assert_eq!(verdicts(&registry), (Verdict::NoEndpoints, Verdict::NoEndpoints));
    registry.apply_slice(&slice(&[(true, "node2"), (false, OWN)]), at(2 * SECOND));
    assert_eq!(verdicts(&registry), (Verdict::Ok, Verdict::NoEndpoints), "Local policy");
    registry.apply_slice(&slice(&[(true, OWN)]), at(3 * SECOND));
    assert_eq!(verdicts(&registry), (Verdict::Ok, Verdict::Ok));
    assert_eq!(who(&registry, "10.96.0.7", 3 * SECOND), "service web");
    assert_eq!(who(&registry, "203.0.113.9", 3 * SECOND), "service web");
    assert!(registry.read().knows(Field::Service, "shop/web"));
    assert!(!registry.read().knows(Field::Service, "other/web"));
    registry.delete_service(&meta(&web), at(4 * SECOND));
    assert!(registry.read().node_port(30080, 6, 5 * SECOND).is_none());
    assert_eq!(who(&registry, "10.96.0.7", 5 * SECOND), "outside");
}

#[test]
fn a_verdict_is_unknown_before_the_slices_are_listed() {
    let registry = Registry::shared(OWN, 16);
    let web = json!({
        "metadata": { "namespace": "shop", "name": "web" },
        "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 53, "protocol": "UDP" }] },
    });
    registry.apply_service(&service(web), at(SECOND));
    let view = registry.read();
    let hit = view.service(ip("10.96.0.7"), 53, 17, SECOND).expect("its ClusterIP");
    assert_eq!(hit.verdict, Verdict::Unknown);
}

#[test]
fn nodes_keep_their_addresses_zone_and_ranges_apart() {
    let registry = listed();
    registry.apply_node(&node("node1", "172.30.0.11", "10.244.1.0/24"), at(SECOND));
    registry.apply_node(&node("node2", "172.30.0.12", "10.244.2.0/24"), at(SECOND));
    let generation = registry.generation();
    registry.apply_node(&node("node2", "172.30.0.12", "10.244.2.0/24"), at(2 * SECOND));
    assert_eq!(registry.generation(), generation, "a heartbeat changes no answer");
    for (address, wanted) in [
        ("172.30.0.12", "node node2"),
        ("10.244.2.77", "in cluster"),
        ("10.244.3.1", "outside"),
        ("fd00::1", "outside"),
    ] {
        assert_eq!(who(&registry, address, 2 * SECOND), wanted, "{address}");
    }
    let zone = registry.read().own_node().state().zone.clone();
    assert_eq!(zone.as_deref(), Some("zone-a"));
    registry.begin_list(Resource::Nodes);
    registry.apply_node(&node("node1", "172.30.0.11", "10.244.1.0/24"), at(3 * SECOND));
    registry.end_list(Resource::Nodes, at(3 * SECOND));
    assert_eq!(who(&registry, "172.30.0.12", 4 * SECOND), "outside");
    assert_eq!(who(&registry, "10.244.2.77", 4 * SECOND), "outside");
}

#[test]
fn workloads_are_known_by_name_kind_and_namespace() {
    let registry = listed();
    let mut owned = running("db-0", "10.0.0.1", 0);
    owned["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s",
        "controller": true,
    }]);
    registry.apply_pod(&pod(&owned), at(SECOND));
    let view = registry.read();
    for (value, wanted) in [
        ("db", true),
        ("statefulset/db", true),
        ("shop/db", true),
        ("shop/StatefulSet/db", true),
        ("shop/deployment/db", false),
        ("d", false),
        ("other/db", false),
    ] {
        assert_eq!(view.knows(Field::Workload, value), wanted, "{value}");
    }
    assert!(view.knows(Field::Namespace, "shop") && !view.knows(Field::Namespace, "sho"));
    assert!(view.knows(Field::Pod, "db-") && view.knows(Field::Pod, "shop/db"));
    assert!(!view.knows(Field::Pod, "other/db") && !view.knows(Field::Node, "node9"));
}
