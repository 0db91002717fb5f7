//! This machine's `/proc`, but with the cgroup mounts of a node of a certain kind, for an agent that
//! is told to look there. Processes by number are not in it: they come and go.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::scratch::Scratch;

/// Which cgroup hierarchies a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchies {
    /// cgroup2 alone.
    Unified,
    /// cgroup2 beside controllers of version 1.
    Hybrid,
    /// Version 1 alone.
    V1,
}

impl Hierarchies {
    /// As a status says it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unified => "unified",
            Self::Hybrid => "hybrid",
            Self::V1 => "v1",
        }
    }

    /// These mounts as a node of this kind has them.
    fn mounts(self, mountinfo: &str) -> String {
        let changed = |line: &str| {
            let is = |kind: &str| line.contains(&format!(" - {kind} "));
            is("cgroup") || is("cgroup2") && self == Self::V1
        };
        let kept = mountinfo.lines().filter(|line| !changed(line));
        let mut mounts: String = kept.map(|line| format!("{line}\n")).collect();
        if self != Self::Unified {
            mounts += "31 1 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        }
        mounts
    }
}

/// A folder to be used as `/proc`.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn with(hierarchies: Hierarchies) -> Scratch {
    let root = Scratch::folder("proc");
    let own = root.path().join("self");
    fs::create_dir(&own).expect("a folder of our own");
    link_all(Path::new("/proc"), root.path(), "self");
    link_all(Path::new("/proc/self"), &own, "mountinfo");
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    fs::write(own.join("mountinfo"), hierarchies.mounts(&mountinfo)).expect("a file of our own");
    root
}

/// Links to all but one and to what is there as long as its process.
fn link_all(from: &Path, to: &Path, except: &str) {
    for entry in fs::read_dir(from).expect("/proc is mounted").flatten() {
        let name = entry.file_name();
        let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if !is_process && name != except {
            symlink(from.join(&name), to.join(&name)).expect("a folder of our own");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mounts_of_cgroups_are_others() {
        let machine = "21 1 0:20 / /proc rw - proc proc rw\n\
             30 1 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
             40 1 0:40 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let kinds = |hierarchies: Hierarchies| -> Vec<String> {
            let mounts = hierarchies.mounts(machine);
            let kind = |line: &str| line.split(' ').nth(7).expect("a filesystem").to_owned();
            mounts.lines().map(kind).collect()
        };
        assert_eq!(kinds(Hierarchies::Unified), ["proc", "cgroup2"]);
        assert_eq!(kinds(Hierarchies::Hybrid), ["proc", "cgroup2", "cgroup"]);
        assert_eq!(kinds(Hierarchies::V1), ["proc", "cgroup"]);
    }

    #[test]
    fn the_rest_is_that_of_whoever_reads_it() {
        let root = with(Hierarchies::Hybrid);
        let read = |path: &Path| fs::read_to_string(path).expect("it can be read");
        let limits = root.path().join("self/limits");
        assert_eq!(read(&limits), read(Path::new("/proc/self/limits")));
        assert!(read(&root.path().join("self/mountinfo")).contains(" - cgroup cgroup rw,memory"));
        assert!(root.path().join("sys/net").is_dir());
    }
}
