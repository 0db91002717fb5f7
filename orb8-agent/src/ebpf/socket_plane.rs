//! The socket plane's programs: two links at one cgroup, kept there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::load::{Programs, SocketSwitch};
use super::sys;
use crate::capture::SocketRoot;
use crate::datapath::{AttachState, SocketPlaneStatus};
use crate::event::{Notice, Severity};

/// The program and the attach type of each direction.
const HOOKS: [(&str, u32); 2] = [
    ("orb8_sock_in", sys::BPF_CGROUP_INET_INGRESS),
    ("orb8_sock_out", sys::BPF_CGROUP_INET_EGRESS),
];

/// The programs at a cgroup.
pub(super) struct SocketPlane {
    root: SocketRoot,
    links: Option<[OwnedFd; 2]>,
    /// Why there are no links, once that was tried.
    reason: String,
    /// What the programs at interfaces were told last.
    told: Option<bool>,
}

impl SocketPlane {
    /// Not attached yet.
    pub(super) fn new(root: SocketRoot) -> Self {
        Self { root, links: None, reason: String::new(), told: None }
    }

    /// Attaches what is not there, the first time or because somebody has taken it off; what
    /// there is to tell about it. Programs at interfaces leave packets to this plane only while it
    /// is attached.
    pub(super) fn keep_attached(
        &mut self,
        programs: &Programs,
        switch: &mut SocketSwitch,
    ) -> Option<Notice> {
        let notice = self.keep(programs);
        let on = self.is_attached();
        if self.told == Some(on) {
            return notice;
        }
        match switch.set(0, u32::from(on), 0) {
            Ok(()) => self.told = Some(on),
            // Tried again at the next look.
            Err(error) => tracing::error!(%error, on, "the switch of the socket plane is stuck"),
        }
        notice
    }

    /// Whether the programs are there, as of the last look.
    pub(super) const fn is_attached(&self) -> bool {
        self.links.is_some()
    }

    fn keep(&mut self, programs: &Programs) -> Option<Notice> {
        let attached = self.is_attached();
        match self.try_keep(programs) {
            Ok(false) => None,
            Ok(true) => {
                self.reason.clear();
                let root = self.root.path.display();
                Some(if attached {
                    Notice {
                        severity: Severity::Warning,
                        code: "programs_removed",
                        message: format!(
                            "our programs were taken off the cgroup {root} and are attached again; what its sockets sent and received meanwhile is not known"
                        ),
                    }
                } else {
                    Notice {
                        severity: Severity::Info,
                        code: "socket_plane_attached",
                        message: format!("attached to the sockets below {root}"),
                    }
                })
            }
            Err(error) => {
                let reason = format!("attach to the cgroup {}: {error}", self.root.path.display());
                self.links = None;
                let news = self.reason != reason;
                self.reason.clone_from(&reason);
                news.then_some(Notice {
                    severity: Severity::Error,
                    code: "attach_failed",
                    message: reason,
                })
            }
        }
    }

    /// True if something had to be attached.
    fn try_keep(&mut self, programs: &Programs) -> io::Result<bool> {
        if self.links.is_some() {
            match self.is_whole(programs) {
                Ok(true) => return Ok(false),
                Ok(false) => self.detach(),
                // With the cgroup, what was attached to it has gone.
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the socket plane's programs cannot be looked at");
                    return Ok(false);
                }
            }
        }
        let cgroup = File::open(&self.root.path)?;
        let attach = |(name, attach_type): (&str, u32)| {
            sys::cgroup_attach(programs.fd(name), cgroup.as_fd(), attach_type)
        };
        self.links = Some([attach(HOOKS[0])?, attach(HOOKS[1])?]);
        Ok(true)
    }

    /// Whether the programs of both directions are at the cgroup.
    fn is_whole(&self, programs: &Programs) -> io::Result<bool> {
        let cgroup = File::open(&self.root.path)?;
        let mut whole = true;
        for (name, attach_type) in HOOKS {
            let there = sys::cgroup_programs(cgroup.as_fd(), attach_type)?;
            whole &= programs.id(name).is_some_and(|id| there.contains(&id));
        }
        Ok(whole)
    }

    /// Takes the programs off.
    pub(super) fn detach(&mut self) {
        for link in self.links.take().into_iter().flatten() {
            if let Err(error) = sys::link_detach(link.as_fd()) {
                tracing::debug!(%error, "a link was already gone");
            }
        }
    }

    /// As status shows it.
    pub(super) fn status(&self) -> SocketPlaneStatus {
        let state = match (&self.links, self.reason.is_empty()) {
            (Some(_), _) => AttachState::Attached,
            (None, true) => AttachState::Attaching,
            (None, false) => AttachState::Failed,
        };
        SocketPlaneStatus { root: self.root.path.clone(), state, reason: self.reason.clone() }
    }
}

/// Whether a look failed because there is no such cgroup any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use orb8_testbed::cgroup::Tree;
    use orb8_testbed::need::{Need, met};

    use super::*;
    use crate::capture::Planes;
    use crate::ebpf::load::{self, LoadOptions};

    fn root(path: &std::path::Path) -> SocketRoot {
        let id = std::fs::metadata(path).map_or(0, |found| found.ino());
        SocketRoot { path: path.to_path_buf(), id, level: 1 }
    }

    fn programs(root: &SocketRoot) -> (Programs, SocketSwitch) {
        let planes = Planes::Socket(root.clone());
        let sizes = LoadOptions {
            planes,
            max_flows: 16,
            memory_budget: 32 << 20,
            ring_bytes: 64 << 10,
            packet_ring_bytes: 64 << 10,
            fault_bytes: 0,
        };
        let loaded = load::load(&sizes).unwrap();
        (loaded.programs, loaded.socket_switch)
    }

    #[test]
    fn programs_that_are_taken_off_are_missed_and_attached_again() {
        let name = "programs_that_are_taken_off_are_missed_and_attached_again";
        if !met(name, &[Need::Root, Need::Bpf, Need::Cgroup2]) {
            return;
        }
        let tree = Tree::new("socket-plane");
        let root = root(tree.root());
        let (programs, mut switch) = programs(&root);
        let mut plane = SocketPlane::new(root);
        let told = |notice: Option<Notice>| notice.map(|notice| notice.code);
        assert_eq!(plane.status().state, AttachState::Attaching);
        assert_eq!(
            told(plane.keep_attached(&programs, &mut switch)),
            Some("socket_plane_attached")
        );
        assert_eq!(switch.get(&0, 0).unwrap(), 1);
        assert_eq!(told(plane.keep_attached(&programs, &mut switch)), None);
        // One direction is enough to be missed.
        sys::link_detach(plane.links.as_ref().unwrap()[0].as_fd()).unwrap();
        assert_eq!(told(plane.keep_attached(&programs, &mut switch)), Some("programs_removed"));
        assert_eq!(told(plane.keep_attached(&programs, &mut switch)), None);
        assert_eq!(plane.status().state, AttachState::Attached);
        plane.detach();
        let cgroup = File::open(tree.root()).unwrap();
        for (_, attach_type) in HOOKS {
            assert!(sys::cgroup_programs(cgroup.as_fd(), attach_type).unwrap().is_empty());
        }
    }

    #[test]
    fn a_look_that_fails_takes_nothing_off_as_long_as_there_is_a_cgroup() {
        let name = "a_look_that_fails_takes_nothing_off_as_long_as_there_is_a_cgroup";
        if !met(name, &[Need::Root, Need::Bpf, Need::Cgroup2]) {
            return;
        }
        let tree = Tree::new("socket-look");
        let root = root(tree.root());
        let (programs, mut switch) = programs(&root);
        let mut plane = SocketPlane::new(root);
        plane.keep_attached(&programs, &mut switch).unwrap();
        // No cgroup, so that the kernel does not tell what is attached.
        plane.root.path = "/proc".into();
        assert_eq!(plane.keep_attached(&programs, &mut switch), None);
        assert_eq!((plane.status().state, switch.get(&0, 0).unwrap()), (AttachState::Attached, 1));
        plane.root.path = tree.root().join("gone");
        let notice = plane.keep_attached(&programs, &mut switch).unwrap();
        assert_eq!((notice.code, notice.severity), ("attach_failed", Severity::Error));
        assert_eq!((plane.status().state, switch.get(&0, 0).unwrap()), (AttachState::Failed, 0));
    }

    #[test]
    fn a_cgroup_that_cannot_be_attached_to_is_told_once_with_the_reason() {
        let name = "a_cgroup_that_cannot_be_attached_to_is_told_once_with_the_reason";
        if !met(name, &[Need::Root, Need::Bpf]) {
            return;
        }
        let root = root(std::path::Path::new("/proc"));
        let (programs, mut switch) = programs(&root);
        let mut plane = SocketPlane::new(root);
        let notice = plane.keep_attached(&programs, &mut switch).unwrap();
        assert_eq!((notice.code, notice.severity), ("attach_failed", Severity::Error));
        assert_eq!(switch.get(&0, 0).unwrap(), 0, "nothing is left to it");
        assert_eq!(plane.keep_attached(&programs, &mut switch), None);
        let status = plane.status();
        assert_eq!(status.state, AttachState::Failed);
        assert!(status.reason.starts_with("attach to the cgroup /proc: "), "{}", status.reason);
    }
}
