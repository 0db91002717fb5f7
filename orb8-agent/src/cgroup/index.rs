//! The shared index: cgroup id to what is known of the cgroup.
//!
//! One thread writes, any thread reads. A read allocates nothing, and waits at most for one entry
//! of one shard to be put in. Nothing here touches a file system.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use super::PodOf;
use super::mounts::Mode;
use super::path::{Driver, Placement, Runtime};
use crate::k8s::model::Pod;

/// Few entries for each lock, so that growing a shard's table takes microseconds.
const SHARDS: usize = 64;

/// A cgroup; one value for as long as its directory has this path.
#[derive(Debug)]
pub struct Cgroup {
    /// cgroup2 id.
    pub id: u64,
    /// Path below the root of all cgroups; that root itself is `/`.
    pub path: Arc<str>,
    /// What the path says, if anything.
    pub placement: Option<Placement>,
    pod: OnceLock<Arc<Pod>>,
}

impl Cgroup {
    /// A cgroup by its path; its pod is looked up.
    #[must_use]
    pub fn new(id: u64, path: &str, pods: &PodOf) -> Self {
        let placement = Placement::parse(path);
        let cgroup = Self { id, path: path.into(), placement, pod: OnceLock::new() };
        cgroup.find_pod(pods);
        cgroup
    }

    /// The root of all cgroups: what is there belongs to the kernel, or to nobody in particular.
    #[must_use]
    pub fn is_root(&self) -> bool {
        &*self.path == "/"
    }

    /// The pod, named or not; none if the path has none or if there was no room for it.
    #[must_use]
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        self.pod.get()
    }

    /// Whether it is a pod's for which there was no room yet.
    #[must_use]
    pub fn awaits_pod(&self) -> bool {
        let is_pods = || self.placement.as_ref().is_some_and(|found| found.pod.is_some());
        self.pod.get().is_none() && is_pods()
    }

    /// Looks the pod up again if it was refused.
    pub(super) fn find_pod(&self, pods: &PodOf) {
        if self.pod.get().is_none()
            && let Some(uid) = self.placement.as_ref().and_then(|found| found.pod.as_deref())
            && let Some(pod) = pods(uid)
        {
            self.pod.get_or_init(|| pod);
        }
    }
}

/// What there is to tell about cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Which hierarchies the host has.
    pub mode: Mode,
    /// The root of all cgroups, none without cgroup2.
    pub mount: Option<PathBuf>,
    /// Runtimes that paths named since the start.
    pub runtimes: Vec<Runtime>,
    /// What made the cgroups of the pods seen since the start.
    pub driver: Option<Driver>,
    /// cgroups in the index, those removed lately included.
    pub known: u64,
    /// Directories for which there is no room, as of the last walk and what was made since.
    pub rejected: u64,
    /// Why ids may stay unknown; empty if there is no reason.
    pub reason: String,
}

/// The index; clones are the same one.
#[derive(Debug, Clone)]
pub struct Cgroups {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    shards: [RwLock<HashMap<u64, Arc<Cgroup>>>; SHARDS],
    generation: AtomicU64,
    known: AtomicU64,
    rejected: AtomicU64,
    /// Bit `n` for the runtime that is n-th in [`Runtime::ALL`].
    runtimes: AtomicU8,
    driver: OnceLock<Driver>,
    mode: Mode,
    mount: Option<PathBuf>,
    reason: Mutex<String>,
}

impl Default for Cgroups {
    /// The index of a host without cgroups.
    fn default() -> Self {
        Self::empty(Mode::None, None)
    }
}

impl Cgroups {
    /// An empty index of a host with these hierarchies and this root of all cgroups.
    #[must_use]
    pub fn empty(mode: Mode, mount: Option<PathBuf>) -> Self {
        let shared = Shared {
            shards: std::array::from_fn(|_| RwLock::default()),
            generation: AtomicU64::new(0),
            known: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            runtimes: AtomicU8::new(0),
            driver: OnceLock::new(),
            mode,
            mount,
            reason: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The cgroup with this id, if it is known; removed ones stay known for a while.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<Arc<Cgroup>> {
        let shard = self.shard(id).read().unwrap_or_else(PoisonError::into_inner);
        shard.get(&id).cloned()
    }

    /// A number that moves with every change of the index.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// What there is to tell.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &*self.shared;
        let seen = shared.runtimes.load(Ordering::Relaxed);
        let is_seen = |(n, _): &(usize, Runtime)| seen & (1 << n) != 0;
        Status {
            mode: shared.mode,
            mount: shared.mount.clone(),
            runtimes: Runtime::ALL
                .into_iter()
                .enumerate()
                .filter(is_seen)
                .map(|(_, it)| it)
                .collect(),
            driver: shared.driver.get().copied(),
            known: shared.known.load(Ordering::Relaxed),
            rejected: shared.rejected.load(Ordering::Relaxed),
            reason: shared.reason.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Puts a cgroup in, in place of one with the same id.
    pub fn insert(&self, cgroup: Arc<Cgroup>) {
        self.note(&cgroup);
        let mut shard = self.shard(cgroup.id).write().unwrap_or_else(PoisonError::into_inner);
        if shard.insert(cgroup.id, cgroup).is_none() {
            self.shared.known.fetch_add(1, Ordering::Relaxed);
        }
        drop(shard);
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    /// Takes a cgroup out, unless its id belongs to another one by now.
    pub(super) fn remove(&self, cgroup: &Arc<Cgroup>) {
        let mut shard = self.shard(cgroup.id).write().unwrap_or_else(PoisonError::into_inner);
        if !shard.get(&cgroup.id).is_some_and(|held| Arc::ptr_eq(held, cgroup)) {
            return;
        }
        shard.remove(&cgroup.id);
        drop(shard);
        self.shared.known.fetch_sub(1, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    pub(super) fn set_rejected(&self, directories: u64) {
        self.shared.rejected.store(directories, Ordering::Relaxed);
    }

    pub(super) fn set_reason(&self, reason: &str) {
        let mut held = self.shared.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != reason {
            reason.clone_into(&mut held);
        }
    }

    fn note(&self, cgroup: &Cgroup) {
        let Some(placement) = &cgroup.placement else { return };
        let runtime = placement.container.as_ref().and_then(|container| container.runtime);
        if let Some(n) = Runtime::ALL.iter().position(|it| Some(*it) == runtime) {
            self.shared.runtimes.fetch_or(1 << n, Ordering::Relaxed);
        }
        if let (Some(_), Some(driver)) = (&placement.pod, placement.driver) {
            self.shared.driver.get_or_init(|| driver);
        }
    }

    fn shard(&self, id: u64) -> &RwLock<HashMap<u64, Arc<Cgroup>>> {
        // Ids are inode numbers, given out one after the other.
        let at = usize::try_from(id % SHARDS as u64).unwrap_or(0);
        &self.shared.shards[at]
    }
}
