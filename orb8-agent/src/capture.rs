//! Which capture planes suit this node: looks at mounts and cgroups once, at start, and says why.
//!
//! The judgement is a pure function over what was seen; [`look`] alone reads files. Nothing here
//! attaches anything.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::cgroup::mounts::{Mode, Mounts, ROOT_INODE};
use crate::cgroup::path;
use crate::config::Capture;

/// Where packets are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planes {
    /// At interfaces alone, every packet.
    Tc,
    /// At the sockets below a cgroup alone.
    Socket(SocketRoot),
    /// At the sockets below a cgroup; at interfaces only what no such socket sends or takes.
    Both(SocketRoot),
}

/// The cgroup whose sockets are seen, with all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketRoot {
    /// Its directory.
    pub path: PathBuf,
    /// Its id: the inode of the directory.
    pub id: u64,
    /// How many cgroups lie above it; 0 for the root of the hierarchy.
    pub level: u32,
}

impl Planes {
    /// The word that status uses.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Socket(_) => "socket",
            Self::Both(_) => "both",
        }
    }

    /// The socket plane's cgroup, if that plane is in use.
    #[must_use]
    pub const fn socket_root(&self) -> Option<&SocketRoot> {
        match self {
            Self::Tc => None,
            Self::Socket(root) | Self::Both(root) => Some(root),
        }
    }

    /// Whether programs are attached to interfaces.
    #[must_use]
    pub const fn has_interfaces(&self) -> bool {
        matches!(self, Self::Tc | Self::Both(_))
    }
}

/// Planes and why these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where packets are counted.
    pub planes: Planes,
    /// Why there.
    pub reason: String,
    /// How cgroups are mounted.
    pub mode: Mode,
}

/// The socket plane was asked for and cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the socket plane needs cgroup2, and {why}: mount it (mount -t cgroup2 none /sys/fs/cgroup/unified), set ORB8_CGROUP_ROOT, or use --capture tc"
)]
pub struct NoSocketPlane {
    why: String,
}

/// What a look at mounts and cgroups found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// How cgroups are mounted.
    pub mode: Mode,
    /// The cgroup2 directory to attach to, or why there is none.
    pub root: Result<SocketRoot, String>,
    /// A cgroup of pods or containers below it, if one was found.
    pub containers: Option<String>,
}

impl View {
    /// A node without cgroups, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn none() -> Self {
        let why = "cgroup2 is not mounted".to_owned();
        Self { mode: Mode::None, root: Err(why), containers: None }
    }
}

/// Chooses.
///
/// # Errors
/// The socket plane was asked for, and there is no cgroup2.
pub fn choose(wanted: Capture, view: &View) -> Result<Choice, NoSocketPlane> {
    let found = |planes, reason: String| Ok(Choice { planes, reason, mode: view.mode });
    let root = match (&view.root, wanted) {
        (_, Capture::Tc) => return found(Planes::Tc, "the settings say so".to_owned()),
        (Ok(root), _) => root.clone(),
        (Err(why), Capture::Socket) => return Err(NoSocketPlane { why: why.clone() }),
        (Err(why), Capture::Auto) => {
            return found(Planes::Tc, format!("{why}, so sockets have no cgroup"));
        }
    };
    match (wanted, view.mode, &view.containers) {
        (Capture::Socket, ..) => found(Planes::Socket(root), "the settings say so".to_owned()),
        (_, Mode::Unified, _) => {
            found(Planes::Both(root), "all processes are in cgroup2".to_owned())
        }
        (_, _, Some(cgroup)) => {
            let reason = format!("containers are in cgroup2 (hybrid node, found {cgroup})");
            found(Planes::Both(root), reason)
        }
        (_, _, None) => {
            let reason = "hybrid node without pods or containers in cgroup2";
            found(Planes::Tc, reason.to_owned())
        }
    }
}

/// Looks at the mounts in `proc_root/self/mountinfo` and at the cgroups below cgroup2; `set` names
/// the cgroup2 directory instead of the mounts.
#[must_use]
pub fn look(proc_root: &Path, set: Option<&Path>) -> View {
    let mounts = Mounts::read(proc_root);
    let mode = mounts.mode(set.is_some());
    let root = match set {
        Some(path) => read_root(path, &mounts),
        None => mounts
            .outermost()
            .ok_or_else(|| "cgroup2 is not mounted".to_owned())
            .and_then(|path| read_root(&path, &mounts)),
    };
    let containers = root.as_ref().ok().and_then(|root| find_containers(&root.path));
    View { mode, root, containers }
}

fn read_root(path: &Path, mounts: &Mounts) -> Result<SocketRoot, String> {
    /// Only a cgroup2 directory has it, the root too.
    const OF_CGROUP2: &str = "cgroup.procs";
    const OF_VERSION_1: &str = "tasks";
    let shown = path.display();
    let found = fs::metadata(path).map_err(|error| format!("{shown} cannot be read ({error})"))?;
    if !path.join(OF_CGROUP2).exists() || path.join(OF_VERSION_1).exists() {
        return Err(format!("{shown} is no cgroup2 directory"));
    }
    let level = if found.ino() == ROOT_INODE { Some(0) } else { level(path, mounts) };
    let level = level.ok_or_else(|| format!("{shown} lies below no cgroup2 mount that is seen"))?;
    Ok(SocketRoot { path: path.to_path_buf(), id: found.ino(), level })
}

/// How many cgroups lie above a directory, if the mounts tell.
fn level(path: &Path, mounts: &Mounts) -> Option<u32> {
    let (mount, below) = mounts
        .cgroup2
        .iter()
        .filter_map(|mount| Some((mount, path.strip_prefix(&mount.at).ok()?)))
        .min_by_key(|(_, below)| below.components().count())?;
    let above: Vec<&str> = mount.of.split('/').filter(|name| !name.is_empty()).collect();
    // Outside the reader's cgroup namespace: how far outside is not told.
    if above.contains(&"..") {
        return None;
    }
    u32::try_from(above.len() + below.components().count()).ok()
}

/// Directories that are looked at for containers.
const MAX_LOOKS: usize = 4096;

/// The first cgroup, nearest to the root, whose name only pods and containers have.
fn find_containers(root: &Path) -> Option<String> {
    let mut level = vec![root.to_path_buf()];
    let mut looks = 0;
    while !level.is_empty() && looks < MAX_LOOKS {
        let mut next = Vec::new();
        for directory in level {
            looks += 1;
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let name = entry.file_name().to_string_lossy().into_owned();
                if is_of_containers(&name) {
                    return Some(name);
                }
                next.push(entry.path());
            }
        }
        level = next;
    }
    None
}

/// Names that the kubelet and runtimes give.
fn is_of_containers(name: &str) -> bool {
    const PREFIXES: [&str; 6] =
        ["cri-containerd-", "crio-", "docker-", "libpod", "nerdctl-", "docker"];
    if path::system(name).is_some() {
        return true;
    }
    // The kubelet's own may bear the name of the cgroup above it first.
    (name.contains("kubepods") || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        // systemd's service of the engine is not a container.
        && !name.ends_with(".service")
        && !name.ends_with(".socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> SocketRoot {
        SocketRoot { path: "/sys/fs/cgroup".into(), id: 1, level: 0 }
    }

    fn view(mode: Mode, root: Result<SocketRoot, String>, containers: Option<&str>) -> View {
        View { mode, root, containers: containers.map(str::to_owned) }
    }

    #[test]
    fn auto_takes_both_planes_where_containers_are_in_cgroup2() {
        let check = |mode, found: Result<SocketRoot, String>, containers, expected: &str| {
            let choice = choose(Capture::Auto, &view(mode, found, containers)).unwrap();
            assert_eq!(format!("{}: {}", choice.planes.name(), choice.reason), expected);
            assert_eq!(choice.mode, mode);
        };
        check(Mode::Unified, Ok(root()), None, "both: all processes are in cgroup2");
        check(
            Mode::Hybrid,
            Ok(root()),
            Some("kubepods.slice"),
            "both: containers are in cgroup2 (hybrid node, found kubepods.slice)",
        );
        check(
            Mode::Hybrid,
            Ok(root()),
            None,
            "tc: hybrid node without pods or containers in cgroup2",
        );
        check(
            Mode::V1,
            Err("cgroup2 is not mounted".to_owned()),
            None,
            "tc: cgroup2 is not mounted, so sockets have no cgroup",
        );
    }

    #[test]
    fn a_plane_that_is_asked_for_is_taken_or_the_lack_is_told() {
        let able = view(Mode::Hybrid, Ok(root()), None);
        assert_eq!(choose(Capture::Socket, &able).unwrap().planes, Planes::Socket(root()));
        assert_eq!(choose(Capture::Tc, &able).unwrap().planes, Planes::Tc);
        let unable = view(Mode::V1, Err("cgroup2 is not mounted".to_owned()), None);
        assert_eq!(choose(Capture::Tc, &unable).unwrap().planes, Planes::Tc);
        insta::assert_snapshot!(choose(Capture::Socket, &unable).unwrap_err(), @"the socket plane needs cgroup2, and cgroup2 is not mounted: mount it (mount -t cgroup2 none /sys/fs/cgroup/unified), set ORB8_CGROUP_ROOT, or use --capture tc");
    }

    #[test]
    fn the_depth_of_a_root_is_read_from_the_mounts() {
        let text = "30 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             33 25 0:27 /a/b /mnt/with\\040space rw shared:3 - cgroup2 none rw\n\
             34 25 0:27 /../.. /host/cgroup rw - cgroup2 none rw\n";
        let found = Mounts::parse(text);
        let check = |path: &str, expected| {
            assert_eq!(level(Path::new(path), &found), expected, "{path}");
        };
        check("/sys/fs/cgroup/unified", Some(0));
        check("/sys/fs/cgroup/unified/test/node1", Some(2));
        check("/mnt/with space/c", Some(3));
        check("/host/cgroup/kubepods", None);
        check("/elsewhere", None);
    }

    #[test]
    fn containers_are_known_by_the_names_that_only_they_have() {
        for (name, expected) in [
            ("kubepods.slice", true),
            ("kubepods", true),
            ("cri-containerd-0a1b.scope", true),
            ("docker-0a1b.scope", true),
            ("libpod-0a1b.scope", true),
            ("docker", true),
            ("docker.service", false),
            ("docker.socket", false),
            ("system.slice", false),
            ("user.slice", false),
        ] {
            assert_eq!(is_of_containers(name), expected, "{name}");
        }
    }

    #[test]
    fn containers_are_found_wherever_they_are_in_the_tree() {
        let tree = std::env::temp_dir().join(format!("orb8-capture-{}", std::process::id()));
        fs::create_dir_all(tree.join("system.slice/a.service")).unwrap();
        assert_eq!(find_containers(&tree), None);
        let kubepods = "prefix-kubepods.slice";
        fs::create_dir_all(tree.join("prefix.slice").join(kubepods)).unwrap();
        assert_eq!(find_containers(&tree).as_deref(), Some(kubepods));
        assert!(look(Path::new("/proc"), Some(&tree)).root.is_err(), "no cgroup2 directory");
        fs::remove_dir_all(&tree).unwrap();
    }
}
