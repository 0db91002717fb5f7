//! cgroup2 subtrees of a test's own, with threads of this process in their cgroups.
//!
//! A socket belongs to the cgroup of the thread that makes it. Threads of one process may be in
//! different cgroups if these are threaded, so the process moves into a directory of its own, and
//! below that each test has a tree.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use orb8_agent::capture::{self, SocketRoot};
use orb8_testbed::wait::wait_for;

use super::DEADLINE;

/// The process's own directory, and how many trees are below it.
static HOME: Mutex<(Option<Home>, usize)> = Mutex::new((None, 0));
/// Names of trees.
static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

struct Home {
    path: PathBuf,
    before: PathBuf,
}

const PREFIX: &str = "orb8-kernel-test-";

/// A threaded cgroup; with all below it gone when it is dropped.
pub struct Cgroup {
    path: PathBuf,
    is_tree: bool,
}

impl Cgroup {
    /// A tree of a test's own.
    pub fn tree() -> Self {
        let mut home = home();
        if home.0.is_none() {
            home.0 = Some(move_in());
        }
        home.1 += 1;
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = home.0.as_ref().expect("moved in").path.join(format!("t{number}"));
        Self::make(path, true)
    }

    /// A cgroup inside.
    pub fn child(&self, name: &str) -> Self {
        Self::make(self.path.join(name), false)
    }

    fn make(path: PathBuf, is_tree: bool) -> Self {
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::write(path.join("cgroup.type"), "threaded").expect("a cgroup can be threaded");
        Self { path, is_tree }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("a directory").ino()
    }

    /// As the socket plane's root.
    pub fn root(&self) -> SocketRoot {
        let view = capture::look(Path::new("/proc"), Some(&self.path));
        view.root.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `work` on a thread in this cgroup; threads, processes and sockets made there are in
    /// it too.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let threads = self.path.join("cgroup.threads");
        let run = || {
            let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
            fs::write(&threads, thread).expect("a thread can be moved");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(run).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Threads and processes may take a moment to leave.
        remove(&self.path);
        if !self.is_tree {
            return;
        }
        let mut home = home();
        home.1 -= 1;
        if home.1 == 0
            && let Some(home) = home.0.take()
        {
            let back = home.before.join("cgroup.procs");
            fs::write(back, std::process::id().to_string()).expect("this process can move back");
            remove(&home.path);
        }
    }
}

fn home() -> MutexGuard<'static, (Option<Home>, usize)> {
    HOME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(path: &Path) {
    let gone = || match fs::remove_dir(path) {
        Ok(()) => Some(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(()),
        Err(_busy) => None,
    };
    if std::thread::panicking() {
        let _best_effort = gone();
    } else {
        wait_for(DEADLINE, "a cgroup to be empty", gone);
    }
}

/// Where cgroup2 is mounted.
pub fn mount() -> PathBuf {
    let view = capture::look(Path::new("/proc"), None);
    view.root.unwrap_or_else(|error| panic!("{error}")).path
}

fn move_in() -> Home {
    let mount = mount();
    remove_stale(&mount);
    let own = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup2 line");
    let path = mount.join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::write(path.join("cgroup.procs"), std::process::id().to_string())
        .expect("this process can be moved");
    Home { path, before: mount.join(own) }
}

/// What tests that were killed have left.
fn remove_stale(mount: &Path) {
    for entry in fs::read_dir(mount).expect("a mount").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dead =
            name.strip_prefix(PREFIX).is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if dead {
            remove_below(&entry.path());
        }
    }
}

fn remove_below(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    // Another test may do the same.
    let _gone = fs::remove_dir(path);
}
