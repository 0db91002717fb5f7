//! A running pod: its namespace, its cgroups, its processes, and what the API is told of it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::actor::Actor;
use super::node::{Node, Wire};
use super::path::Layout;
use super::plan::PodPlan;
use crate::api::object;
use crate::api::pod::Pod as Object;
use crate::cgroup;
use crate::link::Family;
use crate::netns::Netns;

/// A pod. Its process ends with it, and so do its cgroups and its wire.
#[derive(Debug)]
pub struct Pod {
    /// What the API is told.
    pub object: Object,
    /// The process of its first container.
    pub app: Actor,
    /// The number of its node.
    pub node: u8,
    /// Which of its node's pod addresses it has.
    pub number: u16,
    /// The root of its node's cgroups.
    root: PathBuf,
    /// Its own cgroup below, and those of its containers that are elsewhere.
    path: String,
    directory: Directory,
    _apart: Vec<Directory>,
    layout: Layout,
    wire: Option<Wire>,
}

/// A cgroup that is removed with its handle.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        cgroup::remove(&self.0);
    }
}

impl Pod {
    pub(super) fn start(node: &Node, plan: PodPlan, layout: &Layout) -> Self {
        let layout = plan.layout.unwrap_or_else(|| layout.clone());
        let mut object = Object::new(&plan.namespace, &plan.name, &node.name);
        object.host_ips = node.addresses().to_vec();
        object.host_network = plan.host_network;
        object.qos = plan.qos;
        object.owner = plan.owner;
        object.labels.extend(plan.labels);
        object.containers = plan.containers;
        object.runtime = layout.runtime.scheme();
        object.config_hash = plan.is_static.then(object::config_hash);
        let number = plan.number.unwrap_or_else(|| node.next_number());
        object.ips =
            if plan.host_network { object.host_ips.clone() } else { node.pod_addresses(number) };
        let uid = object.config_hash.as_ref().unwrap_or(&object.uid);
        let path = layout.pod(object.qos, uid);
        let root = node.cgroup_root().to_owned();
        let directory = Directory(cgroup::make(&root, &path));
        // The sandbox comes first and is in no container status.
        let sandbox = layout.container(&path, &object::container_id());
        let sandbox = cgroup::make(&root, &sandbox);
        let containers = object.containers.iter();
        let all = containers.map(|container| root.join(layout.container(&path, &container.id)));
        let apart = all.chain([sandbox]).filter(|it| !it.starts_with(&directory.0));
        let apart = apart.map(Directory).collect();
        let wire = (!plan.host_network).then(|| node.wire(&plan.name, &object.ips));
        let netns = wire.as_ref().map_or(&node.netns, |wire| &wire.netns);
        let first = cgroup::make(&root, &layout.container(&path, &object.containers[0].id));
        let app = Actor::start(&object.containers[0].name, &first, netns, &object.ips);
        let node = node.number;
        Self { object, app, node, number, root, path, directory, _apart: apart, layout, wire }
    }

    /// Its namespace's name and its own.
    #[must_use]
    pub fn key(&self) -> (&str, &str) {
        (&self.object.namespace, &self.object.name)
    }

    /// Its cgroup.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// Its network namespace, or its node's.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        self.app.netns()
    }

    /// The name of its veth in the node's namespace.
    ///
    /// # Panics
    /// If it is in its node's network namespace.
    #[must_use]
    pub fn host_ifname(&self) -> &str {
        &self.wire.as_ref().expect("a pod with a wire").host_ifname
    }

    /// Its address of a family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        self.app.address(family)
    }

    /// A port of its address.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// A process of a further container, by its name.
    ///
    /// # Panics
    /// If it has no container of the name.
    #[must_use]
    pub fn container(&self, name: &str) -> Actor {
        let container = self.object.containers.iter().find(|container| container.name == name);
        let container = container.unwrap_or_else(|| panic!("no container {name}"));
        self.actor_in(name, &self.layout.container(&self.path, &container.id))
    }

    /// A process in a cgroup below the first container's, as one that `exec` starts may be.
    #[must_use]
    pub fn nested(&self, below: &str) -> Actor {
        let first = self.layout.container(&self.path, &self.object.containers[0].id);
        self.actor_in("exec", &format!("{first}/{below}"))
    }

    /// A process in the pod's own cgroup, in no container.
    #[must_use]
    pub fn outside_containers(&self) -> Actor {
        self.actor_in("pod", &self.path)
    }

    fn actor_in(&self, comm: &str, path: &str) -> Actor {
        let directory = cgroup::make(&self.root, path);
        Actor::start(comm, &directory, self.netns(), &self.object.ips)
    }
}
