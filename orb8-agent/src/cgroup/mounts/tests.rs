//! Tests of the survey, on directories that stand for hosts.

use proptest::prelude::*;

use super::*;
use crate::cgroup::Roots;

#[test]
fn the_outermost_cgroup2_mount_is_found() {
    let check = |text: &str, expected: Option<&str>| {
        assert_eq!(cgroup2_mount(text), expected.map(PathBuf::from), "{text}");
    };
    check(
        "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw",
        Some("/sys/fs/cgroup"),
    );
    check(
        "30 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
         31 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
        Some("/sys/fs/cgroup/unified"),
    );
    check(
        "9 1 0:5 / /run/a/b/cgroup rw - cgroup2 cgroup2 rw\n\
         8 1 0:5 / /with\\040space rw - cgroup2 none rw",
        Some("/with space"),
    );
    check("31 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None);
    check("", None);
    check("garbage - cgroup2", None);
}

/// A host made of directories: which hierarchies it has, and the paths in them.
struct Host {
    top: PathBuf,
    roots: Roots,
}

impl Host {
    fn new(name: &str, mounts: &[(&str, &str, &[&str])]) -> Self {
        let name = format!("orb8-mounts-{}-{name}", std::process::id());
        let top = std::env::temp_dir().join(name);
        fs::create_dir_all(top.join("proc/self")).unwrap();
        let mut text = String::new();
        for (kind, at, paths) in mounts {
            let mount = top.join(at);
            fs::create_dir_all(&mount).unwrap();
            for path in *paths {
                fs::create_dir_all(mount.join(path)).unwrap();
            }
            let line = format!("30 25 0:27 / {} rw - {kind} {kind} rw\n", mount.display());
            text.push_str(&line);
        }
        fs::write(top.join("proc/self/mountinfo"), text).unwrap();
        let roots = Roots { proc: top.join("proc"), cgroup: None };
        Self { top, roots }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.top).ok();
    }
}

#[test]
fn hosts_are_told_apart_by_their_hierarchies_and_by_where_containers_are() {
    let pod = "kubepods/besteffort/pod032e3ebc-f9b4-4500-9cd8-b6bb30a948ca";
    let plain = "system.slice/sshd.service";
    let (v1, v2) = ("cgroup", "cgroup2");
    for (name, mounts, mode, containers) in [
        ("unified", vec![(v2, "c", vec![plain, pod])], Mode::Unified, Containers::InCgroup2),
        ("unified-empty", vec![(v2, "c", vec![plain])], Mode::Unified, Containers::NotFound),
        (
            "hybrid-both",
            vec![(v1, "c/cpu", vec![pod]), (v2, "c/unified", vec![pod])],
            Mode::Hybrid,
            Containers::InCgroup2,
        ),
        (
            "hybrid-v1-only",
            vec![(v1, "c/cpu", vec![pod]), (v2, "c/unified", vec![plain])],
            Mode::Hybrid,
            Containers::OnlyV1,
        ),
        (
            "hybrid-empty",
            vec![(v1, "c/cpu", vec![plain]), (v2, "c/unified", vec![])],
            Mode::Hybrid,
            Containers::NotFound,
        ),
        ("v1", vec![(v1, "c/cpu", vec![pod])], Mode::V1, Containers::OnlyV1),
        ("none", vec![("tmpfs", "c", vec![pod])], Mode::None, Containers::NotFound),
    ] {
        let mounts: Vec<_> =
            mounts.iter().map(|(kind, at, paths)| (*kind, *at, paths.as_slice())).collect();
        let host = Host::new(name, &mounts);
        let found = survey(&host.roots);
        assert_eq!((found.mode, found.containers), (mode, containers), "{name}");
        let mount = mounts.iter().find(|(kind, ..)| *kind == v2);
        assert_eq!(found.mount, mount.map(|(_, at, _)| host.top.join(at)), "{name}");
    }
}

#[test]
fn a_root_that_is_set_stands_for_the_mount() {
    let mounts: [(&str, &str, &[&str]); 2] =
        [("cgroup2", "c", &[]), ("tmpfs", "node", &["docker/0123456789abcdef"])];
    let mut host = Host::new("set", &mounts);
    host.roots.cgroup = Some(host.top.join("node"));
    let found = survey(&host.roots);
    assert_eq!(found.mount, Some(host.top.join("node")));
    assert_eq!((found.mode, found.containers), (Mode::Unified, Containers::NotFound));
    fs::create_dir_all(host.top.join("node/docker").join("0f".repeat(32))).unwrap();
    assert_eq!(survey(&host.roots).containers, Containers::InCgroup2);
}

proptest! {
    #[test]
    fn parsers_take_any_text(text in "\\PC*") {
        let _path = cgroup2_mount(&text);
        let _plain = unescape(&text);
    }
}
