//! Thousands of pods: what they cost, and how soon a new one has its name.

mod cluster_support;

use cluster_support::rows::{End, by_address, key, said};
use cluster_support::{Auto, DEADLINE, Scene};
use orb8_testbed::api::object::{self, Owner};
use orb8_testbed::api::pod::{Pod as Object, Stage};
use orb8_testbed::cgroup;
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::plan::{self, Plan, PodPlan};
use orb8_testbed::cluster::talk::{self, UdpTalk};
use orb8_testbed::cluster::{Cluster, NEEDS};
use orb8_testbed::link::Family::V4;
use orb8_testbed::need;
use orb8_testbed::wait::wait_for;

/// Most memory of an agent, its kernel maps included.
const MEMORY: u64 = 96 << 20;
/// Pods of one owner.
const REPLICAS: usize = 25;

/// Pods that exist in the API, and if they are of node 1 in its cgroups, but have no process.
fn populate(cluster: &Cluster, node: u8, count: usize) -> Vec<Object> {
    let mut owner = None;
    (0..count)
        .map(|number| {
            if number % REPLICAS == 0 {
                owner = Some(replica_set(cluster, node, number / REPLICAS));
            }
            let name = format!("app{node}-{}-7c9d8b6f5-{number:05}", number / REPLICAS);
            let mut pod = Object::new("crowd", &name, &format!("node{node}"));
            pod.owner.clone_from(&owner);
            pod.labels = vec![
                ("app".to_owned(), format!("app{}", number / REPLICAS)),
                ("pod-template-hash".to_owned(), "7c9d8b6f5".to_owned()),
                ("app.kubernetes.io/name".to_owned(), format!("app{}", number / REPLICAS)),
                ("app.kubernetes.io/part-of".to_owned(), "crowd".to_owned()),
            ];
            pod.host_ips = plan::node_addresses(node).to_vec();
            // Beyond a node's own range there is no network, only objects.
            let low = u16::try_from(number % 3_000).expect("small") + 1_000;
            pod.ips = vec![plan::pod_addresses(node + u8::from(number >= 3_000), low)[0]];
            cluster.api.put(pod.object(Stage::Running));
            pod
        })
        .collect()
}

fn replica_set(cluster: &Cluster, node: u8, number: usize) -> Owner {
    let deployment = Owner::new("Deployment", &format!("app{node}-{number}"));
    let set = Owner::new("ReplicaSet", &format!("app{node}-{number}-7c9d8b6f5"));
    cluster.api.put(object::owned("ReplicaSet", "crowd", &set.name, &set.uid, Some(&deployment)));
    set
}

/// The cgroup of each pod, its sandbox and its container.
fn make_cgroups(cluster: &Cluster, pods: &[Object]) {
    let (layout, root) = (&cluster.plan.layout, cluster.node(1).cgroup_root());
    for pod in pods {
        let own = layout.pod(pod.qos, &pod.uid);
        for id in [&object::container_id(), &pod.containers[0].id] {
            let made = cgroup::make(root, &layout.container(&own, id));
            assert!(made.exists());
        }
    }
}

/// Pods tracked, none rejected, memory within its bound.
fn check_cost(scene: &Scene, pods: u64) {
    let status = scene.wait_status(1, &format!("{pods} pods"), |status| {
        status.kubernetes.as_ref().is_some_and(|k| k.pods >= pods)
    });
    let kubernetes = status.kubernetes.clone().expect("Kubernetes is told");
    assert_eq!(kubernetes.rejected, 0);
    let memory = status.memory.expect("memory is told");
    let total = memory.resident_bytes + memory.map_bytes;
    assert!(total <= MEMORY, "{} MiB for {pods} pods: {memory:?}", total >> 20);
}

/// A new pod that sends before the API has told of it has its name on the live trace within a
/// second, at its own end by its cgroup and at the other by its address.
fn check_named_soon(scene: &Scene) {
    let server = scene.cluster.simple("shop/server", 1);
    for number in 0..5 {
        let plan = PodPlan::new(&format!("shop/new-{number}"), 1).unannounced();
        let pod = scene.cluster.pod(plan);
        let dial = server.at(V4, 8080);
        let (_, mut talk) = UdpTalk::open(&pod.app, &[&server.app], dial, 8080);
        for stage in [Stage::Created, Stage::Bound, Stage::Starting, Stage::Running] {
            scene.cluster.announce(&pod, stage);
        }
        talk.say(3, 100);
        let flow = talk.talk().client;
        for (direction, end) in [("egress", 0), ("ingress", 1)] {
            let told = wait_for(DEADLINE, "the new pod's name on the trace", || {
                let own = |row: &orb8_proto::v1::NetworkFlow| {
                    key(row) == flow && row.direction == direction && !row.supplement
                };
                scene.trace(1).find(own).filter(|latest| latest.named_ns[end] != 0)
            });
            let took = told.named_ns[end] - told.flow.first_seen_ns;
            let took_ms = took / 1_000_000;
            assert!(took_ms <= 1_000, "named {took_ms} ms after its first packet, {direction}");
        }
        let near = End::pod(&pod, Auto, &by_address(&server));
        scene.expect_own(&said(Auto, &talk.talk(), &near, None));
    }
}

#[test]
fn five_thousand_pods_five_hundred_of_them_here_fit_and_a_new_one_is_named_at_once() {
    need!(@check NEEDS);
    let mut scene = Scene::without_agents(Plan { nodes: 1, ..Plan::default() }, Auto);
    let local = populate(&scene.cluster, 1, 500);
    make_cgroups(&scene.cluster, &local);
    let others = populate(&scene.cluster, 2, 4_500);
    scene.start_agents();
    check_named_soon(&scene);
    check_cost(&scene, 5_000);
    assert_eq!(others.len(), 4_500);
    // The agent itself, the server and the five new ones are of this node, too.
    let local = scene.status(1).kubernetes.expect("Kubernetes is told").pods_local;
    assert_eq!(local, 500 + 1 + 1 + 5);
}

#[test]
fn five_thousand_pods_on_one_node_are_all_known_by_their_cgroups() {
    need!(@check NEEDS);
    let mut scene = Scene::without_agents(Plan { nodes: 1, ..Plan::default() }, Auto);
    let local = populate(&scene.cluster, 1, 5_000);
    make_cgroups(&scene.cluster, &local);
    scene.start_agents();
    check_cost(&scene, 5_000);
    let known = scene.status(1).cgroups.expect("cgroups are told").known;
    assert!(known >= 15_000, "{known} cgroups are known");
    let server = scene.cluster.simple("shop/server", 1);
    for pod in local.iter().step_by(500) {
        let process = in_cgroup_of(&scene, pod);
        let talk = talk::udp(&process, &server.app, server.at(V4, 8080), 2, 100);
        let owner = format!("pod crowd/{}:app cgroup", pod.name);
        let end = End::named(1, &owner, &owner, &by_address(&server));
        scene.expect_own(&said(Auto, &talk, &end, None));
    }
}

/// A process in the container of a pod that has no network of its own.
fn in_cgroup_of(scene: &Scene, pod: &Object) -> Actor {
    let (layout, node) = (&scene.cluster.plan.layout, scene.node(1));
    let path = layout.container(&layout.pod(pod.qos, &pod.uid), &pod.containers[0].id);
    let directory = node.cgroup_root().join(path);
    Actor::start("app", &directory, &node.netns, &node.addresses())
}
