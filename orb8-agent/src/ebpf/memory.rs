//! What the maps weigh, and what starting leaves behind.

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

/// Takes the memlock limit away or, without CAP_SYS_RESOURCE, raises it to the hard limit. Maps of
/// all processes of a user are charged together, so even a limit that holds ours may be used up.
/// Not being allowed to is no error: preflight tells the limit that is then in force.
pub fn raise_memlock_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let unlimited = Rlimit { current: None, maximum: None };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Memlock);
        if let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum }) {
            tracing::debug!(%error, "the memlock limit could not be raised");
        }
    }
}

/// The program code and constants of this process, as pages of files.
#[derive(Debug)]
pub struct Code(Vec<(usize, usize)>);

impl Code {
    /// Finds what is mapped of it.
    #[must_use]
    pub fn find() -> Self {
        // Without it nothing is let go, which costs nothing but memory.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self(maps.lines().filter_map(code_of).collect())
    }

    /// Lets go of all of it. What is needed comes back from the page cache, some pages at a time; what
    /// only starting or a rare question needed does not.
    pub fn leave(&self) {
        for (start, end) in &self.0 {
            // SAFETY: code is mapped as long as the process runs it, and nobody ever wrote to these
            // pages, so each is the file's again when it is touched.
            let _left =
                unsafe { libc::madvise(*start as *mut _, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// Where a line of `/proc/self/maps` says that a file's code is, or what stands before it in an
/// object file. Constants behind it are not told from those that the loader relocated.
fn code_of(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, access, offset) = (words.next()?, words.next()?, words.next()?);
    let is_file = words.nth(2)?.starts_with('/');
    let is_first = access == "r--p" && usize::from_str_radix(offset, 16) == Ok(0);
    let (start, end) = range.split_once('-')?;
    let ends = [start, end].map(|end| usize::from_str_radix(end, 16).ok());
    match ends {
        [Some(start), Some(end)] if is_file && start < end => {
            (access == "r-xp" || is_first).then_some((start, end))
        }
        _ => None,
    }
}

/// The `memlock` line of a map's fdinfo.
fn memlock_of(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|l| l.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Code, code_of, memlock_of};

    #[test]
    fn only_what_nobody_can_have_written_to_is_let_go() {
        let check = |line: &str, expected| assert_eq!(code_of(line), expected, "{line}");
        check("1000-3000 r-xp 00001000 fe:00 42   /usr/bin/orb8-agent", Some((0x1000, 0x3000)));
        check("1000-3000 r--p 00000000 fe:00 42   /usr/bin/orb8-agent", Some((0x1000, 0x3000)));
        check("1000-3000 r--p 00001000 fe:00 42   /usr/bin/orb8-agent", None);
        check("1000-3000 rw-p 00000000 fe:00 42   /usr/bin/orb8-agent", None);
        check("1000-3000 r--s 00000000 00:0f 7    anon_inode:bpf-map", None);
        check("1000-3000 r-xp 00000000 00:00 0    [vdso]", None);
        check("1000-3000 r-xp 00000000 00:00 0", None);
        check("", None);
    }

    #[test]
    fn code_that_is_let_go_comes_back() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let code = Code::find();
        let before = resident();
        code.leave();
        assert!(resident() < before);
    }

    #[test]
    fn memlock_is_read_from_fdinfo_and_nothing_else() {
        assert_eq!(memlock_of("pos:\t0\nmap_type:\t2\nmemlock:\t6553600\n"), Some(6_553_600));
        assert_eq!(memlock_of("pos:\t0\n"), None);
        assert_eq!(memlock_of("memlock:\tmany\n"), None);
    }
}
