//! cgroups of this host: from id to path, to pod and container, and where it is certain to the one
//! process in it.
//!
//! A thread of its own keeps an index of the cgroup2 tree current ([`start`]); the pipeline looks
//! ids up in it ([`Cgroups`]) and asks for the rest ([`Memberships`]). Names come from elsewhere:
//! a cgroup leads to a pod's uid, never to more.

mod index;
mod keeper;
mod membership;
pub mod mounts;
pub mod path;
mod process;
mod tree;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use index::{Cgroup, Cgroups, Status};
pub use membership::{Answer, Membership, Memberships};
pub use mounts::{Mode, Mounts};
pub use path::{Container, Driver, Placement, Runtime};
pub use process::Process;

use crate::clock::Clock;
use crate::k8s::model::Pod;

/// The one pod of a uid, as the registry keeps it; none if it has no room.
pub type PodOf = Arc<dyn Fn(&str) -> Option<Arc<Pod>> + Send + Sync>;

/// A source of pods that has none: cgroups lead to no pod.
#[must_use]
pub fn no_pods() -> PodOf {
    Arc::new(|_| None)
}

/// Where the keeper reads.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Usually `/proc`.
    pub proc: PathBuf,
    /// The directory that is the root of all cgroups; none: the cgroup2 mount of `mountinfo`.
    pub cgroup: Option<PathBuf>,
}

/// Starts the thread that keeps the index; it ends when the asking side is dropped.
///
/// # Errors
/// The thread or what wakes it could not be made.
pub fn start(roots: &Roots, clock: Arc<dyn Clock>, pods: PodOf) -> io::Result<Memberships> {
    keeper::start(roots, clock, pods)
}
