//! What agents of a small cluster tell: pods on two nodes that talk through a Service, to the outside
//! and to nobody.

use std::collections::HashMap;

use orb8_proto::v1::{
    AgentStatus, AttributionShare, Cgroups, ConnectionTracking, Endpoint, Interface, Kubernetes,
    NetworkFlow, PodPlane, ServiceUse, TcpInfo, WatchedResource,
};

use super::sample::{HOUR, SECOND};

fn pod(pod: &str, workload: (&str, &str), node: &str, attribution: &str) -> Endpoint {
    let (kind, workload) = workload;
    Endpoint {
        kind: "pod".to_owned(),
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        workload: workload.to_owned(),
        workload_kind: kind.to_owned(),
        node: node.to_owned(),
        zone: if node == "node-a" { "west" } else { "east" }.to_owned(),
        attribution: attribution.to_owned(),
        pod_uid: format!("uid-of-{pod}"),
        ..Endpoint::default()
    }
}

/// The client, as its own node knows it.
pub(crate) fn web() -> Endpoint {
    Endpoint {
        container: "nginx".to_owned(),
        container_id: "4f1c9a7be2d03355".repeat(4),
        runtime: "containerd".to_owned(),
        cgroup_id: 4711,
        labels: HashMap::from([("app".to_owned(), "web".to_owned())]),
        ..pod("web-7d9-x2", ("Deployment", "web"), "node-a", "cgroup")
    }
}

fn web_by_address() -> Endpoint {
    pod("web-7d9-x2", ("Deployment", "web"), "node-a", "address")
}

fn cart(attribution: &str) -> Endpoint {
    pod("cart-0", ("StatefulSet", "cart"), "node-b", attribution)
}

fn service() -> Endpoint {
    Endpoint {
        kind: "service".to_owned(),
        namespace: "shop".to_owned(),
        service: "cart".to_owned(),
        attribution: "address".to_owned(),
        ..Endpoint::default()
    }
}

fn asked(verdict: &str) -> ServiceUse {
    ServiceUse {
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        ip: "10.96.0.10".to_owned(),
        port: 80,
        port_name: "http".to_owned(),
        kind: "cluster_ip".to_owned(),
        verdict: verdict.to_owned(),
        ..ServiceUse::default()
    }
}

fn answered() -> ServiceUse {
    ServiceUse {
        backend_ip: "10.1.1.7".to_owned(),
        backend_port: 8080,
        backend: Some(cart("address")),
        ..asked("ok")
    }
}

fn nobody(kind: &str, attribution: &str, reason: &str) -> Endpoint {
    Endpoint {
        kind: kind.to_owned(),
        attribution: attribution.to_owned(),
        reason: reason.to_owned(),
        ..Endpoint::default()
    }
}

struct At<'a> {
    node: &'a str,
    direction: &'a str,
    source: (&'a str, u32, Endpoint),
    destination: (&'a str, u32, Endpoint),
}

fn flow(now_ns: i64, id: u64, at: At<'_>, bytes: u64) -> NetworkFlow {
    let owner = if at.direction == "egress" { &at.source.2 } else { &at.destination.2 };
    NetworkFlow {
        namespace: owner.namespace.clone(),
        pod_name: owner.pod.clone(),
        src_ip: at.source.0.to_owned(),
        src_port: at.source.1,
        dst_ip: at.destination.0.to_owned(),
        dst_port: at.destination.1,
        protocol: "tcp".to_owned(),
        direction: at.direction.to_owned(),
        bytes,
        packets: bytes / 100,
        first_seen_ns: now_ns - HOUR - 30 * SECOND,
        last_seen_ns: now_ns - 90 * SECOND,
        flow_id: id,
        plane: "socket".to_owned(),
        scope: "local".to_owned(),
        state: "active".to_owned(),
        node_name: at.node.to_owned(),
        source: Some(at.source.2),
        destination: Some(at.destination.2),
        ..NetworkFlow::default()
    }
}

/// web asks the Service cart, and cart-0 on the other node answers: four records of one conversation.
pub(crate) fn through_service(now_ns: i64) -> Vec<NetworkFlow> {
    let (client, virtual_ip, backend) =
        (("10.1.0.5", 40_000), ("10.96.0.10", 80), ("10.1.1.7", 8080));
    let end = |(ip, port): (&'static str, u32), who: Endpoint| (ip, port, who);
    let record = |id, node, direction, source, destination, bytes| {
        flow(now_ns, id, At { node, direction, source, destination }, bytes)
    };
    let to_service = end(virtual_ip, service());
    let sent = record(1, "node-a", "egress", end(client, web()), to_service.clone(), 60_000);
    let received = record(2, "node-a", "ingress", to_service, end(client, web()), 900_000);
    let asked_there = record(
        3,
        "node-b",
        "ingress",
        end(client, web_by_address()),
        end(backend, cart("cgroup")),
        60_000,
    );
    let answered_there = record(
        4,
        "node-b",
        "egress",
        end(backend, cart("cgroup")),
        end(client, web_by_address()),
        900_000,
    );
    let syn = |flags: &[&str]| {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Some(TcpInfo { flags, state: "open".to_owned() })
    };
    vec![
        NetworkFlow { service: Some(answered()), tcp: syn(&["syn"]), ..sent },
        NetworkFlow { service: Some(answered()), tcp: syn(&["syn_ack"]), ..received },
        NetworkFlow { tcp: syn(&["syn"]), ..asked_there },
        NetworkFlow { tcp: syn(&["syn_ack"]), ..answered_there },
    ]
}

/// One flow of each kind of end, and of each mark.
pub(crate) fn flows(now_ns: i64) -> Vec<NetworkFlow> {
    let client = || ("10.1.0.5", 41_000, web());
    let record = |id, direction, source, destination, bytes| {
        flow(now_ns, id, At { node: "node-a", direction, source, destination }, bytes)
    };
    let sent = |id, destination, bytes| record(id, "egress", client(), destination, bytes);
    let nobody_there = NetworkFlow {
        service: Some(asked("no_endpoints")),
        ..sent(5, ("10.96.0.10", 80, service()), 700)
    };
    let outside = sent(6, ("93.184.216.34", 443, nobody("external", "none", "")), 600);
    let unknown = nobody("unknown", "none", "api_not_synced");
    let refused = NetworkFlow {
        supplement: true,
        plane: "tc".to_owned(),
        interface: "veth1".to_owned(),
        scope: "unclaimed".to_owned(),
        ..sent(7, ("10.1.9.9", 81, unknown), 500)
    };
    let node = Endpoint { node: "node-b".to_owned(), ..nobody("node", "masqueraded", "") };
    let hidden = record(8, "ingress", ("192.168.0.2", 50_000, node), client(), 400);
    let reused = pod("cart-1", ("StatefulSet", "cart"), "node-b", "address_reused");
    let late = record(9, "ingress", ("10.1.1.8", 8080, reused), client(), 300);
    let unnamed =
        Endpoint { pod_uid: "8f0a1b2c-0000".to_owned(), ..nobody("pod", "cgroup", "pod_unknown") };
    let early = record(
        10,
        "egress",
        ("10.1.0.6", 9, unnamed),
        ("fd00::9", 9, nobody("external", "none", "")),
        200,
    );
    let unit = Endpoint { unit: "kubelet.service".to_owned(), ..nobody("process", "cgroup", "") };
    let docker = Endpoint {
        runtime: "docker".to_owned(),
        container_id: "9c1".repeat(8),
        ..nobody("process", "cgroup", "")
    };
    let host = record(11, "egress", ("192.168.0.1", 10_250, unit), ("172.17.0.2", 80, docker), 100);
    let mut all = through_service(now_ns);
    all.extend([nobody_there, outside, refused, hidden, late, early, host]);
    all
}

fn synced(name: &str, objects: u64, now_ns: i64) -> WatchedResource {
    WatchedResource {
        name: name.to_owned(),
        state: "synced".to_owned(),
        objects,
        last_heard_ns: now_ns - 40 * SECOND,
        lists: 1,
        watches: 3,
        ..WatchedResource::default()
    }
}

const RESOURCES: [(&str, u64); 6] = [
    ("pods", 340),
    ("nodes", 2),
    ("services", 41),
    ("endpointslices", 43),
    ("replicasets", 60),
    ("jobs", 5),
];

fn share(plane: &str, attribution: &str, reason: &str, bytes: u64) -> AttributionShare {
    AttributionShare {
        plane: plane.to_owned(),
        attribution: attribution.to_owned(),
        reason: reason.to_owned(),
        scope: "local".to_owned(),
        packets: bytes / 100,
        bytes,
        ..AttributionShare::default()
    }
}

fn of_scope(scope: &str, share: AttributionShare) -> AttributionShare {
    AttributionShare { scope: scope.to_owned(), ..share }
}

fn supplement(share: AttributionShare) -> AttributionShare {
    AttributionShare { supplement: true, ..share }
}

fn pod_plane(pod: &str, plane: &str, reason: &str) -> PodPlane {
    PodPlane {
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        plane: plane.to_owned(),
        reason: reason.to_owned(),
    }
}

fn uplink(mode: &str, status: &AgentStatus) -> Vec<Interface> {
    let changed = |interface: &Interface| Interface { mode: mode.to_owned(), ..interface.clone() };
    status.interfaces.iter().map(changed).collect()
}

/// An agent in a cluster, both planes in use.
pub(crate) fn status(now_ns: i64) -> AgentStatus {
    let plain = super::sample::status(now_ns);
    let resources = RESOURCES.map(|(name, objects)| synced(name, objects, now_ns));
    AgentStatus {
        pods_tracked: 3,
        capture: "both".to_owned(),
        capture_reason: "all processes are in cgroup2".to_owned(),
        interfaces: uplink("supplement", &plain),
        kubernetes: Some(Kubernetes {
            state: "synced".to_owned(),
            server: "https://10.96.0.1:443".to_owned(),
            resources: resources.to_vec(),
            pods_local: 3,
            pods: 340,
            max_pods: 10_000,
            ..Kubernetes::default()
        }),
        attribution_shares: vec![
            share("socket", "cgroup", "", 990_000),
            share("socket", "address", "", 9_600),
            share("socket", "none", "cgroup_unknown", 400),
            supplement(of_scope("unclaimed", share("tc", "interface", "", 700))),
            supplement(of_scope("forwarded", share("tc", "address", "", 5_000_000))),
        ],
        cgroups: Some(Cgroups {
            mode: "unified".to_owned(),
            mount: "/sys/fs/cgroup".to_owned(),
            runtimes: vec!["containerd".to_owned()],
            driver: "systemd".to_owned(),
            known: 57,
            reason: String::new(),
        }),
        pod_planes: vec![
            pod_plane("web-7d9-x2", "socket", ""),
            pod_plane("cart-0", "socket", ""),
            pod_plane("probe-9k2", "socket", ""),
        ],
        connection_tracking: Some(ConnectionTracking {
            state: "ok".to_owned(),
            entries: 12,
            max_entries: 65_536,
            ..ConnectionTracking::default()
        }),
        ..plain
    }
}

/// An agent of a node without cgroup2, whose API has gone away and told it nothing of Services before.
pub(crate) fn cut_off(now_ns: i64) -> AgentStatus {
    let well = status(now_ns);
    let silent = "client error (Connect): 10.96.0.1:443 does not answer; is https://10.96.0.1:443 reachable from this node?";
    let mut resources = RESOURCES.map(|(name, objects)| WatchedResource {
        state: "stale".to_owned(),
        reason: silent.to_owned(),
        errors: 2,
        ..synced(name, objects, now_ns)
    });
    resources[2] = WatchedResource {
        state: "forbidden".to_owned(),
        reason: "services is forbidden: User \"system:serviceaccount:orb8:agent\" cannot list \
                 resource \"services\" in API group \"\" at the cluster scope; grant list and \
                 watch on services in API group \"\" to the agent's ClusterRole"
            .to_owned(),
        last_heard_ns: 0,
        objects: 0,
        watches: 0,
        errors: 4,
        ..resources[2].clone()
    };
    let of_node = "it has the node's network: only what passes an uplink is counted";
    AgentStatus {
        capture: "tc".to_owned(),
        capture_reason: "cgroup2 is not mounted, so sockets have no cgroup".to_owned(),
        interfaces: uplink("full", &well),
        kubernetes: Some(Kubernetes {
            state: "stale".to_owned(),
            reason: format!("pods: {silent}"),
            rejected: 2,
            resources: resources.to_vec(),
            ..well.kubernetes.clone().unwrap_or_default()
        }),
        attribution_shares: vec![
            share("tc", "interface", "", 990_000),
            share("tc", "address", "", 9_600),
            share("tc", "none", "interface_unknown", 400),
            of_scope("forwarded", share("tc", "address", "", 5_000_000)),
        ],
        cgroups: Some(Cgroups {
            mode: "v1".to_owned(),
            reason: "cgroup2 is not mounted: pods are told apart by interface and address"
                .to_owned(),
            ..Cgroups::default()
        }),
        pod_planes: vec![
            pod_plane("web-7d9-x2", "tc", ""),
            pod_plane("cart-0", "tc", ""),
            pod_plane("probe-9k2", "tc", of_node),
        ],
        connection_tracking: Some(ConnectionTracking {
            state: "resyncing".to_owned(),
            reason: "messages came faster than they were read: reading the table again".to_owned(),
            overruns: 1,
            evicted: 9,
            max_entries: 65_536,
            entries: 65_536,
        }),
        ..well
    }
}
