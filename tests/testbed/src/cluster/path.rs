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
}

/// Who runs the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// containerd's CRI plugin.
    Containerd,
    /// CRI-O.
    Crio,
    /// Docker behind cri-dockerd.
    Docker,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Containerd, Self::Crio, Self::Docker];

    /// As container ids in the API begin.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Docker => "docker",
        }
    }

    /// As scopes begin.
    const fn scope(self) -> &'static str {
        match self {
            Self::Containerd => "cri-containerd",
            Self::Crio => "crio",
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
            (Driver::Systemd, class) => {
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

    /// The cgroup of a container, or of the sandbox, below its pod's.
    #[must_use]
    pub fn container(&self, id: &str) -> String {
        match self.driver {
            Driver::Systemd => format!("{}-{id}.scope", self.runtime.scope()),
            Driver::Cgroupfs if self.runtime == Runtime::Crio => format!("crio-{id}"),
            Driver::Cgroupfs => id.to_owned(),
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
        assert_eq!(systemd.container("ab"), "cri-containerd-ab.scope");
        let cgroupfs = Layout { driver: Driver::Cgroupfs, prefix: "n2", ..Layout::default() };
        assert_eq!(cgroupfs.pod(Qos::BestEffort, uid), format!("n2/kubepods/besteffort/pod{uid}"));
        assert_eq!(cgroupfs.pod(Qos::Guaranteed, uid), format!("n2/kubepods/pod{uid}"));
    }
}
