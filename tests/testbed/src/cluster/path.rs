//! Where kubelets and runtimes put the processes of a pod: one path form for each driver and
//! runtime.

use crate::api::pod::Qos;

/// How the kubelet names cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Slices and scopes.
    Systemd,
    /// Plain directories.
    Cgroupfs,
    /// Slices of a kubelet that speaks to systemd, above a containerd that does not (k3s): the
    /// containers are not in the slices of their pods, but below the service that runs them.
    Split,
}

/// Who runs the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// containerd's CRI plugin.
    Containerd,
    /// CRI-O.
    Crio,
    /// CRI-O with crun, which keeps processes in a cgroup below the container's.
    CrioCrun,
    /// Docker behind cri-dockerd.
    Docker,
}

impl Runtime {
    /// As container ids in the API begin.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio | Self::CrioCrun => "cri-o",
            Self::Docker => "docker",
        }
    }

    /// As scopes begin.
    const fn scope(self) -> &'static str {
        match self {
            Self::Containerd => "cri-containerd",
            Self::Crio | Self::CrioCrun => "crio",
            Self::Docker => "docker",
        }
    }
}

/// What decides where a pod's cgroup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The kubelet's driver.
    pub driver: Driver,
    /// The containers' runtime.
    pub runtime: Runtime,
    /// The kubelet's `cgroupRoot`, such as `n2`; usually empty.
    pub prefix: &'static str,
}

impl Default for Layout {
    fn default() -> Self {
        Self { driver: Driver::Systemd, runtime: Runtime::Containerd, prefix: "" }
    }
}

impl Layout {
    /// Every form that nodes have.
    #[must_use]
    pub fn all() -> Vec<Self> {
        use Driver::{Cgroupfs, Split, Systemd};
        use Runtime::{Containerd, Crio, CrioCrun, Docker};
        let forms = [
            (Systemd, Containerd),
            (Systemd, Crio),
            (Systemd, CrioCrun),
            (Systemd, Docker),
            (Cgroupfs, Containerd),
            (Cgroupfs, Crio),
            (Cgroupfs, Docker),
            (Split, Containerd),
        ];
        let prefixed = |prefix| {
            forms.into_iter().map(move |(driver, runtime)| Self { driver, runtime, prefix })
        };
        prefixed("").chain(prefixed("n2")).collect()
    }

    /// The cgroup of a pod; `uid` is the config hash of a static one.
    #[must_use]
    pub fn pod(&self, qos: Qos, uid: &str) -> String {
        let class = match qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        };
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        match (self.driver, class) {
            (Driver::Cgroupfs, "") => format!("{}{slash}kubepods/pod{uid}", self.prefix),
            (Driver::Cgroupfs, class) => {
                format!("{}{slash}kubepods/{class}/pod{uid}", self.prefix)
            }
            (Driver::Systemd | Driver::Split, class) => {
                // A slice's name has its parents' names in it, so a dash cannot stand for itself.
                let uid = uid.replace('-', "_");
                let parents = if self.prefix.is_empty() {
                    vec!["kubepods".to_owned()]
                } else {
                    vec![self.prefix.to_owned(), format!("{}-kubepods", self.prefix)]
                };
                let base = parents.last().cloned().unwrap_or_default();
                let mut path: String =
                    parents.iter().map(|parent| format!("{parent}.slice/")).collect();
                let mut name = base;
                if !class.is_empty() {
                    name = format!("{name}-{class}");
                    path = format!("{path}{name}.slice/");
                }
                format!("{path}{name}-pod{uid}.slice")
            }
        }
    }

    /// The cgroup of the processes of a container, or of the sandbox, by that of its pod.
    #[must_use]
    pub fn container(&self, pod: &str, id: &str) -> String {
        let scope = self.runtime.scope();
        match (self.driver, self.runtime) {
            (Driver::Systemd, Runtime::CrioCrun) => format!("{pod}/{scope}-{id}.scope/container"),
            (Driver::Systemd, _) => format!("{pod}/{scope}-{id}.scope"),
            (Driver::Cgroupfs, Runtime::Crio | Runtime::CrioCrun) => format!("{pod}/{scope}-{id}"),
            (Driver::Cgroupfs, _) => format!("{pod}/{id}"),
            (Driver::Split, _) => {
                let (_, slice) = pod.rsplit_once('/').unwrap_or_default();
                format!("system.slice/k3s.service/{slice}:{scope}:{id}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_that_real_nodes_have() {
        let uid = "e5b2a5c6-0c0f-42fc-b345-e3d0cd42f563";
        let systemd = Layout::default();
        assert_eq!(
            systemd.pod(Qos::Burstable, uid),
            "kubepods.slice/kubepods-burstable.slice/\
             kubepods-burstable-pode5b2a5c6_0c0f_42fc_b345_e3d0cd42f563.slice"
        );
        assert_eq!(
            systemd.pod(Qos::Guaranteed, uid),
            "kubepods.slice/kubepods-pode5b2a5c6_0c0f_42fc_b345_e3d0cd42f563.slice"
        );
        assert_eq!(systemd.container("a.slice", "ab"), "a.slice/cri-containerd-ab.scope");
        let crun = Layout { runtime: Runtime::CrioCrun, ..Layout::default() };
        assert_eq!(crun.container("a.slice", "ab"), "a.slice/crio-ab.scope/container");
        let split = Layout { driver: Driver::Split, ..Layout::default() };
        let pod = split.pod(Qos::Guaranteed, "a-b");
        assert_eq!(
            split.container(&pod, "ab"),
            "system.slice/k3s.service/kubepods-poda_b.slice:cri-containerd:ab"
        );
        let cgroupfs = Layout { driver: Driver::Cgroupfs, prefix: "n2", ..Layout::default() };
        assert_eq!(cgroupfs.pod(Qos::BestEffort, uid), format!("n2/kubepods/besteffort/pod{uid}"));
        assert_eq!(cgroupfs.pod(Qos::Guaranteed, uid), format!("n2/kubepods/pod{uid}"));
    }
}
