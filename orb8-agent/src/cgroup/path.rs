//! From a cgroup's path to where it belongs: pod, container, runtime, systemd unit.
//!
//! A pure parser. It reads names as the kubelet and the runtimes write them and asks nobody;
//! whether such a pod exists, and whether a container is a pod's sandbox, is not decided here.

/// What a cgroup's path says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// uid of the pod, with dashes; of a static pod its config hash (32 hex digits).
    pub pod: Option<Box<str>>,
    /// The container, of a pod or of the host.
    pub container: Option<Container>,
    /// Who named the directories; none where there is neither pod nor container.
    pub driver: Option<Driver>,
    /// The nearest systemd unit, such as `sshd.service`, where there is neither pod nor container.
    pub unit: Option<Box<str>>,
    /// What lies below the container, the pod or the unit, without a slash in front; often empty.
    pub nested: Box<str>,
}

/// A container by its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id as the runtime writes it.
    pub id: Box<str>,
    /// Its runtime, where the name tells; a bare id under a pod does not.
    pub runtime: Option<Runtime>,
}

/// A container runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// containerd, by Kubernetes or by nerdctl and ctr.
    Containerd,
    /// CRI-O.
    CriO,
    /// Docker, by Kubernetes (cri-dockerd) or on its own.
    Docker,
    /// Podman.
    Podman,
}

impl Runtime {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Containerd, Self::CriO, Self::Docker, Self::Podman];

    /// The one that the API writes in front of a container's id, as in `containerd://<id>`.
    #[must_use]
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|runtime| runtime.as_str() == scheme)
    }

    /// The word for it in answers; the API's scheme is the same.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// What makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// systemd, in slices and scopes.
    Systemd,
    /// The kubelet or the runtime itself, in plain directories.
    Cgroupfs,
}

impl Driver {
    /// The word for it in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Cgroupfs => "cgroupfs",
        }
    }
}

/// Prefixes of containers' names; the Kata sandbox says nothing of the runtime above it.
const PREFIXES: [(&str, Option<Runtime>); 6] = [
    ("cri-containerd-", Some(Runtime::Containerd)),
    ("crio-", Some(Runtime::CriO)),
    ("docker-", Some(Runtime::Docker)),
    ("libpod-", Some(Runtime::Podman)),
    ("nerdctl-", Some(Runtime::Containerd)),
    ("kata_", None),
];
/// Directories in which a runtime keeps containers under their bare ids.
const PARENTS: [(&str, Runtime); 5] = [
    ("docker", Runtime::Docker),
    ("moby", Runtime::Docker),
    ("default", Runtime::Containerd),
    ("k8s.io", Runtime::Containerd),
    ("libpod_parent", Runtime::Podman),
];
/// Prefixes of the names of whole systems in containers, which LXC and systemd-nspawn make.
const SYSTEMS: [(&str, &str); 3] =
    [("lxc.payload.", ""), ("machine-", ".scope"), ("systemd-nspawn@", ".service")];
/// A virtual machine of libvirt is a process in the host's own network.
const VIRTUAL_MACHINES: &str = "machine-qemu";
/// Length of the ids that all runtimes make; a bare name must have it.
const ID_LENGTH: usize = 64;
/// Lengths of ids behind a prefix.
const ID_LENGTHS: std::ops::RangeInclusive<usize> = 12..=128;

impl Placement {
    /// Reads a path below the cgroup mount, or one of `/proc/<pid>/cgroup`; none if it says nothing.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let up = parts.iter().take_while(|part| **part == "..").count();
        // From another cgroup namespace, the common part of both paths is written as `..`.
        let (relative, parts) = (up > 0, &parts[up..]);
        let pod = (0..parts.len()).find_map(|at| Self::of_pod(parts, at, relative));
        pod.or_else(|| (0..parts.len()).find_map(|at| Self::of_container(parts, at)))
            .or_else(|| (0..parts.len()).rev().find_map(|at| Self::of_unit(parts, at)))
    }

    fn of_pod(parts: &[&str], at: usize, relative: bool) -> Option<Self> {
        if let Some((pod, container)) = colon_form(parts[at]) {
            return Some(Self {
                pod: Some(pod),
                container: Some(container),
                driver: Some(Driver::Systemd),
                unit: None,
                nested: below(parts, at),
            });
        }
        let (pod, driver) = match pod_of_slice(parts[at]) {
            Some(pod) => (pod, Driver::Systemd),
            None => (pod_of_directory(parts, at, relative)?, Driver::Cgroupfs),
        };
        let container = parts.get(at + 1).and_then(|name| container(name, None));
        let end = if container.is_some() { at + 1 } else { at };
        let nested = below(parts, end);
        Some(Self { pod: Some(pod), container, driver: Some(driver), unit: None, nested })
    }

    fn of_container(parts: &[&str], at: usize) -> Option<Self> {
        let parent = at.checked_sub(1).map(|before| parts[before]);
        let scope = parts[at].ends_with(".scope");
        Some(Self {
            pod: None,
            container: Some(container(parts[at], parent)?),
            driver: Some(if scope { Driver::Systemd } else { Driver::Cgroupfs }),
            unit: None,
            nested: below(parts, at),
        })
    }

    fn of_unit(parts: &[&str], at: usize) -> Option<Self> {
        let (name, kind) = parts[at].rsplit_once('.')?;
        let unit = !name.is_empty() && matches!(kind, "service" | "scope" | "mount");
        unit.then(|| Self {
            unit: Some(parts[at].into()),
            nested: below(parts, at),
            ..Self::default()
        })
    }
}

fn below(parts: &[&str], at: usize) -> Box<str> {
    parts[at + 1..].join("/").into()
}

/// `kubepods-burstable-pod<uid>.slice`; a kubelet's `cgroupRoot` stands in front of `kubepods`.
fn pod_of_slice(name: &str) -> Option<Box<str>> {
    let (parent, uid) = name.strip_suffix(".slice")?.rsplit_once("-pod")?;
    let parent = parent
        .strip_suffix("-burstable")
        .or_else(|| parent.strip_suffix("-besteffort"))
        .unwrap_or(parent);
    let under_kubepods = parent.strip_suffix("kubepods")?;
    let whole = under_kubepods.is_empty() || under_kubepods.ends_with('-');
    // In a slice's name a dash separates levels, so the kubelet writes underscores into it.
    (whole && is_uid(uid) && !uid.contains('-')).then(|| uid.replace('_', "-").into())
}

/// `pod<uid>` in `kubepods`, or in a class of it; in a relative path these may be cut off.
fn pod_of_directory(parts: &[&str], at: usize, relative: bool) -> Option<Box<str>> {
    let uid = parts[at].strip_prefix("pod").filter(|uid| is_uid(uid))?;
    let in_class = at > 0 && matches!(parts[at - 1], "burstable" | "besteffort");
    let root = if in_class { at - 1 } else { at };
    let known = match root.checked_sub(1) {
        Some(above) => parts[above] == "kubepods",
        None => relative && looks_made(uid),
    };
    known.then(|| uid.into())
}

/// `<slice of the pod>:cri-containerd:<id>`, if the kubelet speaks to systemd and containerd does not.
fn colon_form(name: &str) -> Option<(Box<str>, Container)> {
    let mut fields = name.split(':');
    let pod = pod_of_slice(fields.next()?)?;
    let runtime = match fields.next()? {
        "cri-containerd" => Runtime::Containerd,
        "crio" => Runtime::CriO,
        "docker" => Runtime::Docker,
        _ => return None,
    };
    let id = fields.next().filter(|id| is_hex(id) && ID_LENGTHS.contains(&id.len()))?;
    let container = Container { id: id.into(), runtime: Some(runtime) };
    fields.next().is_none().then_some((pod, container))
}

/// A container by the name of its directory, and by that of the one above if it matters.
fn container(name: &str, parent: Option<&str>) -> Option<Container> {
    let base = name.strip_suffix(".scope").unwrap_or(name);
    for (prefix, runtime) in PREFIXES {
        // `crio-conmon-<id>` and `libpod-conmon-<id>` hold a container's monitor, not its processes.
        if let Some(id) = base.strip_prefix(prefix)
            && is_hex(id)
            && ID_LENGTHS.contains(&id.len())
        {
            return Some(Container { id: id.into(), runtime });
        }
    }
    if let Some(system) = system(name) {
        return Some(Container { id: system.into(), runtime: None });
    }
    (name.len() == ID_LENGTH && is_hex(name)).then(|| {
        let of_parent = PARENTS.iter().find(|(of, _)| Some(*of) == parent);
        Container { id: name.into(), runtime: of_parent.map(|(_, runtime)| *runtime) }
    })
}

/// The name of a whole system in a container, by that of its cgroup.
pub(crate) fn system(name: &str) -> Option<&str> {
    let named = |(before, after): &(&str, &str)| {
        name.strip_prefix(*before)?.strip_suffix(*after).filter(|system| !system.is_empty())
    };
    SYSTEMS.iter().find_map(named).filter(|_| !name.starts_with(VIRTUAL_MACHINES))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_uid(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

/// Whether it has the form of a made uid or of a config hash.
fn looks_made(uid: &str) -> bool {
    match uid.len() {
        32 => is_hex(uid),
        36 => uid.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && is_hex(&uid.replace('-', "")),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
