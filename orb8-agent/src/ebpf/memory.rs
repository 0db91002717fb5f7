//! What the maps weigh, and what loading them leaves behind.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;
use aya::maps::Map;

/// Kernel memory of all maps of an object in bytes, as fdinfo's `memlock` tells it.
#[must_use]
pub fn map_bytes(ebpf: &Ebpf) -> u64 {
    ebpf.maps().filter_map(|(_, map)| memlock(map)).sum()
}

fn memlock(map: &Map) -> Option<u64> {
    let data = match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::Stack(data)
        | Map::HashMap(data) => data,
        _ => return None,
    };
    let fd = data.fd().as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    memlock_of(&text)
}

/// Returns to the kernel what loading the object has left free in the heap: some megabytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc trims its own heap; nothing in use moves.
    let _trimmed = unsafe { libc::malloc_trim(0) };
}

/// The `memlock` line of a map's fdinfo.
fn memlock_of(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|l| l.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::memlock_of;

    #[test]
    fn memlock_is_read_from_fdinfo_and_nothing_else() {
        assert_eq!(memlock_of("pos:\t0\nmap_type:\t2\nmemlock:\t6553600\n"), Some(6_553_600));
        assert_eq!(memlock_of("pos:\t0\n"), None);
        assert_eq!(memlock_of("memlock:\tmany\n"), None);
    }
}
