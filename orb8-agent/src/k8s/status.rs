//! How the watchers fare, resource by resource, for `status`.
//!
//! Times are CLOCK_MONOTONIC nanoseconds; whoever shows them adds the offset.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cgroup::Runtime;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Pods of the whole cluster.
    Pods,
    /// Nodes.
    Nodes,
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Metadata of ReplicaSets.
    ReplicaSets,
    /// Metadata of Jobs.
    Jobs,
}

impl Resource {
    /// How many there are.
    pub const COUNT: usize = 6;
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Pods,
        Self::Nodes,
        Self::Services,
        Self::EndpointSlices,
        Self::ReplicaSets,
        Self::Jobs,
    ];

    /// The name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::ReplicaSets => "replicasets",
            Self::Jobs => "jobs",
        }
    }

    /// The group in the API, empty for the core.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Pods | Self::Nodes | Self::Services => "",
            Self::EndpointSlices => "discovery.k8s.io",
            Self::ReplicaSets => "apps",
            Self::Jobs => "batch",
        }
    }

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// How it stands with the API, or with one resource of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No API is asked.
    #[default]
    Off,
    /// Asked and not answered completely yet.
    Connecting,
    /// Listed, and watched.
    Synced,
    /// Was synced, and is not reached now.
    Stale,
    /// Refused by the API's access rules.
    Forbidden,
    /// Never reached.
    Unreachable,
}

impl State {
    /// The word in `status`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting => "connecting",
            Self::Synced => "synced",
            Self::Stale => "stale",
            Self::Forbidden => "forbidden",
            Self::Unreachable => "unreachable",
        }
    }
}

/// One resource that is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceStatus {
    /// How it stands.
    pub state: State,
    /// Why it is not synced, and what to do.
    pub reason: String,
    /// Objects that are kept.
    pub objects: usize,
    /// When the API told anything of it last, bookmarks included; 0: never.
    pub last_heard_ns: u64,
    /// List requests, each page one.
    pub lists: u64,
    /// Watch requests.
    pub watches: u64,
    /// Requests and watches that failed, and lists that had to be begun again.
    pub errors: u64,
}

/// What there is to say about Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The worst of the resources' states, or off.
    pub state: State,
    /// Why it is off or not synced, and what to do.
    pub reason: String,
    /// URL of the API server.
    pub server: String,
    /// In the order of [`Resource::ALL`].
    pub resources: [ResourceStatus; Resource::COUNT],
    /// Pods of this node that are kept.
    pub pods_local: usize,
    /// Pods that are kept.
    pub pods: usize,
    /// The bound on them.
    pub max_pods: usize,
    /// Objects, and uses of addresses in doubt, that did not fit or could not be read, since the agent started.
    pub rejected: u64,
    /// Runtimes of the containers of this node's pods since the start, as the API names them.
    pub runtimes: BTreeSet<Runtime>,
}

/// Where the watchers write how they fare.
#[derive(Debug, Default)]
pub struct Health {
    status: Mutex<Status>,
}

impl Health {
    /// No API is asked, for this reason.
    pub fn off(&self, reason: &str) {
        let mut status = self.lock();
        status.state = State::Off;
        status.reason = reason.to_owned();
    }

    /// An API is asked from now on.
    pub fn on(&self, server: &str) {
        let mut status = self.lock();
        status.server = server.to_owned();
        for resource in &mut status.resources {
            resource.state = State::Connecting;
        }
    }

    /// Changes what is told of one resource.
    pub fn update(&self, resource: Resource, change: impl FnOnce(&mut ResourceStatus)) {
        change(&mut self.lock().resources[resource.index()]);
    }

    /// What is told of one resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> ResourceStatus {
        self.lock().resources[resource.index()].clone()
    }

    /// What is told of all, with the sum of it. Numbers of objects are the registry's to add.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.lock().clone();
        if let Some((worst, of)) = worst(&status.resources) {
            status.state = worst.state;
            status.reason = if worst.reason.is_empty() {
                String::new()
            } else {
                format!("{}: {}", of.name(), worst.reason)
            };
        }
        status
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The resource that stands worst, the first of those that stand alike. None where all are off.
fn worst(resources: &[ResourceStatus]) -> Option<(&ResourceStatus, Resource)> {
    let rank = |state: State| match state {
        State::Off => 0,
        State::Synced => 1,
        State::Connecting => 2,
        State::Forbidden => 3,
        State::Stale => 4,
        State::Unreachable => 5,
    };
    let on = resources.iter().zip(Resource::ALL).filter(|(of, _)| of.state != State::Off);
    on.rev().max_by_key(|(of, _)| rank(of.state))
}
