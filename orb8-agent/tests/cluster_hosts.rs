//! Hosts of every kind: what their cgroup hierarchies let be told of pods, and who is told of where
//! there is no Kubernetes.

mod cluster_support;

use std::net::SocketAddr;
use std::path::Path;

use cluster_support::rows::{End, by_address, ends, heard, key, said};
use cluster_support::{Auto, Capture, Scene, Socket, Tc, one_node, wait_flow};
use orb8_proto::v1::Process;
use orb8_testbed::api::object::container_id;
use orb8_testbed::cgroup;
use orb8_testbed::cluster::NEEDS;
use orb8_testbed::cluster::actor::Actor;
use orb8_testbed::cluster::plan::{Cni, Plan, PodPlan};
use orb8_testbed::cluster::pod::Pod;
use orb8_testbed::cluster::talk;
use orb8_testbed::flow::Flow;
use orb8_testbed::link::Family::V4;
use orb8_testbed::need;
use orb8_testbed::proc::{self, Hierarchies};
use orb8_testbed::scratch::Scratch;

#[test]
fn on_unified_and_on_hybrid_nodes_all_planes_name_both_ends() {
    need!(@check NEEDS);
    for hierarchies in [Hierarchies::Unified, Hierarchies::Hybrid] {
        for capture in Capture::ALL {
            check_names_by_cgroup(hierarchies, capture);
        }
    }
}

fn check_names_by_cgroup(hierarchies: Hierarchies, capture: Capture) {
    let proc = proc::with(hierarchies);
    let mut scene = Scene::without_agents(Plan::default(), capture)
        .env("ORB8_PROC_ROOT", proc.path().display());
    let client = scene.cluster.simple("shop/client", 1);
    let servers = [1, 2].map(|node| scene.cluster.simple(&format!("shop/server-{node}"), node));
    scene.start_agents();
    scene.wait_links(1, 2);
    scene.wait_links(2, 1);
    let mut rows = Vec::new();
    for server in &servers {
        let near = End::pod(&client, capture, &by_address(server));
        let far = End::pod(server, capture, &by_address(&client));
        for talk in [
            talk::udp(&client.app, &server.app, server.at(V4, 5353), 7, 100),
            talk::tcp(&client.app, &server.app, server.at(V4, 80), 500, 5_000),
        ] {
            rows.extend(said(capture, &talk, &near, Some(&far)));
        }
    }
    scene.expect(&rows);
    scene.assert_complete();
    for node in [1, 2] {
        let status = scene.status(node);
        assert_eq!(status.cgroups.expect("cgroups are told").mode, hierarchies.word());
        let plane = if capture == Auto { "both" } else { capture.word() };
        assert_eq!(status.capture, plane, "{}", status.capture_reason);
        let found = status.capture_reason.contains("hybrid node, found kubepods.slice");
        let chosen = capture == Auto && hierarchies == Hierarchies::Hybrid;
        assert_eq!(found, chosen, "{}", status.capture_reason);
    }
}

/// A node whose pods are in no cgroup2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    /// There is none.
    V1,
    /// There is one, and the pods are elsewhere.
    Hybrid,
    /// What was set is none.
    Directory,
}

#[test]
fn nodes_without_pods_in_cgroup2_name_them_by_their_links() {
    need!(@check NEEDS);
    for cni in [Cni::Bridge, Cni::Routed] {
        for without in [Without::V1, Without::Hybrid, Without::Directory] {
            check_names_by_link(cni, without);
        }
    }
}

fn check_names_by_link(cni: Cni, without: Without) {
    let hierarchies = if without == Without::V1 { Hierarchies::V1 } else { Hierarchies::Hybrid };
    let (proc, nothing) = (proc::with(hierarchies), Scratch::folder("no-cgroup2"));
    let scene = Scene::without_agents(Plan { cni, ..one_node() }, Auto)
        .env("ORB8_PROC_ROOT", proc.path().display());
    let empty = scene.cluster.tree().make("empty");
    let (mut scene, reason) = match without {
        Without::V1 => {
            (scene.unset("ORB8_CGROUP_ROOT"), "cgroup2 is not mounted, so sockets have no cgroup")
        }
        Without::Hybrid => (
            scene.env("ORB8_CGROUP_ROOT", empty.display()),
            "hybrid node without pods or containers in cgroup2",
        ),
        Without::Directory => {
            let scene = scene.env("ORB8_CGROUP_ROOT", nothing.path().display());
            (scene, "is no cgroup2 directory, so sockets have no cgroup")
        }
    };
    scene.start_agents();
    let (a, b) = (scene.cluster.simple("shop/a", 1), scene.cluster.simple("shop/b", 1));
    let status = scene.wait_status(1, "two attached links and three pods", |status| {
        let links = status.interfaces.iter().filter(|one| one.chosen_by == "pod_link");
        let attached = links.filter(|one| one.state == "attached").count();
        (attached, status.pod_planes.len()) == (2, 3)
    });
    assert_eq!(status.capture, "tc", "{}", status.capture_reason);
    assert!(status.capture_reason.ends_with(reason), "{}", status.capture_reason);
    assert_eq!(status.cgroups.expect("cgroups are told").mode, hierarchies.word());
    assert!(status.pod_planes.iter().all(|one| one.plane == "tc"), "{:?}", status.pod_planes);
    let talk = talk::tcp(&a.app, &b.app, b.at(V4, 80), 500, 5_000);
    let end = |pod: &Pod, other: &Pod| {
        let owner = by_address(pod);
        End::named(1, &owner, &owner, &by_address(other))
    };
    let rows = said(Tc, &talk, &end(&a, &b), Some(&end(&b, &a)));
    if cni == Cni::Routed {
        assert!(rows.iter().all(|row| row.owner(cni).ends_with(" interface")), "{rows:?}");
    }
    scene.expect(&rows);
    scene.assert_complete();
}

/// Where runtimes and systemd put processes on hosts without Kubernetes: the path, the runtime of
/// the container and the unit that it tells. `<id>` is the container's id.
const PLACES: [(&str, &str, &str); 10] = [
    ("system.slice/docker-<id>.scope", "docker", ""),
    ("docker/<id>", "docker", ""),
    ("user.slice/user-1000.slice/user@1000.service/user.slice/docker-<id>.scope", "docker", ""),
    ("machine.slice/libpod-<id>.scope/container", "podman", ""),
    ("libpod_parent/libpod-<id>", "podman", ""),
    (
        "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-<id>.scope/container",
        "podman",
        "",
    ),
    ("system.slice/nerdctl-<id>.scope", "containerd", ""),
    ("default/<id>", "containerd", ""),
    ("system.slice/web.service", "", "web.service"),
    ("user.slice/user-1000.slice/session-3.scope", "", "session-3.scope"),
];

/// A process of a host, and what is to be told of it.
struct Kept {
    process: Actor,
    path: String,
    id: String,
    runtime: &'static str,
    unit: &'static str,
}

impl Kept {
    fn start(root: &Path, place: (&str, &'static str, &'static str), at: &Actor) -> Self {
        let (path, runtime, unit) = place;
        let id = container_id();
        let path = path.replace("<id>", &id);
        let directory = cgroup::make(root, &path);
        let process = Actor::start("worker", &directory, at.netns(), &[at.address(V4)]);
        let id = if runtime.is_empty() { String::new() } else { id };
        Self { process, path: format!("/{path}"), id, runtime, unit }
    }

    /// By its cgroup, as a row's line says it.
    fn owner(&self) -> String {
        let name = if self.unit.is_empty() { &self.path } else { self.unit };
        format!("process {name} cgroup")
    }

    /// Its end of what it says to a host that nobody knows.
    fn end(&self, capture: Capture, received: &str) -> End {
        let owner = self.owner();
        let received = if capture == Tc { received } else { &owner };
        End::named(1, &owner, received, "external no_kubernetes none")
    }

    /// What a row says of it beside its name.
    #[track_caller]
    fn check(&self, scene: &Scene, flow: Flow, direction: &str) {
        let row = wait_flow(scene, 1, &format!("the process in {}", self.path), |row| {
            key(row) == flow && row.direction == direction && ends(row).0.process.is_some()
        });
        let (owner, _) = ends(&row);
        let told = (owner.container_id, owner.runtime.as_str(), owner.unit.as_str(), owner.cgroup);
        assert_eq!(told, (self.id.clone(), self.runtime, self.unit, self.path.clone()));
        let process = Process { pid: self.process.pid(), comm: "worker".to_owned() };
        assert_eq!(owner.process, Some(process));
        assert_eq!([owner.namespace, owner.pod, owner.container], ["", "", ""]);
    }
}

#[test]
fn hosts_without_kubernetes_name_containers_and_units() {
    need!(@check NEEDS);
    for capture in Capture::ALL {
        check_host(capture);
    }
}

/// Containers and units in the host's network, and containers in one of their own behind a bridge.
fn check_host(capture: Capture) {
    let scene = Scene::without_agents(one_node(), capture);
    let root = cgroup::make(scene.node(1).cgroup_root(), "host");
    let mut scene = scene
        .env("ORB8_KUBERNETES", "off")
        .env("ORB8_CGROUP_ROOT", root.display())
        // Nobody tells a zone of it, as the API does of nodes.
        .env("NODE_NAME", "docker-host");
    let host = scene.cluster.host_process(1, "other.service");
    let bridged = scene.cluster.pod(PodPlan::new("no/network", 1).unannounced());
    let here = PLACES.map(|place| Kept::start(&root, place, &host));
    let contained = PLACES.into_iter().filter(|(_, runtime, _)| !runtime.is_empty());
    let inside: Vec<_> = contained.map(|place| Kept::start(&root, place, &bridged.app)).collect();
    scene.start_agents_unready();
    let status = scene.wait_status(1, "an agent that has drained", |status| {
        let attached = status.interfaces.iter().all(|one| one.state == "attached");
        status.healthy && attached && status.uptime_seconds >= 2
    });
    scene.wait_links(1, 1);
    let plane = if capture == Auto { "both" } else { capture.word() };
    assert_eq!(status.capture, plane, "{}", status.capture_reason);

    let outside = &scene.cluster.outside;
    let at = |process: &Actor, port| SocketAddr::new(process.address(V4), port);
    // An interface tells of what arrives there no more than whose address it has.
    let (to_host, to_inside) = ("node docker-host address", "unknown interface_unknown none");
    let (mut rows, mut said_by) = (Vec::new(), Vec::new());
    for kept in &here {
        let end = kept.end(capture, to_host);
        let asks = talk::udp(&kept.process, outside, at(outside, 5353), 3, 100);
        let serves = talk::tcp(outside, &kept.process, at(&kept.process, 80), 400, 4_000);
        rows.extend(said(capture, &asks, &end, None));
        rows.extend(heard(capture, &serves, &end));
        said_by.extend([(kept, asks.client), (kept, serves.server.reply())]);
    }
    for kept in &inside {
        let end = kept.end(capture, to_inside);
        let asks = talk::tcp(&kept.process, outside, at(outside, 80), 500, 5_000);
        rows.extend(said(capture, &asks, &end, None));
        said_by.push((kept, asks.client));
    }
    scene.expect(&rows);
    for (kept, flow) in said_by {
        kept.check(&scene, flow, "egress");
        if capture != Tc {
            kept.check(&scene, flow.reply(), "ingress");
        }
    }
    scene.assert_complete();
    check_status(&scene, capture);
}

fn check_status(scene: &Scene, capture: Capture) {
    let status = scene.status(1);
    assert_eq!(status.kubernetes.expect("Kubernetes is told").state, "off");
    assert_eq!(status.pod_planes, []);
    let runtimes = status.cgroups.expect("cgroups are told").runtimes;
    assert_eq!(runtimes, ["containerd", "docker", "podman"]);
    let by = |attribution: &str| {
        let shares = status.attribution_shares.iter();
        let found = shares.filter(|share| share.attribution == attribution);
        found.map(|share| share.packets).sum::<u64>()
    };
    assert!(by("cgroup") > 0, "{:#?}", status.attribution_shares);
    if capture == Socket {
        assert_eq!(by("none"), 0, "{:#?}", status.attribution_shares);
    }
}
