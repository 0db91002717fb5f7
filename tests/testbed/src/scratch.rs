//! Folders that end with their handle. What a killed process left is removed by the next one that
//! makes such a folder: names carry the process that made them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// Begins every name.
const PREFIX: &str = "orb8-testbed-";

/// A name that nobody else uses, and that tells which process made it.
#[must_use]
pub fn unique_name(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    format!("{PREFIX}{pid}-{}-{what}-{number}", start_time(pid).unwrap_or_default())
}

/// Whether a name is one of ours and the process that made it is gone.
#[must_use]
pub fn is_stale(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let mut parts = rest.split('-').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(started))) = (parts.next(), parts.next()) else { return false };
    let Ok(pid) = u32::try_from(pid) else { return false };
    start_time(pid) != Some(started)
}

/// When a process began, in ticks since boot: with it, a reused process number is told apart.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks; the 20th field behind it is the start time.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A folder for files, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty folder.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn folder(what: &str) -> Self {
        static SWEEP: Once = Once::new();
        let parent = std::env::temp_dir();
        SWEEP.call_once(|| sweep(&parent));
        let path = parent.join(unique_name(what));
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Somebody may have tidied up already.
        drop(fs::remove_dir_all(&self.0));
    }
}

fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_stale) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_processes_are_stale() {
        assert!(!is_stale(&unique_name("x")), "we live");
        assert!(
            is_stale(&format!("{PREFIX}{}-1-x-0", std::process::id())),
            "another of our number"
        );
        assert!(!is_stale("orb8-testbed-of-somebody"));
        assert!(!is_stale("home"));
    }

    #[test]
    fn a_folder_ends_with_its_handle() {
        let folder = Scratch::folder("test");
        let path = folder.path().to_owned();
        fs::write(path.join("file"), "x").expect("a file");
        drop(folder);
        assert!(!path.exists());
    }
}
