//! A subtree of the machine's cgroup2 hierarchy for one test: made at once, gone with its handle,
//! its processes killed. If this process is killed, a reaper does it; if that is killed too, the
//! next start.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::scratch;
use crate::wait::wait_for;

/// How long processes may take to be gone after a kill.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for the end of its input, which is the end of whoever started it; then kills what is in
/// the subtree and removes it.
const REAPER: &str = r#"
trap '' INT TERM HUP QUIT
cat > /dev/null
n=0
while [ -d "$1" ] && [ $n -lt 400 ]; do
    echo 1 > "$1/cgroup.kill"
    find "$1" -depth -type d -exec rmdir '{}' ';'
    [ -d "$1" ] && sleep 0.05
    n=$((n + 1))
done
"#;

/// A subtree of our own, directly below the mount.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    reaper: Child,
}

impl Tree {
    /// A new, empty one; `label` is part of its name.
    ///
    /// # Panics
    /// If there is no cgroup2 mount or it cannot be written; tests ask with
    /// [`crate::need::Need::Cgroup2`] first.
    #[must_use]
    pub fn new(label: &str) -> Self {
        static SWEEP: Once = Once::new();
        let mount = mount().expect("cgroup2 is mounted");
        SWEEP.call_once(|| sweep(&mount));
        let root = mount.join(scratch::unique_name(label));
        let reaper = Command::new("sh")
            .args(["-c", REAPER, "reaper"])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("the reaper of {}: {error}", root.display()));
        fs::create_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        Self { root, reaper }
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a cgroup below, with all that lie between, and returns its directory.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn make(&self, relative: &str) -> PathBuf {
        make(&self.root, relative)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        remove(&self.root);
        // Its input ends, it finds nothing left to do.
        drop(self.reaper.stdin.take());
        drop(self.reaper.wait());
    }
}

/// Makes a cgroup below `root`, with all that lie between, and returns its directory.
///
/// # Panics
/// If the kernel refuses.
#[must_use]
pub fn make(root: &Path, relative: &str) -> PathBuf {
    let path = root.join(relative.trim_start_matches('/'));
    fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}

/// The id of a cgroup: the inode number of its directory.
///
/// # Panics
/// If there is no such directory.
#[must_use]
#[track_caller]
pub fn id(directory: &Path) -> u64 {
    let metadata = fs::metadata(directory);
    metadata.unwrap_or_else(|error| panic!("{}: {error}", directory.display())).ino()
}

/// Moves a process into a cgroup.
///
/// # Panics
/// If the kernel refuses.
pub fn place(directory: &Path, pid: u32) {
    let file = directory.join("cgroup.procs");
    fs::write(&file, pid.to_string()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Does something with this whole process in a cgroup: the sockets that it makes meanwhile stay there.
///
/// # Panics
/// If the kernel refuses.
pub fn within<T>(directory: &Path, work: impl FnOnce() -> T) -> T {
    struct Back(PathBuf);
    impl Drop for Back {
        fn drop(&mut self) {
            place(&self.0, std::process::id());
        }
    }
    let own = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup2 line");
    let _back = Back(mount().expect("cgroup2 is mounted").join(own));
    place(directory, std::process::id());
    work()
}

/// Kills all processes in a cgroup and removes it with all below it, as a runtime does.
///
/// # Panics
/// If it cannot be removed in time.
pub fn remove(directory: &Path) {
    if !directory.exists() {
        return;
    }
    kill(directory);
    wait_for(DEADLINE, &format!("{} to be removed", directory.display()), || {
        remove_empty(directory).ok()
    });
}

/// Kills all processes in a cgroup and below.
fn kill(directory: &Path) {
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // Kernels before 5.14.
    for sub in directories(directory).iter().map(PathBuf::as_path).chain([directory]) {
        let listed = fs::read_to_string(sub.join("cgroup.procs")).unwrap_or_default();
        for pid in listed.lines().filter_map(|pid| pid.parse::<libc::pid_t>().ok()) {
            // SAFETY: a signal to a process that is in a cgroup of ours.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

fn remove_empty(directory: &Path) -> io::Result<()> {
    for sub in directories(directory) {
        remove_empty(&sub)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes what killed processes left.
fn sweep(mount: &Path) {
    for directory in directories(mount) {
        let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !scratch::is_stale(name) {
            continue;
        }
        kill(&directory);
        let end = Instant::now() + Duration::from_secs(2);
        // Its reaper may be at it, too; what stays is the next start's.
        while directory.exists() && remove_empty(&directory).is_err() && Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

/// Where cgroup2 is mounted.
#[must_use]
pub fn mount() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let whole = front.split(' ').nth(3)? == "/";
        (back.starts_with("cgroup2 ") && whole)
            .then(|| front.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Whether cgroups can be made.
///
/// # Errors
/// A sentence with the cause and the next step.
pub fn permission() -> Result<(), String> {
    let Some(mount) = mount() else {
        return Err("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified".into());
    };
    let probe = mount.join(scratch::unique_name("probe"));
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).map_err(|error| {
        format!("no cgroup can be made in {} ({error}): run as root", mount.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need;
    use crate::need::Need;

    #[test]
    fn a_tree_ends_with_its_handle_and_takes_its_processes_along() {
        need!(Need::Root, Need::Cgroup2);
        let tree = Tree::new("unit");
        let deep = tree.make("kubepods/burstable/podx");
        let mut child = Command::new("sleep").arg("600").spawn().expect("a process");
        place(&deep, child.id());
        let root = tree.root().to_owned();
        assert_eq!(
            fs::read_to_string(deep.join("cgroup.procs")).expect("it").trim(),
            child.id().to_string()
        );
        drop(tree);
        assert!(!root.exists());
        assert!(!child.wait().expect("a child").success(), "it was killed");
    }

    #[test]
    fn the_reaper_removes_what_a_killed_process_leaves() {
        need!(Need::Root, Need::Cgroup2);
        let tree = Tree::new("reaped");
        let deep = tree.make("a/b");
        let mut child = Command::new("sleep").arg("600").spawn().expect("a process");
        place(&deep, child.id());
        let root = tree.root().to_owned();
        // What happens to the handle when its process is killed: its descriptors are closed.
        let mut tree = std::mem::ManuallyDrop::new(tree);
        drop(tree.reaper.stdin.take());
        wait_for(DEADLINE, "the reaper", || (!root.exists()).then_some(()));
        assert!(!child.wait().expect("a child").success(), "it was killed");
        assert!(tree.reaper.wait().expect("a child").success());
    }
}
