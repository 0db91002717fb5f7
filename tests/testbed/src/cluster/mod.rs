//! A cluster of namespaces: nodes joined by a switch, pods wired to their nodes and placed in
//! cgroups as a kubelet places them, Services as kube-proxy makes them, and an API server that is
//! told all of it.
//!
//! | module | content |
//! |---|---|
//! | [`plan`] | what is to be, and the addresses that follow |
//! | [`path`] | cgroup paths of kubelets and runtimes |
//! | [`actor`] | a process that makes sockets in its cgroup and namespace |
//! | [`node`] | a node and its wires |
//! | [`pod`] | a running pod |
//! | [`proxy`] | iptables rules of Services and masquerading |
//! | [`talk`] | traffic between actors, counted exactly at both ends |
//!
//! Everything ends with its handle; see [`crate::cgroup`] for what happens after SIGKILL.

pub mod actor;
pub mod node;
pub mod path;
pub mod plan;
pub mod pod;
pub mod proxy;
pub mod talk;

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use actor::Actor;
use node::Node;
use plan::{Plan, PodPlan};
use pod::Pod;
use proxy::Service;

use crate::agent::AgentOptions;
use crate::api::ApiServer;
use crate::api::object::{self, Endpoint, Owner, ServicePort};
use crate::api::pod::{Pod as Object, Stage};
use crate::cgroup::{self, Tree};
use crate::link::wait_operational;
use crate::need::Need;
use crate::netns::Netns;

/// The needs of every test that makes a cluster.
pub const NEEDS: &[Need] = &[
    Need::Root,
    Need::Bpf,
    Need::Cgroup2,
    Need::Tool("ip"),
    Need::Tool("iptables-restore"),
    Need::Tool("ip6tables-restore"),
];

/// Link-layer addresses of the host that is not of the cluster, and of its way into it.
const OUTSIDE_MAC: &str = "02:14:00:00:00:01";
const GATEWAY_MAC: &str = "02:14:00:00:00:02";

/// Capabilities of an agent, by number: NET_ADMIN, PERFMON, BPF.
const AGENT_CAPABILITIES: [u32; 3] = [12, 38, 39];

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its API server.
    pub api: ApiServer,
    /// What it was made from.
    pub plan: Plan,
    /// The namespace that joins the nodes, where people sit who ask the agents.
    pub switch: Netns,
    /// A host that is not of the cluster.
    pub outside: Actor,
    nodes: Vec<Node>,
    services: Mutex<Vec<Service>>,
    next_service: AtomicU8,
    tree: Tree,
}

impl Cluster {
    /// Nodes without pods, known to the API.
    ///
    /// # Panics
    /// If the kernel refuses; tests ask for [`NEEDS`] first.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let tree = Tree::new("cluster");
        let switch = switch();
        let outside = outside(&switch, &tree);
        let api = ApiServer::inside(&switch, plan::API.into());
        let nodes: Vec<Node> = (1..=plan.nodes)
            .map(|number| {
                let root = tree.make(&format!("node{number}"));
                Node::new(number, &plan, &switch, root)
            })
            .collect();
        for node in &nodes {
            node.reach(plan.nodes, plan.overlay);
            proxy::apply(node, plan.masquerade, &[]);
            let addresses = node.addresses();
            let ranges: Vec<String> = plan::pod_cidrs(node.number)
                .into_iter()
                .zip(addresses)
                .filter(|(_, address)| plan.families.has(address))
                .map(|(range, _)| range)
                .collect();
            api.put(object::node(
                &node.name,
                &addresses,
                &ranges,
                &format!("zone-{}", node.number),
            ));
        }
        let ways_back: Vec<String> = (1..=plan.nodes)
            .flat_map(|number| {
                plan::pod_cidrs(number)
                    .into_iter()
                    .zip(plan::node_addresses(number))
                    .map(|(range, via)| format!("route add {range} via {via} dev sw0"))
            })
            .collect();
        switch.ip_batch(&ways_back);
        let (services, next_service) = (Mutex::default(), AtomicU8::new(10));
        Self { api, plan, switch, outside, nodes, services, next_service, tree }
    }

    /// A node by its number, from 1.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where its cgroups are.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Starts a pod; the API learns of it stage by stage, as from a scheduler and a kubelet.
    #[must_use]
    pub fn pod(&self, plan: PodPlan) -> Pod {
        let announced = plan.announced;
        let pod = Pod::start(self.node(plan.node), plan, &self.plan.layout);
        if announced {
            for stage in [Stage::Created, Stage::Bound, Stage::Starting, Stage::Running] {
                self.announce(&pod, stage);
            }
        }
        pod
    }

    /// A pod with nothing special: `namespace/name` on a node, of a Deployment by a name of its own.
    #[must_use]
    pub fn simple(&self, name: &str, node: u8) -> Pod {
        let plan = PodPlan::new(name, node);
        let deployment = Owner::new("Deployment", &format!("{}-app", plan.name));
        let set = Owner::new("ReplicaSet", &format!("{}-app-7c9d8b6f5", plan.name));
        self.api.put(object::owned(
            "ReplicaSet",
            &plan.namespace,
            &set.name,
            &set.uid,
            Some(&deployment),
        ));
        self.pod(plan.owner(&set))
    }

    /// Tells the API at which stage a pod is. The mirror of a static pod has no other kind of
    /// object than the rest.
    pub fn announce(&self, pod: &Pod, stage: Stage) {
        self.api.put(pod.object.object(stage));
    }

    /// Tells the API that a pod is gone.
    pub fn forget(&self, pod: &Pod) {
        let (namespace, name) = pod.key();
        self.api.delete("pods", namespace, name);
    }

    /// Deletes a pod as a kubelet does: told to end, ended, gone from the API.
    pub fn delete(&self, pod: Pod) {
        let object = self.end(pod);
        self.let_go(&object);
    }

    /// Ends a pod that was told to; the API does not know yet that it has.
    #[must_use]
    pub fn end(&self, pod: Pod) -> Object {
        self.announce(&pod, Stage::Terminating);
        let object = pod.object.clone();
        drop(pod);
        object
    }

    /// Tells the API that a pod has ended, and then that it is gone.
    pub fn let_go(&self, object: &Object) {
        self.api.put(object.object(Stage::Ended));
        self.api.delete("pods", &object.namespace, &object.name);
    }

    /// A process of a node that is in no pod, in a unit of the system's.
    #[must_use]
    pub fn host_process(&self, node: u8, unit: &str) -> Actor {
        let node = self.node(node);
        let directory = cgroup::make(node.cgroup_root(), &format!("system.slice/{unit}"));
        let comm: String = unit.split('.').next().unwrap_or_default().chars().take(15).collect();
        Actor::start(&comm, &directory, &node.netns, &node.addresses())
    }

    /// Makes a Service and tells the API and all nodes.
    pub fn service(&self, name: &str, ports: &[ServicePort], backends: &[&Pod]) -> Service {
        let number = self.next_service.fetch_add(1, Ordering::Relaxed);
        let ips = plan::cluster_ips(number);
        let ips = ips.into_iter().filter(|ip| self.plan.families.has(ip)).collect();
        self.service_at(name, ips, ports, backends)
    }

    /// Deletes a Service and gives its ClusterIPs and ports to a new one.
    pub fn replace_service(&self, old: Service, name: &str, backends: &[&Pod]) -> Service {
        self.services().retain(|known| known.uid != old.uid);
        for slice in object::slice_names(&old.name, &old.ips) {
            self.api.delete("endpointslices", &old.namespace, &slice);
        }
        self.api.delete("services", &old.namespace, &old.name);
        self.service_at(name, old.ips, &old.ports, backends)
    }

    fn service_at(
        &self,
        name: &str,
        ips: Vec<IpAddr>,
        ports: &[ServicePort],
        backends: &[&Pod],
    ) -> Service {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        let service = Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: object::uid(),
            ips,
            ports: ports.to_vec(),
            endpoints: backends.iter().flat_map(|pod| endpoints(pod)).collect(),
        };
        let told = object::service(namespace, name, &service.uid, &service.ips, &service.ports);
        self.api.put(told);
        self.services().push(service.clone());
        self.route(&service);
        service
    }

    /// Gives a Service other backends.
    ///
    /// # Panics
    /// If there is no such Service.
    pub fn set_backends(&self, service: &Service, backends: &[&Pod]) {
        let mut services = self.services();
        let known = services.iter_mut().find(|known| known.uid == service.uid);
        let known = known.expect("a Service of this cluster");
        known.endpoints = backends.iter().flat_map(|pod| endpoints(pod)).collect();
        let known = known.clone();
        drop(services);
        self.route(&known);
    }

    fn services(&self) -> MutexGuard<'_, Vec<Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the API who answers, and the nodes where to send what is asked.
    fn route(&self, service: &Service) {
        for ip in &service.ips {
            let of = (service.namespace.as_str(), service.name.as_str(), service.uid.as_str());
            self.api.put(object::endpoint_slice(
                of,
                ip.is_ipv6(),
                &service.ports,
                &service.endpoints,
            ));
        }
        let services = self.services().clone();
        for node in &self.nodes {
            proxy::apply(node, self.plan.masquerade, &services);
        }
    }

    /// An agent for a node: its own API client, its node's cgroups, exactly the default
    /// capabilities, itself in the cgroup of a hostNetwork pod.
    #[must_use]
    pub fn agent(&self, node: u8, program: &Path) -> AgentOptions {
        let node = self.node(node);
        let mut pod = Object::new("orb8-system", &format!("agent-{}", node.number), &node.name);
        pod.host_network = true;
        pod.host_ips = node.addresses().to_vec();
        pod.ips.clone_from(&pod.host_ips);
        pod.owner = Some(Owner::new("DaemonSet", "agent"));
        self.api.put(pod.object(Stage::Running));
        let layout = &self.plan.layout;
        let own = layout.pod(pod.qos, &pod.uid);
        let own = layout.container(&own, &pod.containers[0].id);
        let own = cgroup::make(node.cgroup_root(), &own);
        AgentOptions::of(program)
            .capabilities(&AGENT_CAPABILITIES)
            .cgroup(&own)
            .env("ORB8_CGROUP_ROOT", node.cgroup_root().display())
            .env("NODE_NAME", &node.name)
            .env("KUBECONFIG", self.api.kubeconfig(&node.name).display())
            .env("ORB8_EXPIRATION_INTERVAL_SECS", 1)
            .env("RUST_LOG", "info")
    }
}

fn endpoints(pod: &Pod) -> Vec<Endpoint> {
    let object = &pod.object;
    let target = (object.namespace.clone(), object.name.clone(), object.uid.clone());
    object
        .ips
        .iter()
        .map(|&address| Endpoint {
            address,
            ready: true,
            terminating: false,
            pod: target.clone(),
            node: object.node.clone(),
        })
        .collect()
}

/// One port of a Service.
#[must_use]
pub fn port(protocol: &'static str, port: u16, target: u16, node_port: u16) -> ServicePort {
    ServicePort { name: String::new(), protocol, port, target, node_port }
}

/// The namespace that joins the nodes, with the API server's address.
fn switch() -> Netns {
    let netns = Netns::new("switch");
    node::quiet(&netns);
    netns.sysctls(&[("ipv4/ip_forward", 1), ("ipv6/conf/all/forwarding", 1)]);
    if Path::new("/proc/sys/net/bridge").exists() {
        netns.sysctls(&[
            ("bridge/bridge-nf-call-iptables", 0),
            ("bridge/bridge-nf-call-ip6tables", 0),
        ]);
    }
    let [v4, v6] = plan::SWITCH;
    netns.ip_batch(&[
        format!("link add sw0 address {} type bridge mcast_snooping 0", node::SWITCH_MAC),
        "link set sw0 up".to_owned(),
        format!("addr add {v4}/24 dev sw0"),
        format!("addr add {}/32 dev sw0", plan::API),
        format!("addr add {v6}/64 dev sw0 nodad"),
    ]);
    netns
}

/// A host behind the switch.
fn outside(switch: &Netns, tree: &Tree) -> Actor {
    let netns = Netns::new("outside");
    node::quiet(&netns);
    let addresses: [IpAddr; 2] = plan::OUTSIDE;
    let [gateway4, gateway6] = plan::OUTSIDE_GATEWAY;
    let ([v4, v6], path) = (addresses, switch.path());
    netns.ip_batch(&[
        format!(
            "link add eth0 address {OUTSIDE_MAC} type veth \
             peer name outside address {GATEWAY_MAC} netns {path}"
        ),
        "link set eth0 up".to_owned(),
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        format!("route add default via {gateway4}"),
        format!("route add default via {gateway6} dev eth0"),
        format!("neigh replace {gateway6} lladdr {GATEWAY_MAC} dev eth0 nud permanent"),
    ]);
    switch.ip_batch(&[
        format!("addr add {gateway4}/24 dev outside"),
        format!("addr add {gateway6}/64 dev outside nodad"),
        "link set outside up".to_owned(),
        format!("neigh replace {v6} lladdr {OUTSIDE_MAC} dev outside nud permanent"),
    ]);
    wait_operational(&netns, "eth0");
    wait_operational(switch, "outside");
    Actor::start("outside", &tree.make("outside"), &netns, &addresses)
}
