//! Which cgroup hierarchies the host has and where they are mounted, from `mountinfo`.
//!
//! Read at the start, where something is to be found or attached; nothing is kept.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The root of a kernfs hierarchy has this inode.
pub const ROOT_INODE: u64 = 1;

/// Which hierarchies are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// cgroup2 alone.
    Unified,
    /// cgroup2 beside controllers of version 1.
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

/// A mount of cgroup2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The cgroup that is mounted, as the reader's cgroup namespace names it.
    pub of: String,
    /// Where.
    pub at: PathBuf,
}

/// The mounts of cgroups that this process sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Those of cgroup2.
    pub cgroup2: Vec<Mount>,
    /// Whether a controller of version 1 is mounted.
    pub version_1: bool,
}

impl Mounts {
    /// Those in `<proc_root>/self/mountinfo`; none if it cannot be read.
    #[must_use]
    pub fn read(proc_root: &Path) -> Self {
        let text = fs::read_to_string(proc_root.join("self/mountinfo"));
        Self::parse(&text.unwrap_or_default())
    }

    /// Those in the text of `mountinfo`.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            mounts.take(line);
        }
        mounts
    }

    /// Which hierarchies there are; `set`: the root of cgroup2 is known without a mount.
    #[must_use]
    pub const fn mode(&self, set: bool) -> Mode {
        match (set || !self.cgroup2.is_empty(), self.version_1) {
            (true, false) => Mode::Unified,
            (true, true) => Mode::Hybrid,
            (false, true) => Mode::V1,
            (false, false) => Mode::None,
        }
    }

    /// The mount of the hierarchy's root, else the one with the shortest path: a container sees its
    /// own cgroup mounted beside the host's.
    #[must_use]
    pub fn outermost(&self) -> Option<PathBuf> {
        let rank = |path: &Path| {
            let is_root = fs::metadata(path).is_ok_and(|found| found.ino() == ROOT_INODE);
            (!is_root, path.components().count())
        };
        self.cgroup2.iter().map(|mount| mount.at.clone()).min_by_key(|path| rank(path))
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (of, at) = (fields.next()?, fields.next()?);
        let mut fields = filesystem.split(' ');
        match fields.next()? {
            "cgroup2" => {
                self.cgroup2.push(Mount { of: unescape(of), at: unescape(at).into() });
            }
            // One with a name alone has no controller: it groups processes for systemd.
            "cgroup" => self.version_1 |= !fields.nth(1)?.contains("name="),
            _ => {}
        }
        Some(())
    }
}

/// Undoes the octal escapes that the kernel writes for spaces, tabs, newlines and backslashes.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(code)) if code.is_ascii() => {
                text.push(char::from(code));
                text.push_str(&part[3..]);
            }
            _ => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
