//! Where the agent is, so that whoever compares its counts with the kernel's reads the same ones.

use std::fs;
use std::path::Path;

/// Of this machine since it was started; empty if it cannot be read.
pub(super) fn boot_id(proc_root: &Path) -> String {
    let text = fs::read_to_string(proc_root.join("sys/kernel/random/boot_id"));
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The network namespace of this thread, and so of all that it starts: the number in
/// `net:[4026531840]`; 0 if it cannot be read.
pub(super) fn network_namespace(proc_root: &Path) -> u64 {
    let link = fs::read_link(proc_root.join("thread-self/ns/net")).unwrap_or_default();
    let digits = link.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']'));
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
