//! What the maps weigh, and what starting leaves behind.

use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;
use aya::maps::Map;
use rustix::mm::{Advice, madvise};

use super::object;

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

/// Bytes that may lie free at the end of a heap.
#[cfg(target_env = "gnu")]
const FREE_BYTES: libc::c_int = 512 * 1024;

/// Makes the heaps of threads return what they have free at their end. Without a bound of ours glibc
/// keeps twice the largest block that was ever freed: for good, the megabytes of a loaded object.
pub fn bound_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number under glibc's own lock.
    let _set = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_BYTES) };
}

/// Returns to the kernel what loading the object has left free within the heaps.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc trims its own heap; nothing in use moves.
    let _trimmed = unsafe { libc::malloc_trim(0) };
}

/// Lets go of those pages of our own code and constants that are in memory because the start needed
/// them: about half. The file has them, and whatever is used again comes back by itself.
pub fn forget_start() {
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    let code = (forget_start as fn()) as usize;
    let constants = object::bytes().as_ptr() as usize;
    for pages in [code, constants].into_iter().filter_map(|at| unwritten(&smaps, at)) {
        let start = std::ptr::with_exposed_provenance_mut(pages.start);
        // SAFETY: the kernel says that these are pages of a file as they stand in the file, so the
        // next access finds what the last one found.
        unsafe { madvise(start, pages.len(), Advice::LinuxDontNeed) }.ok();
    }
}

/// The mapping that holds an address, if it cannot be written and none of its pages ever was.
fn unwritten(smaps: &str, at: usize) -> Option<Range<usize>> {
    let mut lines = smaps.lines();
    let pages = lines.by_ref().find_map(|line| {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        let address = |hex| usize::from_str_radix(hex, 16).ok();
        let pages = address(start)?..address(end)?;
        let is_constant = words.next()?.as_bytes().get(1) == Some(&b'-');
        pages.contains(&at).then_some((pages, is_constant))
    });
    let (pages, is_constant) = pages?;
    let written = lines.find_map(|line| line.strip_prefix("Anonymous:"))?;
    (is_constant && written.trim() == "0 kB").then_some(pages)
}

/// The `memlock` line of a map's fdinfo.
fn memlock_of(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|l| l.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{forget_start, memlock_of, unwritten};

    const SMAPS: &str = "\
1000-3000 r--p 00000000 fe:00 1 /bin/agent
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
3000-8000 r-xp 00002000 fe:00 1 /bin/agent
Anonymous:             4 kB
8000-9000 rw-p 00007000 fe:00 1 /bin/agent
Anonymous:             0 kB
";

    #[test]
    fn only_pages_that_stand_in_the_file_are_let_go() {
        assert_eq!(unwritten(SMAPS, 0x1000), Some(0x1000..0x3000));
        assert_eq!(unwritten(SMAPS, 0x2fff), Some(0x1000..0x3000));
        assert_eq!(unwritten(SMAPS, 0x3000), None, "a page of it was written");
        assert_eq!(unwritten(SMAPS, 0x8000), None, "it can be written");
        assert_eq!(unwritten(SMAPS, 0x9000), None, "nothing is there");
        assert_eq!(unwritten("", 0x1000), None);
    }

    #[test]
    fn the_program_goes_on_after_its_start_is_forgotten() {
        let before = super::object::bytes().to_vec();
        forget_start();
        assert_eq!(super::object::bytes(), before);
        assert_eq!(unwritten(SMAPS, 0x1000), Some(0x1000..0x3000));
    }

    #[test]
    fn memlock_is_read_from_fdinfo_and_nothing_else() {
        assert_eq!(memlock_of("pos:\t0\nmap_type:\t2\nmemlock:\t6553600\n"), Some(6_553_600));
        assert_eq!(memlock_of("pos:\t0\n"), None);
        assert_eq!(memlock_of("memlock:\tmany\n"), None);
    }
}
