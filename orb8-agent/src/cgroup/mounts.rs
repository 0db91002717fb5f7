//! Which cgroup hierarchies the host has, where they are mounted, and which of them holds
//! containers. Read once, at the start; nothing is kept.

use std::fs;
use std::path::{Path, PathBuf};

use super::Roots;
use super::path::Placement;

/// Directories that are looked at in search of a container.
const MAX_LOOKED_AT: usize = 65_536;

/// Which hierarchies are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// cgroup2 alone.
    Unified,
    /// cgroup2 beside version 1.
    Hybrid,
    /// Version 1 alone.
    V1,
    /// No cgroups at all.
    None,
}

impl Mode {
    /// The word for it in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unified => "unified",
            Self::Hybrid => "hybrid",
            Self::V1 => "v1",
            Self::None => "none",
        }
    }
}

/// Where containers were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containers {
    /// In cgroup2, perhaps elsewhere too.
    InCgroup2,
    /// In version 1 alone: their sockets show the root of cgroup2.
    OnlyV1,
    /// Nowhere, so far.
    NotFound,
}

/// What the host looked like at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Which hierarchies are mounted.
    pub mode: Mode,
    /// The root of all cgroups: what was set, else the cgroup2 mount.
    pub mount: Option<PathBuf>,
    /// Where containers are.
    pub containers: Containers,
}

/// Looks at the mounts and at the directories below them; reads until the first container.
#[must_use]
pub fn survey(roots: &Roots) -> Survey {
    let mounts = fs::read_to_string(roots.proc.join("self/mountinfo")).unwrap_or_default();
    let first_version = mount_points(&mounts, "cgroup");
    let mount = roots.cgroup.clone().or_else(|| cgroup2_mount(&mounts));
    let mode = match (&mount, first_version.is_empty()) {
        (Some(_), true) => Mode::Unified,
        (Some(_), false) => Mode::Hybrid,
        (None, false) => Mode::V1,
        (None, true) => Mode::None,
    };
    let containers = if mount.as_deref().is_some_and(holds_containers) {
        Containers::InCgroup2
    } else if first_version.iter().any(|mount| holds_containers(mount)) {
        Containers::OnlyV1
    } else {
        Containers::NotFound
    };
    Survey { mode, mount, containers }
}

/// The mount point of cgroup2 in the text of `/proc/self/mountinfo`, the outermost if several.
#[must_use]
pub fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mount_points(mountinfo, "cgroup2").into_iter().min_by_key(|path| path.components().count())
}

fn mount_points(mountinfo: &str, wanted: &str) -> Vec<PathBuf> {
    let point = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let fits = kind.split(' ').next()? == wanted;
        fits.then(|| mount.split(' ').nth(4).map(|field| PathBuf::from(unescape(field))))?
    };
    mountinfo.lines().filter_map(point).collect()
}

/// Undoes the octal escapes that the kernel writes for spaces, tabs, newlines and backslashes.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            text.push(char::from(code));
            rest = &rest[at + 4..];
        } else {
            text.push('\\');
            rest = &rest[at + 1..];
        }
    }
    text.push_str(rest);
    text
}

/// Whether some directory below is a pod's or a container's.
fn holds_containers(mount: &Path) -> bool {
    let mut open = vec![(mount.to_path_buf(), String::new())];
    let mut looked_at = 0;
    while let Some((directory, path)) = open.pop() {
        // A directory that vanishes meanwhile holds nothing.
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let below = format!("{path}/{}", entry.file_name().to_string_lossy());
            if Placement::parse(&below).is_some_and(|it| it.pod.is_some() || it.container.is_some())
            {
                return true;
            }
            looked_at += 1;
            if looked_at >= MAX_LOOKED_AT {
                return false;
            }
            open.push((entry.path(), below));
        }
    }
    false
}

#[cfg(test)]
mod tests;
